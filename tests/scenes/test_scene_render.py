"""Pictures are uint8, antialiased, and cover the areas that geometry gives."""

import math

import numpy as np
import pytest
import torch

from tinydiffusion.scenes.render import coverage, render
from tinydiffusion.scenes.sampling import sample_scene
from tinydiffusion.scenes.vocabulary import BACKGROUNDS, COLOURS, Object, Scene

X_SHIFT = (0.5, 0.5 + 0.25 / 32)
AREAS = {"circle": math.pi, "square": 4.0, "triangle": 2.0}  # at radius 1


@pytest.mark.parametrize("size", [16, 32, 64])
def test_shape_type_and_colours(size):
    image = render(Scene("pink", (Object("square", "cyan", 0.5, 0.5, 0.2),)), size)
    assert image.shape == (3, size, size)
    assert image.dtype == torch.uint8
    assert tuple(image[:, 0, 0].tolist()) == BACKGROUNDS["pink"]
    assert tuple(image[:, size // 2, size // 2].tolist()) == COLOURS["cyan"]


@pytest.mark.parametrize("shape", AREAS)
def test_areas_at_sub_pixel_positions(shape):
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = rng.uniform(14, 18, size=2)
        radius = rng.uniform(4, 8)
        area = coverage(shape, x, y, radius, slice(0, 32), slice(0, 32)).sum()
        assert area == pytest.approx(AREAS[shape] * radius**2, rel=0.02)


@pytest.mark.parametrize("shape", AREAS)
def test_a_quarter_pixel_shift_shows(shape):
    here, there = (render(Scene("black", (Object(shape, "red", x, 0.5, 0.2),))) for x in X_SHIFT)
    assert not torch.equal(here, there)


def test_same_scene_same_picture():
    scene = sample_scene(np.random.default_rng(0), "counting", "train")
    torch.testing.assert_close(render(scene), render(scene), rtol=0, atol=0)


@pytest.mark.parametrize("size", [0, 14, 33])
def test_unfit_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"size={size}"):
        render(Scene("white", ()), size)
