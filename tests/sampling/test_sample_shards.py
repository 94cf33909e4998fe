"""Proves that shards of samples, put together, are what one process makes, file by file."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from tinydiffusion.cli.main import main
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.runtime.outputs import MARKER
from tinydiffusion.sampling import folder as sampling_folder
from tinydiffusion.sampling import merge as sampling_merge

FLAGS = ["a red circle", "a blue square", "a green star", "--num-images", "3", "--steps", "1"]


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in between catches it."""


@pytest.fixture
def sample(untrained, tmp_path):
    def sample(*flags: str, name: str = "out", code: int = 0) -> Path:
        out = tmp_path / name
        assert main(["sample", untrained, *(flags or FLAGS), "--out", str(out)]) == code
        return out

    return sample


@pytest.fixture
def shards(sample):
    """Makes some of the shards of a run, all by default."""

    def shards(count: int, *numbers: int, flags: tuple = (), name: str = "out") -> Path:
        for number in numbers or range(1, count + 1):
            out = sample(*FLAGS, *flags, "--shard", f"{number}/{count}", name=name)
        return out

    return shards


def merge(*folders: Path) -> int:
    return main(["merge-samples", *map(str, folders)])


# ---- the same as one process -----------------------------------------------------------------


def test_1000_prompts_in_4_shards_are_the_files_of_one_process(sample, tmp_path, unchanged):
    """... and evaluation in 4 shards gives the numbers of one evaluation."""
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"a red circle and {i} squares\n" for i in range(1000)))
    flags = ["--prompts", str(file), "--steps", "1", "--seed", "7", "--guidance-scale", "1"]
    whole = sample(*flags, "--batch-size", "200", name="whole")
    for number in (3, 1, 4, 2):
        sample(*flags, "--shard", f"{number}/4", "--batch-size", str(60 + number))
    assert [path.name for path in sorted((tmp_path / "out").glob("[!.]*"))] == [
        f"shard-{i}-of-4" for i in (1, 2, 3, 4)
    ]
    assert merge(tmp_path / "out") == 0
    files = unchanged(whole)
    assert len(files) == 1002
    assert unchanged(tmp_path / "out") == files

    measured = ["--metrics", "pixel_fd", "kid", "--kid.extractor", "{name: pixels, size: 4}",
                "--pixel_fd.size", "4", "--data", str(whole)]  # fmt: skip
    reports = [tmp_path / "whole.json", tmp_path / "shards.json"]
    assert main(["evaluate", str(whole), *measured, "--out", str(reports[0])]) == 0
    states = [str(tmp_path / f"{number}.state") for number in range(1, 5)]
    for number, state in enumerate(states, start=1):
        own = ["--shard", f"{number}/4", "--state", state]
        assert main(["evaluate", str(tmp_path / "out"), *measured, *own]) == 0
    assert main(["merge", *states, "--out", str(reports[1])]) == 0
    one, four = (json.loads(report.read_text())["results"] for report in reports)
    for a, b in zip(one, four, strict=True):
        assert a["n"] == b["n"] == 1000
        assert b["value"] == pytest.approx(a["value"], rel=1e-9, abs=1e-9)
        assert b["ci95"] == pytest.approx(a["ci95"], rel=1e-9, abs=1e-9)


def test_a_shard_is_a_folder_of_samples(sample, shards):
    out = shards(4, 2) / "shard-2-of-4"
    assert [path.name for path in sorted(out.iterdir()) if path.name != MARKER] == [
        ".shard.json", "00002.png", "00003.png", "metadata.jsonl"
    ]  # fmt: skip
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [(row["file_name"], row["seed"], row["text"]) for row in rows] == [
        ("00002.png", 2, "a red circle"), ("00003.png", 3, "a blue square"),
    ]  # fmt: skip
    assert main(["evaluate", str(out), "--metrics", "pixel_fd", "--data", str(out)]) == 0
    assert (shards(10, 2) / "shard-02-of-10").is_dir()


def test_shards_of_several_machines_come_together_in_the_first_folder(sample, shards, unchanged):
    whole = unchanged(sample(name="whole"))
    one, two = shards(3, 1, 3, name="one"), shards(3, 2, name="two")
    assert merge(one, two) == 0
    assert unchanged(one) == whole
    assert [path.name for path in two.iterdir()] == [MARKER]


def test_more_shards_than_pictures(sample, shards, unchanged):
    whole = unchanged(sample(name="whole"))
    out = shards(11)
    assert merge(out) == 0
    assert unchanged(out) == whole


def test_samples_of_an_earlier_call_make_room(sample, shards, unchanged):
    sample("a dog", "--num-images", "20")
    out = shards(2)
    assert len(list(out.glob("*.png"))) == 20
    assert merge(out) == 0
    assert unchanged(out) == unchanged(sample(name="whole"))


def test_no_picture_is_there_twice(shards, monkeypatch):
    """Moved on one file system: a picture keeps its place on the disk."""
    out = shards(2)
    places = {file.name: file.stat().st_ino for file in out.rglob("*.png")}
    assert merge(out) == 0
    assert {file.name: file.stat().st_ino for file in out.rglob("*.png")} == places


# ---- cut short -------------------------------------------------------------------------------


def test_a_shard_goes_on(shards, monkeypatch, unchanged):
    out = shards(3, 2)
    before = unchanged(out)
    (out / "shard-2-of-3" / "00004.png").unlink()
    seeds = []
    generate = TextToImage.generate

    def watched(self, prompts, **options):
        seeds.extend(range(options["seed"], options["seed"] + len(prompts)))
        return generate(self, prompts, **options)

    monkeypatch.setattr(TextToImage, "generate", watched)
    shards(3, 2)
    assert seeds == [4]
    assert unchanged(out) == before


@pytest.fixture
def kill_at(monkeypatch):
    """Dies at the n-th moment between two operations on files."""

    @contextlib.contextmanager
    def kill_at(number: int):
        begun = []

        def counted(operation):
            def step(*arguments, **options):
                begun.append(operation)
                if len(begun) > number:
                    raise Killed
                return operation(*arguments, **options)

            return step

        with monkeypatch.context() as patch:
            patch.setattr(sampling_folder, "replace_file", counted(sampling_folder.replace_file))
            patch.setattr(sampling_merge.shutil, "move", counted(shutil.move))
            patch.setattr(sampling_merge.shutil, "rmtree", counted(shutil.rmtree))
            patch.setattr(Path, "rename", counted(Path.rename))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            with contextlib.suppress(Killed):
                yield begun

    return kill_at


def test_merging_killed_at_any_moment_goes_on(sample, shards, kill_at, tmp_path, unchanged):
    """... over a folder that held other samples, too."""
    whole = unchanged(sample(name="whole"))
    shards(2, name="before")
    sample("a dog", "--num-images", "4", name="before")
    for number in range(40):
        out = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", out)
        with kill_at(number) as begun:
            assert merge(out) == 0
        if number < len(begun):
            assert merge(out) == 0, number
        assert unchanged(out) == whole, number
        if number >= len(begun):
            break
    assert number > 15  # every operation was a place to die
    assert merge(out) == 0  # nothing is left to do
    assert unchanged(out) == whole


def test_an_unsharded_call_goes_on_with_what_is_moved(sample, shards, kill_at, unchanged):
    whole = unchanged(sample(name="whole"))
    out = shards(2)
    with kill_at(5):
        merge(out)
    moved = len(list(out.glob("*.png")))
    assert 0 < moved < 9
    sample()
    assert {name: data for name, data in unchanged(out).items() if "shard" not in name} == whole


# ---- refusals --------------------------------------------------------------------------------


def test_shards_that_are_no_whole_are_refused(shards, tmp_path, mistake, unchanged):
    out = shards(3, 1, 3)
    first, third = (out / f"shard-{i}-of-3" for i in (1, 3))
    before = unchanged(out)
    assert mistake("merge-samples", str(out)) == "shards missing: 2 of 3"
    copy = tmp_path / "copy" / "shard-1-of-3"
    shutil.copytree(first, copy)
    line = mistake("merge-samples", str(out), str(copy.parent))
    assert line == f"both {first} and {copy} are shard 1/3: every picture counts once"
    second = shards(3, 2) / "shard-2-of-3"
    (second / ".shard.json").unlink()
    line = mistake("merge-samples", str(out))
    assert line == f"{second} is not finished: run its command again, it goes on"
    shutil.rmtree(second)
    shards(4, 2)
    line = mistake("merge-samples", str(out))
    assert line == f"{out}/shard-2-of-4 is of another run than {first}: 4 shards, not 3"
    shutil.rmtree(out / "shard-2-of-4")
    assert unchanged(out) == before
    assert mistake("merge-samples", str(tmp_path / "nowhere")).startswith("no such folder")
    assert third.is_dir()


@pytest.mark.parametrize(
    ("flags", "differs"),
    [
        (["--seed", "1"], "seed: 1, not 0"),
        (["--steps", "2"], "how.steps: 2, not 1"),
        (["--sampler", "ddim", "--sampler.eta", "0.5"], "how.sampler: ddim, not euler"),
        (["--negative-prompt", "a dog"], "how.negative_prompt: a dog, not "),
        (["another prompt"], "pictures: 12, not 9"),
    ],
)
def test_a_shard_of_other_settings_is_named(shards, mistake, flags, differs):
    out = shards(2, 1)
    shards(2, 2, flags=tuple(flags))
    line = mistake("merge-samples", str(out))
    other, first = f"{out}/shard-2-of-2", f"{out}/shard-1-of-2"
    assert line == f"{other} is of another run than {first}: {differs}"


def test_a_shard_of_other_prompts_or_another_model_is_named(sample, untrained, tmp_path, mistake):
    out = sample("a", "b", "--steps", "1", "--shard", "1/2")
    sample("a", "c", "--steps", "1", "--shard", "2/2")
    assert "shard-1-of-2: prompts_sha256: " in mistake("merge-samples", str(out))
    changed = TextToImage.from_pretrained(untrained)
    changed.network.conv_out.bias.data += 1
    changed.save_pretrained(tmp_path / "other")
    flags = ["a", "b", "--steps", "1", "--shard", "2/2", "--out", str(out)]
    assert main(["sample", str(tmp_path / "other"), *flags]) == 0
    assert "shard-1-of-2: how.model_sha256: " in mistake("merge-samples", str(out))


def lose(folder: Path) -> None:
    (folder / "00003.png").unlink()


def flip(folder: Path) -> None:
    data = bytearray((folder / "00003.png").read_bytes())
    data[60] ^= 1
    (folder / "00003.png").write_bytes(data)


def edit(folder: Path, old: str, new: str, name: str = "metadata.jsonl") -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose, "00003.png is missing or damaged: run the shard's command again"),
        (flip, "00003.png is missing or damaged: run the shard's command again"),
        (lambda f: edit(f, "blue", "pink"), "the prompts in the shards are not those that they"),
        (lambda f: edit(f, '"seed": 3', '"seed": 9'), "holds other samples than it says"),
        (lambda f: edit(f, "00003", "00008"), "holds other samples than it says"),
        (lambda f: edit(f, '"steps": 1', '"steps": 2'), "holds other samples than it says"),
        (lambda f: edit(f, "[2, 4]", "[1, 4]", ".shard.json"), "holds other samples than it says"),
        (lambda f: edit(f, "shard/1", "shard/9", ".shard.json"), "its schema is not"),
        (lambda f: (f / ".shard.json").write_text("odd"), "is no shard of samples: "),
        (lambda f: (f / ".shard.json").write_text("[]"), "is no shard of samples: "),
        (lambda f: (f / "metadata.jsonl").write_text("odd"), "captioned pictures that are no"),
        (lambda f: (f / "mine.txt").touch(), "mine.txt is not of the shard's samples: move it"),
    ],
)
def test_a_damaged_shard_is_named_and_nothing_moves(shards, mistake, unchanged, damage, reason):
    out = shards(4)
    damage(out / "shard-2-of-4")
    before = unchanged(out)
    assert reason in mistake("merge-samples", str(out))
    assert unchanged(out) == before


def test_a_target_that_holds_something_else_is_left_alone(shards, mistake):
    out = shards(2)
    (out / "metadata.jsonl").write_text('{"file_name": "00000.png", "text": "mine"}\n')
    line = mistake("merge-samples", str(out))
    assert line == f"{out} holds captioned pictures that are no samples; take another folder"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shard", "0/4"], "--shard: must be I/N with I from 1 to N, such as 1/3, got 0/4"),
        (["--shard", "5/4"], "--shard: must be I/N with I from 1 to N, such as 1/3, got 5/4"),
        (["--shard", "1/2", "--grid", "g.png"], "--grid shows all pictures: a --shard has some"),
        (["--shard", "1/2", "--num-images", "100001"], "a folder takes 100000 samples"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(untrained, tmp_path, mistake, flags, message):
    assert message in mistake("sample", untrained, "a", *flags, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_unmerged_shards_are_not_evaluated(shards, mistake):
    out = shards(2)
    line = mistake("evaluate", str(out), "--metrics", "pixel_fd", "--data", str(out))
    assert line == f"{out} holds shards of samples; put them together with merge-samples first"


def test_a_folder_that_cannot_be_written_is_one_line(sample, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    sample(name="file/out", code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: {tmp_path}/file/out cannot be written: {tmp_path}/file is a file"
    )
