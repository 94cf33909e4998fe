"""Proves that processes of torchrun sample and measure together what one process does alone."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from process_toys import ROOT, Said, kill, run_together, start

from tinydiffusion.cli.main import main
from tinydiffusion.evaluation.state_file import read_state, save_state

pytestmark = pytest.mark.xdist_group("sharing by several processes")  # its fixtures once
LONELY = """
from tinydiffusion.metrics.table import RowsEvaluator
from tinydiffusion.protocols import Score

class Lonely(RowsEvaluator):
    "Cannot stand picture 5, which one of two processes has."
    needs = ("generated",)

    def __init__(self):
        super().__init__(tensors=("light",))

    def columns(self, batch):
        if 5 in batch["id"]:
            raise RuntimeError("five")
        return {"light": batch["image"].double().mean(dim=(1, 2, 3))}

    def compute(self):
        return [Score("lonely", 0.0, len(self.tables["generated"]))]

    def provenance(self):
        return {"extractor": "light", "weights_sha256": None}
"""


def noise(folder: Path, number: int) -> Path:
    generator = np.random.default_rng(number)
    folder.mkdir()
    for i in range(number):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, untrained) -> Path:
    """Prompts, a model that one of two processes finds, pictures, a metric that fails in one."""
    place = tmp_path_factory.mktemp("place")
    (place / "prompts.txt").write_text("".join(f"a red circle {i}\n" for i in range(45)))
    (place / "prompts-0.txt").write_text("a\nb\n")
    (place / "prompts-1.txt").write_text("a\nc\n")
    (place / "model-0").symlink_to(untrained)
    (place / "only-0").symlink_to(place / "real")
    (place / "lonely.py").write_text(LONELY)
    noise(place / "made", 31)
    noise(place / "real", 41)
    for rank in (0, 1):
        noise(place / f"own-{rank}", 7 + rank)
    (place / "three.state.2-of-3").touch()
    broken = noise(place / "broken", 12) / "05.png"
    broken.write_bytes(broken.read_bytes()[:100])
    return place


@pytest.fixture(scope="module")
def measured(place) -> list[str]:
    return [
        "evaluate", f"{place}/made", "--metrics", "pixel_fd", "kid", "--pixel_fd.size", "2",
        "--kid.extractor", "{name: pixels, size: 4}", "--batch-size", "4", "--data",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def same(untrained, place, measured) -> dict[str, list[str]]:
    """What one process does, and two do; `OUT` is where either writes."""
    prompts = ["--prompts", f"{place}/prompts.txt", "--num-images", "2"]
    real = f"{place}/real"
    model = ["evaluate", untrained, "--metrics", "pixel_fd", "--pixel_fd.size", "2",
             "--data", "OUT/samples", "--num-images", "10", "--batch-size", "3"]  # fmt: skip
    return {
        "killed": ["sample", untrained, *prompts, "--steps", "15", "--out", "OUT/killed"],
        "samples": ["sample", untrained, *prompts, "--out", "OUT/samples", "--grid", "OUT/g.png"],
        "shard": ["sample", untrained, *prompts, "--shard", "2/3", "--out", "OUT/shards"],
        "folder": [*measured, real, "--out", "OUT/folder.json"],
        "npz": [*measured[:4], *measured[5:7], "--data", f"{real}.npz", "--out", "OUT/npz.json"],
        "model": [*model, "--guidance-scales", "1", "3", "--out", "OUT/model.json"],
        "kept": [*model, "--samples", "OUT/kept", "--out", "OUT/kept.json"],
        "state": [*measured, real, "--state", "OUT/whole.state", "--out", "OUT/state.json"],
        "again": [*measured, real, "--state", "OUT/whole.state", "--out", "OUT/again.json"],
        "part": [*measured, real, "--shard", "2/2", "--state", "OUT/2.state"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def failing(untrained, place, measured) -> dict[str, tuple[int, list[str], str]]:
    """Name -> the process that speaks, the command, what is said."""
    out = ["--out", f"{place}/nothing"]
    return {
        "steps": (0, ["sample", untrained, "a", "--steps", "0", *out], "num_inference_steps must"),
        "flag": (0, ["sample", untrained, "a", "--nope"], "unrecognized arguments: --nope"),
        "file": (0, ["sample", untrained, "--prompts", "nope"], "nope: there is no such file"),
        "plugins": (0, ["plugins"], "plugins is the work of one process; start it without a"),
        "metric": (0, ["evaluate", f"{place}/made", "--metrics", "fidd"], "'fidd'"),
        "no model": (1, ["sample", f"{place}/model-RANK", "a", *out], "there is no folder"),
        "no folder": (1, [*measured, f"{place}/only-RANK"], "no such folder: "),
        "prompts": (
            1, ["sample", untrained, "--prompts", f"{place}/prompts-RANK.txt", *out],
            "process 1 finds something else than process 0: prompts_sha256: ",
        ),
        "pictures": (
            1, [*measured, f"{place}/own-RANK"],
            "process 1 finds something else than process 0: sources.reference.n: 8, not 7",
        ),
        "disk": (
            1, ["sample", untrained, "a", "--out", f"{place}/out-RANK"],
            f"process 1 does not see {place}/out-1: the machines of one job need a common disk",
        ),
        "begun by 3": (
            0, [*measured, f"{place}/real", "--state", f"{place}/three.state"],
            f"{place}/three.state.2-of-3 was begun by 3 processes; each goes on with its own",
        ),
        "begun by 1": (
            0, [*measured, f"{place}/real", "--state", f"{place}/one.state"],
            f"{place}/one.state was begun by one process; each goes on with its own part",
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def one(place, same, measured, tmp_path_factory) -> Path:
    """What one process has written; it also leaves a state unfinished."""
    out = place / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYDIFFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        npz = ["--pixel_fd.size", "2", "--out", f"{place}/real.npz"]
        assert main(["statistics", f"{place}/real", "--metrics", "pixel_fd", *npz]) == 0
        for words in same.values():
            assert main([word.replace("OUT", str(out)) for word in words]) == 0
        real = f"{place}/real"
        assert main([*measured, real, "--shard", "1/2", "--state", f"{out}/1.state"]) == 0
    state = read_state(out / "whole.state")
    state.complete = False
    save_state(place / "one.state", state)
    return out


@pytest.fixture(scope="module")
def two(place, same, failing, measured, one) -> dict[str, list[Said]]:
    """What two processes have said; before, three were killed, and one of two was measured."""
    out = place / "two"
    _sample_and_kill(same["killed"], out)
    shutil.copy(one / "1.state", out / "whole.state.1-of-2")
    lonely = ["--metrics", "lonely:Lonely", "pixel_fd", "--data", f"{place}/real", "--batch-size=4"]
    commands = same | {name: words for name, (_, words, _) in failing.items()}
    commands["lonely"] = ["evaluate", f"{place}/made", *lonely, "--out", "OUT/lonely.json"]
    commands["broken"] = ["evaluate", f"{place}/broken", "--metrics", "pixel_fd",
                          "--data", f"{place}/real", "--batch-size", "2"]  # fmt: skip
    words = [[word.replace("OUT", str(out)) for word in words] for words in commands.values()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYDIFFUSION_CACHE", str(place / "cache"))
        patch.syspath_prepend(place)
        return dict(zip(commands, run_together(2, words, place), strict=True))


def _sample_and_kill(words: list[str], out: Path) -> None:
    """Three processes sample until the last of them has written; then a power cut."""
    launcher = start(3, ROOT / "sample.py", *words[1:-1], out / "killed", "--batch-size", "2")
    note = out / "killed" / ".unfinished-2.jsonl"
    while not (note.exists() and note.stat().st_size):
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.02)
    kill(launcher)
    assert 0 < len(list(note.parent.glob("*.png"))) < 90
    assert not (note.parent / "metadata.jsonl").exists()


def report(file: Path) -> dict:
    return json.loads(file.read_text())


def assert_same_rows(one: list[dict], two: list[dict]) -> None:
    for a, b in zip(one, two, strict=True):
        assert (a["name"], a["n"], a["warnings"]) == (b["name"], b["n"], b["warnings"])
        assert b["value"] == pytest.approx(a["value"], rel=1e-9, abs=1e-9)
        assert b["ci95"] == pytest.approx(a["ci95"], rel=1e-9, abs=1e-9)


# ---- sampling --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["samples", "kept", "shards/shard-2-of-3", "killed"])
def test_the_folder_is_that_of_one_process(one, two, place, unchanged, name):
    """... also where three processes were killed and two have gone on."""
    files = unchanged(one / name)
    assert len(files) in (92, 12, 33)
    assert unchanged(place / "two" / name) == files


def test_the_grid_is_that_of_one_process(one, two, place):
    assert (place / "two" / "g.png").read_bytes() == (one / "g.png").read_bytes()


def test_what_three_killed_processes_have_made_is_not_made_again(two):
    assert "of 90 pictures are there already" in two["killed"][0].err


# ---- evaluation ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folder", "npz", "model", "kept", "state", "again"])
def test_the_numbers_are_those_of_one_process(one, two, place, name):
    whole, shared = (report(folder / f"{name}.json") for folder in (one, place / "two"))
    assert_same_rows(whole["results"], shared["results"])
    for a, b in zip(whole.get("sweep", []), shared.get("sweep", []), strict=True):
        assert a["guidance_scale"] == b["guidance_scale"]
        assert_same_rows(a["results"], b["results"])
    assert len(shared.get("sweep", [])) == 2 * (name == "model")
    assert shared["context"].keys() == whole["context"].keys()
    assert two[name][0].out.count("\n") > 3


def test_a_shard_of_two_processes_goes_with_one_of_one(one, two, place, tmp_path):
    states = [str(one / "1.state"), str(place / "two" / "2.state")]
    assert main(["merge", *states, "--out", str(tmp_path / "merged.json")]) == 0
    merged, whole = report(tmp_path / "merged.json"), report(one / "folder.json")
    assert merged["context"] == whole["context"]
    assert_same_rows(whole["results"], merged["results"])


def test_each_process_goes_on_with_its_part(two, place):
    """Process 0 had seen its half; the whole is kept in one file at the end."""
    seen = f"35 pictures have been looked at already, by {place}/two/whole.state.1-of-2\n"
    assert seen in two["state"][0].err
    assert [file.name for file in (place / "two").glob("*.state*")] == ["whole.state", "2.state"]


def test_one_process_does_not_go_on_with_parts_of_several(place, measured, mistake):
    line = mistake(*measured, f"{place}/real", "--state", f"{place}/three.state")
    assert "three.state.2-of-3 was begun by 3 processes; each goes on with its own" in line


def test_one_process_finds_finished_what_two_have_measured(two, place, measured, capsys):
    state = f"{place}/two/whole.state"
    assert main([*measured, f"{place}/real", "--state", state]) == 0
    assert f"pictures have been looked at already, by {state}" in capsys.readouterr().err


def test_a_metric_that_fails_in_one_process_has_failed(two, place):
    assert [said.code for said in two["lonely"]] == [1, 1]
    failed, measured = report(place / "two" / "lonely.json")["results"]
    assert failed["error"].startswith("RuntimeError: five (")
    assert measured["n"] == 31


def test_a_picture_that_one_process_cannot_read_is_told(two):
    assert [said.code for said in two["broken"]] == [1, 1]
    assert (
        "1 of 12 pictures cannot be read and are not measured: 1 unreadable (first 05.png"
        in two["broken"][0].out
    )


# ---- words -----------------------------------------------------------------------------------


def test_the_main_process_alone_speaks(two, same):
    for name in [*same, "lonely", "broken"]:
        main_said, other = two[name]
        assert main_said.out or main_said.err, name
        assert (other.out, other.err) == ("", ""), name


def mistakes(said: str) -> list[str]:
    """The lines that are no remarks on prompts."""
    return [line for line in said.splitlines() if not line.startswith("warning: ")]


@pytest.mark.parametrize(
    "name",
    ["steps", "flag", "file", "plugins", "metric", "no model", "no folder", "prompts", "pictures",
     "disk", "begun by 3", "begun by 1"],
)  # fmt: skip
def test_a_mistake_is_one_line_of_one_process(two, failing, place, name):
    speaker, _, message = failing[name]
    assert [said.code for said in two[name]] == [2, 2]
    assert [said.out for said in two[name]] == ["", ""]
    (line,) = mistakes(two[name][speaker].err)
    assert line.startswith(("error: ", "process 1: error: ")[speaker])
    assert message in line
    assert mistakes(two[name][1 - speaker].err) == []
    assert not (place / "nothing").exists()
