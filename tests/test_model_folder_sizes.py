"""Proves that a model folder that asks for too much, or cannot be, is refused at once."""

import json
import pickle
import shutil
import struct
import threading
import time
from pathlib import Path

import pytest
import torch
from model_toys import (
    MEGABYTES,
    SECONDS,
    assert_found,
    edit_json,
    peak,
    random_model,
    read_weights,
    refusal,
    seal,
)
from safetensors.torch import save_file

from tinydiffusion.model_folder.layout import INDEX, WEIGHTS
from tinydiffusion.model_folder.weights import (
    FolderWeightsError,
    TensorSpec,
    build_fitting,
    load_weights,
    read_header,
)
from tinydiffusion.text_encoders.open_clip import OpenClipTextEncoder

NETWORK, ENCODER = f"network/{WEIGHTS}", f"text_encoder/{WEIGHTS}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("attacks") / "model"
    random_model().save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


# ---- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("network", {"channels": [10**9, 10**9]}, "network/config.json"),
        ("network", {"channels": [8192, 8192]}, "network/config.json .* far more than the weig"),
        ("network", {"channels": [2**62, 2**62]}, "network/config.json"),
        ("network", {"channels": [32] * 20_000}, "network/config.json"),
        ("network", {"layers_per_block": 10**9}, "network/config.json"),
        ("network", {"layers_per_block": 10**30}, "network/config.json"),
        ("network", {"preview_size": 10**9}, "network/config.json"),
        ("network", {"text_dim": 10**9}, "network/config.json"),
        ("network", {"head_dim": 10**9}, "network/config.json"),
        ("network", {"channels": [64, 64]}, "network/config.json .*tensor '"),
        ("network", {"channels": []}, "network/config.json"),
        ("network", {"channels": "huge"}, "channels"),
        ("network", {"layer_per_block": 1}, "did you mean 'layers_per_block'"),
        ("text_encoder", {"width": 10**9}, "text_encoder/config.json"),
        ("text_encoder", {"layers": 10**9}, "text_encoder/config.json"),
        ("text_encoder", {"max_length": 10**9}, "max_length must be in"),
        ("text_encoder", {"merges": [["a"]]}, "text_encoder/config.json"),
        ("text_encoder", {"merges": [["a", "b"]] * 200}, "text_encoder/config.json"),
    ],
)
def test_a_config_that_asks_for_too_much_is_refused_at_once(copy, file, changes, message):
    edit_json(copy / file / "config.json", **changes)
    seal(copy)
    assert_found(message, refusal(copy))


@pytest.mark.parametrize(
    "shape",
    [
        [3, 2**40, 2**40], [10**6, 32, 32], [0, 32, 32], [3, -1, 32], [3, 32], [3, 32, 32, 32],
        [3, 32.0, 32], [True, 32, 32], ["3", 32, 32], "332", None, {}, [1, 32, 32],
    ],
)  # fmt: skip
def test_a_picture_size_that_cannot_be_is_refused(copy, shape):
    edit_json(copy / INDEX, image_shape=shape)
    refusal(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"diffusion.num_train_timesteps": 10**12},
        {"diffusion.num_train_timesteps": -1},
        {"diffusion.shift": 0},
        {"diffusion.prediction_type": "noise"},
        {"diffusion": None},
        {"dataset": {"name": 5}},
        {"sampling": {"sampler": ["euler"]}},
        {"seed": "0"},
        {"unknown": 1},
    ],
)
def test_a_config_out_of_range_is_refused(copy, changes):
    edit_json(copy / INDEX, **{f"tinydiffusion_config.{k}": v for k, v in changes.items()})
    assert INDEX in refusal(copy)


def header(length: int | None = None, **tensors) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(shape: list[int], begin: int = 0, end: int = 0, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0" * 7, b"\0" * 8, b"\xff" * 8, header(length=10**9, a=tensor([1], 0, 4)),
        header(a=tensor([2**40], 0, 2**42)), header(a=tensor([2**62, 2**62], 0, 4)) + b"\0" * 4,
        header(a=tensor([1], 0, 4)), header(a=tensor([1], 4, 8)) + b"\0" * 8,
        header(a=tensor([1], 0, 4), b=tensor([1], 0, 4)) + b"\0" * 4,
        header(a=tensor([-1], 0, 4)) + b"\0" * 4, header(a=tensor([1], 0, 4, "F1")) + b"\0" * 4,
        header(a=tensor([1], 0, 4)) + b"\0" * 5, header(**{str(i): tensor([0]) for i in range(9)}),
        struct.pack("<Q", 2**21) + b"[" * 2**21, struct.pack("<Q", 2) + b"{}",
        pickle.dumps({"a": 1}), b"PK\3\4" + b"\0" * 100,
    ],
)  # fmt: skip
def test_weights_with_a_header_that_lies_are_refused(copy, data):
    (copy / NETWORK).write_bytes(data)
    seal(copy)
    assert "network/" in refusal(copy)


def test_a_header_as_large_as_a_file_is_not_read(tmp_path):
    file = tmp_path / "a.safetensors"
    with file.open("wb") as stream:  # sparse: takes no space
        stream.write(struct.pack("<Q", 90 * 2**20))
        stream.truncate(91 * 2**20)
    with pytest.raises(FolderWeightsError, match="a header of 94371840 bytes"):
        read_header(file)


@pytest.mark.parametrize("change", ["missing", "more", "shape", "dtype"])
def test_other_tensors_than_the_config_asks_for_are_named(copy, change):
    weights = read_weights(copy / NETWORK)
    if change == "missing":
        del weights["conv_out.bias"]
    elif change == "more":
        weights["conv_out.bias2"] = torch.zeros(1)
    elif change == "shape":
        weights["conv_out.bias"] = torch.zeros(1)
    else:
        weights["conv_out.bias"] = weights["conv_out.bias"].half()
    save_file(weights, copy / NETWORK)
    seal(copy)
    assert "tensor 'conv_out.bias" in refusal(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [NETWORK, ENCODER])
def test_weights_that_are_no_numbers_are_refused(copy, name, value):
    weights = read_weights(copy / name)
    last = sorted(weights)[-1]
    weights[last].view(-1)[-1] = value
    save_file(weights, copy / name)
    seal(copy)
    assert f"{name} does not describe a model: tensor '{last}' holds NaN or" in refusal(copy)


def test_swapped_components_are_refused(copy):
    (copy / "network").rename(copy / "x")
    (copy / "text_encoder").rename(copy / "network")
    (copy / "x").rename(copy / "text_encoder")
    seal(copy)
    assert "unknown network 'clip'" in refusal(copy)


def test_components_of_different_models_are_refused(copy):
    edit_json(copy / INDEX, image_shape=[1, 32, 32])
    assert "in_channels is 3, the other files say 1" in refusal(copy)


# ---- the trial of open_clip's tower ----------------------------------------------------------

TOWER = {
    "embed_dim": 16,
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2},
}


def tower(**changes) -> OpenClipTextEncoder:
    return OpenClipTextEncoder(architecture={**TOWER, "text_cfg": {**TOWER["text_cfg"], **changes}})


@pytest.fixture(scope="module")
def tower_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("tower") / "a.safetensors"
    save_file(tower().state_dict(), file)
    return file


def test_open_clip_fits_its_own_weights(tower_file):
    built = build_fitting(tower, read_header(tower_file))
    load_weights(built, tower_file)
    for name, weights in read_weights(tower_file).items():
        assert torch.equal(built.state_dict()[name], weights)
    built.encode(["a red circle"])  # nothing of it is left on the meta device


@pytest.mark.parametrize(
    "changes",
    [{"layers": 10**9}, {"width": 10**9}, {"context_length": 10**6}, {"vocab_size": 10**12},
     {"mlp_ratio": 1e12}],
)  # fmt: skip
def test_a_tower_that_is_too_large_is_refused_at_once(tower_file, changes):
    header, start, before = read_header(tower_file), time.process_time(), peak()
    with pytest.raises((FolderWeightsError, RuntimeError, TypeError)):
        build_fitting(lambda: tower(**changes), header)
    assert time.process_time() - start < SECONDS
    assert peak() - before < MEGABYTES


def test_a_billion_layers_end_at_once():
    def build():
        return torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(10**9)))

    with pytest.raises(FolderWeightsError, match="far more than the weights hold"):
        build_fitting(build, {"0.weight": TensorSpec((1, 1), torch.float32)})
    torch.nn.Linear(1, 1)  # what watched is gone


def test_other_threads_may_build_what_they_like():
    """Only the thread that opens a stranger's model is watched."""
    built = []

    def elsewhere():
        built.append(torch.nn.Linear(5000, 5000))

    def build():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return torch.nn.Linear(1, 1, bias=False)

    build_fitting(build, {"weight": TensorSpec((1, 1), torch.float32)})
    assert [module.weight.device.type for module in built] == ["cpu"] * 2


def test_a_mask_that_the_weights_do_not_hold_counts_too():
    """A cheap file must not buy a buffer of its square."""

    def build():
        module = torch.nn.Linear(1, 1, bias=False)
        module.register_buffer("mask", torch.zeros(10**5, 10**5), persistent=False)
        return module

    with pytest.raises(FolderWeightsError, match=r"'mask' of shape \[100000, 100000\]"):
        build_fitting(build, {"weight": TensorSpec((1, 1), torch.float32)})


# ---- JSON ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "5", "{", "{}", '{"a": 1, "a": 1}', '{"a": NaN}', '{"a": -Infinity}',
        '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}", "[" * 100_000, '{"a":' * 100_000,
        '{"a":' * 33 + "1" + "}" * 33, '{"a": "' + "x" * 5_000_000 + '"}', "\ufeff{}", "{'a': 1}",
        '{"name": 5}', '{"name": null}', '{"name": "\\u001b[2J\\n"}', '{"name": "unet\\u0000"}',
        '{"name": ""}', '{"name": "../unet"}', '{"name": "_blocks"}', '{"name": "unet"}',
        '{"name": "unet", "\\ud800": 1}', '{"name": "unet", "self": 1}', b"\xff\xfe{\x00}\x00",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", [INDEX, "network/config.json"])
def test_other_json_is_refused(copy, name, text):
    data = text if isinstance(text, bytes) else text.encode()
    (copy / name).write_bytes(data)
    if name != INDEX:
        seal(copy)
    assert name in refusal(copy)


@pytest.mark.parametrize("key", ["_sha256", "image_shape", "tinydiffusion_config"])
@pytest.mark.parametrize("value", [None, [], {}, 5, "x", {"network/config.json": 1}])
def test_a_key_of_the_index_with_another_value_is_refused(copy, key, value):
    edit_json(copy / INDEX, **{key: value})
    if (key, value) == ("tinydiffusion_config", {}):
        return  # every default
    assert INDEX in refusal(copy)
