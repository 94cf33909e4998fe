"""Proves that a prompts file gives the prompts that were meant, or one line that says why not."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tinydiffusion.runtime.errors import UsageError
from tinydiffusion.sampling.prompts import read_prompts_file

PROMPTS = ["a red disc", "a blue disc, left of a star"]
OBJECTS = [{"prompt": text, "seed": 3} for text in PROMPTS]
LINES = "\n".join(map(json.dumps, OBJECTS))
CONTENTS = {
    "json": [json.dumps(PROMPTS), json.dumps(OBJECTS, indent=1), LINES],
    "jsonl": [LINES, "\n".join(map(json.dumps, PROMPTS)), f"\n{LINES}\n\n", json.dumps(OBJECTS)],
    "csv": [
        'prompt,seed\na red disc,1\n"a blue disc, left of a star",2\n',
        'seed;Prompt\r\n1;a red disc\r\n\r\n2;" a blue disc, left of a star"\r\n',
        'text\n"a red disc"\n"a blue disc, left of a star"\n',
    ],
    "tsv": ["caption\tseed\na red disc\t1\na blue disc, left of a star\t2\n"],
    "txt": [
        "\n".join(PROMPTS),
        f"# mine\n {PROMPTS[0]} \r\n\r\n\t{PROMPTS[1]}\r\n  # and no more",
        "\r".join(PROMPTS),
    ],
}
CASES = [(suffix, content) for suffix, contents in CONTENTS.items() for content in contents]


@pytest.fixture
def written(tmp_path):
    """Writes a file and returns its path."""

    def write(name: str, content: str | bytes) -> Path:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return write


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(("suffix", "content"), CASES)
def test_every_kind_gives_the_prompts_in_any_case_of_its_suffix(written, suffix, content, mark):
    for name in (f"p.{suffix}", f"p.{suffix.upper()}"):
        assert read_prompts_file(written(name, mark + content)).texts == PROMPTS


@pytest.mark.parametrize(("suffix", "content"), CASES)
def test_what_has_no_suffix_is_read_as_what_it_is(written, suffix, content):
    assert read_prompts_file(written("p", content)).texts == PROMPTS


@pytest.mark.parametrize(("suffix", "content"), CASES)
def test_pipes_are_read_as_what_they_are(suffix, content):
    """Such as `<(...)` of a shell: no regular file, and read once only."""
    there, here = os.pipe()
    writer = threading.Thread(target=_fill, args=(here, content))
    writer.start()
    try:
        assert read_prompts_file(Path(f"/dev/fd/{there}")).texts == PROMPTS
    finally:
        writer.join()
        os.close(there)


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_read(name):
    program = (
        "from pathlib import Path; from tinydiffusion.sampling.prompts import read_prompts_file;"
        f"print(read_prompts_file(Path({name!r})).texts)"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, input=LINES, capture_output=True, text=True, check=True)
    assert result.stdout == f"{PROMPTS}\n"


def _fill(pipe: int, content: str) -> None:
    with open(pipe, "wb") as stream:
        stream.write(content.encode())


def test_a_pipe_is_not_shared_by_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="a pipe can be read once only"):
        read_prompts_file(Path("-"))


@pytest.mark.parametrize(
    "prompt",
    ["a [red:0.5] disc", "{red|blue} disc", "[red] disc", "<cat-toy> on a table", "- a dash", "🙂",
     "prompt engineering, a poster", "portrait: a man\u2028of one line",
     '"No" on a sign, "Yes" below', "a, b; c"],
)  # fmt: skip
def test_unusual_prompts_are_no_markup(written, prompt):
    assert read_prompts_file(written("p.txt", f"a\n{prompt}\n")).texts == ["a", prompt]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", '[\n "a red disc"\n]', r"line 1 is JSON, not a prompt: '\['; name it .json"),
        ("p.txt", f"a red disc\n{LINES}", "line 2 is JSON"),
        ("p.txt", '["a", "b"]', "line 1 is JSON"),
        ("p.txt", "prompt,seed\na,1\n", "begins with the columns of a table, 'prompt,seed'; name"),
        ("p.txt", "prompt\na red disc\n", "begins with the columns of a table"),
        ("p.txt", "<!DOCTYPE html>\n<p>a</p>", "line 1 is HTML, not a prompt"),
        ("p.txt", "a\n<li>b</li>", "line 2 is HTML"),
        ("p.txt", "prompts:\n  - a\n", "line 1 is YAML"),
        ("p.txt", "- prompt: a\n  seed: 1\n", "line 1 is YAML"),
        ("p.txt", "---\n- a\n", "line 1 is YAML"),
        ("p.txt", '"a"\n"b"\n', "every line is in quotes"),
        ("p.txt", "- a\n- b\n", "is a list in YAML or Markdown"),
        ("p.txt", "# only a comment\n \n", "holds no prompt"),
        ("p.txt", b"\xff\xfea\0", "not a text in UTF-8"),
        ("p.txt", b"a\0b", "not a text: it holds zero bytes"),
        ("p.yaml", "- a", "'.yaml' is not read; give .txt"),
        ("p.png", b"\x89PNG", "'.png' is not read"),
        ("p.parquet", b"PAR1", "'.parquet' is not read"),
        ("p.csv", "seed,name\n1,a\n", "needs `prompt`, or one of .* there is 'seed', 'name'"),
        ("p.csv", "text,caption\na,b\n", "there is 'text', 'caption'"),
        ("p.csv", "prompt\na red disc, blue\n", "line 2 has 2 fields, the header 1; a prompt with"),
        ("p.csv", "prompt,seed\n ,1\n", "line 2 has no prompt"),
        ("p.csv", 'prompt\n"a', "unexpected end of data"),
        ("p.csv", "", "holds no prompt"),
        ("p.json", '["a", 7]', "neither a text nor an object with a `prompt`: '7'"),
        ("p.json", '{"prompts": ["a"]}', "there is 'prompts'"),
        ("p.json", '{"prompt": 7}', "a prompt must be a text, got '7'"),
        ("p.json", '["a",]', "not valid JSON: .*line 1"),
        ("p.json", "[]", "holds no prompt"),
        ("p.jsonl", f"{LINES}\n{{", "line 3 is not valid JSON: '{'"),
        ("p.jsonl", "a red disc", "line 1 is not valid JSON: 'a red disc'"),
        ("p.jsonl", "[" * 100_000, "not valid JSON: nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_no_prompts_file_is_said_in_one_line(written, name, content, message):
    file = written(name, content)
    with pytest.raises(UsageError, match=message) as error:
        read_prompts_file(file)
    assert str(error.value).startswith(f"--prompts {file}: ")
    assert "\n" not in str(error.value)


def test_folders_and_missing_files_are_named(tmp_path):
    for place, message in ((tmp_path, "is a folder"), (tmp_path / "p", "there is no such file")):
        with pytest.raises(UsageError, match=message):
            read_prompts_file(place)


def test_conditions_of_geneval_are_noticed(written):
    record = json.dumps({"tag": "a", "include": [], "prompt": "a"})
    assert read_prompts_file(written("p.jsonl", record)).have_conditions
    assert not read_prompts_file(written("q.jsonl", LINES)).have_conditions
