"""The text encoder trained against a small picture encoder first, and then train.py.

python benchmarks/_contrastive.py SECONDS MODEL_FOLDER FLAGS_OF_TRAIN_PY

Trains the config's text encoder alone, writes a model folder with it and a new network, and goes
on as train.py with that folder as `init_from`.
"""

import math
import os
import re
import sys
import time
from collections import deque
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tinydiffusion import config as config_file
from tinydiffusion.build import build_dataset, build_objective, pick_device
from tinydiffusion.config import Config
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.protocols import Batch, Generators, TextEncoder
from tinydiffusion.scenes.vocabulary import COLOURS, SHAPES
from tinydiffusion.survey import survey
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.learner import Learner

TRAIN = Path(__file__).parent.parent / "train.py"
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
WARMUP_STEPS = 20
LAST = 20  # steps whose mean accuracy is told
HIGHEST_SCALE = 100.0
NOUN = re.compile(rf"\ban? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b")


class ContrastiveObjective(nn.Module):
    """Which caption belongs to which picture of the batch, and to none of its look-alikes.

    Symmetric cross-entropy of Radford et al. (2021), figure 3, https://arxiv.org/abs/2103.00020,
    with a learned temperature. Captions of two drawn objects have hard negatives, see
    `look_alikes`; each counts against its own picture only.

    Args:
        text_encoder: Trained; its pooled states are compared.
        in_channels: Colour channels of the pictures.
        width: Of the space shared by pictures and captions.
    """

    def __init__(self, text_encoder: TextEncoder, in_channels: int = 3, width: int = 128) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.pictures = picture_encoder(in_channels, width)
        self.project = nn.Linear(text_encoder.pooled_size, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def loss(
        self, batch: Batch, generators: Generators
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The mean of both directions, and the share of pictures that find their caption."""
        del generators
        captions = batch["caption"]
        owners, negatives = _negatives(captions)
        images = F.normalize(self.pictures(batch["image"].float() / 127.5 - 1), dim=-1)
        pooled = self.text_encoder.encode([*captions, *negatives]).pooled
        texts = F.normalize(self.project(pooled), dim=-1)
        scale = self.log_scale.exp().clamp(max=HIGHEST_SCALE)
        logits = scale * images.float() @ texts.float().T
        own = torch.arange(len(captions), device=logits.device)
        to_text = logits.masked_fill(_of_others(owners.to(own.device), own), -math.inf)
        to_image = logits[:, : len(captions)].T
        found = (to_text.argmax(1) == own).float().mean()
        loss = (F.cross_entropy(to_text, own) + F.cross_entropy(to_image, own)) / 2
        return loss, {"accuracy": found}


def picture_encoder(in_channels: int, width: int) -> nn.Sequential:
    """Pictures to vectors: strided convolutions down to 4x4 places, which keep their order."""
    widths = (in_channels, 32, 64, 128)
    layers: list[nn.Module] = []
    for fewer, more in pairwise(widths):
        layers += [nn.Conv2d(fewer, more, 3, stride=2, padding=1), nn.GroupNorm(8, more), nn.SiLU()]
    head = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * widths[-1], width, bias=False)]
    return nn.Sequential(*layers, *head)


def look_alikes(caption: str) -> list[str]:
    """The caption of two drawn objects with them exchanged, and with their colours exchanged.

    Of other captions, and where it says the same, none.
    """
    if len(nouns := list(NOUN.finditer(caption))) != 2:
        return []
    (colour, shape), (colour2, shape2) = (noun.groups() for noun in nouns)
    swaps = [((colour2, shape2), (colour, shape)), ((colour2, shape), (colour, shape2))]
    others = [_with_nouns(caption, [f"a {c} {s}" for c, s in swap]) for swap in swaps]
    return [other for other in dict.fromkeys(others) if other != caption]


def _with_nouns(caption: str, nouns: list[str]) -> str:
    remaining = iter(nouns)
    return NOUN.sub(lambda _: next(remaining), caption)


def _negatives(captions: list[str]) -> tuple[Int[Tensor, "N"], list[str]]:
    """Whose negative each is, counting the captions themselves, and the negatives."""
    pairs = [(i, other) for i, caption in enumerate(captions) for other in look_alikes(caption)]
    owners = [*range(len(captions)), *(i for i, _ in pairs)]
    return torch.tensor(owners), [other for _, other in pairs]


def _of_others(owners: Int[Tensor, "N"], own: Int[Tensor, "B"]) -> Tensor:
    """Where a text is a negative, and another picture's."""
    others = owners[None] != own[:, None]
    others[:, : len(own)] = False
    return others


def pretrain(config: Config, seconds: float, folder: Path) -> dict[str, float]:
    """Accuracy and steps of the training, after which a model folder is there.

    Its text encoder is trained, its network is the one that the run itself would begin with.

    Args:
        config: The run.
        seconds: Of training; reading data and building come on top.
        folder: Of the model.
    """
    dataset = build_dataset(config.dataset)
    captions, _ = survey(dataset)
    image = dataset[0]["image"]
    model: Any = build_objective(config, captions, len(image))
    device = pick_device(config.training.device)
    torch.manual_seed(config.seed)
    objective = ContrastiveObjective(model.text_encoder, len(image)).to(device)
    told = _train(objective, Batches(dataset, BATCH_SIZE, config.seed), config, seconds)
    parts = model.denoiser.network.eval().cpu(), model.text_encoder.eval().cpu()
    TextToImage(*parts, config, image.shape).save_pretrained(folder)
    return told


def _train(
    objective: ContrastiveObjective, batches: Batches, config: Config, seconds: float
) -> dict[str, float]:
    muon = [name for name in config.training.muon_modules if name == "text_encoder"]
    learner = Learner(
        objective, learning_rate=LEARNING_RATE, muon_modules=muon, seed=config.seed,
        muon_learning_rate=config.training.muon_learning_rate,
        precision=config.training.precision,
    )  # fmt: skip
    last: deque[float] = deque(maxlen=LAST)
    start, steps = time.monotonic(), 0
    with closing(batches.starting_at(0)) as endless:
        while (passed := time.monotonic() - start) < seconds or not steps:
            factor = min((steps + 1) / WARMUP_STEPS, max(0.0, 1 - passed / seconds))
            (scalars, *_), _ = learner.step([next(endless)], factor)
            steps += 1
            last.append(float(scalars["accuracy"]))
    seconds = round(time.monotonic() - start, 2)
    return {"steps": steps, "accuracy": round(fmean(last), 4), "seconds": seconds}


def main() -> None:
    """Pre-train, then become train.py."""
    seconds, folder, *flags = sys.argv[1:]
    file, overrides = flags[flags.index("--config") + 1], flags[:]
    for known in ("--config", "--run-dir"):
        place = overrides.index(known)
        del overrides[place : place + 2]
    config = config_file.load(file, overrides)
    print(pretrain(config, float(seconds), Path(folder)), file=sys.stderr)
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, str(TRAIN), *flags, "--init_from", folder])


if __name__ == "__main__":
    main()
