"""Which pictures come when: a pure function of (seed, position), never of processes or history.

The position is the number of pictures seen. A run that is resumed at a position goes on with the
very pictures, captions and augmentations that it would have seen without the stop.
"""

import hashlib
import itertools
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from tinydiffusion.abilities import Augmented, Streaming
from tinydiffusion.pictures.usable import read_usable
from tinydiffusion.protocols import Batch, Dataset, Example
from tinydiffusion.runtime.errors import RunError, WorkerError

PREFETCHED = 2  # batches kept ready, per worker


def seed_for(seed: int, purpose: str, position: int) -> int:
    """A 63-bit seed that depends on all three and is the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, purpose: str, position: int) -> torch.Generator:
    """A fresh CPU generator for one purpose ("noise", "caption" ...) at one position."""
    return torch.Generator().manual_seed(seed_for(seed, purpose, position))


@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, length: int) -> Int[Tensor, "N"]:
    """The order of one epoch: every index in [0, length) once. Shared by callers: do not write."""
    return torch.randperm(length, generator=generator_for(seed, "order", epoch))


class Batches:
    """Batches cut from the endless concatenation of shuffled epochs.

    Args:
        dataset: Captioned pictures, all of one size. One that is `Augmented` is asked for its
            augmented pictures.
        batch_size: Pictures per batch. A batch may span two epochs.
        seed: Of the order, the captions drawn and the augmentation.
        num_workers: Processes that load ahead; with 0 a thread does so where a GPU computes, and
            nothing where the CPU itself does. Does not change what is loaded.
        share: Which of how many equal parts of every batch is loaded here, counted from 0; the
            others are for the other processes of a run.

    Raises:
        ValueError: `dataset` is empty, or a number is out of its range.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        *,
        num_workers: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("the data set is empty; there is nothing to train on")
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                "batch_size must be at least 1 and num_workers at least 0, "
                f"got {batch_size} and {num_workers}"
            )
        number, count = share
        if batch_size % count:
            raise ValueError(
                f"a batch of {batch_size} pictures cannot be shared equally by {count} processes"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        size = batch_size // count
        self._part = range(number * size, (number + 1) * size)  # places in the batch

    def batch_at(self, pictures_seen: int) -> Batch:
        """This share of the batch that begins at a position.

        A picture that proves unusable is left out: the batch is then smaller.

        Raises:
            ValueError: no picture of the share can be used, some are not uint8 or differ in size,
                or have no caption; names the id.
        """
        places = range(pictures_seen + self._part.start, pictures_seen + self._part.stop)
        found = {p: e for p in places if (e := self._usable_at(p)) is not None}
        if not found:
            raise ValueError(
                f"none of the {len(places)} pictures from position {places.start} on can be used"
            )
        positions, examples = list(found), list(found.values())
        _check_images(examples)
        captions = [self._caption(e, p) for e, p in zip(examples, positions, strict=True)]
        return collate(examples, captions, positions)

    def starting_at(self, pictures_seen: int, *, pin_memory: bool = False) -> Generator[Batch]:
        """The endless batches from a position on.

        An error of the data set is raised here, in the thread that asks for the batch. Close the
        iterator (or drop it) to stop loading.

        Args:
            pictures_seen: Position of the first picture.
            pin_memory: A GPU computes: load ahead, into page-locked memory.
        """
        if self.num_workers:
            return self._from_workers(pictures_seen, pin_memory)
        if pin_memory:
            return self._from_thread(pictures_seen)
        return self._in_line(pictures_seen)

    def ids(self, first: int, end: int) -> list[str]:
        """Ids of the pictures at positions `first` ... `end - 1`."""
        examples = map(self._usable_at, range(first, end))
        return [example["id"] for example in examples if example is not None]

    def _in_line(self, pictures_seen: int) -> Generator[Batch]:
        # On a CPU a thread that loads ahead takes cores from the step: measured, 28 % slower.
        for position in itertools.count(pictures_seen, self.batch_size):
            yield self.batch_at(position)

    def _from_thread(self, pictures_seen: int) -> Generator[Batch]:
        def load(position: int) -> Batch:
            batch = self.batch_at(position)
            return on_tensors(batch, Tensor.pin_memory)

        positions = itertools.count(pictures_seen, self.batch_size)
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        try:
            ready = deque(pool.submit(load, next(positions)) for _ in range(PREFETCHED))
            while True:
                batch = ready.popleft().result()
                ready.append(pool.submit(load, next(positions)))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _from_workers(self, pictures_seen: int, pin_memory: bool) -> Generator[Batch]:
        loader = DataLoader(
            _BatchAtPosition(self),
            batch_size=None,
            sampler=itertools.count(pictures_seen, self.batch_size),  # pyright: ignore[reportArgumentType]
            num_workers=self.num_workers,
            prefetch_factor=PREFETCHED,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_parent,
            generator=torch.Generator(),  # the loader seeds its workers; not from our streams
        )
        batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except RuntimeError as error:
                raise _worker_error(error) from error
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def _usable_at(self, position: int) -> Example | None:
        return read_usable(lambda: self._example_at(position))

    def _example_at(self, position: int) -> Example:
        dataset, length = self.dataset, len(self.dataset)
        epoch, place = divmod(position, length)
        generator = generator_for(self.seed, "augment", position)
        if isinstance(dataset, Streaming):
            return dataset.visit(seed_for(self.seed, "order", epoch), place, generator)
        index = int(epoch_permutation(self.seed, epoch, length)[place])
        return (
            dataset.augment(index, generator) if isinstance(dataset, Augmented) else dataset[index]
        )

    def _caption(self, example: Example, position: int) -> str:
        captions = example["caption"]
        if isinstance(captions, str):
            return captions
        if not captions:
            raise ValueError(f"picture {example['id']!r} has an empty list of captions")
        generator = generator_for(self.seed, "caption", position)
        return captions[int(torch.randint(len(captions), (), generator=generator))]


def collate(
    examples: Sequence[Example], captions: Sequence[str], positions: Sequence[int]
) -> Batch:
    """Stack the tensors of some examples under their names, and list the rest.

    Args:
        examples: All with the same tensors.
        captions: One of each example.
        positions: Number of each in the endless order of the run's pictures.

    Raises:
        ValueError: a tensor that the first example has is missing or of another shape in one.
    """
    stacked: dict[str, Any] = {}
    for name, value in examples[0].items():
        if isinstance(value, Tensor):
            column: list[Any] = [example.get(name) for example in examples]
            for example, tensor in zip(examples, column, strict=True):
                if not isinstance(tensor, Tensor) or tensor.shape != value.shape:
                    raise ValueError(
                        f"example {example['id']!r} has no {name!r} of shape {tuple(value.shape)}, "
                        f"as example {examples[0]['id']!r} has"
                    )
            stacked[name] = torch.stack(column)
    own = Batch(
        image=stacked["image"], caption=list(captions), id=[e["id"] for e in examples],
        position=list(positions),
    )  # fmt: skip
    return cast(Batch, {**stacked, **own})


def on_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Apply a function to every tensor of a batch."""
    changed = {n: function(v) if isinstance(v, Tensor) else v for n, v in batch.items()}
    return cast(Batch, changed)


class _BatchAtPosition(TorchDataset[Batch | Exception]):
    """The data set of a worker process, whose index is the position of a batch."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Batch | Exception:
        try:
            return self.batches.batch_at(index)
        except (ValueError, RunError) as error:  # about the data: one line, without a traceback
            return error.with_traceback(None)


def _worker_error(error: RuntimeError) -> RuntimeError:
    if "DataLoader worker" not in str(error):
        return error
    return WorkerError(
        f"a process that loads pictures has died ({str(error).splitlines()[0]}), most likely for "
        "want of memory or of shared memory (/dev/shm). Lower training.num_workers, 0 needs none; "
        "the same command goes on"
    )


def _leave_signals_to_parent(worker: int) -> None:  # noqa: ARG001
    """Ctrl-C reaches every process of a terminal; the trainer alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_images(examples: list[Example]) -> None:
    first = examples[0]["image"]
    for example in examples:
        image = example["image"]
        if image.dtype != torch.uint8 or image.shape != first.shape:
            raise ValueError(
                f"picture {example['id']!r} is {image.dtype} of shape {tuple(image.shape)}; every "
                f"picture must be torch.uint8 and of one shape, here {tuple(first.shape)}"
            )
