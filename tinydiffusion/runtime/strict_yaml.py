"""The part of YAML that settings need: text, numbers, true, false, null, lists and mappings.

Plain words are read as in YAML 1.2: `1e-4` is a number, `yes` and `2024-01-01` are text. Aliases,
merge keys and tags are refused, since with them a small file can become huge or make objects that
are no plain values; keys that are given twice are refused, since one would hide the other.
"""

import re
from collections.abc import Callable
from typing import Any, NoReturn

import yaml

MAX_BYTES = 2**20
MAX_DEPTH = 20
MAX_VALUES = 20_000


class YamlError(ValueError):
    """A text that is not the YAML of settings; one line that begins with the place."""


def read(data: bytes | str, source: str) -> Any:
    """Return the value of a YAML text.

    Args:
        data: The text; bytes are UTF-8, a byte order mark is skipped.
        source: Name that precedes line and column in messages, such as the file's name.

    Raises:
        YamlError: the text is too long, not UTF-8 or not YAML, or uses a refused feature.
    """
    if len(data) > MAX_BYTES:
        raise YamlError(f"{source}: settings are no longer than {MAX_BYTES} bytes")
    text = data if isinstance(data, str) else _decode(data, source)
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _value(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        why = " ".join(", ".join(filter(None, (error.context, error.problem))).split())
        raise YamlError(f"{source}{place}: {why}") from error
    except yaml.reader.ReaderError as error:
        position = int(error.position)
        what = f"the character {text[position]!r} is refused"
        raise YamlError(f"{source}{_place(text, position)}: {what}") from error


def write(value: Any) -> str:
    """Return the YAML text of a value of dicts, lists, text, numbers, booleans and None."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig")
        place = _place(before, len(before))
        raise YamlError(f"{source}{place}: this is not UTF-8; save the file as UTF-8") from error


def _place(text: str, position: int) -> str:
    """Return `:line:column` of a character, both from 1."""
    before = text[:position]
    return f":{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


class _Loader(yaml.SafeLoader):
    """A loader that composes nodes within the limits, with scalars tagged by `SCALARS`."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - filled below

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node; refuse an anchor, alias or tag, and more depth or values than allowed."""
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            _refuse(event, "anchors (&) and aliases (*) are not read; quote the text")
        if event.tag is not None:
            _refuse(event, "tags (!) are not read; quote the text")
        self.count += 1
        if self.depth >= MAX_DEPTH or self.count > MAX_VALUES:
            _refuse(event, f"settings have at most {MAX_DEPTH} levels and {MAX_VALUES} values")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    convert = SCALARS[node.tag][2] if node.tag in SCALARS else str
    try:
        return convert(node.value)
    except ValueError:  # thousands of digits
        _refuse(node, f"{node.value[:20]!r}... is no number to count with")


def _mapping(node: yaml.MappingNode) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _value(key_node)
        if key == "<<":
            _refuse(key_node, "merge keys (<<) are not read; write the keys out")
        if not isinstance(key, str):
            _refuse(key_node, f"the key {key!r} is not a text; quote it")
        if key in values:
            _refuse(key_node, f"the key {key!r} is given twice")
        values[key] = _value(value_node)
    return values


def _refuse(at: Any, why: str) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=why, problem_mark=at.start_mark)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes any text that YAML 1.1 or 1.2 may read as a number, date or boolean."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: a list that occurs in two places is written twice."""
        del data
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Unicode's line breaks are preserved only in the style with escapes.
        style = '"' if {"\x85", "\u2028", "\u2029"} & set(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


SCALARS: dict[str, tuple[str, list[str], Callable[[str], Any]]] = {
    f"tag:yaml.org,2002:{name}": (pattern, letters, convert)
    for name, pattern, letters, convert in (
        ("null", "~|null|Null|NULL|", ["~", "n", "N", ""], lambda _: None),
        ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF"), lambda text: text[0] in "tT"),
        ("int", "[-+]?(0|[1-9][0-9_]*)", list("-+0123456789"), int),
        (
            "float",
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
            list("-+.0123456789"),
            float,
        ),
    )
}
"""Tag -> pattern of its plain words, their first characters, conversion; the first match counts."""

_Dumper.add_representer(str, _Dumper.represent_str)
for _tag, (_pattern, _letters, _) in SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), _letters)
