"""Proves that validation losses compare over a run, and that a broken grid costs no run."""

import pytest
import torch

from tinydiffusion.build import build_dataset
from tinydiffusion.config import SamplingConfig
from tinydiffusion.evaluation.validation_loss import ValidationLoss
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.runtime.errors import NonFiniteError
from tinydiffusion.sampling.grids import SampleGrid, grid_prompts
from tinydiffusion.survey import evaluation_prompts


class Drawing(torch.nn.Module):
    """An objective whose loss is the mean of the pictures plus a random number."""

    def __init__(self):
        super().__init__()
        self.draws, self.ids, self.captions = [], [], []

    def loss(self, batch, generators):
        draws = [torch.rand((), generator=generator).item() for generator in generators]
        self.draws += draws
        self.ids += batch["id"]
        self.captions += batch["caption"]
        mean = batch["image"].float().mean() / 255
        return mean + sum(draws) / len(draws), {"brightness": mean}


def hook(dataset, **options):
    objective = Drawing()
    options = {"every": 10, "device": torch.device("cpu"), "bfloat16": False, **options}
    return ValidationLoss(objective, dataset, **options), objective


@pytest.fixture(scope="module")
def dataset():
    return build_dataset({"name": "scenes", "size": 16, "num_scenes": 10})


def test_the_noise_is_the_same_every_time_and_differs_between_pictures(dataset, tmp_path):
    validation, objective = hook(dataset, batch_size=4)
    results = [validation(seen, tmp_path, objective) for seen in (0, 500)]
    assert results[0] == results[1]
    assert objective.draws[:10] == objective.draws[10:]
    assert len(set(objective.draws)) == 10


def test_the_loss_is_the_mean_over_pictures(dataset, tmp_path):
    """... although the last batch has fewer."""
    validation, objective = hook(dataset, batch_size=4)
    row = validation(0, tmp_path, objective)
    loss = row["validation_loss"]
    pictures = [dataset[i]["image"].float().mean().item() / 255 for i in range(10)]
    assert loss == pytest.approx(sum(pictures + objective.draws) / 10)
    assert row["validation_brightness"] == pytest.approx(sum(pictures) / 10)
    assert objective.ids == [dataset[i]["id"] for i in range(10)]
    assert objective.captions == [dataset[i]["caption"][0] for i in range(10)]


def test_no_more_pictures_than_asked_for(dataset, tmp_path):
    validation, objective = hook(dataset, num_pictures=6, batch_size=4)
    validation(0, tmp_path, objective)
    assert len(objective.ids) == 6


def test_a_grid_that_is_not_finite_is_told_and_costs_nothing_else(model, tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise NonFiniteError("picture 3 is not finite")

    pipeline = TextToImage.from_pretrained(model)
    monkeypatch.setattr(pipeline, "generate", fail)
    grid = SampleGrid(pipeline, ["a"], every=10, seed=0)
    with pytest.warns(UserWarning, match="no grid at picture 40: picture 3 is not finite"):
        assert grid(40, tmp_path, torch.nn.Identity()) == {}


# ---- prompts of the grids --------------------------------------------------------------------


CAPTIONS = ["a", "b", "a", "c", "d", "e", "f"]


@pytest.mark.parametrize(
    ("num_prompts", "held_out", "origin"),
    [
        (4, 2, "2 captions of the training set, then 2 of the validation set"),
        (5, 2, "3 captions of the training set, then 2 of the validation set"),
        (1, 0, "1 captions of the training set"),
        (16, 8, "8 captions of the training set, then 8 of the validation set"),
    ],
)
def test_half_of_the_prompts_are_held_out(dataset, num_prompts, held_out, origin):
    sampling = SamplingConfig(num_prompts=num_prompts)
    prompts, told = grid_prompts(sampling, CAPTIONS, dataset)
    assert told == origin
    trained = num_prompts - held_out
    assert set(prompts[:trained]) <= set(CAPTIONS)
    assert len(set(prompts[:trained])) == min(trained, 6)  # none twice before all have come
    assert prompts[trained:] == evaluation_prompts(dataset, held_out)


def test_without_validation_all_prompts_are_of_training():
    prompts, told = grid_prompts(SamplingConfig(num_prompts=6), CAPTIONS, None)
    assert sorted(prompts) == list("abcdef")
    assert told == "6 captions of the training set"


def test_prompts_that_are_named_are_taken(dataset):
    prompts, told = grid_prompts(SamplingConfig(prompts=("x", "y")), CAPTIONS, dataset)
    assert (prompts, told) == (["x", "y"], "the 2 sampling.prompts")
