"""How many pictures until a text encoder tells left from right, with no network in the way.

python benchmarks/relations.py

Prints one JSON object. See benchmarks/README.md.
"""

import argparse
import json
import statistics
from math import inf, isfinite
from typing import Any, NamedTuple

import torch
from _measuring import machine, rounded
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from tinydiffusion import config as config_file
from tinydiffusion.build import build_dataset, build_objective
from tinydiffusion.config import Config
from tinydiffusion.datasets.scenes import ScenesDataset
from tinydiffusion.layers.precision import uses_bfloat16
from tinydiffusion.pictures.units import to_float
from tinydiffusion.runtime.allocator import keep_freed_memory
from tinydiffusion.runtime.processes import ALONE
from tinydiffusion.scenes.captions import captions
from tinydiffusion.scenes.vocabulary import INVERSE
from tinydiffusion.survey import survey
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.optimizers.optimizer import Optimizer
from tinydiffusion.training.parallel.replicated import Replicated

CPU = torch.device("cpu")
KNOWN = 0.02
"""Of the error that the opposite caption adds: with this much, relations are half known."""
PAIRS = 512  # held-out pictures to measure with; every second scene shows a pair
EVERY = 2048  # pictures between two measurements


class Pairs(NamedTuple):
    """Held-out pictures of two objects, shrunk; what they show; and the opposite."""

    small: Float[Tensor, "N C side side"]
    told: list[str]
    opposite: list[str]


class TextAlone(nn.Module):
    """The small picture from a text encoder and the network's preview, and nothing else."""

    def __init__(self, objective: Any) -> None:
        super().__init__()
        self.text_encoder = objective.text_encoder
        self.preview = objective.denoiser.network.text_preview

    def forward(self, texts: list[str]) -> Float[Tensor, "B 3 side side"]:
        """Small pictures in about [-1, 1]."""
        with torch.autocast("cpu", torch.bfloat16, enabled=uses_bfloat16("auto", CPU)):
            return self.preview(self.text_encoder.encode(texts).pooled)[:, :3].float()

    def error(self, texts: list[str], small: Float[Tensor, "B 3 side side"]) -> Float[Tensor, ""]:
        """The mean squared error of the small pictures."""
        return (self(texts) - small).square().mean()


def main() -> None:
    """Train each setting with each seed, and print what came out."""
    parser = argparse.ArgumentParser(
        description="Trains text encoder and preview alone; other flags are keys of the config.",
    )
    parser.add_argument("--config", default="configs/quickstart.yaml", help="default %(default)s")
    parser.add_argument("--conv-sizes", type=int, nargs="+", default=[1, 4], help="default 1 4")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--pictures", type=int, default=45_000, help="each; default %(default)s")
    options, overrides = parser.parse_known_args()
    keep_freed_memory()
    rows: dict[str, Any] = {}
    for size in options.conv_sizes:
        runs = []
        for seed in options.seeds:
            flags = [*overrides, f"--text_encoder.conv_size={size}", f"--seed={seed}"]
            curve = learn(config_file.load(options.config, flags), options.pictures)
            runs.append({"seed": seed, "pictures_until_known": until_known(curve), "curve": curve})
        rows[str(size)] = {"median": middle([run["pictures_until_known"] for run in runs]),
                           "runs": runs}  # fmt: skip
    print(json.dumps({"machine": machine(CPU), "known": KNOWN, "conv_size": rows}, indent=1))


def learn(config: Config, pictures: int) -> list[dict[str, float]]:
    """After every so many pictures: the error, and what the opposite captions add to it."""
    dataset = build_dataset(config.dataset)
    model = TextAlone(build_objective(config, survey(dataset)[0]))
    side = model.preview.size
    pairs = held_out(ScenesDataset(split="held_out", num_scenes=2 * PAIRS), side)
    training = config.training
    optimizer = Optimizer(
        model, Replicated(model, ALONE), learning_rate=training.learning_rate,
        betas=training.betas, weight_decay=training.weight_decay,
        muon_modules=["text_encoder", "preview"], muon_learning_rate=training.muon_learning_rate,
    )  # fmt: skip
    batches = Batches(dataset, training.batch_size, config.seed)
    curve = []
    for seen in range(0, pictures, training.batch_size):
        if seen % EVERY < training.batch_size:
            curve.append(measured(model, pairs, seen))
        batch = batches.batch_at(seen)
        model.zero_grad()
        model.error(batch["caption"], shrunk(batch["image"], side)).backward()
        warmed = min(1.0, (seen + training.batch_size) / training.warmup_pictures)
        optimizer.guarded_step(warmed, call_off=torch.zeros(()))
    return [*curve, measured(model, pairs, pictures)]


def measured(model: TextAlone, pairs: Pairs, seen: int) -> dict[str, float]:
    """The error of held-out pairs, and what the opposite relation adds to it."""
    with torch.no_grad():
        told, opposite = (
            model.error(texts, pairs.small).item() for texts in (pairs.told, pairs.opposite)
        )
    return {"pictures": seen, "error": rounded(told), "opposite_adds": rounded(opposite - told)}


def until_known(curve: list[dict[str, float]]) -> float | None:
    """Pictures of the first measurement with relations half known; None where they never were."""
    return next((at["pictures"] for at in curve if at["opposite_adds"] >= KNOWN), None)


def middle(known: list[float | None]) -> float | None:
    """The median, or None where it lies among those that never were."""
    found = statistics.median(inf if pictures is None else pictures for pictures in known)
    return found if isfinite(found) else None


def held_out(dataset: ScenesDataset, side: int) -> Pairs:
    """The pairs of the set, each told by one template, in turn."""
    pairs = [i for i in range(len(dataset)) if dataset.scene(i).relation]
    told = [captions(dataset.scene(i))[n % 6] for n, i in enumerate(pairs)]
    images = torch.stack([dataset[i]["image"] for i in pairs])
    return Pairs(shrunk(images, side), told, [opposite(text) for text in told])


def shrunk(images: UInt8[Tensor, "B 3 H W"], side: int) -> Float[Tensor, "B 3 side side"]:
    """The pictures in [-1, 1], so many pixels wide."""
    return adaptive_avg_pool2d(to_float(images), side)


def opposite(text: str) -> str:
    """The caption with the inverse relation."""
    relation = next(relation for relation in INVERSE if relation in text)
    return text.replace(relation, INVERSE[relation])


if __name__ == "__main__":
    main()
