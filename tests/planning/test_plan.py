"""Proves that what a plan counts is what a run does, writes and computes; speed is not asserted."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tinydiffusion.abilities import EncodingAhead
from tinydiffusion.config import SamplingConfig, load
from tinydiffusion.layers.blocks import Attention
from tinydiffusion.planning import calls
from tinydiffusion.planning import disk as planning_disk
from tinydiffusion.planning import memory as planning_memory
from tinydiffusion.planning.calls import num_evaluations, num_rows, sampling_seconds
from tinydiffusion.planning.disk import checkpoint_bytes
from tinydiffusion.planning.plan import plan
from tinydiffusion.planning.step import Memory, measure_steps
from tinydiffusion.planning.table import print_plan
from tinydiffusion.run.train import _Run
from tinydiffusion.runtime.errors import DiskError
from tinydiffusion.runtime.processes import ALONE
from tinydiffusion.text_encoders.clip import ClipTextEncoder


def make(tiny, run_dir, *flags):
    return _Run(load(tiny, flags), run_dir, ALONE)


def step_cost(run):
    return measure_steps(run.trainer, {"network": run.pipeline.network})


def planned(run, **options):
    return plan(run.trainer, run.pipeline, run.reference, **options)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """The tiny run, as it is before its first step."""
    return make(tiny, tmp_path_factory.mktemp("plan") / "run")


@pytest.fixture(scope="module")
def weights(run):
    return {name: tensor.clone() for name, tensor in run.objective.state_dict().items()}


@pytest.fixture(scope="module")
def the_plan(run, weights):
    return planned(run, devices=(1, 3, 4))


# ---- counted ---------------------------------------------------------------------------------


def test_parameters_are_those_of_the_components(run, the_plan):
    model = the_plan.sections["model"]
    for name, module in (
        ("network", run.pipeline.network),
        ("text encoder", run.pipeline.text_encoder),
    ):
        assert model[name].value == sum(p.numel() for p in module.parameters())
        assert model[name][2:] == ("counted", "trained")


def test_forward_operations_have_the_closed_form(run, the_plan):
    """2 for every multiplication and addition of convolutions, linear layers and attention."""
    network, counts = run.pipeline.network, Counter()

    def count(module, inputs, output):
        rows = output.numel() // output.shape[1] if isinstance(module, nn.Conv2d) else None
        if isinstance(module, nn.Conv2d):
            counts["conv"] += 2 * rows * module.weight.numel()
        elif isinstance(module, nn.Linear):
            counts["linear"] += 2 * output.numel() // module.out_features * module.weight.numel()
        elif isinstance(module, Attention):
            x, context = inputs[:2]  # queries times keys, and weights times values
            counts["attention"] += 2 * 2 * x.numel() * context.shape[1]

    handles = [m.register_forward_hook(count) for m in network.modules()]
    encoder = run.pipeline.text_encoder
    with torch.no_grad():
        network(torch.zeros(8, 3, 16, 16), torch.zeros(8), encoder.encode(["a red circle"] * 8))
    for handle in handles:
        handle.remove()
    assert all(counts[kind] for kind in ("conv", "linear", "attention"))
    model = the_plan.sections["model"]
    assert model["network, forward"].value == sum(counts.values()) / 8
    forward = model["network, forward"].value + model["text encoder, forward"].value
    # products twice in the backward pass, except where nothing wants the gradient of the input
    assert 2.8 * forward < model["training step"].value <= 3 * forward * (1 + 1e-3)


def test_gradient_checkpointing_computes_more_and_holds_less(tiny, tmp_path, the_plan):
    saving = step_cost(make(tiny, tmp_path, "--network.gradient_checkpointing", "true"))
    model, memory = the_plan.sections["model"], the_plan.sections["memory"]
    assert saving.memory.activations < memory["activations"].value
    assert saving.flops > model["training step"].value
    assert saving.forward_flops["network"] == model["network, forward"].value


def test_memory_is_weights_gradients_moments_and_average(run, the_plan):
    memory = the_plan.sections["memory"]
    trained = 4 * sum(p.numel() for p in run.objective.parameters())
    assert memory["gradients"].value == memory["average (EMA)"].value == trained
    assert memory["weights"].value == trained + sum(b.nbytes for b in run.objective.buffers())
    steps = 4 * len(list(run.objective.parameters()))  # AdamW counts them per tensor
    assert memory["optimizer"].value == 2 * trained + steps
    names = ("weights", "gradients", "optimizer", "average (EMA)", "activations")
    assert memory["total"].value == sum(memory[name].value for name in names)
    assert memory["data set"].value == 32 * 3 * 16 * 16


def test_accumulation_holds_the_activations_of_a_part(tiny, tmp_path, the_plan):
    parts = step_cost(make(tiny, tmp_path, "--training.accumulation", "2"))
    whole = the_plan.sections["memory"]["activations"].value
    assert whole / 2.5 < parts.memory.activations < whole / 1.5
    flops = the_plan.sections["model"]["training step"].value
    assert parts.flops == pytest.approx(flops, rel=0.01)  # positions are embedded once per part


# ---- what a run then does --------------------------------------------------------------------


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_bytes_on_disk_are_those_of_the_run(finished, the_plan):
    disk = the_plan.sections["disk"]
    for checkpoint in (finished / "checkpoints").iterdir():
        assert disk["a checkpoint"].value == pytest.approx(folder_bytes(checkpoint), rel=0.05)
    assert disk["checkpoints"].value == 3 * disk["a checkpoint"].value
    assert disk["model/"].value == pytest.approx(folder_bytes(finished / "model"), rel=0.05)
    assert folder_bytes(finished / "samples") <= disk["samples/"].value
    assert folder_bytes(finished / "data") <= disk["log, data"].value
    parts = sum(disk[name].value for name in ("checkpoints", "model/", "samples/", "log, data"))
    assert disk["total"].value == parts


@pytest.mark.parametrize("modules", ["[text_encoder]", "[denoiser, text_encoder]"])
def test_a_checkpoint_of_another_optimizer_is_counted_too(tiny, tmp_path, modules):
    trainer = make(tiny, tmp_path / "run", "--training.muon_modules", modules).trainer
    trainer.learner.step([trainer.batches.batch_at(0)], 0.0)
    state = trainer.learner.checkpoint({"identity": trainer.identity})
    written = trainer.checkpoints.save(state, pictures_seen=0)
    assert checkpoint_bytes(trainer) == pytest.approx(folder_bytes(written), rel=0.05)


@pytest.mark.parametrize(
    ("sampler", "evaluations"), [("euler", 7), ("heun", 12), ("ddpm", 7), ("dpmpp_2m", 7)]
)
def test_network_evaluations_of_a_sampler(run, sampler, evaluations):
    sampling = type(run.config.sampling)(sampler=sampler, steps=7)
    assert num_evaluations(run.pipeline, sampling) == evaluations


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddpm", "dpmpp_2m"])
@pytest.mark.parametrize(
    "guidance",
    [{}, {"guidance_scale": 1.0}, {"guidance_interval": (0.5, 5.0)},
     {"guidance_interval": (0.5, 5.0), "guidance_scale": 1.0}],
    ids=["everywhere", "off", "interval", "interval, but off"],
)  # fmt: skip
def test_rows_of_a_picture_are_those_that_the_network_sees(run, sampler, guidance, monkeypatch):
    monkeypatch.setattr(run.pipeline.denoiser.network, "rows", 8)  # none is filled up
    sampling, rows = SamplingConfig(sampler=sampler, steps=5, **guidance), []
    network = run.pipeline.network
    with network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0]))):
        run.pipeline.generate(["a red circle"] * 8, sampling=sampling)
    assert num_rows(run.pipeline, sampling) == sum(rows) / 8


def test_seconds_of_a_picture_grow_with_the_rows(run, monkeypatch):
    """Two steps of which one is guided stand for ten of which four are, on a clock of rows."""
    clock = [0.0]
    network, config = run.pipeline.network, run.pipeline.config
    sampling = SamplingConfig(steps=10, guidance_interval=(0.5, 5.0))
    monkeypatch.setattr(run.pipeline, "config", replace(config, sampling=sampling))
    monkeypatch.setattr(calls, "perf_counter", lambda: clock[0])

    def tick(_, inputs):
        clock[0] += len(inputs[0])

    with network.register_forward_pre_hook(tick):
        assert sampling_seconds(run.pipeline, ["a red circle"] * 32) == 10 + 5


# ---- nothing is left -------------------------------------------------------------------------


def test_the_weights_stay_as_they_are(run, weights, the_plan):
    for name, tensor in run.objective.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_nothing_is_left_on_disk_and_metrics_on_the_way_are_planned_for(
    tiny, tmp_path, cache_folder, unchanged, the_plan
):
    flags = ("--evaluation.every", "16", "--evaluation.keep_best", "pixel_fd")
    sections = planned(make(tiny, tmp_path / "there" / "run", *flags)).sections
    assert list(tmp_path.iterdir()) == []
    assert unchanged(cache_folder.parent) == {}
    assert sections["time"]["metrics on the way"].note == "5 times, 64 pictures"
    assert sections["disk"]["best/"].value == 2 * sections["disk"]["model/"].value
    assert "best/" not in the_plan.sections["disk"]


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(planning_disk.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(DiskError, match=f"cannot write in {tmp_path}: Read-only file system"):
        planning_disk.bytes_per_second(tmp_path / "run", 1000)


# ---- what is said ----------------------------------------------------------------------------


def test_every_number_says_how_it_is_known(the_plan, capsys):
    print_plan(the_plan)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    for rows in the_plan.sections.values():
        for name, quantity in rows.items():
            assert any(f" {name} " in line and quantity.how in line for line in lines), name
    assert "3 devices cannot share the batch equally: set training.batch_size to 6 or 9" in lines
    assert lines[-1] == the_plan.summary
    assert "pictures/s: " in the_plan.summary
    assert "minutes of training" in the_plan.summary


def test_the_plan_as_json_has_every_number(the_plan, tmp_path):
    the_plan.save(tmp_path / "plan.json")
    read = json.loads((tmp_path / "plan.json").read_text())
    assert read["sections"].keys() == {"model", "time", "memory", "disk"}
    for name, rows in the_plan.sections.items():
        for row, quantity in rows.items():
            assert read["sections"][name][row] == quantity._asdict()
    assert [each["devices"] for each in read["devices"]] == [1, 3, 4]


def test_what_does_not_suffice_is_a_warning(tiny, tmp_path, monkeypatch):
    usage = planning_disk.shutil.disk_usage(tmp_path)
    little = usage._replace(free=5_000_000)
    monkeypatch.setattr(planning_disk.shutil, "disk_usage", lambda place: little)
    monkeypatch.setattr(planning_memory, "capacity_bytes", lambda device: 10_000)
    flags = ("--training.max_minutes", "0.01", "--training.num_pictures", "1000000")
    cut = planned(make(tiny, tmp_path / "run", *flags), devices=(1, 1000))
    time, memory, disk = cut.warnings
    assert cut.pictures_seen < 1_000_000
    assert time == (
        f"max_minutes 0.01 ends the run after about {cut.pictures_seen} of 1000000 pictures"
    )
    assert cut.devices[0].pictures_seen == cut.pictures_seen < cut.devices[1].pictures_seen
    assert "of memory are needed, 10 kB are free: raise training.accumulation" in memory
    assert cut.sections["memory"]["fit at once"].value == 0
    assert f"of disk are needed, 5 MB are free in {tmp_path}: lower training.keep" in disk


@pytest.mark.parametrize(("measured", "fitting"), [(1000, 50), (1100, 50), (1900, 25)])
def test_as_many_pictures_fit_as_activations_and_peak_allow(run, monkeypatch, measured, fitting):
    """10,000 bytes are left; 4 pictures take 800, or what grew without gradients and moments."""
    monkeypatch.setattr(planning_memory, "capacity_bytes", lambda device: 10_510)
    memory = Memory(110, 100, 200, 100, activations=800, measured=measured)
    dataset = run.trainer.batches.dataset
    rows = planning_memory.memory_rows(memory, torch.device("cpu"), 4, dataset)
    assert rows["fit at once"].value == fitting


class Ahead(ClipTextEncoder, EncodingAhead):
    """A frozen encoder that remembers what it has encoded, and says what that takes."""

    def encode(self, captions):
        self.run = {**vars(self).get("run", {}), **dict.fromkeys(captions)}
        return super().encode(captions)

    def encode_ahead(self, captions, share=(0, 1), progress=None):
        raise AssertionError("a plan leaves nothing")

    def bytes_for(self, captions):
        return 1000 * len(captions)


def test_states_of_a_frozen_encoder_are_planned_for(tiny, tmp_path):
    run = make(tiny, tmp_path / "run")
    encoder = run.objective.text_encoder.requires_grad_(False)
    encoder.__class__ = Ahead
    run.trainer = run._trainer({})
    sections = planned(run, captions=["a", "b", "a"]).sections
    assert sections["model"]["text encoder"].note == "frozen"
    assert sections["time"]["text states"].note.startswith("2 captions")
    assert sections["disk"]["text states"].value == 2000
    seen = [caption for k in range(3) for caption in run.trainer.batches.batch_at(8 * k)["caption"]]
    assert {"", "a", "b", *seen} <= encoder.run.keys()
    frozen = 4 * sum(p.numel() for p in encoder.parameters())
    memory = sections["memory"]
    assert memory["gradients"].value <= memory["weights"].value - frozen
