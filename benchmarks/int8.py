"""Times SiLU and a 3x3 convolution in 8-bit integers against torch's, and measures both errors.

python benchmarks/int8.py

Prints one JSON object; the exit code is 1 where sampling uses the slower one. See
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

from tinydiffusion.layers.convolution import Conv3x3
from tinydiffusion.layers.kernels.int8 import conv2d, int8_convolutions, int8_obstacle, pays
from tinydiffusion.runtime.allocator import keep_freed_memory
from tinydiffusion.runtime.cpu import has_amx

SHAPES = [
    (32, 416, 416, 16), (32, 256, 256, 16), (32, 192, 192, 16), (32, 192, 96, 16),
    (32, 160, 96, 16), (32, 128, 128, 16), (32, 96, 96, 16), (16, 96, 96, 16), (8, 96, 96, 16),
    (32, 96, 96, 32), (32, 256, 256, 8), (32, 128, 128, 8), (32, 256, 256, 4), (32, 64, 64, 16),
    (32, 64, 64, 8),
]  # fmt: skip
"""Pictures, channels, maps out, side."""
QUICK = [(1, 8, 8, 8), (16, 96, 96, 16)]
DTYPES = (torch.bfloat16, torch.float32)
CALLS = 8  # of which the fastest counts
CPU = torch.device("cpu")


class Contest:
    """What comes before a layer and the layer, both ways; within `int8_convolutions`.

    Args:
        shape: See `SHAPES`.
        dtype: Of the arithmetic that is left; weights are float32.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        batch, channels, maps, side = shape
        torch.manual_seed(0)
        self.dtype = dtype
        self.x = torch.randn(batch, side, side, channels).to(dtype).permute(0, 3, 1, 2)
        self.conv = Conv3x3(channels, maps).to(memory_format=torch.channels_last)

    def direct(self, x: Tensor) -> Tensor:
        """What the UNet does otherwise: torch's convolution, or Winograd's in wide layers."""
        return self.conv(F.silu(x))

    def int8(self, x: Tensor) -> Tensor:
        """Ours."""
        assert self.conv.bias is not None
        return conv2d(F.silu(x), self.conv.weight, self.conv.bias)

    def call(self, way: str, x: Tensor) -> Tensor:
        """The output, under autocast where the UNet is."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return getattr(self, way)(x)

    def seconds(self, way: str) -> float:
        """Of the fastest of some calls; the first wakes kernels and caches."""
        times = []
        for _ in range(1 + CALLS):
            start = now(CPU)
            self.call(way, self.x)
            times.append(now(CPU) - start)
        return min(times[1:])

    def error(self, way: str) -> float:
        """Of four pictures' output, against float64, by its norm."""
        x, conv = self.x[:4], self.conv
        assert conv.bias is not None
        bias = conv.bias.double()
        true = F.conv2d(F.silu(x.double()), conv.weight.double(), bias, padding=1)
        return ((self.call(way, x).double() - true).norm() / true.norm()).item()


def measured(shape: tuple[int, int, int, int], dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Both ways' times, how many times faster int8 is, and errors."""
    contest = Contest(shape, dtype)
    ways = ("direct", "int8")
    seconds = in_turns({way: partial(contest.seconds, way) for way in ways}, rounds)
    return {
        **dict(zip(("pictures", "channels", "maps", "side"), shape, strict=True)),
        "dtype": str(dtype)[6:],
        "used": pays(contest.x, shape[2]) and not has_amx(),
        "error": {way: rounded(contest.error(way), 2) for way in ways},
        **{f"{way}_ms": rounded(1e3 * min(times), 3) for way, times in seconds.items()},
        "times_faster": ratio(seconds["direct"], seconds["int8"]),
    }


def main() -> int:
    """The exit code: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few layers, which prove nothing")
    options = parser.parse_args()
    if (obstacle := int8_obstacle(CPU)) is not None:
        raise SystemExit(f"there is nothing to measure: {obstacle}")
    keep_freed_memory()
    rows = []
    with torch.no_grad(), int8_convolutions(True):
        for dtype in DTYPES:
            for shape in QUICK if options.quick else SHAPES:
                print(str(dtype)[6:], *shape, file=sys.stderr)
                rows.append(measured(shape, dtype, options.rounds))
    broken = [
        f"{row['dtype']}, {row['pictures']} pictures of {row['side']} px, {row['channels']} to "
        f"{row['maps']} channels: used, and the slower one"
        for row in rows
        if row["used"] and row["times_faster"]["median"] < 1
    ]
    broken = [] if options.quick else broken
    print(json.dumps({"machine": machine(CPU), "layers": rows, "broken": broken}, indent=1))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
