"""GenEval's tasks with the renderer as the model: every row is what the model's fault makes it."""

import json

import pytest
from held_out import held_out_prompts
from scene_models import draw, misspell, one_too_few, perfect, swap_colours

from tinydiffusion.evaluators.scene_accuracy import SceneAccuracy
from tinydiffusion.metrics.composition import binding_pairs, groups_of
from tinydiffusion.scenes.geneval import ask, from_record, write_prompts
from tinydiffusion.scenes.tasks import TASKS, difficulty_prompts, geneval_prompts

ATOMS = ("exists", "count", "colour", "relation", "background", "exclude")
PER_TASK = 10


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """GenEval's tasks and two-object ladders, as a file and as a list."""
    every = [*geneval_prompts(PER_TASK), *difficulty_prompts(4)]
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    write_prompts(file, every)
    return file, every


def measure(batch, model, asked, repeat=1, images=None, **options):
    texts = [prompt.text for prompt in asked for _ in range(repeat)]
    evaluator = SceneAccuracy(samples_per_prompt=repeat, **options)
    images = draw(texts, model) if images is None else images
    evaluator.update(batch("generated", images, prompts=texts))
    return {s.name.removeprefix("scene_accuracy").lstrip("/"): s for s in evaluator.compute()}


def values(result, *rows):
    return [result[row].value for row in rows]


def test_a_perfect_model_is_right_on_every_row(batch, prompts):
    file, every = prompts
    result = measure(batch, perfect, every, repeat=2, prompts=str(file))
    conditions = [f"conditions_{n}" for n in range(1, 6)]
    rows = [*TASKS, "difficulty", *ATOMS, *conditions, "any_of_2", "binding_pairs"]
    assert set(result) == {"", *rows, "skipped", "shuffled_captions"}
    assert values(result, "", *rows) == [1] * (len(rows) + 1)
    assert result["skipped"].value == 0
    assert result["shuffled_captions"].value < 0.06  # short prompts are true of many a picture
    assert [result[task].n for task in TASKS] == [2 * PER_TASK] * 6
    assert result["difficulty"].n == 2 * 4 * 5
    assert result["any_of_2"].n == len(every)
    assert result["binding_pairs"].n >= 2 * PER_TASK / 2
    for score in result.values():
        low, high = score.ci95
        assert 0 <= low <= score.value <= high <= 1


def test_a_model_that_swaps_colours_cannot_bind_but_can_count(batch, prompts):
    result = measure(batch, swap_colours, prompts[1], prompts=str(prompts[0]))
    others = ("single_object", "two_object", "counting", "colors", "position")
    assert values(result, "color_attr", "binding_pairs") == [0, 0]
    assert values(result, *others, "exists", "count") == [1] * 7
    assert 0 < result["colour"].value < 1
    assert result["relation"].value == PER_TASK / (PER_TASK + 4)  # of the objects asked for
    assert values(result, "conditions_1", "conditions_5") == [1, 0]


def test_a_model_that_draws_one_too_few_can_neither_count_nor_draw_two(batch, prompts):
    result = measure(batch, one_too_few, prompts[1], prompts=str(prompts[0]))
    assert values(result, "counting", "two_object", "position", "color_attr", "relation") == [0] * 5
    assert values(result, "single_object", "colors", "background") == [1] * 3
    assert result["conditions_1"].value == 1
    assert result["conditions_4"].value < 0.5


def test_pictures_of_other_prompts_are_wrong(batch, prompts):
    _, every = prompts
    full = [p for p in every if p.tag in ("color_attr", "position", "colors")]
    images = draw([p.text for p in full])
    result = measure(batch, perfect, full, images=images.roll(7, dims=0))
    assert result[""].value < 0.07


def test_words(batch):
    asked = [ask(text) for text in held_out_prompts(20, categories=("spelling",))]
    right, wrong = (measure(batch, model, asked) for model in (perfect, misspell))
    assert values(right, "", "spelling", "text", "colour", "exists") == [1] * 5
    assert values(wrong, "", "spelling", "text") == [0] * 3
    assert values(wrong, "exists", "colour", "skipped") == [1, 1, 0]
    assert right["shuffled_captions"].value == 0


def test_any_of_four_needs_one_right_picture(batch):
    asked = [ask("a red circle"), ask("two circles")]
    texts = [p.text for p in asked for _ in range(4)]
    images = draw(texts)
    images[1:4] = images[4]  # one right picture of the first prompt is left
    images[4:] = images[0]  # and none of the second
    result = measure(batch, perfect, asked, repeat=4, images=images)
    assert result["any_of_4"].value == 0.5
    assert result["any_of_4"].n == 2
    assert result[""].value == 1 / 8


def test_incomplete_groups_are_left_out_and_said(batch):
    texts = ["a red circle"] * 4 + ["two circles"] * 3
    evaluator = SceneAccuracy(samples_per_prompt=4)
    evaluator.update(batch("generated", draw(texts), prompts=texts))
    total, *rows = evaluator.compute()
    assert {r.name: r.n for r in rows}["scene_accuracy/any_of_4"] == 1
    assert "any_of_4 leaves out 3 pictures" in total.warnings[0]


def test_a_pair_counts_when_both_are_right(batch):
    texts = ["a red circle and a blue square", "a red square and a blue circle", "a circle"]
    images = draw(texts)
    images[1] = images[0]
    evaluator = SceneAccuracy()
    evaluator.update(batch("generated", images, prompts=texts))
    rows = {score.name: score for score in evaluator.compute()}
    assert rows["scene_accuracy/color_attr"].value == 0.5
    assert rows["scene_accuracy/binding_pairs"].value == 0
    assert rows["scene_accuracy/binding_pairs"].n == 1


def test_pairs_are_found_whatever_the_words_and_used_once():
    texts = [
        "a red circle left of a blue square",
        "a circle and a square",
        "a red square right of a blue circle",
        "a red circle left of a blue square",
        "a blue circle above a red square",
    ]
    assert binding_pairs([ask(text) for text in texts]) == [(0, 2)]
    assert binding_pairs([ask(text) for text in [*texts, texts[2]]]) == [(0, 2), (3, 5)]
    assert binding_pairs([ask("a red circle left of a blue circle")] * 2) == []


def test_groups_keep_their_order():
    groups, rest = groups_of(2, ["a", "b", "a", "b", "a"], [True, False, False, False, True])
    assert groups == [[True, False], [False, False]]
    assert rest == 1


def test_verdicts_by_picture_are_for_pairing(batch):
    texts = ["a red circle", "two circles", "a blue square"]
    evaluator = SceneAccuracy()
    images = draw(texts)
    evaluator.update(batch("generated", images[[0, 0, 2]], prompts=texts, first_id=5))
    total, one_object, *_ = evaluator.compute()
    assert total.per_picture == {5: 1.0, 6: 0.0, 7: 1.0}
    assert one_object.name == "scene_accuracy/one_object"
    assert one_object.per_picture == {5: 1.0, 7: 1.0}


def test_results_are_written_in_genevals_shape(batch, prompts, tmp_path):
    file, every = prompts
    out = tmp_path / "results" / "results.jsonl"
    measure(batch, one_too_few, every[:6], prompts=str(file), results=str(out))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["tag"] for line in lines] == list(TASKS)
    assert [line["correct"] for line in lines] == [True, False, False, True, False, False]
    assert all(bool(line["reason"]) != line["correct"] for line in lines)
    assert lines[2]["reason"].startswith("expected ")
    for line, prompt in zip(lines, every, strict=False):
        assert line["prompt"] == prompt.text
        assert from_record(json.loads(line["metadata"])) == prompt


def test_prompts_that_are_no_captions_are_judged_by_their_file(batch, tmp_path):
    record = {"tag": "counting", "include": [{"class": "circle", "count": 3}], "prompt": "3 rings"}
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(record))
    evaluator = SceneAccuracy(prompts=str(file))
    images = draw(["three circles", "two circles"])
    evaluator.update(batch("generated", images, prompts=["3 rings"] * 2))
    total, counting, *_ = evaluator.compute()
    assert (total.value, counting.name) == (0.5, "scene_accuracy/counting")
    assert len(evaluator.provenance()["prompts_sha256"]) == 64
    with pytest.raises(ValueError, match="cannot read the prompt 'a red circle'"):
        evaluator.update(batch("generated", images[:1], prompts=["a red circle"], first_id=2))


CIRCLE = {"tag": "colors", "include": [{"class": "circle", "count": 1}], "prompt": "a ring"}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([CIRCLE, {**CIRCLE, "tag": "other"}], "'a ring' is there twice, unlike"),
        ([{**CIRCLE, "tag": "count"}], "tag 'count' is the name of another row"),
        ([{**CIRCLE, "include": [{"class": "cat", "count": 1}]}], "line 1: class='cat'"),
    ],
)
def test_unfit_files_are_refused_before_any_picture(tmp_path, records, message):
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(ValueError, match=message):
        SceneAccuracy(prompts=str(file))


def test_no_samples_per_prompt_is_refused():
    with pytest.raises(ValueError, match="samples_per_prompt must be 1 or more, got 0"):
        SceneAccuracy(samples_per_prompt=0)
