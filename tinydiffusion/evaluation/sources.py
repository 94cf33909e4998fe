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
from tinydiffusion.pictures.decode import PassingFaultError, UnusablePictureError
from tinydiffusion.pictures.usable import first_usable, usable
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
        """What was done to the pictures that have been read -> to how many of them."""
        ...

    @property
    def unreadable(self) -> Mapping[str, str]:
        """File name -> reason, of the broken pictures met so far."""
        ...

    def read(self, ids: Sequence[int]) -> EvalBatch:
        """The pictures with these numbers, those left out that cannot be read."""
        ...

    def about(self) -> dict[str, Any]:
        """JSON-able: what decides the pixels."""
        ...

    def content_key(self, ids: Sequence[int]) -> str | None:
        """What pixels and prompts of these numbers depend on, as a hash; None: not known."""
        ...

    def remarks(self) -> list[str]:
        """What is to be said of the pictures beside every number."""
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
        if not found:
            found_images = torch.empty(0, *self._shape(), dtype=torch.uint8)
        else:
            found_images = torch.stack([example["image"] for example in found.values()])
        prompts = [captions_of(example)[0] for example in found.values()]
        return eval_batch(self.source, list(found), found_images, prompts)

    def _usable(self, place: int) -> Example | None:
        try:
            return self.dataset[place]
        except PassingFaultError:
            raise
        except UnusablePictureError as error:
            self.unreadable[f"{self.source} {place}"] = str(error)
            return None

    def _shape(self) -> list[int]:
        return list(first_usable(self.dataset)["image"].shape)

    def about(self) -> dict[str, Any]:
        """Tell how many there are, their shape and their content."""
        shape = self._shape()
        content = json.dumps([list(self._fingerprints().items()), len(self), shape])
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        return {"n": len(self), "shape": shape, "sha256": sha256}

    def _fingerprints(self) -> Mapping[str, str]:
        """Hash captions and pixels: those of the whole set where it knows them by heart.

        Else of the examples that are used, of which at most SURVEYED are read.
        """
        if isinstance(self.dataset, Fingerprinted) and (known := self.dataset.fingerprints()):
            return known
        examples = usable(self.dataset, spread(len(self), SURVEYED))
        return {example["id"]: fingerprint(example) for example in examples}

    def content_key(self, ids: Sequence[int]) -> str | None:
        """None: to know the pixels they would all have to be read."""
        del ids

    def remarks(self) -> list[str]:
        """None."""
        return []


class ModelPictures:
    """What a model makes of prompts, picture i with seed + i, whenever it is asked for.

    Args:
        pipeline: The model.
        prompts: One per picture.
        seed: Of picture 0.
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
        """The pictures with these numbers, which follow each other, made now."""
        assert list(ids) == list(range(ids[0], ids[0] + len(ids))), ids
        prompts = [self.prompts[i] for i in ids]
        images = self.pipeline.generate(
            prompts, seed=self.seed + ids[0], batch_size=self.block, sampling=self.sampling
        )
        return eval_batch(self.source, ids, images, prompts)

    def about(self) -> dict[str, Any]:
        """How many there are, and their shape."""
        return {"n": len(self), "shape": list(self.pipeline.image_shape)}

    def content_key(self, ids: Sequence[int]) -> str | None:
        """None: nothing is kept of what a model makes."""
        del ids

    def remarks(self) -> list[str]:
        """None."""
        return []


def eval_batch(
    source: str, ids: Sequence[int], images: UInt8[Tensor, "N C H W"], prompts: Sequence[str]
) -> EvalBatch:
    """A batch of numbered pictures."""
    numbers = torch.tensor(ids, dtype=torch.int64)
    return {"source": source, "id": numbers, "image": images, "prompt": list(prompts)}
