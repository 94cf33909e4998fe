"""Proves that the sanity ladder goes as far as a set allows, and says how far."""

import pytest
from PIL import Image

from tinydiffusion.cli.main import main
from tinydiffusion.run import sanity


@pytest.fixture
def climb(folder_config, tmp_path, monkeypatch, capsys):
    """The ladder on pictures with these captions: exit code, and the lines that it prints.

    Every check passes: what the model learns is not looked at here.
    """
    monkeypatch.setattr(sanity, "FIRST", 8)
    monkeypatch.setattr(sanity, "EACH_MORE", 8)
    monkeypatch.setattr(sanity, "BATCH_SIZE", 8)
    monkeypatch.setattr(sanity, "MAX_ERROR", 1.0)
    monkeypatch.setattr(sanity, "MIN_SHARE", 0.0)
    pictures = tmp_path / "pictures"
    pictures.mkdir()

    def climb(captions, *, colours=255) -> tuple[int, list[str]]:
        for i, caption in enumerate(captions):
            Image.new("RGB", (16, 16), (10 * i % colours, 0, 0)).save(pictures / f"{i:02}.png")
            (pictures / f"{i:02}.txt").write_text(caption)
        config = folder_config(pictures)
        code = main(["sanity", "--config", config, "--evaluation.metrics", "[]"])
        return code, capsys.readouterr().out.splitlines()

    return climb


@pytest.mark.parametrize(
    ("captions", "num_checks", "last"),
    [
        (["one"], 1, "; not checked: whether captions tell pictures apart"),
        (["same"] * 20, 1, "; not checked: whether captions tell pictures apart"),
        (["one", "two"], 3, "; not checked: more than 2 pictures at once"),
        ([f"class {i % 3}" for i in range(20)], 3, "; not checked: more than 3 pictures at once"),
        ([str(i) for i in range(15)], 3, "; not checked: more than 15 pictures at once"),
        ([str(i) for i in range(16)], 3, "sampler work together"),
        ([str(i) for i in range(20)], 3, "sampler work together"),
    ],
)
def test_a_set_is_checked_as_far_as_it_goes(climb, captions, num_checks, last):
    code, lines = climb(captions)
    assert code == 0
    assert len([line for line in lines if line.startswith("PASS")]) == num_checks
    assert last in lines[-1]
    assert ("not checked" in lines[-1]) == ("not checked" in last)


def test_pictures_that_are_equal_are_not_to_be_told_apart(climb):
    code, lines = climb(["one", "two", "three"], colours=10)
    assert code == 0
    assert "no two different pictures" in lines[-1]


def test_a_check_that_fails_is_told_beside_what_was_not_checked(climb, monkeypatch):
    monkeypatch.setattr(sanity, "MAX_ERROR", 0.0)
    code, lines = climb(["one", "two"])
    assert code == 1
    assert lines[-1].startswith("a check failed")
    assert "not checked" in lines[-1]
