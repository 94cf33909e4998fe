"""benchmarks/ablations.py: every variant can be run, fails alone, and is compared by seed."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy import stats

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _contrastive as contrastive  # noqa: E402
import ablations  # noqa: E402
from _ablation_table import summary, table  # noqa: E402
from _variants import LADDERS, Variant  # noqa: E402

from tinydiffusion import config as config_file  # noqa: E402
from tinydiffusion.build import build_dataset, build_objective  # noqa: E402
from tinydiffusion.model_folder.opening import open_model  # noqa: E402
from tinydiffusion.run.checks import check_config  # noqa: E402
from tinydiffusion.survey import survey  # noqa: E402
from tinydiffusion.training.data_order import Batches  # noqa: E402
from tinydiffusion.training.learner import Learner  # noqa: E402

TINY = [
    "--dataset.num_scenes=64", "--dataset.size=16", "--text_encoder.width=32",
    "--text_encoder.layers=1", "--network.channels=[32]", "--network.attention_levels=[]",
    "--training.precision=float32",
]  # fmt: skip


def runs(*arguments):
    return ablations._runs(*ablations._options(arguments))


# ---- the variants ----------------------------------------------------------------------------


@pytest.mark.parametrize("ladder", LADDERS)
def test_every_variant_is_a_possible_run_and_another_one(ladder):
    base, *variants = runs(ladder, "--seeds", "0")
    assert base.name == "base"
    assert len(variants) == len(LADDERS[ladder].variants)
    settings = config_file.to_dict(base.config())
    for run in variants:
        check_config(run.config())
        differs = config_file.to_dict(run.config()) != settings
        assert differs, run.name
        assert set(run.config().evaluation.metrics) >= {
            name.partition("@")[0].partition("/")[0] for name in LADDERS[ladder].metrics
        }


def test_every_recipe_has_a_core():
    for name in LADDERS:
        core = runs(name, "--tier", "core", "--seeds", "0")
        assert 8 <= len(core) <= 14
        assert core == runs(name, "--seeds", "0")[: len(core)]  # what tells most comes first


def test_seeds_come_one_after_the_other_and_names_choose():
    chosen = runs("scenes", "--seeds", "3", "4", "--only", "adamw", "batch_64")
    assert [(run.name, run.seed) for run in chosen] == [
        (name, seed) for seed in (3, 4) for name in ("base", "batch_64", "adamw")
    ]
    assert "patch_1" not in {run.name for run in runs("scenes", "--skip", "patch_1")}
    with pytest.raises(SystemExit, match="no variant adam;"):
        runs("scenes", "--only", "adam")


def test_a_run_has_the_time_the_seed_and_the_settings():
    base, adamw = runs(
        "scenes", "--seeds", "3", "--minutes", "2", "--only", "adamw", "--", "--sampling.steps", "7"
    )
    config = adamw.config()
    assert (config.seed, config.training.max_minutes, config.sampling.steps) == (3, 2.0, 7)
    assert config.training.muon_modules == ()
    assert base.config().training.muon_modules
    assert config.training.num_pictures == config.sampling.every == 10**12


def test_training_the_text_encoder_first_is_part_of_the_time():
    _, run = runs("scenes", "--minutes", "3", "--only", "contrastive_60s", "--seeds", "0")
    assert run.config().training.max_minutes == 2
    assert run.command()[1:4] == [
        str(ablations.CONTRASTIVE), "60", "runs/ablations-scenes/contrastive_60s-0/start"
    ]  # fmt: skip
    _, run = runs("scenes", "--minutes", "1", "--only", "contrastive_60s", "--seeds", "0")
    with pytest.raises(SystemExit, match="contrastive_60s: --minutes leaves no time"):
        ablations._check([run])


# ---- the runs --------------------------------------------------------------------------------


class FakeRun(ablations.Run):
    """A process that writes a report, or fails."""

    def command(self):
        folder = self.folder / "run"
        report = {
            "results": [{"name": "scene_accuracy", "value": 0.5},
                        {"name": "pictures_per_second", "value": 9.0}],
            "context": {"pictures_seen": 64, "training_seconds": 7.0,
                        "environment": {"threads": 1}},
        }  # fmt: skip
        script = {
            "good": f"import pathlib; p = pathlib.Path({str(folder)!r}); p.mkdir(); "
            f"(p / 'report.json').write_text({json.dumps(report)!r})",
            "bad": "import sys; sys.exit('error: the loss is nan')",
            "endless": "import time; time.sleep(600)",
        }[self.variant.why]
        return [sys.executable, "-c", script]


def fake(folder, *whys, minutes=1, jobs=1):
    flags = ["--training.max_minutes", str(minutes)]
    config = str(ROOT / "configs/smoke.yaml")
    return [
        FakeRun(why, seed, Variant(why), config, flags, folder / f"{why}-{seed}", None, jobs)
        for seed, why in enumerate(whys)
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failed_run_says_why_and_the_others_go_on(tmp_path, jobs):
    ended = {run.name: why for run, why in ablations.all_ended(fake(tmp_path, "bad", "good"), jobs)}
    assert ended == {"bad": "exit code 1: error: the loss is nan", "good": None}


def test_what_was_run_in_the_same_way_is_kept(tmp_path):
    (run,) = fake(tmp_path, "good")
    assert not run.is_done()
    list(ablations.all_ended([run], 1))
    assert run.is_done()
    assert ablations._numbers(run, ["scene_accuracy", "pixel_fd"]) == {
        "scene_accuracy": 0.5, "pixel_fd": None, "pictures_seen": 64, "pictures_per_second": 9.0,
        "training_seconds": 7.0, "threads": 1,
    }  # fmt: skip
    for other in (*fake(tmp_path, "good", minutes=2), *fake(tmp_path, "good", jobs=2)):
        assert not other.is_done()


def test_a_run_of_other_settings_leaves_nothing_behind(tmp_path):
    for minutes in (1, 2):
        (run,) = fake(tmp_path, "good", minutes=minutes)
        list(ablations.all_ended([run], 1))  # mkdir would fail were the folder there
        assert run.is_done()


def test_the_end_of_the_command_is_that_of_its_runs(tmp_path):
    waiting = fake(tmp_path, "good", "endless")
    ended = ablations.all_ended(waiting, 2)
    assert next(ended)[0].name == "good"
    ended.close()  # as an interrupt does; waits for the process
    assert not waiting[1].is_done()


# ---- what came out ---------------------------------------------------------------------------


def row(*accuracies, why="because"):
    each = [
        {"seed": seed, "failed": "nan"} if value is None
        else {"seed": seed, "acc": value, "pictures_seen": 1000, "pictures_per_second": 9.0}
        for seed, value in enumerate(accuracies)
    ]  # fmt: skip
    return {"why": why, "runs": each}


def test_differences_are_paired_by_seed():
    base, better = [0.1, 0.5, 0.9], [0.2, 0.7, 1.2]
    told = summary({"base": row(*base), "better": row(*better)}, ["acc"])["better"]
    assert told["mean"] == pytest.approx(
        {"acc": 0.7, "pictures_seen": 1000, "pictures_per_second": 9}
    )
    expected = stats.ttest_rel(better, base).confidence_interval(0.95)
    assert told["difference"]["acc"]["ci95"] == pytest.approx(list(expected), rel=1e-3)
    assert told["difference"]["acc"]["mean"] == pytest.approx(0.2)
    assert [*told["difference"]["acc"]["seeds"].values()] == pytest.approx([0.1, 0.2, 0.3])


def test_a_failed_seed_is_left_out_on_both_sides():
    rows = {"base": row(0.1, None, 0.3), "other": row(0.2, 0.9, None), "lost": row(None)}
    told = summary(rows, ["acc"])
    assert told["other"]["difference"]["acc"] == {
        "mean": pytest.approx(0.1), "ci95": None, "seeds": {0: pytest.approx(0.1)}
    }  # fmt: skip
    assert told["lost"]["difference"]["acc"] is told["lost"]["mean"]["acc"] is None


def test_the_table_is_sorted_by_effect_and_names_what_failed():
    rows = {"base": row(0.5, 0.6), "worse": row(0.4, 0.5), "lost": row(None), "good": row(0.7, 0.9)}
    result = {
        "command": "python benchmarks/ablations.py scenes", "metrics": ["acc"], "minutes": 3,
        "seeds": [0, 1], "num_images": 8, "variants": summary(rows, ["acc"]),
    }  # fmt: skip
    lines = table(result).splitlines()
    assert lines[0] == "`python benchmarks/ablations.py scenes`"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert [line[0] for line in cells[2:]] == ["good", "base", "worse", "lost"]
    assert {len(line) for line in cells} == {6}
    assert cells[2][2:4] == ["0.800", "0.700 0.900"]
    assert cells[2][4].startswith("+0.250 (")
    assert cells[5][1] == "because; seed 0 failed: nan"


# ---- the text encoder first ------------------------------------------------------------------


def test_look_alikes_say_something_else_in_the_same_words():
    caption = "on a pink background, a red circle is left of a blue square"
    others = contrastive.look_alikes(caption)
    assert others == [
        "on a pink background, a blue square is left of a red circle",
        "on a pink background, a blue circle is left of a red square",
    ]
    assert all(Counter(other.split()) == Counter(caption.split()) for other in others)
    assert contrastive.look_alikes("a red circle above a blue circle") == [
        "a blue circle above a red circle"
    ]
    assert contrastive.look_alikes("a red circle on a white background") == []
    assert contrastive.look_alikes("a 3D emoji of a red apple") == []


@pytest.fixture
def config():
    return config_file.load(ROOT / "configs/smoke.yaml", TINY)


@pytest.fixture
def objective(config):
    captions, _ = survey(build_dataset(config.dataset))
    return contrastive.ContrastiveObjective(build_objective(config, captions).text_encoder)


def test_the_loss_is_clips_where_nothing_looks_alike(objective):
    image = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    captions = ["a red circle on a white background", "a blue square on a pink background"]
    batch = {"image": image, "caption": captions, "id": ["0", "1"], "position": [0, 1]}
    loss, _ = objective.loss(batch, [])
    normal = torch.nn.functional.normalize
    images = normal(objective.pictures(image / 127.5 - 1), dim=1)
    texts = normal(objective.project(objective.text_encoder.encode(captions).pooled), dim=1)
    same = (images @ texts.T / 0.07).exp()
    shares = [same.diag() / same.sum(dim) for dim in (0, 1)]
    torch.testing.assert_close(loss, -torch.stack(shares).log().mean())


def test_a_look_alike_counts_against_its_own_picture_only():
    owners, negatives = contrastive._negatives(
        ["a red circle on a white background", "a red circle above a blue square"]
    )
    assert negatives == ["a blue square above a red circle", "a blue circle above a red square"]
    assert contrastive._of_others(owners, torch.arange(2)).tolist() == [
        [False, False, True, True],
        [False, False, False, False],
    ]


def test_captions_are_told_apart_after_some_steps(config, objective):
    learner = Learner(objective, learning_rate=3e-3)
    batch = Batches(build_dataset(config.dataset), 16).batch_at(0)
    accuracies = [float(learner.step([batch], 1.0)[0][0]["accuracy"]) for _ in range(40)]
    assert accuracies[0] < 0.5
    assert accuracies[-1] > 0.9


def test_the_model_has_the_trained_text_encoder_and_the_runs_own_network(config, tmp_path):
    told = contrastive.pretrain(config, 0.01, tmp_path / "start")
    assert told["steps"] >= 1
    captions, _ = survey(build_dataset(config.dataset))
    fresh = build_objective(config, captions)
    model = open_model(tmp_path / "start")
    weights = fresh.denoiser.network.state_dict()
    torch.testing.assert_close(model.network.state_dict(), weights, rtol=0, atol=0)
    embedding = fresh.text_encoder.token_embedding.weight
    assert not torch.equal(model.text_encoder.token_embedding.weight, embedding)


# ---- all of it -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_keeps_what_it_has_run(tmp_path):
    folder, file = ("--runs", str(tmp_path / "runs")), tmp_path / "table.md"
    first = _run("scenes", "--quick", *folder, "--markdown", str(file))
    assert [*first["variants"]] == ["base", "adamw"]
    for told in first["variants"].values():
        assert "failed" not in told["runs"][0]
        assert told["mean"]["pixel_fd"] > 0
    assert "| adamw |" in file.read_text()
    assert _run("scenes", "--quick", *folder)["variants"] == first["variants"]


def _run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks/ablations.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)
