"""Proves that any folder can be measured, and that bad input is one line and an exit code."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tinydiffusion import registry
from tinydiffusion.cli.main import main

PIXELS = ["--metrics", "pixel_fd", "--pixel_fd.size", "2"]


def fill(folder, number=12, side=16, seed=0, names="{:03d}.png"):
    """Pictures of random blocks."""
    generator = np.random.default_rng(seed)
    for i in range(number):
        blocks = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        file = folder / names.format(i)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(file)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYDIFFUSION_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folders(tmp_path):
    """Generated and reference pictures."""
    return fill(tmp_path / "made"), fill(tmp_path / "real", seed=1)


@pytest.fixture
def measured(tmp_path, capsys):
    """The rows of a report and what was printed, at an exit code."""

    def measured(target, *flags, code=0):
        out = tmp_path / "report.json"
        out.unlink(missing_ok=True)
        assert main(["evaluate", str(target), *flags, "--out", str(out)]) == code
        return json.loads(out.read_text()), capsys.readouterr()

    return measured


def value(report, name="pixel_fd"):
    return next(row["value"] for row in report["results"] if row["name"] == name)


# ---- what a folder may be --------------------------------------------------------------------


def test_folders_without_captions_are_measured_recursively_in_any_format(folders, measured):
    made, real = folders
    flat, _ = measured(made, *PIXELS, "--data", str(real))
    for i, file in enumerate(sorted(made.iterdir())):
        kind = ("png", "bmp", "tiff", "webp")[i % 4]
        nested = made / f"{i:02d}" / f"deeper.{kind}"
        nested.parent.mkdir()
        Image.open(file).save(nested, **({"lossless": True} if kind == "webp" else {}))
        file.unlink()
    (made / "readme.md").write_text("no picture")
    nested, _ = measured(made, *PIXELS, "--data", str(real))
    assert nested["results"][0]["n"] == 12
    assert value(nested) == value(flat)


def test_the_row_and_the_context_say_what_made_the_number(folders, measured):
    made, real = folders
    report, shown = measured(made, *PIXELS, "--data", str(real))
    (row,) = report["results"]
    assert row["provenance"].keys() >= {
        "extractor", "weights_sha256", "verified", "resize", "antialias", "quantise", "packages"
    }  # fmt: skip
    context = report["context"]
    assert context["options"] == {"pixel_fd": {"size": 2}}
    assert context["prompts_sha256"] is None
    for source in ("generated", "reference"):
        about = context["sources"][source]
        assert (about["n"], about["shape"], about["resize"]) == (12, [3, 16, 16], None)
    shas = {context["sources"][source]["sha256"] for source in ("generated", "reference")}
    assert len(shas) == 2
    assert row["details"]["floor"] is not None
    assert f"{row['details']['floor']:.4g}" in shown.out


def test_grey_and_transparent_pictures_are_converted_and_named(folders, measured):
    made, real = folders
    Image.new("L", (16, 16), 7).save(made / "000.png")
    Image.new("RGBA", (16, 16), (1, 2, 3, 4)).save(made / "001.png")
    grey = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(grey).save(made / "002.tiff")
    report, _ = measured(made, *PIXELS, "--data", str(real))
    warnings = report["results"][0]["warnings"]
    assert any("transparency laid on white" in warning for warning in warnings)
    assert any("scaled to 8" in warning for warning in warnings)


def test_prompts_are_read_where_a_metric_needs_them(folders, measured):
    made, _ = folders
    flags = ["--metrics", "scene_accuracy", *PIXELS[1:], "--data", str(folders[1])]
    report, _ = measured(made, *flags, code=1)
    reasons = {row["name"]: row.get("error") for row in report["results"]}
    assert reasons["pixel_fd"] is None
    assert reasons["scene_accuracy"].startswith("needs a prompt of every picture, 12 of 12")
    rows = [{"file_name": f"{i:03d}.png", "text": "a red circle on a white background"}
            for i in range(12)]  # fmt: skip
    (made / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report, _ = measured(made, "--metrics", "scene_accuracy")
    assert value(report, "scene_accuracy") == 0
    assert report["context"]["prompts"][0] == rows[0]["text"]


def test_training_pictures_are_a_source_too(folders, measured, tmp_path, mistake):
    made, real = folders
    flags = ["--metrics", "copy_rate", "--data", str(real)]
    assert "name them with --train" in mistake("evaluate", str(made), *flags)
    train = fill(tmp_path / "train", 30, seed=2)
    copied = [train / f"{i:03d}.png" for i in range(6)]
    for i, file in enumerate(copied):
        shutil.copy(file, made / f"{i:03d}.png")
    report, _ = measured(made, *flags, "--train", str(train))
    copies = report["results"][0]["per_picture"]
    assert [copies[str(i)] for i in range(6)] == [1.0] * 6
    assert value(report, "copy_rate") < 1
    assert "copy_rate" in report["figures"]
    assert len(report["pictures"]) == 12


# ---- bad input -------------------------------------------------------------------------------


def test_mixed_sizes_are_refused_until_a_resize_is_asked_for(folders, measured, mistake):
    made, real = folders
    Image.new("RGB", (20, 18)).save(made / "005.png")
    flags = [str(made), *PIXELS, "--data", str(real)]
    line = mistake("evaluate", *flags)
    assert line == (
        f"{made} holds pictures of several sizes: 000.png is 16x16, 005.png is 20x18; make them "
        "one with --resize N"
    )
    report, _ = measured(*flags, "--resize", "8")
    assert report["context"]["sources"]["generated"]["resize"].startswith("shorter side to 8")
    assert mistake("evaluate", *flags, "--resize", "5000").startswith(
        "--resize must be in [1, 4096]"
    )


def test_generated_and_reference_pictures_must_be_of_one_size(folders, tmp_path, mistake):
    larger = fill(tmp_path / "larger", side=32)
    line = mistake("evaluate", str(folders[0]), *PIXELS, "--data", str(larger))
    assert line == (
        "the generated pictures are 16x16, those of the reference 32x32; make them one size with "
        "--resize N"
    )


@pytest.mark.parametrize(
    ("number", "message"),
    [(0, "no pictures in"), (1, "holds 1 picture; a metric needs at least 2")],
)
def test_no_picture_and_one_picture_are_refused(tmp_path, folders, mistake, number, message):
    (tmp_path / "few").mkdir()
    few = fill(tmp_path / "few", number)
    assert message in mistake("evaluate", str(few), *PIXELS, "--data", str(folders[1]))
    assert message in mistake("evaluate", str(folders[0]), *PIXELS, "--data", str(few))


def test_corrupt_pictures_are_named_and_counted(folders, measured):
    made, real = folders
    (made / "003.png").write_bytes(b"no picture")
    whole = (made / "004.png").read_bytes()
    (made / "004.png").write_bytes(whole[: len(whole) // 2])
    report, shown = measured(made, *PIXELS, "--data", str(real), code=1)
    (row,) = report["results"]
    assert row["n"] == 10
    (warning,) = [w for w in row["warnings"] if "cannot be read" in w]
    assert "2 of 12 pictures" in warning
    assert "2 unreadable (first 003.png: not a picture of a known format)" in warning
    assert "2 of 12 pictures" in shown.out


def test_missing_weights_skip_a_row_and_tampered_ones_fail_it(folders, measured, tmp_path):
    made, real = folders
    flags = [
        "--metrics",
        "fid",
        *PIXELS[1:],
        "--data",
        str(real),
        "--fid.allow-unverified",
        "false",
    ]
    report, shown = measured(made, *flags, "--fid.weights", str(tmp_path / "nowhere.pth"))
    fid, pixels = report["results"]
    assert fid["value"] is None
    assert fid["skipped"].startswith("there is no weights file")
    assert pixels["value"] > 0
    assert "skipped: fid: there is no weights file" in shown.out
    tampered = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(3)}, tampered)
    report, shown = measured(made, *flags, "--fid.weights", str(tampered), code=1)
    fid, pixels = report["results"]
    assert "the FID Inception has 6726825d" in fid["error"]
    assert pixels["value"] > 0


class Broken:
    """Raises when it is used."""

    needs = ("generated",)

    def update(self, batch):
        raise RuntimeError("something\nodd")

    def state(self):
        return {}

    def load_state(self, state):
        pass

    def compute(self):
        return []

    def provenance(self):
        return {}


class Unbuildable:
    """Cannot be made."""

    def __init__(self):
        raise KeyError("home")


class Nowhere:
    """An extractor whose features are no numbers."""

    dimensions = 4

    def __call__(self, images):
        features = torch.ones(len(images), 4)
        features[0] = float("nan")
        return features

    def spec(self):
        return {"name": "nowhere", "weights_sha256": None, "verified": True, "resize": None}


def test_features_that_are_no_numbers_fail_the_row_and_are_counted(folders, measured):
    made, real = folders
    extractor = ["--vendi.extractor", f"{__name__}:Nowhere"]
    flags = ["--metrics", "vendi", *PIXELS[1:], *extractor, "--data", str(real)]
    report, _ = measured(made, *flags, code=1)
    vendi, pixels = report["results"]
    assert "features of 1 of 12 pictures are NaN or infinite" in vendi["error"]
    assert pixels["value"] > 0


def test_a_broken_plugin_costs_only_its_own_row(folders, measured, tmp_path, monkeypatch):
    (tmp_path / "explosive.py").write_text("raise SystemError('no such luck')")
    monkeypatch.syspath_prepend(tmp_path)
    names = [f"{__name__}:Broken", f"{__name__}:Unbuildable", "explosive:Metric", "pixel_fd"]
    report, _ = measured(
        folders[0], "--metrics", *names, "--data", str(folders[1]), code=1
    )  # fmt: skip
    *failed, pixels = report["results"]
    reasons = [row["error"] for row in failed]
    assert reasons[0].startswith("RuntimeError: something odd (test_evaluate_folder")
    assert reasons[1].startswith("KeyError: 'home' (")
    assert reasons[2] == "cannot load evaluator 'explosive:Metric': no such luck"
    assert [row["value"] for row in failed] == [None] * 3
    assert pixels["value"] > 0


# ---- statistics ------------------------------------------------------------------------------


@pytest.fixture
def statistics(folders, tmp_path):
    """The reference's statistics for pixel_fd."""
    file = tmp_path / "real.npz"
    flags = [str(folders[1]), *PIXELS, "--out", str(file)]
    assert main(["statistics", *flags]) == 0
    return file


def test_statistics_stand_for_the_pictures(folders, measured, statistics):
    made, real = folders
    whole, _ = measured(made, *PIXELS, "--data", str(real))
    known, _ = measured(made, *PIXELS, "--data", str(statistics))
    assert value(known) == value(whole)
    assert known["results"][0]["details"] == whole["results"][0]["details"]
    with np.load(statistics, allow_pickle=False) as arrays:
        features = np.stack([np.asarray(Image.open(f), float) for f in sorted(real.iterdir())])
        features = features.reshape(12, 2, 8, 2, 8, 3).mean((2, 4)).transpose(0, 3, 1, 2) / 255
        features = features.reshape(12, -1)
        np.testing.assert_allclose(arrays["mu"], features.mean(0), rtol=1e-6)
        np.testing.assert_allclose(arrays["sigma"], np.cov(features.T), rtol=1e-5, atol=1e-9)
        assert arrays["n"] == 12


def test_statistics_of_another_extractor_are_refused(folders, measured, statistics):
    made, _ = folders
    flags = ["--metrics", "pixel_fd", "--pixel_fd.size", "4", "--data", str(statistics)]
    report, shown = measured(made, *flags, code=1)
    assert "has statistics with resize area average to 2 x 2" in report["results"][0]["error"]
    assert "error: pixel_fd: StatisticsError" in shown.out


def test_statistics_of_other_programs_have_to_be_assumed(folders, measured, statistics, tmp_path):
    made, real = folders
    whole, _ = measured(made, *PIXELS, "--data", str(real))
    with np.load(statistics) as arrays:
        np.savez(tmp_path / "foreign.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    flags = [*PIXELS, "vendi", "--data", str(tmp_path / "foreign.npz")]
    flags = ["--metrics", "pixel_fd", "vendi", "--pixel_fd.size", "2", *flags[-2:]]
    report, _ = measured(made, *flags, code=1)
    assert "say --assume-extractor pixels" in report["results"][0]["error"]
    report, _ = measured(made, *flags, "--assume-extractor", "pixels", code=1)
    pixels, vendi = report["results"]
    assert pixels["value"] == pytest.approx(value(whole), rel=1e-6)
    assert any("as you say: it does not say extractor" in w for w in pixels["warnings"])
    assert pixels["provenance"]["assumed_extractor"] == "pixels"
    assert "needs reference pictures, not their mean and covariance" in vendi["error"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, "it has no mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, "mu of shape (3,) with sigma of (2, 2)"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "mu or sigma holds NaN or infinity"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, "Object arrays cannot be loaded"),
        (None, "holds no statistics"),
    ],
)
def test_files_that_are_no_statistics_are_refused(folders, tmp_path, mistake, arrays, message):
    file = tmp_path / "odd.npz"
    file.write_bytes(b"odd") if arrays is None else np.savez(file, **arrays)
    assert message in mistake("evaluate", str(folders[0]), *PIXELS, "--data", str(file))


def test_a_reference_is_looked_at_once_and_known_by_its_content(folders, measured, tmp_path):
    made, real = folders
    first, _ = measured(made, *PIXELS, "--data", str(real))
    kept = list((tmp_path / "cache").rglob("evaluation-*"))
    assert len(kept) == 1
    moved = real.rename(tmp_path / "moved")
    again, _ = measured(made, *PIXELS, "--data", str(moved))
    assert value(again) == value(first)
    assert list((tmp_path / "cache").rglob("evaluation-*")) == kept
    fill(moved, seed=5)  # the same names
    other, _ = measured(made, *PIXELS, "--data", str(moved))
    assert value(other) != value(first)
    measured(made, "--metrics", "pixel_fd", "--data", str(moved))  # another extractor
    assert len(list((tmp_path / "cache").rglob("evaluation-*"))) == 3


# ---- the list --------------------------------------------------------------------------------


def test_evaluators_are_listed_with_origin_needs_and_packages(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["evaluators"]) == 0
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines()
             if "│" in line}  # fmt: skip
    for kind in ("evaluator", "feature_extractor"):
        assert lines.keys() >= set(registry.names(kind))
    assert "generated, reference, train" in lines["copy_rate"]
    assert "extractor inception" in lines["fid"]
    assert "torch_fidelity" in lines["inception"].replace("-", "_")
    assert "built-in" in lines["fid"]


def test_one_evaluator_is_told_with_its_options(capsys, mistake):
    assert main(["evaluators", "pixel_fd"]) == 0
    shown = capsys.readouterr().out
    assert "--pixel_fd.size int; default 8" in shown
    assert "needs: generated, reference" in shown
    assert "did you mean 'pixel_fd'" in mistake("evaluators", "pixel_fs")


def test_a_broken_plugin_is_listed_with_the_reason(capsys, monkeypatch):
    from importlib.metadata import EntryPoint

    point = EntryPoint("warped", "no_such_package:Metric", "tinydiffusion.evaluators")
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [point] * ("evalu" in group))
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["evaluators"]) == 1
    shown = capsys.readouterr().out
    assert "no_such_package:Metric" in shown
    assert "broken: cannot load evaluator 'warped': No module named 'no_such_package'" in shown
    assert "pixel_fd" in shown
