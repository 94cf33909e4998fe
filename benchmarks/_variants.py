"""What ablations.py changes in a recipe, one idea at a time: as data, one row each."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Variant(NamedTuple):
    """One idea, against the base recipe."""

    why: str
    overrides: Mapping[str, Any] = MappingProxyType({})
    core: bool = False
    contrastive_seconds: float = 0  # of training the text encoder alone, taken off the budget


class Ladder(NamedTuple):
    """A base recipe and its variants."""

    config: str
    metrics: tuple[str, ...]  # rows of report.json; variants are sorted by the first
    variants: dict[str, Variant]


def one_of(every: int, denoised: int) -> dict[str, Any]:
    """Overrides: one picture of so many is denoised, and so many are denoised a step."""
    return {"objective.denoise_every": every, "training.batch_size": every * denoised}


COMMON = {
    "adamw": Variant("AdamW for all, no Muon", {"training.muon_modules": []}, core=True),
    "noise_candidates_4": Variant(
        "each picture gets the nearest of 4 noises", {"objective.noise_candidates": 4}, core=True
    ),
    "contrastive_60s": Variant(
        "text encoder trained by CLIP's loss first, a minute off the time",
        contrastive_seconds=60, core=True,
    ),
    "contrastive_20s": Variant(
        "text encoder trained by CLIP's loss first, 20 s off the time", contrastive_seconds=20
    ),
    "not_stratified": Variant("noise levels drawn independently", {"objective.stratified": False}),
    "learning_rate_5e-4": Variant("half AdamW's rate", {"training.learning_rate": 5e-4}),
    "learning_rate_2e-3": Variant("twice AdamW's rate", {"training.learning_rate": 2e-3}),
    "muon_learning_rate_0.02": Variant("twice Muon's", {"training.muon_learning_rate": 0.02}),
    "betas_0.9_0.95": Variant("shorter memory of AdamW", {"training.betas": [0.9, 0.95]}),
    "betas_0.9_0.999": Variant("longer memory of AdamW", {"training.betas": [0.9, 0.999]}),
    "ema_power_0.6": Variant("shorter weight average", {"training.ema_power": 0.6}),
    "ema_power_0.9": Variant("longer weight average", {"training.ema_power": 0.9}),
    "decay_fraction_0.2": Variant("learning rate falls late", {"training.decay_fraction": 0.2}),
    "decay_fraction_0.8": Variant("learning rate falls early", {"training.decay_fraction": 0.8}),
    "warmup_2000": Variant("a fifth of the warm-up", {"training.warmup_pictures": 2000}),
    "dropout_0.1": Variant("dropout in residual blocks", {"network.dropout": 0.1}),
    "caption_dropout_0.05": Variant(
        "half the empty captions", {"objective.caption_dropout_prob": 0.05}
    ),
    "layers_per_block_2": Variant("twice the residual blocks", {"network.layers_per_block": 2}),
}  # fmt: skip

V_COSINE = {
    "diffusion.prediction_type": "v_prediction",
    "diffusion.schedule": "cosine",
    "objective.time_density": "uniform",
}

SCENES = {
    "time_uniform": Variant(
        "noise levels uniform", {"objective.time_density": "uniform"}, core=True
    ),
    "time_0_1": Variant(
        "fewer high noise levels: logit-normal 0, 1",
        {"objective.time_mean": 0.0, "objective.time_std": 1.0}, core=True,
    ),
    "time_0.8_1.2": Variant(
        "more high noise levels: logit-normal 0.8, 1.2", {"objective.time_mean": 0.8}
    ),
    "denoise_every_1": Variant(
        "every picture is denoised", one_of(1, denoised=64),
        core=True,
    ),
    "denoise_every_4": Variant(
        "one picture of four is denoised",
        one_of(4, denoised=64),
    ),
    "no_preview": Variant(
        "every picture is denoised, and the text learns no preview",
        {**one_of(1, denoised=64), "objective.preview_weight": 0.0}, core=True,
    ),
    "muon_text": Variant(
        "Muon for the text encoder only", {"training.muon_modules": ["text_encoder"]}, core=True
    ),
    "batch_64": Variant("twice the updates", {"training.batch_size": 64}, core=True),
    "attention_1": Variant(
        "attention on the whole level of 8x8", {"network.attention_levels": [1]}, core=True
    ),
    "attention_0_1": Variant("and at 16x16 too", {"network.attention_levels": [0, 1]}),
    "sample_velocity": Variant(
        "predicts x_0, weighted as the velocity's error",
        {"diffusion.prediction_type": "sample", "objective.weighting": "velocity"}, core=True,
    ),
    **COMMON,
    "preview_weight_4": Variant("the preview counts more", {"objective.preview_weight": 4.0}),
    "v_flow": Variant(
        "predicts v on the flow schedule", {"diffusion.prediction_type": "v_prediction"}
    ),
    "v_cosine": Variant("v, cosine schedule, uniform times", V_COSINE),
    "v_cosine_min_snr": Variant(
        "the same with min-SNR weights", {**V_COSINE, "objective.weighting": "min_snr"}
    ),
    "epsilon_linear": Variant(
        "DDPM's: predicts the noise, linear betas, uniform times",
        {
            "diffusion.prediction_type": "epsilon",
            "diffusion.schedule": "linear",
            "objective.time_density": "uniform",
        },
    ),
    "shift_3": Variant("noise levels shifted by 3", {"diffusion.shift": 3.0}),
    "batch_256": Variant("half the updates", {"training.batch_size": 256}),
    "text_128x2": Variant(
        "smaller text encoder",
        {"text_encoder.width": 128, "text_encoder.layers": 2, "text_encoder.heads": 4},
    ),
    "text_layers_2": Variant("shallower text encoder", {"text_encoder.layers": 2}),
    "text_layers_4": Variant("deeper text encoder", {"text_encoder.layers": 4}),
    "conv_size_1": Variant(
        "no convolution over the tokens", {"text_encoder.conv_size": 1}, core=True
    ),
    "channels_64_64": Variant("narrower network", {"network.channels": [64, 64]}),
    "channels_64_128": Variant("wider where it is coarse", {"network.channels": [64, 128]}),
    "channels_128_128": Variant("wider network", {"network.channels": [128, 128]}),
    "patch_4": Variant("patches of 4x4", {"network.patch_size": 4}),
    "patch_1": Variant("no patches", {"network.patch_size": 1}),
    "preview_size_16": Variant("larger preview", {"network.preview_size": 16}, core=True),
}  # fmt: skip

EMOJI = {
    "time_uniform": Variant(
        "noise levels uniform", {"objective.time_density": "uniform"}, core=True
    ),
    "time_0.4_1.2": Variant(
        "more high noise levels: logit-normal 0.4, 1.2",
        {"objective.time_mean": 0.4, "objective.time_std": 1.2}, core=True,
    ),
    "no_preview": Variant(
        "every picture is denoised, and the text learns no preview",
        {**one_of(1, denoised=32), "objective.preview_weight": 0.0}, core=True,
    ),
    "muon_text": Variant(
        "Muon for the text encoder only", {"training.muon_modules": ["text_encoder"]}, core=True
    ),
    "flow": Variant(
        "predicts the velocity",
        {"diffusion.prediction_type": "flow", "objective.weighting": "none"}, core=True,
    ),
    "denoise_every_1": Variant(
        "every picture is denoised", one_of(1, denoised=32),
        core=True,
    ),
    "denoise_every_4": Variant(
        "a quarter of the pictures is denoised",
        one_of(4, denoised=32), core=True,
    ),
    "denoise_every_16": Variant(
        "a sixteenth of the pictures is denoised",
        one_of(16, denoised=32),
    ),
    "batch_128": Variant("twice the updates", {"training.batch_size": 128}, core=True),
    **COMMON,
    "batch_512": Variant("half the updates", {"training.batch_size": 512}),
    "text_128": Variant(
        "smaller text encoder", {"text_encoder.width": 128, "text_encoder.heads": 4}
    ),
    "text_layers_4": Variant("deeper text encoder", {"text_encoder.layers": 4}),
    "conv_size_4": Variant(
        "a convolution over 4 tokens", {"text_encoder.conv_size": 4}, core=True
    ),
    "channels_48_96_192": Variant("narrower network", {"network.channels": [48, 96, 192],
        "network.head_dim": 48}),
    "attention_2": Variant("attention at 4x4 only", {"network.attention_levels": [2]}),
    "patch_2": Variant("patches of 2x2", {"network.patch_size": 2}),
    "preview_size_8": Variant("smaller preview", {"network.preview_size": 8}),
}  # fmt: skip

LADDERS = {
    "scenes": Ladder(
        "configs/quickstart.yaml",
        (
            "scene_accuracy",
            "scene_accuracy/one_object",
            "scene_accuracy/two_objects",
            "pixel_fd",
        ),
        SCENES,
    ),
    "emoji": Ladder("configs/emoji.yaml", ("retrieval@1", "retrieval@5", "pixel_fd"), EMOJI),
}
