"""Proves that a hub out of reach and damaged files end in one line that says what to do."""

import zipfile

import pyarrow
import pytest

from tinydiffusion.datasets.huggingface import HuggingFaceDataset
from tinydiffusion.datasets.huggingface_stream import HuggingFaceStreamDataset
from tinydiffusion.feature_extractors.open_clip import OpenCLIP
from tinydiffusion.runtime import hub
from tinydiffusion.text_encoders.open_clip import OpenClipTextEncoder

datasets = pytest.importorskip("datasets")
huggingface_hub = pytest.importorskip("huggingface_hub")

ERRORS = [
    ConnectionError("no route to host"),
    TimeoutError("timed out"),
    PermissionError(13, "Permission denied"),
    huggingface_hub.errors.OfflineModeIsEnabled("offline"),
    huggingface_hub.errors.LocalEntryNotFoundError("not in the cache"),
    huggingface_hub.errors.HTTPError("the server went away"),
    datasets.exceptions.DatasetNotFoundError("no such set"),
    pyarrow.ArrowInvalid("not Parquet"),
    zipfile.BadZipFile("not a zip file"),
    ValueError("BuilderConfig 'x' not found.\nThere are: ['a', 'b']"),
]
DATASETS = {
    "load_dataset": HuggingFaceDataset,
    "load_dataset_builder": HuggingFaceStreamDataset,
}


def raising(error):
    def call(*_, **__):
        raise error

    return call


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("function", DATASETS)
def test_a_name_on_the_hub(monkeypatch, function, error):
    monkeypatch.setattr(datasets, function, raising(error))
    with pytest.raises(ValueError, match="cannot load data set 'some/set'") as caught:
        DATASETS[function](path="some/set")
    message = str(caught.value)
    assert "\n" not in message
    assert str(error).split()[0] in message
    assert "set path to a folder" in message


def test_the_advice_says_where_was_looked(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert huggingface_hub.constants.ENDPOINT in hub.hub_advice("x")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in hub.hub_advice("x")
    assert str(huggingface_hub.constants.HF_HOME) in hub.hub_advice("x")


@pytest.mark.parametrize("plugin", [HuggingFaceDataset, HuggingFaceStreamDataset])
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.parquet", b"PAR1" + bytes(100)), ("a.parquet", b""), ("a.zip", b"PK\3\4" + bytes(100))],
)
def test_damaged_local_files(tmp_path, monkeypatch, plugin, name, content):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot load data set .*mend or remove") as caught:
        plugin(path=str(folder))
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there_is_not_called_a_name_on_the_hub(tmp_path):
    with pytest.raises(ValueError, match="there is no such path"):
        HuggingFaceDataset(path=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["iter", "open"])
def test_a_hub_that_goes_away_while_streaming(tmp_path, monkeypatch, where, error):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    columns = {"image": [{"bytes": None, "path": "memory://a.png"}], "text": ["x"]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "set" / "a.parquet")
    dataset = HuggingFaceStreamDataset(path=str(tmp_path / "set"), size=8, num_examples=1)
    if where == "iter":
        monkeypatch.setattr(datasets.IterableDataset, "iter", raising(error))
    else:
        monkeypatch.setattr("fsspec.open", raising(error))
    with pytest.raises(ValueError, match=r"cannot be read|cannot read memory://a.png") as caught:
        dataset[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_open_clip_models(monkeypatch, error):
    monkeypatch.setattr("open_clip.get_model_config", raising(error))
    monkeypatch.setattr("open_clip.create_model_from_pretrained", raising(error))
    with pytest.raises(ValueError, match=r"cannot load open_clip model .*local-dir:FOLDER") as text:
        OpenClipTextEncoder.from_captions([], model="hf-hub:some/model")
    with pytest.raises(ValueError, match="cannot load the open_clip model") as pictures:
        OpenCLIP(model="hf-hub:some/model")
    assert "\n" not in str(text.value) + str(pictures.value)
