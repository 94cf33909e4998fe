"""Proves that a file of prompts is written, drawn from and judged by."""

import json

import pytest

from tinydiffusion.cli.main import main
from tinydiffusion.scenes.geneval import read_prompts
from tinydiffusion.scenes.tasks import TASKS


@pytest.fixture
def file(tmp_path):
    """Two prompts of each task, and a ladder."""
    file = tmp_path / "new" / "prompts.jsonl"
    assert main(["prompts", str(file), "--per-task", "2", "--ladders", "1"]) == 0
    return file


def test_the_file_is_of_all_tasks_in_genevals_format(file, capsys):
    tags = [prompt.tag for prompt in read_prompts(file)]
    assert tags.count("difficulty") == 5
    assert set(tags) == {*TASKS, "difficulty"}
    assert {"tag", "include", "prompt"} <= json.loads(file.read_text().splitlines()[0]).keys()
    again = file.with_name("b.jsonl")
    assert main(["prompts", str(again), "--per-task", "2", "--ladders", "1"]) == 0
    assert file.read_bytes() == again.read_bytes()
    assert "17 prompts of single_object, two_object" in capsys.readouterr().err


def test_a_model_is_judged_by_what_the_file_asks(model, file, tmp_path):
    out = tmp_path / "report.json"
    command = ["evaluate", model, "--metrics", "scene_accuracy", "--prompts", str(file)]
    assert main([*command, "--samples-per-prompt", "2", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    rows = {row["name"]: row for row in report["results"]}
    assert rows["scene_accuracy"]["n"] == 34
    assert {f"scene_accuracy/{task}" for task in TASKS} <= rows.keys()
    assert rows["scene_accuracy/any_of_2"]["n"] == 17
    assert "reference" not in report["context"]["sources"]  # no metric compares with one
    asked = [json.loads(line)["prompt"] for line in file.read_text().splitlines()]
    assert report["context"]["prompts"] == [prompt for prompt in asked for _ in range(2)]


def test_sample_draws_the_prompts_of_the_file(model, file, tmp_path):
    assert main(["sample", model, "--prompts", str(file), "--out", str(tmp_path / "s")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "s/metadata.jsonl").read_text().splitlines()]
    asked = [json.loads(line)["prompt"] for line in file.read_text().splitlines()]
    assert [row["text"] for row in rows] == asked


def test_prompts_of_a_text_file_stand_for_captions(model, tmp_path):
    file, out = tmp_path / "prompts.txt", tmp_path / "report.json"
    file.write_text("a red circle\r\n\na blue square\n")
    command = ["evaluate", model, "--metrics", "pixel_fd", "--prompts", str(file)]
    assert main([*command, "--out", str(out)]) == 0
    context = json.loads(out.read_text())["context"]
    assert context["prompts"] == ["a red circle", "a blue square"]
    assert context["sources"]["reference"]["n"] == 8


def test_a_file_that_cannot_be_used_is_named_before_anything_is_computed(model, tmp_path, mistake):
    (tmp_path / "a.jsonl").write_text("{")
    flags = ["--metrics", "pixel_fd", "--prompts", str(tmp_path / "a.jsonl")]
    line = mistake("evaluate", model, *flags)
    assert line == f"--prompts {tmp_path / 'a.jsonl'}: line 1 is not valid JSON: '{{'"


def test_a_folder_has_its_own_prompts(tmp_path, mistake):
    (tmp_path / "p.txt").write_text("a")
    flags = ["--metrics", "vendi", "--prompts", str(tmp_path / "p.txt")]
    assert "leave out prompts" in mistake("evaluate", str(tmp_path), *flags)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.txt"], "must end in .jsonl"),
        (["a.jsonl", "--per-task", "0"], "at least 1"),
        (["a.jsonl", "--ladders", "-1"], "--ladders and --seed must be 0 or more"),
    ],
)
def test_wrong_numbers_are_one_line(mistake, arguments, message):
    assert message in mistake("prompts", *arguments)
