"""Proves what `sample` writes: pictures that depend on prompt and seed alone, and how they came."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tinydiffusion.build import build_dataset
from tinydiffusion.cli.main import main
from tinydiffusion.pictures.fonts import LINE_HEIGHT
from tinydiffusion.pictures.grid import GAP, save_grid
from tinydiffusion.pictures.png import read_picture

PROMPTS = ["a red circle", "two blue squares", "a yellow star on a white background"]


@pytest.fixture
def sample(model, tmp_path):
    """Samples into a new folder and returns it."""

    def sample(*arguments: str, name: str = "out") -> Path:
        out = tmp_path / name
        assert main(["sample", model, *arguments, "--out", str(out)]) == 0
        return out

    return sample


def pictures(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}


def rows(folder: Path) -> list[dict]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# ---- what is written -------------------------------------------------------------------------


def test_pictures_and_how_they_came(sample, model):
    out = sample(*PROMPTS, "--num-images", "2", "--seed", "5", "--steps", "3")
    assert sorted(file.name for file in out.glob("[!.]*")) == [
        *(f"{i:05d}.png" for i in range(6)), "metadata.jsonl"
    ]  # fmt: skip
    assert rows(out) == [
        {
            "file_name": f"{i:05d}.png",
            "text": PROMPTS[i // 2],
            "seed": 5 + i,
            "negative_prompt": "",
            "sampler": "euler",
            "sampler_options": {},
            "steps": 3,
            "spacing": "trailing",
            "guidance_scale": 2.0,
            "guidance_rescale": 0.0,
            "guidance_interval": None,
            "model_sha256": sha256(Path(model) / "model_index.json"),
            "precision": rows(out)[0]["precision"],
            "device": "cpu",
            "sha256": sha256(out / f"{i:05d}.png"),
        }
        for i in range(6)
    ]
    for file in out.glob("*.png"):
        with Image.open(file) as image:
            assert (image.mode, image.size) == ("RGB", (16, 16))
    assert len(set(pictures(out).values())) == 6


def test_every_option_is_recorded_and_changes_the_pictures(sample):
    plain = sample(PROMPTS[0], "--precision", "float32")
    seen = [pictures(plain)]
    for number, (flags, recorded) in enumerate(
        [
            (["--seed", "1"], {"seed": 1}),
            (["--sampler", "heun", "--steps", "3"], {"sampler": "heun", "steps": 3}),
            (["--sampler", "ddim", "--sampler.eta", "0.5"], {"sampler_options": {"eta": 0.5}}),
            (["--sampler", "ddim", "--sampler.eta=1e-1"], {"sampler_options": {"eta": 0.1}}),
            (["--steps", "4"], {"steps": 4}),
            (["--spacing", "karras"], {"spacing": "karras"}),
            (["--guidance-scale", "5"], {"guidance_scale": 5.0}),
            (["--guidance-rescale", "0.7"], {"guidance_rescale": 0.7}),
            (["--guidance-interval", "0.5", "3"], {"guidance_interval": [0.5, 3.0]}),
            (["--negative-prompt", "a dog"], {"negative_prompt": "a dog"}),
            (["--precision", "bfloat16"], {"precision": "bfloat16"}),
        ]
    ):
        out = sample(PROMPTS[0], "--precision", "float32", *flags, name=str(number))
        (row,) = rows(out)
        same = {"sampler": row["sampler"], "sha256": row["sha256"]}
        assert row == {**rows(plain)[0], **same, **recorded}
        assert pictures(out) not in seen, flags
        seen.append(pictures(out))


def test_a_negative_prompt_without_effect_is_not_recorded(sample):
    flags = [PROMPTS[0], "--guidance-scale", "1"]
    with_it = sample(*flags, "--negative-prompt", "a dog", name="with")
    assert pictures(with_it) == pictures(sample(*flags, name="without"))
    assert rows(with_it)[0]["negative_prompt"] == ""


def test_what_has_no_effect_and_unknown_words_are_one_line_each(sample, capsys):
    flags = ["--guidance-scale", "1", "--negative-prompt", "ugly", "--batch-size", "1"]
    sample("a red dog", "a blue dog", *flags)
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: the negative prompt has no effect: ")
    assert second == 'warning: "dog", "ugly" never occur in the training captions'
    assert last.startswith("2 pictures in ")


def test_the_words_of_the_captions_are_kept_for_a_resumed_run_and_in_the_model(finished):
    for file in ("text_encoder.json", "model/text_encoder/config.json"):
        kept = json.loads((finished / file).read_text())
        assert {"red", "circle", "background"} <= set(kept["words"])
        assert kept["all_words"]


def test_a_folder_of_samples_is_a_data_set(sample):
    out = sample(*PROMPTS)
    dataset = build_dataset({"name": "folder", "path": str(out), "size": 16})
    assert [example["caption"] for example in map(dataset.__getitem__, range(3))] == PROMPTS


def test_samples_of_an_earlier_call_make_room(sample):
    sample(PROMPTS[0], "--num-images", "5")
    out = sample(PROMPTS[1], "--num-images", "2")
    assert list(pictures(out)) == ["00000.png", "00001.png"]
    assert {row["text"] for row in rows(out)} == {PROMPTS[1]}


def test_a_training_set_is_not_overwritten(model, tmp_path, mistake):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "00000.png", "text": "mine"}\n')
    (tmp_path / "00000.png").write_bytes(b"mine")
    line = mistake("sample", model, PROMPTS[0], "--out", str(tmp_path))
    assert line.startswith(f"{tmp_path} holds files that tinydiffusion did not make (00000.png")
    assert (tmp_path / "00000.png").read_bytes() == b"mine"


def test_prompts_may_stand_anywhere(sample):
    before = sample("--seed", "3", *PROMPTS[:2], name="before")
    between = sample(PROMPTS[0], "--seed", "3", PROMPTS[1], name="between")
    assert pictures(before) == pictures(between)


# ---- seeds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddpm", "euler"])
def test_the_batch_size_changes_no_byte(sample, sampler):
    flags = ["a red circle left of a blue square", "--num-images", "8", "--sampler", sampler]
    one = sample(*flags, "--batch-size", "1", name="one")
    eight = sample(*flags, "--batch-size", "8", name="eight")
    three = sample(*flags, "--batch-size", "3", name="three")
    assert len(pictures(one)) == 8
    assert pictures(one) == pictures(eight) == pictures(three)


def test_picture_i_has_seed_plus_i(sample):
    together = pictures(sample(PROMPTS[0], "--num-images", "3", name="together"))
    alone = pictures(sample(PROMPTS[0], "--seed", "2", name="alone"))
    assert alone["00000.png"] == together["00002.png"]


# ---- prompts from a file, grids --------------------------------------------------------------


def test_prompts_of_a_file(sample, tmp_path):
    """One a line; empty lines and a byte order mark are no prompts, and odd characters stay."""
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa red circle\n\n  \nein rötlicher Kreis 🙂\r\n", encoding="utf-8")
    out = sample("first", "--prompts", str(file))
    assert [row["text"] for row in rows(out)] == ["first", "a red circle", "ein rötlicher Kreis 🙂"]


@pytest.mark.parametrize(
    ("arguments", "columns", "lines"),
    [
        ([PROMPTS[0], "--num-images", "3"], 3, 1),
        ([PROMPTS[0], "--num-images", "9"], 8, 2),
        ([*PROMPTS, "--num-images", "2"], 2, 3),
        ([*PROMPTS[:2], "--num-images", "17"], 8, 5),
    ],
)
def test_a_grid_has_a_row_for_each_prompt(sample, tmp_path, arguments, columns, lines):
    """... and holds the very pictures that are written, above prompt and seed."""
    file = tmp_path / "new" / "grid.png"
    out = sample(*arguments, "--grid", str(file), "--seed", "3")
    about = rows(out)
    pictures = torch.stack([read_picture(out / row["file_name"]) for row in about])
    texts = [row["text"] for row in about]
    save_grid(tmp_path / "same.png", pictures, texts, seed=3, columns=columns)
    assert file.read_bytes() == (tmp_path / "same.png").read_bytes()
    with Image.open(file) as grid:
        assert grid.width == columns * (96 + GAP) + GAP
        assert grid.height > lines * (96 + 2 * LINE_HEIGHT)
        assert json.loads(grid.text["prompts"]) == texts


def test_a_grid_says_what_it_cannot_show(sample, tmp_path, capsys):
    """... in one line, and lists it."""
    file = tmp_path / "grid.png"
    sample(PROMPTS[0], "a circle \ue000", "--num-images", "2", "--grid", str(file))
    assert capsys.readouterr().err.count("1 of 2 texts have letters that no font") == 1
    listed = (tmp_path / "grid.png.txt").read_text(encoding="utf-8").splitlines()
    assert listed[1:] == ["#2 a circle \ue000"]


def test_several_prompts_with_one_picture_each_fill_rows(sample, tmp_path):
    file = tmp_path / "grid.png"
    sample(*PROMPTS, "--grid", str(file))
    with Image.open(file) as grid:
        assert grid.width > grid.height


def test_long_prompts_are_reported(sample, capsys):
    sample(PROMPTS[0], "red " * 100)
    assert "1 of 2 prompts are longer than" in capsys.readouterr().err


# ---- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt; give one or more after the model, or --prompts FILE"),
        (["a", "--prompts", "nope.txt"], "--prompts nope.txt: there is no such file"),
        (["a", "--num-images", "0"], "argument --num-images: must be at least 1, got 0"),
        (["a", "--num-images", "two"], "argument --num-images: invalid"),
        (["a", "--batch-size", "0"], "argument --batch-size: must be at least 1, got 0"),
        (["a", "--seed", "-1"], "seed"),
        (["a", "--sampler", "eulr"], "unknown sampler 'eulr' (did you mean 'euler'?); there are"),
        (["a", "--sampler", "diffusers"], "sampler 'diffusers' needs the option 'scheduler'"),
        (["a", "--sampler.eta", "1"], "sampler 'euler' has no option 'eta'"),
        (["a", "--sampler", "ddim", "--sampler.eta", "x"], "must be float, got 'x'"),
        (["a", "--sampler", "ddim", "--sampler.eta", "[1"], "--sampler.eta:1:"),
        (["a", "--sampler.eta"], "--sampler.eta has no value"),
        (["a", "--sampling.steps", "3"], "unknown arguments for 'sampling'"),
        (["a", "--steps", "0"], "num_inference_steps must be in [1, 1000]"),
        (["a", "--spacing", "trailin"], "unknown spacing 'trailin' (did you mean 'trailing'?)"),
        (["a", "--guidance-rescale", "2"], "guidance_rescale must be in [0, 1], got 2.0"),
        (["a", "--guidance-interval", "3", "1"], "0 <= low < high <= 10000, got 3 and 1; 0 and"),
        (["a", "--guidance-interval", "-1", "1"], "0 <= low < high <= 10000, got -1 and 1"),
        (["--guidance-interval", "1"], "argument --guidance-interval: expected 2 arguments"),
        (["a", "--guidance-interval", "1", "x"], "argument --guidance-interval: invalid float"),
        (["a", "--guidence-scale", "2"], "unrecognized arguments: --guidence-scale"),
        (["a", "--guidance", "2"], "unrecognized arguments: --guidance"),
        (["a", "--device", "gpu"], "'gpu' is not available"),
        (["a", "--precision", "float16"], "invalid choice: 'float16'"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(model, tmp_path, mistake, arguments, message):
    out = tmp_path / "out"
    assert message in mistake("sample", model, *arguments, "--out", str(out))
    assert not out.exists()


def test_int8_where_there_is_none_is_one_line(model, tmp_path, mistake, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    said = mistake("sample", model, "a", "--precision", "int8", "--out", str(tmp_path / "out"))
    assert "precision must be auto, float32 or bfloat16 here, got int8: this CPU has no" in said


def test_a_folder_that_is_no_model_is_named(tmp_path, mistake):
    assert str(tmp_path / "model_index.json") in mistake("sample", str(tmp_path), "a")


def test_prompts_that_are_no_text_are_named(model, tmp_path, mistake):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xff\xfe\x00")
    assert mistake("sample", model, "--prompts", str(file)).startswith(f"--prompts {file}: not a")
