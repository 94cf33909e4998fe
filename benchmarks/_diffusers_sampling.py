"""What sample_speed.py measures against: sampling as diffusers' pipelines are written."""

from functools import partial
from typing import Any

import torch
from _measuring import in_turns, now, rounded, summary
from _rivals import Inputs, Network, rival_of
from torch import nn

from tinydiffusion.runtime.allocator import keep_freed_memory

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler": "FlowMatchEulerDiscreteScheduler",
}
"""Our sampler -> the scheduler of diffusers of as many evaluations; heun has none."""


class Rival:
    """A pipeline as diffusers' are written: its UNet with random weights, its schedulers.

    The texts are there before the clock starts.

    Args:
        network: See `rival_of`.
        inputs: Noise and texts of a batch.
        dtype: Of weights and arithmetic.
        guidance_scale: 1 is off.
    """

    def __init__(
        self, network: Network, inputs: Inputs, dtype: torch.dtype, guidance_scale: float
    ) -> None:
        torch.manual_seed(0)
        device = inputs.sample.device
        self.module: nn.Module = network.build().to(device, dtype).eval()
        self.noise = inputs.sample.to(dtype)
        states = inputs.text.encoder_hidden_states.to(dtype)
        self.guided, self.guidance_scale = guidance_scale != 1, guidance_scale
        self.states = states

    def pace(self, scheduler: str, steps: int, pictures: int | None = None) -> float:
        """Pictures per second after a step; of the whole batch, or of its first ones."""
        x = self.noise[:pictures]
        self.sample("DDIMScheduler", 1, x)
        start = now(x.device)
        self.sample(scheduler, steps, x)
        return len(x) / (now(x.device) - start)

    @torch.no_grad()
    def sample(self, scheduler: str, steps: int, x: torch.Tensor) -> torch.Tensor:
        """Pictures from noise, both halves of guidance in one call."""
        import diffusers

        made = getattr(diffusers, scheduler)()
        made.set_timesteps(steps, device=self.noise.device)
        states = self.states[: len(x)]
        states = torch.cat([states, states]) if self.guided else states
        for t in made.timesteps:
            both = torch.cat([x, x]) if self.guided else x
            output = self.module(both, t, states, return_dict=False)[0]
            if self.guided:
                with_text, without = output.chunk(2)
                output = without + self.guidance_scale * (with_text - without)
            x = made.step(output, t, x, return_dict=False)[0].to(x.dtype)
        return x


_rival: Rival  # of this process: each contestant has one to itself


def start_rival(
    flops: int,
    shapes: tuple[int, int, int, int],
    guidance_scale: float,
    device: str,
    rounds: int,
    keep_memory: bool,
) -> dict[str, Any]:
    """What the rival of a network of so many FLOPs is, and in which precision it is faster.

    Args:
        flops: Of a forward pass with one picture.
        shapes: Pictures, their side, tokens and their width.
        guidance_scale: 1 is off.
        device: Where it runs.
        rounds: Of measuring both precisions.
        keep_memory: Give it `keep_freed_memory`, which diffusers has not.
    """
    global _rival
    if keep_memory:
        keep_freed_memory()
    one = Inputs.random(1, *shapes[1:], torch.device(device))
    network, channels = rival_of(flops, one)
    parameters, their_flops = network.count(one)
    inputs = Inputs.random(*shapes, torch.device(device))
    rivals = {
        str(dtype)[6:]: Rival(network, inputs, dtype, guidance_scale)
        for dtype in (torch.float32, torch.bfloat16)
    }
    paces = in_turns(
        {name: partial(each.pace, "DDIMScheduler", 4) for name, each in rivals.items()}, rounds
    )
    medians = {name: summary(values)["median"] for name, values in paces.items()}
    chosen = max(medians, key=lambda name: medians[name])
    _rival = rivals[chosen]
    return {
        "parameters": parameters,
        "forward_gflop": rounded(their_flops / 1e9),
        "channels": channels,
        "precision": chosen,
        "pictures_per_s_in_4_steps": medians,
        "keeps_freed_memory": keep_memory,
    }


def rival_pace(scheduler: str, steps: int, pictures: int) -> float:
    """Pictures per second of the rival that was started in this process."""
    return _rival.pace(scheduler, steps, pictures)
