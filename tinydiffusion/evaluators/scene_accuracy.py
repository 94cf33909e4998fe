"""Scene accuracy: does the picture meet the conditions of the prompt, by the exact judge?"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from tinydiffusion.metrics import composition as composition
from tinydiffusion.metrics.provenance import provenance
from tinydiffusion.metrics.statistics import wilson_interval
from tinydiffusion.metrics.table import Columns, RowsEvaluator
from tinydiffusion.protocols import EvalBatch, Score
from tinydiffusion.runtime.outputs import file_obstacle
from tinydiffusion.scenes.geneval import Prompt, ask, read_prompts, to_record, write_lines
from tinydiffusion.scenes.judge import ATOMS, Verdict, compare
from tinydiffusion.scenes.reading import read
from tinydiffusion.scenes.vocabulary import Object, Scene


class SceneAccuracy(RowsEvaluator):
    """Share of pictures in which everything is as the prompt asks; 1 is best.

    The prompts are those of a file in GenEval's format (Ghosh et al. 2023,
    https://arxiv.org/abs/2310.11513), or captions of drawn scenes, which ask for nothing beside
    what they name. Pictures that the judge skips as not well-formed count as not right. The rows:

    - `scene_accuracy`, and one for each tag: GenEval's task, or the category of a caption;
    - `exists`, `count`, `colour`, `text` of each object asked for (of a word, its spelling), each
      `relation`, the `background`, and `exclude`: shapes that no one asked for are not there;
    - `conditions_1`, ... : by how many statements of the prompt can be checked;
    - `any_of_4`: prompts of which at least one of so many pictures is right;
    - `binding_pairs`: pairs of prompts that differ in exchanged colours only, both right;
    - `skipped`, and the control `shuffled_captions`: the same pictures judged against other
      pictures' prompts, which is what a model that ignores its prompt would reach.

    Args:
        prompts: JSONL file with what the prompts ask for; none: they are captions.
        samples_per_prompt: Pictures of one prompt, for `any_of_...`; 1 leaves the row out.
        results: JSONL file to write the verdicts to, in the shape of GenEval's results.
        seed: Of the order in which the control exchanges prompts.

    Raises:
        ValueError: `samples_per_prompt` is below 1, the file of prompts is not as it should be, or
            that of results cannot be written or is of another kind.
    """

    needs = ("generated", "prompts")

    def __init__(
        self,
        *,
        prompts: str | None = None,
        samples_per_prompt: int = 1,
        results: str | None = None,
        seed: int = 0,
    ) -> None:
        if samples_per_prompt < 1:
            raise ValueError(f"samples_per_prompt must be 1 or more, got {samples_per_prompt}")
        if results is not None:
            _check_results(Path(results))
        self.samples_per_prompt, self.results, self.seed = samples_per_prompt, results, seed
        self.prompts_sha256 = None
        self._asked: dict[str, Prompt] = {}
        if prompts is not None:
            self._asked = _by_text(read_prompts(Path(prompts)), prompts)
            self.prompts_sha256 = hashlib.sha256(Path(prompts).read_bytes()).hexdigest()
        super().__init__(texts=("prompt", "seen"))

    def columns(self, batch: EvalBatch) -> Columns:
        """Return the prompts, and read what the pictures show.

        Raises:
            ValueError: a prompt is neither in the file nor a caption of a scene.
        """
        for prompt in batch["prompt"]:
            self._ask(prompt)
        seen = [_to_text(read(image)) for image in batch["image"].cpu()]
        return {"prompt": batch["prompt"], "seen": seen}

    def compute(self) -> list[Score]:
        """Compute `scene_accuracy`, with the verdict per picture in its details, and further rows.

        Raises:
            ValueError: there was no generated picture.
        """
        table = self.tables["generated"]
        if not len(table):
            raise ValueError("scene_accuracy got no generated picture")
        asked = [self._ask(prompt) for prompt in table.text("prompt")]
        seen = [_from_text(text) for text in table.text("seen")]
        verdicts = [compare(s, a) for s, a in zip(seen, asked, strict=True)]
        records = [_record(*row) for row in zip(table.ids(), asked, verdicts, strict=True)]
        if self.results is not None:
            write_lines(Path(self.results), map(_result, records, asked))
        right = {i: v.right for i, v in zip(table.ids(), verdicts, strict=True)}
        repeated, warnings = self._any_of(asked, right)
        control, more = self._control(seen, asked)
        total = _share("", right.values(), right)
        skipped = [v.outcome == "skip" for v in verdicts]
        return [
            total._replace(details={"verdicts": records}, warnings=warnings + more),
            *_grouped([prompt.tag for prompt in asked], right),
            *_by_atom(verdicts),
            *_grouped([f"conditions_{prompt.conditions}" for prompt in asked], right),
            *repeated,
            *_binding(asked, right),
            _share("/skipped", skipped, better=False),
            *control,
        ]

    def provenance(self) -> dict[str, Any]:
        """Return what makes the number comparable."""
        spec = {
            "name": "scenes.judge",
            "weights_sha256": None,
            "verified": True,
            "resize": None,
            "prompts_sha256": self.prompts_sha256,
            "samples_per_prompt": self.samples_per_prompt,
            "seed": self.seed,
        }
        return provenance(spec, "numpy")

    def _ask(self, text: str) -> Prompt:
        if text not in self._asked:
            prompt = ask(text)
            if prompt is None or self.prompts_sha256 is not None:
                raise ValueError(
                    f"scene_accuracy cannot read the prompt {text!r}; it reads those of its file "
                    "of prompts or, without one, captions of drawn scenes, such as 'a red circle "
                    "on a white background'"
                )
            self._asked[text] = prompt
        return self._asked[text]

    def _any_of(
        self, asked: Sequence[Prompt], right: Mapping[int, bool]
    ) -> tuple[list[Score], list[str]]:
        """Make the row of repeated prompts, and a warning where some have too few pictures."""
        k = self.samples_per_prompt
        if k == 1:
            return [], []
        texts = [prompt.text for prompt in asked]
        groups, rest = composition.groups_of(k, texts, list(right.values()))
        warnings = [f"any_of_{k} leaves out {rest} pictures: not {k} of their prompt"]
        scores = [_share(f"/any_of_{k}", map(any, groups))] if groups else []
        return scores, warnings if rest else []

    def _control(
        self, seen: Sequence[Scene | None], asked: Sequence[Prompt]
    ) -> tuple[list[Score], list[str]]:
        """Make the row of exchanged prompts, or a warning why there is none."""
        places = composition.derangement([prompt.meaning() for prompt in asked], self.seed)
        if places is None:
            return [], ["no shuffled_captions control: over half of the prompts say the same"]
        verdicts = (compare(s, asked[place]) for s, place in zip(seen, places, strict=True))
        return [_share("/shuffled_captions", (v.right for v in verdicts), better=False)], []


def _by_text(prompts: Sequence[Prompt], file: str) -> dict[str, Prompt]:
    asked: dict[str, Prompt] = {}
    for prompt in prompts:
        if prompt.tag in ROWS or prompt.tag.startswith(("conditions_", "any_of_")):
            raise ValueError(f"{file}: the tag {prompt.tag!r} is the name of another row")
        if asked.setdefault(prompt.text, prompt) != prompt:
            raise ValueError(f"{file}: the prompt {prompt.text!r} is there twice, unlike")
    return asked


def _record(number: int, asked: Prompt, verdict: Verdict) -> dict[str, Any]:
    """Describe the verdict on one picture, JSON-able."""
    atoms: dict[str, list[bool]] = {}
    for atom in verdict.atoms:
        atoms.setdefault(atom.kind, []).append(atom.right)
    return {
        "id": number,
        "prompt": asked.text,
        "tag": asked.tag,
        "outcome": verdict.outcome,
        "correct": verdict.right,
        "reason": verdict.reason,
        "atoms": atoms,
    }


def _check_results(file: Path) -> None:
    """Raise ValueError where verdicts cannot be written, or would replace something else."""
    if obstacle := file_obstacle(file):
        raise ValueError(obstacle)
    if file.exists() and b'"metadata": ' not in file.read_bytes():
        raise ValueError(f"{file} is there already and holds no verdicts; name another file")


def _result(record: Mapping[str, Any], asked: Prompt) -> dict[str, Any]:
    """Make a line of results in GenEval's format; GenEval groups the lines by `metadata`."""
    kept = {key: record[key] for key in ("id", "tag", "prompt", "correct", "reason")}
    return {**kept, "metadata": json.dumps(to_record(asked))}


def _grouped(names: Sequence[str], right: Mapping[int, bool]) -> Iterable[Score]:
    """Yield a row for each name, in order of first appearance."""
    for name in dict.fromkeys(names):
        own = {i: r for (i, r), other in zip(right.items(), names, strict=True) if other == name}
        yield _share(f"/{name}", own.values(), own)


def _by_atom(verdicts: Sequence[Verdict]) -> Iterable[Score]:
    atoms = [atom for verdict in verdicts for atom in verdict.atoms]
    for kind in ATOMS:
        if outcomes := [atom.right for atom in atoms if atom.kind == kind]:
            yield _share(f"/{kind}", outcomes)


def _binding(asked: Sequence[Prompt], right: Mapping[int, bool]) -> Iterable[Score]:
    values = list(right.values())
    if pairs := composition.binding_pairs(asked):
        yield _share("/binding_pairs", (values[a] and values[b] for a, b in pairs))


def _share(
    row: str,
    outcomes: Iterable[bool],
    right: Mapping[int, bool] | None = None,
    *,
    better: bool = True,
) -> Score:
    """Make a row: the share of True, its Wilson interval, and `right` as values per picture."""
    outcomes = list(outcomes)
    hits, n = sum(outcomes), len(outcomes)
    per_picture = {i: float(r) for i, r in (right or {}).items()}
    return Score(
        f"scene_accuracy{row}",
        hits / n,
        n,
        ci95=wilson_interval(hits, n),
        higher_is_better=better,
        per_picture=per_picture,
    )


def _to_text(seen: Scene | None) -> str:
    if seen is None:
        return "null"
    return json.dumps([seen.background, [astuple(o) for o in seen.objects]])


def _from_text(text: str) -> Scene | None:
    fields = json.loads(text)
    if fields is None:
        return None
    background, objects = fields
    return Scene(background, tuple(Object(*each) for each in objects))


ROWS = {*ATOMS, "binding_pairs", "skipped", "shuffled_captions"}

PLUGIN = SceneAccuracy
