"""Words read back as they were drawn; another letter, a bad letter or a bad colour never does."""

from dataclasses import replace
from functools import cache
from itertools import combinations as pairs_of

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from tinydiffusion.scenes.controls import wrong_descriptions
from tinydiffusion.scenes.font import (
    ALPHABET,
    CELL_ASPECT,
    CELLS,
    GLYPHS,
    WORD_ASPECT,
    WORDS,
    draw_word,
)
from tinydiffusion.scenes.geneval import to_prompt
from tinydiffusion.scenes.judge import compare, judge
from tinydiffusion.scenes.reading import read
from tinydiffusion.scenes.render import render
from tinydiffusion.scenes.sampling import sample_scene
from tinydiffusion.scenes.vocabulary import WORD, Object, Scene


def word(text="CAT", colour="red", x=0.5, y=0.5, radius=0.43):
    return Object(WORD, colour, x, y, radius, text)


@cache
def scenes(n):
    rng = np.random.default_rng(0)
    return [sample_scene(rng, "spelling", ("train", "held_out")[i % 2]) for i in range(n)]


def compared(seen, description):
    return compare(seen, to_prompt(description, "", "")).right


def another_letter(text, rng):
    i = rng.integers(3)
    letter = rng.choice([letter for letter in ALPHABET if letter != text[i]])
    return text[:i] + str(letter) + text[i + 1 :]


def tally(n, size=32, change=lambda image: image):
    """Words read right, and words with one other letter that are taken for right."""
    right = wrongly_right = 0
    rng = np.random.default_rng(1)
    for scene in scenes(n):
        seen = read(change(render(scene, size)))
        told = scene.description
        other = replace(told.objects[0], text=another_letter(told.objects[0].text, rng))
        right += compared(seen, told)
        wrongly_right += compared(seen, replace(told, objects=(other,)))
    return right, wrongly_right


def test_fresh_words():
    right, wrongly_right = tally(2000)
    assert right >= 1998
    assert wrongly_right == 0


def test_every_wrong_letter_colour_and_background_is_refused():
    for scene in scenes(20):
        seen = read(render(scene))
        others = [d for every in wrong_descriptions(scene.description).values() for d in every]
        assert len(others) == 75 + 5 + 3
        assert not any(compared(seen, other) for other in others)


@pytest.mark.parametrize("size", [64, 128])
def test_larger_words(size):
    assert tally(30, size) == (30, 0)


def test_blurred_and_noisy_words():
    rng = np.random.default_rng(0)

    def worn(image):
        pixels = gaussian_filter(image.numpy().astype(np.float64), (0, 0.5, 0.5))
        pixels += rng.normal(0, 6, pixels.shape)
        return torch.from_numpy(pixels.round().clip(0, 255).astype(np.uint8))

    right, wrongly_right = tally(200, change=worn)
    assert right >= 0.97 * 200
    assert wrongly_right == 0


def test_the_verdict_names_the_text():
    image = render(Scene("white", (word("CAT"),)))
    verdict = judge(image, 'the word "CAR" in red on a white background')
    assert [atom.kind for atom in verdict.atoms if not atom.right] == ["text"]
    assert verdict.reason == "expected the word CAR, found CAT"
    assert judge(image, 'the word "CAT" in blue').reason == "expected blue word>=1, found 0"


def spoilt(change):
    image = render(Scene("white", (word("HAM"),)))
    change(image)
    return image


def blot(image):
    image[:, 10:22, 13:19] = torch.tensor([220, 40, 40])[:, None, None].to(torch.uint8)


def smear(image):
    image[:, :, 12:20] = 248


def paint(image):
    ink = image.float().sub(248).abs().sum(0) > 60
    ink[:, :20] = False
    image[:, ink] = torch.tensor([40, 80, 220], dtype=torch.uint8)[:, None]


@pytest.mark.parametrize("change", [blot, smear, paint])
def test_a_letter_that_is_none_is_skipped(change):
    assert judge(spoilt(change), 'the word "HAM" in red').outcome == "skip"


def test_no_word_is_read_as_shapes_and_no_shape_as_a_word():
    rng = np.random.default_rng(2)
    for scene in scenes(300):
        assert [o.shape for o in read(render(scene)).objects] == [WORD]
    for i in range(300):
        scene = sample_scene(rng, ("two_objects", "counting")[i % 2], "train")
        assert WORD not in [o.shape for o in read(render(scene)).objects]


def test_letters_are_told_apart_and_fill_their_box():
    cells = {letter: glyph.replace(" ", "") for letter, glyph in GLYPHS.items()}
    for a, b in pairs_of(cells.values(), 2):
        assert sum(p != q for p, q in zip(a, b, strict=True)) >= 4
    for glyph in GLYPHS.values():
        rows = np.array([list(row) for row in glyph.split()]) == "1"
        assert rows.shape == (5, 5)
        assert all(side.any() for side in (rows[0], rows[-1], rows[:, 0], rows[:, -1]))


def test_words_are_words_of_three_letters():
    assert len(set(WORDS)) == len(WORDS)
    assert len(WORDS) % 5 == 0  # so that a fifth of the words is a fifth of the combinations
    assert all(len(text) == 3 and set(text) <= set(ALPHABET) for text in WORDS)


def test_the_area_of_a_word_is_that_of_its_cells():
    radius, side = 13.3, 32
    cell = (2 * radius / CELLS) ** 2 * CELL_ASPECT
    drawn = draw_word("TOE", 15.7, 16.2, radius, side)
    cells = sum(GLYPHS[letter].count("1") for letter in "TOE")
    assert drawn.sum() == pytest.approx(cells * cell, rel=1e-4)
    rows, columns = np.nonzero(drawn)
    height = rows.max() - rows.min() + 1
    assert abs(height - 2 * radius * WORD_ASPECT) <= 2
    assert abs(columns.max() - columns.min() + 1 - 2 * radius) <= 2
