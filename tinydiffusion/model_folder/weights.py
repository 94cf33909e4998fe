"""Untrusted weights: nothing is allocated before names, shapes and sizes are known to fit."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

MAX_HEADER = 2**22
EXTRA_TENSORS = 64
"""Tensors that a component may build but not save: open_clip builds a tower for pictures."""
EXTRA_BYTES = 2**24
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


class FolderWeightsError(ValueError):
    """Weights that are damaged or belong to another model."""


class TensorSpec(NamedTuple):
    """Shape and number format of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


def read_header(file: Path) -> dict[str, TensorSpec]:
    """Read name, shape and number format of every tensor of a safetensors file, but no values.

    Raises:
        FolderWeightsError: the header is too long or has an unknown number format.
        SafetensorError: the header is damaged or does not match the size of the file.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > MAX_HEADER:
        raise FolderWeightsError(f"a header of {length} bytes, more than {MAX_HEADER}")
    with safe_open(file, "pt") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
        return {name: _spec(name, part) for name, part in slices.items()}


def build_fitting(build: Callable[[], nn.Module], header: Mapping[str, TensorSpec]) -> nn.Module:
    """Build a module, after a trial on the meta device, without memory, that it fits the header.

    Args:
        build: Makes the module; called twice, first on the meta device.
        header: See `read_header`.

    Raises:
        FolderWeightsError: the module has other tensors than the header, or builds many more.
    """
    with torch.device("meta"), _Unfilled(), _limited(header):
        state = build().state_dict()
    for name in sorted(state.keys() | header.keys()):
        if name not in header or name not in state:
            where = "missing from the weights" if name in state else "in the weights only"
            raise FolderWeightsError(f"tensor {name!r} is {where}")
        wanted = TensorSpec(tuple(state[name].shape), state[name].dtype)
        if header[name] != wanted:
            raise FolderWeightsError(
                f"tensor {name!r} is {header[name]} in the weights, config.json asks for {wanted}"
            )
    return build()


def load_weights(module: nn.Module, file: Path) -> None:
    """Load the weights of a file whose header fits.

    Raises:
        FolderWeightsError: a tensor holds NaN or infinity.
    """
    module.load_state_dict(load_file(file))
    if (name := first_non_finite(module.state_dict())) is not None:
        raise FolderWeightsError(f"tensor {name!r} holds NaN or infinity")


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity; None if all are finite."""
    return next((name for name, t in tensors.items() if not torch.isfinite(t).all()), None)


class _Unfilled(TorchFunctionMode):
    """A mode in which `nn.init` does nothing, for weights without memory.

    Normal numbers for them would make torch import its compiler: one second of at most six until
    the first picture.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def _limited(header: Mapping[str, TensorSpec]) -> Iterator[None]:
    """Raise FolderWeightsError if a module built inside the `with` far outgrows the header."""
    own_thread = threading.get_ident()
    budget = _Budget(header)

    def spend(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        del module
        if tensor is not None and threading.get_ident() == own_thread:
            budget.spend(name, tensor)

    hooks: Any = (
        register_module_parameter_registration_hook(spend),
        register_module_buffer_registration_hook(spend),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Budget:
    """Numbers of tensors and bytes that a module may register: twice the header's, plus extras.

    Some tensors are replaced while a module is built.
    """

    def __init__(self, header: Mapping[str, TensorSpec]) -> None:
        sizes = [torch.Size(s.shape).numel() * s.dtype.itemsize for s in header.values()]
        self.tensors = 2 * len(sizes) + EXTRA_TENSORS
        self.bytes = 2 * sum(sizes) + EXTRA_BYTES

    def spend(self, name: str, tensor: Tensor) -> None:
        self.tensors -= 1
        self.bytes -= tensor.nbytes
        if self.tensors < 0 or self.bytes < 0:
            raise FolderWeightsError(
                f"config.json asks for far more than the weights hold, at tensor {name!r} of "
                f"shape {list(tensor.shape)}"
            )


def _spec(name: str, part: Any) -> TensorSpec:
    if part.get_dtype() not in DTYPES:
        raise FolderWeightsError(f"tensor {name!r} is {part.get_dtype()}; this is not read")
    return TensorSpec(tuple(part.get_shape()), DTYPES[part.get_dtype()])
