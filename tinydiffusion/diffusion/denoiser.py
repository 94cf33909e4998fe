"""From a trained network to the one function that samplers know: (x, sigma) -> x_0."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.abilities import TextFirst
from tinydiffusion.diffusion.guidance import Interval, check_guidance_interval, guide, is_guided
from tinydiffusion.diffusion.prediction import check_prediction_type, to_x_0
from tinydiffusion.diffusion.schedule import MIN_SIGNAL, Schedule
from tinydiffusion.protocols import Denoise, Predict, TextStates


class Denoiser(nn.Module):
    """A network together with what its input and output mean.

    Args:
        network: The trained module, see `protocols.Network`.
        schedule: The noise levels it is trained on.
        prediction_type: What it predicts, see `prediction.training_target`.

    Raises:
        ValueError: an unknown prediction type, or "epsilon" on a schedule that ends in pure noise.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, *, prediction_type: str) -> None:
        super().__init__()
        check_prediction_type(prediction_type)
        if prediction_type == "epsilon" and schedule.signal[-1] <= MIN_SIGNAL:
            # x_0 = (x_t - s epsilon) / a divides by nothing, Lin et al. (2023), section 3.3.
            raise ValueError(
                "prediction_type 'epsilon' cannot be used with a schedule that ends in pure noise "
                "(cosine, flow, zero_terminal_snr); use 'v_prediction', 'sample' or 'flow'"
            )
        self.network = network
        self.schedule = schedule
        self.prediction_type = prediction_type

    def predict(
        self, x_t: Float[Tensor, "B C H W"], timesteps: Float[Tensor, "B"], text: TextStates
    ) -> Float[Tensor, "B C H W"]:
        """The network's raw output."""
        return self.network(x_t, timesteps, text)

    def denoise(
        self,
        text: TextStates,
        *,
        negative: TextStates | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        guidance_interval: Interval | None = None,
        clip_sample: bool = False,
    ) -> Denoise:
        """The function (x, sigma) -> x_0 for these prompts.

        Args:
            text: One prompt per picture.
            negative: What guidance moves away from, usually the empty prompt once per picture.
                Needed when guidance_scale is not 1, unused when it is.
            guidance_scale: 1 is off, see `guidance.guide`.
            guidance_rescale: In [0, 1], 0 is off.
            guidance_interval: Noise levels that are guided, see `guidance.is_guided`; at others
                the network is called without `negative`, for half the work.
            clip_sample: Clamp x_0 to [-1, 1]; right for pixels, wrong for latents.

        Raises:
            ValueError: guidance without `negative`, or an impossible rescale or interval.
        """
        if not 0 <= guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale must be in [0, 1], got {guidance_rescale}")
        check_guidance_interval(guidance_interval)
        predict = with_text(self.network, text)
        predict_both = None
        if guidance_scale != 1:
            if negative is None:
                raise ValueError(
                    f"guidance_scale {guidance_scale} needs the states of the empty prompt as "
                    "`negative`; without guidance the scale is 1"
                )
            predict_both = with_text(self.network, TextStates.cat([text, negative]))

        def denoise(
            x: Float[Tensor, "B C H W"], sigma: Float[Tensor, ""]
        ) -> Float[Tensor, "B C H W"]:
            if predict_both is None or not is_guided(sigma, guidance_interval):
                x_0 = self._to_x_0(x, sigma, predict)
            else:  # both halves of guidance in one call of the network
                told, untold = self._to_x_0(torch.cat([x, x]), sigma, predict_both).chunk(2)
                x_0 = guide(told, untold, guidance_scale, guidance_rescale)
            return x_0.clamp(-1, 1) if clip_sample else x_0

        return denoise

    def to_x_0(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, "*B"], text: TextStates
    ) -> Float[Tensor, "B C H W"]:
        """The clean pictures that the network sees in noisy ones.

        Args:
            x: Pictures plus `sigma` times noise.
            sigma: One noise level for all pictures, or one each.
            text: One caption per picture.
        """
        return self._to_x_0(x, sigma, lambda x_t, timesteps: self.predict(x_t, timesteps, text))

    def _to_x_0(
        self, x: Float[Tensor, "B C H W"], sigma: Float[Tensor, "*B"], predict: Predict
    ) -> Float[Tensor, "B C H W"]:
        sigma = sigma.to(x.device)
        a = self.schedule.signal_of(sigma).view(-1, 1, 1, 1)
        timesteps = self.schedule.timestep_of(sigma).expand(len(x))
        x_t = a * x
        output = predict(x_t, timesteps).to(x.dtype)
        return to_x_0(self.prediction_type, output, x_t, a, a * sigma.view(-1, 1, 1, 1))


def with_text(network: nn.Module, text: TextStates) -> Predict:
    """The network with this text; what the text alone decides is computed once where it can be."""
    if isinstance(network, TextFirst):
        return network.with_text(text)
    return lambda sample, timesteps: network(sample, timesteps, text)
