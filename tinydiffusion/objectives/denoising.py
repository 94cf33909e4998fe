"""The denoising objective: find the noise in a noisy picture, told its caption."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinydiffusion.abilities import Previewing
from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.noise import nearest_randn
from tinydiffusion.diffusion.prediction import training_target
from tinydiffusion.diffusion.weighting import loss_weights, spread_evenly, timesteps_of
from tinydiffusion.pictures.units import to_float
from tinydiffusion.protocols import Batch, Generators, TextEncoder, TextStates

MAX_CANDIDATES = 64
MAX_EVERY = 64


class DenoisingObjective(nn.Module):
    """Weighted squared error of the network's prediction at random noise levels.

    L_simple of Ho et al. (2020), equation 14 (https://arxiv.org/abs/2006.11239), for any
    prediction type, weighting and time density; captions are emptied at random for
    classifier-free guidance, Ho & Salimans (2022), algorithm 1 (https://arxiv.org/abs/2207.12598).

    A network that makes a preview of its text is also taught what the small picture looks like:
    the squared error of the preview is added. It needs no noise level, so every picture of the
    batch tells the text encoder what its words mean, not only those that drew a high level.

    Args:
        denoiser: Network, schedule and prediction type; its network is trained.
        text_encoder: Trained along, unless it is frozen.
        caption_dropout_prob: Share of captions emptied, drawn anew at every step, in [0, 1].
        weighting: "none", "min_snr", "edm" or "velocity", see `diffusion/weighting.py`.
        gamma: The cap of min-SNR.
        sigma_data: Standard deviation of the pictures, for "edm".
        time_density: "uniform" or "logit_normal".
        time_mean: Mean of the logit of t; above 0 prefers noisier pictures.
        time_std: Standard deviation of the logit of t.
        stratified: Spread the noise levels of consecutive pictures evenly.
        preview_weight: What the error of the preview counts, in [0, 1000]; networks without a
            preview have no such error.
        denoise_every: One picture of so many is denoised; the others teach the text encoder by the
            preview alone, at a fraction of the cost. In [1, 64].
        noise_candidates: Noises that a picture draws, in [1, 64]; it takes the nearest to it, see
            `noise.nearest_randn`. Above 1 the noise tells of the picture, while sampling begins
            with noise that does not: what is learned is biased, most at the highest levels, and
            the loss falls without better pictures. Measure samples, not the loss.

    Raises:
        ValueError: a number out of its range, an unknown weighting or density, or denoise_every
            above 1 without a preview.
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
        preview_weight: float = 1.0,
        denoise_every: int = 1,
        noise_candidates: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= caption_dropout_prob <= 1:
            raise ValueError(f"caption_dropout_prob must be in [0, 1], got {caption_dropout_prob}")
        if not 0 <= preview_weight <= 1000:
            raise ValueError(f"preview_weight must be in [0, 1000], got {preview_weight}")
        if not 1 <= noise_candidates <= MAX_CANDIDATES:
            raise ValueError(
                f"noise_candidates must be in [1, {MAX_CANDIDATES}], got {noise_candidates}"
            )
        if not 1 <= denoise_every <= MAX_EVERY:
            raise ValueError(f"denoise_every must be in [1, {MAX_EVERY}], got {denoise_every}")
        self.denoiser = denoiser
        self.text_encoder = text_encoder
        self.caption_dropout_prob = caption_dropout_prob
        self.weighting = {"weighting": weighting, "gamma": gamma, "sigma_data": sigma_data}
        self.time = {"density": time_density, "mean": time_mean, "std": time_std}
        self.stratified = stratified
        self.preview_weight = preview_weight
        self.denoise_every = denoise_every
        self.noise_candidates = noise_candidates
        self.has_preview = isinstance(denoiser.network, Previewing)
        if denoise_every > 1 and (not self.has_preview or preview_weight == 0):
            raise ValueError(
                f"denoise_every {denoise_every} needs a network with a preview and preview_weight "
                "above 0, else the pictures between teach nothing; set it to 1"
            )
        self._weights(self._timesteps([0], torch.zeros(1)))  # wrong options raise here

    def loss(
        self, batch: Batch, generators: Generators
    ) -> tuple[Float[Tensor, ""], Mapping[str, float | Tensor]]:
        """The mean weighted squared error of the batch, plus that of the preview.

        Where there is a preview, both parts are logged: `denoising_loss` and `preview_loss`.

        Args:
            batch: Pictures uint8 on the objective's device, and their captions.
            generators: One per picture, on the CPU; with the positions the only randomness.
        """
        x_0 = to_float(batch["image"])
        u, drop = torch.stack([torch.rand(2, generator=g) for g in generators]).unbind(1)
        text = self.text_encoder.encode(self._drop(batch["caption"], drop))
        loss = self._denoising_loss(x_0, batch["position"], u, text, generators)
        if self.preview_weight == 0 or not self.has_preview:
            return loss, {}
        network = cast(Previewing, self.denoiser.network)
        preview_loss = _preview_loss(network.preview(text).float(), x_0)
        parts = {"denoising_loss": loss, "preview_loss": preview_loss}
        return loss + self.preview_weight * preview_loss, parts

    def _denoising_loss(
        self, x_0: Float[Tensor, "B C H W"], positions: Sequence[int], u: Float[Tensor, "B"],
        text: TextStates, generators: Generators,
    ) -> Float[Tensor, ""]:  # fmt: skip
        count = x_0.numel() / self.denoise_every  # of a share of the batch, however it is cut
        if self.denoise_every > 1:
            rows = [i for i, position in enumerate(positions) if position % self.denoise_every == 0]
            x_0, u, text = x_0[rows], u[rows], text.rows(rows)
            positions, generators = [positions[i] for i in rows], [generators[i] for i in rows]
        schedule = self.denoiser.schedule
        timesteps = self._timesteps(positions, u).to(x_0.device)
        # of an empty part of the batch, nothing
        noise = nearest_randn(x_0, generators, self.noise_candidates) if generators else x_0
        a, s = schedule.coefficients(timesteps)
        x_t = schedule.add_noise(x_0, noise, timesteps)
        output = self.denoiser.predict(x_t, timesteps.float(), text)
        target = training_target(self.denoiser.prediction_type, x_0, noise, a, s)
        weights = self._weights(timesteps)
        return (weights * (output.float() - target).square()).sum() / count

    def _timesteps(self, positions: Sequence[int], u: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
        quantiles = spread_evenly(positions) if self.stratified else u.double()
        T = self.denoiser.schedule.num_train_timesteps
        return timesteps_of(quantiles, num_train_timesteps=T, **self.time)

    def _weights(self, timesteps: Int[Tensor, "B"]) -> Float[Tensor, "#B 1 1 1"]:
        a, s = self.denoiser.schedule.coefficients(timesteps)
        return loss_weights(
            prediction_type=self.denoiser.prediction_type, a=a, s=s, **self.weighting
        )

    def _drop(self, captions: list[str], u: Float[Tensor, "B"]) -> list[str]:
        keep = u >= self.caption_dropout_prob
        return [c if k else "" for c, k in zip(captions, keep.tolist(), strict=True)]


def _preview_loss(
    preview: Float[Tensor, "B C side side"], x_0: Float[Tensor, "B C H W"]
) -> Float[Tensor, ""]:
    height, width = preview.shape[-2:]
    small = nn.functional.adaptive_avg_pool2d(x_0, (height, width))
    return (preview - small).square().mean()


PLUGIN = DenoisingObjective
