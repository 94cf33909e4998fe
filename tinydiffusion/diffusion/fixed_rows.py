"""Calls of one shape only, so that a picture does not depend on the size of its batch."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from tinydiffusion.diffusion.denoiser import with_text
from tinydiffusion.protocols import Predict, TextStates


class FixedRows(nn.Module):
    """A network that always sees the same number of rows, the last call filled up.

    Matrix kernels sum in another order for another number of rows, so the same picture in a batch
    of 1 and of 8 differs in the last bits, and sometimes by one level after rounding. With calls
    of one shape it is the same to the bit. The price is paid by few pictures, whose calls are
    filled up, or by many, whose calls could be larger: at 32 rows the quickstart's model makes
    1.8 times as many pictures a second as at 8, and 64 rows would add 15 % (dev/LOG.md).

    Args:
        network: See `protocols.Network`.
        rows: Rows of every call.
    """

    def __init__(self, network: nn.Module, rows: int = 32) -> None:
        super().__init__()
        self.network = network
        self.rows = rows

    def forward(
        self, sample: Float[Tensor, "B C H W"], timesteps: Float[Tensor, "B"], text: TextStates
    ) -> Float[Tensor, "B C H W"]:
        """The network's output, from as many calls as it takes."""
        return self.with_text(text)(sample, timesteps)

    def with_text(self, text: TextStates) -> Predict:
        """See `protocols.TextFirst`."""
        calls = [
            with_text(self.network, TextStates(*states))
            for states in zip(*(self._filled(x) for x in text), strict=True)
        ]

        def predict(
            sample: Float[Tensor, "B C H W"], timesteps: Float[Tensor, "B"]
        ) -> Float[Tensor, "B C H W"]:
            parts = zip(calls, self._filled(sample), self._filled(timesteps), strict=True)
            return torch.cat([call(x, t) for call, x, t in parts])[: len(sample)]

        return predict

    def _filled(self, x: Shaped[Tensor, "B ..."]) -> tuple[Shaped[Tensor, "R ..."], ...]:
        """The rows of each call; what the last one lacks are copies of the first row."""
        if missing := -len(x) % self.rows:
            x = torch.cat([x, x[:1].expand(missing, *x.shape[1:])])
        return x.split(self.rows)
