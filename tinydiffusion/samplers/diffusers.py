"""Any scheduler of the diffusers library as a sampler (https://huggingface.co/docs/diffusers)."""

import inspect
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiffusion.protocols import Denoise, Generators
from tinydiffusion.registry import suggest
from tinydiffusion.samplers._check import check_sigmas

# Options that say how the network was trained; they follow from train_sigmas.
FIXED = ["trained_betas", "beta_schedule", "beta_start", "beta_end", "num_train_timesteps"]
FIXED += ["prediction_type", "rescale_betas_zero_snr", "use_flow_sigmas"]


def sample_diffusers(
    denoise: Denoise,
    x: Float[Tensor, "B C H W"],
    sigmas: Float[Tensor, "S_plus_1"],
    *,
    generators: Generators,
    scheduler: str,
    train_sigmas: Float[Tensor, "T"],
    scheduler_options: dict[str, Any] | None = None,
) -> Float[Tensor, "B C H W"]:
    """Pictures from a diffusers scheduler, whatever space and prediction type it works in.

    Args:
        denoise: See `protocols.Denoise`.
        x: Noise of standard deviation sigmas[0].
        sigmas: Falling to 0, shape (S+1,). FlowMatch schedulers visit these noise levels; the
            others are told S and choose their own ("trailing" unless the options say otherwise).
        generators: One per picture; stochastic schedulers draw from them.
        scheduler: Class name, such as "UniPCMultistepScheduler".
        train_sigmas: Noise levels of the training timesteps, rising.
        scheduler_options: Further arguments of the class.

    Raises:
        ValueError: an unknown scheduler, one that cannot denoise a picture from pure noise, or an
            option that it does not take.
    """
    check_sigmas(sigmas)
    make_space = _FlowSpace if scheduler.startswith("FlowMatch") else _BetaSpace
    space = make_space(_scheduler_class(scheduler), sigmas, train_sigmas, scheduler_options or {})
    step = space.scheduler.step
    takes_generator = "generator" in inspect.signature(step).parameters
    step_options = {"generator": list(generators)} if takes_generator else {}

    sample = space.start(x / sigmas[0])
    for timestep in space.scheduler.timesteps:
        sigma = space.sigma_of(timestep).to(x)
        x = space.to_x(sample, timestep, sigma)
        x_0 = denoise(x, sigma)
        output = space.output(x_0, (x - x_0) / sigma)
        sample = step(output, timestep, sample, **step_options).prev_sample
    return sample


class _BetaSpace:
    """Schedulers of variance-preserving diffusion; epsilon is what every one of them takes."""

    def __init__(
        self,
        scheduler_class: type,
        sigmas: Float[Tensor, "S_plus_1"],
        train_sigmas: Float[Tensor, "T"],
        options: dict[str, Any],
    ) -> None:
        allowed = inspect.signature(scheduler_class).parameters
        if not {"trained_betas", "prediction_type"} <= set(allowed):
            raise _refusal(scheduler_class, "it is not made for a schedule of betas")
        if "Inverse" in scheduler_class.__name__ or _needs_more(scheduler_class):
            raise _refusal(scheduler_class, "it needs more than noise to start from")
        _check_options(options, list(allowed))
        defaults = {"timestep_spacing": "trailing", "clip_sample": False}
        self.scheduler = scheduler_class(
            trained_betas=_betas(train_sigmas),
            num_train_timesteps=len(train_sigmas),
            prediction_type="epsilon",
            **{key: value for key, value in defaults.items() if key in allowed} | options,
        )
        self.scheduler.set_timesteps(len(sigmas) - 1)
        alphas_cumprod = self.scheduler.alphas_cumprod
        self.log_sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt().log()

    def start(self, noise: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return noise * self.scheduler.init_noise_sigma

    def sigma_of(self, timestep: Tensor) -> Float[Tensor, ""]:
        below = min(int(timestep), len(self.log_sigmas) - 2)
        weight = float(timestep) - below
        return torch.lerp(self.log_sigmas[below], self.log_sigmas[below + 1], weight).exp()

    def to_x(
        self, sample: Float[Tensor, "B C H W"], timestep: Tensor, sigma: Float[Tensor, ""]
    ) -> Float[Tensor, "B C H W"]:
        x_t = self.scheduler.scale_model_input(sample, timestep)
        return x_t * (1 + sigma**2).sqrt()

    def output(
        self, _x_0: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        return noise


class _FlowSpace:
    """Schedulers of flow matching: sample = (1 - t) x_0 + t noise, t = sigma / (1 + sigma)."""

    def __init__(
        self,
        scheduler_class: type,
        sigmas: Float[Tensor, "S_plus_1"],
        train_sigmas: Float[Tensor, "T"],
        options: dict[str, Any],
    ) -> None:
        if "sigmas" not in inspect.signature(scheduler_class.set_timesteps).parameters:
            raise _refusal(scheduler_class, "it does not take noise levels")
        _check_options(options, list(inspect.signature(scheduler_class).parameters))
        self.scheduler = scheduler_class(num_train_timesteps=len(train_sigmas), **options)
        self.num_train_timesteps = len(train_sigmas)
        self.scheduler.set_timesteps(sigmas=(sigmas / (1 + sigmas))[:-1].tolist())

    def start(self, noise: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return noise * self._t(self.scheduler.timesteps[0])

    def sigma_of(self, timestep: Tensor) -> Float[Tensor, ""]:
        t = self._t(timestep)
        return t / (1 - t)

    def to_x(
        self, sample: Float[Tensor, "B C H W"], _timestep: Tensor, sigma: Float[Tensor, ""]
    ) -> Float[Tensor, "B C H W"]:
        return sample * (1 + sigma)

    def output(
        self, x_0: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        return noise - x_0

    def _t(self, timestep: Tensor) -> Float[Tensor, ""]:
        return timestep / self.num_train_timesteps


def _scheduler_class(name: str) -> type:
    import diffusers

    known = [n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")]
    if name not in known:
        raise ValueError(
            f"diffusers has no scheduler {name!r}{suggest(name, known)}; "
            "see https://huggingface.co/docs/diffusers/api/schedulers/overview"
        )
    return getattr(diffusers, name)


def _needs_more(scheduler_class: type) -> bool:
    """Return whether a step asks for more than self, output, timestep and sample."""
    parameters = inspect.signature(scheduler_class.step).parameters.values()
    return sum(p.default is p.empty for p in parameters) > 4


def _check_options(options: dict[str, Any], allowed: list[str]) -> None:
    for option in options:
        if option in FIXED:
            raise ValueError(f"scheduler option {option!r} follows from the trained model")
        if option not in allowed:
            raise ValueError(f"the scheduler has no option {option!r}{suggest(option, allowed)}")


def _refusal(scheduler_class: type, reason: str) -> ValueError:
    return ValueError(f"{scheduler_class.__name__} cannot be used here: {reason}")


def _betas(train_sigmas: Float[Tensor, "T"]) -> list[float]:
    alphas_cumprod = 1 / (1 + train_sigmas.double() ** 2)
    before = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    return (1 - alphas_cumprod / before).tolist()


PLUGIN = sample_diffusers
