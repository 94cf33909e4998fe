"""Prompts as lists of conditions, read and written in GenEval's format: one JSON object per line.

Ghosh et al. (2023), "GenEval", https://arxiv.org/abs/2310.11513. In addition to its keys (`tag`,
`include` with `class`, `count`, `color`, `position`, `exclude`, `prompt`) there are `background`,
and `text` for the class "word".
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinydiffusion.runtime.durable import replace_file
from tinydiffusion.scenes.captions import parse
from tinydiffusion.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    INVERSE,
    SHAPES,
    WORD,
    SceneDescription,
)


@dataclass(frozen=True)
class Included:
    """Equal objects that are required; position (relation, i) is relative to `include[i]`."""

    shape: str
    count: int = 1
    colour: str | None = None
    position: tuple[str, int] | None = None
    text: str = ""


@dataclass(frozen=True)
class Excluded:
    """Objects that are excluded: `count` or more of a shape."""

    shape: str
    count: int


@dataclass(frozen=True)
class Prompt:
    """A prompt with its conditions; every entry of `include` requires different objects."""

    text: str
    tag: str
    include: tuple[Included, ...]
    exclude: tuple[Excluded, ...] = ()
    background: str | None = None

    @property
    def conditions(self) -> int:
        """Number of conditions that can be checked one by one.

        Each kind of object counts as one; its number (from two on), its colour, its spelling, its
        relation and the background as one each. "A red circle left of a blue square" has five.
        """
        said = [(i.count > 1, i.colour, i.text, i.position) for i in self.include]
        return sum(1 + sum(map(bool, each)) for each in said) + bool(self.background)

    def meaning(self) -> tuple[Any, ...]:
        """Return a value that is equal for prompts with the same conditions, in any wording."""
        things = [(i.shape, i.count, i.colour or "", i.text) for i in self.include]
        relations = set()
        for thing, included in zip(things, self.include, strict=True):
            if included.position is not None:
                relation, other = included.position
                told = (thing, relation, things[other])
                swap = relation in ("right of", "below")
                relations.add((told[2], INVERSE[relation], told[0]) if swap else told)
        excluded = frozenset((e.shape, e.count) for e in self.exclude)
        return self.background, tuple(sorted(things)), frozenset(relations), excluded

    def with_swapped_colours(self) -> "Prompt | None":
        """Return the prompt with the colours of its two objects exchanged, the text unchanged.

        Returns:
            The prompt, to be used for its `meaning()`; None unless there are exactly two entries
            with colours, and the exchange changes the meaning.
        """
        if len(self.include) != 2 or None in (colours := [i.colour for i in self.include]):
            return None
        a, b = self.include
        swapped = replace(
            self, include=(replace(a, colour=colours[1]), replace(b, colour=colours[0]))
        )
        return None if swapped.meaning() == self.meaning() else swapped


def ask(text: str) -> Prompt | None:
    """Return the prompt of a caption of one of the templates; None for any other text."""
    description = parse(text)
    return None if description is None else to_prompt(description, text, category(description))


def category(description: SceneDescription) -> str:
    """Return the data set's category, or GenEval's task if the description leaves colours open."""
    objects = description.objects
    coloured = any(o.colour is not None for o in objects)
    if objects[0].shape == WORD:
        return "spelling"
    if len(objects) == 1:
        return "one_object" if coloured else "single_object"
    if len(set(objects)) == 1:
        return "counting"
    if description.relation is not None:
        return "two_objects" if coloured else "position"
    return "color_attr" if coloured else "two_object"


def to_prompt(description: SceneDescription, text: str, tag: str) -> Prompt:
    """Return the prompt that requires exactly this: more objects of any shape are excluded."""
    counts = Counter(description.objects)
    include = [Included(o.shape, n, o.colour, text=o.text) for o, n in counts.items()]
    if description.relation is not None:  # GenEval puts the object that others relate to first
        first, second = include
        include = [second, replace(first, position=(description.relation, 0))]
    shapes = Counter(o.shape for o in description.objects)
    exclude = tuple(Excluded(s, shapes[s] + 1) for s in SHAPES) if WORD not in shapes else ()
    return Prompt(text, tag, tuple(include), exclude, description.background)


def to_record(prompt: Prompt) -> dict[str, Any]:
    """Return the JSON object of a prompt."""
    record: dict[str, Any] = {"tag": prompt.tag, "include": [_entry(i) for i in prompt.include]}
    if prompt.exclude:
        record["exclude"] = [{"class": e.shape, "count": e.count} for e in prompt.exclude]
    if prompt.background is not None:
        record["background"] = prompt.background
    return {**record, "prompt": prompt.text}


def from_record(record: Any) -> Prompt:
    """Return the prompt of a JSON object.

    Raises:
        ValueError: the object is not in GenEval's format, or requires what no scene has.
    """
    _expect(record, {"tag": str, "include": list, "prompt": str}, {"exclude", "background"})
    entries = record["include"]
    include = tuple(_included(entry, i, len(entries)) for i, entry in enumerate(entries))
    exclude = []
    for entry in record.get("exclude", []):
        _expect(entry, {"class": str, "count": int}, set())
        exclude.append(Excluded(_known("class", entry["class"], (*SHAPES, WORD)), entry["count"]))
    background = record.get("background")
    if background is not None:
        _known("background", background, BACKGROUNDS)
    return Prompt(record["prompt"].strip(), record["tag"], include, tuple(exclude), background)


def read_prompts(file: Path) -> list[Prompt]:
    """Read the prompts of a JSONL file, in its order.

    Raises:
        ValueError: a line is invalid; has its number.
    """
    prompts = []
    lines = file.read_text(encoding="utf-8-sig").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompts.append(from_record(json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
    return prompts


def write_prompts(file: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts as a JSONL file for `read_prompts` and GenEval's own tools."""
    write_lines(file, map(to_record, prompts))


def write_lines(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, "".join(lines).encode())


def _entry(included: Included) -> dict[str, Any]:
    entry: dict[str, Any] = {"class": included.shape, "count": included.count}
    if included.colour is not None:
        entry["color"] = included.colour
    if included.text:
        entry["text"] = included.text
    if included.position is not None:
        entry["position"] = list(included.position)
    return entry


def _included(entry: Any, own: int, length: int) -> Included:
    _expect(entry, {"class": str, "count": int}, {"color", "position", "text"})
    position, text = entry.get("position"), entry.get("text", "")
    if "color" in entry:
        _known("color", entry["color"], COLOURS)
    if position is not None:
        places = set(range(length)) - {own}
        match position:
            case [str(relation), int(other)] if relation in INVERSE and other in places:
                position = (relation, other)
            case _:
                raise ValueError(
                    f"position {position!r} is not [relation, place of another object], the "
                    f"relation one of {', '.join(INVERSE)}"
                )
    if (entry["class"] == WORD) != bool(text):
        raise ValueError(f'{entry!r}: the class "word" has a text, and no other class has one')
    shape = _known("class", entry["class"], (*SHAPES, WORD))
    return Included(shape, entry["count"], entry.get("color"), position, text)


def _expect(record: Any, required: Mapping[str, type], optional: set[str]) -> None:
    if not isinstance(record, dict) or not required.keys() <= record.keys():
        raise ValueError(f"{record!r} must be an object with the keys {', '.join(required)}")
    for key, kind in required.items():
        if not isinstance(record[key], kind):
            raise ValueError(f"{key}={record[key]!r} is not of type {kind.__name__}")
    if "count" in required and record["count"] < 1:
        raise ValueError(f"count={record['count']!r} is below 1")
    if unknown := record.keys() - required.keys() - optional:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r} in {record!r}")


def _known(key: str, value: Any, known: Iterable[str]) -> str:
    if value not in (names := list(known)):
        raise ValueError(f"{key}={value!r} is not one of {', '.join(names)}")
    return value
