"""Proves that a model folder with any bytes changed is refused in one line, or is a whole model."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_toys import contents, random_model, seal

from tinydiffusion.model_folder import opening
from tinydiffusion.model_folder.layout import INDEX, WEIGHTS
from tinydiffusion.model_folder.opening import ModelFolderError
from tinydiffusion.pipeline import TextToImage

FILES = [
    INDEX, "network/config.json", f"network/{WEIGHTS}",
    "text_encoder/config.json", f"text_encoder/{WEIGHTS}",
]  # fmt: skip
QUICK = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "model"
    random_model().save_pretrained(path)
    return path


def opened(folder: Path) -> tuple[TextToImage | None, str]:
    """The model, or why there is none."""
    try:
        return TextToImage.from_pretrained(folder), ""
    except ModelFolderError as error:
        return None, str(error)


def check(folder: Path, name: str, data: bytes, *, sealed: bool) -> None:
    """With the file's bytes replaced, the folder is refused in one line or opens."""
    with tempfile.TemporaryDirectory() as place:
        copy = shutil.copytree(folder, Path(place) / "copy")
        (copy / name).write_bytes(data)
        if sealed and name != INDEX:
            seal(copy)
        model, message = opened(copy)
    assert message.isprintable()
    assert len(message) < 1000
    if model is None:
        return
    assert data == contents(folder)[name] or sealed or name == INDEX
    weights = [*model.network.state_dict().values(), *model.text_encoder.state_dict().values()]
    assert all(torch.isfinite(tensor).all() for tensor in weights)
    assert len(model.image_shape) == 3


def mutated(data: bytes, draw) -> bytes:
    """A few bytes changed, a piece cut out, doubled or zeroed, or the end cut off."""
    first = draw(st.integers(0, min(len(data), 4000) - 1))  # headers are where it hurts
    last = draw(st.integers(first, min(len(data), first + 50)))
    middle = draw(
        st.one_of(
            st.just(b""),
            st.just(b"\0" * (last - first)),
            st.just(2 * data[first:last]),
            st.binary(max_size=8),
            st.sampled_from([b"9", b"99999999999", b"-1", b"NaN", b"[", b'"', b"null", b"1e9"]),
        )
    )
    return data[:first] + middle + (data[last:] if draw(st.booleans()) else b"")


@pytest.mark.parametrize("name", FILES)
@QUICK
@given(data=st.data())
def test_changed_bytes(folder, name, data):
    whole = (folder / name).read_bytes()
    check(folder, name, mutated(whole, data.draw), sealed=data.draw(st.booleans()))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(value, path=()):
    """Paths to everything inside."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(min(len(value), 3)):
            yield from places(value[key], (*path, key))


@pytest.mark.parametrize("name", [INDEX, "network/config.json", "text_encoder/config.json"])
@QUICK
@given(data=st.data())
def test_a_changed_value(folder, name, data):
    whole = json.loads((folder / name).read_text())
    *path, last = data.draw(st.sampled_from([p for p in places(whole) if p]))
    value = whole
    for key in path:
        value = value[key]
    if isinstance(value, dict) and data.draw(st.booleans()):
        del value[last]
    else:
        value[last] = data.draw(VALUES)
    check(folder, name, json.dumps(whole).encode(), sealed=True)


@pytest.mark.parametrize("name", [f"network/{WEIGHTS}", f"text_encoder/{WEIGHTS}"])
@QUICK
@given(data=st.data())
def test_a_changed_header_of_the_right_length(folder, name, data):
    """Names, shapes, formats and places of tensors, in a header that is JSON."""
    whole = (folder / name).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    tensor = data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
    key = data.draw(st.sampled_from(["shape", "dtype", "data_offsets", None]))
    if key is None:
        header[data.draw(st.text(max_size=5))] = header.pop(tensor)
    else:
        numbers = st.lists(st.integers(-1, 2**65), max_size=4)
        formats = st.sampled_from(["F16", "F64", "I64", "F8_E4M3", "BOOL", "x"])
        header[tensor][key] = data.draw(st.one_of(numbers, formats, VALUES))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    check(folder, name, len(text).to_bytes(8, "little") + text + whole[8 + length :], sealed=True)


@QUICK
@given(st.binary(max_size=300))
def test_the_message_is_one_line_whatever_the_bytes(folder, data):
    check(folder, "network/config.json", data, sealed=True)
    text = opening._one_line(ValueError(data.decode("latin-1")))
    assert text.isprintable()
