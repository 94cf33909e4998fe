"""The nearest training picture of a picture, mirrored and moved a little."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize, pad

QUERIES, CHUNK = 512, 8192
SHIFTS = [(x, y) for x in range(3) for y in range(3)]


class Nearest(NamedTuple):
    """The nearest training picture of each picture."""

    distance: Float[Tensor, "N"]  # 1 - cosine, in [0, 2]
    place: Int[Tensor, "N"]  # index of the training picture
    mirrored: Bool[Tensor, "N"]


def nearest(pictures: UInt8[Tensor, "N 3 S S"], train: UInt8[Tensor, "M 3 S S"]) -> Nearest:
    """Find the nearest training picture of each picture, also mirrored and moved by a pixel.

    Pictures are compared at half their side, by 1 - cosine after the mean training picture is
    subtracted from both.

    Raises:
        ValueError: the training pictures are all the same.
    """
    features = torch.cat([_features(part) for part in train.split(CHUNK)])
    mean = features.mean(dim=0)
    features = _direction(features, mean)
    if not features.any():
        raise ValueError(f"copies need different training pictures, got {len(train)} equal ones")
    parts = [_nearest(part, features, mean) for part in pictures.split(QUERIES)]
    return Nearest(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _nearest(
    pictures: UInt8[Tensor, "N 3 S S"], train: Float[Tensor, "M D"], mean: Float[Tensor, "D"]
) -> Nearest:
    cosine = torch.full((len(pictures),), -2.0)
    place = torch.zeros(len(pictures), dtype=torch.long)
    mirrored = torch.zeros(len(pictures), dtype=torch.bool)
    for flipped, variant in _variants(pictures):
        best, where = _most_similar(_direction(_features(variant), mean), train)
        better = best > cosine
        cosine = torch.where(better, best, cosine)
        place = torch.where(better, where, place)
        mirrored = torch.where(better, torch.tensor(flipped), mirrored)
    return Nearest((1 - cosine).clamp(min=0), place, mirrored)


def _variants(
    pictures: UInt8[Tensor, "N 3 S S"],
) -> Iterator[tuple[bool, UInt8[Tensor, "N 3 S S"]]]:
    """Yield pictures and mirror images, each moved nine ways, with whether they are mirrored."""
    side = pictures.shape[-1]
    for flipped, turned in ((False, pictures), (True, pictures.flip(-1))):
        larger = pad(turned, (1, 1, 1, 1), mode="replicate")
        for x, y in SHIFTS:
            yield flipped, larger[..., y : y + side, x : x + side]


def _most_similar(
    rows: Float[Tensor, "N D"], train: Float[Tensor, "M D"]
) -> tuple[Float[Tensor, "N"], Int[Tensor, "N"]]:
    """Find the highest cosine of each row, and the index of the training picture that has it."""
    parts = [(rows @ chunk.T).max(dim=1) for chunk in train.split(CHUNK)]
    best, chunk = torch.stack([part.values for part in parts]).max(dim=0)
    within = torch.stack([part.indices for part in parts])[chunk, torch.arange(len(rows))]
    return best, chunk * CHUNK + within


def _features(pictures: UInt8[Tensor, "N 3 S S"]) -> Float[Tensor, "N D"]:
    return avg_pool2d(pictures.float() / 255, 2).flatten(1)


def _direction(features: Float[Tensor, "N D"], mean: Float[Tensor, "D"]) -> Float[Tensor, "N D"]:
    return normalize(features - mean, dim=1)
