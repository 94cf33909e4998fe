"""The sample grids of a run as a film: frames in the order of training, small enough for a page."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tinydiffusion.pictures.decode import DECODE_ERRORS, quiet

SAMPLES = "samples"
MAX_FRAMES = 24
MAX_SIDE = 960  # pixels
QUALITY = 85  # of JPEG: some 50 kB a frame of 32 pictures of 64 pixels
UNREADABLE = (*DECODE_ERRORS, Image.DecompressionBombError)


class Frame(NamedTuple):
    """A grid as JPEG in base64, and when it was drawn."""

    when: str
    jpeg: str


class Film(NamedTuple):
    """The frames of a run, the prompts of their pictures where these are known, and notes."""

    frames: list[Frame]
    prompts: list[str]
    notes: list[str]


def film_of(run: Path) -> Film:
    """Read the sample grids of a run, and note which are missing or left out."""
    files = sorted((run / SAMPLES).glob("*.png"))
    files = [file for file in files if file.stem.isdecimal()]
    if not files:
        return Film([], [], [f"{run} has no sample grids: {run / SAMPLES} holds none"])
    chosen = _evenly(files, MAX_FRAMES)
    frames, prompts, broken = [], [], []
    for file in chosen:
        try:
            with quiet(), Image.open(file) as image:
                frames.append(Frame(f"{int(file.stem):,} pictures", _jpeg(image)))
                prompts = _prompts(image)
        except UNREADABLE as error:
            broken.append(f"{file} cannot be read: {error}")
    return Film(frames, prompts, [*_shown(len(frames), len(files)), *broken])


def _shown(shown: int, found: int) -> list[str]:
    chosen = f"{shown} of the run's {found} grids, evenly chosen" if found > shown else ""
    return [f"The same prompts and seeds each time. {chosen}".strip()] if shown else []


def _evenly(files: Sequence[Path], number: int) -> list[Path]:
    """Choose at most `number` of the files, evenly, the first and the last included."""
    if len(files) <= number:
        return list(files)
    return [files[round(i * (len(files) - 1) / (number - 1))] for i in range(number)]


def _jpeg(image: Image.Image) -> str:
    picture = image.convert("RGB")
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    # Full colour resolution: the pictures may be few pixels wide.
    picture.save(content, format="JPEG", quality=QUALITY, subsampling=0)
    return base64.b64encode(content.getvalue()).decode()


def _prompts(image: Image.Image) -> list[str]:
    """Read the prompts from the grid's PNG file, if it holds any."""
    try:
        prompts = json.loads(str(image.info.get("prompts", "[]")))
    except ValueError:
        return []
    return [str(prompt) for prompt in prompts] if isinstance(prompts, list) else []
