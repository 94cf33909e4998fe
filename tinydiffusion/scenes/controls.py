"""Descriptions with exactly one attribute wrong, as controls for the judge and other metrics."""

from dataclasses import replace

import numpy as np

from tinydiffusion.scenes.captions import caption
from tinydiffusion.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    COUNT_WORDS,
    RELATIONS,
    SHAPES,
    ObjectDescription,
    Scene,
    SceneDescription,
)


def wrong_descriptions(description: SceneDescription) -> dict[str, list[SceneDescription]]:
    """Attribute -> every description that differs in it alone; attributes without one are left out.

    The attributes are background, count, shape, colour, and for pairs relation, shape_swap and
    colour_swap. The one wrong attribute is told in the order of `description`.
    """
    wrong = {
        "background": [replace(description, background=b) for b in BACKGROUNDS],
        "count": _other_counts(description),
        "shape": _change_objects(description, [("shape", shape) for shape in SHAPES]),
        "colour": _change_objects(description, [("colour", colour) for colour in COLOURS]),
    }
    if description.relation is not None:
        (a, b) = description.objects
        swaps = {
            "shape_swap": (replace(a, shape=b.shape), replace(b, shape=a.shape)),
            "colour_swap": (replace(a, colour=b.colour), replace(b, colour=a.colour)),
        }
        wrong["relation"] = [replace(description, relation=r) for r in RELATIONS]
        wrong |= {name: [replace(description, objects=pair)] for name, pair in swaps.items()}
    kept = {name: _keep(every, description) for name, every in wrong.items()}
    return {name: every for name, every in kept.items() if every}


def wrong_captions(scene: Scene) -> list[str]:
    """Canonical captions of every description with exactly one attribute wrong."""
    wrong = wrong_descriptions(scene.description)
    return [caption(each) for every in wrong.values() for each in every]


def perturb(description: SceneDescription, rng: np.random.Generator) -> SceneDescription:
    """A description with one attribute wrong: first the attribute, then its value, is drawn."""
    wrong = list(wrong_descriptions(description).values())
    every = wrong[rng.integers(len(wrong))]
    return every[rng.integers(len(every))]


def _change_objects(
    description: SceneDescription, changes: list[tuple[str, str]]
) -> list[SceneDescription]:
    """One object changed, or all where they are equal."""
    objects = description.objects
    changed: list[tuple[ObjectDescription, ...]] = []
    for attribute, value in changes:
        new = [replace(o, **{attribute: value}) for o in objects]
        if description.relation is None:
            changed.append(tuple(new))
        else:
            changed += [(new[0], objects[1]), (objects[0], new[1])]
    return [replace(description, objects=each) for each in changed]


def _other_counts(description: SceneDescription) -> list[SceneDescription]:
    if description.relation is not None:
        return [SceneDescription(description.background, (o,)) for o in description.objects]
    first = description.objects[0]
    return [replace(description, objects=(first,) * n) for n in (1, *COUNT_WORDS)]


def _keep(every: list[SceneDescription], true: SceneDescription) -> list[SceneDescription]:
    """Those that are not true, without pairs of equal objects."""
    differ = [d for d in every if d.canonical() != true.canonical()]
    return [d for d in differ if d.relation is None or len(set(d.objects)) == 2]
