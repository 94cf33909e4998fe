"""A text-to-image model put together from diffusers the way its training examples do it.

`examples/text_to_image/train_text_to_image.py` and `examples/unconditional_image_generation` of
diffusers: UNet2DConditionModel, DDPMScheduler, the noise as target, uniform times, MSE, AdamW,
EMAModel. Nothing of tinydiffusion's recipe is in here; only pictures and text encoder are the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from tinydiffusion.pipeline import to_uint8
from tinydiffusion.protocols import Batch, TextEncoder, TextStates

LEARNING_RATE = 1e-4
EXAMPLES_BATCH = 16  # pictures a step
WARMUP_PICTURES = 500 * EXAMPLES_BATCH  # the examples' 500 steps
CAPTION_DROPOUT = 0.1  # as in ours: without it there is no guidance
SAMPLED_TOGETHER = 64


class Baseline(nn.Module):
    """A UNet2DConditionModel told by a text encoder that is trained along.

    Args:
        unet: The network.
        text_encoder: Any of tinydiffusion's.
        image_shape: (C, H, W).
    """

    def __init__(
        self, unet: nn.Module, text_encoder: TextEncoder, image_shape: Sequence[int]
    ) -> None:
        super().__init__()
        self.unet: Any = unet
        self.text_encoder: Any = text_encoder
        self.image_shape = tuple(image_shape)
        self.noise_scheduler: Any = DDPMScheduler()  # 1000 linear betas, epsilon

    def predict(
        self, sample: Float[Tensor, "B C H W"], timesteps: Tensor, text: TextStates
    ) -> Float[Tensor, "B C H W"]:
        """The noise in the sample."""
        output = self.unet(
            sample,
            timesteps,
            encoder_hidden_states=text.encoder_hidden_states,
            encoder_attention_mask=text.mask,
        )
        return output.sample

    def loss(self, images: UInt8[Tensor, "B C H W"], captions: Sequence[str]) -> Float[Tensor, ""]:
        """The mean squared error of the noise, at uniform times."""
        x_0 = images / 127.5 - 1
        dropped = (torch.rand(len(captions)) < CAPTION_DROPOUT).tolist()
        text = self.text_encoder.encode(
            ["" if drop else c for c, drop in zip(captions, dropped, strict=True)]
        )
        noise = torch.randn_like(x_0)
        num_timesteps = self.noise_scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, num_timesteps, (len(x_0),), device=x_0.device)
        noisy = self.noise_scheduler.add_noise(x_0, noise, timesteps)
        return nn.functional.mse_loss(self.predict(noisy, timesteps, text).float(), noise)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], *, steps: int, guidance_scale: float, bfloat16: bool
    ) -> UInt8[Tensor, "N C H W"]:
        """One picture per prompt, the same ones every time: DDIM as diffusers ships it."""
        generator = torch.Generator().manual_seed(0)
        device = self.unet.device
        images = []
        for first in range(0, len(prompts), SAMPLED_TOGETHER):
            batch = list(prompts[first : first + SAMPLED_TOGETHER])
            x = torch.randn(len(batch), *self.image_shape, generator=generator).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                images.append(to_uint8(self._denoise(x, batch, steps, guidance_scale)))
        return torch.cat(images)

    def _denoise(
        self, x: Float[Tensor, "B C H W"], prompts: list[str], steps: int, guidance_scale: float
    ) -> Float[Tensor, "B C H W"]:
        scheduler: Any = DDIMScheduler.from_config(self.noise_scheduler.config)
        scheduler.set_timesteps(steps, device=x.device)
        text = self.text_encoder.encode([*("" for _ in prompts), *prompts])
        for timestep in scheduler.timesteps:
            output = self.predict(torch.cat([x, x]), timestep, text).float()
            unconditional, conditional = output.chunk(2)
            guided = unconditional + guidance_scale * (conditional - unconditional)
            x = scheduler.step(guided, timestep, x).prev_sample
        return x


def training(
    model: Baseline, batches: Iterable[Batch], *, bfloat16: bool
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Pictures seen and the average weights, before the first step and after every one.

    Trains for as long as it is asked to go on.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    device = model.unet.device
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8
    )
    ema = EMAModel(parameters, decay=0.9999, foreach=True)
    seen, lr_scheduler = 0, None
    yield seen, dict(zip(trained, ema.shadow_params, strict=True))
    for batch in batches:
        size = len(batch["image"])
        lr_scheduler = lr_scheduler or get_scheduler(
            "constant_with_warmup", optimizer, num_warmup_steps=WARMUP_PICTURES // size
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = model.loss(batch["image"].to(device, non_blocking=True), batch["caption"])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        ema.step(parameters)
        seen += size
        yield seen, dict(zip(trained, ema.shadow_params, strict=True))
