"""Check the arguments that Python callers pass to a pipeline, and convert them to one form.

Callers of diffusers pass one text or a list, None, numpy's numbers, one generator or several. For
other kinds a ValueError names what is allowed.
"""

import dataclasses
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import torch

from tinydiffusion import registry
from tinydiffusion.config import SamplingConfig
from tinydiffusion.diffusion.noise import picture_generators


def as_texts(name: str, value: Any) -> list[str]:
    """Return the texts of one string, or of a list or tuple of at least one."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts:
        raise ValueError(
            f"{name} must be a string, or a list of at least one string, got {_shown(value)}"
        )
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{name} must hold strings only, got {_shown(wrong[0])} among them")
    return list(texts)


def as_negative_prompts(value: Any, count: int) -> list[str]:
    """Return one negative prompt per picture; None stands for the empty one.

    Args:
        value: None, one string for all, or a list of one per picture.
        count: Number of pictures.

    Raises:
        ValueError: it is something else, or a list of another length.
    """
    if value is None or isinstance(value, str):
        return [value or ""] * count
    texts = as_texts("negative_prompt", value)
    if len(texts) != count:
        raise ValueError(
            f"negative_prompt must be one string, or one for each of {count} prompts, got a list "
            f"of {len(texts)}"
        )
    return texts


def as_int(name: str, value: Any) -> int:
    """Return a whole number, also numpy's or torch's, as Python's int."""
    is_truth = isinstance(value, bool) or getattr(value, "dtype", None) in (bool, torch.bool)
    try:
        if is_truth:
            raise TypeError
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} must be a whole number, got {_shown(value)}") from error


def as_seeds(seed: Any, generator: Any, count: int) -> Sequence[int]:
    """Return the seeds of `count` pictures: seed + i, or the next numbers of the generators.

    Drawing a seed advances the generator, so that the next call makes other pictures.

    Args:
        seed: Seed of picture 0, or a list of one seed per picture; must be 0 if a generator is
            given.
        generator: None, a `torch.Generator` for all, or a list of one per picture.
        count: Number of pictures, at least 1.

    Raises:
        ValueError: a seed is outside [0, 2**64), or an argument is of another kind.
    """
    if isinstance(seed, list | tuple | range):
        return _listed_seeds(seed, generator, count)
    seed = as_int("seed", seed)
    if generator is None:
        picture_generators(seed, count - 1, 1)  # wrong seeds raise here
        return range(seed, seed + count)
    if seed:
        raise ValueError(f"give a seed or a generator, not both; got seed={seed}")
    generators = [generator] * count if isinstance(generator, torch.Generator) else generator
    if not isinstance(generators, list | tuple) or not all(
        isinstance(each, torch.Generator) for each in generators
    ):
        raise ValueError(
            f"generator must be a torch.Generator, or a list of them, got {_shown(generator)}"
        )
    if len(generators) != count:
        raise ValueError(f"{count} pictures need as many generators, got {len(generators)}")
    return [_drawn_seed(each) for each in generators]


def _listed_seeds(given: Sequence[Any], generator: Any, count: int) -> list[int]:
    if generator is not None:
        raise ValueError(f"give seeds or a generator, not both; got {len(given)} seeds")
    if len(given) != count:
        raise ValueError(f"{count} pictures need as many seeds, got {len(given)}")
    seeds = [as_int("seed", each) for each in given]
    for seed in seeds:
        picture_generators(seed, 0, 1)  # wrong seeds raise here
    return seeds


def as_sampling(value: Any) -> SamplingConfig:
    """Return the sampling settings with Python's numbers in place of numpy's.

    Raises:
        ValueError: it is no `SamplingConfig`, or a setting is of a wrong type.
    """
    if not isinstance(value, SamplingConfig):
        raise ValueError(f"sampling must be a SamplingConfig, got {_shown(value)}")
    plain = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    for field in dataclasses.fields(value):
        if not registry.fits(plain[field.name], field.type):
            wanted = registry.type_name(field.type)
            raise ValueError(f"{field.name} must be {wanted}, got {_shown(plain[field.name])}")
    return dataclasses.replace(value, **plain)


def _plain(value: Any) -> Any:
    """Convert a number of numpy to Python's; return anything else as it is."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _drawn_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def _shown(value: Any) -> str:
    return f"{registry.shown(value)} ({type(value).__name__})"
