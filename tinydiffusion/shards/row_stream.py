"""Windows of undecoded rows of a streaming data set, in an order drawn anew for every epoch."""

import os
import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch

from tinydiffusion.pictures.captions import Caption
from tinydiffusion.pictures.huggingface import caption_of_cell
from tinydiffusion.runtime.hub import read_errors, reason_of

MAX_PARTS = 256  # making one takes time in proportion to the number of files
ROWS_READ = 100  # rows read at a time

Position = tuple[int, int | None, int]
"""Process id, seed of the order and number of the window."""


class Row(NamedTuple):
    """A captioned picture, not yet decoded."""

    id: str
    cell: Any  # bytes and path of the picture
    caption: Caption


class RowStream:
    """The rows of a streaming data set, window by window.

    The source's shards are combined into at most `MAX_PARTS` parts. A seed determines the order of
    the parts; the rows of a part keep their order. The rows of a window do not depend on what was
    read before: a window that is not the next one is reached by reading up to it, from the
    beginning if it is an earlier one. Parts whose length is already known are skipped unread.

    Args:
        source: A `datasets.IterableDataset` of two columns, see `two_columns`.
        name: Name of the data set for messages.
        columns: Name of the column of pictures, and of that of captions.
        window: Number of rows of a window; one window is held in memory.
        num_examples: Number of rows that are used.
    """

    def __init__(
        self, source: Any, name: str, columns: tuple[str, str], window: int, num_examples: int
    ) -> None:
        self.source, self.name, self.columns = source, name, columns
        self.window, self.num_examples = window, num_examples
        self.num_parts = min(source.num_shards, MAX_PARTS)
        self._lengths: dict[int, int] = {}
        self._position: Position | None = None
        self._rows: list[Row] = []
        self._stream: Iterator[Row] = iter(())

    def rows(self, order_seed: int | None, number: int) -> list[Row]:
        """Return the rows of one window.

        Args:
            order_seed: Seed of the order of the parts; None for the order of the source.
            number: Index of the window, from 0.

        Raises:
            ValueError: the stream is shorter than `num_examples`, or cannot be read.
        """
        position = (os.getpid(), order_seed, number)
        if position != self._position:
            self._rows = []  # frees memory before others are read
            self._rows = self._read(position)
            self._position = position
        return self._rows

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, without open streams and rows."""
        return {**self.__dict__, "_position": None, "_rows": [], "_stream": iter(())}

    def _read(self, position: Position) -> list[Row]:
        process, order_seed, number = position
        first = number * self.window
        wanted = min(self.window, self.num_examples - first)
        here = self._position
        # After a fork the stream belongs to the parent, and this process begins one of its own.
        if here and here[:2] == (process, order_seed) and here[2] < number:
            skipped = (number - here[2] - 1) * self.window
        else:
            self._stream, skipped = self._stream_from(order_seed, first), 0
        self._position = None  # unknown while rows are read
        rows = list(islice(self._stream, skipped, skipped + wanted))
        if len(rows) < wanted:
            self._refuse_short()
        if first + wanted == self.num_examples and next(self._stream, None):
            warnings.warn(
                f"{self.name} goes on behind {self.num_examples} rows; set num_examples higher to "
                "use them. Until then every epoch leaves out others",
                stacklevel=4,
            )
        return rows

    def _refuse_short(self) -> None:
        found = sum(self._lengths.values())
        raise ValueError(
            f"{self.name} ends after {found} rows, and {self.num_examples} were announced; set "
            f"num_examples to {found}"
        )

    def _stream_from(self, order_seed: int | None, first: int) -> Iterator[Row]:
        for part in self._order(order_seed):
            length = self._lengths.get(part)
            if length is not None and length <= first:
                first -= length
                continue
            yield from self._part_from(part, first)
            first = max(0, first - self._lengths[part])

    def _part_from(self, part: int, first: int) -> Iterator[Row]:
        """Yield the rows of a part from row `first` on; its length is known at the end."""
        length = 0
        for table in self._tables(part):
            for number, cells in enumerate(table.slice(max(0, first - length)).to_pylist()):
                yield self._row(part, max(first, length) + number, cells)
            length += len(table)
        self._lengths[part] = length

    def _tables(self, part: int) -> Iterator[Any]:
        # By `iter` and not `for row in`, which divides the rows among a loader's workers.
        shard = self.source.shard(num_shards=self.num_parts, index=part).with_format("arrow")
        try:
            yield from shard.iter(ROWS_READ)
        except read_errors() as error:
            raise ValueError(
                f"{self.name} cannot be read in part {part} of {self.num_parts}: "
                f"{reason_of(error)}. See to the network or to the files; where it fails often, "
                "take the data set 'huggingface', which stores all"
            ) from error

    def _row(self, part: int, number: int, cells: dict[str, Any]) -> Row:
        image, caption = (cells[column] for column in self.columns)
        id_ = f"part-{part}/row-{number}"
        return Row(id_, image, caption_of_cell(caption, self.columns[1], f"{self.name} {id_}"))

    def _order(self, order_seed: int | None) -> list[int]:
        if order_seed is None:
            return list(range(self.num_parts))
        generator = torch.Generator().manual_seed(order_seed)
        return torch.randperm(self.num_parts, generator=generator).tolist()
