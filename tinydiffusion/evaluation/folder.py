"""The pictures of any folder, with captions or without, decoded as they are needed."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tinydiffusion.config import ConfigError
from tinydiffusion.evaluation.sources import eval_batch
from tinydiffusion.model_folder.finding import MODEL, is_run
from tinydiffusion.pictures.caption_files import NO_CAPTION
from tinydiffusion.pictures.captions import Caption, texts_of
from tinydiffusion.pictures.colours import UnusablePictureError
from tinydiffusion.pictures.decode import (
    GridError,
    Picture,
    fit_to,
    is_large_enough,
    load_picture,
    picture_sha256,
    quiet,
    upright_size,
)
from tinydiffusion.pictures.folder import PictureFolder, read_folder
from tinydiffusion.pictures.packed import describe
from tinydiffusion.pictures.scan import Skipped, check_caption
from tinydiffusion.pictures.views import View
from tinydiffusion.protocols import EvalBatch
from tinydiffusion.runtime.parts import MANIFEST
from tinydiffusion.survey import spread

MIN_PICTURES = 2
MAX_RESIZE = 4096
WORKERS = 2  # threads that decode
UNSET = (0, 0)


class File(NamedTuple):
    """A picture file as it was found."""

    name: str  # relative to the folder, with forward slashes
    sha256: str
    size: tuple[int, int]  # width and height once upright, by its header; UNSET where it has none


class FolderPictures:
    """The pictures of a folder and its sub-folders, numbered in the order of their names.

    Pictures and captions are found, and pictures decoded, as the data set `folder` does it for
    training, but a picture needs no caption: its first one is its prompt.

    Args:
        source: See `protocols.SOURCES`.
        folder: The folder of the pictures.
        view: How pictures are brought to one size, and which value is white in those of more than 8
            bits; None leaves their sizes as they are.
        limit: Number of pictures to take, spread over the folder; None takes all.
        columns: Columns of metadata that may hold prompts; the first one that exists is read.
        class_folders: Whether sub-folders' names are the prompts where there are no captions.
        console: For the progress bar.

    Attributes:
        files: The pictures that are measured.
        prompts: One per picture, empty where there is none.
        left_out: Pictures that are not measured, with the reason.
        uncaptioned: Name of a measured picture -> why it has no prompt.
        columns: Columns of the folder's metadata, and keys of its JSON.
        refusal: Why the folder gives no prompts, empty where it does.
        sizes: Width and height -> first picture of that size.
        notes: What was done to pictures that were read -> number of pictures.
        unreadable: Name -> reason, of the broken pictures met so far.

    Raises:
        ConfigError: the folder of a run, fewer than two readable pictures, or sizes differ and
            `view` is None.
        ValueError: see `read_folder`.
    """

    block = 1

    def __init__(
        self,
        source: str,
        folder: Path,
        *,
        view: View | None = None,
        limit: int | None = None,
        columns: Sequence[str] = ("text",),
        class_folders: bool = False,
        console: Console,
    ) -> None:
        if view is not None and max(view.size) > MAX_RESIZE:
            raise ConfigError(f"--resize must be in [1, {MAX_RESIZE}], got {list(view.size)}")
        _check_kind(folder)
        self.source, self.folder, self.view = source, folder, view
        contents = _read(folder, columns, class_folders)
        self.refusal, self.columns = contents.refusal, contents.columns
        self._remarks = list(contents.remarks)
        self.left_out, self.uncaptioned = list(contents.skipped), dict[str, str]()
        self.notes, self._caption_notes = Counter[str](), Counter[str]()
        self.unreadable: dict[str, str] = {}
        self.files: list[File] = []
        self.prompts: Sequence[str] = self._take(contents, limit, console)
        self.sizes = {file.size: file.name for file in reversed(self.files) if file.size != UNSET}
        self._check()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, height, width) of every picture."""
        height, width = self.view.size if self.view else next(iter(self.sizes))[::-1]
        return 3, height, width

    def read(self, ids: Sequence[int]) -> EvalBatch:
        """Decode the pictures with these numbers; the broken ones are left out and noted."""
        with quiet(), ThreadPoolExecutor(WORKERS) as pool:
            loaded = list(pool.map(self._load, ids))
        kept: list[int] = []
        images: list[Tensor] = []
        for number, picture in zip(ids, loaded, strict=True):
            if isinstance(picture, UnusablePictureError):
                self.unreadable[self.files[number].name] = str(picture)
            else:
                kept.append(number)
                images.append(torch.from_numpy(np.array(picture.image)).permute(2, 0, 1))
                self.notes.update(picture.notes)
        none = torch.zeros(0, *self.shape, dtype=torch.uint8)
        pictures = torch.stack(images) if images else none
        return eval_batch(self.source, kept, pictures, [self.prompts[i] for i in kept])

    def about(self) -> dict[str, Any]:
        """Return path, number, shape, content hash and resize of the pictures."""
        return {
            "path": str(self.folder),
            "n": len(self),
            "shape": list(self.shape),
            "sha256": self._pixels_key(range(len(self))),
            "resize": self._resize_name(),
        }

    def content_key(self, ids: Sequence[int]) -> str:
        """Hash the files' contents in their order, the resize and the prompts."""
        content = json.dumps([self._pixels_key(ids), [self.prompts[i] for i in ids]])
        return hashlib.sha256(content.encode()).hexdigest()

    def _pixels_key(self, ids: Sequence[int]) -> str:
        digests = [self.files[i].sha256 for i in ids]
        white = None if self.view is None else self.view.max_value
        content = json.dumps([digests, list(self.shape), self._resize_name(), white])
        return hashlib.sha256(content.encode()).hexdigest()

    def unprompted(self) -> list[Skipped]:
        """List the pictures that have no prompt, with the reason."""
        return [Skipped(*item) for item in self.uncaptioned.items()]

    def remarks(self) -> list[str]:
        """List what was left out, what was done to pictures, and which cannot be read."""
        notes = [*self._caption_notes.items(), *self.notes.items()]
        said = [*self._remarks, *(f"{n} pictures: {note}" for note, n in notes)]
        if self.left_out:
            said.append(f"left out: {describe(self.left_out)}")
        captions_meant = any(self.prompts) or set(self.uncaptioned.values()) - {NO_CAPTION}
        if captions_meant and self.uncaptioned:
            said.append(f"measured without a prompt: {describe(self.unprompted())}")
        if self.unreadable:
            broken = [Skipped(*item) for item in sorted(self.unreadable.items())]
            said.append(
                f"{len(broken)} of {len(self)} pictures cannot be read and are not measured: "
                f"{describe(broken)}"
            )
        return [f"{self.folder}: {remark}" for remark in said]

    def _take(self, contents: PictureFolder, limit: int | None, console: Console) -> list[str]:
        """Check the files to be measured, and return their prompts."""
        prompts = []
        count = len(contents.pictures)
        places = range(count) if limit is None else spread(count, limit)
        if len(places) < count:
            self._remarks.append(f"{len(places)} of {count} pictures, spread over the folder")
        bar = f"checking {self.source}"
        for place in track(places, bar, console=console, disable=not console.is_terminal):
            name, _, caption = contents.pictures[place]
            try:
                self.files.append(_look_at(self.folder, name))
            except GridError as error:
                self.left_out.append(Skipped(name, str(error)))
                continue
            prompts.append(self._prompt(name, caption, contents.uncaptioned.get(name, "")))
        return prompts

    def _prompt(self, name: str, caption: Caption, fault: str) -> str:
        """Take the first caption as training reads it, and note where there is none."""
        if not fault:
            try:
                caption, notes = check_caption(caption)
                self._caption_notes.update(notes)
                return texts_of(caption)[0]
            except UnusablePictureError as error:
                fault = str(error)
        self.uncaptioned[name] = fault
        return ""

    def _check(self) -> None:
        if len(self.sizes) > 1 and self.view is None:
            (first, a), (second, b) = list(self.sizes.items())[:2]
            raise ConfigError(
                f"{self.folder} holds pictures of several sizes: {a} is {_by(first)}, {b} is "
                f"{_by(second)}; make them one with --resize N"
            )
        readable = sum(file.size != UNSET for file in self.files)
        if readable < MIN_PICTURES:
            broken = [file.name for file in self.files if file.size == UNSET]
            detail = f", and {broken[0]} cannot be read" if broken else ""
            detail += f", left out: {describe(self.left_out)}" if self.left_out else ""
            count = f"{readable} picture{'s' if readable != 1 else ''}"
            raise ConfigError(
                f"{self.folder} holds {count}{detail}; a metric needs at least {MIN_PICTURES}"
            )

    def _load(self, number: int) -> Picture | UnusablePictureError:
        file = self.files[number]
        try:
            picture = self._decode(self.folder / file.name, file.sha256)
            if self.view is not None and not is_large_enough(file.size, *self.view[:2]):
                picture.notes.append("smaller than asked for and enlarged, which training skips")
            return picture._replace(image=self._fit(picture.image))
        except UnusablePictureError as error:
            return error

    def _decode(self, path: Path, sha256: str) -> Picture:
        if self.view is None:
            return load_picture(path, sha256=sha256)
        size, fit, max_value = self.view.size, self.view.fit, self.view.max_value
        return load_picture(path, size, sha256, fit=fit, max_value=max_value)

    def _fit(self, image: Image.Image) -> Image.Image:
        if self.view is not None:
            return fit_to(image, self.view.size, self.view.fit)
        if image.size != (expected := (self.shape[2], self.shape[1])):
            raise UnusablePictureError(f"{_by(image.size)} once decoded: not {_by(expected)}")
        return image

    def _resize_name(self) -> str | None:
        if self.view is None:
            return None
        height, width = self.view.size
        if set(self.sizes) == {(width, height)}:
            return None
        square, cut = height == width, self.view.fit == "crop"
        to = f"shorter side to {height}" if square else f"to cover {_by((width, height))}"
        how = f"{to}, centre crop" if cut else f"to fit {_by((width, height))}, white border"
        return f"{how} (PIL Lanczos, reducing gap 3; JPEG draft)"


def _check_kind(folder: Path) -> None:
    """Check that a folder can hold pictures to be measured.

    Raises:
        ConfigError: it is the folder of a run, or holds shards of samples.
    """
    if is_run(folder):
        model = folder / MODEL
        its = f"its model is {model}" if model.is_dir() else "it has no finished model yet"
        raise ConfigError(f"{folder} is the folder of a run, not of pictures to measure; {its}")
    if next(folder.glob(f"*/{MANIFEST}"), None) is not None:
        raise ConfigError(
            f"{folder} holds shards of samples; put them together with merge-samples first"
        )


def _read(folder: Path, columns: Sequence[str], class_folders: bool) -> PictureFolder:
    found = read_folder(folder, columns)
    if class_folders and not any(picture.caption for picture in found.pictures):
        found = read_folder(folder, columns, "folder")
        found.remarks.append("prompts are the names of its sub-folders")
    return found


def _look_at(folder: Path, name: str) -> File:
    """Read a file's content hash and size; other faults are found when it is decoded.

    Raises:
        GridError: it is not a picture to be measured.
    """
    sha256 = "unreadable"
    try:
        sha256 = picture_sha256(folder / name)
        with quiet():
            return File(name, sha256, upright_size(folder / name))
    except GridError:
        raise
    except UnusablePictureError:
        return File(name, sha256, UNSET)


def _by(size: tuple[int, int]) -> str:
    return "{}x{}".format(*size)
