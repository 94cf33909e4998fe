"""Times Winograd's convolution against torch's, forward and backward, and measures both errors.

python benchmarks/winograd.py

Prints one JSON object; the exit code is 1 where the UNet uses the slower one. See
benchmarks/README.md.
"""

import argparse
import json
import sys
from functools import partial
from typing import Any

import torch
from _measuring import in_turns, machine, now, ratio, rounded
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tinydiffusion.layers.kernels.winograd import pays, winograd_conv2d
from tinydiffusion.runtime.allocator import keep_freed_memory

SHAPES = [
    (32, 416, 416, 16), (32, 832, 416, 16), (32, 320, 320, 16), (32, 256, 256, 16),
    (16, 256, 256, 16), (4, 256, 256, 64), (128, 256, 256, 8), (32, 192, 192, 16),
    (128, 192, 192, 16), (32, 128, 128, 16), (32, 96, 96, 16), (128, 96, 96, 16),
    (8, 256, 256, 16), (32, 256, 256, 8), (64, 256, 256, 4),
]  # fmt: skip
"""Pictures, channels, maps out, side."""
QUICK = [(1, 8, 8, 8), (16, 192, 192, 16)]
DTYPES = (torch.bfloat16, torch.float32)
CALLS = 5  # of which the fastest counts
CPU = torch.device("cpu")


class Contest:
    """One layer, convolved both ways.

    Args:
        shape: See `SHAPES`.
        dtype: Of the pictures; weights are float32.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        batch, channels, maps, side = shape
        torch.manual_seed(0)
        self.dtype = dtype
        self.x = torch.randn(batch, side, side, channels).to(dtype).permute(0, 3, 1, 2)
        self.weight = torch.randn(maps, 3, 3, channels).permute(0, 3, 1, 2)
        self.weight *= (9 * channels) ** -0.5
        self.bias = torch.randn(maps)
        self.toward = torch.randn(batch, side, side, maps).to(dtype).permute(0, 3, 1, 2)

    def winograd(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Ours."""
        return winograd_conv2d(x, weight, bias)

    def direct(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Torch's, its weights rounded as autocast does it."""
        return F.conv2d(x, weight.to(self.dtype), bias.to(self.dtype), padding=1)

    @torch.no_grad()
    def forward(self, way: str) -> None:
        """The output alone, as in sampling."""
        getattr(self, way)(self.x, self.weight, self.bias)

    def both(self, way: str) -> None:
        """The output and all gradients, as in training."""
        leaves = [leaf.detach().requires_grad_() for leaf in (self.x, self.weight, self.bias)]
        torch.autograd.grad(getattr(self, way)(*leaves), leaves, self.toward)

    def seconds(self, passes: str, way: str) -> float:
        """Of the fastest of some calls; the first wakes kernels and caches."""
        call = partial(getattr(self, passes), way)
        times = []
        for _ in range(1 + CALLS):
            start = now(CPU)
            call()
            times.append(now(CPU) - start)
        return min(times[1:])

    @torch.no_grad()
    def error(self, way: str) -> float:
        """Of four pictures' output, against float64, by its norm."""
        x = self.x[:4]
        true = F.conv2d(x.double(), self.weight.double(), self.bias.double(), padding=1)
        found = getattr(self, way)(x, self.weight, self.bias)
        return ((found.double() - true).norm() / true.norm()).item()


def measured(shape: tuple[int, int, int, int], dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Both ways' times, how many times faster ours is, and errors."""
    contest = Contest(shape, dtype)
    batch, channels, maps, side = shape
    row: dict[str, Any] = {
        "pictures": batch, "channels": channels, "maps": maps, "side": side,
        "dtype": str(dtype)[6:],
        "used": pays((batch, channels, side, side), maps, dtype, CPU),
        "error": {way: rounded(contest.error(way), 2) for way in ("direct", "winograd")},
    }  # fmt: skip
    for passes in ("forward", "both"):
        seconds = in_turns(
            {way: partial(contest.seconds, passes, way) for way in ("direct", "winograd")}, rounds
        )
        row[passes] = {
            **{f"{way}_ms": rounded(1e3 * min(times), 3) for way, times in seconds.items()},
            "times_faster": ratio(seconds["direct"], seconds["winograd"]),
        }
    return row


def main() -> int:
    """The exit code: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few layers, which prove nothing")
    options = parser.parse_args()
    keep_freed_memory()
    rows = []
    for dtype in DTYPES:
        for shape in QUICK if options.quick else SHAPES:
            print(str(dtype)[6:], *shape, file=sys.stderr)
            rows.append(measured(shape, dtype, options.rounds))
    broken = [
        f"{row['dtype']}, {row['pictures']} pictures of {row['side']} px, {row['channels']} to "
        f"{row['maps']} channels: used, and the slower one in training"
        for row in rows
        if row["used"] and row["both"]["times_faster"]["median"] < 1
    ]
    broken = [] if options.quick else broken
    print(json.dumps({"machine": machine(CPU), "layers": rows, "broken": broken}, indent=1))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
