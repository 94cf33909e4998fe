"""Captioned pictures of a Hugging Face data set, streamed from its source and never stored."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tinydiffusion.abilities import Fingerprinted, Selective, Streaming
from tinydiffusion.pictures.decode import PassingFaultError, UnusablePictureError
from tinydiffusion.pictures.huggingface import (
    import_datasets,
    naming_load_errors,
    source_of_cell,
    two_columns,
)
from tinydiffusion.pictures.views import drawn_window, middle_window, view_of
from tinydiffusion.protocols import Example
from tinydiffusion.runtime.hub import read_errors, reason_of
from tinydiffusion.shards.left_out import LeftOut, load_example
from tinydiffusion.shards.order import BoundedShuffle
from tinydiffusion.shards.row_stream import Row, RowStream


class HuggingFaceStreamDataset(Streaming, Selective, Fingerprinted):
    """The captioned pictures of one split, streamed; ids are `part-0/row-0`, ...

    In training the order of the source's parts is drawn anew for every epoch, and the rows of each
    `window` are shuffled. The order of the pictures does not depend on the number of processes or
    on interruptions. Every process and worker reads the whole stream, but decodes only the pictures
    that it visits; a resumed run reads up to where it was. Where that takes too long,
    `tinydiffusion pack` makes shards of the pictures.

    A picture that proves unusable when it is visited is left out with a warning: reading it raises
    `UnusablePictureError`, and training continues with the others of its batch.

    Args:
        path: Name on the hub, or a local folder, as for `datasets.load_dataset`.
        subset: The configuration (subset), where the data set has several.
        split: Name of the split, without a slice.
        revision: The commit, tag or branch on the hub; only a commit never changes.
        image_column: The column that holds the pictures.
        caption_column: The column that holds a caption, or a list of captions.
        size: Side of every example, or [height, width]; smaller ones are unusable, not enlarged.
        fit: "crop" cuts pictures of other proportions, "pad" gives them a white border.
        crop: "center", or "random" for a window drawn at each visit.
        flip: Whether a visit mirrors the picture left to right with probability 1/2.
        max_value: The value that means white in files of more than 8 bits, such as 4095; None uses
            65535, or 4095 for a picture without a brighter value.
        num_examples: Number of rows of the split, where the data set does not declare it.
        window: Number of rows that are shuffled among each other, and held in memory undecoded; in
            addition the reader of Parquet may hold one file of the source.

    Raises:
        ValueError: there is no such data set, split or column, an option is out of range, or the
            number of rows is unknown.
    """

    def __init__(
        self,
        *,
        path: str,
        subset: str | None = None,
        split: str = "train",
        revision: str | None = None,
        image_column: str = "image",
        caption_column: str = "text",
        size: int | Sequence[int] = 32,
        fit: str = "crop",
        crop: str = "center",
        flip: bool = False,
        max_value: int | None = None,
        num_examples: int | None = None,
        window: int = 1000,
    ) -> None:
        self.view = view_of(size, fit=fit, crop=crop, flip=flip, max_value=max_value)
        name = f"{path}[{split}]"
        builder, rows = _open(path, subset, split, revision)
        length = _length(rows, name, num_examples)
        columns = image_column, caption_column
        rows = two_columns(rows, name, *columns)
        self._order = BoundedShuffle([length], window)
        self._visited, self._walked = (
            RowStream(rows, name, columns, window, length) for _ in range(2)
        )
        self._files = (builder.config.data_files or {}).get(split)
        self._left_out = LeftOut([])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Example:
        """Return the example with its middle window, not mirrored; fast for ascending indices."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in [0, {len(self)})")
        window, member = divmod(index, self._order.window)
        example = self._usable(self._walked.rows(None, window), member)
        return {**example, "image": middle_window(example["image"], self.view.size)}

    def visit(self, order_seed: int, place: int, generator: torch.Generator) -> Example:
        """Return the example at `place` of the epoch shuffled by `order_seed`, as for training."""
        window, member = divmod(self._order.locate(order_seed, place)[1], self._order.window)
        example = self._usable(self._visited.rows(order_seed, window), member)
        return {**example, "image": drawn_window(example["image"], self.view, generator)}

    def describe_skipped(self) -> str:
        """Return the number of visited pictures that were left out for each reason."""
        return self._left_out.describe()

    def fingerprints(self) -> Mapping[str, str]:
        """Return file -> SHA-256 of the size of a local file, else of its revision on the hub."""
        if self._files is None:
            return {}
        names = [str(file) for file in self._files]
        start = len(os.path.commonpath([os.path.dirname(name) for name in names]))  # noqa: PTH120
        return {
            name[start:].lstrip("/"): _fingerprint(name, origin)
            for name, origin in zip(names, self._files.origin_metadata, strict=True)
        }

    def _usable(self, rows: list[Row], member: int) -> Example:
        row = rows[member]
        with self._left_out.noting(row.id):
            source = _source(row.cell)
            if source is None:
                raise UnusablePictureError("missing or not a file")
            return load_example(row.id, source, row.caption, self.view)


def _open(path: str, subset: str | None, split: str, revision: str | None) -> tuple[Any, Any]:
    """Return the builder of the data set, and the split as a stream."""
    datasets = import_datasets()
    with naming_load_errors(path):
        builder = datasets.load_dataset_builder(path, subset, revision=revision)
        _free_what_is_read(builder)
        return builder, builder.as_streaming_dataset(split=split)


def _free_what_is_read(builder: Any) -> None:
    """Make the reader free a Parquet file's bytes once they are decoded, not at its end."""
    from pyarrow.dataset import ParquetFragmentScanOptions

    if builder.info.builder_name == "parquet":  # 57 MB instead of 310 for a file of 300 MB
        builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)


def _length(rows: Any, name: str, num_examples: int | None) -> int:
    """Return the number of rows, from the user's setting or else from the data set's card."""
    if num_examples is not None:
        if num_examples < 1:
            raise ValueError(f"num_examples must be at least 1, got {num_examples}")
        return num_examples
    splits = rows.info.splits or {}
    if rows.split not in splits or not splits[rows.split].num_examples:
        raise ValueError(
            f"{name} does not tell how many rows it has, which a stream cannot be asked; set "
            "num_examples, or use the data set 'huggingface', which stores all"
        )
    return splits[rows.split].num_examples


def _source(cell: Any) -> Path | bytes | None:
    """Return bytes or path of a picture; one inside an archive or on the hub is read now."""
    source = source_of_cell(cell)
    if not isinstance(source, Path) or "://" not in cell["path"]:
        return source
    import fsspec

    try:
        with fsspec.open(cell["path"], "rb") as file:
            return file.read()  # pyright: ignore[reportAttributeAccessIssue]
    except read_errors() as error:
        if type(error) is FileNotFoundError:  # its subclasses mean that a hub is unreachable
            return None
        raise PassingFaultError(f"cannot read {cell['path']}: {reason_of(error)}") from error


def _fingerprint(file: str, origin: tuple[str, ...]) -> str:
    version = [Path(file).stat().st_size] if Path(file).is_file() else origin
    return hashlib.sha256(json.dumps(version).encode()).hexdigest()


PLUGIN = HuggingFaceStreamDataset
