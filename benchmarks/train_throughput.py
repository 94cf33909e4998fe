"""Trains our UNet and its rivals in turns and compares pictures per second, at equal FLOPs.

python benchmarks/train_throughput.py

Prints one JSON object; the exit code is 1 if a promise is broken. See benchmarks/README.md.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from _measuring import OwnProcess, give_back_memory, in_turns, machine, now, ratio, rounded, summary
from _rivals import (
    Inputs,
    Network,
    ddpm_pytorch_unet,
    diffusers_unet,
    ours,
    replace_attention,
)

from tinydiffusion.runtime.allocator import keep_freed_memory


class Scale(NamedTuple):
    """What is trained on what."""

    batch: int
    size: int
    tokens: int
    text_dim: int
    ours: Sequence[int]  # channels, for the FLOPs of diffusers' UNet
    ours_small: Sequence[int]  # for those of denoising-diffusion-pytorch's
    diffusers: Sequence[int]
    heads: int
    groups: int
    ddpm_dim: int
    convolutions: Sequence[tuple[int, int, int]]  # pictures, channels, side


FULL = Scale(
    batch=32, size=32, tokens=77, text_dim=256, ours=(416, 64), ours_small=(288, 32),
    diffusers=(64, 128, 256), heads=8, groups=32, ddpm_dim=64,
    convolutions=((32, 128, 32), (32, 256, 32), (32, 256, 16), (32, 512, 16), (64, 512, 8)),
)  # fmt: skip
"""The point that is compared: 24.8 M parameters of diffusers', 6.08 GFLOP a picture, or 6.36 with
the two products inside attention, which the 6.08 leave out; 9.9 M and 3.0 GFLOP of the other's."""
QUICK = Scale(
    batch=2, size=16, tokens=4, text_dim=16, ours=(32, 32), ours_small=(32, 32),
    diffusers=(8, 16, 16), heads=2, groups=8, ddpm_dim=8, convolutions=((2, 16, 8), (2, 32, 8)),
)  # fmt: skip

SHAPE: dict[str, Any] = {
    "layers_per_block": 1,
    "attention_levels": (),
    "time_embedding_dim": 384,
}
"""Of our networks, as configs/quickstart.yaml has it: few layers, wide where the picture is finest,
attention in the middle; and as wide a vector of time and text, which need not grow with them."""
CUDA_BATCH = 16  # times the pictures of the convolutions, which do not fill a GPU


class Setting(NamedTuple):
    """A network, and how it is run."""

    network: str
    bfloat16: bool = True
    plain_attention: bool = False
    compiled: bool = False


SETTINGS = {
    "ours fp32": Setting("ours", bfloat16=False),
    "ours bf16": Setting("ours"),
    "ours bf16 compiled": Setting("ours", compiled=True),
    "diffusers fp32": Setting("diffusers", bfloat16=False),
    "diffusers bf16": Setting("diffusers"),
    "diffusers bf16 plain attention": Setting("diffusers", plain_attention=True),
    "diffusers bf16 compiled": Setting("diffusers", compiled=True),
    "diffusers bf16 plain attention compiled": Setting(
        "diffusers", plain_attention=True, compiled=True
    ),
    "ours small bf16": Setting("ours small"),
    "ours small bf16 compiled": Setting("ours small", compiled=True),
    "ddpm-pytorch fp32": Setting("ddpm-pytorch", bfloat16=False),
    "ddpm-pytorch bf16": Setting("ddpm-pytorch"),
    "ddpm-pytorch bf16 compiled": Setting("ddpm-pytorch", compiled=True),
}
OURS = ("ours fp32", "ours bf16", "ours bf16 compiled")
OURS_SMALL = ("ours small bf16", "ours small bf16 compiled")
DIFFUSERS_EAGER = ("diffusers fp32", "diffusers bf16")
DIFFUSERS_COMPILED = ("diffusers bf16 compiled",)
DIFFUSERS_PLAIN = ("diffusers bf16 plain attention compiled",)
DDPM_PYTORCH = ("ddpm-pytorch fp32", "ddpm-pytorch bf16", "ddpm-pytorch bf16 compiled")

RATIOS = {
    "ours / diffusers eager": (OURS, DIFFUSERS_EAGER),
    "ours / diffusers compiled": (OURS, DIFFUSERS_COMPILED),
    "ours / diffusers plain attention compiled": (OURS, DIFFUSERS_PLAIN),
    "ours eager / diffusers eager": (OURS[:2], DIFFUSERS_EAGER),
    "ours small / ddpm-pytorch": (OURS_SMALL, DDPM_PYTORCH),
}
"""Of each side the setting with the best median."""
PROMISES = {
    "cpu": {
        "ours / diffusers eager": 2.5,
        "ours / diffusers plain attention compiled": 1.25,
        "ours: share of convolution peak": 0.5,
    },
    "cuda": {"ours / diffusers compiled": 1.5},
}
MISSING = (
    "denoising-diffusion-pytorch is not installed, so it is not measured; it comes with the extra "
    "`bench`: pip install -e '.[bench]'"
)


# ---- one contestant --------------------------------------------------------------------------


class Training:
    """A network in training on the same random batch again and again."""

    def __init__(self, network: Network, setting: Setting, inputs: Inputs) -> None:
        self.inputs, self.network = inputs, network
        self.device = inputs.sample.device
        self.bfloat16 = setting.bfloat16
        torch.manual_seed(0)
        self.module = network.build().to(self.device).train()
        if setting.plain_attention:
            replace_attention(self.module)
        if setting.compiled:
            self.module.forward = torch.compile(self.module.forward, dynamic=False)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-4, fused=True)
        start = now(self.device)
        self.step()
        self.first_step_s = now(self.device) - start
        self.step()

    def step(self) -> None:
        """Forward, backward and update."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            output = self.network.call(self.module, self.inputs)
        loss = torch.nn.functional.mse_loss(output.float(), self.inputs.target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def pace(self, steps: int) -> float:
        """Pictures per second over some steps, after one that brings memory and caches back."""
        self.step()
        start = now(self.device)
        for _ in range(steps):
            self.step()
        return steps * len(self.inputs.sample) / (now(self.device) - start)


_training: Training  # of this process: each contestant has one to itself


def start(name: str, scale: Scale, device: str) -> float:
    """Seconds that the first step of this setting takes, compilation included."""
    global _training
    keep_freed_memory()
    setting = SETTINGS[name]
    shapes = (scale.batch, scale.size, scale.tokens, scale.text_dim)
    inputs = Inputs.random(*shapes, torch.device(device))
    _training = Training(networks(scale)[0][setting.network], setting, inputs)
    give_back_memory()  # for the next to start in: together, all that they keep may not fit
    return _training.first_step_s


def pace(steps: int) -> float:
    """Pictures per second of what was started in this process."""
    measured = _training.pace(steps)
    give_back_memory()
    return measured


def convolution_speed(batch: int, channels: int, side: int, device: torch.device) -> float:
    """FLOP/s of a 3x3 convolution in bfloat16, forward and both halves of backward; best of 3."""
    batch *= CUDA_BATCH if device.type == "cuda" else 1
    kind: Any = {"dtype": torch.bfloat16, "device": device, "requires_grad": True}
    # channels_last
    x = torch.randn(batch, side, side, channels, **kind).permute(0, 3, 1, 2)
    weight = torch.randn(channels, 3, 3, channels, **kind).permute(0, 3, 1, 2)

    def seconds() -> float:
        start = now(device)
        out = torch.nn.functional.conv2d(x, weight, padding=1)
        torch.autograd.grad(out, (x, weight), torch.ones_like(out))
        return now(device) - start

    flops = 3 * 2 * batch * side**2 * channels**2 * 9
    return flops / min(seconds() for _ in range(4))  # the first wakes the kernels


# ---- all of them -----------------------------------------------------------------------------


def networks(scale: Scale) -> tuple[dict[str, Network], dict[str, str]]:
    """Networks by name, and what is missing, with the reason."""
    made = {
        "ours": ours(scale.text_dim, scale.ours, **SHAPE),
        "ours small": ours(scale.text_dim, scale.ours_small, **SHAPE),
        "diffusers": diffusers_unet(
            scale.text_dim, scale.diffusers, size=scale.size, groups=scale.groups,
            heads=[scale.heads] * len(scale.diffusers),
        ),
    }  # fmt: skip
    try:
        return {**made, "ddpm-pytorch": ddpm_pytorch_unet(scale.ddpm_dim, (1, 2, 4))}, {}
    except ModuleNotFoundError as error:
        if error.name != "denoising_diffusion_pytorch":
            raise
        return made, {"ddpm-pytorch": MISSING}


def run(scale: Scale, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured."""
    device = torch.device(options.device)
    known, missing = networks(scale)
    for reason in missing.values():
        print(reason, file=sys.stderr)
    one = Inputs.random(1, scale.size, scale.tokens, scale.text_dim, torch.device("meta"))
    counts = {name: network.count(one) for name, network in known.items()}
    convolutions = {
        f"{b} x {c} x {n} x {n}": partial(convolution_speed, b, c, n, device)
        for b, c, n in scale.convolutions
    }
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(OwnProcess())
            for name, setting in SETTINGS.items()
            if setting.network in known and not (setting.compiled and options.skip_compile)
        }
        first_step_s = {
            name: process(start, name, scale, options.device) for name, process in processes.items()
        }
        contestants = {name: partial(p, pace, options.steps) for name, p in processes.items()}
        measured = in_turns({**contestants, **convolutions}, options.rounds)
    peak = max(max(measured[name]) for name in convolutions)
    paces = {name: measured[name] for name in contestants}
    training_flops = {name: 3 * counts[SETTINGS[name].network][1] for name in contestants}
    return {
        "machine": machine(device),
        "batch": {
            "pictures": scale.batch,
            "size": scale.size,
            "tokens": scale.tokens,
            "text_dim": scale.text_dim,
            "steps_per_round": options.steps,
        },
        "networks": {
            name: {"parameters": parameters, "forward_gflop": rounded(flops / 1e9)}
            for name, (parameters, flops) in counts.items()
        },
        "missing": missing,
        "convolution_peak": {
            "gflop_per_s": rounded(peak / 1e9),
            "shapes": {name: summary([f / 1e9 for f in measured[name]]) for name in convolutions},
        },
        "settings": {
            name: row(paces[name], training_flops[name], peak)
            | {"first_step_s": rounded(first_step_s[name], 3)}
            for name in contestants
        },
        "ratios": compare(paces, {name: peak / flops for name, flops in training_flops.items()}),
    }


def row(paces: Sequence[float], flops: int, peak: float) -> dict[str, Any]:
    """What is said of a setting, a training step of which has so many FLOPs a picture."""
    pictures_per_s = summary(paces)
    useful = flops * pictures_per_s["median"]
    return {
        "pictures_per_s": pictures_per_s,
        "useful_gflop_per_s": rounded(useful / 1e9),
        "share_of_convolution_peak": rounded(useful / peak),
    }


def compare(paces: Mapping[str, Sequence[float]], at_peak: Mapping[str, float]) -> dict[str, Any]:
    """Our best setting of a group against the best of another, round by round.

    And the ratio of one whose every FLOP ran at the convolution peak: beyond it is only what takes
    fewer products than the FLOPs say.
    """
    ratios = {}
    for name, (mine, others) in RATIOS.items():
        first, second = best(mine, paces), best(others, paces)
        if first is not None and second is not None:
            ratios[name] = {
                "settings": [first, second],
                **ratio(paces[first], paces[second]),
                "at_peak": rounded(at_peak[first] / summary(paces[second])["median"]),
            }
    return ratios


def best(names: Sequence[str], paces: Mapping[str, Sequence[float]]) -> str | None:
    """The one with the highest median of those measured; None where none was."""
    measured = [name for name in names if name in paces]
    return max(measured, key=lambda name: summary(paces[name])["median"], default=None)


def main() -> int:
    """The exit code: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of training, per round and setting")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-compile", action="store_true", help="leave out what is compiled")
    parser.add_argument("--quick", action="store_true", help="tiny networks, which prove nothing")
    options = parser.parse_args()
    keep_freed_memory()
    result = run(QUICK if options.quick else FULL, options)
    result |= verdict(result, {} if options.quick else PROMISES[torch.device(options.device).type])
    print(json.dumps(result, indent=1))
    return 1 if result["broken"] else 0


def verdict(result: Mapping[str, Any], promises: Mapping[str, float]) -> dict[str, list[str]]:
    """What is broken and what was not measured, in words."""
    rows = [result["settings"][name] for name in OURS if name in result["settings"]]
    values = {name: each["median"] for name, each in result["ratios"].items()}
    values["ours: share of convolution peak"] = max(r["share_of_convolution_peak"] for r in rows)
    return {
        "broken": [
            f"{name}: {values[name]}, at least {least} was promised"
            for name, least in promises.items()
            if name in values and values[name] < least
        ],
        "not_measured": [name for name in promises if name not in values],
    }


if __name__ == "__main__":
    sys.exit(main())
