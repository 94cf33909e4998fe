"""The renderer as a model: prompts to pictures that are right, or wrong in one known way."""

from dataclasses import replace
from itertools import cycle

import numpy as np
import torch

from tinydiffusion.scenes.captions import parse
from tinydiffusion.scenes.render import render
from tinydiffusion.scenes.sampling import place
from tinydiffusion.scenes.vocabulary import BACKGROUNDS, COLOURS


def perfect(description):
    return description


def swap_colours(description):
    """Objects of two colours get each other's."""
    colours = [o.colour for o in description.objects]
    swapped = zip(description.objects, reversed(colours), strict=True)
    return replace(description, objects=tuple(replace(o, colour=c) for o, c in swapped))


def one_too_few(description):
    """Of several objects the last is not drawn."""
    if len(description.objects) == 1:
        return description
    return replace(description, objects=description.objects[:-1], relation=None)


def misspell(description):
    """The middle letter of a word is a Q."""
    objects = [replace(o, text=o.text and f"{o.text[0]}Q{o.text[2]}") for o in description.objects]
    return replace(description, objects=tuple(objects))


def draw(prompts, model=perfect, seed=0, size=32):
    """A picture of each prompt; what it leaves open is drawn at random."""
    rng = np.random.default_rng(seed)
    descriptions = [model(_decide(parse(prompt), rng)) for prompt in prompts]
    return torch.stack([render(place(each, rng), size) for each in descriptions])


def _decide(said, rng):
    grounds, colours = (cycle(rng.permutation(list(w)).tolist()) for w in (BACKGROUNDS, COLOURS))
    colour = next(colours) if len(set(said.objects)) == 1 else None  # equal objects stay equal
    taken = {o.colour for o in said.objects}
    free = (c for c in colours if c not in taken)
    objects = tuple(
        replace(o, colour=o.colour or colour or next(free), text=o.text) for o in said.objects
    )
    return replace(said, background=said.background or next(grounds), objects=objects)
