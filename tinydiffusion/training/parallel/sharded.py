"""A part of every trained tensor in each process: FSDP2, behind the contract of `parallel`."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate

from tinydiffusion.protocols import Batch, Generators
from tinydiffusion.runtime.processes import Processes
from tinydiffusion.training.ema import trained_parameters
from tinydiffusion.training.parallel.contract import Forward, Loss


class Sharded:
    """A part of every trained tensor in each process; the objective that was given stays whole.

    Its copy is what is trained: blocks (members of every `nn.ModuleList`) are put together for
    the time of their forward and backward pass only. The main process keeps the whole one to
    show and save the model; in the others its memory is let go.
    """

    def __init__(self, objective: nn.Module, processes: Processes) -> None:
        self._processes = processes
        self._shown = trained_parameters(objective)
        self.shapes = {name: p.shape for name, p in self._shown.items()}
        copy = deepcopy(objective).to(memory_format=torch.contiguous_format)  # FSDP2 asks for it
        self.objective = copy
        self._given = objective
        self._module = _shard(Forward(copy), next(iter(self._shown.values())).device)
        self._sharded = {
            name: p for name, p in trained_parameters(copy).items() if isinstance(p, DTensor)
        }
        self.parameters = {
            name: nn.Parameter(p.to_local().detach()) for name, p in self._sharded.items()
        }
        if not processes.is_main:
            objective.to("meta")

    def loss(self, batch: Batch, generators: Generators) -> Loss:
        """The objective's loss of this process's pictures. Collective."""
        return self._module(batch, generators)

    def adding_up(self, last: bool) -> AbstractContextManager[Any]:
        """Inside the `with`, a backward pass averages gradients over the processes if `last`."""
        self._module.set_requires_gradient_sync(last)
        return nullcontext()

    def clip(self, most: float) -> Float[Tensor, ""]:
        """The norm of the whole gradient, which is then at most `most`. Collective."""
        norm = nn.utils.clip_grad_norm_(self._sharded.values(), most, foreach=True)
        for name, p in self._sharded.items():
            gradient = p.grad
            self.parameters[name].grad = (
                gradient.to_local() if isinstance(gradient, DTensor) else None
            )
            p.grad = None
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @torch.no_grad()
    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor that these are the parts of; of the parameter's shape or none. Collective."""
        p = self._sharded[name]
        if tensor.shape != p.to_local().shape:
            return tensor
        parts = DTensor.from_local(
            tensor, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride()
        )
        return parts.full_tensor()

    @torch.no_grad()
    def part(self, name: str, tensor: Tensor) -> Tensor:
        """Return this process's part of a whole tensor of the parameter's shape."""
        p = self._sharded[name]
        if tensor.shape != p.shape:
            return tensor
        everywhere = DTensor.from_local(
            tensor.contiguous(), p.device_mesh, [Replicate()], run_check=False
        )
        return everywhere.redistribute(placements=p.placements).to_local()

    @contextmanager
    def showing(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the `with`, the main process's whole objective holds these weights. Collective."""
        for name, weight in weights.items():
            whole = self.whole(name, weight)
            if self._processes.is_main:
                self._shown[name].data.copy_(whole)
        if self._processes.is_main:
            shown = dict(self._given.named_buffers())
            for name, buffer in self.objective.named_buffers():
                shown[name].data.copy_(buffer)
        yield


def _shard(module: nn.Module, device: torch.device) -> Any:
    # Blocks return views; the warning is of writing to them, which would go wrong without FSDP too.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    frozen = {p for p in module.parameters() if not p.requires_grad}
    lists = [each for each in module.modules() if isinstance(each, nn.ModuleList)]
    for block in [block for each in lists for block in each]:
        fully_shard(block, mesh=mesh, ignored_params=frozen)
    return fully_shard(module, mesh=mesh, ignored_params=frozen)
