"""A model folder as a pipeline of the diffusers library; imports diffusers, so nothing imports it.

    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline("a red circle", seed=3).images[0].save("circle.png")

`model_index.json` of the folder names the two classes here; its `pipeline.py` imports them. As
`trust_remote_code` says, diffusers runs that file; for a stranger's folder there is
`TextToImagePipeline.from_pretrained(folder)`, which runs nothing of it.
"""

import dataclasses
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from jaxtyping import UInt8
from torch import Tensor, nn

from tinydiffusion.call_arguments import as_int, as_negative_prompts, as_texts
from tinydiffusion.config import to_dict
from tinydiffusion.model_folder.opening import load_component, read_settings
from tinydiffusion.pipeline import TextToImage

OUTPUT_TYPES = ("pil", "np", "pt")


class Component(nn.Module):
    """A network or text encoder with what diffusers asks of one: to load, a device and a dtype."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, torch_dtype: torch.dtype | None = None
    ) -> "Component":
        """The component whose folder this is; diffusers calls it for each one."""
        return cls(load_component(Path(folder))).to(dtype=torch_dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number format."""
        return next(self.parameters()).dtype


class TextToImagePipeline(DiffusionPipeline):
    """`TextToImage` with the call and the output of diffusers' pipelines.

    diffusers fills the arguments from `model_index.json`. It takes those without a default for
    components, and only those.
    """

    def __init__(
        self,
        network: Component,
        text_encoder: Component,
        image_shape: list[int] | None = None,
        tinydiffusion_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(network=network, text_encoder=text_encoder)
        self.register_to_config(image_shape=image_shape, tinydiffusion_config=tinydiffusion_config)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, folder: str | Path, *, trust_plugins: bool = False
    ) -> "TextToImagePipeline":
        """The pipeline of a model folder from anywhere; see `TextToImage.from_pretrained`."""
        model = TextToImage.from_pretrained(folder, trust_plugins=trust_plugins)
        text_encoder: Any = model.text_encoder
        return cls(
            Component(model.network),
            Component(text_encoder),
            list(model.image_shape),
            to_dict(model.config),
        )

    def text_to_image(self) -> TextToImage:
        """The model with its present components, on their present device.

        Raises:
            ValueError: the weights are not in float32.
        """
        if self.dtype != torch.float32:
            raise ValueError(
                f"the weights must be torch.float32, got {self.dtype}; where the hardware gains "
                "from bfloat16, the arithmetic uses it without being asked"
            )
        config, image_shape = read_settings(
            self.config["tinydiffusion_config"], self.config["image_shape"], trust_plugins=True
        )
        text_encoder: Any = self.text_encoder.module
        return TextToImage(self.network.module, text_encoder, config, image_shape)

    def __call__(
        self,
        prompt: str | list[str],
        *,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: SupportsIndex = 1,
        num_inference_steps: SupportsIndex | None = None,
        guidance_scale: SupportsFloat | None = None,
        seed: SupportsIndex = 0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Make `num_images_per_prompt` pictures of the first prompt, then of the next.

        Args:
            prompt: One or several.
            negative_prompt: What guidance moves away from: one for all, or one per prompt.
            num_images_per_prompt: At least 1.
            num_inference_steps: None = the model's default.
            guidance_scale: 1 = off; None = the model's default.
            seed: Picture i has seed + i.
            generator: Gives every picture its seed, in place of `seed`: the same generator makes
                the next pictures in the next call, and other ones than `seed` makes with its
                number. A list has one generator per picture.
            output_type: "pil", "np" (float32 in [0, 1], N H W C) or "pt" (likewise, N C H W).
            return_dict: False returns the tuple (images,).

        Raises:
            ValueError: any of these is of a wrong kind or out of its range; before anything is
                computed or drawn from a generator.
        """
        prompts = as_texts("prompt", prompt)
        repeats = as_int("num_images_per_prompt", num_images_per_prompt)
        if repeats < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {repeats}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
        negative_prompts = as_negative_prompts(negative_prompt, len(prompts))
        model = self.text_to_image()
        chosen = {"steps": num_inference_steps, "guidance_scale": guidance_scale}
        changes = {name: value for name, value in chosen.items() if value is not None}
        images = model.generate(
            [text for text in prompts for _ in range(repeats)],
            negative_prompt=[text for text in negative_prompts for _ in range(repeats)],
            seed=seed,
            generator=generator,
            sampling=dataclasses.replace(model.config.sampling, **changes),
        )
        pictures = _convert(images, output_type)
        return ImagePipelineOutput(images=pictures) if return_dict else (pictures,)

    def save_pretrained(self, save_directory: str | Path) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write the model folder, the same that it was loaded from."""
        self.text_to_image().save_pretrained(save_directory)


def _convert(images: UInt8[Tensor, "N C H W"], output_type: str) -> Any:
    """The pictures in the form that diffusers calls by this name."""
    pictures = images.float() / 255
    if output_type == "pt":
        return pictures
    pictures = pictures.permute(0, 2, 3, 1).numpy()
    return pictures if output_type == "np" else DiffusionPipeline.numpy_to_pil(pictures)
