"""The image tower of any open_clip model."""

import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tinydiffusion.feature_extractors._weights import tensors_sha256
from tinydiffusion.runtime.errors import MissingWeightsError, WeightsError
from tinydiffusion.runtime.hub import hub_advice, read_errors, reason_of


class OpenCLIP:
    """Image embeddings (N, D) as `encode_image` gives them: projected, not normalised.

    Radford et al. (2021), https://arxiv.org/abs/2103.00020; Ilharco et al. (2021),
    https://github.com/mlfoundations/open_clip. Pictures go through the model's own transform. Runs
    where the pictures are.

    Args:
        model: An architecture that open_clip lists, `local-dir:FOLDER` with open_clip_config.json
            and weights, or `hf-hub:OWNER/NAME`.
        pretrained: Tag of a listed architecture; None means "openai". Folders and hub models bring
            their weights.

    Raises:
        MissingWeightsError: the weights are not there and cannot be fetched.
        WeightsError: they do not fit the model.
    """

    def __init__(self, *, model: str = "ViT-B-32-quickgelu", pretrained: str | None = None) -> None:
        tag = _tag(model, pretrained)
        self.network, self.transform = _load(model, tag)
        scheme, _, folder = model.partition(":")
        public = f"local-dir:{Path(folder).name}" if scheme == "local-dir" else model
        self.model = f"{public}/{tag}" if tag else public
        self.sha256 = tensors_sha256(self.network.state_dict())
        self.dimensions = self(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape[1]

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Compute image embeddings."""
        from PIL import Image

        pictures = [Image.fromarray(x.numpy()) for x in images.permute(0, 2, 3, 1).cpu()]
        inputs = torch.stack([self.transform(picture) for picture in pictures])
        return self.network.to(images.device).encode_image(inputs.to(images.device))

    def spec(self) -> dict[str, Any]:
        """Return what makes a number comparable."""
        return {
            "name": self.model,
            "weights_sha256": self.sha256,
            "verified": False,  # nobody publishes hashes to check against
            "resize": f"open_clip's own transform: PIL, {self.transform.transforms[0]}",
            "antialias": True,
            "layer": "embedding",
            "dtype": "float32",
        }


def _tag(model: str, pretrained: str | None) -> str | None:
    """Return the tag of a listed architecture's weights; None where the model has its own."""
    import open_clip

    if model.startswith(("local-dir:", "hf-hub:")):
        if pretrained:
            raise ValueError(f"{model!r} brings its weights; leave out pretrained={pretrained!r}")
        return None
    tag, tags = pretrained or "openai", open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise ValueError(
            f"open_clip has no pretrained={tag!r} of model={model!r}; it has "
            f"{', '.join(tags) or 'no weights of it'}; a folder is written local-dir:FOLDER"
        )
    return tag


def _load(model: str, tag: str | None) -> tuple[Any, Any]:
    """Load network and picture transform; weights that were not loaded are an error."""
    import open_clip

    try:
        with warnings.catch_warnings():
            # The wrong activation loads without an error and shifts every feature.
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            network, transform = open_clip.create_model_from_pretrained(model, tag)  # pyright: ignore
    except UserWarning as mismatch:
        raise WeightsError(f"{mismatch} Use model={model}-quickgelu.") from mismatch
    except (*read_errors(), RuntimeError) as error:
        # No such folder, or no network; open_clip raises a plain RuntimeError for the latter.
        missing = isinstance(error, OSError) or "Failed to download" in str(error)
        kind = MissingWeightsError if missing else WeightsError
        advice = hub_advice("name a folder by model='local-dir:FOLDER'") if missing else ""
        text = f"cannot load the open_clip model {model!r}: {reason_of(error)}. {advice}"
        raise kind(text.rstrip(". ")) from error
    return network.eval(), transform


PLUGIN = OpenCLIP
