"""One look at a data set before training: captions, content, brightness, places all over it."""

import hashlib
import json
import warnings
from collections.abc import Sequence

import torch

from tinydiffusion.abilities import Captioned, Fingerprinted, KnowsWords, Streaming
from tinydiffusion.pictures.brightness import Brightness
from tinydiffusion.pictures.usable import usable
from tinydiffusion.protocols import Dataset, Example, TextEncoder

SURVEYED = 10_000
"""Examples of a data set that `survey` looks at."""


def captions_of(example: Example) -> list[str]:
    """Every caption of an example."""
    caption = example["caption"]
    return [caption] if isinstance(caption, str) else list(caption)


def survey(dataset: Dataset) -> tuple[list[str], dict[str, str]]:
    """Captions and fingerprints, from at most SURVEYED examples spread over the set.

    Returns:
        The captions that a text encoder learns its vocabulary from, and example id -> SHA-256 of
        captions and pixels, by which a resumed run notices what of its data changed: of every
        example where the data set is `abilities.Fingerprinted`, else of the surveyed ones. Pictures
        that are nearly black or white as a whole are a warning.

    Raises:
        ValueError: the set is empty, nothing of it can be used, or two examples have the same id.
    """
    if not len(dataset):
        raise ValueError("the data set is empty; there is nothing to train on")
    named = isinstance(dataset, Fingerprinted)
    captions: list[str] = []
    surveyed: dict[str, str] = {}
    brightness = Brightness()
    for example in usable(dataset, surveyed_places(dataset)):
        if example["id"] in surveyed:
            raise ValueError(f"two examples of the data set have the id {example['id']!r}")
        captions += captions_of(example)
        brightness.add(example["image"])
        surveyed[example["id"]] = "" if named else fingerprint(example)
    if not surveyed:
        raise ValueError("no picture of the data set can be used; there is nothing to train on")
    if remark := brightness.describe():
        warnings.warn(remark, stacklevel=2)
    return captions, dict(dataset.fingerprints()) if named else surveyed


def surveyed_places(dataset: Dataset) -> list[int]:
    """Choose at most SURVEYED places of a data set, ascending and always the same.

    Spread over the set, or in runs of neighbours where only those are read fast.
    """
    choose = in_runs if isinstance(dataset, Streaming) else spread
    return choose(len(dataset), SURVEYED)


def fingerprint(example: Example) -> str:
    """SHA-256 of an example's captions, in their order, and pixels."""
    image = example["image"].contiguous()
    # JSON tells ["a", "b"] from ["a\0b"] and writes a lone surrogate as its number.
    digest = hashlib.sha256(json.dumps([captions_of(example), list(image.shape)]).encode())
    digest.update(image.numpy().data)
    return digest.hexdigest()


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` places, ascending and always the same.

    Drawn, not evenly spaced: a data set may repeat itself with a period (scenes take turns between
    categories), and an even stride would see one phase of it only.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return sorted(order[:wanted].tolist())


def in_runs(count: int, wanted: int, runs: int = 10) -> list[int]:
    """At most `wanted` of `count` places, ascending, in runs of neighbours from all over.

    For data that are read fast from one place to the next only.
    """
    if count <= wanted:
        return list(range(count))
    size = wanted // runs
    firsts = [run * (count - size) // (runs - 1) for run in range(runs)]
    return [first + i for first in firsts for i in range(size)]


def learn_words(text_encoder: TextEncoder, dataset: Dataset, captions: Sequence[str]) -> None:
    """Tell a text encoder that keeps them the words of the training captions.

    Args:
        text_encoder: Another one is left alone.
        dataset: The training set; all captions are asked for where that reads no pictures.
        captions: Those that `survey` has found.
    """
    if not isinstance(text_encoder, KnowsWords):
        return
    if isinstance(dataset, Captioned) and not isinstance(dataset, Streaming):
        text_encoder.learn_words(dataset.captions(), are_all=True)
    else:
        text_encoder.learn_words(captions, are_all=len(dataset) <= SURVEYED)


def evaluation_prompts(dataset: Dataset, num_images: int) -> list[str]:
    """Take the first captions of examples spread over the set, in turn where there are too few."""
    examples = usable(dataset, spread(len(dataset), num_images))
    captions = [captions_of(example)[0] for example in examples]
    return [captions[i % len(captions)] for i in range(num_images)]
