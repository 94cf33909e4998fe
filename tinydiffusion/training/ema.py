"""Exponential moving average (EMA) of the trained weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def ema_decay(num_updates: int, *, max_decay: float = 0.9999, power: float = 0.75) -> float:
    """The share of the old average that the next update keeps, in [0, max_decay].

    Power-law warm-up of k-diffusion (`EMAWarmup`), where power 3/4 is advised for runs of fewer
    than a million steps: the average looks back over about `num_updates ** power` steps, 0.999
    being reached after 10,000. The first update (num_updates = 0) copies the weights.
    """
    return min(max_decay, 1 - (1 + num_updates) ** -power)


class EMA:
    """The running average of trained parameters.

    Args:
        parameters: What is averaged, by name.
        max_decay: Upper bound of the decay, in [0, 1).
        power: Exponent of the warm-up, in (0, 1].

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        max_decay: float = 0.9999,
        power: float = 0.75,
    ) -> None:
        if not (0 <= max_decay < 1 and 0 < power <= 1):
            raise ValueError(
                f"the EMA needs 0 <= max_decay < 1 and 0 < power <= 1, got {max_decay} and {power}"
            )
        self.max_decay, self.power = max_decay, power
        self.num_updates = 0
        self.weights = {name: p.detach().clone() for name, p in parameters.items()}
        self._parameters: list[Tensor] = list(parameters.values())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights; call once per optimizer step."""
        decay = ema_decay(self.num_updates, max_decay=self.max_decay, power=self.power)
        averages = list(self.weights.values())
        torch._foreach_lerp_(averages, self._parameters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.num_updates += 1

    def load(self, weights: Mapping[str, Tensor], num_updates: int) -> None:
        """Take over a saved average; the names must be those of this one."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])
        self.num_updates = num_updates
