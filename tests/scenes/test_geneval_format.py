"""Prompts go through GenEval's JSONL unchanged; lines that are wrong are named."""

import json

import pytest
from held_out import held_out_prompts

from tinydiffusion.scenes.geneval import (
    Excluded,
    Included,
    Prompt,
    ask,
    from_record,
    read_prompts,
    to_record,
    write_prompts,
)
from tinydiffusion.scenes.tasks import difficulty_prompts, geneval_prompts
from tinydiffusion.scenes.vocabulary import CATEGORIES

TEXT = "a red circle left of a blue square on a white background"
RECORD = {
    "tag": "two_objects",
    "include": [
        {"class": "square", "count": 1, "color": "blue"},
        {"class": "circle", "count": 1, "color": "red", "position": ["left of", 0]},
    ],
    "exclude": [
        {"class": "circle", "count": 2},
        {"class": "square", "count": 2},
        {"class": "triangle", "count": 1},
    ],
    "background": "white",
    "prompt": TEXT,
}
CIRCLE = {"class": "circle", "count": 1}


def test_a_caption_is_the_record_that_asks_for_it_and_nothing_else():
    assert to_record(ask(TEXT)) == RECORD
    assert from_record(RECORD) == ask(TEXT)


def test_a_word_has_its_text():
    (included,) = to_record(ask('the word "CAT" in red'))["include"]
    assert included == {"class": "word", "count": 1, "color": "red", "text": "CAT"}


def test_a_line_as_geneval_writes_it():
    line = (
        '{"tag": "counting", "include": [{"class": "circle", "count": 3}], '
        '"exclude": [{"class": "circle", "count": 4}], "prompt": "a photo of three circles"}'
    )
    asked = from_record(json.loads(line))
    include = (Included("circle", 3),)
    assert asked == Prompt(
        "a photo of three circles", "counting", include, (Excluded("circle", 4),)
    )
    assert json.dumps(to_record(asked)) == line


def test_files_are_read_as_they_were_written(tmp_path):
    texts = held_out_prompts(40, categories=CATEGORIES)
    prompts = [*geneval_prompts(10), *difficulty_prompts(3), *map(ask, texts)]
    file = tmp_path / "new" / "prompts.jsonl"
    write_prompts(file, prompts)
    assert read_prompts(file) == prompts
    assert len(file.read_text().splitlines()) == len(prompts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tag": None}, "tag=None is not of type str"),
        ({"include": [{"class": "dog", "count": 1}]}, "class='dog' is not one of circle, square"),
        ({"include": [{"class": "circle"}]}, "must be an object with the keys class, count"),
        ({"include": [{**CIRCLE, "count": 0}]}, "count=0 is below 1"),
        ({"include": [{**CIRCLE, "count": "2"}]}, "count='2' is not of type int"),
        ({"include": [{**CIRCLE, "color": "mauve"}]}, "color='mauve' is not one of red"),
        ({"include": [{**CIRCLE, "size": "big"}]}, "unknown key 'size'"),
        ({"include": [{**CIRCLE, "text": "CAT"}]}, 'class "word" has a text'),
        ({"include": [{**CIRCLE, "position": ["near", 0]}]}, "place of another object"),
        ({"include": [CIRCLE, {**CIRCLE, "position": ["above", 1]}]}, "place of another object"),
        ({"include": [{**CIRCLE, "position": "above"}]}, "position 'above' is not"),
        ({"exclude": [{"class": "circle", "count": 2, "color": "red"}]}, "unknown key 'color'"),
        ({"background": "beach"}, "background='beach' is not one of white"),
    ],
)
def test_wrong_lines_are_named(tmp_path, changes, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f"{json.dumps(RECORD)}\n{json.dumps({**RECORD, **changes})}\n")
    with pytest.raises(ValueError, match=f"prompts.jsonl, line 2: .*{message}"):
        read_prompts(file)


@pytest.mark.parametrize("line", ["[]", "{}", "not json", '"a red circle"'])
def test_lines_that_are_no_records(tmp_path, line):
    file = tmp_path / "prompts.jsonl"
    file.write_text(line)
    with pytest.raises(ValueError, match=r"prompts.jsonl, line 1: "):
        read_prompts(file)


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("a circle", 1),
        ("a red circle", 2),
        ("three circles", 2),
        ("a circle and a square", 2),
        ("a circle left of a square", 3),
        ("three red circles on a white background", 4),
        ('the word "CAT" in red', 3),
        ("a red circle left of a blue square", 5),
        (TEXT, 6),
    ],
)
def test_conditions_are_what_can_be_checked(text, conditions):
    assert ask(text).conditions == conditions


def test_meanings_are_equal_whatever_the_words():
    same = [
        TEXT,
        "a blue square right of a red circle on a white background",
        "on a white background, a red circle is left of a blue square",
    ]
    assert len({ask(text).meaning() for text in same}) == 1
    others = [
        "a blue circle left of a red square on a white background",
        "a red circle right of a blue square on a white background",
        "a red circle left of a blue square",
        "a red circle and a blue square on a white background",
        "a circle left of a square on a white background",
    ]
    assert len({ask(text).meaning() for text in [TEXT, *others]}) == 6
    assert ask("a circle and a square").meaning() == ask("a square and a circle").meaning()


def test_swapped_colours():
    swapped = ask(TEXT).with_swapped_colours()
    assert (
        swapped.meaning()
        == ask("a red square right of a blue circle on a white background").meaning()
    )
    for text in ("a red circle and a red square", "a circle and a square", "a red circle"):
        assert ask(text).with_swapped_colours() is None
    assert ask("a red circle and a blue circle").with_swapped_colours() is None
    turned = ask("a red circle left of a blue circle").with_swapped_colours()
    assert turned.meaning() == ask("a red circle right of a blue circle").meaning()
