"""Prompts from files of several kinds: a prompt a line, JSON, JSON lines, tables.

Markup never becomes a prompt: a file is read as its own kind, or refused.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinydiffusion.runtime.errors import UsageError

STDIN = Path("-")
MAX_BYTES = 2**28
KINDS = {
    "": None, ".txt": "text", ".text": "text", ".json": "JSON", ".jsonl": "JSON",
    ".ndjson": "JSON", ".csv": "table", ".tsv": "table",
}  # fmt: skip
"""Suffix in lower case -> kind of file; None: the kind is guessed from the content."""
COLUMNS = ("prompt", "text", "caption")
CONDITIONS = "include"
"""Key of the conditions of a GenEval prompt, see `scenes/geneval.py`."""

JSON_LINE = re.compile(r'\s*(\[\s*($|["{\[])|\{\s*($|"))')
QUOTED_LINE = re.compile(r'\s*"([^"\\]|\\.)*",?\s*$')
HTML_LINE = re.compile(
    r"\s*<(!doctype|!--|\?xml|/?(html|head|body|div|p|span|ul|ol|li|table|tr|td|br|h\d|a|title|meta)"
    r"\b[^>]*>)",
    re.IGNORECASE,
)
YAML_LINE = re.compile(r"\s*(---|%YAML.*|(- )?(prompts?|texts?|captions?|file_name)\s*:.*)$")


class Prompts(NamedTuple):
    """The content of a prompts file."""

    texts: list[str]
    have_conditions: bool  # GenEval's, for the judge of scene_accuracy


def read_prompts_file(file: Path) -> Prompts:
    """Read the prompts of a text file, a JSON or JSONL file, a table, or standard input.

    Blanks around a prompt, blank lines and lines of text that begin with `#` are left out. Objects
    and tables have a `prompt`, or just one of `text` and `caption`.

    Args:
        file: The suffix, in upper or lower case, gives the kind; for "-", a pipe or a name without
            a suffix the content does.

    Raises:
        UsageError: there is no such file, it is of another kind, it is markup where a prompt a
            line was expected, or it holds no prompt.
    """
    suffix = file.suffix.lower()
    if suffix not in KINDS:
        raise _refusal(
            file,
            f"{suffix!r} is not read; give .txt (a prompt a line), .json, .jsonl, .csv or .tsv",
        )
    text = _text_of(file)
    if not text.strip():
        raise _refusal(file, "holds no prompt")
    kind = KINDS[suffix] or _kind_of(text)
    try:
        records = list(_READERS[kind](text))
        texts = [_prompt_of(record).strip() for record in records]
    except (ValueError, RecursionError, csv.Error) as error:
        raise _refusal(file, _one_line(error)) from error
    if not texts:
        raise _refusal(file, "holds no prompt")
    return Prompts(texts, any(isinstance(r, dict) and CONDITIONS in r for r in records))


def _refusal(file: Path, reason: str) -> UsageError:
    return UsageError(f"--prompts {file}: {reason}")


def _one_line(error: Exception) -> str:
    return "not valid JSON: nested too deeply" if isinstance(error, RecursionError) else str(error)


def _text_of(file: Path) -> str:
    """Read the content of a file or pipe, without a byte order mark."""
    if file != STDIN and not file.exists():
        raise _refusal(file, "there is no such file")
    if file.is_dir():
        raise _refusal(file, "is a folder; name a file in it")
    if not file.is_file() and os.environ.get("WORLD_SIZE", "1") != "1":
        raise _refusal(file, "a pipe can be read once only, not by every process; give a file")
    try:
        with open(0 if file == STDIN else file, "rb", closefd=file != STDIN) as stream:
            data = stream.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise _refusal(file, str(error.strerror)) from error
    except UnicodeDecodeError as error:
        raise _refusal(file, "not a text in UTF-8") from error
    if len(data) > MAX_BYTES:
        raise _refusal(file, f"has more than {MAX_BYTES} bytes")
    if "\0" in text:
        raise _refusal(file, "not a text: it holds zero bytes")
    return text


def _lines(text: str) -> list[tuple[int, str]]:
    """List number and content of every line that is not blank, split at CR, LF and CRLF only."""
    lines = re.split(r"\r\n|\r|\n", text)
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _kind_of(text: str) -> str:
    """Guess the kind of a text: a key of `_READERS`."""
    lines = [line for _, line in _lines(text)]
    if lines and (JSON_LINE.match(lines[0]) or all(map(QUOTED_LINE.match, lines))):
        return "JSON"
    return "table" if lines and _is_header(lines[0]) else "text"


def _is_header(line: str) -> bool:
    """Return whether a line holds names of columns, one of them known, rather than a prompt."""
    cells = _cells(line, ",;\t")
    known = {*COLUMNS, "file_name"} & set(cells)
    return bool(known) and all(re.fullmatch(r"[\w-]{1,40}", cell) for cell in cells)


def _cells(header: str, delimiters: str) -> list[str]:
    """Split a header into its names in lower case."""
    return [cell.strip().strip('"').lower() for cell in re.split(f"[{delimiters}]", header)]


# ---- readers: each yields texts, or objects that hold one ------------------------------------


def _read_text(text: str) -> Iterator[str]:
    lines = [(n, line) for n, line in _lines(text) if not line.lstrip().startswith("#")]
    if lines and _is_header(lines[0][1]):
        raise ValueError(f"begins with the columns of a table, {lines[0][1]!r}; name it .csv")
    for number, line in lines:
        for markup, pattern, remedy in (
            ("JSON", JSON_LINE, "name it .json or .jsonl"),
            ("HTML", HTML_LINE, "give the text alone, a prompt a line"),
            ("YAML", YAML_LINE, "give the text alone, a prompt a line, or .json"),
        ):
            if pattern.match(line):
                raise ValueError(
                    f"line {number} is {markup}, not a prompt: {line[:60]!r}; {remedy}"
                )
        yield line
    if lines and all(line.lstrip().startswith("- ") for _, line in lines):
        raise ValueError("is a list in YAML or Markdown; give the text alone, without the dashes")
    if lines and all(QUOTED_LINE.match(line) for _, line in lines):
        raise ValueError("every line is in quotes; leave them out, or name it .jsonl")


def _read_json(text: str) -> Iterator[Any]:
    """Yield the items of one list, or the values of all lines."""
    try:
        whole = json.loads(text)
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise ValueError(f"not valid JSON: {error}") from error
        for number, line in _lines(text):
            yield _json_line(number, line)
    else:
        yield from whole if isinstance(whole, list) else [whole]


def _json_line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is not valid JSON: {line[:60]!r}") from error


def _read_table(text: str) -> Iterator[str]:
    """Yield the prompts of a table with a header, separated by commas, semicolons or tabs."""
    delimiters = [d for d in ",;\t" if set(COLUMNS) & set(_cells(_lines(text)[0][1], d))]
    delimiter = delimiters[0] if delimiters else ","
    rows = csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter, strict=True)
    names = [name.strip() for name in next(rows)]
    column = names.index(_column_of(names))
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(names):
            raise ValueError(
                f"line {rows.line_num} has {len(row)} fields, the header {len(names)}; a prompt "
                'with a comma stands in "quotes"'
            )
        if not row[column].strip():
            raise ValueError(f"line {rows.line_num} has no {names[column]}")
        yield row[column]


_READERS: dict[str, Callable[[str], Iterator[Any]]] = {
    "text": _read_text, "JSON": _read_json, "table": _read_table,
}  # fmt: skip


def _prompt_of(record: Any) -> str:
    """Return a record that is a text, or the text under the prompt key of the record."""
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        raise ValueError(f"neither a text nor an object with a `prompt`: {str(record)[:60]!r}")
    value = record[_column_of(list(record))]
    if not isinstance(value, str):
        raise ValueError(f"a prompt must be a text, got {str(value)[:60]!r}")
    return value


def _column_of(names: list[str]) -> str:
    """Choose the name of the prompts' column, in any case: `prompt`, or the only other one."""
    for wanted in (COLUMNS[:1], COLUMNS):
        found = [name for name in names if name.lower() in wanted]
        if len(found) == 1:
            return found[0]
    listed = ", ".join(map(repr, names[:10])) or "none"
    raise ValueError(f"needs `prompt`, or one of `text` and `caption`; there is {listed}")


def prompts_sha256(prompts: Sequence[str]) -> str | None:
    """Compute the SHA-256 of the prompts in their order; None where no picture has one."""
    if not any(prompts):
        return None
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
