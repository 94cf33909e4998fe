"""Where pictures to be measured come from: a model, a data set or any folder, read in parts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from tinydiffusion.abilities import Fingerprinted
from tinydiffusion.config import SamplingConfig
from tinydiffusion.pictures.usable import first_usable, read_usable, usable
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Dataset, EvalBatch, Example
from tinydiffusion.survey import SURVEYED, captions_of, fingerprint, spread

QUANTISATION = "uint8: clamped, then rounded half to even"


@runtime_checkable
class Pictures(Protocol):
    """Numbered pictures of one source, of which any can be read at any time."""

    source: str  # see protocols.SOURCES
    block: int  # numbers that have to be read together
    prompts: Sequence[str]  # one per picture, empty where there is none

    def __len__(self) -> int: ...

    @property
    def notes(self) -> Mapping[str, int]:
        """What was done to the pictures that have been read -> number of pictures."""
        ...

    @property
    def unreadable(self) -> Mapping[str, str]:
        """File name -> reason, of the broken pictures met so far."""
        ...

    def read(self, ids: Sequence[int]) -> EvalBatch:
        """Read the pictures with these numbers, without those that cannot be read."""
        ...

    def about(self) -> dict[str, Any]:
        """Return what the pixels depend on, JSON-able."""
        ...

    def content_key(self, ids: Sequence[int]) -> str | None:
        """Hash what pixels and prompts of these numbers depend on; None where it is unknown."""
        ...

    def remarks(self) -> list[str]:
        """List the remarks on the pictures, which are warnings for every number."""
        ...


class DatasetPictures:
    """The examples of a data set with their first captions, at most `limit` of them."""

    block = 1

    def __init__(self, source: str, dataset: Dataset, limit: int | None = None) -> None:
        self.source, self.dataset = source, dataset
        self._count = len(dataset) if limit is None else min(limit, len(dataset))
        self.prompts: Sequence[str] = ()
        self.notes: Mapping[str, int] = {}
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        return self._count

    def read(self, ids: Sequence[int]) -> EvalBatch:
        """Read the examples at these places, without those that cannot be used."""
        found = {i: example for i in ids if (example := self._usable(i)) is not None}
        images = [example["image"] for example in found.values()]
        if images:
            stacked = torch.stack(images)
        else:
            stacked = torch.empty(0, *self._shape(), dtype=torch.uint8)
        prompts = [captions_of(example)[0] for example in found.values()]
        return eval_batch(self.source, list(found), stacked, prompts)

    def _usable(self, place: int) -> Example | None:
        name = f"{self.source} {place}"
        return read_usable(
            lambda: self.dataset[place], lambda reason: self.unreadable.update({name: reason})
        )

    def _shape(self) -> list[int]:
        return list(first_usable(self.dataset)["image"].shape)

    def about(self) -> dict[str, Any]:
        """Return number, shape and content hash of the pictures."""
        shape = self._shape()
        content = json.dumps([list(self._fingerprints().items()), len(self), shape])
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        return {"n": len(self), "shape": shape, "sha256": sha256}

    def _fingerprints(self) -> Mapping[str, str]:
        """Return hashes of captions and pixels: those that the data set stores, of the whole set.

        If it stores none, those of the examples that are used, of which at most SURVEYED are read.
        """
        if isinstance(self.dataset, Fingerprinted) and (known := self.dataset.fingerprints()):
            return known
        examples = usable(self.dataset, spread(len(self), SURVEYED))
        return {example["id"]: fingerprint(example) for example in examples}

    def content_key(self, ids: Sequence[int]) -> str | None:
        """Return None: all pictures would have to be read for a hash."""
        del ids

    def remarks(self) -> list[str]:
        """Return no remarks."""
        return []


class ModelPictures:
    """Pictures that a model generates from prompts when they are read, picture i with seed + i.

    Args:
        pipeline: The model.
        prompts: One per picture.
        seed: Seed of picture 0.
        batch_size: Pictures made together.
        sampling: Sampler, steps, guidance; None = the model's defaults.

    Raises:
        ValueError: a setting is out of its range.
    """

    source = "generated"

    def __init__(
        self,
        pipeline: TextToImage,
        prompts: Sequence[str],
        *,
        seed: int,
        batch_size: int = 32,
        sampling: SamplingConfig | None = None,
    ) -> None:
        self.pipeline, self.prompts, self.seed = pipeline, prompts, seed
        self.block, self.sampling = batch_size, sampling or pipeline.config.sampling
        self.notes: Mapping[str, int] = {}
        self.unreadable: Mapping[str, str] = {}
        if prompts:
            pipeline.generate_batches(
                prompts, seed=seed, batch_size=batch_size, sampling=self.sampling
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def read(self, ids: Sequence[int]) -> EvalBatch:
        """Generate the pictures with these numbers."""
        prompts = [self.prompts[i] for i in ids]
        seeds = [self.seed + i for i in ids]
        images = self.pipeline.generate(
            prompts, seed=seeds, batch_size=self.block, sampling=self.sampling
        )
        return eval_batch(self.source, ids, images, prompts)

    def about(self) -> dict[str, Any]:
        """Return number and shape of the pictures."""
        return {"n": len(self), "shape": list(self.pipeline.image_shape)}

    def content_key(self, ids: Sequence[int]) -> str | None:
        """Return None: nothing is cached of what a model generates."""
        del ids

    def remarks(self) -> list[str]:
        """Return no remarks."""
        return []


def eval_batch(
    source: str, ids: Sequence[int], images: UInt8[Tensor, "N C H W"], prompts: Sequence[str]
) -> EvalBatch:
    """Make a batch of numbered pictures."""
    numbers = torch.tensor(ids, dtype=torch.int64)
    return {"source": source, "id": numbers, "image": images, "prompt": list(prompts)}
