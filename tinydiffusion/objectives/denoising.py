"""The denoising objective: find the noise in a noisy picture, told its caption."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.prediction import training_target
from tinydiffusion.diffusion.weighting import draw_timesteps, loss_weights
from tinydiffusion.protocols import Batch, TextEncoder


class DenoisingObjective(nn.Module):
    """Weighted squared error of the network's prediction at random noise levels.

    L_simple of Ho et al. (2020), equation 14 (https://arxiv.org/abs/2006.11239), for any
    prediction type, weighting and time density; captions are emptied at random for
    classifier-free guidance, Ho & Salimans (2022), algorithm 1 (https://arxiv.org/abs/2207.12598).

    Args:
        denoiser: Network, schedule and prediction type; its network is trained.
        text_encoder: Trained along, unless it is frozen.
        caption_dropout_prob: Share of captions emptied, drawn anew at every step, in [0, 1].
        weighting: "none", "min_snr" or "edm", see `diffusion/weighting.py`.
        gamma: The cap of min-SNR.
        sigma_data: Standard deviation of the pictures, for "edm".
        time_density: "uniform" or "logit_normal".
        time_mean: Mean of the logit of t; above 0 prefers noisier pictures.
        time_std: Standard deviation of the logit of t.
        stratified: One noise level from each of B equally likely parts.

    Raises:
        ValueError: a probability outside [0, 1], an unknown weighting or density.
    """

    def __init__(
        self,
        *,
        denoiser: Denoiser,
        text_encoder: TextEncoder,
        caption_dropout_prob: float = 0.1,
        weighting: str = "none",
        gamma: float = 5.0,
        sigma_data: float = 0.5,
        time_density: str = "uniform",
        time_mean: float = 0.0,
        time_std: float = 1.0,
        stratified: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= caption_dropout_prob <= 1:
            raise ValueError(f"caption_dropout_prob must be in [0, 1], got {caption_dropout_prob}")
        self.denoiser = denoiser
        self.text_encoder = text_encoder
        self.caption_dropout_prob = caption_dropout_prob
        self.weighting = {"weighting": weighting, "gamma": gamma, "sigma_data": sigma_data}
        self.time = {
            "density": time_density, "mean": time_mean, "std": time_std, "stratified": stratified
        }  # fmt: skip
        self._weights(self._draw_timesteps(1, torch.Generator()))  # wrong options raise here

    def loss(
        self, batch: Batch, generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The mean weighted squared error of the batch; nothing else to log.

        Args:
            batch: Pictures uint8 on the objective's device, and their captions.
            generator: The only source of randomness, on the CPU.
        """
        x_0 = to_float(batch["image"])
        device = x_0.device
        schedule = self.denoiser.schedule
        timesteps = self._draw_timesteps(len(x_0), generator).to(device)
        noise = torch.randn(x_0.shape, generator=generator).to(device)
        text = self.text_encoder.encode(self._drop(batch["caption"], generator))
        a, s = schedule.coefficients(timesteps)
        x_t = schedule.add_noise(x_0, noise, timesteps)
        output = self.denoiser.predict(x_t, timesteps.float(), text)
        target = training_target(self.denoiser.prediction_type, x_0, noise, a, s)
        weights = self._weights(timesteps)
        return (weights * (output.float() - target).square()).mean(), {}

    def _draw_timesteps(self, batch_size: int, generator: torch.Generator) -> Int[Tensor, "B"]:
        T = self.denoiser.schedule.num_train_timesteps
        return draw_timesteps(
            batch_size=batch_size, num_train_timesteps=T, generator=generator, **self.time
        )

    def _weights(self, timesteps: Int[Tensor, "B"]) -> Float[Tensor, "#B 1 1 1"]:
        a, s = self.denoiser.schedule.coefficients(timesteps)
        return loss_weights(
            prediction_type=self.denoiser.prediction_type, a=a, s=s, **self.weighting
        )

    def _drop(self, captions: list[str], generator: torch.Generator) -> list[str]:
        keep = torch.rand(len(captions), generator=generator) >= self.caption_dropout_prob
        return [c if k else "" for c, k in zip(captions, keep.tolist(), strict=True)]


def to_float(images: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Pictures in [-1, 1] from uint8."""
    return images.float() / 127.5 - 1


PLUGIN = DenoisingObjective
