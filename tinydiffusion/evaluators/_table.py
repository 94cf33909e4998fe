"""Rows by picture id, the state of every evaluator that looks at pictures one by one."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int, Shaped, UInt8
from torch import Tensor

from tinydiffusion.protocols import EvaluatorState


class Table:
    """Rows of one source in id order, whatever the order and the batches they came in.

    Args:
        source: "generated" or "reference"; the prefix of its state keys.
        tensors: Names of the tensor columns, one tensor per row.
        texts: Names of the text columns, one string per row.
    """

    def __init__(
        self, source: str, *, tensors: Sequence[str] = (), texts: Sequence[str] = ()
    ) -> None:
        self.source, self.tensors, self.texts = source, tuple(tensors), tuple(texts)
        self._rows: dict[int, dict[str, Tensor | str]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        ids: Int[Tensor, "N"],
        columns: Mapping[str, Shaped[Tensor, "N ..."] | Sequence[str]],
    ) -> None:
        """Take in N rows.

        Raises:
            ValueError: an id came before; every picture is measured once.
        """
        assert set(columns) == {*self.tensors, *self.texts}, columns.keys()
        for position, row in enumerate(ids.tolist()):
            if row in self._rows:
                raise ValueError(
                    f"{self.source} picture {row} was given twice; each id is measured once"
                )
            self._rows[row] = {name: values[position] for name, values in columns.items()}

    def ids(self) -> list[int]:
        """Picture ids, rising."""
        return sorted(self._rows)

    def tensor(self, name: str) -> Shaped[Tensor, "N ..."]:
        """A tensor column in id order; a tensor of length 0 when there are no rows."""
        return torch.stack(self._column(name)) if self._rows else torch.zeros(0)

    def text(self, name: str) -> list[str]:
        """A text column in id order."""
        return self._column(name)

    def state(self) -> EvaluatorState:
        """Every column, each to be merged by concatenation."""
        state: EvaluatorState = {self._key("id"): (torch.tensor(self.ids()).long(), "cat")}
        for name in self.tensors:
            state[self._key(name)] = (self.tensor(name), "cat")
        for name in self.texts:
            content, lengths = _pack(self.text(name))
            state[self._key(name)] = (content, "cat")
            state[self._key(name, "lengths")] = (lengths, "cat")
        return state

    def load_state(self, state: EvaluatorState) -> None:
        """Take over the rows of a (merged) state in place of the present ones.

        Raises:
            ValueError: two parts hold the same id.
        """
        self._rows = {}
        columns: dict[str, Tensor | list[str]] = {
            name: state[self._key(name)][0] for name in self.tensors
        }
        for name in self.texts:
            lengths = state[self._key(name, "lengths")][0]
            columns[name] = _unpack(state[self._key(name)][0], lengths)
        self.add(state[self._key("id")][0], columns)

    def _key(self, *names: str) -> str:
        return "/".join((self.source, *names))

    def _column(self, name: str) -> list:
        return [self._rows[row][name] for row in self.ids()]


def _pack(texts: Sequence[str]) -> tuple[UInt8[Tensor, "bytes"], Int[Tensor, "N"]]:
    """All texts as one run of UTF-8 bytes, and their lengths: both merge by concatenation."""
    encoded = [text.encode() for text in texts]
    content = torch.tensor(list(b"".join(encoded)), dtype=torch.uint8)
    return content, torch.tensor([len(e) for e in encoded], dtype=torch.int64)


def _unpack(content: UInt8[Tensor, "bytes"], lengths: Int[Tensor, "N"]) -> list[str]:
    """The texts that were packed."""
    return [bytes(part.tolist()).decode() for part in content.split(lengths.tolist())]
