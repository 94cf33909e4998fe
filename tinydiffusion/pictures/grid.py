"""Grids of pictures as one PNG, each picture above its prompt and seed."""

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image, PngImagePlugin
from torch import Tensor

from tinydiffusion.pictures.bidi import is_rtl
from tinydiffusion.pictures.fonts import LINE_HEIGHT
from tinydiffusion.pictures.labels import can_draw, clean, draw_line, wrap
from tinydiffusion.pictures.png import to_pil
from tinydiffusion.runtime.durable import replace_file
from tinydiffusion.runtime.outputs import LIST_SUFFIX, LIST_TITLE, is_list

GAP = 8  # pixels around a tile
MIN_WIDTH = 96  # pixels; a narrower picture is enlarged by a whole factor
MAX_HEIGHT = 480  # pixels; no picture is enlarged beyond this height
MIN_COLUMNS = 8  # fewest columns of a grid with at least as many pictures
PROMPT_LINES = 6  # most lines of a prompt
PROMPT_COLOUR, SEED_COLOUR = "black", "#707070"


def save_grid(
    file: Path,
    images: UInt8[Tensor, "N C H W"],
    prompts: Sequence[str],
    *,
    seed: int | None = None,
    columns: int | None = None,
) -> None:
    """Write pictures as one PNG, row by row, each above its prompt and seed.

    The PNG's text chunks also hold prompts and seed. A prompt that no font on this machine can draw
    is replaced by a number, with a warning and a list of numbers and prompts in `list_file(file)`.

    Args:
        file: Path of the PNG.
        images: At least one picture.
        prompts: One per picture.
        seed: Seed of the first picture; those of the others follow. None writes no seeds.
        columns: Number of pictures per row; None uses `grid_columns`.
    """
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts), start=1)}
    listed = {number: prompt for prompt, number in numbers.items() if not can_draw(clean(prompt))}
    tiles = []
    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        label = f"#{numbers[prompt]}" if numbers[prompt] in listed else clean(prompt)
        tiles.append(_tile(_enlarge(to_pil(image)), label, None if seed is None else seed + i))
    sheet = _sheet(tiles, columns or grid_columns(len(tiles)))
    _save_png(file, sheet, _text_chunks(prompts, seed))
    _save_list(list_file(file), file.name, listed)
    if listed:  # without the file's name, so that a run with many grids warns once
        warnings.warn(
            f"{len(listed)} of {len(numbers)} texts have letters that no font on this machine can "
            "draw: the grid numbers them, and a .txt beside it lists them",
            stacklevel=2,
        )


def grid_columns(num_images: int) -> int:
    """Return the number of pictures per row for a grid that is about square, at least 8 wide."""
    return min(num_images, max(MIN_COLUMNS, round(num_images**0.5)))


def list_file(grid: Path) -> Path:
    """Return the path of the list of texts that a grid shows as numbers; written only if needed."""
    return grid.with_name(f"{grid.name}{LIST_SUFFIX}")


def _enlarge(image: Image.Image) -> Image.Image:
    factor = min(-(-MIN_WIDTH // image.width), 1 + MAX_HEIGHT // image.height)
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)


def _tile(picture: Image.Image, label: str, seed: int | None) -> Image.Image:
    """Put a label under a picture."""
    rtl = is_rtl(label)
    lines = wrap(label, picture.width, PROMPT_LINES)
    drawn = [draw_line(line, picture.width, PROMPT_COLOUR, rtl) for line in lines]
    if seed is not None:
        drawn.append(draw_line(f"seed {seed}", picture.width, SEED_COLOUR, rtl=False))
    top = picture.height + GAP // 2
    tile = Image.new("RGB", (picture.width, top + LINE_HEIGHT * len(drawn)), "white")
    tile.paste(picture, (0, 0))
    for number, line in enumerate(drawn):
        tile.paste(line, (0, top + LINE_HEIGHT * number))
    return tile


def _sheet(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange tiles of one width on white; a row is as high as its highest tile."""
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    width = columns * (tiles[0].width + GAP) + GAP
    sheet = Image.new("RGB", (width, sum(heights) + GAP * (len(rows) + 1)), "white")
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (GAP + column * (tile.width + GAP), top))
        top += height + GAP
    return sheet


def _text_chunks(prompts: Sequence[str], seed: int | None) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Software", "tinydiffusion")
    chunks.add_itxt("prompts", json.dumps(list(prompts), ensure_ascii=False))
    if seed is not None:
        chunks.add_text("seed", str(seed))
    return chunks


def _save_png(file: Path, sheet: Image.Image, chunks: PngImagePlugin.PngInfo) -> None:
    png = io.BytesIO()
    sheet.save(png, "PNG", pnginfo=chunks)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, png.getvalue())


def _save_list(file: Path, grid_name: str, listed: Mapping[int, str]) -> None:
    """Write numbers and prompts; if there are none, remove the list of an earlier grid."""
    if listed:
        lines = [f"#{number} {' '.join(prompt.split())}\n" for number, prompt in listed.items()]
        replace_file(file, f"{LIST_TITLE}{grid_name}:\n{''.join(lines)}".encode())
    elif is_list(file):
        file.unlink()
