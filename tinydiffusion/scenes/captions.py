"""Captions of a scene from templates, and the parser that reads them back."""

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from tinydiffusion.scenes.font import ALPHABET, LETTERS
from tinydiffusion.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    COUNT_WORDS,
    RELATIONS,
    SHAPES,
    WORD,
    ObjectDescription,
    Scene,
    SceneDescription,
)

ONE_OBJECT = (
    "{things} on {ground}",
    "{ground} with {things}",
    "on {ground}, there is {things}",
    "a picture of {things} on {ground}",
)
COUNTING = (
    "{things} on {ground}",
    "{ground} with {things}",
    "on {ground}, there are {things}",
    "a picture of {things} on {ground}",
)
TWO_OBJECTS = (
    "{things} on {ground}",
    "on {ground}, {first} is {relation} {second}",
    "a picture of {things} on {ground}",
)


def captions(scene: Scene) -> list[str]:
    """Return every full caption of a scene, the canonical one first; pairs in both orders."""
    description = scene.description
    if description.relation is None:
        return _fill(description)
    told, exchanged = _fill(description), _fill(description.exchanged())
    return [caption for both in zip(told, exchanged, strict=True) for caption in both]


def short_captions(scene: Scene) -> list[str]:
    """Return every canonical caption that omits colours, the relation or the background.

    Examples are "a circle", "three circles on a white background", "a red circle and a blue square"
    and "a red circle and a square"; GenEval's prompts have this form.
    """
    tellings = [scene.description]
    if scene.relation is not None:
        tellings.append(scene.description.exchanged())
    short = [shorter for told in tellings for shorter in _shorter(told)]
    return list(dict.fromkeys(caption(each) for each in short))


def caption(description: SceneDescription) -> str:
    """Write the canonical caption, as "a red circle left of a blue square on a white background".

    Raises:
        ValueError: there is no caption for more than two unlike objects, too many, or none.
    """
    things = _things(description)
    if description.background is None:
        return things
    return f"{things} on {_ground(description.background)}"


def parse(caption: str) -> SceneDescription | None:
    """Parse a caption of one of the templates, keeping its order; None for any other text."""
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(caption):
            return _description(match.groupdict())
    return None


def _fill(description: SceneDescription) -> list[str]:
    objects = description.objects
    assert description.background is not None
    words = {"ground": _ground(description.background), "things": _things(description)}
    if description.relation is not None:
        first, second = map(_noun, objects)
        words |= {"first": first, "second": second, "relation": description.relation}
        return [template.format(**words) for template in TWO_OBJECTS]
    templates = ONE_OBJECT if len(objects) == 1 else COUNTING
    return [template.format(**words) for template in templates]


def _shorter(told: SceneDescription) -> list[SceneDescription]:
    """Return the descriptions that omit background, relation or some colours of `told`."""
    objects = [told.objects, tuple(replace(o, colour=None) for o in told.objects)]
    if told.relation is not None:
        first, second = told.objects
        objects.append((first, replace(second, colour=None)))
        if first.shape == second.shape:  # they differ in colour only
            objects = [told.objects]
    if told.objects[0].shape == WORD:
        objects = [told.objects]
    choices = product(
        dict.fromkeys((told.background, None)), objects, dict.fromkeys((told.relation, None))
    )
    every = [SceneDescription(*choice) for choice in choices]
    return [each for each in every if each != told]


def _things(description: SceneDescription) -> str:
    objects = description.objects
    if len(objects) == 1:
        return _noun(objects[0])
    if len(set(objects)) == 1 and len(objects) in COUNT_WORDS and description.relation is None:
        return f"{COUNT_WORDS[len(objects)]} {_bare(objects[0])}s"
    if len(objects) == 2:
        first, second = map(_noun, objects)
        return f"{first} {description.relation or 'and'} {second}"
    raise ValueError(
        f"no caption says {description}; allowed are one object, two unlike objects, or two to "
        f"{max(COUNT_WORDS)} equal ones"
    )


def _noun(o: ObjectDescription) -> str:
    """Return the noun phrase of an object, as: a red circle; the word "CAT" in red."""
    return f'the word "{o.text}" in {o.colour}' if o.shape == WORD else _with_article(_bare(o))


def _bare(o: ObjectDescription) -> str:
    return o.shape if o.colour is None else f"{o.colour} {o.shape}"


def _ground(background: str) -> str:
    return f"{_with_article(background)} background"


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _any_of(name: str, words: Iterable[str]) -> str:
    return f"(?P<{name}>{'|'.join(words)})"


def _bare_pattern(prefix: str) -> str:
    return f"(?:{_any_of(f'{prefix}_colour', COLOURS)} )?{_any_of(f'{prefix}_shape', SHAPES)}"


_FIRST, _SECOND = (f"an? {_bare_pattern(name)}" for name in ("first", "second"))
_GROUP = f"{_any_of('count', COUNT_WORDS.values())} {_bare_pattern('first')}s"
_WORD = f'the word "(?P<text>[{ALPHABET}]{{{LETTERS}}})" in {_any_of("first_colour", COLOURS)}'
_RELATION = _any_of("relation", RELATIONS)
_PAIR, _LIST = f"{_FIRST} {_RELATION} {_SECOND}", f"{_FIRST} and {_SECOND}"
_SLOTS = {
    "ground": f"an? {_any_of('background', BACKGROUNDS)} background",
    "first": _FIRST,
    "second": _SECOND,
    "relation": _RELATION,
}
_SHORT = "{things}"
_TEMPLATES = [
    *product((_SHORT, *ONE_OBJECT), (_FIRST, _WORD)),
    *product((_SHORT, *TWO_OBJECTS), (_PAIR,)),
    *product((_SHORT, *COUNTING), (_GROUP,)),
    *product((_SHORT, COUNTING[0]), (_LIST,)),
]
_PATTERNS = [re.compile(t.format(**_SLOTS, things=things)) for t, things in _TEMPLATES]


def _description(said: dict[str, str | None]) -> SceneDescription:
    background, relation = said.get("background"), said.get("relation")
    if text := said.get("text"):
        return SceneDescription(background, (ObjectDescription(WORD, said["first_colour"], text),))
    first = ObjectDescription(str(said["first_shape"]), said["first_colour"])
    if shape := said.get("second_shape"):
        second = ObjectDescription(shape, said["second_colour"])
        return SceneDescription(background, (first, second), relation)
    counts = {word: count for count, word in COUNT_WORDS.items()}
    return SceneDescription(background, (first,) * counts.get(str(said.get("count")), 1))
