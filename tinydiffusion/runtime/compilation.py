"""The decision whether training compiles its networks with torch.compile, and the compiling.

Compiling costs time before the first step and saves a share of every later one: it pays off in
long runs only. Compiled arithmetic differs in the last bits, so a resumed run must decide as it
did at its start: from the planned length, never from the remaining one.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from math import inf
from pathlib import Path
from types import MethodType
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from tinydiffusion.runtime.errors import RunError

Compile = Literal["auto", "always", "never"]


class Repayment(NamedTuple):
    """Cost and gain of compiling on a type of device."""

    warm_up: float  # seconds by which the first step is longer
    saved: float  # share of the training time
    pictures_per_second: float  # eager; from it the length of a run is estimated

    @property
    def break_even(self) -> float:
        """Shortest training time for which compiling pays off, in seconds."""
        return self.warm_up / self.saved


REPAYMENT = {
    # configs/quickstart.yaml on 2 cores: 157.5 pictures/s compiled, 155 eager, since matrix
    # products take most of the time. The warm-up takes 100 s with an empty cache of compiled code.
    "cpu": Repayment(100.0, 1 - 155 / 157.5, 155.0),
    # Not measured here: 1.3 to 2 times the speed is common, after about a minute.
    "cuda": Repayment(60.0, 1 - 1 / 1.5, 2000.0),
}
"""Device type -> expected cost and gain; nothing is compiled for other devices."""
TRITON_NEEDS = (7, 0)
"""Lowest compute capability of a GPU for which Triton generates kernels."""


class Decision(NamedTuple):
    """The decision whether to compile, with its reason as a sentence."""

    compiles: bool
    reason: str

    @property
    def mode(self) -> Literal["compiled", "eager"]:
        """The resulting mode of training, in one word."""
        return "compiled" if self.compiles else "eager"


def decide(
    setting: Compile,
    device_type: str,
    *,
    num_pictures: int,
    max_seconds: float | None,
    obstacle: str | None,
) -> Decision:
    """Decide whether to compile; "auto" compiles if the run is long enough to repay the warm-up.

    The length of the run is estimated as the time of `num_pictures` at the quickstart's speed, and
    at most `max_seconds`. The actual speed is not known before the run starts; a network slower
    than the quickstart's trains longer than estimated, so "auto" errs on the side of eager.

    Args:
        setting: "always" and "never" apply whatever the length.
        device_type: "cpu", "cuda" ...
        num_pictures: Number of pictures that the run trains on.
        max_seconds: Wall-clock budget of the run; None = no limit.
        obstacle: Reason why nothing can be compiled, from `compile_obstacle`.

    Raises:
        ValueError: "always" where there is an obstacle.
    """
    if setting == "never":
        return Decision(False, "eager: training.compile is never")
    if obstacle is not None:
        if setting == "always":
            raise ValueError(
                f"training.compile 'always' is not possible: {obstacle}; 'auto' and 'never' train "
                "without"
            )
        return Decision(False, f"eager: torch.compile is not possible, {obstacle}")
    if setting == "always":
        return Decision(True, "compiled: training.compile is always")
    expected = REPAYMENT[device_type]
    budget = inf if max_seconds is None else max_seconds
    planned = min(num_pictures / expected.pictures_per_second, budget)
    repays = planned >= expected.break_even
    beginning = "compiled: it repays" if repays else "eager: torch.compile would not repay"
    return Decision(
        repays,
        f"{beginning} its warm-up in about {planned / 60:.1f} minutes of training "
        f"(on {device_type} from {expected.break_even / 60:.1f} on)",
    )


def compile_obstacle(device: torch.device) -> str | None:
    """Return why torch.compile cannot be used for this device on this machine, None if it can."""
    if device.type not in REPAYMENT:
        return f"it is not used on {device.type}"
    if device.type == "cuda" and find_spec("triton") is None:
        return "there is no Triton for the kernels"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < TRITON_NEEDS:
        return "Triton knows no GPU as old as this one"
    compiler = _c_compiler() if device.type == "cuda" else _cpp_compiler()
    if shutil.which(compiler) is None:
        return f"there is no compiler {compiler!r}"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's C headers (Python.h) are not installed"
    return None


def _cpp_compiler() -> str:
    """Return the compiler command that torch calls for CPU code."""
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    return os.environ.get("CXX", usual)


def _c_compiler() -> str:
    """Return the compiler command that Triton calls for the launchers of its kernels."""
    found = [name for name in ("gcc", "clang", "cc", "cl") if shutil.which(name)]
    return os.environ.get("CC", [*found, "gcc"][0])


def compile_trained(*modules: nn.Module) -> None:
    """Compile the forward passes of the modules that are trained; names and weights do not change.

    Calls in eval mode or without gradients stay eager, so that samples and metrics have the same
    bits however the model was trained. The code is compiled for one shape, that of the training
    batches.
    """
    for module in modules:
        if any(p.requires_grad for p in module.parameters()):
            _compile_forward(module)


@contextmanager
def naming_compile_errors() -> Iterator[None]:
    """Raise RunError, with a remedy, in place of a failure of torch.compile inside the `with`.

    Raises:
        RunError: the compiler exists but failed; has the first line of its message.
    """
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        if not isinstance(error, TorchDynamoException):
            raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RunError(
            f"torch.compile failed: {first}; train without it by --training.compile never"
        ) from error


def _compile_forward(module: nn.Module) -> None:
    eager = type(module).forward
    compiled = torch.compile(eager, dynamic=False)

    def forward(self: nn.Module, *inputs: Any) -> Any:
        learns = self.training and torch.is_grad_enabled()
        return (compiled if learns else eager)(self, *inputs)

    # Bound, not a closure over `module`: a deep copy, such as FSDP2's, then uses its own weights.
    module.forward = MethodType(forward, module)
