"""Proves that a Python caller's arguments are taken, or refused in words by a ValueError."""

import numpy as np
import pytest
import torch

from tinydiffusion.call_arguments import (
    as_int,
    as_negative_prompts,
    as_sampling,
    as_seeds,
    as_texts,
)
from tinydiffusion.config import SamplingConfig

GENERATOR = torch.Generator()


def unchecked(**settings) -> SamplingConfig:
    """Settings of any type, as where no test checks types."""
    sampling = SamplingConfig()
    for name, value in settings.items():
        object.__setattr__(sampling, name, value)
    return sampling


@pytest.mark.parametrize(
    ("convert", "arguments", "message"),
    [
        (as_texts, ("prompts", None), r"prompts must be a string, or a list .*, got None \(None"),
        (as_texts, ("prompts", []), r"list of at least one string, got \[\] \(list\)"),
        (as_texts, ("prompts", np.array(["a"])), r"got array.* \(ndarray\)"),
        (as_texts, ("prompts", ["a", 7]), r"must hold strings only, got 7 \(int\) among them"),
        (as_negative_prompts, (7, 2), r"negative_prompt must be a string, .* got 7 \(int\)"),
        (as_negative_prompts, (["a", None], 2), "strings only, got None"),
        (as_negative_prompts, (["a"], 2), "one for each of 2 prompts, got a list of 1"),
        (as_int, ("seed", True), r"seed must be a whole number, got True \(bool\)"),
        (as_int, ("seed", np.True_), "whole number"),
        (as_int, ("seed", torch.tensor(True)), "whole number"),
        (as_int, ("seed", 3.0), r"got 3.0 \(float\)"),
        (as_int, ("seed", "3"), r"got '3' \(str\)"),
        (as_int, ("seed", None), "got None"),
        (as_int, ("seed", np.array([3, 4])), "whole number"),
        (as_seeds, (-1, None, 1), r"in \[0, 2\*\*64\)"),
        (as_seeds, (2**64 - 1, None, 2), r"in \[0, 2\*\*64\)"),
        (as_seeds, (1, GENERATOR, 1), "a seed or a generator, not both; got seed=1"),
        (as_seeds, ([3, 4], None, 3), "3 pictures need as many seeds, got 2"),
        (as_seeds, ([3, -4], None, 2), r"in \[0, 2\*\*64\)"),
        (as_seeds, ([3, "4"], None, 2), r"seed must be a whole number, got '4'"),
        (as_seeds, ([3], GENERATOR, 1), "seeds or a generator, not both; got 1 seeds"),
        (as_seeds, (0, 7, 1), r"must be a torch.Generator, or a list of them, got 7 \(int\)"),
        (as_seeds, (0, [GENERATOR, 7], 2), "must be a torch.Generator"),
        (as_seeds, (0, [GENERATOR], 2), "2 pictures need as many generators, got 1"),
        (as_sampling, ({"steps": 3},), r"must be a SamplingConfig, got .* \(dict\)"),
        (as_sampling, (unchecked(steps=2.5),), r"steps must be int, got 2.5 \(float\)"),
        (as_sampling, (unchecked(guidance_scale="2"),), "guidance_scale must be float"),
        (as_sampling, (unchecked(sampler=None),), "sampler must be str, got None"),
    ],
)
def test_what_is_of_another_kind_is_refused_in_words(convert, arguments, message):
    with pytest.raises(ValueError, match=message):
        convert(*arguments)


def test_seeds_of_a_generator_follow_each_other():
    first, again = (torch.Generator().manual_seed(5) for _ in range(2))
    together = as_seeds(0, first, 3)
    assert together == [as_seeds(0, again, 1)[0] for _ in range(3)]
    assert len(set(together)) == 3
    assert as_seeds(0, [first, first], 2) == as_seeds(0, again, 2)


def test_numbers_of_numpy_become_pythons():
    sampling = as_sampling(unchecked(steps=np.int64(3), guidance_scale=np.float32(1.5)))
    assert sampling == SamplingConfig(steps=3, guidance_scale=1.5)
    assert (type(sampling.steps), type(sampling.guidance_scale)) == (int, float)
