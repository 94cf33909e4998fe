"""Prompt sets that test composition: GenEval's six tasks, and ladders of difficulty."""

from collections.abc import Iterable, Sequence
from itertools import combinations as unordered
from itertools import permutations, product
from typing import Literal

import numpy as np

from tinydiffusion.scenes.captions import caption
from tinydiffusion.scenes.geneval import Prompt, to_prompt
from tinydiffusion.scenes.sampling import combinations
from tinydiffusion.scenes.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    ObjectDescription,
    SceneDescription,
)

Task = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
TASKS: tuple[Task, ...] = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
)
COUNTS = (2, 3, 4)


def geneval_prompts(per_task: int, seed: int = 0, tasks: Sequence[Task] = TASKS) -> list[Prompt]:
    """Draw up to `per_task` different prompts of each task, with the tasks in turn.

    As in GenEval (Ghosh et al. 2023) only `colors` and `color_attr` name colours, and only
    `position` names a relation; every prompt names a background. There are 12 prompts of
    `single_object`, 24 of `two_object` and 36 of `counting`. Those of `colors` are combinations
    held out from training; those of `color_attr` come in pairs with exchanged colours.

    Raises:
        ValueError: `per_task` is below 1, or a task is unknown.
    """
    if per_task < 1 or not tasks or not set(tasks) <= set(TASKS):
        raise ValueError(
            f"per_task={per_task!r}, tasks={tasks!r}: per_task must be 1 or more and the tasks "
            f"some of {', '.join(TASKS)}"
        )
    sets = [_prompts_of(task, per_task, seed) for task in tasks]
    return [prompts[i] for i in range(per_task) for prompts in sets if i < len(prompts)]


def difficulty_prompts(num_ladders: int, seed: int = 0) -> list[Prompt]:
    """Draw ladders of five prompts on one pair of objects, with one condition to five.

    An example: "a circle", "a red circle", "a red circle and a square", "a red circle and a blue
    square", "a red circle left of a blue square".
    """
    rng = np.random.default_rng((seed, len(TASKS)))
    prompts = []
    for _ in range(num_ladders):
        (s, t), (c, d) = (rng.permutation(list(words))[:2].tolist() for words in (SHAPES, COLOURS))
        first, second = ObjectDescription(s, c), ObjectDescription(t, d)
        pair, relation = (first, second), str(rng.choice(RELATIONS))
        ladder = [
            SceneDescription(None, (ObjectDescription(s),)),
            SceneDescription(None, (first,)),
            SceneDescription(None, (first, ObjectDescription(t))),
            SceneDescription(None, pair),
            SceneDescription(None, pair, relation),
        ]
        prompts += [to_prompt(rung, caption(rung), "difficulty") for rung in ladder]
    return prompts


def _prompts_of(task: Task, per_task: int, seed: int) -> list[Prompt]:
    """Draw different prompts of one task in random order; pairs stay together."""
    rng = np.random.default_rng((seed, TASKS.index(task)))
    every = list(_descriptions(task))
    order = rng.permutation(len(every))
    told = [description for i in order for description in every[i]][:per_task]
    return [to_prompt(description, caption(description), task) for description in told]


def _descriptions(task: Task) -> Iterable[tuple[SceneDescription, ...]]:
    """Return all descriptions of a task, in groups that stay together."""
    if task == "single_object":
        return [
            (SceneDescription(b, (ObjectDescription(s),)),) for b, s in product(BACKGROUNDS, SHAPES)
        ]
    if task == "colors":
        return [(description,) for description in combinations("one_object", "held_out")]
    if task == "counting":
        groups = [(ObjectDescription(s),) * n for s, n in product(SHAPES, COUNTS)]
        return [(SceneDescription(b, group),) for b, group in product(BACKGROUNDS, groups)]
    pairs = list(permutations(map(ObjectDescription, SHAPES), 2))
    if task == "two_object":
        return [(SceneDescription(b, pair),) for b, pair in product(BACKGROUNDS, pairs)]
    if task == "position":
        return [(SceneDescription(*each),) for each in product(BACKGROUNDS, pairs, RELATIONS)]
    coloured = product(BACKGROUNDS, permutations(SHAPES, 2), unordered(COLOURS, 2))
    return [_swaps(*each) for each in coloured]


def _swaps(
    background: str, shapes: tuple[str, str], colours: tuple[str, str]
) -> tuple[SceneDescription, ...]:
    """Return two objects of these shapes in these colours, and with the colours exchanged."""
    pairs = [tuple(map(ObjectDescription, shapes, each)) for each in (colours, colours[::-1])]
    return tuple(SceneDescription(background, pair) for pair in pairs)
