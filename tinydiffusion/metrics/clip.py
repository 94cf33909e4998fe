"""Pictures and prompts in the space of one CLIP, embedded once for all evaluators that need it."""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol, cast

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from tinydiffusion.metrics.features import Shared, shared_extractor
from tinydiffusion.metrics.provenance import provenance


class Texts(NamedTuple):
    """Prompts as CLIP embeds them."""

    features: Float[Tensor, "N D"]  # of unit length
    tokens: Int[Tensor, "N L"]
    truncated: Bool[Tensor, "N"]  # whether it is longer than what the text tower reads


class TwoTowers(Protocol):
    """What the extractor `open_clip` holds besides its image tower."""

    network: Any


class CLIP:
    """An open_clip model; its image tower is the feature extractor `open_clip`.

    Args:
        model: An architecture that open_clip lists, `local-dir:FOLDER` with open_clip_config.json
            and weights, or `hf-hub:OWNER/NAME`.
        pretrained: Tag of a listed architecture; None means "openai".
    """

    def __init__(self, model: str, pretrained: str | None) -> None:
        import open_clip

        self.images = image_tower(model, pretrained)
        self.network = cast(TwoTowers, self.images.extractor).network
        self.tokenizer: Any = open_clip.get_tokenizer(model)
        self.name: str = self.images.spec()["name"]
        self._prompts: tuple[str, ...] = ()
        self._texts: Texts | None = None

    def encode_images(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Embed pictures; the embeddings have unit length."""
        return normalize(self.images(images), dim=1)

    def encode_texts(self, prompts: Sequence[str]) -> Texts:
        """Embed prompts at unit length, and note which had to be cut; the end token stays."""
        if self._texts is None or tuple(prompts) != self._prompts:
            self._prompts, self._texts = tuple(prompts), self._encode(list(prompts))
        return self._texts

    def provenance(self) -> dict[str, Any]:
        """Return what makes numbers comparable.

        `token_embedding_sha256` shows whether a text encoder is of the same CLIP.
        """
        spec = {**self.images.spec(), "token_embedding_sha256": self._token_embedding_sha256()}
        return provenance(spec, "open_clip_torch", "pillow")

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Texts:
        tokens = self.tokenizer(prompts)
        device = next(self.network.parameters()).device
        features = normalize(self.network.encode_text(tokens.to(device)), dim=1)
        if broken := int((~features.isfinite()).any(dim=1).sum()):
            raise ValueError(
                f"{self.name} gives NaN or infinite features for {broken} of {len(prompts)} "
                "prompts; its weights are damaged"
            )
        return Texts(features.cpu(), tokens, self._truncated(prompts))

    def _truncated(self, prompts: list[str]) -> Bool[Tensor, "N"]:
        """Return which prompts have more tokens than the text tower reads."""
        fits: int = self.tokenizer.context_length
        longer = self.tokenizer(["", *prompts], context_length=8 * fits)
        padding = longer[0, -1]
        return (longer[1:, fits:] != padding).any(dim=1)

    def _token_embedding_sha256(self) -> str | None:
        """Hash the values of CLIP's own token table; None for a text tower of another kind."""
        for name, tensor in self.network.state_dict().items():
            if name in ("token_embedding.weight", "text.token_embedding.weight"):
                return hashlib.sha256(tensor.cpu().contiguous().numpy().tobytes()).hexdigest()
        return None


@cache
def shared_clip(model: str, pretrained: str | None) -> CLIP:
    """Return the one CLIP of this name in the process."""
    return CLIP(model, pretrained)


def image_tower(model: str, pretrained: str | None) -> Shared:
    """Return the shared extractor of an open_clip model."""
    return shared_extractor("open_clip", model=model, pretrained=pretrained)
