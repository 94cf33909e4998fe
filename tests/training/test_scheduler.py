"""The learning rate equals its closed form: linear up, level, 1 - sqrt down."""

import pytest

from tinydiffusion.training.schedule import learning_rate_factor, training_progress


@pytest.mark.parametrize(
    ("pictures_seen", "progress", "factor"),
    [
        (1, 0.0, 0.01),
        (50, 0.05, 0.5),
        (100, 0.1, 1.0),
        (500, 0.6, 1.0),
        (800, 0.75, 1.0),
        (850, 0.75 + 0.25 / 4, 0.5),  # 1 - sqrt(1/4)
        (900, 0.75 + 0.25 * 0.81, 0.1),
        (1000, 1.0, 0.0),
        (20, 0.75 + 0.25 / 4, 0.2),  # out of time during the warm-up
    ],
)
def test_closed_form(pictures_seen, progress, factor):
    found = learning_rate_factor(pictures_seen, progress, warmup_pictures=100, decay_fraction=0.25)
    assert found == pytest.approx(factor)


def test_without_warm_up_and_decay_it_is_constant():
    for progress in (0.0, 0.5, 1.0):
        assert learning_rate_factor(1, progress, warmup_pictures=0, decay_fraction=0.0) == 1


def test_progress_is_of_pictures_or_of_time_whichever_is_more():
    assert training_progress(30, 100, 5.0, None) == 0.3
    assert training_progress(30, 100, 5.0, 10.0) == 0.5
    assert training_progress(60, 100, 5.0, 10.0) == 0.6
    assert training_progress(60, 100, 99.0, 10.0) == 1
