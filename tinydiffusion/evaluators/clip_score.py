"""CLIP score: how near picture and prompt are in the space of a pretrained CLIP."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from tinydiffusion.evaluators._provenance import provenance
from tinydiffusion.evaluators._statistics import mean_interval
from tinydiffusion.evaluators._table import Table
from tinydiffusion.protocols import EvalBatch, EvaluatorState, Score


class CLIPScore:
    """100 x the mean cosine of picture and prompt, not clamped at 0; at most 100.

    After Hessel et al. (2021), section 3, https://arxiv.org/abs/2104.08718, without its weight 2.5,
    its prefix and its clamp, as most papers report it. Values of different models do not compare,
    so the row carries the model's name. Runs where the pictures are.

    Args:
        model: An architecture that open_clip lists, `local-dir:FOLDER` with open_clip_config.json
            and weights, or `hf-hub:OWNER/NAME`.
        pretrained: Tag of a listed architecture; None means "openai". Folders and hub models bring
            their weights.

    Raises:
        ValueError: the model does not exist, has no weights or does not fit them.
    """

    needs = ("generated",)

    def __init__(self, *, model: str = "ViT-B-32-quickgelu", pretrained: str | None = None) -> None:
        tag = _tag(model, pretrained)
        self.network, self.preprocess, self.tokenizer = _load(model, tag)
        self.model = f"{model}/{tag}" if tag else _public_name(model)
        self.rows = Table("generated", tensors=("cosine", "truncated"))

    @torch.no_grad()
    def update(self, batch: EvalBatch) -> None:
        """Take in generated pictures with their prompts; reference pictures are passed over."""
        if batch["source"] != "generated":
            return
        columns = {
            "cosine": self._cosines(batch["image"], batch["prompt"]),
            "truncated": self._truncated(batch["prompt"]),
        }
        self.rows.add(batch["id"], columns)

    def state(self) -> EvaluatorState:
        """Cosine and truncation of every picture."""
        return self.rows.state()

    def load_state(self, state: EvaluatorState) -> None:
        """Take over a (merged) state."""
        self.rows.load_state(state)

    def compute(self) -> list[Score]:
        """One row, `clip_score[model]`, with the 95 % interval of the mean.

        Raises:
            ValueError: there was no generated picture.
        """
        if not len(self.rows):
            raise ValueError("clip_score got no generated picture")
        cosines = self.rows.tensor("cosine")
        details = {
            "n_negative": int((cosines < 0).sum()),
            "n_truncated_prompts": int(self.rows.tensor("truncated").sum()),
        }
        scores = 100 * cosines
        name = f"clip_score[{self.model}]"
        interval = mean_interval(scores)
        return [Score(name, scores.mean().item(), len(scores), ci95=interval, details=details)]

    def provenance(self) -> dict[str, Any]:
        """What makes the number comparable."""
        spec = {
            "name": self.model,
            "weights_sha256": _weights_sha256(self.network),
            "verified": False,  # nobody publishes hashes to check against
            "resize": "open_clip's own transform: PIL, " + str(self.preprocess.transforms[0]),
            "antialias": True,
            "dtype": "float32",
        }
        return provenance(spec, "open_clip_torch", "pillow")

    def _cosines(
        self, images: UInt8[Tensor, "N 3 H W"], prompts: Sequence[str]
    ) -> Float[Tensor, "N"]:
        from PIL import Image

        pictures = [Image.fromarray(x.numpy()) for x in images.permute(0, 2, 3, 1).cpu()]
        inputs = torch.stack([self.preprocess(picture) for picture in pictures])
        network = self.network.to(images.device)
        image_features = network.encode_image(inputs.to(images.device), normalize=True)
        tokens = self.tokenizer(list(prompts)).to(images.device)
        text_features = network.encode_text(tokens, normalize=True)
        return (image_features * text_features).sum(dim=1).cpu().double()

    def _truncated(self, prompts: Sequence[str]) -> Bool[Tensor, "N"]:
        """Which prompts are longer than what the text tower reads (the tokenizer cuts them)."""
        fits = self.tokenizer.context_length
        longer = self.tokenizer(["", *prompts], context_length=8 * fits)
        padding = longer[0, -1]
        return (longer[1:, fits:] != padding).any(dim=1)


def _tag(model: str, pretrained: str | None) -> str | None:
    """The pretrained tag of a listed architecture; None where the model brings its weights."""
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


def _load(model: str, tag: str | None) -> tuple[Any, Any, Any]:
    """Network, picture transform and tokenizer; weights that were not loaded are an error."""
    import open_clip

    try:
        with warnings.catch_warnings():
            # The wrong activation loads without an error and shifts every score.
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            loaded: Any = open_clip.create_model_from_pretrained(model, tag)
    except UserWarning as mismatch:
        raise ValueError(f"{mismatch} Use model={model}-quickgelu.") from mismatch
    except (RuntimeError, OSError) as error:
        raise ValueError(f"cannot load the open_clip model {model!r}: {error}") from error
    network, preprocess = loaded
    return network.eval(), preprocess, open_clip.get_tokenizer(model)


def _public_name(model: str) -> str:
    """The model's name without the path to a local folder."""
    scheme, _, folder = model.partition(":")
    return f"local-dir:{Path(folder).name}" if scheme == "local-dir" else model


def _weights_sha256(network: nn.Module) -> str:
    """SHA-256 over names and values of all tensors, so that the file format does not matter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


PLUGIN = CLIPScore
