"""Proves that shards together, and a run that was killed, give the numbers of one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinydiffusion.cli.main import main

FLAGS = ["--metrics", "pixel_fd", "kid", "--kid.extractor", "{name: pixels, size: 4}",
         "--pixel_fd.size", "2", "--batch-size", "4"]  # fmt: skip

FRAGILE = """
import os, signal
from pathlib import Path
import torch
from tinydiffusion.metrics.table import RowsEvaluator
from tinydiffusion.protocols import Score

class Fragile(RowsEvaluator):
    "Mean brightness; kills its process at the 20th picture, the first time."
    needs = ("generated", "reference")

    def __init__(self, *, folder: str):
        super().__init__(tensors=("light",))
        self.folder = Path(folder)

    def columns(self, batch):
        with (self.folder / "seen").open("a") as log:
            log.write("".join(f"{batch['source']} {i}\\n" for i in batch["id"].tolist()))
        if 20 in batch["id"] and not (self.folder / "killed").exists():
            (self.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"light": batch["image"].double().mean(dim=(1, 2, 3))}

    def compute(self):
        both = [self.tables[s].tensor("light").mean().item() for s in self.needs]
        return [Score("fragile", both[0] - both[1], len(self.tables["generated"]))]

    def provenance(self):
        return {"extractor": "light", "weights_sha256": None}
"""


def tinydiffusion(*arguments) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tinydiffusion.cli.main", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYDIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    for name, number, seed in (("made", 31, 0), ("real", 41, 1)):
        generator = np.random.default_rng(seed)
        (tmp_path / name).mkdir()
        for i in range(number):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i:02d}.png")
    return tmp_path / "made", tmp_path / "real"


def report(file: Path) -> dict:
    return json.loads(file.read_text())


def shard(folders, number: int, of: int, folder: Path, *flags: str) -> list[str]:
    made, real = folders
    state = folder / f"{number}.state"
    return ["evaluate", str(made), *FLAGS, "--data", str(real), "--shard", f"{number}/{of}",
            "--state", str(state), *flags]  # fmt: skip


def test_three_processes_measure_what_one_does(folders, tmp_path):
    made, real = folders
    processes = [tinydiffusion(*shard(folders, i, 3, tmp_path)) for i in (1, 2, 3)]
    whole = tmp_path / "whole.json"
    assert main(["evaluate", str(made), *FLAGS, "--data", str(real), "--out", str(whole)]) == 0
    for process in processes:
        assert process.wait() == 0, process.stderr.read()
    states = [str(tmp_path / f"{i}.state") for i in (3, 1, 2)]
    assert main(["merge", *states, "--out", str(tmp_path / "merged.json")]) == 0
    one, three = report(whole), report(tmp_path / "merged.json")
    assert three["context"] == one["context"]
    for a, b in zip(one["results"], three["results"], strict=True):
        assert a["n"] == b["n"] == 31
        assert b["value"] == pytest.approx(a["value"], rel=1e-9, abs=1e-9)
        assert b["ci95"] == pytest.approx(a["ci95"], rel=1e-9, abs=1e-9)
        assert b["warnings"] == a["warnings"]
    floors = [each["results"][0]["details"]["floor"] for each in (one, three)]
    assert floors[0] == pytest.approx(floors[1], rel=1e-9)


def test_shards_that_do_not_belong_together_are_refused(folders, tmp_path, mistake):
    for number, flags in ((1, []), (2, [])):
        assert main(shard(folders, number, 3, tmp_path, *flags)) == 0
    first, second = (str(tmp_path / f"{i}.state") for i in (1, 2))
    out = ["--out", str(tmp_path / "merged.json")]
    assert mistake("merge", first, second, *out) == "shards missing: 3 of 3"
    copy = tmp_path / "copy.state"
    copy.write_bytes(Path(first).read_bytes())
    line = mistake("merge", first, str(copy), *out)
    assert line == f"both {first} and {copy} are shard 1/3: every picture counts once"
    other = tmp_path / "other"
    other.mkdir()
    assert main(shard(folders, 3, 3, other, "--kid.subset_size", "3")) == 0
    line = mistake("merge", first, str(other / "3.state"), *out)
    assert (
        f"3.state is of another evaluation than {first}: options.kid.subset_size: 3, not None"
        in line
    )
    (tmp_path / "odd").write_text("odd")
    assert mistake("merge", str(tmp_path / "odd"), *out).startswith("cannot read the state")
    assert "must be I/N with I from 1 to N" in mistake(*shard(folders, 4, 3, tmp_path))
    made, real = folders
    line = mistake("evaluate", str(made), *FLAGS, "--data", str(real), "--shard", "1/2")
    assert line == "a shard is of use only once it is kept: name a file with --state"


def test_statistics_of_a_reference_count_once_in_all_shards(folders, tmp_path):
    made, real = folders
    flags = ["--metrics", "pixel_fd", "--pixel_fd.size", "2"]
    statistics, whole = str(tmp_path / "real.npz"), str(tmp_path / "whole.json")
    assert main(["statistics", str(real), *flags, "--out", statistics]) == 0
    command = ["evaluate", str(made), *flags, "--data", statistics]
    assert main([*command, "--out", whole]) == 0
    states = [str(tmp_path / f"{number}.state") for number in (1, 2)]
    for number, state in enumerate(states, start=1):
        assert main([*command, "--shard", f"{number}/2", "--state", state]) == 0
    assert main(["merge", *states, "--out", str(tmp_path / "merged.json")]) == 0
    (one,), (two,) = (report(tmp_path / f"{name}.json")["results"] for name in ("whole", "merged"))
    assert two["value"] == pytest.approx(one["value"], rel=1e-9)
    assert two["details"]["n_reference"] == one["details"]["n_reference"] == 41


@pytest.mark.parametrize("flag", [["--out", "a.json"], ["--guidance-scales", "1"]])
def test_a_shard_shows_nothing_of_the_whole(folders, tmp_path, mistake, flag):
    line = mistake(*shard(folders, 1, 2, tmp_path, *flag))
    assert line == f"{flag[0]} shows the whole: a --shard is a part of it, see `merge`"


def test_a_killed_evaluation_goes_on_after_the_last_saved_picture(folders, tmp_path, mistake):
    made, real = folders
    (tmp_path / "fragile.py").write_text(FRAGILE)
    name, state, out = "fragile:Fragile", tmp_path / "one.state", tmp_path / "report.json"
    flags = ["evaluate", str(made), "--metrics", name, f"--{name}.folder", str(tmp_path),
             "--data", str(real), "--batch-size", "4", "--save-every", "8",
             "--state", str(state)]  # fmt: skip
    assert tinydiffusion(*flags).wait() == -9
    before = (tmp_path / "seen").read_text().splitlines()
    assert before[-4:] == [f"generated {i}" for i in range(20, 24)]
    assert not out.exists()
    assert main([*flags, "--out", str(out)]) == 0
    after = (tmp_path / "seen").read_text().splitlines()[len(before) :]
    assert after[0] == "generated 16"
    assert len(after) == 31 - 16 + 41
    pixels = [np.mean([np.asarray(Image.open(f)) for f in folder.iterdir()]) for folder in folders]
    (row,) = report(out)["results"]
    assert row["value"] == pytest.approx(pixels[0] - pixels[1])
    assert row["n"] == 31
    # The same command has nothing left to do; another one is not mixed up with it.
    assert main(flags) == 0
    assert len((tmp_path / "seen").read_text().splitlines()) == len(before) + len(after)
    line = mistake(*flags[:2], "--metrics", "pixel_fd", *flags[6:])
    assert line.startswith(
        f"{state} is the state of another evaluation (metrics: ['pixel_fd'], not"
    )
    Image.new("RGB", (8, 8)).save(made / "00.png")
    assert "sources.generated.sha256" in mistake(*flags)
