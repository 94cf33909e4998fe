"""One optimizer step of an objective: backward, clip, update, EMA."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.protocols import Batch, Objective
from tinydiffusion.training.checkpoint import Checkpoint, CheckpointError, difference
from tinydiffusion.training.data_order import generator_for, seed_for
from tinydiffusion.training.ema import EMA, trained_parameters
from tinydiffusion.training.optimizer import Optimizer
from tinydiffusion.training.precision import Precision, uses_bfloat16
from tinydiffusion.training.window import Scalars


class Learner:
    """An objective with its optimizer and its average; `Trainer` explains the arguments.

    Raises:
        ValueError: the objective is no `nn.Module`, no parameter of it requires a gradient, or
            `muon_modules` names what is not there.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        muon_modules: Sequence[str],
        muon_learning_rate: float,
        gradient_clip: float,
        ema_max_decay: float,
        ema_power: float,
        precision: Precision,
        seed: int,
    ) -> None:
        if not isinstance(objective, nn.Module):
            raise ValueError(f"an objective must be an nn.Module, got {type(objective).__name__}")
        self.module: nn.Module = objective
        self.parameters = trained_parameters(self.module)
        if not self.parameters:
            raise ValueError("no parameter of the objective requires a gradient: nothing to train")
        self.objective = objective
        self.device = next(iter(self.parameters.values())).device
        self.gradient_clip = gradient_clip
        self.seed = seed
        self.updating = False  # stays True where an error cut an update in two
        self.bfloat16 = uses_bfloat16(precision, self.device)
        self.ema = EMA(self.module, max_decay=ema_max_decay, power=ema_power)
        self.optimizer = Optimizer(
            self.module,
            learning_rate=learning_rate,
            betas=betas,
            weight_decay=weight_decay,
            muon_modules=muon_modules,
            muon_learning_rate=muon_learning_rate,
        )

    def step(
        self, batches: Sequence[Batch], pictures_seen: int, learning_rate_factor: float
    ) -> tuple[list[Scalars], Float[Tensor, ""]]:
        """Scalars to log, and 1 where the update was called off for NaN or infinity, else 0.

        Does not wait for the device. The gradient is the mean over the batches.

        Args:
            batches: Micro-batches of equal size.
            pictures_seen: Position of the first picture; noise and dropout are functions of it.
            learning_rate_factor: What the learning rates are multiplied by.
        """
        self.module.zero_grad(set_to_none=True)
        scalars = []
        for batch in batches:
            scalars.append(self._backward(batch, pictures_seen, len(batches)))
            pictures_seen += len(batch["id"])
        parameters = self.parameters.values()
        norm = nn.utils.clip_grad_norm_(parameters, self.gradient_clip, foreach=True)
        losses = torch.stack([s["loss"] for s in scalars])
        call_off = (~torch.isfinite(norm + losses.sum())).float()
        self.updating = True
        self.optimizer.guarded_step(learning_rate_factor, call_off)
        self.ema.update()
        self.updating = False
        return [*scalars, {"gradient_norm": norm}], call_off

    def _backward(self, batch: Batch, position: int, num_batches: int) -> dict[str, Any]:
        torch.manual_seed(seed_for(self.seed, "dropout", position))
        generator = generator_for(self.seed, "noise", position)
        image = batch["image"].to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss, scalars = self.objective.loss({**batch, "image": image}, generator)
        (loss / num_batches).backward()
        return {
            name: value.detach() if isinstance(value, Tensor) else value
            for name, value in {**scalars, "loss": loss}.items()
        }

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The objective with EMA weights, in eval mode, without gradients; as it was afterwards."""
        modes = {module: module.training for module in self.module.modules()}
        with self.ema.swapped(), torch.no_grad():
            self.module.eval()
            try:
                yield self.module
            finally:
                for module, training in modes.items():
                    module.training = training

    def checkpoint(self, state: Mapping[str, Any]) -> Checkpoint:
        """Everything learned so far, beside `state`; the tensors are not copies."""
        model = {name: p.detach() for name, p in self.parameters.items()}
        state = {**state, "ema_updates": self.ema.num_updates}
        return Checkpoint(model, self.ema.weights, self.optimizer.named_state(), state)

    def checkpoint_bytes(self) -> int:
        """About how much a checkpoint takes: weights, their average, and two moments of each."""
        return 4 * sum(p.nbytes for p in self.parameters.values()) + 2**20

    @torch.no_grad()
    def load(self, checkpoint: Checkpoint) -> None:
        """Take over what a checkpoint has learned.

        Raises:
            CheckpointError: its tensors have other names, shapes or types, which it names, the
                optimizer's included.
        """
        optimizer = self.optimizer.expected_state(checkpoint.optimizer.keys())
        for part, saved, present in (
            ("model", checkpoint.model, self.parameters),
            ("average (EMA)", checkpoint.ema, self.ema.weights),
            ("optimizer (muon_modules?)", checkpoint.optimizer, optimizer),
        ):
            if changed := difference(_kinds(saved), _kinds(present)):
                lines = [f"{name}: {kinds}" for name, kinds in changed.items()]
                raise CheckpointError(
                    "\n  ".join([f"the checkpoint is of another {part}:", *lines])
                )
        for name, parameter in self.parameters.items():
            parameter.copy_(checkpoint.model[name])
        self.ema.load(checkpoint.ema, checkpoint.state["ema_updates"])
        self.optimizer.load_named_state(checkpoint.optimizer)


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    return {
        name: [*tensor.shape, str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in tensors.items()
    }
