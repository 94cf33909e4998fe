"""Proves that grids show every picture above its prompt and seed, and say what they cannot show."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from tinydiffusion.pictures import labels
from tinydiffusion.pictures.fonts import LINE_HEIGHT
from tinydiffusion.pictures.grid import GAP, PROMPT_LINES, grid_columns, list_file, save_grid
from tinydiffusion.pictures.png import to_pil
from tinydiffusion.planning.disk import grid_bytes


def noise(num: int, height: int = 32, width: int = 32, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (num, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.fixture
def draw(tmp_path):
    """Writes a grid of as many pictures as prompts and returns it."""

    def draw(prompts: list[str], images: torch.Tensor | None = None, **options) -> Image.Image:
        images = noise(len(prompts)) if images is None else images
        save_grid(tmp_path / "new" / "grid.png", images, prompts, **options)
        with Image.open(tmp_path / "new" / "grid.png") as grid:
            grid.load()
        return grid

    return draw


@pytest.fixture
def only_ascii(monkeypatch):
    """A machine without a font for anything beyond ASCII."""
    known = labels.face_for
    monkeypatch.setattr(labels, "face_for", lambda c: known(c) if c.isascii() else None)
    labels.wrap.cache_clear()


# ---- pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "channels", "factor"),
    [
        (32, 32, 3, 3), (8, 8, 1, 12), (64, 64, 3, 2), (96, 96, 3, 1), (97, 97, 3, 1),
        (28, 28, 1, 4), (24, 48, 3, 2), (48, 16, 3, 6), (128, 100, 1, 1),
    ],
)  # fmt: skip
def test_pictures_are_enlarged_by_whole_factors(draw, height, width, channels, factor):
    """... to 96 pixels and more, also those that are not square, and are there to the pixel."""
    images = noise(11, height, width, channels)
    grid = draw(["a"] * 11, images, columns=4)
    tile_height = factor * height + GAP // 2 + LINE_HEIGHT
    assert factor * width >= 96
    assert grid.size == (4 * (factor * width + GAP) + GAP, 3 * (tile_height + GAP) + GAP)
    for i, image in enumerate(images):
        row, column = divmod(i, 4)
        left, top = GAP + column * (factor * width + GAP), GAP + row * (tile_height + GAP)
        part = grid.crop((left, top, left + factor * width, top + factor * height))
        small = part.resize((width, height), Image.Resampling.NEAREST)
        assert small.tobytes() == to_pil(image).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("num", "columns"), [(1, 1), (4, 4), (8, 8), (9, 8), (64, 8), (100, 10), (300, 17), (900, 30)]
)
def test_rows_grow_with_the_number_of_pictures(draw, num, columns):
    assert grid_columns(num) == columns
    if num <= 100:
        assert draw(["x"] * num, noise(num, 4, 4)).width == columns * (96 + GAP) + GAP


def test_the_bytes_of_a_grid_are_no_more_than_planned(tmp_path):
    text = (
        "qwjdk xhhgz pmbnv wurty lkahc zzvxm oiert qpwoe fjdks lqpwe mxnbc gheru tiwoq slakd jfhgx"
    )
    for height, width, channels in [(8, 8, 3), (32, 32, 3), (64, 64, 1), (33, 97, 3)]:
        images = noise(16, height, width, channels)
        save_grid(tmp_path / "grid.png", images, [text[i:] for i in range(16)], seed=123456)
        size = (tmp_path / "grid.png").stat().st_size
        assert size <= grid_bytes((channels, height, width), 16) <= 8 * size


# ---- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a red circle", "a rad circle"), ("äöüß", "éèñç"), ("ăđłő", "ąďļœ"), ("ǎȁɐʒ", "ǐȃɔʃ"),
        ("кириллица", "алфавитны"), ("δοκιμή", "γράμμα"), ("ắệỗ", "ằểổ"),
    ],
)  # fmt: skip
def test_other_words_are_another_grid(draw, one, other):
    assert len(one) == len(other)
    assert draw([one]).tobytes() != draw([other]).tobytes()
    assert draw([one]).tobytes() == draw([one]).tobytes()


def test_every_seed_stands_under_its_picture(draw):
    """... and is that of the first picture and the place."""
    images = noise(1).repeat(3, 1, 1, 1)
    tiles = []
    for seed in (5, 6):
        grid = draw(["a"] * 3, images, seed=seed, columns=3)
        tiles.append([grid.crop((GAP + i * 104, 0, i * 104 + 104, grid.height)) for i in range(3)])
    assert len({tile.tobytes() for tile in tiles[0]}) == 3
    same = zip(tiles[0][1:], tiles[1], strict=False)
    assert all(a.tobytes() == b.tobytes() for a, b in same)
    assert grid.height - draw(["a"] * 3, images).height == LINE_HEIGHT


def test_a_long_prompt_leaves_the_grid_its_shape(draw):
    grids = [draw([text]) for text in ("word " * 2000, "w" * 10_000, "one two " * 40)]
    most = 96 + GAP // 2 + PROMPT_LINES * LINE_HEIGHT + 2 * GAP
    assert {grid.size for grid in grids} == {(96 + 2 * GAP, most)}


def test_only_rows_with_long_prompts_are_high(draw):
    short, long = draw(["a"] * 8), draw(["one two three four " * 9] * 8)
    both = draw(["a"] * 8 + ["one two three four " * 9] * 8)
    assert both.height == short.height + long.height - GAP


def test_prompts_and_seed_travel_with_the_grid(draw):
    prompts = ["red\ncircle", "красный 圆", ""]
    with warnings.catch_warnings(record=True):  # of a machine without a Chinese font
        grid = draw(prompts, seed=7)
    assert json.loads(grid.text["prompts"]) == prompts
    assert grid.text["seed"] == "7"
    assert grid.text["Software"] == "tinydiffusion"
    assert "seed" not in draw(["a caption"]).text


# ---- what no font draws ----------------------------------------------------------------------


def test_a_number_and_a_list_stand_for_what_no_font_draws(draw, tmp_path, only_ascii):
    """The same prompt has the same number, that of its place among the different prompts."""
    images = noise(1).repeat(4, 1, 1, 1)
    with pytest.warns(UserWarning, match="2 of 3 texts have letters that no font on this machine"):
        grid = draw(["a circle", "ein\nrötlicher Kreis", "圆", "圆"], images)
    listed = (tmp_path / "new" / "grid.png.txt").read_text(encoding="utf-8").splitlines()
    assert listed[1:] == ["#2 ein rötlicher Kreis", "#3 圆"]
    assert "grid.png" in listed[0]
    assert grid.tobytes() == draw(["a circle", "#2", "#3", "#3"], images).tobytes()


def test_the_list_of_an_earlier_grid_does_not_stay(draw, tmp_path, only_ascii):
    with pytest.warns(UserWarning, match="no font"):
        draw(["圆"])
    assert list_file(tmp_path / "new" / "grid.png").is_file()
    draw(["circle"])
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["grid.png"]


def test_a_file_of_the_user_beside_the_grid_stays(draw, tmp_path):
    file: Path = list_file(tmp_path / "new" / "grid.png")
    file.parent.mkdir()
    file.write_text("my own notes")
    draw(["circle"])
    assert file.read_text() == "my own notes"
