"""`train` by two processes: a model of each size, shared or sharded, is that of one process."""

import json

import pytest
from process_toys import ROOT, run_together
from safetensors.torch import load_file
from torch.testing import assert_close

from tinydiffusion.cli import main as cli_main

pytestmark = pytest.mark.xdist_group("train by several processes")  # `runs` once
SIZES = ("smoke", "quickstart", "emoji")
SHORT = [
    "--validation", "null", "--dataset.name", "scenes", "--dataset.num_scenes", "40",
    "--training.num_pictures", "16", "--training.batch_size", "4", "--training.warmup_pictures",
    "4", "--sampling.num_prompts", "1", "--sampling.steps", "2", "--sampling.prompts", "[]",
    "--evaluation.metrics", "[]", "--training.precision", "float32", "--training.device", "cpu",
]  # fmt: skip


def train(size, run_dir, *more):
    config = str(ROOT / "configs" / f"{size}.yaml")
    return ["train", "--config", config, "--run-dir", str(run_dir), *SHORT, *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    sharded = ["--training.strategy", "fsdp"]
    commands = [train(size, root / size, *sharded) for size in SIZES]
    commands += [
        train("smoke", root / "shared"),
        train("smoke", root / "odd", "--training.batch_size", "5"),
        train("smoke", root / "shared"),
    ]
    said = run_together(2, commands, tmp_path_factory.mktemp("said"))
    return root, dict(zip([*SIZES, "shared", "odd", "again"], said, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_a_model_of_each_size_trained_by_fsdp_makes_pictures_in_one_process(runs, size, tmp_path):
    root, said = runs
    assert [each.code for each in said[size]] == [0, 0], said[size]
    model = str(root / size / "model")
    assert cli_main.main(["sample", model, "a red circle", "--steps=2", f"--out={tmp_path}"]) == 0
    assert (tmp_path / "00000.png").exists()


@pytest.mark.parametrize("name", ["smoke", "shared"])
def test_the_model_is_that_of_one_process(runs, name, tmp_path):
    root, said = runs
    assert [each.code for each in said[name]] == [0, 0], said[name]
    assert cli_main.main(train("smoke", tmp_path)) == 0
    for file in tmp_path.glob("model/*/*.safetensors"):
        other = root / name / file.relative_to(tmp_path)
        # Not 1e-6, as in tests/training: Adam's first steps are as large for a tiny gradient.
        assert_close(load_file(other), load_file(file), atol=1e-5, rtol=0)
    rows = [json.loads(line) for line in (root / name / "metrics.jsonl").open()]
    assert [row["pictures_seen"] for row in rows if "loss" in row] == [16]


def test_the_main_process_alone_speaks(runs):
    _, said = runs
    main, other = said["shared"]
    assert "2 processes (ddp), 2 pictures each at a time" in main.err
    assert (other.out, other.err) == ("", "")
    assert "shared is complete" in said["again"][0].err


def test_a_batch_that_cannot_be_shared_is_refused(runs):
    root, said = runs
    assert [each.code for each in said["odd"]] == [2, 2]
    assert "batch_size 5 cannot be shared equally by 2 processes" in said["odd"][0].err
    assert not (root / "odd").exists()
