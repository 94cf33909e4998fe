"""Rows by picture id, the state of every evaluator that measures pictures one by one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from tinydiffusion.protocols import SOURCES, EvalBatch, EvaluatorState

Columns = Mapping[str, Shaped[Tensor, "N ..."] | Sequence[str]]
"""Column name -> one tensor row or one text per picture."""


class Table:
    """Rows of one source in id order, for any order and batches of arrival.

    Tensors are kept in main memory, in the batches in which they arrived.

    Args:
        source: "generated", "reference" or "train"; the prefix of its state keys.
        tensors: Names of the tensor columns, one tensor per row.
        texts: Names of the text columns, one string per row.
    """

    def __init__(
        self, source: str, *, tensors: Sequence[str] = (), texts: Sequence[str] = ()
    ) -> None:
        self.source, self.tensors, self.texts = source, tuple(tensors), tuple(texts)
        self._clear()

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, ids: Int[Tensor, "N"], columns: Columns) -> None:
        """Take in N rows.

        Raises:
            ValueError: an id came before; every picture is measured once.
        """
        assert set(columns) == {*self.tensors, *self.texts}, columns.keys()
        assert all(len(column) == len(ids) for column in columns.values())
        for row in ids.tolist():
            if row in self._seen:
                raise ValueError(
                    f"{self.source} picture {row} was given twice; each id is measured once"
                )
            self._seen.add(row)
        self._ids.append(ids.cpu())
        for name in self.tensors:
            self._tensors[name].append(torch.as_tensor(columns[name]).detach().cpu())
        for name in self.texts:
            self._texts[name].extend(str(text) for text in columns[name])

    def ids(self) -> list[int]:
        """Return the picture ids in rising order."""
        return sorted(self._seen)

    def tensor(self, name: str) -> Shaped[Tensor, "N ..."]:
        """Return a tensor column in id order; a tensor of length 0 when there are no rows."""
        return torch.cat(self._tensors[name])[self._order()] if len(self) else torch.zeros(0)

    def text(self, name: str) -> list[str]:
        """Return a text column in id order."""
        return [self._texts[name][row] for row in self._order().tolist()]

    def state(self) -> EvaluatorState:
        """Return every column, each to be merged by concatenation."""
        state: EvaluatorState = {self._key("id"): (torch.tensor(self.ids()).long(), "cat")}
        for name in self.tensors:
            state[self._key(name)] = (self.tensor(name), "cat")
        for name in self.texts:
            content, lengths = _pack(self.text(name))
            state[self._key(name)] = (content, "cat")
            state[self._key(name, "lengths")] = (lengths, "cat")
        return state

    def load_state(self, state: EvaluatorState) -> None:
        """Load the rows of a (merged) state in place of the present ones.

        Raises:
            ValueError: two parts hold the same id.
        """
        self._clear()
        columns: dict[str, Tensor | list[str]] = {
            name: state[self._key(name)][0] for name in self.tensors
        }
        for name in self.texts:
            lengths = state[self._key(name, "lengths")][0]
            columns[name] = _unpack(state[self._key(name)][0], lengths)
        self.add(state[self._key("id")][0], columns)

    def _clear(self) -> None:
        self._seen: set[int] = set()
        self._ids: list[Tensor] = []
        self._tensors: dict[str, list[Tensor]] = {name: [] for name in self.tensors}
        self._texts: dict[str, list[str]] = {name: [] for name in self.texts}

    def _order(self) -> Int[Tensor, "N"]:
        """Return the indices of the rows, sorted by id."""
        return torch.cat(self._ids).argsort() if self._ids else torch.zeros(0).long()

    def _key(self, *names: str) -> str:
        return "/".join((self.source, *names))


class RowsEvaluator(ABC):
    """Base of evaluators that keep one row per picture: a table for each source in `needs`.

    A subclass has `needs`, `columns`, `compute` and `provenance`.

    Args:
        tensors: Names of the tensor columns.
        texts: Names of the text columns.
    """

    needs: tuple[str, ...]

    def __init__(self, *, tensors: Sequence[str] = (), texts: Sequence[str] = ()) -> None:
        sources = [source for source in self.needs if source in SOURCES]
        self.tables = {s: Table(s, tensors=tensors, texts=texts) for s in sources}

    @abstractmethod
    def columns(self, batch: EvalBatch) -> Columns:
        """Compute what is kept of each picture."""

    def update(self, batch: EvalBatch) -> None:
        """Take in pictures of a source in `needs`; those of others are ignored.

        Raises:
            ValueError: the pictures are not uint8 RGB, or one came before.
        """
        if batch["source"] in self.tables:
            check_pictures(batch["image"])
            self.tables[batch["source"]].add(batch["id"], self.columns(batch))

    def state(self) -> EvaluatorState:
        """Return every column of every source, each to be merged by concatenation."""
        return {key: part for t in self.tables.values() for key, part in t.state().items()}

    def load_state(self, state: EvaluatorState) -> None:
        """Load a (merged) state in place of the present one."""
        for table in self.tables.values():
            table.load_state(state)


def check_pictures(images: Shaped[Tensor, "..."]) -> None:
    """Raise ValueError unless these are uint8 RGB pictures."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            "pictures must be uint8 RGB of shape (N, 3, H, W), got "
            f"{images.dtype} of shape {tuple(images.shape)}"
        )


def _pack(texts: Sequence[str]) -> tuple[UInt8[Tensor, "bytes"], Int[Tensor, "N"]]:
    """Encode all texts as one run of UTF-8 bytes and their lengths: both merge by concatenation."""
    encoded = [text.encode() for text in texts]
    content = torch.tensor(list(b"".join(encoded)), dtype=torch.uint8)
    return content, torch.tensor([len(e) for e in encoded], dtype=torch.int64)


def _unpack(content: UInt8[Tensor, "bytes"], lengths: Int[Tensor, "N"]) -> list[str]:
    """Decode the texts that `_pack` encoded."""
    return [bytes(part.tolist()).decode() for part in content.split(lengths.tolist())]
