"""`tinydiffusion sanity`: three small checks that a setup can learn at all.

The first thing to run when training ends in noise. The checks have the settings of the run itself:
its data, network, objective and sampler; only the length is cut.

1. One picture, memorised: the sample must look like it.
2. Sixteen pictures: each prompt must give its own picture.
3. The same noise with the captions exchanged: the pictures must be exchanged too.

With fewer pictures, or fewer different captions, as much is checked as they allow.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from rich.console import Console
from torch import Tensor

from tinydiffusion.build import build_learner, build_objective, build_training, pick_device
from tinydiffusion.config import Config, ConfigError
from tinydiffusion.pictures.usable import usable
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Dataset, Example
from tinydiffusion.run.checks import check_config
from tinydiffusion.runtime.allocator import keep_freed_memory
from tinydiffusion.survey import captions_of, surveyed_places
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.trainer import Trainer

NUM_PICTURES = 16
BATCH_SIZE = 32
FIRST, EACH_MORE = 6_400, 1_280
"""Pictures seen to learn one picture, and each further one; see `_fit` for `denoise_every`."""
MAX_ERROR = 0.08
"""Largest root mean square error of the sample of the one picture, pictures in [0, 1]."""
MIN_SHARE = 0.9
"""Smallest share of prompts whose sample is nearest to their own picture."""

console = Console(highlight=False, markup=False, soft_wrap=True)


def sanity(config: Config) -> int:
    """Check that a setup can learn; return 0 if every check passes, 1 if one fails."""
    keep_freed_memory()
    check_config(config)
    examples = _distinct_examples(build_training(config), NUM_PICTURES)
    passed = [_one_picture(config, examples[:1])]
    if len(examples) > 1:
        passed += _many_pictures(config, examples)
    console.print(f"{_outcome(passed)}{_unchecked(len(examples))}")
    return 0 if all(passed) else 1


def _outcome(passed: Sequence[bool]) -> str:
    if not all(passed):
        return "a check failed: more data or training time will not help before it passes"
    if len(passed) == 1:
        return "passed: network, objective and sampler work together"
    return "all passed: data, text, network, objective and sampler work together"


def _unchecked(num_examples: int) -> str:
    """Describe what could not be checked because the set is small."""
    if num_examples >= NUM_PICTURES:
        return ""
    if num_examples == 1:
        return (
            "; not checked: whether captions tell pictures apart, since the set has no two "
            "different pictures with different captions"
        )
    return (
        f"; not checked: more than {num_examples} pictures at once, since the set has no more "
        f"different ones with different captions ({NUM_PICTURES} are taken where there are)"
    )


def _one_picture(config: Config, examples: Sequence[Example]) -> bool:
    pipeline = _fit(config, examples)
    error = _distances(_generate(pipeline, examples, shift=0), examples).item()
    return _verdict("1 picture learned by heart", "error", error, "at most", MAX_ERROR)


def _many_pictures(config: Config, examples: Sequence[Example]) -> list[bool]:
    pipeline = _fit(config, examples)
    own = torch.arange(len(examples))
    shares = []
    for shift in (0, 1):
        nearest = _distances(_generate(pipeline, examples, shift=shift), examples).argmin(dim=1)
        shares.append((nearest == (own + shift) % len(examples)).float().mean().item())
    many = f"{len(examples)} pictures told apart by their captions"
    return [
        _verdict(many, "share", shares[0], "at least", MIN_SHARE),
        _verdict("captions exchanged, noise kept", "share", shares[1], "at least", MIN_SHARE),
    ]


def _verdict(check: str, what: str, value: float, bound: str, limit: float) -> bool:
    good = value <= limit if bound == "at most" else value >= limit
    console.print(f"{'PASS' if good else 'FAIL'}  {check}: {what} {value:.3f}, {bound} {limit}")
    return good


def _fit(config: Config, examples: Sequence[Example]) -> TextToImage:
    """Train the run's model on these examples alone."""
    device = pick_device(config.training.device)
    captions = [captions_of(example)[0] for example in examples]
    shape = examples[0]["image"].shape
    objective: Any = build_objective(config, captions, shape[0]).to(device)
    # Where one of N pictures is denoised, the network still gets as many per step and in all.
    every: int = config.objective.get("denoise_every", 1)
    num_pictures = every * (FIRST + EACH_MORE * (len(examples) - 1))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            build_learner(config, objective),
            Batches(_Few(examples), every * BATCH_SIZE, config.seed),
            run_dir=Path(folder),
            num_pictures=num_pictures,
            identity={},
            warmup_pictures=num_pictures // 10,
            checkpoint_every=num_pictures + 1,
            log_every=num_pictures,
        )
        result = trainer.train()
    if result.stopped_by is not None:
        raise KeyboardInterrupt
    console.print(f"trained on {len(examples)} for {result.seconds:.0f} s")
    with trainer.learner.averaged():
        weights = {k: v.clone() for k, v in objective.state_dict().items()}
    objective.load_state_dict(weights)
    network, text_encoder = objective.denoiser.network.eval(), objective.text_encoder.eval()
    return TextToImage(network, text_encoder, config, shape, precision=config.training.precision)


def _generate(
    pipeline: TextToImage, examples: Sequence[Example], *, shift: int
) -> UInt8[Tensor, "N C H W"]:
    """Sample the captions, shifted by `shift` places while the noise stays the same."""
    captions = [captions_of(example)[0] for example in examples]
    unguided = dataclasses.replace(pipeline.config.sampling, guidance_scale=1.0)
    return pipeline.generate(captions[shift:] + captions[:shift], sampling=unguided)


def _distances(
    images: UInt8[Tensor, "N C H W"], examples: Sequence[Example]
) -> Float[Tensor, "N M"]:
    """Compute root mean square differences of all pairs, pictures in [0, 1]."""
    targets = torch.stack([example["image"] for example in examples])
    differences = (images[:, None].float() - targets[None].float()) / 255
    return differences.square().mean(dim=(2, 3, 4)).sqrt()


def _distinct_examples(dataset: Dataset, count: int) -> list[Example]:
    """Find the first examples that differ in caption and picture, each with its first caption.

    At most SURVEYED examples are read, spread over the set, which may be sorted by class.

    Returns:
        From 1 to `count` examples.

    Raises:
        ConfigError: the set is empty.
    """
    found: dict[str, Example] = {}
    pictures: set[bytes] = set()
    for example in usable(dataset, surveyed_places(dataset)):
        caption, pixels = captions_of(example)[0], example["image"].numpy().tobytes()
        if caption not in found and pixels not in pictures:
            found[caption] = {**example, "caption": caption}
            pictures.add(pixels)
        if len(found) == count:
            break
    if not found:
        raise ConfigError("the data set is empty; there is nothing to check")
    return list(found.values())


class _Few:
    """A data set of the examples given."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]
