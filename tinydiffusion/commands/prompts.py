"""`tinydiffusion prompts`: what drawn scenes may be asked for, as a file."""

from pathlib import Path

from rich.console import Console

from tinydiffusion.scenes.geneval import write_prompts
from tinydiffusion.scenes.tasks import difficulty_prompts, geneval_prompts


def prompts(out: Path, *, per_task: int, ladders: int, seed: int) -> int:
    """0 once the prompts of GenEval's six tasks, and of the ladders, are written.

    Raises:
        ValueError: a number is out of its range.
    """
    if ladders < 0 or seed < 0:
        raise ValueError(f"--ladders and --seed must be 0 or more, got {ladders} and {seed}")
    written = [*geneval_prompts(per_task, seed), *difficulty_prompts(ladders, seed)]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_prompts(out, written)
    tags = list(dict.fromkeys(prompt.tag for prompt in written))
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(written)} prompts of {', '.join(tags)} in {out}")
    return 0
