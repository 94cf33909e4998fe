"""Captions of a scene from templates, and the parser that reads them back."""

import re
from collections.abc import Iterable

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

ONE_OBJECT = (
    "{first} on {ground}",
    "{ground} with {first}",
    "on {ground}, there is {first}",
    "a picture of {first} on {ground}",
)
COUNTING = (
    "{group} on {ground}",
    "{ground} with {group}",
    "on {ground}, there are {group}",
    "a picture of {group} on {ground}",
)
TWO_OBJECTS = (
    "{first} {relation} {second} on {ground}",
    "on {ground}, {first} is {relation} {second}",
    "a picture of {first} {relation} {second} on {ground}",
)


def captions(scene: Scene) -> list[str]:
    """Every caption of a scene, the canonical one first; pairs are told from both objects."""
    description = scene.description
    if description.relation is None:
        return _fill(description)
    told, exchanged = _fill(description), _fill(description.exchanged())
    return [caption for both in zip(told, exchanged, strict=True) for caption in both]


def caption(description: SceneDescription) -> str:
    """The canonical caption, such as "a red circle left of a blue square on a white background".

    Raises:
        ValueError: no caption can say it: several unlike objects without a relation, or none.
    """
    return _fill(description)[0]


def parse(caption: str) -> SceneDescription | None:
    """What a caption of one of the templates says, as it says it; None for any other text."""
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(caption):
            return _description(match.groupdict())
    return None


def _fill(description: SceneDescription) -> list[str]:
    objects = description.objects
    ground = f"{_with_article(description.background)} background"
    if description.relation is not None:
        first, second = (_with_article(f"{o.colour} {o.shape}") for o in objects)
        words = {"first": first, "second": second, "relation": description.relation}
        return [template.format(ground=ground, **words) for template in TWO_OBJECTS]
    if len(set(objects)) != 1 or len(objects) > max(COUNT_WORDS):
        raise ValueError(
            f"no caption says {description}; allowed are one object, two unlike objects with a "
            f"relation, or two to {max(COUNT_WORDS)} equal ones"
        )
    noun = f"{objects[0].colour} {objects[0].shape}"
    if len(objects) == 1:
        return [t.format(ground=ground, first=_with_article(noun)) for t in ONE_OBJECT]
    group = f"{COUNT_WORDS[len(objects)]} {noun}s"
    return [template.format(ground=ground, group=group) for template in COUNTING]


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _any_of(name: str, words: Iterable[str]) -> str:
    return f"(?P<{name}>{'|'.join(words)})"


def _object_pattern(prefix: str) -> str:
    return f"an? {_any_of(f'{prefix}_colour', COLOURS)} {_any_of(f'{prefix}_shape', SHAPES)}"


_SLOTS = {
    "ground": f"an? {_any_of('background', BACKGROUNDS)} background",
    "first": _object_pattern("first"),
    "second": _object_pattern("second"),
    "relation": _any_of("relation", RELATIONS),
    "group": f"{_any_of('count', COUNT_WORDS.values())} "
    f"{_any_of('first_colour', COLOURS)} {_any_of('first_shape', SHAPES)}s",
}
_PATTERNS = [re.compile(t.format(**_SLOTS)) for t in (*ONE_OBJECT, *TWO_OBJECTS, *COUNTING)]


def _description(words: dict[str, str]) -> SceneDescription:
    first = ObjectDescription(words["first_shape"], words["first_colour"])
    if "relation" in words:
        second = ObjectDescription(words["second_shape"], words["second_colour"])
        return SceneDescription(words["background"], (first, second), words["relation"])
    counts = {word: count for count, word in COUNT_WORDS.items()}
    count = counts[words["count"]] if "count" in words else 1
    return SceneDescription(words["background"], (first,) * count)
