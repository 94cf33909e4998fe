"""A whole checkpoint of another kind of run is refused as such, before anything is trained."""

import pytest
import torch
from training_toys import trainer

from tinydiffusion.training.checkpoints.folder import CheckpointError, CheckpointFolder

STATE = (
    "pictures_seen", "step", "skipped_steps", "loss_spikes", "rollbacks", "data_offset",
    "ema_updates", "spikes", "seconds", "hooked_at", "identity",
)  # fmt: skip
TENSORS = {
    "one less": lambda tensors, name: {n: t for n, t in tensors.items() if n != name},
    "one more": lambda tensors, name: {**tensors, "more": torch.zeros(2)},
    "another shape": lambda tensors, name: {**tensors, name: torch.zeros(7, 5)},
    "one number": lambda tensors, name: {**tensors, name: torch.zeros(())},
    "float64": lambda tensors, name: {**tensors, name: tensors[name].double()},
    "integers": lambda tensors, name: {**tensors, name: tensors[name].int()},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of a short run."""
    run = trainer(tmp_path_factory.mktemp("run"), num_pictures=8)
    run.train()
    return run.checkpoints.load()[1]


def assert_refused(tmp_path, checkpoint):
    path = CheckpointFolder(tmp_path / "other").save(checkpoint, pictures_seen=8)
    run = trainer(tmp_path / "run")
    with pytest.raises(CheckpointError):
        run.resume(path)


def test_all_of_the_state_is_tried(saved):
    assert {*STATE, "about"} == saved.state.keys()  # `about` is for `export` alone


@pytest.mark.parametrize("name", STATE)
def test_a_state_without_an_entry_is_refused(tmp_path, saved, name):
    state = {key: value for key, value in saved.state.items() if key != name}
    assert_refused(tmp_path, saved._replace(state=state))


@pytest.mark.parametrize("name", STATE)
def test_a_state_of_another_type_is_refused(tmp_path, saved, name):
    assert_refused(tmp_path, saved._replace(state={**saved.state, name: "many"}))


@pytest.mark.parametrize("change", TENSORS)
@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
def test_other_tensors_are_refused(tmp_path, saved, part, change):
    tensors = getattr(saved, part)
    name = min(name for name, tensor in tensors.items() if tensor.dim() > 1)
    changed = TENSORS[change](tensors, name)
    assert_refused(tmp_path, saved._replace(**{part: changed}))
