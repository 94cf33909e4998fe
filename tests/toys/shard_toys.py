"""Shards of noise pictures, each unlike any other, for the tests of what reads and writes them."""

import json

import torch
from picture_toys import encode, noise
from tar_toys import entry, write

from tinydiffusion.datasets.shards import ShardsDataset


def noisy(key, seed, side=12, kind="PNG", caption=None):
    """A picture with one caption in text, or several in JSON."""
    suffix = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}[kind]
    about = (
        entry(f"{key}.json", json.dumps({"text": caption}).encode())
        if isinstance(caption, list)
        else entry(f"{key}.txt", (caption or f"caption {seed}").encode())
    )
    return entry(f"{key}.{suffix}", encode(noise(side, seed), kind)) + about


def write_shards(folder, *counts, **options):
    """`0.tar`, `1.tar` ... of so many pictures each."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        parts = (noisy(f"{i:03}", 1000 * shard + i, **options) for i in range(count))
        write(folder / f"{shard}.tar", *parts)
    return folder


def load(path, size=8, **options):
    return ShardsDataset(path=path, size=size, **options)


def visit(dataset, place, epoch=0):
    generator = torch.Generator().manual_seed(1000 * epoch + place)
    return dataset.visit(epoch, place, generator)


def ids_of(dataset, epoch=0, places=None):
    places = range(len(dataset)) if places is None else places
    return [visit(dataset, place, epoch)["id"] for place in places]


def assert_same(example, other):
    assert (example["id"], example["caption"]) == (other["id"], other["caption"])
    torch.testing.assert_close(example["image"], other["image"], rtol=0, atol=0)
