"""Pictures on disk: a folder of samples that is itself a data set, and grids."""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from tinydiffusion.datasets._pictures import DECODE_ERRORS, is_picture_name
from tinydiffusion.durable import replace_file

METADATA, UNFINISHED = "metadata.jsonl", ".unfinished.jsonl"
NAME = re.compile(r"\d{5}\.png")
MAX_SAMPLES = 100_000
"""In one folder: the names of more would not sort."""

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


def sample_file(folder: Path, i: int) -> Path:
    """Where sample i lies; no prompt has a say in it."""
    return folder / _name(i)


def kept_samples(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Number -> sha256 of the wanted samples that an earlier call has left, whole and unchanged.

    Args:
        folder: Where they may lie.
        rows: What the samples must be, as for `save_samples`.

    Raises:
        ValueError: the folder's metadata.jsonl is not of samples; it would be overwritten.
    """
    kept = {}
    for name, row in _earlier_rows(folder).items():
        number, sha256 = int(Path(name).stem), row.get("sha256")
        if number < len(rows) and row == _row(name, rows[number], sha256):
            file = folder / name
            if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256:
                kept[number] = sha256
    return kept


def save_samples(
    folder: Path,
    images: Iterable[UInt8[Tensor, "C H W"]],
    rows: Sequence[Mapping[str, Any]],
    kept: Mapping[int, str] | None = None,
) -> None:
    """Write 00000.png … and metadata.jsonl (imagefolder convention), one row per picture.

    Pictures are written as they come. A call that was cut short leaves what `kept_samples` finds;
    files of other samples are deleted when the first picture is there.

    Args:
        folder: Made if need be.
        images: Those that are not kept, in order.
        rows: One per picture, kept ones too; `file_name` and `sha256` are added.
        kept: See `kept_samples`.
    """
    digests = dict(kept or {})
    images = iter(images)
    first = list(islice(images, 1))  # what is wrong with the settings shows before files go
    _begin(folder, rows, digests)
    missing = (i for i in range(len(rows)) if i not in digests)
    with (folder / UNFINISHED).open("a", encoding="utf-8") as unfinished:
        for i, image in zip(list(missing), chain(first, images), strict=True):
            data = _png(image)
            digests[i] = hashlib.sha256(data).hexdigest()
            unfinished.write(_line(i, rows, digests))
            unfinished.flush()  # known before it is there, so that no file is ever nobody's
            sample_file(folder, i).write_bytes(data)
    lines = "".join(_line(i, rows, digests) for i in range(len(rows)))
    replace_file(folder / METADATA, lines.encode())
    (folder / UNFINISHED).unlink()


def _begin(folder: Path, rows: Sequence[Mapping[str, Any]], kept: Mapping[int, str]) -> None:
    """Leave in the folder the kept samples and their rows."""
    names = {_name(i) for i in kept}
    for name in _earlier_rows(folder).keys() - names:
        (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(_line(i, rows, kept) for i in kept)
    replace_file(folder / UNFINISHED, lines.encode())
    (folder / METADATA).unlink(missing_ok=True)


def _earlier_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """File name -> row of the samples in a folder, finished or not."""
    refusal = f"{folder} holds captioned pictures that are no samples; take another folder"
    try:
        rows = _read_rows(folder / METADATA)
    except (ValueError, RecursionError) as error:
        raise ValueError(refusal) from error
    if not all(isinstance(row, dict) and "sampler" in row for row in rows):
        raise ValueError(refusal)
    rows += _read_rows(folder / UNFINISHED, torn=True)
    named = {str(row.get("file_name")): row for row in rows if isinstance(row, dict)}
    return {name: row for name, row in named.items() if NAME.fullmatch(name)}


def _read_rows(file: Path, *, torn: bool = False) -> list[Any]:
    """The rows of a file, if there is one; a `torn` one may end in the middle of a row."""
    if not file.exists():
        return []
    lines = [line for line in file.read_bytes().split(b"\n") if line.strip()]
    rows = []
    with contextlib.suppress(ValueError, RecursionError) if torn else contextlib.nullcontext():
        for line in lines:
            rows.append(json.loads(line))
    return rows


def _row(name: str, row: Mapping[str, Any], sha256: str | None) -> dict[str, Any]:
    return {"file_name": name, **row, "sha256": sha256}


def _line(i: int, rows: Sequence[Mapping[str, Any]], digests: Mapping[int, str]) -> str:
    return json.dumps(_row(_name(i), rows[i], digests[i]), ensure_ascii=False) + "\n"


def _name(i: int) -> str:
    return f"{i:05d}.png"


def _png(image: UInt8[Tensor, "C H W"]) -> bytes:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG")
    return buffer.getvalue()


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
