"""Optional abilities of plug-ins; `protocols` has what every one must do.

A plug-in declares an ability by naming it among its base classes. A method of the same name is not
enough, as it may mean something else; `undeclared` finds those that look like one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tinydiffusion.protocols import Dataset, Example, Predict, TextStates

# ---- data sets -------------------------------------------------------------------------------


class Augmented(ABC):
    """A data set that draws something anew at every visit (crop, flip)."""

    @abstractmethod
    def augment(self, index: int, generator: torch.Generator) -> Example:
        """The example as training sees it; all randomness comes from `generator`."""
        ...


class Streaming(ABC):
    """A data set too large to be read in any order: near pictures come at near times.

    `visit` takes the place of `__getitem__` and `augment` in training. A process asks for its own
    places only, which mostly grow; what it is told must not depend on what it has asked before.
    """

    @abstractmethod
    def visit(self, order_seed: int, place: int, generator: torch.Generator) -> Example:
        """The example at `place`, in [0, len), of the epoch that `order_seed` shuffles.

        Every example comes once per epoch. All other randomness (crop, flip) comes from
        `generator`.

        Raises:
            UnusablePictureError: the picture proves unusable; it is left out of the batch.
        """
        ...


class Captioned(ABC):
    """A data set that can tell its captions without its pictures."""

    @abstractmethod
    def captions(self) -> Iterable[str]:
        """Every caption of every example, of lists too."""
        ...


class Selective(ABC):
    """A data set that may leave pictures out."""

    @abstractmethod
    def describe_skipped(self) -> str:
        """Return the number of pictures left out for each reason; empty where none was."""
        ...


class Divisible(ABC):
    """A data set that can be divided by the content of its pictures."""

    @abstractmethod
    def divided(self, fraction: float) -> "tuple[Dataset, Dataset]":
        """All pictures but about this fraction, and these.

        Equal pictures come to the same side, and a picture keeps its side when others are added.

        Raises:
            ValueError: one side would be empty, or it cannot be told apart.
        """
        ...


class Fingerprinted(ABC):
    """A data set that can name every example's content cheaply.

    A resumed run compares it with what it was and says which examples were added, removed or
    edited; of other data sets it looks at a sample.
    """

    @abstractmethod
    def fingerprints(self) -> Mapping[str, str]:
        """Example id -> SHA-256 of its captions and pixels, in the data set's order."""
        ...


# ---- text encoders ---------------------------------------------------------------------------


class EncodingAhead(ABC):
    """A frozen text encoder that computes the states of many captions once and keeps them on disk.

    Training calls these methods before the first step.
    """

    @abstractmethod
    def encode_ahead(
        self,
        captions: Iterable[str],
        share: tuple[int, int] = (0, 1),
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute this process's share of the states that are not there yet, "" included.

        On the encoder's device, with its present weights: to be called once both are as they will
        be. Once all shares are done, `encode` only looks up.

        Args:
            captions: All captions, the same for every share; repeats cost nothing.
            share: This process and the number of processes, as (rank, count).
            progress: Called with the captions of the share that are done, and with their number.
        """
        ...

    @abstractmethod
    def bytes_for(self, captions: Iterable[str]) -> int:
        """Bytes on disk that the states of these captions take; estimated where they are many."""
        ...


class KnowsWords(ABC):
    """A text encoder that knows which words the training captions had.

    Words of a prompt that are not among them are reported. They
    have to travel with `config()`.
    """

    words: set[str] | None  # None: too many to keep
    all_words: bool  # whether they are of all training captions

    @abstractmethod
    def words_of(self, captions: Iterable[str]) -> list[str]:
        """Return the distinct words of captions in their order, as the tokenizer sees them."""
        ...

    @abstractmethod
    def learn_words(self, captions: Iterable[str], *, are_all: bool) -> None:
        """Add the words of training captions.

        Args:
            captions: All that the training set has, or some.
            are_all: Which of the two.
        """
        ...


# ---- networks --------------------------------------------------------------------------------


class Previewing(ABC):
    """A network that guesses a small picture from the text alone.

    The `denoising` objective trains this method.
    """

    @abstractmethod
    def preview(self, text: TextStates) -> Float[Tensor, "B C side side"]:
        """The mean of all pictures that the text may mean, in [-1, 1], at any side."""
        ...


class TextFirst(ABC):
    """A network that computes once what the text alone decides, for many calls with one text.

    Sampling calls this method.
    """

    @abstractmethod
    def with_text(self, text: TextStates) -> Predict:
        """The network with this text, to the bit, for as long as its weights stay as they are."""
        ...


# ---- objectives ------------------------------------------------------------------------------


class PrescribesSampling(ABC):
    """An objective whose models are made for one way of sampling.

    Other settings are refused in a run and reported elsewhere.
    """

    @staticmethod
    @abstractmethod
    def prescribed_sampling(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return keys of `config.SamplingConfig` and their values, given the objective's options.

        Args:
            options: As a config has them; of a stranger's model they may lack some.
        """
        ...


class NotDecomposable(ABC):  # noqa: B024 - a statement, without methods
    """An objective whose mean over a batch is not the mean over its parts.

    Such as one that compares the pictures of a batch with each other. Training refuses to cut its
    batches: no accumulation, one process.
    """


class Stateful(ABC):
    """An objective that remembers more than its parameters and its persistent buffers.

    Both are in every checkpoint without this ability.
    """

    @abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """Return what a resumed run has to know; the same names and shapes at every time."""
        ...

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned in another process."""
        ...


# ---- evaluators ------------------------------------------------------------------------------


class Illustrated(ABC):
    """An evaluator that shows pictures beside its numbers, for the report."""

    @abstractmethod
    def figures(self) -> Mapping[str, UInt8[Tensor, "3 H W"]]:
        """Pictures by name, a function of the same state as `compute()`."""
        ...


ABILITIES: dict[str, tuple[type, ...]] = {
    "dataset": (Augmented, Streaming, Captioned, Selective, Divisible, Fingerprinted),
    "text_encoder": (EncodingAhead, KnowsWords),
    "network": (Previewing, TextFirst),
    "objective": (PrescribesSampling, NotDecomposable, Stateful),
    "evaluator": (Illustrated,),
}
"""Plug-in kind -> abilities that it may declare."""


def undeclared(kind: str, plugin: object) -> list[str]:
    """Find abilities that a plug-in has the methods of and does not declare.

    Args:
        kind: See `registry.KINDS`.
        plugin: An object of the plug-in's class.

    Returns:
        A line for each, with what to do.
    """
    cls = type(plugin)
    return [
        f"{kind} {cls.__name__} has {' and '.join(_methods(ability))}, which nobody calls: name "
        f"`tinydiffusion.abilities.{ability.__name__}` among its base classes, or rename it"
        for ability in ABILITIES.get(kind, ())
        if _methods(ability)
        and not isinstance(plugin, ability)
        and all(callable(getattr(cls, name, None)) for name in _methods(ability))
    ]


def _methods(ability: type) -> list[str]:
    return sorted(getattr(ability, "__abstractmethods__", ()))
