"""Descriptions with exactly one wrong attribute, as controls for the judge and other metrics."""

from dataclasses import replace
from itertools import product

from tinydiffusion.scenes.font import ALPHABET
from tinydiffusion.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    COUNT_WORDS,
    RELATIONS,
    SHAPES,
    WORD,
    ObjectDescription,
    SceneDescription,
)


def wrong_descriptions(description: SceneDescription) -> dict[str, list[SceneDescription]]:
    """Return all descriptions that differ from this one in one attribute only.

    The attributes are background, count, shape and colour; for pairs also relation, shape_swap and
    colour_swap; for a word its text (one letter). An attribute that `description` leaves open is
    not changed. The objects keep their order.

    Returns:
        Attribute -> descriptions; attributes without any are left out.
    """
    if description.objects[0].shape == WORD:
        wrong = {"text": _other_words(description)}
    else:
        shapes = [("shape", shape) for shape in SHAPES]
        wrong = {"count": _other_counts(description), "shape": _change_objects(description, shapes)}
    if description.background is not None:
        wrong["background"] = [replace(description, background=b) for b in BACKGROUNDS]
    wrong["colour"] = _change_objects(description, [("colour", colour) for colour in COLOURS])
    if len(set(description.objects)) == 2:
        wrong |= _wrong_pairs(description)
    kept = {name: _keep(every, description) for name, every in wrong.items()}
    return {name: every for name, every in kept.items() if every}


def _wrong_pairs(description: SceneDescription) -> dict[str, list[SceneDescription]]:
    (a, b) = description.objects
    swaps = {"shape_swap": (replace(a, shape=b.shape), replace(b, shape=a.shape))}
    if a.colour is not None and b.colour is not None:
        swaps["colour_swap"] = (replace(a, colour=b.colour), replace(b, colour=a.colour))
    elif a.colour != b.colour:  # the swapped description might be true of the picture
        swaps = {}
    wrong = {name: [replace(description, objects=pair)] for name, pair in swaps.items()}
    if description.relation is not None:
        wrong["relation"] = [replace(description, relation=r) for r in RELATIONS]
    return wrong


def _change_objects(
    description: SceneDescription, changes: list[tuple[str, str]]
) -> list[SceneDescription]:
    """Change one object at a time, or all if they are equal; an open colour stays open."""
    objects = description.objects
    changed: list[tuple[ObjectDescription, ...]] = []
    for attribute, value in changes:
        new = [
            o if getattr(o, attribute) is None else replace(o, **{attribute: value})
            for o in objects
        ]
        if len(set(objects)) == 1:
            changed.append(tuple(new))
        else:
            changed += [(new[0], objects[1]), (objects[0], new[1])]
    return [replace(description, objects=each) for each in changed]


def _other_words(description: SceneDescription) -> list[SceneDescription]:
    """Return every text with another letter in one place, whether a real word or not."""
    (word,) = description.objects
    places = product(range(len(word.text)), ALPHABET)
    texts = [word.text[:i] + letter + word.text[i + 1 :] for i, letter in places]
    return [replace(description, objects=(replace(word, text=text),)) for text in texts]


def _other_counts(description: SceneDescription) -> list[SceneDescription]:
    if len(set(description.objects)) == 2:
        return [SceneDescription(description.background, (o,)) for o in description.objects]
    first = description.objects[0]
    return [replace(description, objects=(first,) * n) for n in (1, *COUNT_WORDS)]


def _keep(every: list[SceneDescription], true: SceneDescription) -> list[SceneDescription]:
    """Return the descriptions that differ in meaning, except pairs of equal related objects."""
    said = true.canonical()
    differ = [d for d in every if d.canonical() != said]
    return [d for d in differ if d.relation is None or len(set(d.objects)) == 2]
