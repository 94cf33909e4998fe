"""Proves that `evaluate` reads a folder by the rules of training and says what it leaves out."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from tinydiffusion.cli.main import main
from tinydiffusion.model_folder.opening import open_model
from tinydiffusion.model_folder.saving import save_model
from tinydiffusion.pictures.grid import save_grid
from tinydiffusion.survey import spread

PIXELS = ["--metrics", "pixel_fd", "--pixel_fd.size", "2"]
RETRIEVAL = ["--metrics", "retrieval", "--retrieval.size", "2"]


def fill(folder, number=8, size=(16, 16), seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for i in range(number):
        blocks = generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(blocks).save(folder / f"{i:03d}.png")
    return folder


def list_captions(folder, column, words="picture {}"):
    names = sorted(file.name for file in folder.glob("*.png"))
    rows = [{"file_name": name, column: words.format(i)} for i, name in enumerate(names)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def measured(tmp_path):
    """The report at an exit code."""

    def measured(*flags, code=0):
        out = tmp_path / "report.json"
        out.unlink(missing_ok=True)
        assert main(["evaluate", *map(str, flags), "--out", str(out)]) == code
        return json.loads(out.read_text())

    return measured


@pytest.fixture
def made(tmp_path):
    return fill(tmp_path / "made")


@pytest.fixture
def real(tmp_path):
    return fill(tmp_path / "real", seed=1)


def warnings_of(report, word):
    return [w for w in report["results"][0]["warnings"] if word in w]


# ---- captions --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["id,label\n0,cat\n", "", "file_name;label\n000.png;cat\n"])
def test_metrics_without_captions_measure_all_and_say_what_the_table_is(
    made, real, measured, content
):
    listed = "".join(f"{i:03d}.png;cat\n" for i in range(8))
    content = content.replace("000.png;cat\n", listed)
    (real / "metadata.csv").write_text(content)
    report = measured(made, *PIXELS, "--data", real)
    assert report["context"]["sources"]["reference"]["n"] == 8
    assert warnings_of(report, f"{real}: ")
    assert warnings_of(report, "metadata.csv")


def test_metrics_with_captions_list_the_columns_that_there_are(made, real, measured):
    list_captions(made, "title")
    list_captions(real, "title")
    report = measured(made, *RETRIEVAL, "--data", real, code=1)
    error = report["results"][0]["error"]
    assert "8 of 8" in error
    assert "no 'text'; it has 'file_name', 'title'; --caption-column names another" in error
    report = measured(made, *RETRIEVAL, "--data", real, "--caption-column", "title")
    assert report["context"]["prompts"][0] == "picture 0"


def test_one_folder_may_have_another_column_than_the_other(made, real, measured):
    list_captions(made, "text")
    list_captions(real, "title")
    report = measured(made, *RETRIEVAL, "--data", real, "--caption-column", "title")
    assert warnings_of(report, "no 'title'; it has 'file_name', 'text'; captions are its 'text'")


def test_a_column_that_no_folder_has_is_a_mistake(made, real, mistake):
    list_captions(real, "title")
    flags = [str(made), *PIXELS, "--data", str(real), "--caption-column", "titel"]
    assert mistake("evaluate", *flags) == (
        "--caption-column titel: no metadata has it (did you mean 'title'?); the columns are "
        "'file_name', 'title'"
    )


def test_captions_belong_to_what_is_known_of_a_reference(made, real, measured):
    list_captions(made, "text")
    lines = ["file_name,text,mixed"]
    lines += [f"{i:03d}.png,picture {i},picture {7 - i}" for i in range(8)]
    (real / "metadata.csv").write_text("\n".join(lines))
    for i in range(8):
        (made / f"{i:03d}.png").write_bytes((real / f"{i:03d}.png").read_bytes())
    flags = [made, *RETRIEVAL, "--data", real]
    assert measured(*flags)["results"][0]["value"] == 1
    assert measured(*flags, "--caption-column", "mixed")["results"][0]["value"] < 1


def test_what_is_known_of_a_reference_names_no_other_folder(made, real, measured, tmp_path):
    list_captions(real, "title")
    assert warnings_of(measured(made, *PIXELS, "--data", real), f"{real}: ")
    Image.open(real / "000.png").convert("RGBA").save(real / "000.png")
    measured(made, *PIXELS, "--data", real)
    moved = real.rename(tmp_path / "moved")
    (moved / "metadata.jsonl").unlink()
    report = measured(made, *PIXELS, "--data", moved)
    assert not warnings_of(report, "title")
    assert warnings_of(report, "1 reference pictures: transparency laid on white")


@pytest.fixture
def model_of(untrained, tmp_path):
    """The untrained model as if its training set had been a folder with these options."""

    def model_of(**options):
        opened = open_model(Path(untrained))
        dataset = {"name": "folder", **options}
        config = dataclasses.replace(opened.config, dataset=dataset, validation=None)
        save_model(tmp_path / "model", opened._replace(config=config))
        return tmp_path / "model"

    return model_of


def test_a_model_reads_a_folder_by_its_own_column_and_says_so(model_of, real, measured, mistake):
    list_captions(real, "title")
    flags = [*PIXELS, "--data", str(real), "--num-images", "4"]
    report = measured(model_of(caption_column="title"), *flags)
    assert set(report["context"]["prompts"]) <= {f"picture {i}" for i in range(8)}
    assert not warnings_of(report, "captions are its")
    list_captions(real, "text")
    report = measured(model_of(caption_column="title"), *flags)
    assert warnings_of(report, "no 'title'; it has 'file_name', 'text'; captions are its 'text'")
    list_captions(real, "label")
    line = mistake("evaluate", str(model_of(caption_column="title")), *flags)
    assert "it has 'file_name', 'label'" in line
    assert "--caption-column names another column" in line


def test_a_model_of_class_folders_reads_a_folder_so(model_of, tmp_path, measured, mistake):
    for name in ("cats", "big_dogs"):
        fill(tmp_path / "classes" / name, 3)
    flags = [*PIXELS, "--data", str(tmp_path / "classes"), "--num-images", "4"]
    assert "no captions in" in mistake("evaluate", str(model_of()), *flags)
    report = measured(model_of(captions="folder"), *flags)
    assert set(report["context"]["prompts"]) == {"cats", "big dogs"}
    assert warnings_of(report, "prompts are the names of its sub-folders")


# ---- which pictures --------------------------------------------------------------------------


def test_a_number_of_images_is_spread_over_the_folder(made, real, measured):
    list_captions(made, "text")
    report = measured(made, *PIXELS, "--data", real, "--num-images", "4")
    assert report["context"]["prompts"] == [f"picture {i}" for i in spread(8, 4)]
    assert report["context"]["prompts"] != [f"picture {i}" for i in range(4)]
    assert warnings_of(report, f"{made}: 4 of 8 pictures, spread over the folder")
    assert not warnings_of(measured(made, *PIXELS, "--data", real), "spread")


def test_grids_are_left_out_by_what_is_written_in_them(made, real, measured, mistake):
    images = torch.zeros(4, 3, 7, 7, dtype=torch.uint8)
    save_grid(made / "grid.png", images, ["a"] * 4, seed=0)
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", "tinydiffusion")
    Image.new("RGB", (90, 90)).save(made / "sheet.png", pnginfo=about)
    other = PngImagePlugin.PngInfo()
    other.add_text("prompts", "of another program")
    Image.new("RGB", (16, 16)).save(made / "x.png", pnginfo=other)
    report = measured(made, *PIXELS, "--data", real)
    assert report["context"]["sources"]["generated"]["n"] == 9
    left_out = "left out: 2 grid of pictures (first grid.png: drawn by tinydiffusion)"
    assert warnings_of(report, left_out)
    for file in made.glob("0*.png"):
        file.unlink()
    assert left_out in mistake("evaluate", str(made), *PIXELS, "--data", str(real))


@pytest.mark.parametrize("mark", ["metrics.jsonl", "checkpoints"])
def test_the_folder_of_a_run_is_refused_with_its_model(made, real, mistake, mark):
    (made / "config.yaml").touch()
    (made / mark).mkdir()
    flags = ["evaluate", str(real), *PIXELS, "--data", str(made)]
    assert "the folder of a run, not of pictures to measure; it has no finished" in mistake(*flags)
    (made / "model").mkdir()
    assert mistake(*flags).endswith(f"its model is {made / 'model'}")


def test_sizes_are_those_of_the_upright_pictures(tmp_path, measured, mistake):
    made, real = fill(tmp_path / "made", size=(16, 12)), fill(tmp_path / "real", size=(16, 12))
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(4):
        Image.open(made / f"{i:03d}.png").transpose(Image.Transpose.ROTATE_90).save(
            made / f"{i:03d}.png", exif=exif
        )
    report = measured(made, *PIXELS, "--data", real)
    assert report["results"][0]["value"] == pytest.approx(0, abs=1e-9)
    assert report["context"]["sources"]["generated"]["shape"] == [3, 12, 16]
    Image.new("RGB", (16, 12)).save(made / "007.png", exif=exif)
    line = mistake("evaluate", str(made), *PIXELS, "--data", str(real))
    assert "007.png is 12x16, 000.png is 16x12" in line


def test_pictures_that_are_not_listed_are_left_out_and_named(made, real, measured):
    list_captions(made, "text")
    Image.new("RGB", (99, 99)).save(made / "a.png")
    report = measured(made, *PIXELS, "--data", real)
    assert warnings_of(report, f"{made}: left out: 1 not listed in metadata.jsonl (first a.png)")


def test_class_folders_are_captions_where_asked_for(tmp_path, capsys):
    for i in range(6):
        folder = tmp_path / "set" / ("red_cats" if i < 3 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * i, 9, 99)).save(folder / f"{i}.png")
    flags = ["--data", str(tmp_path / "set"), "--metrics", "retrieval"]
    out = tmp_path / "r.json"
    command = ["evaluate", str(tmp_path / "set"), *flags, "--out", str(out)]
    assert main(command) == 1
    assert "--captions folder takes sub-folders" in capsys.readouterr().out
    assert main([*command, "--captions", "folder"]) == 0
    assert json.loads(out.read_text())["context"]["prompts"] == ["dogs"] * 3 + ["red cats"] * 3


def test_unfinished_samples_are_no_set(tmp_path, mistake):
    for i in range(3):
        Image.new("RGB", (8, 8), (40 * i, 9, 99)).save(tmp_path / f"{i:05d}.png")
    (tmp_path / ".unfinished.jsonl").write_text("")
    for command in (["evaluate", str(tmp_path), "--metrics", "vendi"], ["data", str(tmp_path)]):
        if command[0] == "evaluate":
            command += ["--data", str(tmp_path)]
        assert "holds samples that are not finished" in mistake(*command)
