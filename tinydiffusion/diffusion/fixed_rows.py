"""Calls of one shape only, so that a picture does not depend on the size of its batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from tinydiffusion.abilities import TextFirst
from tinydiffusion.diffusion.denoiser import with_text
from tinydiffusion.protocols import Predict, TextStates


class FixedRows(nn.Module, TextFirst):
    """A network that always sees the same number of rows, the last call filled up.

    Matrix kernels sum in another order for another number of rows, so the same picture in a batch
    of 1 and of 8 differs in the last bits, and sometimes by one level after rounding. With calls
    of one shape it is the same to the bit. The price is paid by few pictures, whose calls are
    filled up: at 32 rows the quickstart's model makes 1.8 times as many pictures a second as at 8.

    Twice as many rows are 8 % faster (dev/LOG.md), and mostly summed in the same order. So where
    there are enough, the first call is made both ways, and if not a bit differs, later ones have
    twice as many.

    Args:
        network: See `protocols.Network`.
        rows: Rows of every call, or half of them.
    """

    def __init__(self, network: nn.Module, rows: int = 32) -> None:
        super().__init__()
        self.network = network
        self.rows = rows
        self.same: dict[torch.Size, bool] = {}
        """Of a picture's shape, whether calls of twice as many rows make the same bits."""

    def forward(
        self, sample: Float[Tensor, "B C H W"], timesteps: Float[Tensor, "B"], text: TextStates
    ) -> Float[Tensor, "B C H W"]:
        """The network's output, from as many calls as it takes."""
        return self.with_text(text)(sample, timesteps)

    def with_text(self, text: TextStates) -> Predict:
        """See `abilities.TextFirst`."""
        text = text.map(self._filled)
        single, double = (self._calls(text, rows) for rows in (self.rows, 2 * self.rows))

        def predict(
            sample: Float[Tensor, "B C H W"], timesteps: Float[Tensor, "B"]
        ) -> Float[Tensor, "B C H W"]:
            inputs = self._filled(sample), self._filled(timesteps)
            same = self.same.get(sample.shape[1:])
            output = _joined(double if same else single, *inputs)
            if same is None and len(double) < len(single):
                self.same[sample.shape[1:]] = torch.equal(output, _joined(double, *inputs))
            return output[: len(sample)]

        return predict

    def _filled(self, x: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "R ..."]:
        """With copies of the first row, as many as the last call lacks."""
        missing = -len(x) % self.rows
        return torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing else x

    def _calls(self, text: TextStates, rows: int) -> list[tuple[int, Predict]]:
        """Return the number of rows of each call, and the network with their texts."""
        return [(len(part.pooled), with_text(self.network, part)) for part in text.split(rows)]


def _joined(
    calls: Sequence[tuple[int, Predict]],
    sample: Float[Tensor, "B C H W"],
    timesteps: Float[Tensor, "B"],
) -> Float[Tensor, "B C H W"]:
    sizes = [rows for rows, _ in calls]
    parts = zip(calls, sample.split(sizes), timesteps.split(sizes), strict=True)
    return torch.cat([predict(x, t) for (_, predict), x, t in parts])
