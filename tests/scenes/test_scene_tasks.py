"""GenEval's tasks ask for what their names say, each prompt once; ladders add one condition."""

from collections import Counter

import pytest

from tinydiffusion.scenes.captions import parse
from tinydiffusion.scenes.geneval import ask
from tinydiffusion.scenes.sampling import combinations
from tinydiffusion.scenes.tasks import TASKS, difficulty_prompts, geneval_prompts


def test_each_task_asks_for_its_own_and_every_prompt_comes_once():
    prompts = geneval_prompts(1000)
    assert Counter(p.tag for p in prompts) == {
        "single_object": 4 * 3,
        "two_object": 4 * 3 * 2,
        "counting": 4 * 3 * 3,
        "colors": 4 * 18 // 5,
        "position": 4 * 6 * 4,
        "color_attr": 4 * 6 * 15 * 2,
    }
    assert len({p.text for p in prompts}) == len(prompts)
    said = {task: set() for task in TASKS}
    for prompt in prompts:
        counts = [included.count for included in prompt.include]
        colours = [included.colour is not None for included in prompt.include]
        related = any(included.position for included in prompt.include)
        said[prompt.tag].add((len(counts), max(counts) > 1, any(colours), related))
    assert said == {
        "single_object": {(1, False, False, False)},
        "two_object": {(2, False, False, False)},
        "counting": {(1, True, False, False)},
        "colors": {(1, False, True, False)},
        "position": {(2, False, False, True)},
        "color_attr": {(2, False, True, False)},
    }


def test_their_texts_say_what_they_ask_for():
    for prompt in [*geneval_prompts(30), *difficulty_prompts(5)]:
        assert ask(prompt.text).meaning() == prompt.meaning(), prompt.text


def test_counts_are_two_to_four():
    counting = geneval_prompts(36, tasks=["counting"])
    assert {prompt.include[0].count for prompt in counting} == {2, 3, 4}


def test_colors_are_held_out():
    held_out = set(combinations("one_object", "held_out"))
    assert all(parse(p.text) in held_out for p in geneval_prompts(14, tasks=["colors"]))


def test_color_attr_comes_in_pairs_with_exchanged_colours():
    prompts = geneval_prompts(20, tasks=["color_attr"])
    for one, other in zip(prompts[::2], prompts[1::2], strict=True):
        assert one.with_swapped_colours().meaning() == other.meaning()


def test_tasks_take_turns_and_seeds_differ():
    assert [p.tag for p in geneval_prompts(2)] == [*TASKS, *TASKS]
    assert geneval_prompts(5) == geneval_prompts(8)[:30]
    assert geneval_prompts(5, seed=1) != geneval_prompts(5)


def test_ladders_have_one_to_five_conditions():
    prompts = difficulty_prompts(20)
    assert [p.conditions for p in prompts] == [1, 2, 3, 4, 5] * 20
    assert difficulty_prompts(3) == prompts[:15]
    assert {p.tag for p in prompts} == {"difficulty"}


@pytest.mark.parametrize("arguments", [{"per_task": 0}, {"per_task": 1, "tasks": []}])
def test_no_prompts_to_give(arguments):
    with pytest.raises(ValueError, match="per_task"):
        geneval_prompts(**arguments)
