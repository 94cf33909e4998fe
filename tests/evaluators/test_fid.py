"""FID's file is the genuine one or is refused or flagged; its rows say layer, n and resize."""

import hashlib
import shutil
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tinydiffusion import registry
from tinydiffusion.evaluators.fid import FID
from tinydiffusion.feature_extractors import inception
from tinydiffusion.feature_extractors.inception import Inception
from tinydiffusion.metrics.features import shared_extractor
from tinydiffusion.runtime.errors import MissingWeightsError, WeightsError


@pytest.fixture
def fid(inception_weights):
    return FID(weights=inception_weights, allow_unverified=True, layer=64)


@pytest.mark.parametrize(
    ("name", "resize"),
    [("fid", "TF1 bilinear"), ("fid_clean", "PIL bicubic"), ("fid_pt", "bilinear, half-pixel")],
)
def test_row_names_the_layer_and_flags_weights_and_size(
    name, resize, inception_weights, batch, pictures
):
    options = {"weights": inception_weights, "allow_unverified": True, "layer": 64}
    evaluator = registry.create("evaluator", name, **options)
    for source in ("generated", "reference"):
        evaluator.update(batch(source, pictures(4, 32)))
    (row,) = evaluator.compute()
    assert evaluator.provenance()["resize"].startswith(resize)
    assert row.name == f"{name}[64]"
    assert row.value < 1e-3
    assert (row.n, row.details["n_reference"]) == (4, 4)
    assert any("4 pictures for 64 features" in warning for warning in row.warnings)
    assert any("not verified" in warning for warning in row.warnings)


def test_only_the_papers_layer_has_the_bare_name(inception_weights):
    assert FID(weights=inception_weights, allow_unverified=True).name == "fid"


def test_metrics_of_one_network_share_it_and_its_features(inception_weights, pictures, monkeypatch):
    options = {"weights": inception_weights, "allow_unverified": True}
    spelled_out = shared_extractor("inception", **options, layer=2048, resize="tf1")
    assert shared_extractor("inception", **options) is spelled_out
    logits = shared_extractor("inception", **options, layer="logits")
    network = logits.extractor.network
    assert network is spelled_out.extractor.network
    images = pictures(1, 32)
    features = spelled_out(images)
    monkeypatch.setattr(network, "_run", None)  # whatever comes now is remembered
    torch.testing.assert_close(logits(images), features @ network.classes.T)


def test_provenance_tells_the_foreign_file(inception_weights, fid):
    expected = hashlib.sha256(Path(inception_weights).read_bytes()).hexdigest()
    record = fid.provenance()
    assert (record["weights_sha256"], record["verified"]) == (expected, False)
    assert record["resize"] == "TF1 bilinear, asymmetric grid, to 299 x 299"
    assert (record["layer"], record["antialias"]) == ("64", False)


def test_safetensors_hold_the_same_network(inception_weights, pictures, tmp_path):
    path = tmp_path / "inception.safetensors"
    save_file(torch.load(inception_weights, weights_only=True), path)
    images = pictures(1, 32)
    one, other = (
        Inception(weights=str(file), allow_unverified=True)(images)
        for file in (inception_weights, path)
    )
    torch.testing.assert_close(one, other)
    assert one.shape == (1, 2048)


def test_a_foreign_file_is_refused_by_default(inception_weights):
    with pytest.raises(WeightsError, match="the FID Inception has 6726825d"):
        FID(weights=inception_weights)


def test_a_file_with_code_or_other_tensors_is_refused(tmp_path):
    path = tmp_path / "bad.pth"
    for content, message in [
        ({"fc.weight": print}, "Weights only load failed"),
        ({"fc.weight": 3}, "must hold named tensors and nothing else"),
        ([torch.ones(2)], "must hold named tensors and nothing else"),
        ({"fc.weight": torch.ones(2)}, "does not hold the Inception tensors"),
    ]:
        torch.save(content, path)
        with pytest.raises(WeightsError, match=message):
            Inception(weights=str(path), allow_unverified=True)
    for name in ("bad.pth", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"not a weights file")
        with pytest.raises(WeightsError, match=f"cannot read the weights file .*{name}"):
            Inception(weights=str(tmp_path / name), allow_unverified=True)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"no weights file .*nowhere\.pth"):
        FID(weights=str(tmp_path / "nowhere.pth"))


def test_weights_of_nan_end_in_one_line(inception_weights, batch, pictures, tmp_path):
    tensors = torch.load(inception_weights, weights_only=True)
    tensors["Conv2d_1a_3x3.conv.weight"][0, 0, 0, 0] = torch.nan
    path = tmp_path / "broken.pth"
    torch.save(tensors, path)
    evaluator = FID(weights=str(path), allow_unverified=True, layer=64)
    with pytest.raises(ValueError, match="features of 3 of 3 pictures are NaN or infinite"):
        evaluator.update(batch("generated", pictures(3, 32)))


def test_without_network_the_error_says_where_the_file_belongs(tmp_path, monkeypatch):
    def offline(url, path, sha256):
        assert sha256 == inception.WEIGHTS_SHA256
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TINYDIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(MissingWeightsError, match=r"put that .*cache.* or name it .* weights="):
        FID()


def test_a_genuine_download_is_kept_and_verified(tmp_path, monkeypatch, inception_weights):
    """With the genuine hash exchanged for the random file's, since the real one is 95 MB."""
    calls = []

    def download(url, path, sha256):
        calls.append(url)
        shutil.copy(inception_weights, path)

    digest = hashlib.sha256(Path(inception_weights).read_bytes()).hexdigest()
    monkeypatch.setenv("TINYDIFFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", digest)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(inception, "_network", lambda path, sha256: torch.nn.Identity())
    assert Inception().spec()["verified"]
    assert Inception().spec()["verified"]
    assert len(calls) == 1
