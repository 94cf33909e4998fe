"""Pictures on disk: single ones, and grids."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from tinydiffusion.datasets._pictures import DECODE_ERRORS, is_picture_name

GAP = 2  # pixels between the pictures of a grid
LABELLED_WIDTH = 96  # pixels that a small picture of a labelled grid is enlarged to


def to_pil(image: UInt8[Tensor, "C H W"]) -> Image.Image:
    """The picture as a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())


def read_picture(file: Path) -> UInt8[Tensor, "3 H W"]:
    """The pixels of a picture that was written here."""
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def own_sizes(folder: Path) -> set[tuple[int, int]]:
    """(width, height) of the pictures in a folder and below, from their headers.

    Files that are no pictures have none; who loads them says so.
    """
    sizes = set()
    for file in folder.rglob("*"):
        if is_picture_name(file.name) and file.is_file():
            unreadable = contextlib.suppress(*DECODE_ERRORS, Image.DecompressionBombError)
            with unreadable, Image.open(file) as image:
                sizes.add(image.size)
    return sizes


def save_grid(
    file: Path, images: UInt8[Tensor, "N C H W"], prompts: Sequence[str], columns: int, seed: int
) -> None:
    """Write the pictures as one PNG, row by row; prompts and seed travel in its text chunks."""
    num, _, height, width = images.shape
    rows = -(-num // columns)
    size = (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet.paste(to_pil(image), (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    about = PngImagePlugin.PngInfo()
    about.add_itxt("prompts", json.dumps(list(prompts), ensure_ascii=False))
    about.add_text("seed", str(seed))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, pnginfo=about)


def save_labelled_grid(
    file: Path, images: UInt8[Tensor, "N C H W"], prompts: Sequence[str], columns: int = 8
) -> None:
    """Write the pictures as one PNG, enlarged where they are small, each above its prompt."""
    scale = max(1, LABELLED_WIDTH // images.shape[-1])
    width, height = images.shape[-1] * scale, images.shape[-2] * scale
    font = ImageFont.load_default(size=11)
    labels = [_wrap(prompt, width, font) for prompt in prompts]
    line_height = 13
    cell = height + GAP + line_height * max(len(label) for label in labels) + 6
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + 8) + 8, rows * cell + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        row, column = divmod(i, columns)
        left, top = 8 + column * (width + 8), 8 + row * cell
        picture = to_pil(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (left, top))
        for number, line in enumerate(label):
            place = (left, top + height + GAP + number * line_height)
            draw.text(place, line, fill="black", font=font)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)


def _wrap(text: str, width: int, font: Any) -> list[str]:
    """The text in lines no wider than `width` pixels; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
