"""The processes that do one job together, as torchrun or accelerate launch has started them.

accelerate makes the process group; nothing here does what it does.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from tinydiffusion.runtime.errors import LostProcessError, RunError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
TIMEOUT = timedelta(hours=12)
"""Of a wait for another process: while one measures or a disk is full, the others stand still."""


class StoppedTogether(RunError):  # noqa: N818
    """What the main process has stopped for, in the processes that did not meet it themselves."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class StoppedFirst(RunError):  # noqa: N818
    """A user's mistake that another process than the main one has met: it speaks for all."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is; a job of one process needs no launcher.

    Collective methods return at the same time everywhere: all processes must call them, in the
    same order. With one process they cost nothing.

    Attributes:
        rank: This process, from 0; 0 is the main one, which alone writes and speaks.
        count: How many there are, on all machines together.
        local_rank: This process among those of its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What every process has given, in the order of ranks; picklable. Collective."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.count
        with naming_lost_processes():
            dist.all_gather_object(gathered, value)
        return gathered

    def agree(self, value: T) -> T:
        """What the main process has given; picklable. Collective."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        given = [value]
        with naming_lost_processes():
            dist.broadcast_object_list(given, src=0)
        return given[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns in the main process, the only one that does it. Collective.

        Raises:
            Exception: what `work` has raised, in the main process.
            StoppedTogether: that it has raised, in the others.
        """
        if self.count == 1:
            return work()
        outcome: Any = (None, None)
        if self.is_main:
            try:
                outcome = (work(), None)
            except BaseException as error:
                self.agree((None, (str(error), getattr(error, "exit_code", 2))))
                raise
        result, stop = self.agree(outcome)
        if stop is not None:
            raise StoppedTogether(*stop)
        return result

    def largest(self, tensor: "Tensor") -> "Tensor":
        """The largest that any process has given, entry by entry; in place. Collective."""
        if self.count > 1:
            import torch.distributed as dist

            with naming_lost_processes():
                dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def hand_out(self, tensor: "Tensor") -> "Tensor":
        """The main process's tensor, on the CPU; the others give one like it, on any device.

        Collective.
        """
        if self.count == 1:
            return tensor
        import torch
        import torch.distributed as dist

        sent = tensor.cpu().contiguous() if self.is_main else torch.empty_like(tensor, device="cpu")
        with naming_lost_processes():
            dist.broadcast(sent, src=0)
        return sent

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside the `with`, where nothing is collective, what stops one process stops all.

        The first that has raised says why; the others end with its exit code. Collective.

        Raises:
            Exception: what was raised here, where no process of a lower rank has raised; of the
                user's mistakes, StoppedFirst in a process that is not the main one.
            StoppedTogether: that another process has raised.
        """
        try:
            yield
        except Exception as error:
            stop = (str(error), getattr(error, "exit_code", 2))
            self._stop_at_first(stop)
            if isinstance(error, ValueError) and not self.is_main:
                raise StoppedFirst(*stop) from error
            raise
        self._stop_at_first(None)

    def _stop_at_first(self, stop: tuple[str, int] | None) -> None:
        """Raise StoppedTogether where the first that gives a reason to stop is another process."""
        stops = [(rank, given) for rank, given in enumerate(self.gather(stop)) if given is not None]
        if stops and stops[0][0] != self.rank:
            raise StoppedTogether(*stops[0][1])

    def wait(self) -> None:
        """Return once all processes have come here. Collective."""
        self.gather(None)

    @contextmanager
    def one_by_one(self) -> Iterator[None]:
        """Inside the `with`, the first process of each machine works before the others do.

        What it leaves in a cache, the others find there. Collective.
        """
        if self.count > 1 and self.local_rank > 0:
            self.wait()
        try:
            yield
        finally:
            if self.count > 1 and self.local_rank == 0:
                self.wait()


ALONE = Processes()
"""A job of one process."""


@contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """Inside the `with`, this process among those of its launcher; alone where there was none.

    Args:
        device: As in `training.device`; "cpu" for a group that computes on processors.

    Raises:
        LostProcessError: the others are out of reach.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    import torch
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    backend = "gloo" if on_cpu else "cpu:gloo,cuda:nccl"
    with naming_lost_processes():
        state = PartialState(cpu=on_cpu, backend=backend, timeout=TIMEOUT)
    try:
        yield Processes(state.process_index, state.num_processes, state.local_process_index)
    finally:  # else the threads of the group are cut off, and the process aborts
        state.destroy_process_group()


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Say in one line that another process is gone where torch tells of its connection.

    Raises:
        LostProcessError: in place of torch's error.
    """
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if not lost or isinstance(error, RunError):
            raise
        reason = re.sub(r"^\[\S*\]\s*", "", str(error)).partition(". ")[0]
        raise LostProcessError(
            f"another process of this job has ended or is out of reach ({reason}). Its own "
            "message tells why; the same command goes on from the last checkpoint"
        ) from error
