"""The shape legend and every plug-in contract, on one page.

A plug-in is one file; its file name is its name. Nothing here has to be subclassed: a class or
function that has these methods *is* the plug-in.

Shape letters used in every annotation of this package:

    B  pictures in the batch        C  colour channels (3)       H, W  picture height and width
    L  text tokens                  D  width of the text states  P     width of the pooled text
    T  num_train_timesteps          S  sampling steps            N, M  numbers of samples
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

Generators = Sequence[torch.Generator]
"""One generator per picture, so that picture i is the same in any batch and any process."""


# ---- data ------------------------------------------------------------------------------------


class Example(TypedDict):
    """One captioned picture; other tensors, of one shape in all examples, travel along."""

    image: UInt8[Tensor, "C H W"]
    caption: str | list[str]  # of a list, one is drawn per visit
    id: str


class Batch(TypedDict):
    """Captioned pictures on their way to an objective, one caption each.

    What else of tensors the examples have is stacked under the same names.
    """

    image: UInt8[Tensor, "B C H W"]
    caption: list[str]
    id: list[str]
    position: list[int]  # numbers in the endless order of a run's pictures


@runtime_checkable
class Dataset(Protocol):
    """Map-style captioned pictures; the order is decided elsewhere (`training/data_order.py`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """The example as an evaluator sees it: nothing random."""
        ...


# ---- text ------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """Captions as numbers."""

    ids: Int[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]  # True where there is a token, False on padding
    num_truncated: int = 0  # captions that were cut to fit


class TextStates(NamedTuple):
    """What conditions the network; to be taken apart by `map`, `rows` and `cat` only."""

    encoder_hidden_states: Float[Tensor, "B L D"]
    mask: Bool[Tensor, "B L"]
    pooled: Float[Tensor, "B P"]
    hint: Float[Tensor, "B K h w"] | None = None  # a picture that is concatenated to the sample

    def map(self, function: Callable[[Tensor], Tensor]) -> "TextStates":
        """Apply a function to every part that is there."""
        hint = None if self.hint is None else function(self.hint)
        states, mask, pooled = map(function, self[:3])
        return TextStates(states, mask, pooled, hint)

    def rows(self, rows: "slice | Sequence[int] | Int[Tensor, 'R']") -> "TextStates":
        """Take the conditions of some pictures, in the order of the numbers."""
        return self.map(lambda part: part[rows])

    def split(self, size: int) -> "list[TextStates]":
        """Cut them into pieces of `size` pictures; the last one may have fewer."""
        return [self.rows(slice(i, i + size)) for i in range(0, len(self.pooled), size)]

    @staticmethod
    def cat(several: "Sequence[TextStates]") -> "TextStates":
        """Put several together, one after the other.

        Raises:
            ValueError: some have a hint and some have none.
        """
        hints = [each.hint for each in several if each.hint is not None]
        if hints and len(hints) < len(several):
            raise ValueError(f"{len(hints)} of {len(several)} conditions have a hint; all must")
        columns = zip(*(each[:3] for each in several), strict=True)
        states, mask, pooled = map(torch.cat, columns)
        return TextStates(states, mask, pooled, torch.cat(hints) if hints else None)


@runtime_checkable
class TextEncoder(Protocol):
    """An `nn.Module` that turns captions into text states.

    L is the same for every call of one encoder, so that a picture does not depend on the prompts
    that share its batch.
    """

    hidden_size: int  # D
    pooled_size: int  # P
    max_length: int  # L
    frozen: bool  # a frozen encoder is never trained and remembers what it has encoded

    @classmethod
    def from_captions(cls, captions: Sequence[str], **options: Any) -> "TextEncoder":
        """A new encoder; one that learns its vocabulary learns it from these captions."""
        ...

    def tokenize(self, captions: Sequence[str]) -> Tokens: ...

    def __call__(self, tokens: Tokens) -> TextStates: ...

    def encode(self, captions: Sequence[str]) -> TextStates:
        """Tokenize and run; a frozen encoder runs once per caption and remembers the states."""
        ...

    def config(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild the encoder before its weights are loaded."""
        ...


# ---- diffusion -------------------------------------------------------------------------------


@runtime_checkable
class Network(Protocol):
    """The trained noise predictor, an `nn.Module`."""

    def __call__(
        self,
        sample: Float[Tensor, "B C H W"],
        timesteps: Float[Tensor, "B"],
        text: TextStates,
    ) -> Float[Tensor, "B C H W"]: ...


Predict = Callable[[Float[Tensor, "B C H W"], Float[Tensor, "B"]], Float[Tensor, "B C H W"]]
"""What a network is with one text: a function of sample and timesteps."""


@runtime_checkable
class Denoise(Protocol):
    """A noisy picture and its noise level in, the clean picture x_0 out.

    `x = x_0 + sigma * noise`: noise levels are noise / signal, whatever the schedule.
    """

    def __call__(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, ""]
    ) -> Float[Tensor, "B C H W"]: ...


@runtime_checkable
class Sampler(Protocol):
    """The loop from noise to picture: a plain function, one file each.

    `sigmas` fall and end in 0, shape (S+1,); `x` is noise of standard deviation `sigmas[0]`.
    A sampler knows nothing of text, guidance, prediction type or latent space. Deterministic ones
    ignore `generators`; stochastic ones are loops over a public `transition`, which returns mean
    and standard deviation of a step, so that the probability of what was drawn is known.
    """

    def __call__(
        self,
        denoise: Denoise,
        x: Float[Tensor, "B C H W"],
        sigmas: Float[Tensor, "S_plus_1"],
        *,
        generators: Generators,
        **options: Any,
    ) -> Float[Tensor, "B C H W"]: ...


# ---- learning --------------------------------------------------------------------------------


@runtime_checkable
class Objective(Protocol):
    """Turns a batch into one number to be made small; an `nn.Module` holding what it trains.

    The trainer knows nothing else: `parameters()` that require a gradient are trained, averaged
    (EMA) and saved; persistent buffers are saved as they are, parameters without a gradient are
    not, as they do not change. What else it must remember: `abilities.Stateful`.
    """

    def loss(
        self, batch: Batch, generators: Generators
    ) -> tuple[Float[Tensor, ""], Mapping[str, float | Tensor]]:
        """The mean loss of the pictures, and scalars to log.

        All randomness of a picture comes from its own generator and from its position, so that
        the mean over a batch is the mean over its parts, however it is cut.
        """
        ...


# ---- measuring -------------------------------------------------------------------------------


@runtime_checkable
class FeatureExtractor(Protocol):
    """Pictures to features; shared by every evaluator that names it."""

    dimensions: int  # D

    def __call__(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]: ...

    def spec(self) -> dict[str, Any]:
        """Name, weights_sha256, resize, antialias, layer, dtype: what makes a number comparable."""
        ...


SOURCES = ("generated", "reference", "train")


class EvalBatch(TypedDict):
    """Pictures on their way to an evaluator."""

    source: str  # one of SOURCES
    id: Int[Tensor, "N"]  # global picture number; generated picture i answers prompt i
    image: UInt8[Tensor, "N C H W"]
    prompt: list[str]


class Score(NamedTuple):
    """One row of a report."""

    name: str
    value: float
    n: int
    ci95: tuple[float, float] | None = None
    higher_is_better: bool = True
    details: Mapping[str, Any] = {}
    warnings: Sequence[str] = ()
    per_picture: Mapping[int, float] = {}  # id -> value, where pictures have one: for pairing


EvaluatorState = dict[str, tuple[Tensor, Literal["sum", "cat"]]]


@runtime_checkable
class Evaluator(Protocol):
    """A metric. Its result is a function of `state()` alone, so that parts can be merged."""

    needs: tuple[str, ...]  # sources, and "prompts" where generated pictures must have one

    def update(self, batch: EvalBatch) -> None: ...

    def state(self) -> EvaluatorState:
        """Named tensors, each with how parts merge: by sum or by concatenation."""
        ...

    def load_state(self, state: EvaluatorState) -> None:
        """Take over a (merged) state in place of the present one."""
        ...

    def compute(self) -> list[Score]: ...

    def provenance(self) -> dict[str, Any]: ...


@runtime_checkable
class Hook(Protocol):
    """Something the trainer calls between two steps, such as a sample grid."""

    every: int  # pictures seen between two calls

    def __call__(
        self, pictures_seen: int, run_dir: Path, modules: nn.Module
    ) -> dict[str, float | str]:
        """Scalars for the log, or the path of a file written; `modules` is the objective.

        It has its EMA weights swapped in, is in eval mode and records no gradients.
        """
        ...
