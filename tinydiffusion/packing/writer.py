"""Writer of the shards of `tinydiffusion pack`: the same bytes for the same pictures."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tinydiffusion.packing.source import Item
from tinydiffusion.pictures.captions import Caption
from tinydiffusion.pictures.colours import UnusablePictureError
from tinydiffusion.pictures.scan import Found, Skipped, check_caption, prepare
from tinydiffusion.pictures.views import View
from tinydiffusion.runtime.durable import sync_folder
from tinydiffusion.runtime.errors import DiskError
from tinydiffusion.shards.headers import BLOCK
from tinydiffusion.shards.manifest import ShardRecord

QUALITY = 95
FORMATS = {  # suffix -> Pillow's format and its options
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": QUALITY, "subsampling": 0}),
    "webp": ("WEBP", {"quality": QUALITY}),
}


class Packed(NamedTuple):
    """An encoded picture, to be written to a shard."""

    id: str  # in the source
    caption: Caption
    content: bytes


Result = Packed | Skipped


def encode(item: Item, *, view: View | None, suffix: str) -> Result:
    """Encode a picture in the view's size, or return why it is left out.

    An example of a data set keeps its size.
    """
    if isinstance(item, Found | Skipped):
        assert view is not None, "data sets of files have one"
        prepared = prepare(item, view)
        if isinstance(prepared, Skipped):
            return prepared
        sample = prepared.sample
        planes = np.frombuffer(prepared.pixels, np.uint8).reshape(3, *sample.stored)
        return Packed(sample.id, sample.caption, _encode(planes, suffix))
    try:
        caption, _ = check_caption(item["caption"])
    except UnusablePictureError as error:
        return Skipped(item["id"], str(error))
    return Packed(item["id"], caption, _encode(item["image"].numpy(), suffix))


def _encode(planes: UInt8[np.ndarray, "3 H W"], suffix: str) -> bytes:
    kind, options = FORMATS[suffix]
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
    image.save(file, kind, **options)
    return file.getvalue()


class ShardWriter:
    """A writer of one shard, which gets its name only once it is complete and on the disk.

    A picture is a member `<key>.png` (or another suffix), followed by `<key>.json` with its caption
    or captions under "text", and under "id" its id in the source.
    """

    def __init__(self, path: Path, suffix: str) -> None:
        self.path, self.suffix = path, suffix
        self.pictures = 0
        self._bytes = 0
        self._digest = hashlib.sha256()
        self._unfinished = path.with_name(f".tmp-{path.name}")
        with naming_errors(path.parent):
            self._file = self._unfinished.open("wb")

    def add(self, key: str, packed: Packed) -> None:
        """Append a picture."""
        about = json.dumps({"id": packed.id, "text": packed.caption}).encode()
        self._add_member(f"{key}.{self.suffix}", packed.content)
        self._add_member(f"{key}.json", about)
        self.pictures += 1

    def finish(self) -> ShardRecord:
        """Complete the shard, give it its name, and return its record."""
        self._write(bytes(2 * BLOCK))
        with naming_errors(self.path.parent):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._unfinished.replace(self.path)
            sync_folder(self.path.parent)
        return ShardRecord(self.path.name, self.pictures, self._bytes, self._digest.hexdigest())

    def close(self) -> None:
        """Close the unfinished file."""
        self._file.close()

    def _add_member(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # owner, group and time are zero
        member.size = len(content)
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        self._write(content)
        self._write(bytes(-len(content) % BLOCK))

    def _write(self, content: bytes) -> None:
        with naming_errors(self.path.parent):
            self._file.write(content)
        self._digest.update(content)
        self._bytes += len(content)


@contextmanager
def naming_errors(folder: Path) -> Iterator[None]:
    """Raise DiskError in place of an OSError inside the `with`.

    Raises:
        DiskError: the folder cannot be written; one line.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"cannot write in {folder}: {error.strerror}. What is packed stays, and the same "
            "command goes on from there"
        ) from error
