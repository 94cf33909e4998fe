"""The optimizer: AdamW, and Muon for the matrices of the modules that are named for it."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.training.optimizers.muon import GuardedMuon, gradient_of
from tinydiffusion.training.parallel.contract import Parallel


class Optimizer:
    """AdamW over the trained parameters of a module, except those that Muon trains.

    Args:
        module: What is trained.
        parallel: How the processes of the run hold it.
        learning_rate: AdamW's, at its highest.
        betas: AdamW's.
        weight_decay: Of both; on matrices and kernels only, not on biases, gains or other vectors.
        muon_modules: Names of modules whose linear layers and convolutions Muon trains, but not
            their biases; "" is all.
        muon_learning_rate: Muon's, at its highest.

    Raises:
        ValueError: a name in `muon_modules` is no module, or holds nothing for Muon.
    """

    def __init__(
        self,
        module: nn.Module,
        parallel: Parallel,
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        muon_modules: Sequence[str] = (),
        muon_learning_rate: float = 0.01,
    ) -> None:
        parameters = parallel.parameters
        muon_names = {n for name in muon_modules for n in _weights(module, name)}
        matrices = {n: p for n, p in parameters.items() if n in muon_names}
        others = {n: p for n, p in parameters.items() if n not in muon_names}
        self.parts: list[tuple[float, GuardedAdamW | GuardedMuon]] = []
        if matrices:
            muon = GuardedMuon(matrices, parallel, weight_decay=weight_decay)
            self.parts.append((muon_learning_rate, muon))
        if others:
            adamw = GuardedAdamW(others, betas=betas, weight_decay=weight_decay)
            self.parts.append((learning_rate, adamw))

    def guarded_step(self, factor: float, call_off: Float[Tensor, ""]) -> None:
        """One update at `factor` times the learning rates, or none where `call_off` is 1."""
        for learning_rate, part in self.parts:
            part.guarded_step(learning_rate * factor, call_off)

    def named_state(self) -> dict[str, Tensor]:
        """Every tensor of the state as `<parameter name>/<state name>`."""
        return {k: v for _, part in self.parts for k, v in part.named_state().items()}

    def expected_state(self, names: AbstractSet[str]) -> dict[str, Tensor]:
        """Tensors like those of the state that has these names, of parameters that were updated."""
        return {k: v for _, part in self.parts for k, v in part.expected_state(names).items()}

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `named_state` returned, in the memory layout of the parameters."""
        for _, part in self.parts:
            part.load_named_state(tensors)


class GuardedAdamW:
    """AdamW with a step that can be called off on the device, without waiting for it.

    Loshchilov & Hutter (2019), algorithm 2. https://arxiv.org/abs/1711.05101. The step is torch's;
    not so its `torch.optim.AdamW`, the first of which imports torch's compiler for two seconds.

    Args:
        parameters: What is trained, by name.
        betas: Shares of the old moments that a step keeps, in [0, 1).
        weight_decay: Share of the matrices and kernels, times the learning rate, taken off at
            every step.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        self.parameters = dict(parameters)
        self.betas, self.weight_decay = betas, weight_decay
        self.state: dict[str, dict[str, Tensor]] = {}  # of parameters that were updated

    @torch.no_grad()
    def guarded_step(self, learning_rate: float, call_off: Float[Tensor, ""]) -> None:
        """One update at this learning rate, or none where `call_off` is 1."""
        names = [name for name, p in self.parameters.items() if p.grad is not None]
        for name in names:
            if name not in self.state:
                self.state[name] = {k: torch.zeros_like(v) for k, v in self._likes(name).items()}
        matrices = [name for name in names if self.parameters[name].ndim >= 2]
        vectors = [name for name in names if self.parameters[name].ndim < 2]
        for group, weight_decay in ((matrices, self.weight_decay), (vectors, 0.0)):
            if group:
                self._update(group, learning_rate, weight_decay, call_off)

    def named_state(self) -> dict[str, Tensor]:
        """Every tensor of the state as `<parameter name>/<state name>`."""
        return {f"{name}/{k}": v for name, state in self.state.items() for k, v in state.items()}

    def expected_state(self, names: AbstractSet[str]) -> dict[str, Tensor]:
        """The step and both moments of every parameter that has any of them among the names."""
        expected = {}
        for name in self.parameters:
            state = {f"{name}/{key}": like for key, like in self._likes(name).items()}
            expected |= state if names & state.keys() else {}
        return expected

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `named_state` returned, in the memory layout of the parameters."""
        for key, like in self.expected_state(tensors.keys()).items():
            name, _, kind = key.rpartition("/")
            state = self.state.setdefault(name, {})
            state[kind] = torch.empty_like(like).copy_(tensors[key])

    def _likes(self, name: str) -> dict[str, Tensor]:
        parameter = self.parameters[name].detach()
        step = torch.zeros((), device=parameter.device)
        return {"step": step, "exp_avg": parameter, "exp_avg_sq": parameter}

    def _update(
        self,
        names: Sequence[str],
        learning_rate: float,
        weight_decay: float,
        call_off: Float[Tensor, ""],
    ) -> None:
        parameters: list[Tensor] = [self.parameters[name] for name in names]
        gradients = [gradient_of(self.parameters[name]) for name in names]
        steps, averages, squares = (
            [self.state[name][key] for name in names] for key in ("step", "exp_avg", "exp_avg_sq")
        )
        torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
        torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
            parameters, gradients, averages, squares, [], steps,
            lr=learning_rate, beta1=self.betas[0], beta2=self.betas[1], weight_decay=weight_decay,
            eps=1e-8, amsgrad=False, maximize=False, found_inf=call_off,
        )  # fmt: skip
        torch._foreach_sub_(steps, [call_off] * len(steps))  # pyright: ignore[reportPrivateImportUsage]


def _weights(module: nn.Module, name: str) -> list[str]:
    modules = dict(module.named_modules())
    if name not in modules:
        known = sorted(child for child, _ in module.named_children())
        raise ValueError(
            f"muon_modules must name modules of the objective, such as {known}, got {name!r}"
        )
    weights = [
        ".".join(filter(None, (name, path, "weight")))
        for path, layer in modules[name].named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.requires_grad
    ]
    if not weights:
        raise ValueError(
            f"muon_modules names {name!r}, which holds no linear layer or convolution to train; "
            "leave it out"
        )
    return weights
