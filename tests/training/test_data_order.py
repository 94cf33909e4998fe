"""Order, captions and augmentation depend on the seed and the position alone."""

import time
from itertools import islice

import pytest
import torch
from training_toys import FlippingPictures, RandomPictures

from tinydiffusion.training.data_order import (
    Batches,
    epoch_permutation,
    generator_for,
    on_tensors,
    seed_for,
)


def assert_same_batches(left, right):
    for a, b in zip(left, right, strict=True):
        assert a["id"] == b["id"]
        assert a["caption"] == b["caption"]
        assert torch.equal(a["image"], b["image"])


def test_epochs_are_different_permutations():
    orders = [epoch_permutation(0, epoch, 100) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(100))
    assert len({tuple(order.tolist()) for order in orders}) == 3
    assert not torch.equal(orders[0], epoch_permutation(1, 0, 100))


def test_seeds_are_the_same_on_every_machine():
    assert seed_for(0, "noise", 0) == 9144587515262914129
    assert seed_for(0, "noise", 1) != seed_for(0, "noise", 0) != seed_for(0, "order", 0)
    first, second = (torch.rand(4, generator=generator_for(5, "noise", 9)) for _ in range(2))
    assert torch.equal(first, second)


def test_generators_are_cheap():
    start = time.perf_counter()
    for position in range(1000):
        generator_for(0, "noise", position)
    assert time.perf_counter() - start < 0.5


def test_batches_are_cut_from_the_endless_concatenation_of_epochs():
    batches = Batches(RandomPictures(10), 4, 3)
    ids = [int(i) for b in islice(batches.starting_at(0), 5) for i in b["id"]]
    assert ids == [*epoch_permutation(3, 0, 10).tolist(), *epoch_permutation(3, 1, 10).tolist()]


def test_batch_larger_than_the_data_set():
    batch = Batches(RandomPictures(3), 8, 0).batch_at(2)
    assert batch["image"].shape == (8, 3, 4, 4)
    assert batch["image"].dtype == torch.uint8


@pytest.mark.parametrize("position", [0, 4, 7, 96])
def test_any_position_can_be_the_first(position):
    batches = Batches(FlippingPictures(10), 4, 3)
    assert_same_batches(
        islice(batches.starting_at(position), 3),
        [batches.batch_at(position + 4 * i) for i in range(3)],
    )


def test_workers_change_nothing():
    dataset = FlippingPictures(10)
    with_workers = Batches(dataset, 4, 3, num_workers=2).starting_at(8)
    assert_same_batches(islice(with_workers, 7), islice(Batches(dataset, 4, 3).starting_at(8), 7))
    with_workers.close()


def test_a_caption_is_drawn_anew_at_every_visit():
    batches = Batches(RandomPictures(1), 300, 0)
    captions = batches.batch_at(0)["caption"]
    for caption in ("0 a", "0 b", "0 c"):
        assert 60 < captions.count(caption) < 140


def test_only_augmented_data_sets_are_augmented():
    flips = [
        not torch.equal(image, RandomPictures(1)[0]["image"])
        for image in Batches(FlippingPictures(1), 200, 0).batch_at(0)["image"]
    ]
    assert 60 < sum(flips) < 140
    plain = Batches(RandomPictures(1), 20, 0).batch_at(0)["image"]
    assert all(torch.equal(image, RandomPictures(1)[0]["image"]) for image in plain)


class Broken(RandomPictures):
    def __getitem__(self, index):
        if index == 5:
            raise OSError("cannot read picture 5")
        return super().__getitem__(index)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_the_data_set_are_raised_here(num_workers):
    stream = Batches(Broken(), 4, 3, num_workers=num_workers).starting_at(0)
    with pytest.raises(OSError, match="cannot read picture 5"):
        list(islice(stream, 3))


def test_closing_does_not_wait_for_an_endless_stream():
    stream = Batches(RandomPictures(), 4, 3).starting_at(0)
    next(stream)
    start = time.perf_counter()
    stream.close()
    assert time.perf_counter() - start < 1


class Wrong(RandomPictures):
    def __getitem__(self, index):
        example = super().__getitem__(index)
        return {**example, **self.change} if index == 1 else example


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(3, 5, 4, dtype=torch.uint8)}, r"picture '1' .*\(3, 5, 4\)"),
        ({"caption": []}, "picture '1' has an empty list of captions"),
    ],
)
def test_bad_examples_are_named(change, message):
    dataset = Wrong(2)
    dataset.change = change
    with pytest.raises(ValueError, match=message):
        Batches(dataset, 2, 0).batch_at(0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="empty"):
        Batches(RandomPictures(0), 4)
    with pytest.raises(ValueError, match=r"batch_size must be at least 1.* got 0"):
        Batches(RandomPictures(), 0)


class Rated(RandomPictures):
    """Pictures with a weight and a rival each."""

    def __getitem__(self, index):
        more = {"weight": torch.tensor(float(index)), "loser": self.images[index].flip(-1)}
        return {**super().__getitem__(index), **more, "note": "no tensor"}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_tensor_of_an_example_travels(workers):
    batches = Batches(Rated(), 4, num_workers=workers)
    batch = next(batches.starting_at(8))
    assert batch.keys() == {"image", "caption", "id", "position", "weight", "loser"}
    assert batch["weight"].tolist() == [float(id_) for id_ in batch["id"]]
    assert torch.equal(batch["loser"], batch["image"].flip(-1))
    moved = on_tensors(batch, lambda tensor: tensor.to("meta"))
    assert {name for name, value in moved.items() if isinstance(value, torch.Tensor)} == {
        "image", "weight", "loser"
    }  # fmt: skip
    assert moved["loser"].device.type == "meta"


def test_a_tensor_that_one_example_lacks_is_named():
    class Ragged(Rated):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return example if index % 2 else {**example, "weight": torch.zeros(2)}

    with pytest.raises(ValueError, match=r"example '\d+' has no 'weight' of shape"):
        Batches(Ragged(), 4).batch_at(0)
