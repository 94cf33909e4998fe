"""The processes of one job, as started by torchrun or accelerate launch.

accelerate makes the process group; this module only uses it.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from tinydiffusion.runtime.errors import LostProcessError, RunError, exit_code_of

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
TIMEOUT = timedelta(hours=12)
"""Longest wait for another process: while one measures or a disk is full, the others wait."""


class StoppedTogether(RunError):  # noqa: N818
    """A stop of the job by another process; has the reason and exit code of that process."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


class StoppedFirst(RunError):  # noqa: N818
    """A mistake of the user that this process, not the main one, was the first to find."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Processes:
    """Rank of this process and number of processes; a job of one process needs no launcher.

    Collective methods synchronise: all processes must call them, in the same order. With one
    process they cost nothing.

    Attributes:
        rank: Index of this process, from 0; 0 is the main one, which alone writes and prints.
        count: Number of processes on all machines together.
        local_rank: Index of this process among those of its machine, from 0.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of ranks; picklable. Collective."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.count
        with naming_lost_processes():
            dist.all_gather_object(gathered, value)
        return gathered

    def agree(self, value: T) -> T:
        """Return the main process's value in all processes; picklable. Collective."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        given = [value]
        with naming_lost_processes():
            dist.broadcast_object_list(given, src=0)
        return given[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """Call `work` in the main process only, and return its result in all. Collective.

        Raises:
            Exception: in the main process, the exception of `work`.
            StoppedTogether: in the other processes, where `work` has raised.
        """
        if self.count == 1:
            return work()
        outcome: Any = (None, None)
        if self.is_main:
            try:
                outcome = (work(), None)
            except BaseException as error:
                self.agree((None, (str(error), exit_code_of(error))))
                raise
        result, stop = self.agree(outcome)
        if stop is not None:
            raise StoppedTogether(*stop)
        return result

    def largest(self, tensor: "Tensor") -> "Tensor":
        """Take the elementwise maximum of all processes' tensors, in place. Collective."""
        if self.count > 1:
            import torch.distributed as dist

            with naming_lost_processes():
                dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def hand_out(self, tensor: "Tensor") -> "Tensor":
        """Return the main process's tensor in all processes, on the CPU. Collective.

        Args:
            tensor: In the other processes, one of the same shape and type, on any device.
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
        """Raise in all processes where one has raised inside the `with`. Collective.

        Nothing inside the `with` may be collective. The process of the lowest rank that has raised
        gives the reason; the others end with its exit code.

        Raises:
            Exception: the one raised in this process, if no process of a lower rank has raised; a
                ValueError becomes StoppedFirst in a process that is not the main one.
            StoppedTogether: another process has raised.
        """
        try:
            yield
        except Exception as error:
            stop = (str(error), exit_code_of(error))
            self._stop_at_first(stop)
            if isinstance(error, ValueError) and not self.is_main:
                raise StoppedFirst(*stop) from error
            raise
        self._stop_at_first(None)

    def _stop_at_first(self, stop: tuple[str, int] | None) -> None:
        """Raise StoppedTogether where the lowest rank with a reason to stop is another process."""
        stops = [(rank, given) for rank, given in enumerate(self.gather(stop)) if given is not None]
        if stops and stops[0][0] != self.rank:
            raise StoppedTogether(*stops[0][1])

    def wait(self) -> None:
        """Wait until all processes have called this. Collective."""
        self.gather(None)

    @contextmanager
    def one_by_one(self) -> Iterator[None]:
        """Run the `with` in the first process of each machine before the others. Collective.

        The others then find in a cache the files that it has left there.
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
    """Join the process group of the launcher inside the `with`; without a launcher, yield `ALONE`.

    Args:
        device: As in `training.device`; "cpu" for a group that computes on CPUs.

    Raises:
        LostProcessError: the other processes are unreachable.
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
    finally:  # else the threads of the group are killed at exit, and the process aborts
        state.destroy_process_group()


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Raise LostProcessError in place of torch's connection errors inside the `with`.

    Raises:
        LostProcessError: another process has ended or is unreachable; one line.
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
