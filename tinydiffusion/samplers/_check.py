"""What every sampler demands of its noise levels."""

from jaxtyping import Float
from torch import Tensor


def check_sigmas(sigmas: Float[Tensor, "S_plus_1"]) -> None:
    """Raise ValueError unless the noise levels fall strictly and end in 0."""
    if len(sigmas) < 2 or sigmas[-1] != 0 or not (sigmas.diff() < 0).all():
        raise ValueError(
            f"sigmas must be at least two, fall strictly and end in 0, got {sigmas.tolist()}"
        )
