"""FID equals torch-fidelity's on folders of pictures; foreign weights are refused or flagged."""

import hashlib
import shutil
import urllib.error
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch_fidelity import calculate_metrics
from torchvision.models import inception_v3

from tinydiffusion.evaluators.fid import FID
from tinydiffusion.feature_extractors import inception
from tinydiffusion.feature_extractors.inception import Inception, WeightsError


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random tensors under the genuine file's names."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    convolutions = (m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    for convolution in convolutions:  # He scale, so that pictures still differ behind 90 layers
        convolution.weight.data *= 6**0.5
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def fid(weights):
    return FID(weights=weights, allow_unverified=True)


@pytest.fixture
def sets(pictures):
    """Coarse coloured patches, which a random network can tell apart."""
    grids = pictures(12, 4)
    images = grids.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    return images[:6], images[6:] // 2


def write(images, folder):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:02}.png")
    return str(folder)


def test_equals_torch_fidelity(weights, fid, sets, batch, tmp_path):
    generated, reference = sets
    expected = calculate_metrics(
        input1=write(generated, tmp_path / "generated"),
        input2=write(reference, tmp_path / "reference"),
        feature_extractor_weights_path=weights,
        fid=True,
        cuda=False,
        verbose=False,
        save_cpu_ram=True,
    )["frechet_inception_distance"]
    fid.update(batch("generated", generated))
    fid.update(batch("reference", reference[:3]))
    fid.update(batch("reference", reference[3:], first_id=3))
    (row,) = fid.compute()
    assert row.value == pytest.approx(expected, rel=1e-4)
    assert row.details["n_reference"] == 6
    assert any("biased upwards" in warning for warning in row.warnings)
    assert any("not the FID Inception weights" in warning for warning in row.warnings)


def test_provenance_tells_the_foreign_file(weights, fid):
    expected = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    record = fid.provenance()
    assert (record["weights_sha256"], record["verified"]) == (expected, False)
    assert record["resize"] == "TF1 bilinear to 299 x 299"


def test_safetensors_hold_the_same_network(weights, fid, pictures, tmp_path):
    path = tmp_path / "inception.safetensors"
    save_file(torch.load(weights, weights_only=True), path)
    images = pictures(1, 32)
    features = Inception(weights=str(path), allow_unverified=True)(images)
    torch.testing.assert_close(features, fid.extractor(images))
    assert features.shape == (1, 2048)


def test_a_foreign_file_is_refused_by_default(weights):
    with pytest.raises(WeightsError, match="the FID Inception has 6726825d"):
        FID(weights=weights)


def test_a_file_with_code_or_other_tensors_is_refused(tmp_path):
    path = tmp_path / "bad.pth"
    torch.save({"fc.weight": print}, path)
    with pytest.raises(WeightsError, match="Weights only load failed"):
        Inception(weights=str(path), allow_unverified=True)
    torch.save({"fc.weight": torch.ones(2)}, path)
    with pytest.raises(WeightsError, match="does not hold the Inception tensors"):
        Inception(weights=str(path), allow_unverified=True)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"no Inception weights file .*nowhere\.pth"):
        FID(weights=str(tmp_path / "nowhere.pth"))


def test_without_network_the_error_says_where_the_file_belongs(tmp_path, monkeypatch):
    def offline(url, path, sha256):
        assert sha256 == inception.WEIGHTS_SHA256
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TINYDIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsError, match=r"put that file at .*cache.* or name it .* weights="):
        FID()


def test_a_genuine_download_is_kept_and_verified(tmp_path, monkeypatch, weights):
    """With the genuine hash exchanged for the random file's, since the real one is 95 MB."""
    calls = []

    def download(url, path, sha256):
        calls.append(url)
        shutil.copy(weights, path)

    digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    monkeypatch.setenv("TINYDIFFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", digest)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(inception, "_network", lambda path: torch.nn.Identity())
    assert FID().extractor.spec()["verified"]
    assert FID().extractor.spec()["verified"]
    assert len(calls) == 1
