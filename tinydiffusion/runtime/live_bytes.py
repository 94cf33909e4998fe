"""Peak memory of the tensors of a computation, counted rather than measured."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """A context manager that counts the memory of one device's tensors, allocated and freed.

    The result is the same on every machine. Temporary memory inside a kernel is not counted.
    Memory that several tensors share is counted once.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self._events: list[tuple[int, int]] = []  # number of the storage, bytes (freed: negative)
        self._numbers: dict[int, int] = {}  # address of a living storage -> its number
        self._alive: dict[int, Any] = {}  # number -> weak reference whose callback notes the end

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation, note its new tensors and return its result."""
        del types
        kwargs = kwargs or {}
        for tensor in self._tensors((args, kwargs)):
            self._note(tensor, 0)  # existed before
        result = func(*args, **kwargs)
        for tensor in self._tensors(result):
            self._note(tensor, tensor.untyped_storage().nbytes())
        return result

    def peak(self, without: Iterable[Tensor] = ()) -> int:
        """Return the peak memory in bytes, leaving out the memory of the tensors `without`."""
        addresses = (tensor.untyped_storage().data_ptr() for tensor in without)
        left_out = {self._numbers.get(address) for address in addresses}
        total = most = 0
        for number, change in self._events:
            total += 0 if number in left_out else change
            most = max(most, total)
        return most

    def _tensors(self, tree: Any) -> list[Tensor]:
        leaves = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
        return [leaf for leaf in leaves if leaf.device.type == self.device.type]

    def _note(self, tensor: Tensor, num_bytes: int) -> None:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address == 0 or address in self._numbers:
            return
        number = len(self._alive)
        self._numbers[address] = number
        self._events.append((number, num_bytes))

        def end(_: Any) -> None:
            self._numbers.pop(address, None)
            self._events.append((number, -num_bytes))

        self._alive[number] = weakref.ref(storage, end)
