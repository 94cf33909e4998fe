"""Prompts to pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from tinydiffusion import registry
from tinydiffusion.build import build_schedule
from tinydiffusion.call_arguments import (
    as_int,
    as_negative_prompts,
    as_sampling,
    as_seeds,
    as_texts,
)
from tinydiffusion.config import Config, SamplingConfig
from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.fixed_rows import FixedRows
from tinydiffusion.diffusion.guidance import check_guidance_interval, is_guided
from tinydiffusion.diffusion.noise import randn
from tinydiffusion.layers.kernels.int8 import int8_convolutions
from tinydiffusion.layers.precision import Precision, uses_bfloat16, uses_int8
from tinydiffusion.model_folder.finding import find_model
from tinydiffusion.model_folder.layout import INDEX, Model
from tinydiffusion.model_folder.opening import open_model, reading
from tinydiffusion.model_folder.saving import save_model
from tinydiffusion.pipeline_remarks import Remarks
from tinydiffusion.protocols import Denoise, Generators, TextEncoder, TextStates
from tinydiffusion.runtime.errors import NonFiniteError
from tinydiffusion.without_effect import Guidance

MAX_PROMPT = 10_000
"""Characters; text encoders read at most the first few dozen words."""
MAX_GUIDANCE = 1000.0
PROMPTS_A_CALL = 8  # of the text encoder: several times faster than one by one


class TextToImage:
    """A trained model: text encoder, network and the meaning of its output.

    Args:
        network: See `protocols.Network`; in eval mode, on its device.
        text_encoder: See `protocols.TextEncoder`; likewise.
        config: The run that made them; its `sampling` section holds the defaults of `generate`.
        image_shape: (C, H, W) of the pictures.
        precision: Of the arithmetic, see `layers/precision.py`.

    Raises:
        ValueError: precision "int8" on a device without.
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
        self.int8 = uses_int8(precision, self.device)
        self._remarks = Remarks(text_encoder, config)
        # On a CPU calls of one shape make pictures independent of the batch size, to the bit.
        caller = FixedRows(network) if self.device.type == "cpu" else network
        self.denoiser = Denoiser(
            caller, build_schedule(config), prediction_type=config.diffusion.prediction_type
        )

    def generate(self, prompts: str | Sequence[str], **options: Any) -> UInt8[Tensor, "N C H W"]:
        """Make a picture of every prompt; the options are those of `generate_batches`."""
        return torch.cat(list(self.generate_batches(prompts, **options)))

    def generate_batches(
        self,
        prompts: str | Sequence[str],
        *,
        seed: SupportsIndex | Sequence[SupportsIndex] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: SupportsIndex = 32,
        negative_prompt: str | Sequence[str] | None = None,
        sampling: SamplingConfig | None = None,
        sampler_options: dict[str, Any] | None = None,
    ) -> Iterator[UInt8[Tensor, "B C H W"]]:
        """Give batches of pictures as they are done; picture i has seed + i in any batch.

        Args:
            prompts: One string, or a list of one per picture.
            seed: Seed of picture 0; a list has one seed per picture.
            generator: Gives every picture its seed, in place of `seed`, and advances; a list has
                one generator per picture.
            batch_size: Pictures sampled together.
            negative_prompt: What guidance moves away from: one for all, or a list of one per
                prompt; None is the empty one.
            sampling: Sampler, steps, guidance; None = the model's defaults.
            sampler_options: The sampler's own options, such as eta.

        Raises:
            ValueError: any of these is of a wrong kind or out of its range; before anything is
                computed or drawn from a generator.
            NonFiniteError: a picture came out as NaN or infinity.

        Warns, once in the life of the pipeline, of settings without effect, of a way of sampling
        that the model was not made for, and of words that no training caption had.
        """
        texts = as_texts("prompts", prompts)
        negative_prompts = as_negative_prompts(negative_prompt, len(texts))
        check_prompts([*texts, *negative_prompts])
        size = as_int("batch_size", batch_size)
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, got {size}")
        settings = as_sampling(self.config.sampling if sampling is None else sampling)
        sampler, sigmas = self.prepare(settings, sampler_options)
        seeds = as_seeds(seed, generator, len(texts))
        told = list(dict.fromkeys([*texts, *negative_prompts]))
        self._remarks.warn(told, self.guidance(settings, any(negative_prompts)))

        def batches() -> Iterator[UInt8[Tensor, "B C H W"]]:
            for first in range(0, len(texts), size):
                part = slice(first, first + size)
                generators = [torch.Generator().manual_seed(each) for each in seeds[part]]
                with torch.no_grad(), self._autocast(), int8_convolutions(self.int8):
                    denoise = self._denoise(texts[part], negative_prompts[part], settings)
                    x = sampler(
                        denoise, self._noise(generators) * sigmas[0], sigmas, generators=generators
                    )
                _check_finite(x, seeds[part])
                yield to_uint8(x)

        return batches()

    def prepare(
        self, sampling: SamplingConfig, sampler_options: dict[str, Any] | None = None
    ) -> tuple[Callable[..., Tensor], Float[Tensor, "S_plus_1"]]:
        """The sampler with its options, and its noise levels.

        Raises:
            ValueError: one of the settings is unknown or out of its range.
        """
        for name, most in (("guidance_scale", MAX_GUIDANCE), ("guidance_rescale", 1)):
            if not 0 <= (value := getattr(sampling, name)) <= most:  # NaN is not
                raise ValueError(f"{name} must be in [0, {most:g}], got {value}")
        check_guidance_interval(sampling.guidance_interval)
        sigmas = self.denoiser.schedule.sampling_sigmas(sampling.steps, sampling.spacing)
        return self._sampler(sampling.sampler, sampler_options or {}), sigmas

    def guidance(self, sampling: SamplingConfig, has_negative_prompt: bool = False) -> Guidance:
        """Tell what guidance does with these settings, which are in their ranges."""
        sigmas = self.denoiser.schedule.sampling_sigmas(sampling.steps, sampling.spacing)
        covered = any(is_guided(sigma, sampling.guidance_interval) for sigma in sigmas[:-1])
        return Guidance(sampling, has_negative_prompt, covered)

    @property
    def precision(self) -> Literal["float32", "bfloat16", "int8"]:
        """Number format in use, also where "auto" was given."""
        return "int8" if self.int8 else "bfloat16" if self.bfloat16 else "float32"

    def num_truncated(self, prompts: Sequence[str]) -> int:
        """Count the prompts that are longer than the text encoder reads."""
        return self.text_encoder.tokenize(prompts).num_truncated

    # ---- the model folder --------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model folder, see `model_folder/saving.py`."""
        model = Model(self.network, self.text_encoder, self.config, self.image_shape)
        save_model(Path(folder), model)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
        trust_plugins: bool = False,
    ) -> "TextToImage":
        """The model in a folder that `save_pretrained` wrote; safe whoever wrote it.

        Args:
            folder: The model folder, or the folder of a run, whose model is meant; see
                `model_folder/finding.py`.
            device: Where the weights go.
            precision: See the class.
            trust_plugins: Import plug-ins that the folder names as `module:attribute`.

        Raises:
            ModelFolderError: a file is missing, damaged, does not fit or is not safe; names it.
            ValueError: precision "int8" on a device without.
        """
        uses_int8(precision, torch.device(device))  # raises here, where the folder is not blamed
        folder = find_model(Path(folder))
        model = open_model(folder, trust_plugins=trust_plugins)
        network, text_encoder = model.network.to(device), model.text_encoder.to(device)
        with reading(folder, INDEX):  # the noise levels may be impossible
            return cls(network, text_encoder, model.config, model.image_shape, precision=precision)

    # ---- inside ------------------------------------------------------------------------------

    def _noise(self, generators: Generators) -> Float[Tensor, "B C H W"]:
        return randn((len(generators), *self.image_shape), generators, device=self.device)

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
        self, prompts: Sequence[str], negative_prompts: Sequence[str], sampling: SamplingConfig
    ) -> Denoise:
        distinct = list(dict.fromkeys(negative_prompts))
        states = self._encode([*prompts, *distinct])
        rows = [len(prompts) + distinct.index(each) for each in negative_prompts]
        return self.denoiser.denoise(
            states.rows(slice(len(prompts))),
            negative=states.rows(rows),
            guidance_scale=sampling.guidance_scale,
            guidance_rescale=sampling.guidance_rescale,
            guidance_interval=sampling.guidance_interval,
            clip_sample=True,
        )

    def _encode(self, prompts: Sequence[str]) -> TextStates:
        """States of the prompts, from calls of one number of prompts: see FixedRows."""
        filled = [*prompts, *[prompts[-1]] * (-len(prompts) % PROMPTS_A_CALL)]
        states = [
            self.text_encoder.encode(filled[first : first + PROMPTS_A_CALL])
            for first in range(0, len(filled), PROMPTS_A_CALL)
        ]
        return TextStates.cat(states).rows(slice(len(prompts))).map(Tensor.detach)


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise ValueError where a prompt is not text, or longer than any encoder reads."""
    for prompt in dict.fromkeys(prompts):
        if len(prompt) > MAX_PROMPT:
            raise ValueError(
                f"a prompt must have at most {MAX_PROMPT} characters, got {len(prompt)}; it begins "
                f"with {prompt[:40]!r}"
            )
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the prompt {prompt[:40]!r} is not text: {error.reason}") from error


def to_uint8(x: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
    """Pictures in [-1, 1] as uint8 on the CPU: clamped, then rounded half to even."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def _check_finite(x: Float[Tensor, "B C H W"], seeds: Sequence[int]) -> None:
    finite = torch.isfinite(x).flatten(1).all(dim=1).tolist()
    if not all(finite):
        raise NonFiniteError(
            f"the picture of seed {seeds[finite.index(False)]} came out as NaN or infinity; "
            "take a lower guidance scale or --precision float32; else the model is damaged"
        )
