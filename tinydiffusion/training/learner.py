"""One optimizer step of an objective: backward, clip, update, EMA."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.abilities import Stateful
from tinydiffusion.layers.precision import Precision, uses_bfloat16
from tinydiffusion.protocols import Batch, Objective
from tinydiffusion.runtime.processes import ALONE, Processes
from tinydiffusion.training.checkpoints.folder import Checkpoint, CheckpointError, difference
from tinydiffusion.training.data_order import generator_for, on_tensors, seed_for
from tinydiffusion.training.ema import EMA, trained_parameters
from tinydiffusion.training.log.window import Scalars
from tinydiffusion.training.optimizers.optimizer import Optimizer
from tinydiffusion.training.parallel.choice import parallel
from tinydiffusion.training.parallel.contract import Strategy
from tinydiffusion.training.ranges import check_ranges

STATE = "state/"
"""Prefix of what a `Stateful` objective remembers, in a checkpoint."""


class Learner:
    """An objective with its optimizer and its average: what one step changes.

    Args:
        objective: What is minimised; an `nn.Module`, already on its device.
        learning_rate: AdamW's at its highest.
        betas: Of AdamW.
        weight_decay: For tensors of two or more dimensions.
        muon_modules: Names of modules of the objective whose linear layers and convolutions Muon
            trains, see `muon.GuardedMuon`; "" is the whole objective.
        muon_learning_rate: Muon's at its highest; it rises and falls with AdamW's.
        gradient_clip: Largest norm of the gradient.
        ema_max_decay: See `ema.ema_decay`.
        ema_power: See `ema.ema_decay`.
        precision: Of the forward pass, see `precision.uses_bfloat16`.
        seed: Of noise and dropout.
        processes: That train together, each with its own pictures.
        strategy: "ddp": the whole model in each; "fsdp": a part of every tensor in each.

    Raises:
        ValueError: a number out of its range, the objective is no `nn.Module`, no parameter of it
            requires a gradient, or `muon_modules` names what is not there.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        muon_modules: Sequence[str] = (),
        muon_learning_rate: float = 0.01,
        gradient_clip: float = 1.0,
        ema_max_decay: float = 0.9999,
        ema_power: float = 0.75,
        precision: Precision = "auto",
        seed: int = 0,
        processes: Processes = ALONE,
        strategy: Strategy = "ddp",
    ) -> None:
        check_ranges(
            learning_rate=learning_rate,
            betas=betas,
            weight_decay=weight_decay,
            muon_learning_rate=muon_learning_rate,
            gradient_clip=gradient_clip,
        )
        if not isinstance(objective, nn.Module):
            raise ValueError(f"an objective must be an nn.Module, got {type(objective).__name__}")
        self.module: nn.Module = objective
        parameters = trained_parameters(self.module)
        if not parameters:
            raise ValueError("no parameter of the objective requires a gradient: nothing to train")
        self.processes, self.strategy = processes, strategy
        self.learning_rate = learning_rate
        self.device = next(iter(parameters.values())).device
        self.parallel = parallel(self.module, processes, strategy)
        self.parameters = self.parallel.parameters
        self.gradient_clip = gradient_clip
        self.seed = seed
        self.updating = False  # stays True where an error cut an update in two
        self.bfloat16 = uses_bfloat16(precision, self.device)
        self.ema = EMA(self.parameters, max_decay=ema_max_decay, power=ema_power)
        self.optimizer = Optimizer(
            self.module,
            self.parallel,
            learning_rate=learning_rate,
            betas=betas,
            weight_decay=weight_decay,
            muon_modules=muon_modules,
            muon_learning_rate=muon_learning_rate,
        )

    def step(
        self, batches: Sequence[Batch], learning_rate_factor: float
    ) -> tuple[list[Scalars], Float[Tensor, ""]]:
        """Scalars to log, and 1 where the update was called off for NaN or infinity, else 0.

        Does not wait for the device. The gradient is the mean over the batches, and over the
        processes. Collective.

        Args:
            batches: Micro-batches of equal size.
            learning_rate_factor: What the learning rates are multiplied by.
        """
        for parameter in self.parameters.values():
            parameter.grad = None
        scalars = []
        for left, batch in zip(reversed(range(len(batches))), batches, strict=True):
            with self.parallel.adding_up(last=left == 0):
                scalars.append(self._backward(batch, len(batches)))
        norm = self.parallel.clip(self.gradient_clip)
        losses = torch.stack([s["loss"] for s in scalars])
        call_off = (~torch.isfinite(norm + losses.sum())).float()
        call_off = self.processes.largest(call_off)
        self.updating = True
        self.optimizer.guarded_step(learning_rate_factor, call_off)
        self.ema.update()
        self.updating = False
        return [*scalars, {"gradient_norm": norm}], call_off

    def _backward(self, batch: Batch, num_batches: int) -> dict[str, Any]:
        torch.manual_seed(seed_for(self.seed, "dropout", batch["position"][0]))
        generators = [generator_for(self.seed, "noise", place) for place in batch["position"]]
        batch = on_tensors(batch, lambda tensor: tensor.to(self.device, non_blocking=True))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss, scalars = self.parallel.loss(batch, generators)
        (loss / num_batches).backward()
        return {
            name: value.detach() if isinstance(value, Tensor) else value
            for name, value in {**scalars, "loss": loss}.items()
        }

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The objective with EMA weights, in eval mode, without gradients; as it was afterwards.

        Collective; of use in the main process.
        """
        modes = {module: module.training for module in self.module.modules()}
        with self.parallel.showing(self.ema.weights), torch.no_grad():
            self.module.eval()
            try:
                yield self.module
            finally:
                for module, training in modes.items():
                    module.training = training

    def checkpoint(self, state: Mapping[str, Any]) -> Checkpoint:
        """Everything learned so far, beside `state`; the tensors are not copies. Collective.

        In the main process, that is: the others have no tensors.
        """
        model = {name: p.detach() for name, p in self.parameters.items()}
        parts = (model, self.ema.weights, self.optimizer.named_state())
        wholes = [self._wholes(part) for part in parts]
        own = remembered(self.parallel.objective) if self.processes.is_main else {}
        state = {**state, "ema_updates": self.ema.num_updates}
        return Checkpoint(*wholes, objective=own, state=state)

    def _wholes(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        wholes: dict[str, Tensor] = {}
        for key, part in parts.items():
            whole = self.parallel.whole(_parameter_of(key), part)
            if self.processes.is_main:
                wholes[key] = whole
        return wholes

    def checkpoint_bytes(self) -> int:
        """About how much a checkpoint takes: weights, their average, and two moments of each."""
        sizes = [shape.numel() for shape in self.parallel.shapes.values()]
        own = sum(tensor.nbytes for tensor in remembered(self.parallel.objective).values())
        return 4 * 4 * sum(sizes) + own + 2**20

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint) -> None:
        """Take over what a checkpoint has learned. Collective.

        Args:
            checkpoint: Read by the main process; in the others, its `outline`.

        Raises:
            CheckpointError: its tensors have other names, shapes or types, which it names, the
                optimizer's included.
        """
        optimizer = self.optimizer.expected_state(checkpoint.optimizer.keys())
        for part, saved, present in (
            ("model", checkpoint.model, self.parameters),
            ("average (EMA)", checkpoint.ema, self.ema.weights),
            ("optimizer (muon_modules?)", checkpoint.optimizer, optimizer),
            ("objective", checkpoint.objective, remembered(self.parallel.objective)),
        ):
            if changed := difference(_kinds(saved), self._whole_kinds(present)):
                lines = [f"{name}: {kinds}" for name, kinds in changed.items()]
                raise CheckpointError(
                    "\n  ".join([f"the checkpoint is of another {part}:", *lines])
                )
        for name, weight in self._parts(checkpoint.model):
            self.parameters[name].copy_(weight)
        self.ema.load(dict(self._parts(checkpoint.ema)), checkpoint.state["ema_updates"])
        self.optimizer.load_named_state(dict(self._parts(checkpoint.optimizer)))
        own = checkpoint.objective
        handed = {key: self.processes.hand_out(own[key]).to(self.device) for key in sorted(own)}
        remember(self.parallel.objective, handed)

    def _parts(self, wholes: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield this process's part of each of the main process's tensors. Collective."""
        for key in sorted(wholes):
            whole = self.processes.hand_out(wholes[key]).to(self.device)
            yield key, self.parallel.part(_parameter_of(key), whole)

    def _whole_kinds(self, parts: Mapping[str, Tensor]) -> dict[str, list[Any]]:
        kinds = _kinds(parts)
        for key, part in parts.items():
            name = _parameter_of(key)
            if name in self.parameters and part.shape == self.parameters[name].shape:
                kinds[key][:-1] = self.parallel.shapes[name]
        return kinds


def remembered(objective: nn.Module) -> dict[str, Tensor]:
    """Collect what an objective must remember beside its trained parameters.

    Returns:
        Its persistent buffers by name, and its `state` as `state/<name>`; not copies.
    """
    saved = objective.state_dict(keep_vars=True).keys()
    buffers = {name: b.detach() for name, b in objective.named_buffers() if name in saved}
    state = objective.state() if isinstance(objective, Stateful) else {}
    return {**buffers, **{STATE + name: tensor.detach() for name, tensor in state.items()}}


@torch.no_grad()
def remember(objective: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give an objective back what `remembered` returned."""
    buffers = dict(objective.named_buffers())
    for name, tensor in tensors.items():
        if not name.startswith(STATE):
            buffers[name].copy_(tensor)
    if isinstance(objective, Stateful):
        state = {n.removeprefix(STATE): t for n, t in tensors.items() if n.startswith(STATE)}
        objective.load_state(state)


def _parameter_of(key: str) -> str:
    """The parameter that a tensor of a checkpoint belongs to."""
    return key.partition("/")[0]


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    return {
        name: [*tensor.shape, str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in tensors.items()
    }
