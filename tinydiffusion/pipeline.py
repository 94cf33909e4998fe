"""Prompts to pictures, and the model folder."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tinydiffusion import __version__, registry
from tinydiffusion.build import build_schedule
from tinydiffusion.config import Config, SamplingConfig, from_dict, plugin, to_dict
from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.fixed_rows import FixedRows
from tinydiffusion.diffusion.noise import picture_generators, randn
from tinydiffusion.protocols import Denoise, TextEncoder, TextStates
from tinydiffusion.registry import PluginError
from tinydiffusion.training.precision import Precision, uses_bfloat16

COMPONENTS = ("network", "text_encoder")
WEIGHTS = "diffusion_pytorch_model.safetensors"
"""Weights of a component; diffusers downloads no other name where transformers is missing."""

PIPELINE_SOURCE = '''"""Lets diffusers open this folder; needs the package tinydiffusion."""

from tinydiffusion.diffusers_pipeline import Component, TextToImagePipeline

__all__ = ["Component", "TextToImagePipeline"]
'''
"""`pipeline.py` of a model folder and of its components: diffusers loads classes from there."""


class ModelFolderError(ValueError):
    """A folder that is not a model, or not a complete one."""


class TextToImage:
    """A trained model: text encoder, network and the meaning of its output.

    Args:
        network: See `protocols.Network`; in eval mode, on its device.
        text_encoder: See `protocols.TextEncoder`; likewise.
        config: The run that made them; its `sampling` section holds the defaults of `generate`.
        image_shape: (C, H, W) of the pictures.
        precision: Of the arithmetic, see `training/precision.py`.
    """

    def __init__(
        self,
        network: nn.Module,
        text_encoder: TextEncoder,
        config: Config,
        image_shape: Sequence[int],
        *,
        precision: Precision = "auto",
    ) -> None:
        self.network = network
        self.text_encoder = text_encoder
        self.config = config
        self.image_shape = tuple(image_shape)
        self.device = next(network.parameters()).device
        self.bfloat16 = uses_bfloat16(precision, self.device)
        # On a CPU calls of one shape make pictures independent of the batch size, to the bit.
        caller = FixedRows(network) if self.device.type == "cpu" else network
        self.denoiser = Denoiser(
            caller, build_schedule(config), prediction_type=config.diffusion.prediction_type
        )

    def generate(self, prompts: Sequence[str], **options: Any) -> UInt8[Tensor, "N C H W"]:
        """One picture per prompt; the options are those of `generate_batches`."""
        return torch.cat(list(self.generate_batches(prompts, **options)))

    def generate_batches(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        batch_size: int = 32,
        negative_prompt: str = "",
        sampling: SamplingConfig | None = None,
        sampler_options: dict[str, Any] | None = None,
    ) -> Iterator[UInt8[Tensor, "B C H W"]]:
        """Batches of pictures as they are done; picture i has seed + i in any batch.

        Args:
            prompts: One per picture.
            seed: Of picture 0.
            batch_size: Pictures sampled together.
            negative_prompt: What guidance moves away from.
            sampling: Sampler, steps, guidance; None = the model's defaults.
            sampler_options: The sampler's own options, such as eta.

        Raises:
            ValueError: any of these is out of its range; before anything is computed.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts must be a list of at least one string, got {prompts!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        sampling = sampling or self.config.sampling
        sampler, sigmas = self.prepare(sampling, sampler_options)
        generators = picture_generators(seed, 0, len(prompts))
        for first in range(0, len(prompts), batch_size):
            batch = slice(first, first + batch_size)
            with torch.no_grad(), self._autocast():
                denoise = self._denoise(prompts[batch], negative_prompt, sampling)
                noise = randn(
                    (len(prompts[batch]), *self.image_shape), generators[batch], device=self.device
                )
                x = sampler(denoise, noise * sigmas[0], sigmas, generators=generators[batch])
            yield to_uint8(x)

    def prepare(
        self, sampling: SamplingConfig, sampler_options: dict[str, Any] | None = None
    ) -> tuple[Callable[..., Tensor], Float[Tensor, "S_plus_1"]]:
        """The sampler with its options, and its noise levels.

        Raises:
            ValueError: one of the settings is unknown or out of its range.
        """
        sigmas = self.denoiser.schedule.sampling_sigmas(sampling.steps, sampling.spacing)
        return self._sampler(sampling.sampler, sampler_options or {}), sigmas

    def num_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the text encoder reads."""
        return self.text_encoder.tokenize(prompts).num_truncated

    # ---- the model folder --------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder: safetensors, JSON and `PIPELINE_SOURCE`, nothing pickled."""
        folder = Path(folder)
        sizes = {
            "text_dim": self.text_encoder.hidden_size,
            "pooled_dim": self.text_encoder.pooled_size,
            "in_channels": self.image_shape[0],
        }
        text_encoder: Any = self.text_encoder
        encoder_config = {"name": self.config.text_encoder["name"], **text_encoder.config()}
        _save_component(folder / "network", self.network, {**self.config.network, **sizes})
        _save_component(folder / "text_encoder", text_encoder, encoder_config)
        _write_json(folder / "model_index.json", self._index())
        (folder / "pipeline.py").write_text(PIPELINE_SOURCE)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
    ) -> "TextToImage":
        """The model in a folder that `save_pretrained` wrote.

        Raises:
            ModelFolderError: a file is missing or does not fit; names it.
        """
        folder = Path(folder)
        with _reading(folder / "model_index.json") as file:
            index = json.loads(file.read_text(encoding="utf-8"))
            config, image_shape = from_dict(index["tinydiffusion_config"]), index["image_shape"]
        network = load_component(folder / "network").to(device)
        text_encoder: Any = load_component(folder / "text_encoder").to(device)
        return cls(network, text_encoder, config, image_shape, precision=precision)

    # ---- inside ------------------------------------------------------------------------------

    def _index(self) -> dict[str, Any]:
        """What diffusers and `from_pretrained` need to know of the whole folder."""
        return {
            "_class_name": ["pipeline", "TextToImagePipeline"],
            "_tinydiffusion_version": __version__,
            **{component: ["pipeline", "Component"] for component in COMPONENTS},
            "image_shape": self.image_shape,
            "tinydiffusion_config": to_dict(self.config),
        }

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _sampler(self, name: str, options: Mapping[str, Any]) -> Callable[..., Tensor]:
        """The sampler with its options, and with the training noise levels where it needs them."""
        sampler = registry.load("sampler", name)
        ours: dict[str, Any] = {"generators": []}
        if registry.takes(sampler, "train_sigmas"):
            ours["train_sigmas"] = self.denoiser.schedule.sigmas
        if taken := sorted(ours.keys() & options):
            raise ValueError(f"sampler option {taken[0]!r} is set by the pipeline; leave it out")
        registry.check_options("sampler", name, sampler, {**options, **ours})
        return partial(sampler, **{**options, **ours})

    def _denoise(
        self, prompts: Sequence[str], negative_prompt: str, sampling: SamplingConfig
    ) -> Denoise:
        negative = (x.expand(len(prompts), *x.shape[1:]) for x in self._encode([negative_prompt]))
        return self.denoiser.denoise(
            self._encode(prompts),
            negative=TextStates(*negative),
            guidance_scale=sampling.guidance_scale,
            guidance_rescale=sampling.guidance_rescale,
            clip_sample=True,
        )

    def _encode(self, prompts: Sequence[str]) -> TextStates:
        """States of the prompts, encoded one by one: see FixedRows."""
        states = [self.text_encoder.encode([prompt]) for prompt in prompts]
        return TextStates(*(torch.cat(parts).detach() for parts in zip(*states, strict=True)))


def load_component(folder: Path) -> nn.Module:
    """The component of a model folder whose own folder this is, in eval mode on the CPU.

    Raises:
        ModelFolderError: a file is missing or does not fit; names it.
    """
    with _reading(folder / "config.json") as file:
        name, options = plugin(json.loads(file.read_text(encoding="utf-8")))
        kind = folder.name  # network or text_encoder
        if not _is_module_class(registry.load(kind, name)):
            raise PluginError(f"{kind} {name!r} is not a class of nn.Module")
        module = registry.create(kind, name, **options)
    with _reading(folder / WEIGHTS) as file:
        module.load_state_dict(load_file(file))
    return module.eval()


def _is_module_class(loaded: Callable[..., Any]) -> bool:
    """Nothing else is called with what a downloaded file says, `subprocess:run` for one."""
    return isinstance(loaded, type) and issubclass(loaded, nn.Module)


def _save_component(folder: Path, module: nn.Module, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / "config.json", config)
    (folder / "pipeline.py").write_text(PIPELINE_SOURCE)


def to_uint8(x: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
    """Pictures in [-1, 1] as uint8 on the CPU: clamped, then rounded half to even."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _reading(file: Path) -> Iterator[Path]:
    """The file; whatever is wrong with it becomes a ModelFolderError that names it."""
    if not file.is_file():
        raise ModelFolderError(f"{file} is missing: {file.parent} is not a complete model folder")
    try:
        yield file
    except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelFolderError(f"{file} does not describe a model: {error}") from error
