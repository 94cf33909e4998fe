"""AdamW over the trained parameters of a module, and its state by parameter name."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.training.ema import trained_parameters


class GuardedAdamW(torch.optim.AdamW):
    """AdamW with a step that can be called off on the device, without waiting for it.

    Weight decay acts on matrices and kernels (two or more dimensions) only, not on biases, gains
    or other vectors. Loshchilov & Hutter (2019), algorithm 2. https://arxiv.org/abs/1711.05101
    """

    found_inf: Tensor  # read by torch's fused step: 1 leaves weights and state as they are

    def __init__(
        self,
        module: nn.Module,
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        self.parameters_by_name = trained_parameters(module)
        parameters = self.parameters_by_name.values()
        self.found_inf = torch.zeros((), device=next(iter(parameters)).device)
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        super().__init__([g for g in groups if g["params"]], learning_rate, betas, fused=True)

    def guarded_step(self, learning_rate: float, call_off: Float[Tensor, ""]) -> None:
        """One update at this learning rate, or none where `call_off` is 1."""
        for group in self.param_groups:
            group["lr"] = learning_rate
        self.found_inf = call_off
        self.step()

    def named_state(self) -> dict[str, Tensor]:
        """Every tensor of the state as `<parameter name>/<state name>`."""
        return {
            f"{name}/{key}": value
            for name, parameter in self.parameters_by_name.items()
            for key, value in self.state[parameter].items()
        }

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `named_state` returned, in the memory layout of the parameters."""
        for name, parameter in self.parameters_by_name.items():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{name}/{key}" in tensors:
                    value = tensors[f"{name}/{key}"]
                    like = torch.empty_like(parameter if key != "step" else self.found_inf)
                    self.state[parameter][key] = like.copy_(value)
