"""Noise levels: how much signal and how much noise a picture holds at each training timestep."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinydiffusion.registry import suggest

SCHEDULES = ["linear", "scaled_linear", "cosine", "flow"]
SPACINGS = ["trailing", "leading", "linspace", "karras"]

# No picture is left where the signal is 0 and sigma = noise / signal would be infinite. As in
# diffusers alphas_cumprod stops at 2**-24, that is signal at 2**-12 and sigma at 4096.
MIN_SIGNAL = 2.0**-12
MAX_TIMESTEPS = 100_000


@dataclass(frozen=True, eq=False)
class Schedule:
    """Signal and noise factors of `x_t = signal x_0 + noise_level noise`, timestep 0 the cleanest.

    Attributes:
        signal: Falling from nearly 1, at least 2**-12, shape (T,).
        noise: Rising to nearly 1, shape (T,).
        path: "variance_preserving" (signal^2 + noise^2 = 1) or "linear" (signal + noise = 1).
    """

    signal: Float[Tensor, "T"]
    noise: Float[Tensor, "T"]
    path: str

    @property
    def num_train_timesteps(self) -> int:
        """The number of training timesteps T."""
        return len(self.signal)

    @cached_property
    def sigmas(self) -> Float[Tensor, "T"]:
        """Training noise levels noise / signal, rising, at most 4096."""
        return self.noise / self.signal

    @property
    def alphas_cumprod(self) -> Float[Tensor, "T"]:
        """Squared signal factors, falling from nearly 1.

        Raises:
            ValueError: the path is linear, where no betas exist.
        """
        if self.path != "variance_preserving":
            raise ValueError(
                f"alphas_cumprod needs a variance-preserving schedule, not {self.path}"
            )
        return self.signal**2

    def coefficients(
        self, timesteps: Int[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B 1 1 1"], Float[Tensor, "B 1 1 1"]]:
        """Signal and noise factors of each picture, on the device of `timesteps`."""
        signal = self.signal.to(timesteps.device)[timesteps]
        noise = self.noise.to(timesteps.device)[timesteps]
        return signal.view(-1, 1, 1, 1), noise.view(-1, 1, 1, 1)

    def add_noise(
        self,
        x_0: Float[Tensor, "B C H W"],
        noise: Float[Tensor, "B C H W"],
        timesteps: Int[Tensor, "B"],
    ) -> Float[Tensor, "B C H W"]:
        """The noisy pictures x_t, Ho et al. (2020) eq. 4 (https://arxiv.org/abs/2006.11239)."""
        signal, noise_level = self.coefficients(timesteps)
        return signal * x_0 + noise_level * noise

    def signal_of(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The signal factor at noise level `sigma`, so that x_t = factor (x_0 + sigma noise)."""
        if self.path == "linear":
            return 1 / (1 + sigma)
        return (1 + sigma**2).rsqrt()

    def timestep_of(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The fractional timestep in [0, T-1] of a noise level, log-linear between timesteps."""
        log_sigmas = self.sigmas.to(sigma.device).log()
        log_sigma = sigma.log()
        high = torch.searchsorted(log_sigmas, log_sigma).clamp(1, len(log_sigmas) - 1)
        below, above = log_sigmas[high - 1], log_sigmas[high]
        return high - 1 + ((log_sigma - below) / (above - below)).clamp(0, 1)

    def sigma_of(self, timesteps: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The noise level at a fractional timestep, log-linear: the inverse of `timestep_of`."""
        log_sigmas = self.sigmas.to(timesteps.device).log()
        below = timesteps.long().clamp(0, len(log_sigmas) - 2)
        return torch.lerp(log_sigmas[below], log_sigmas[below + 1], timesteps - below).exp()

    def sampling_sigmas(
        self, num_inference_steps: int, spacing: str = "trailing"
    ) -> Float[Tensor, "S_plus_1"]:
        """Falling noise levels of a sampler, ending in 0.

        Args:
            num_inference_steps: Sampler steps S, in [1, T].
            spacing: "trailing", "leading" or "linspace" of Lin et al. (2023) table 2,
                https://arxiv.org/abs/2305.08891; or "karras", Karras et al. (2022) eq. 5 with
                rho = 7, https://arxiv.org/abs/2206.00364, which suits schedules whose last sigma
                is moderate (with 4096 half of the steps are spent on pure noise). Only "trailing"
                and "karras" begin at the highest level in a single step.

        Raises:
            ValueError: an unknown spacing, or a number of steps that it cannot take.
        """
        if spacing not in SPACINGS:
            raise ValueError(
                f"unknown spacing {spacing!r}{suggest(spacing, SPACINGS)}; "
                f"there are {', '.join(SPACINGS)}"
            )
        fewest = 2 if spacing in ("leading", "linspace") else 1
        if not fewest <= num_inference_steps <= self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps must be in [{fewest}, {self.num_train_timesteps}] "
                f"with {spacing} spacing, got {num_inference_steps}"
            )
        if spacing == "karras":
            sigmas = _karras_sigmas(self.sigmas, num_inference_steps)
        else:
            timesteps = _spaced_timesteps(self.num_train_timesteps, num_inference_steps, spacing)
            sigmas = self.sigmas[timesteps]
        return torch.cat([sigmas, sigmas.new_zeros(1)])


def make_schedule(
    name: str,
    *,
    num_train_timesteps: int = 1000,
    zero_terminal_snr: bool = False,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    shift: float = 1.0,
) -> Schedule:
    """The named training schedule, computed in float64 and kept in float32.

    Args:
        name: "linear" (Ho et al. 2020), "scaled_linear" (linear in sqrt(beta), as in latent
            diffusion), "cosine" (Nichol & Dhariwal 2021) or "flow" (signal = 1 - t, noise = t).
        num_train_timesteps: T, in [2, 100_000].
        zero_terminal_snr: Rescale so that the last timestep is pure noise; flow always ends so.
        beta_start: First beta of "linear" and "scaled_linear", in (0, beta_end].
        beta_end: Their last beta, below 1.
        shift: Of "flow" alone, in [0.01, 100]: above 1 moves timesteps to higher noise, Esser et
            al. (2024) eq. 23, https://arxiv.org/abs/2403.03206.

    Raises:
        ValueError: an unknown name, or a value outside its range.
    """
    if name not in SCHEDULES:
        raise ValueError(
            f"unknown schedule {name!r}{suggest(name, SCHEDULES)}; there are {', '.join(SCHEDULES)}"
        )
    if not 2 <= num_train_timesteps <= MAX_TIMESTEPS:
        raise ValueError(
            f"num_train_timesteps must be in [2, {MAX_TIMESTEPS}], got {num_train_timesteps}"
        )
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"betas must satisfy 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}"
        )
    if not 0.01 <= shift <= 100 or (shift != 1 and name != "flow"):
        raise ValueError(
            f"shift must be in [0.01, 100], and 1 unless the schedule is flow; got {shift}"
        )
    if name == "flow":
        return _flow_schedule(num_train_timesteps, shift)
    if name == "cosine":
        betas = _cosine_betas(num_train_timesteps)
    else:
        betas = _linear_betas(num_train_timesteps, beta_start, beta_end, scaled=name != "linear")
    return _beta_schedule(betas, zero_terminal_snr)


def _beta_schedule(betas: Float[Tensor, "T"], zero_terminal_snr: bool) -> Schedule:
    signal = (1 - betas).cumprod(0).sqrt()
    if zero_terminal_snr:  # Lin et al. (2023), algorithm 1
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    # Below twice its end the signal follows a line, so that sigmas rise strictly to the last one.
    signal = signal.maximum(torch.linspace(2, 1, len(betas), dtype=torch.float64) * MIN_SIGNAL)
    return Schedule(signal.float(), (1 - signal**2).sqrt().float(), "variance_preserving")


def _flow_schedule(num_train_timesteps: int, shift: float) -> Schedule:
    t = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
    t = shift * t / (1 + (shift - 1) * t)  # Esser et al. (2024), eq. 23
    signal = (1 - t).clamp_min(MIN_SIGNAL)
    return Schedule(signal.float(), (1 - signal).float(), "linear")


def _linear_betas(num: int, start: float, end: float, *, scaled: bool) -> Float[Tensor, "T"]:
    power = 2 if scaled else 1
    return (
        torch.linspace(start ** (1 / power), end ** (1 / power), num, dtype=torch.float64) ** power
    )


def _cosine_betas(num: int) -> Float[Tensor, "T"]:
    """Nichol & Dhariwal (2021), eq. 17, clipped at 0.999 (https://arxiv.org/abs/2102.09672)."""
    t = torch.arange(num + 1, dtype=torch.float64) / num
    alphas_cumprod = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp_max(0.999)


def _spaced_timesteps(T: int, S: int, spacing: str) -> Int[Tensor, "S"]:
    """Falling integer timesteps, Lin et al. (2023) table 2."""
    steps = torch.arange(S, dtype=torch.float64)
    if spacing == "trailing":
        return (T - steps * (T / S)).round().long() - 1
    if spacing == "leading":
        return (steps * (T // S)).long().flip(0)
    return torch.linspace(0, T - 1, S, dtype=torch.float64).round().long().flip(0)


def _karras_sigmas(sigmas: Float[Tensor, "T"], S: int, rho: float = 7.0) -> Float[Tensor, "S"]:
    """Karras et al. (2022), eq. 5."""
    low, high = (sigmas[i].double() ** (1 / rho) for i in (0, -1))
    ramp = torch.linspace(0, 1, S, dtype=torch.float64)
    return ((high + ramp * (low - high)) ** rho).to(sigmas.dtype)
