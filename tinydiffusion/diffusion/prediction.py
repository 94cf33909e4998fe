"""What the network predicts, and the way from there to x_0 and to the noise.

Every prediction type is a mixture `output = p x_0 + q noise`, and the network's input is the
mixture `x_t = a x_0 + s noise`. Two equations with two unknowns: all conversions follow.
"""

from jaxtyping import Float
from torch import Tensor

from tinydiffusion.registry import suggest

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample", "flow"]

Factor = Float[Tensor, "#B 1 1 1"]


def check_prediction_type(prediction_type: str) -> None:
    """Raise ValueError where the prediction type is unknown."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"unknown prediction_type {prediction_type!r}"
            f"{suggest(prediction_type, PREDICTION_TYPES)}; there are {', '.join(PREDICTION_TYPES)}"
        )


def training_target(
    prediction_type: str,
    x_0: Float[Tensor, "B C H W"],
    noise: Float[Tensor, "B C H W"],
    a: Factor,
    s: Factor,
) -> Float[Tensor, "B C H W"]:
    """Compute the output that the network should have.

    Args:
        prediction_type: "epsilon" (Ho et al. 2020), "v_prediction" (Salimans & Ho 2022,
            https://arxiv.org/abs/2202.00512), "sample", or "flow" (the velocity of Lipman et al.
            2023, https://arxiv.org/abs/2210.02747, here from picture to noise).
        x_0: Clean pictures.
        noise: Standard normal.
        a: Signal factor.
        s: Noise factor.

    Raises:
        ValueError: an unknown prediction type.
    """
    p, q = _mixture(prediction_type, a, s)
    return p * x_0 + q * noise


def to_x_0(
    prediction_type: str,
    output: Float[Tensor, "B C H W"],
    x_t: Float[Tensor, "B C H W"],
    a: Factor,
    s: Factor,
) -> Float[Tensor, "B C H W"]:
    """The clean picture that the network's output stands for; `Raises` as in training_target."""
    p, q = _mixture(prediction_type, a, s)
    return (q * x_t - s * output) / (a * q - s * p)


def x_0_sensitivity(prediction_type: str, a: Factor, s: Factor) -> Factor:
    """The derivative of to_x_0 by the output: how an error of the network shows in x_0."""
    p, q = _mixture(prediction_type, a, s)
    return -s / (a * q - s * p)


def _mixture(prediction_type: str, a: Factor, s: Factor) -> tuple[Factor | float, Factor | float]:
    """The factors p of x_0 and q of the noise in the network's output."""
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return 0.0, 1.0
    if prediction_type == "sample":
        return 1.0, 0.0
    if prediction_type == "flow":
        return -1.0, 1.0
    return -s, a  # v = a noise - s x_0
