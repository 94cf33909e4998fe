"""Proves that sampling goes on where it was cut short and ends in the bytes of an unbroken run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

import tinydiffusion
from tinydiffusion.cli.main import main
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.runtime.outputs import MARKER
from tinydiffusion.sampling import folder as sampling_folder
from tinydiffusion.sampling.folder import UNFINISHED, kept_samples, save_samples

ROOT = Path(tinydiffusion.__file__).parents[1]
FLAGS = ["a red circle", "a blue square", "--num-images", "2", "--batch-size", "2", "--steps", "1"]


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in between catches it."""


@pytest.fixture
def sample(model, tmp_path):
    def sample(*flags: str, name: str = "out", model: str = model) -> dict[str, bytes]:
        out = tmp_path / name
        assert main(["sample", model, *(flags or FLAGS), "--out", str(out)]) == 0
        return files(out)

    return sample


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture
def made(monkeypatch):
    """The seeds of the pictures that are computed."""
    seeds = []
    generate = TextToImage.generate

    def watched(self, prompts, **options):
        seeds.extend(range(options["seed"], options["seed"] + len(prompts)))
        return generate(self, prompts, **options)

    monkeypatch.setattr(TextToImage, "generate", watched)
    return seeds


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
            patch.setattr(Path, "write_bytes", counted(Path.write_bytes))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            with contextlib.suppress(Killed):
                yield begun

    return kill_at


# ---- cut short -------------------------------------------------------------------------------


def make(folder: Path, text: str, count: int) -> dict[str, bytes]:
    """What the command does, with pictures that cost nothing."""
    rows = {i: {"text": text, "seed": i, "sampler": "euler"} for i in range(count)}
    kept = kept_samples(folder, rows)
    missing = [i for i in range(count) if i not in kept]
    save_samples(folder, ((i, torch.full((3, 4, 4), i).byte()) for i in missing), rows, kept)
    return files(folder)


def test_a_kill_at_any_moment_and_the_same_command_end_in_the_same_bytes(kill_at, tmp_path):
    """... over a folder that held other samples, too."""
    unbroken = make(tmp_path / "unbroken", "a", 4)
    for number in range(30):
        out = tmp_path / str(number)
        make(out, "b", 6)
        with kill_at(number) as begun:
            make(out, "a", 4)
        if number < len(begun):
            assert make(out, "a", 4) == unbroken
    assert number > len(begun) > 12  # every operation was a place to die


def test_a_run_that_is_killed_many_times_ends_in_the_same_bytes(sample, kill_at):
    unbroken = sample(name="unbroken")
    for number in (2, 3, 4):
        with kill_at(number):
            sample()
    assert sample() == unbroken


def test_sigkill_and_the_same_command_end_in_the_same_bytes(sample, model, tmp_path):
    flags = ["a red circle", "--num-images", "8", "--batch-size", "1", "--steps", "9"]
    out = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "tinydiffusion.cli.main",
        "sample",
        model,
        *flags,
        "--out",
        out,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / "00001.png").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (out / UNFINISHED).exists()
    assert not (out / "metadata.jsonl").exists()
    assert sample(*flags, name="killed") == sample(*flags, name="unbroken")


def test_what_is_there_is_not_made_again(sample, made, tmp_path, capsys):
    before = sample()
    assert made == list(range(4))
    (tmp_path / "out" / "00003.png").unlink()
    made.clear()
    capsys.readouterr()
    assert sample() == before
    assert made == [3]
    assert "3 of 4 pictures are there already" in capsys.readouterr().err
    made.clear()
    assert sample(*FLAGS, "--batch-size", "5") == before
    assert made == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "swapped", "other picture"])
def test_a_damaged_picture_is_made_again(sample, damage, tmp_path):
    before = sample()
    file, other = tmp_path / "out" / "00001.png", tmp_path / "out" / "00002.png"
    data = bytearray(file.read_bytes())
    data[60] ^= 1
    damaged = {
        "truncated": data[:-20],
        "flipped": data,
        "empty": b"",
        "swapped": other.read_bytes(),
        "other picture": (ROOT / "docs" / "images" / "emoji.png").read_bytes(),
    }
    file.write_bytes(damaged[damage])
    assert sample() == before


def test_half_a_line_is_no_line(sample, kill_at, tmp_path):
    unbroken = sample(name="unbroken")
    with kill_at(4):
        sample()
    with (tmp_path / "out" / UNFINISHED).open("ab") as file:
        file.write(unbroken["metadata.jsonl"][:100])
    assert sample() == unbroken


# ---- another run -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", "1"], ["--steps", "3"], ["--guidance-scale", "1"], ["--sampler", "heun"],
        ["--negative-prompt", "a dog"], ["--spacing", "karras"], ["--sampler", "ddpm"],
        ["--sampler", "ddim", "--sampler.eta", "0.5"], ["--guidance-rescale", "0.5"],
        ["--guidance-interval", "0", "1"],
    ],
)  # fmt: skip
def test_pictures_of_other_settings_are_replaced(sample, made, flags):
    fresh = sample(*FLAGS, *flags, name="fresh")
    sample()
    made.clear()
    assert sample(*FLAGS, *flags) == fresh
    assert sample(*FLAGS, *flags) == fresh
    assert len(made) == 4  # the second time they are there already


def test_pictures_of_another_model_are_replaced(sample, model, made, tmp_path):
    other = tmp_path / "other"
    changed = TextToImage.from_pretrained(model)
    with torch.no_grad():
        changed.network.conv_out.bias += 1
    changed.save_pretrained(other)
    sample()
    made.clear()
    assert sample(model=str(other)) == sample(name="fresh", model=str(other))
    assert len(made) == 8


def test_fewer_pictures_leave_none_behind(sample, made):
    sample("a red circle", "--num-images", "5")
    made.clear()
    assert list(sample("a red circle", "--num-images", "2")) == [
        MARKER, "00000.png", "00001.png", "metadata.jsonl"
    ]  # fmt: skip
    assert made == []


def test_what_is_replaced_is_said(sample, tmp_path, capsys):
    sample("a red circle", "--num-images", "3")
    assert "replaces" not in capsys.readouterr().err
    sample("a red circle", "--num-images", "3")
    assert "replaces" not in capsys.readouterr().err
    sample("a blue circle", "--num-images", "2")
    assert f"replaces 3 earlier samples in {tmp_path}/out/ (of 'a red circle')" in said(capsys)
    (tmp_path / "out" / "00001.png").write_bytes(b"retouched")
    sample("a blue circle", "--num-images", "2")
    assert "(of 'a blue circle'; 1 of them were changed since they were made)" in said(capsys)


def said(capsys) -> str:
    return capsys.readouterr().err


def test_a_picture_of_the_user_among_samples_is_kept(sample, model, tmp_path, mistake):
    sample("a red circle")
    mine = tmp_path / "out" / "00001.png"
    mine.write_bytes(b"mine")
    line = mistake("sample", model, "a red circle", "--num-images", "3", "--out", str(mine.parent))
    assert line.startswith(f"{mine} is not one of the samples that metadata.jsonl lists")
    assert mine.read_bytes() == b"mine"


def test_a_mistake_that_the_sampler_finds_leaves_the_earlier_samples(sample, model, tmp_path):
    before = sample()
    flags = [*FLAGS, "--sampler", "ddim", "--sampler.eta", "1.5"]
    assert main(["sample", model, *flags, "--out", str(tmp_path / "out")]) == 2
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize(
    "text", ['{"file_name": "00000.png", "text": "mine"}', "no json", "5", "null\n", '["a"]']
)
def test_metadata_of_something_else_is_not_overwritten(model, tmp_path, mistake, text):
    (tmp_path / "metadata.jsonl").write_text(text)
    line = mistake("sample", model, "a", "--out", str(tmp_path))
    assert line.startswith(f"{tmp_path} holds files that tinydiffusion did not make")
    (tmp_path / MARKER).write_text('{"made_by": "sample"}')  # as where a user has put one there
    line = mistake("sample", model, "a", "--out", str(tmp_path))
    assert line == f"{tmp_path} holds captioned pictures that are no samples; take another folder"
    assert (tmp_path / "metadata.jsonl").read_text() == text


def test_metadata_of_a_stranger_deletes_no_other_file(sample, tmp_path):
    """Samples may come from anywhere; only the names that are written here are ever deleted."""
    out = tmp_path / "out"
    out.mkdir()
    (out / MARKER).write_text('{"made_by": "sample"}')
    names = ["../victim.png", "notes.png", str(tmp_path / "victim.png"), "00000.png/../x", 5, None]
    rows = [json.dumps({"file_name": name, "sampler": "euler"}) for name in names]
    (out / "metadata.jsonl").write_text("\n".join(rows))
    for victim in (tmp_path / "victim.png", out / "notes.png"):
        victim.write_text("mine")
    assert sample()["notes.png"] == b"mine"
    assert (tmp_path / "victim.png").read_text() == "mine"


# ---- bounds, names, memory -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-images", "100001"], "a folder takes 100000 samples, got 100001"),
        (["--num-images", "1000000000000"], "must be at most 1000000, got 1000000000000"),
        (["--steps", "1000000000"], "num_inference_steps must be in [1, 1000]"),
        (["--guidance-scale", "nan"], "guidance_scale must be in [0, 1000], got nan"),
        (["--guidance-scale", "inf"], "guidance_scale must be in [0, 1000], got inf"),
        (["--guidance-scale", "-1"], "guidance_scale must be in [0, 1000], got -1.0"),
        (["--guidance-interval", "0", "inf"], "high <= 10000, got 0 and inf; 0 and 10000 is"),
        (["--guidance-rescale", "nan"], "guidance_rescale must be in [0, 1], got nan"),
        (["--seed", "18446744073709551616"], "the seed of every picture must be in [0, 2**64)"),
        (["--seed", "18446744073709551615", "--num-images", "2"], "the seed of every picture"),
        (["--negative-prompt", "\udcff"], "is not text: surrogates not allowed"),
        (["\ud800"], "is not text: surrogates not allowed"),
        (["x" * 20_000], "a prompt must have at most 10000 characters, got 20000"),
    ],
)
def test_a_value_out_of_its_bounds_is_one_line(model, tmp_path, mistake, flags, message):
    out = tmp_path / "out"
    assert message in mistake("sample", model, "a", *flags, "--out", str(out))
    assert not out.exists()


def test_the_largest_seed_makes_a_picture(sample):
    sample("a", "--seed", str(2**64 - 1))


def test_names_of_files_are_ours_whatever_the_prompt(sample):
    prompts = ["../../x", "/etc/passwd", "CON", "NUL", "a/b\\c", "a" * 300, "a\nb", "", "\u202egnp"]
    written = sample(*prompts, "--steps", "1")
    del written[MARKER]
    assert list(written) == [*(f"{i:05d}.png" for i in range(len(prompts))), "metadata.jsonl"]
    rows = [json.loads(line) for line in written["metadata.jsonl"].decode().split("\n")[:-1]]
    assert [row["text"] for row in rows] == prompts


def test_pictures_are_not_held_in_memory(tmp_path):
    alive = weakref.WeakSet()

    def images():
        for i in range(20):
            image = torch.full((3, 8, 8), i, dtype=torch.uint8)
            alive.add(image)
            assert len(alive) <= 3
            yield i, image
            del image

    rows = {i: {"text": "a", "sampler": "euler"} for i in range(20)}
    save_samples(tmp_path, images(), rows)
    assert kept_samples(tmp_path, rows).keys() == set(range(20))


# ---- damaged models --------------------------------------------------------------------------


def test_pictures_that_are_no_numbers_end_with_their_own_exit_code(model, tmp_path, capsys):
    spoiled = TextToImage.from_pretrained(model)
    weight = spoiled.network.conv_out.weight
    with torch.no_grad():
        weight.copy_(torch.where(weight > 0, 3e38, -3e38))  # numbers, but too large to add up
    spoiled.save_pretrained(tmp_path / "spoiled")
    flags = ["sample", str(tmp_path / "spoiled"), "a", "--precision", "float32"]
    assert main([*flags, "--out", str(tmp_path / "out")]) == 4
    assert "error: the picture of seed 0 came out as NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pictures_of_one_colour_are_a_warning(sample, monkeypatch, capsys):
    def black(self, prompts, **options):
        return torch.zeros(len(prompts), 3, 16, 16, dtype=torch.uint8)

    monkeypatch.setattr(TextToImage, "generate", black)
    sample()
    assert "warning: 4 pictures are of one colour" in capsys.readouterr().err
