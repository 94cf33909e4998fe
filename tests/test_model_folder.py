"""Proves that a model folder comes back as it was saved, and saving never loses the old one."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from model_toys import contents, random_model
from safetensors.torch import load_file

from tinydiffusion import registry
from tinydiffusion.model_folder import saving
from tinydiffusion.model_folder.layout import CHECKSUMS, INDEX, WEIGHTS
from tinydiffusion.model_folder.opening import ModelFolderError
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.runtime import durable
from tinydiffusion.runtime.errors import NonFiniteError
from tinydiffusion.text_encoders.clip import ClipTextEncoder

FILES = [
    INDEX, "network/config.json", f"network/{WEIGHTS}",
    "text_encoder/config.json", f"text_encoder/{WEIGHTS}",
]  # fmt: skip
PROMPTS = ["a red circle", "two blue squares"]


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return random_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The model folder once more, to be damaged."""
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_loaded_model_makes_the_same_pictures(model, folder):
    loaded = TextToImage.from_pretrained(folder, precision="float32")
    assert loaded.config == model.config
    assert torch.equal(loaded.generate(PROMPTS, seed=3), model.generate(PROMPTS, seed=3))


def test_a_loaded_model_is_saved_as_the_same_bytes(folder, tmp_path):
    TextToImage.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)


def test_no_file_of_the_folder_is_a_pickle(folder):
    for name, data in contents(folder).items():
        assert Path(name).suffix in {".json", ".safetensors", ".py"}
        assert not data.startswith((b"PK", b"\x80", b"\x1f\x8b")), name  # zip, pickle, gzip
        if not name.endswith(".safetensors"):
            data.decode("utf-8")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(ModelFolderError, match=f"{name} is missing"):
        TextToImage.from_pretrained(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(copy, name):
    (copy / name).write_bytes((copy / name).read_bytes()[:-100])
    with pytest.raises(ModelFolderError, match=name):
        TextToImage.from_pretrained(copy)


def test_a_flipped_bit_of_a_weight_is_named(copy):
    file = copy / "network" / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelFolderError, match=f"network/{WEIGHTS} .* sha256 is not the one in"):
        TextToImage.from_pretrained(copy)


# ---- saving ----------------------------------------------------------------------------------


class Encoder(ClipTextEncoder):
    """Has an option that is a path, and one whose name only sounds like one."""

    def __init__(self, *, cache_dir: str | Path | None = None, num_files: int = 1):
        raise AssertionError("nothing is built here")

    def config(self):
        return {**super().config(), "cache_dir": "/home/me", "num_files": 3}


def test_options_that_are_paths_stay_at_home(model, tmp_path, monkeypatch):
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda k, n: Encoder if n == "clip" else load(k, n))
    config = model.config
    secret = {"name": "clip", "width": 32, "cache_dir": "/home/me", "num_files": 3}
    changed = type(config)(**{**vars(config), "text_encoder": secret})
    encoder = deepcopy(model.text_encoder)
    encoder.__class__ = Encoder
    TextToImage(model.network, encoder, changed, model.image_shape).save_pretrained(
        tmp_path / "model"
    )
    saved = json.loads((tmp_path / "model/text_encoder/config.json").read_text())
    assert saved["num_files"] == 3
    assert "cache_dir" not in saved
    for name in ("model_index.json", "network/config.json", "text_encoder/config.json"):
        assert "/home/me" not in (tmp_path / "model" / name).read_text()


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    model = random_model()
    with torch.no_grad():
        model.network.conv_out.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"network tensor 'conv_out.bias' holds NaN"):
        model.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_files_is_not_touched(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is there, but no model"):
        model.save_pretrained(tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_a_file_in_the_place_of_the_folder_is_not_touched(model, tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ValueError, match="is there, but no model"):
        model.save_pretrained(tmp_path / "model")
    assert contents(tmp_path) == {"model": b"mine"}


def test_other_files_beside_a_model_stay(model, copy, folder):
    (copy / "README.md").write_text("a card")
    (copy / ".git").mkdir()
    (copy / ".git" / "HEAD").write_text("ref")
    (copy / "latest").symlink_to("nowhere")
    model.save_pretrained(copy)
    assert contents(copy) == {**contents(folder), "README.md": b"a card", ".git/HEAD": b"ref"}
    assert (copy / "latest").is_symlink()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_link_to_a_folder_stays_a_link(model, copy, folder):
    link = copy.with_name("link")
    link.symlink_to(copy)
    model.save_pretrained(link)
    assert link.is_symlink()
    assert contents(copy) == contents(folder)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in between catches it."""


def kill_at(monkeypatch, number: int) -> list[str]:
    """Stop at the file operation of that number; returns the names of those that were begun."""
    begun: list[str] = []

    def counted(name, operation):
        def step(*arguments, **options):
            begun.append(name)
            if len(begun) > number:
                raise Killed
            return operation(*arguments, **options)

        return step

    monkeypatch.setattr(saving, "write_synced", counted("write", durable.write_synced))
    monkeypatch.setattr(saving, "sync_folder", counted("sync", durable.sync_folder))
    monkeypatch.setattr(saving.shutil, "rmtree", counted("rmtree", shutil.rmtree))
    monkeypatch.setattr(Path, "rename", counted("rename", Path.rename))
    return begun


def test_a_kill_at_any_file_operation_leaves_a_whole_model(model, folder, tmp_path):
    """... under its name, or between two renames beside it; saving again is enough."""
    other = random_model()
    with torch.no_grad():
        other.network.conv_out.bias += 1
    for number in range(100):
        place = tmp_path / str(number) / "model"
        shutil.copytree(folder, place)
        with pytest.MonkeyPatch.context() as patch:
            begun = kill_at(patch, number)
            try:
                other.save_pretrained(place)
            except Killed:
                pass
            else:
                break
        trash = place.with_name(".trash-model")
        survivor = place if place.exists() else trash
        loaded = TextToImage.from_pretrained(survivor).network.state_dict()["conv_out.bias"]
        bias = [m.network.state_dict()["conv_out.bias"] for m in (model, other)]
        assert any(torch.equal(loaded, b) for b in bias), begun
        other.save_pretrained(place)
        assert [path.name for path in place.parent.iterdir()] == ["model"]
        assert TextToImage.from_pretrained(place).network.conv_out.bias.equal(bias[1])
    assert begun.count("rename") == 2
    assert number == len(begun) > 12


# ---- the hub's cache -------------------------------------------------------------------------


@pytest.fixture
def snapshot(folder, tmp_path) -> Path:
    """The folder as the hub's cache keeps it: links to blobs that are named by content."""
    repository = tmp_path / "hub" / "models--me--scenes"
    (repository / "blobs").mkdir(parents=True)
    place = repository / "snapshots" / "abc"
    for number, (name, data) in enumerate(sorted(contents(folder).items())):
        (repository / "blobs" / str(number)).write_bytes(data)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (2 + name.count("/"))
        (place / name).symlink_to(f"{up}blobs/{number}")
    return place


def test_a_snapshot_of_the_hub_opens(snapshot, model):
    loaded = TextToImage.from_pretrained(snapshot, precision="float32")
    assert torch.equal(loaded.generate(PROMPTS), model.generate(PROMPTS))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["../secret", "../../models--other--m/blobs/1"])
def test_a_snapshot_has_no_other_links(snapshot, name, where):
    target = snapshot.parents[1] / where
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((snapshot / name).read_bytes())
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(target)
    with pytest.raises(ModelFolderError, match=f"{name} is a link out of the model folder"):
        TextToImage.from_pretrained(snapshot)


def test_the_index_has_the_checksum_of_every_file_that_is_read(folder):
    index = json.loads((folder / INDEX).read_text())
    assert sorted(index[CHECKSUMS]) == sorted(FILES[1:])
    assert load_file(folder / "network" / WEIGHTS)
