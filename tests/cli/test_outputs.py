"""Proves that no command loses what it did not make, nor works for a path it cannot write.

The outputs are those of the command line's own parsers, so that a new flag has to be added here.
"""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from tinydiffusion.cli.main import main, parsers
from tinydiffusion.evaluation.rows import report_row, write_report
from tinydiffusion.protocols import Score
from tinydiffusion.runtime import locks, streams
from tinydiffusion.runtime.outputs import MADE, MARKER, OutputFile, OutputFolder, held

OUT = "<out>"
"""Stands for the path of the output in an argument list."""
CALLS = {
    ("train", "run_dir"): ["--config", "{config}", "--run-dir", OUT],
    ("train", "json"): ["--config", "{config}", "--dry-run", "--json", OUT],
    ("export", "folder"): ["{run}", OUT],
    ("sample", "out"): ["{model}", "a red circle", "--out", OUT],
    ("sample", "grid"): ["{model}", "a red circle", "--out", "{new}", "--grid", OUT],
    ("merge-samples", "folders"): [OUT],
    ("evaluate", "out"): [
        "{pictures}", "--data", "{pictures}", "--metrics", "vendi", "--out", OUT,
    ],
    ("evaluate", "state"): [
        "{pictures}", "--data", "{pictures}", "--metrics", "vendi", "--state", OUT,
    ],
    ("evaluate", "samples"): [
        "{model}", "--metrics", "vendi", "--data", "{pictures}", "--num-images", "2",
        "--samples", OUT,
    ],
    ("merge", "out"): ["{state}", "--out", OUT],
    ("statistics", "out"): ["{pictures}", "--metrics", "pixel_fd", "--out", OUT],
    ("compare", "json"): ["{report}", "{report}", "--json", OUT],
    ("report", "out"): ["{report}", "--out", OUT],
    ("prompts", "out"): [OUT, "--per-task", "1"],
    ("data", "json"): ["{pictures}", "--size", "8", "--json", OUT],
    ("data", "sheet"): ["{pictures}", "--size", "8", "--sheet", OUT],
    ("pack", "paths"): ["{pictures}", OUT, "--size", "8"],
}  # fmt: skip
"""Command and argument -> a call that would work, but for what lies at the output's path."""


def actions() -> dict[tuple[str, str], object]:
    """Every argument of every command that names what is written, with its type."""
    return {
        (command, action.dest): action.type
        for command, parser in parsers()[1].items()
        for action in parser._actions
        if isinstance(action.type, OutputFile | OutputFolder)
    }


FILES = [key for key, kind in actions().items() if isinstance(kind, OutputFile)]
FOLDERS = [key for key, kind in actions().items() if isinstance(kind, OutputFolder)]


def test_every_output_of_the_command_line_is_walked_over():
    assert actions().keys() == CALLS.keys()


@pytest.mark.parametrize("key", sorted(CALLS), ids="-".join)
def test_only_arguments_of_these_types_look_like_outputs(key):
    """An argument called so that reads must say why it is none."""
    reading = {("train", "resume"), ("report", "run")}
    suspicious = {"out", "json", "grid", "sheet", "samples", "state", "run_dir", "out_dir"}
    for command, parser in parsers()[1].items():
        for action in parser._actions:
            if action.dest in suspicious and (command, action.dest) not in reading:
                assert (command, action.dest) in actions(), (command, action.dest)


@pytest.fixture
def world(tmp_path, untrained, tiny) -> dict[str, str]:
    """What the calls read."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 99)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"picture {i}")
    row = report_row(Score("vendi", 2.0, 4, ci95=(1.0, 3.0)), "vendi", {"needs": ["generated"]})
    context = {"kind": "samples", "target": "x", "prompts_sha256": "0", "options": {}}
    write_report(tmp_path / "report.json", [row], {**context, "sources": {"generated": {"n": 4}}})
    return {
        "model": untrained, "config": tiny, "pictures": str(pictures),
        "report": str(tmp_path / "report.json"), "new": str(tmp_path / "new"),
        "state": str(tmp_path / "none.state"), "run": str(tmp_path / "none"),
    }  # fmt: skip


def call(key: tuple[str, str], out: Path, world: dict[str, str]) -> list[str]:
    return [key[0], *(str(out) if a == OUT else a.format(**world) for a in CALLS[key])]


def suffix(key: tuple[str, str]) -> str:
    return actions()[key].suffix or ".state"


# ---- paths that cannot be written -------------------------------------------------------------

NOWHERE = {
    "model": "none",
    "pictures": "none",
    "report": "none",
    "state": "none",
    "new": "none",
    "run": "none",
}
"""Inputs that are not there: what is said of the output is said before they are looked for."""


@pytest.fixture
def nowhere(tiny):
    return {**NOWHERE, "config": tiny}


@pytest.mark.parametrize("key", CALLS, ids="-".join)
@pytest.mark.parametrize("place", ["file/{name}", "{long}", "/proc/none/{name}"])
def test_a_path_that_cannot_be_written_is_refused_before_the_work(
    key, place, nowhere, tmp_path, mistake
):
    name = "out" + (suffix(key) if key in FILES else "")
    (tmp_path / "file").write_text("mine")
    out = tmp_path / place.format(name=name, long="x" * 300 + name)
    line = mistake(*call(key, out, nowhere))
    assert "cannot be written" in line
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("key", FILES, ids="-".join)
def test_a_device_is_no_file(key, nowhere, tmp_path, mistake):
    pipe = tmp_path / f"pipe{suffix(key)}"
    os.mkfifo(pipe)
    assert "is not a plain file" in mistake(*call(key, pipe, nowhere))
    assert pipe.is_fifo()


@pytest.mark.parametrize("key", FILES, ids="-".join)
def test_in_a_folder_a_file_has_a_name_of_its_own(key, nowhere, tmp_path, mistake):
    kind = actions()[key]
    (tmp_path / kind.name).mkdir() if kind.name else (tmp_path / "state").mkdir()
    out = tmp_path if kind.name else tmp_path / "state"
    assert "is a folder; name a file" in mistake(*call(key, out, nowhere))
    assert kind.name == "" or kind(str(tmp_path)) == tmp_path / kind.name


@pytest.mark.parametrize("key", FOLDERS, ids="-".join)
def test_a_file_is_no_place_for_a_folder(key, nowhere, tmp_path, mistake):
    (tmp_path / "out").write_text("mine")
    assert "is a file, not a folder" in mistake(*call(key, tmp_path / "out", nowhere))
    assert (tmp_path / "out").read_text() == "mine"


# ---- what is somebody's ------------------------------------------------------------------------


@pytest.mark.parametrize("key", FILES, ids="-".join)
@pytest.mark.parametrize("content", [b"", b"mine", b'{"schema": "mine"}', b"\x89PNG\r\n\x1a\n"])
def test_a_file_of_the_user_is_kept(key, content, world, tmp_path, mistake):
    out = tmp_path / f"mine{suffix(key)}"
    out.write_bytes(content)
    mistake(*call(key, out, world))
    assert out.read_bytes() == content


def captioned(folder: Path) -> None:
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 2, 3)).save(folder / f"{i:05d}.png")


OWN_WORDS = ("merge-samples", "export")
"""Commands that refuse in words of their own: no parts to merge, no model to replace."""
WAYS = {
    "text": lambda folder: (captioned(folder), (folder / "00000.txt").write_text("mine")),
    "csv": lambda folder: (captioned(folder), (folder / "metadata.csv").write_text("file_name,x")),
    "jsonl": lambda folder: (captioned(folder), (folder / "metadata.jsonl").write_text("{}")),
    "pictures": captioned,
    "config": lambda folder: (folder / "config.yaml").write_text("seed: 3"),
    "model": lambda folder: (folder / "model_index.json").write_text("{}"),
    "shards": lambda folder: (folder / "shard-00000.tar").write_bytes(b"mine"),
    "sub-folder": lambda folder: (folder / "mine").mkdir(),
}
"""What a folder may be that no command made."""


@pytest.mark.parametrize("key", FOLDERS, ids="-".join)
@pytest.mark.parametrize("way", WAYS)
def test_a_folder_of_another_kind_is_refused(key, way, world, tmp_path, mistake, unchanged):
    folder = tmp_path / "out"
    folder.mkdir()
    WAYS[way](folder)
    before = unchanged(folder)
    line = mistake(*call(key, folder, world))
    if key[0] == "train" and way == "config":  # which says what to do with it
        assert line.startswith(f"{folder / 'config.yaml'} was not written by a run")
    elif key[0] not in OWN_WORDS:
        assert line.startswith(f"{folder} holds files that tinydiffusion did not make")
    mistake(*call(key, folder, world), "--overwrite")
    assert unchanged(folder) == before


@pytest.mark.parametrize("key", FOLDERS, ids="-".join)
@pytest.mark.parametrize("maker", MADE)
def test_a_folder_of_another_command_asks_for_overwrite(key, maker, world, tmp_path, capsys):
    if key[0] == maker or (maker == "sample" and key[1] in ("samples", "folders")):
        return  # its own kind: the tests of the command show how it goes on
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / MARKER).write_text(json.dumps({"made_by": maker}))
    (folder / "00000.png").write_bytes(b"work")
    assert main(call(key, folder, world)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    if key[0] not in OWN_WORDS:
        assert line.startswith(f"error: {folder} holds {MADE[maker]} (of `tinydiffusion {maker}`)")
    assert (folder / "00000.png").read_bytes() == b"work"


def test_with_overwrite_a_folder_stays_that_of_its_command(untrained, tmp_path, mistake):
    folder = tmp_path / "out"
    with held(folder, "train"):
        (folder / "config.yaml").write_text("seed: 3")
    command = ["sample", untrained, "a red circle", "--out", str(folder)]
    assert main([*command, "--overwrite"]) == 0
    assert (folder / "00000.png").exists()
    assert "holds a training run" in mistake(*command)


def test_one_file_is_not_written_twice(world, tmp_path, mistake):
    file = tmp_path / "x.json"
    line = mistake(*call(("evaluate", "out"), file, world), "--state", str(file))
    assert line == f"{file} is to be written twice; name another file for one"
    assert not file.exists()


def test_a_grid_takes_no_samples_place(untrained, tmp_path, mistake):
    command = ["sample", untrained, "a red circle", "--out", str(tmp_path / "out")]
    line = mistake(*command, "--grid", str(tmp_path / "out" / "00000.png"))
    assert line.endswith("samples in --out have such names; name another file")
    assert main(command) == 0
    assert main([*command, "--grid", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "grid.png").exists()


@pytest.mark.parametrize("key", FOLDERS, ids="-".join)
def test_one_process_at_a_time_works_in_a_folder(key, world, tmp_path, monkeypatch, capsys):
    maker = "sample" if key[1] in ("samples", "folders") else key[0]
    folder = tmp_path / "out"
    with held(folder, maker):
        if key[0] == "export":
            return  # a model folder takes its name once it is whole: nobody sees a half
        if key[0] == "merge-samples":
            (folder / "metadata.jsonl").write_text('{"file_name": "00000.png", "sampler": "x"}\n')
        # The lock is of a process: this one stands for another.
        monkeypatch.setattr(locks, "_lock", held_elsewhere)
        assert main(call(key, folder, world)) == 2
        assert "is in use by process" in capsys.readouterr().err.splitlines()[-1]


def held_elsewhere(file) -> None:
    raise OSError(locks.errno.EAGAIN, "held")


@pytest.mark.parametrize("key", FILES, ids="-".join)
def test_what_the_command_wrote_itself_is_replaced(key, world, tmp_path, capsys):
    if key in {("merge", "out"), ("train", "json")}:
        return  # slow to make; the tests of these commands write over their own files
    out = tmp_path / f"out{suffix(key)}"
    first = call(key, out, world)
    assert main(first) == 0, capsys.readouterr().err
    again = [*first, "--overwrite"] if key[0] == "prompts" else first
    assert main(again) == 0, capsys.readouterr().err


# ---- the console -------------------------------------------------------------------------------


@pytest.fixture
def console(monkeypatch):
    """Standard output and error of a process, on a pipe whose reader has gone, in ASCII."""
    reader, writer = os.pipe()
    os.close(reader)
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(
            io.FileIO(os.dup(writer), "wb"), encoding="ascii", write_through=True
        )
        monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, f"__{name}__", stream)
    os.close(writer)


@pytest.mark.parametrize("key", CALLS, ids="-".join)
def test_a_reader_that_goes_away_costs_no_work(key, world, tmp_path, console):
    if key in {
        ("merge", "out"),
        ("merge-samples", "folders"),
        ("train", "run_dir"),
        ("export", "folder"),
    }:
        return  # what they read takes long to make; they print as the others do
    out = tmp_path / ("out" + (suffix(key) if key in FILES else ""))
    assert main(call(key, out, world)) == 0
    assert out.exists()


def test_what_a_console_cannot_show_is_shown_as_its_number(monkeypatch, tmp_path):
    file = (tmp_path / "console").open("wb", buffering=0)
    stream = io.TextIOWrapper(file, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    with streams.lasting_streams():
        print("größe")
    assert (tmp_path / "console").read_bytes() == b"gr\\xf6\\xdfe\n"


def test_a_full_disk_behind_standard_output_is_one_line(monkeypatch, capsys):
    stream = io.TextIOWrapper(io.FileIO(os.open("/dev/full", os.O_WRONLY), "wb"))
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    assert main(["plugins"]) == 3
    told = "error: the console's output is lost: No space left on device\n"
    assert capsys.readouterr().err == told


def test_a_full_disk_behind_standard_output_costs_no_work(monkeypatch, world, tmp_path):
    stream = io.TextIOWrapper(io.FileIO(os.open("/dev/full", os.O_WRONLY), "wb"))
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    assert main(call(("evaluate", "out"), tmp_path / "r.json", world)) == 3
    assert (tmp_path / "r.json").exists()
