"""The exact judge: does a picture show what its caption asks for?"""

from dataclasses import dataclass
from itertools import permutations
from typing import Literal

from jaxtyping import UInt8
from torch import Tensor

from tinydiffusion.scenes.captions import parse
from tinydiffusion.scenes.reading import read
from tinydiffusion.scenes.vocabulary import SceneDescription

Outcome = Literal["right", "wrong", "skip"]


@dataclass(frozen=True)
class Verdict:
    """What is right in a picture; all is False where the picture is skipped as not well-formed.

    `colours` belong to their objects: a red circle and a blue square do not fulfil "a blue circle
    and a red square". Where the count is wrong, shapes and colours are compared as sets.
    """

    outcome: Outcome
    background: bool = False
    count: bool = False
    shapes: bool = False
    colours: bool = False
    relation: bool = False  # True where none is asked for


def judge(image: UInt8[Tensor, "3 H W"], asked: str | SceneDescription) -> Verdict:
    """The verdict on a picture: right if every attribute is as asked.

    Args:
        image: the picture.
        asked: a caption of one of the templates, or what such a caption says.

    Raises:
        ValueError: the caption is of no known template.
    """
    description = parse(asked) if isinstance(asked, str) else asked
    if description is None:
        raise ValueError(
            f"the judge cannot read the caption {asked!r}; it reads those of "
            "tinydiffusion.scenes.captions, such as 'a red circle on a white background'"
        )
    return compare(read(image), description)


def compare(seen: SceneDescription | None, asked: SceneDescription) -> Verdict:
    """The verdict on what was read from a picture (None: not well-formed)."""
    if seen is None:
        return Verdict("skip")
    same_count = len(seen.objects) == len(asked.objects)
    shapes, colours, relation = (_compare_each if same_count else _compare_sets)(seen, asked)
    background = seen.background == asked.background
    right = background and same_count and shapes and colours and relation
    return Verdict("right" if right else "wrong", background, same_count, shapes, colours, relation)


def _compare_each(seen: SceneDescription, asked: SceneDescription) -> tuple[bool, bool, bool]:
    """Whether shapes, colours and relation agree, in the telling of `seen` that agrees most."""
    each = [_agreement(told, asked) for told in _tellings(seen)]
    shapes, colours, relation = max(each, key=lambda a: (sum(a[0]) + sum(a[1]), a[2]))
    return all(shapes), all(colours), relation


def _agreement(
    told: SceneDescription, asked: SceneDescription
) -> tuple[list[bool], list[bool], bool]:
    pairs = list(zip(told.objects, asked.objects, strict=True))
    shapes = [o.shape == p.shape for o, p in pairs]
    colours = [o.colour == p.colour for o, p in pairs]
    return shapes, colours, asked.relation in (None, told.relation)


def _compare_sets(seen: SceneDescription, asked: SceneDescription) -> tuple[bool, bool, bool]:
    shapes = {o.shape for o in seen.objects} == {o.shape for o in asked.objects}
    colours = {o.colour for o in seen.objects} == {o.colour for o in asked.objects}
    return shapes, colours, asked.relation is None


def _tellings(description: SceneDescription) -> list[SceneDescription]:
    """Every order in which the objects can be told."""
    if description.relation is not None:
        return [description, description.exchanged()]
    orders = sorted(set(permutations(description.objects)))
    return [SceneDescription(description.background, objects) for objects in orders]
