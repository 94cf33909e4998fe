"""CLIP score: how near picture and prompt are in the space of a pretrained CLIP."""

from typing import Any

from torch.nn.functional import cosine_similarity

from tinydiffusion.metrics.clip import shared_clip
from tinydiffusion.metrics.provenance import unverified
from tinydiffusion.metrics.statistics import mean_interval
from tinydiffusion.metrics.table import Columns, RowsEvaluator
from tinydiffusion.protocols import EvalBatch, Score


class CLIPScore(RowsEvaluator):
    """100 x the mean cosine of picture and prompt, not clamped at 0; at most 100.

    After Hessel et al. (2021), section 3, https://arxiv.org/abs/2104.08718, without its weight 2.5,
    its prefix and its clamp, as most papers report it. Values of different models do not compare,
    so the row carries the model's name. Runs where the pictures are. A model that was conditioned
    by the same CLIP is measured by what it learned from: choose another one then.

    Args:
        model: An architecture that open_clip lists, `local-dir:FOLDER` with open_clip_config.json
            and weights, or `hf-hub:OWNER/NAME`.
        pretrained: Tag of a listed architecture; None means "openai". Folders and hub models bring
            their weights.

    Raises:
        ValueError: the model does not exist, has no weights or does not fit them.
    """

    needs = ("generated", "prompts")

    def __init__(self, *, model: str = "ViT-B-32-quickgelu", pretrained: str | None = None) -> None:
        super().__init__(tensors=("cosine", "truncated"))
        self.clip = shared_clip(model, pretrained)

    def columns(self, batch: EvalBatch) -> Columns:
        """Compute the cosine of picture and prompt, and whether the prompt was cut to fit."""
        pictures = self.clip.encode_images(batch["image"]).cpu()
        texts = self.clip.encode_texts(batch["prompt"])
        cosine = cosine_similarity(pictures.double(), texts.features.double())
        return {"cosine": cosine, "truncated": texts.truncated}

    def compute(self) -> list[Score]:
        """Compute the row `clip_score[model]` with the 95 % interval of the mean.

        Raises:
            ValueError: there was no generated picture.
        """
        table = self.tables["generated"]
        if not len(table):
            raise ValueError("clip_score got no generated picture")
        scores = 100 * table.tensor("cosine")
        return [
            Score(
                f"clip_score[{self.clip.name}]",
                scores.mean().item(),
                len(scores),
                ci95=mean_interval(scores),
                details={
                    "n_negative": int((scores < 0).sum()),
                    "n_truncated_prompts": int(table.tensor("truncated").sum()),
                },
                warnings=unverified(self.clip.images.spec()),
                per_picture=dict(zip(table.ids(), scores.tolist(), strict=True)),
            )
        ]

    def provenance(self) -> dict[str, Any]:
        """Return what makes the number comparable."""
        return self.clip.provenance()


PLUGIN = CLIPScore
