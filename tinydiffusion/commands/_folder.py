"""The pictures of any folder, with captions or without, decoded as they are needed."""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tinydiffusion.commands._shards import MANIFEST
from tinydiffusion.commands._sources import eval_batch
from tinydiffusion.config import ConfigError
from tinydiffusion.datasets._captions import METADATA_NAMES, read_caption, read_metadata
from tinydiffusion.datasets._colours import UnusablePictureError
from tinydiffusion.datasets._pictures import (
    DECODE_ERRORS,
    fit_to,
    is_picture_name,
    load_picture,
    quiet,
)
from tinydiffusion.datasets._views import view_of
from tinydiffusion.datasets.folder import SIDECARS
from tinydiffusion.protocols import EvalBatch

MIN_PICTURES = 2
MAX_RESIZE = 4096
WORKERS = 2  # threads that decode
UNSET = (0, 0)


class File(NamedTuple):
    """A picture file as it was found."""

    name: str  # relative to the folder, with forward slashes
    sha256: str
    size: tuple[int, int]  # width and height by its header; UNSET where it has none


class FolderPictures:
    """The pictures of a folder and its sub-folders, numbered in the order of their names.

    Where `metadata.jsonl` or `metadata.csv` lists the pictures, these are the pictures, and their
    `text` the prompts; else all of them are, a `.txt` file beside one being its prompt. Colours are
    those of the `folder` data set: sRGB, transparency on white, more than 8 bits scaled.

    Args:
        source: See `protocols.SOURCES`.
        folder: Where they lie.
        resize: Side of a square, or height and width, that pictures are resized and cropped to;
            None = as they are.
        limit: Take the first so many; None takes all.
        console: For the progress bar.

    Raises:
        ConfigError: no such folder, fewer than two readable pictures, or sizes differ and `resize`
            is None.
    """

    block = 1

    def __init__(
        self,
        source: str,
        folder: Path,
        *,
        resize: int | Sequence[int] | None = None,
        limit: int | None = None,
        console: Console,
    ) -> None:
        self.resize = None if resize is None else view_of(resize).size
        if self.resize is not None and max(self.resize) > MAX_RESIZE:
            raise ConfigError(f"--resize must be in [1, {MAX_RESIZE}], got {resize}")
        self.source, self.folder = source, folder
        captions, self.unlisted = _find(folder)
        names = sorted(captions)[:limit]
        files = track(names, f"checking {source}", console=console, disable=not console.is_terminal)
        self.files = [_look_at(folder, name) for name in files]
        self.prompts: Sequence[str] = [captions[name] for name in names]
        self.unreadable: dict[str, str] = {}
        self.notes: dict[str, int] = {}
        self.sizes = {file.size: file.name for file in reversed(self.files) if file.size != UNSET}
        self._check()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, height, width) of every picture."""
        width, height = self.resize[::-1] if self.resize else next(iter(self.sizes))
        return 3, height, width

    def read(self, ids: Sequence[int]) -> EvalBatch:
        """The pictures with these numbers; the broken ones are left out and noted."""
        with quiet(), ThreadPoolExecutor(WORKERS) as pool:
            images = list(pool.map(self._load, ids))
        kept = [(i, image) for i, image in zip(ids, images, strict=True) if image is not None]
        none = torch.zeros(0, *self.shape, dtype=torch.uint8)
        pictures = torch.stack([image for _, image in kept]) if kept else none
        numbers = [i for i, _ in kept]
        return eval_batch(self.source, numbers, pictures, [self.prompts[i] for i in numbers])

    def about(self) -> dict[str, Any]:
        """Path, number, shape, content and resize."""
        return {
            "path": str(self.folder),
            "n": len(self),
            "shape": list(self.shape),
            "sha256": self.content_key(range(len(self))),
            "resize": self._resize_name(),
        }

    def content_key(self, ids: Sequence[int]) -> str:
        """SHA-256 of the files' contents in their order, and of the resize."""
        digests = [self.files[i].sha256 for i in ids]
        content = json.dumps([digests, list(self.shape), self._resize_name()])
        return hashlib.sha256(content.encode()).hexdigest()

    def remarks(self) -> list[str]:
        """Broken pictures by name, what was done to others, and what was left out."""
        said = [f"{self.folder}: {count} pictures: {note}" for note, count in self.notes.items()]
        if self.unlisted:
            said.append(f"{self.folder}: {self.unlisted} pictures that its metadata does not list")
        if self.unreadable:
            first = "; ".join(f"{name}: {why}" for name, why in list(self.unreadable.items())[:3])
            said.append(
                f"{self.folder}: {len(self.unreadable)} of {len(self)} pictures cannot be read and "
                f"are not measured ({first})"
            )
        return said

    def _check(self) -> None:
        if len(self.sizes) > 1 and self.resize is None:
            (first, a), (second, b) = list(self.sizes.items())[:2]
            raise ConfigError(
                f"{self.folder} holds pictures of several sizes: {a} is {_by(first)}, {b} is "
                f"{_by(second)}; make them one with --resize N"
            )
        readable = sum(file.size != UNSET for file in self.files)
        if readable < MIN_PICTURES:
            broken = [file.name for file in self.files if file.size == UNSET]
            detail = f", and {broken[0]} cannot be read" if broken else ""
            count = f"{readable} picture{'s' if readable != 1 else ''}"
            raise ConfigError(
                f"{self.folder} holds {count}{detail}; a metric needs at least {MIN_PICTURES}"
            )

    def _load(self, number: int) -> UInt8[Tensor, "3 H W"] | None:
        file = self.files[number]
        try:
            picture = load_picture(self.folder / file.name, sha256=file.sha256)
            image = self._fit(picture.image)
        except UnusablePictureError as error:
            self.unreadable[file.name] = str(error)
            return None
        for note in picture.notes:
            self.notes[note] = self.notes.get(note, 0) + 1
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def _fit(self, image: Image.Image) -> Image.Image:
        if self.resize is not None:
            return fit_to(image, self.resize, "crop")
        if image.size != (self.shape[2], self.shape[1]):  # turned as EXIF says
            raise UnusablePictureError(
                f"{_by(image.size)} once upright, not {_by((self.shape[2], self.shape[1]))}"
            )
        return image

    def _resize_name(self) -> str | None:
        if self.resize is None or set(self.sizes) == {self.resize[::-1]}:
            return None
        height, width = self.resize
        how = f"shorter side to {height}" if height == width else f"to cover {width}x{height}"
        return f"{how} (PIL Lanczos, reducing gap 3), centre crop"


def _find(folder: Path) -> tuple[dict[str, str], int]:
    """File name -> prompt, and how many pictures the folder's metadata does not list."""
    if not folder.exists():
        raise ConfigError(f"no such folder: {folder}")
    if not folder.is_dir():
        raise ConfigError(f"not a folder: {folder}; give the folder that holds the pictures")
    names = {name for name in _names(folder) if is_picture_name(name)}
    if not names:
        raise ConfigError(f"{folder} holds no pictures")
    if next(folder.glob(f"*/{MANIFEST}"), None) is not None:
        raise ConfigError(
            f"{folder} holds shards of samples; put them together with merge-samples first"
        )
    for metadata in METADATA_NAMES:
        if (folder / metadata).is_file():
            captions = _listed(folder / metadata)
            return captions, len(names - captions.keys())
    return {name: _sidecar(folder, name) for name in names}, 0


def _names(folder: Path) -> Iterable[str]:
    for file in folder.rglob("*"):
        relative = file.relative_to(folder)
        if not any(part.startswith(".") for part in relative.parts) and file.is_file():
            yield relative.as_posix()


def _listed(metadata: Path) -> dict[str, str]:
    rows = read_metadata(metadata, "text")
    return {row.file_name: next(iter(_texts(row.caption)), "") for row in rows}


def _texts(caption: str | list[str]) -> list[str]:
    return [caption] if isinstance(caption, str) else caption


def _sidecar(folder: Path, name: str) -> str:
    """The first caption file beside the picture, if there is one."""
    for suffix in SIDECARS:
        file = folder / PurePosixPath(name).with_suffix(suffix)
        if file.is_file():
            return read_caption(file).strip()
    return ""


def _look_at(folder: Path, name: str) -> File:
    """The file's content hash and size by its header; what is wrong shows when it is decoded."""
    try:
        data = (folder / name).read_bytes()
    except OSError:
        return File(name, "unreadable", UNSET)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        with quiet(), Image.open(io.BytesIO(data)) as image:
            return File(name, sha256, image.size)
    except (*DECODE_ERRORS, Image.DecompressionBombError):
        return File(name, sha256, UNSET)


def _by(size: tuple[int, int]) -> str:
    return "{}x{}".format(*size)
