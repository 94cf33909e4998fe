"""Scene accuracy: does the picture show what the prompt asks for, by the exact judge?"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from tinydiffusion.evaluators._provenance import provenance
from tinydiffusion.evaluators._statistics import wilson_interval
from tinydiffusion.evaluators._table import Table
from tinydiffusion.protocols import EvalBatch, EvaluatorState, Score
from tinydiffusion.scenes.captions import parse
from tinydiffusion.scenes.judge import Verdict, compare
from tinydiffusion.scenes.reading import read
from tinydiffusion.scenes.vocabulary import CATEGORIES, ObjectDescription, SceneDescription

ATTRIBUTES = {
    "background": "background",
    "count": "count",
    "shape": "shapes",
    "colour": "colours",
    "relation": "relation",
}
"""Row -> field of the judge's verdict."""


class SceneAccuracy:
    """Share of pictures in which every attribute is as the prompt asks; 1 is best.

    Pictures that the judge skips as not well-formed count as not right. Rows by category and by
    attribute follow (relation: of the prompts that ask for one), then the share skipped and a
    control: the same pictures judged against other pictures' prompts, which is what a model that
    ignores its prompt would reach.

    Args:
        seed: Of the order in which the control exchanges prompts.
    """

    needs = ("generated",)

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self.rows = Table("generated", texts=("prompt", "seen"))

    def update(self, batch: EvalBatch) -> None:
        """Read generated pictures; reference pictures are passed over.

        Raises:
            ValueError: a prompt is no caption of a scene.
        """
        if batch["source"] != "generated":
            return
        for prompt in batch["prompt"]:
            _asked(prompt)
        seen = [_to_text(read(image)) for image in batch["image"].cpu()]
        self.rows.add(batch["id"], {"prompt": batch["prompt"], "seen": seen})

    def state(self) -> EvaluatorState:
        """Prompts, and what the pictures show."""
        return self.rows.state()

    def load_state(self, state: EvaluatorState) -> None:
        """Take over a (merged) state."""
        self.rows.load_state(state)

    def compute(self) -> list[Score]:
        """`scene_accuracy` with a verdict per prompt in its details, and the rows below it.

        Raises:
            ValueError: there was no generated picture.
        """
        if not len(self.rows):
            raise ValueError("scene_accuracy got no generated picture")
        asked = [_asked(prompt) for prompt in self.rows.text("prompt")]
        seen = [_from_text(text) for text in self.rows.text("seen")]
        verdicts = [compare(s, a) for s, a in zip(seen, asked, strict=True)]
        control, warnings = self._control(seen, asked)
        details = {"verdicts": self._records(asked, verdicts)}
        total = _share("", map(_right, verdicts))._replace(details=details, warnings=warnings)
        skipped = _share("/skipped", (v.outcome == "skip" for v in verdicts), better=False)
        return [
            total,
            *_by_category(asked, verdicts),
            *_by_attribute(asked, verdicts),
            skipped,
            *control,
        ]

    def provenance(self) -> dict[str, Any]:
        """What makes the number comparable."""
        spec = {
            "name": "scenes.judge",
            "weights_sha256": None,
            "verified": True,
            "resize": None,
            "seed": self.seed,
        }
        return provenance(spec, "numpy")

    def _control(
        self, seen: Sequence[SceneDescription | None], asked: Sequence[SceneDescription]
    ) -> tuple[list[Score], list[str]]:
        """The row of exchanged prompts, or a warning why there is none."""
        places = derangement([description.canonical() for description in asked], self.seed)
        if places is None:
            return [], ["no shuffled_captions control: over half of the prompts say the same"]
        verdicts = (compare(s, asked[place]) for s, place in zip(seen, places, strict=True))
        return [_share("/shuffled_captions", map(_right, verdicts), better=False)], []

    def _records(
        self, asked: Sequence[SceneDescription], verdicts: Sequence[Verdict]
    ) -> list[dict[str, Any]]:
        """One JSON-able record per picture, in id order."""
        rows = zip(self.rows.ids(), self.rows.text("prompt"), asked, verdicts, strict=True)
        return [
            {
                "id": number,
                "prompt": prompt,
                "outcome": verdict.outcome,
                "right": _right(verdict),
                "attributes": _attributes(description, verdict),
            }
            for number, prompt, description, verdict in rows
        ]


def derangement(items: Sequence[Any], seed: int) -> list[int] | None:
    """For each place another place that holds a different item, each used once; None if impossible.

    Places are laid out item by item, items in random order, and moved on by the length of the
    longest run of equal items, which takes every place out of its run.
    """
    counts = Counter(items)
    step = max(counts.values())
    if 2 * step > len(items):
        return None
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(items), generator=generator).tolist()
    run = {item: number for number, item in enumerate(dict.fromkeys(items[i] for i in order))}
    order.sort(key=lambda place: run[items[place]])
    source = dict(zip(order, order[step:] + order[:step], strict=True))
    return [source[place] for place in range(len(items))]


def _asked(prompt: str) -> SceneDescription:
    description = parse(prompt)
    if description is None:
        raise ValueError(
            f"scene_accuracy cannot read the prompt {prompt!r}; it reads captions of drawn scenes, "
            "such as 'a red circle on a white background'"
        )
    return description


def _category(asked: SceneDescription) -> str:
    if asked.relation is not None:
        return "two_objects"
    return "one_object" if len(asked.objects) == 1 else "counting"


def _attributes(asked: SceneDescription, verdict: Verdict) -> dict[str, bool]:
    """Attribute -> whether it is right, of those that the prompt asks for."""
    values = {name: bool(getattr(verdict, field)) for name, field in ATTRIBUTES.items()}
    if asked.relation is None:
        del values["relation"]
    return values


def _by_category(asked: Sequence[SceneDescription], verdicts: Sequence[Verdict]) -> Iterable[Score]:
    pairs = list(zip(map(_category, asked), map(_right, verdicts), strict=True))
    for category in CATEGORIES:
        if outcomes := [right for each, right in pairs if each == category]:
            yield _share(f"/{category}", outcomes)


def _by_attribute(
    asked: Sequence[SceneDescription], verdicts: Sequence[Verdict]
) -> Iterable[Score]:
    every = [_attributes(a, v) for a, v in zip(asked, verdicts, strict=True)]
    for name in ATTRIBUTES:
        if outcomes := [attributes[name] for attributes in every if name in attributes]:
            yield _share(f"/{name}", outcomes)


def _right(verdict: Verdict) -> bool:
    return verdict.outcome == "right"


def _share(row: str, outcomes: Iterable[bool], *, better: bool = True) -> Score:
    """Share of True with its Wilson interval."""
    outcomes = list(outcomes)
    hits, n = sum(outcomes), len(outcomes)
    interval = wilson_interval(hits, n)
    name = f"scene_accuracy{row}"
    return Score(name, hits / n, n, ci95=interval, higher_is_better=better)


def _to_text(seen: SceneDescription | None) -> str:
    return json.dumps(None if seen is None else asdict(seen))


def _from_text(text: str) -> SceneDescription | None:
    fields = json.loads(text)
    if fields is None:
        return None
    objects = tuple(ObjectDescription(**each) for each in fields["objects"])
    return SceneDescription(fields["background"], objects, fields["relation"])


PLUGIN = SceneAccuracy
