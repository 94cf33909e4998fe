"""Numbers equal those of torch-fidelity, pytorch-fid, clean-fid and prdc.

One Inception file of random weights in the genuine layout; the pictures differ enough for it to
tell them apart.
"""

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import calculate_metrics
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from tinydiffusion.evaluators.fid import FID
from tinydiffusion.evaluators.fid_clean import CleanFID
from tinydiffusion.evaluators.fid_pt import PytorchFID
from tinydiffusion.evaluators.inception_score import InceptionScore
from tinydiffusion.evaluators.kid import KID
from tinydiffusion.evaluators.prdc import PRDC
from tinydiffusion.feature_extractors.inception import Inception
from tinydiffusion.metrics.statistics import (
    Moments,
    frechet_distance,
    frechet_distance_of_features,
)

EXTRA = "it comes with the extra 'parity'"


def patches(n, size, seed):
    """Coarse coloured patches, on a finer grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    fine = torch.rand(n, 3, size, size, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (255 * (0.8 * smooth + 0.2 * fine)).clamp(0, 255).byte()


@pytest.fixture(scope="module")
def sets():
    """Generated and reference pictures; the reference is darker."""
    made = {}

    def make(n, size):
        if (n, size) not in made:
            made[n, size] = patches(n, size, seed=0), patches(n, size, seed=1) // 3 * 2
        return made[n, size]

    return make


@pytest.fixture(scope="module")
def folders(sets, tmp_path_factory):
    """The same pictures as two folders of PNGs."""

    @cache
    def write(n, size):
        root = tmp_path_factory.mktemp(f"{n}x{size}")
        for name, images in zip(("generated", "reference"), sets(n, size), strict=True):
            (root / name).mkdir()
            for i, image in enumerate(images):
                file = root / name / f"{i:03}.png"
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
        return str(root / "generated"), str(root / "reference")

    return write


@pytest.fixture
def pytorch_fid(inception_weights, monkeypatch):
    module = pytest.importorskip("pytorch_fid", reason=EXTRA)
    from pytorch_fid import fid_score, inception

    tensors = torch.load(inception_weights, weights_only=True)
    assert len(tensors) == 566
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: tensors)
    module.fid_score, module.inception = fid_score, inception
    return module


def value(evaluator, batch, sets):
    for source, images in zip(("generated", "reference"), sets, strict=True):
        for first in range(0, len(images), 25):
            evaluator.update(batch(source, images[first : first + 25], first_id=first))
    return evaluator.compute()[0].value


def torch_fidelity_fid(folders, weights, layer):
    metrics = calculate_metrics(
        input1=folders[0],
        input2=folders[1],
        feature_extractor_weights_path=weights,
        feature_layer_fid=str(layer),
        fid=True,
        cuda=False,
        verbose=False,
        save_cpu_ram=True,
    )
    return metrics["frechet_inception_distance"]


def clean_features(module, images, block):
    """clean-fid's resize before pytorch-fid's network of the same weights."""
    from cleanfid.resize import build_resizer

    network = module.inception.InceptionV3([block], resize_input=False, normalize_input=False)
    resize = build_resizer("clean")
    features = []
    for image in images.permute(0, 2, 3, 1).numpy():
        x = torch.from_numpy(resize(image)).permute(2, 0, 1)[None]
        with torch.no_grad():
            features.append(network.eval()((x - 128) / 128)[0].mean(dim=(2, 3)))
    return torch.cat(features).numpy()


# ---- the same network and resize -------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 512])
def test_features_of_every_layer_equal_pytorch_fid(pytorch_fid, inception_weights, sets, size):
    images = sets(2, size)[0]
    oracle = pytorch_fid.inception.InceptionV3([0, 1, 2, 3]).eval()
    with torch.no_grad():
        expected = [x.mean(dim=(2, 3)) for x in oracle(images.float() / 255)]
    options = {"weights": inception_weights, "allow_unverified": True, "resize": "pytorch"}
    for layer, features in zip((64, 192, 768, 2048), expected, strict=True):
        ours = Inception(layer=layer, **options)(images)
        torch.testing.assert_close(ours, features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [64, 512])
def test_clean_features_equal_clean_fid(pytorch_fid, inception_weights, sets, size):
    pytest.importorskip("cleanfid", reason=EXTRA)
    images = sets(2, size)[0]
    options = {"weights": inception_weights, "allow_unverified": True, "resize": "clean"}
    ours = Inception(layer=2048, **options)(images)
    expected = torch.from_numpy(clean_features(pytorch_fid, images, 3))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [64, 512])
def test_fid_equals_torch_fidelity(inception_weights, sets, folders, batch, size):
    """Also with far fewer pictures than features."""
    for layer in (64, 2048):
        ours = FID(weights=inception_weights, allow_unverified=True, layer=layer)
        expected = torch_fidelity_fid(folders(4, size), inception_weights, layer)
        assert value(ours, batch, sets(4, size)) == pytest.approx(expected, rel=1e-4)


# ---- the same formula ------------------------------------------------------------------------


@pytest.mark.parametrize("n", [60, 12])
def test_frechet_distance_equals_every_library(n):
    generator = np.random.default_rng(0)
    mix = generator.normal(size=(32, 32))
    a, b = generator.normal(size=(n, 32)) @ mix, 1.3 * generator.normal(size=(n + 9, 32)) + 0.2
    features = torch.from_numpy(a), torch.from_numpy(b)
    moments = [Moments.zeros(32), Moments.zeros(32)]
    for part, rows in zip(moments, features, strict=True):
        part.add_(rows)
    statistics = [fid_features_to_statistics(rows) for rows in features]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(*moments) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance_of_features(*features) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("module", ["pytorch_fid.fid_score", "cleanfid.fid"])
def test_frechet_distance_equals_sqrtm(module):
    oracle = pytest.importorskip(module, reason=EXTRA)
    names = {
        "pytorch_fid.fid_score": "calculate_frechet_distance",
        "cleanfid.fid": "frechet_distance",
    }
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(60, 32)), 1.3 * generator.normal(size=(69, 32)) + 0.2
    statistics = [f(x) for x in (a, b) for f in (lambda x: x.mean(0), lambda x: np.cov(x.T))]
    expected = getattr(oracle, names[module])(*statistics)
    ours = frechet_distance_of_features(torch.from_numpy(a), torch.from_numpy(b))
    assert ours == pytest.approx(expected, rel=1e-7)


@pytest.fixture
def pixels(batch):
    """An evaluator fed with patches, by their pixels, and the features that it sees."""

    def feed(evaluator):
        for source, n, seed in (("generated", 60, 0), ("reference", 80, 1)):
            evaluator.update(batch(source, patches(n, 16, seed) // 10 * (10 - seed)))
        return evaluator, evaluator.features("generated"), evaluator.features("reference")

    return feed


PIXELS = {"name": "pixels", "size": 4}


@pytest.mark.parametrize(("num_subsets", "size"), [(100, 40), (1, 60)])
def test_kid_equals_torch_fidelity(pixels, num_subsets, size):
    kid = KID(extractor=PIXELS, subset_size=size, num_subsets=num_subsets)
    evaluator, generated, reference = pixels(kid)
    (row,) = evaluator.compute()
    expected = kid_features_to_metric(
        generated, reference, kid_subsets=num_subsets, kid_subset_size=size, verbose=False
    )
    assert row.value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)
    std = expected["kernel_inception_distance_std"]
    assert row.details["std_of_subsets"] == pytest.approx(std, rel=1e-6, abs=1e-12)


def test_kid_of_all_pictures_equals_torch_fidelitys_full_subset(batch):
    kid = KID(extractor=PIXELS)
    for source, seed in (("generated", 0), ("reference", 1)):
        kid.update(batch(source, patches(50, 16, seed)))
    expected = kid_features_to_metric(
        kid.features("generated"),
        kid.features("reference"),
        kid_subsets=1,
        kid_subset_size=50,
        verbose=False,
    )["kernel_inception_distance_mean"]
    assert kid.compute()[0].value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_equal_torch_fidelity(pixels, k):
    evaluator, generated, reference = pixels(PRDC(extractor=PIXELS, nearest_k=k))
    expected = prc_features_to_metric(generated, reference, prc_neighborhood=k, verbose=False)
    rows = evaluator.compute()
    assert 0 < rows[0].value < 1
    assert rows[0].value == pytest.approx(expected["precision"], rel=1e-5)
    assert rows[1].value == pytest.approx(expected["recall"], rel=1e-5)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_all_four_equal_prdc(pixels, k):
    oracle = pytest.importorskip("prdc", reason=EXTRA)
    evaluator, generated, reference = pixels(PRDC(extractor=PIXELS, nearest_k=k))
    expected = oracle.compute_prdc(reference.numpy(), generated.numpy(), k)
    for row in evaluator.compute():
        assert row.value == pytest.approx(expected[row.name.split("[")[0]], rel=1e-5)


def test_inception_score_equals_torch_fidelity(inception_weights, batch, sets):
    evaluator = InceptionScore(weights=inception_weights, allow_unverified=True, splits=2)
    evaluator.update(batch("generated", sets(5, 64)[0]))
    (row,) = evaluator.compute()
    expected = isc_features_to_metric(evaluator.features("generated"), splits=2)
    assert row.value == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert row.details["std"] == pytest.approx(expected["inception_score_std"], rel=1e-6)


# ---- two folders of 200 pictures -------------------------------------------------------------

# The pictures of one size in one test worker, which makes and writes them once.
SMALL, LARGE = (pytest.mark.xdist_group(f"folders of {size} px") for size in (64, 512))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("size", "layer"),
    [
        pytest.param(64, 64, marks=SMALL),
        pytest.param(64, 2048, marks=[SMALL, pytest.mark.slow]),
        pytest.param(512, 64, marks=LARGE),
    ],
)
class TestFolders:
    """Everything from the files on: reading, resize, network, moments, formula."""

    def test_fid(self, inception_weights, sets, folders, batch, size, layer):
        expected = torch_fidelity_fid(folders(200, size), inception_weights, layer)
        ours = FID(weights=inception_weights, allow_unverified=True, layer=layer)
        assert value(ours, batch, sets(200, size)) == pytest.approx(expected, rel=1e-4)

    def test_fid_pt(self, pytorch_fid, inception_weights, sets, folders, batch, size, layer):
        expected = pytorch_fid.fid_score.calculate_fid_given_paths(
            folders(200, size), batch_size=25, device="cpu", dims=layer, num_workers=0
        )
        ours = PytorchFID(weights=inception_weights, allow_unverified=True, layer=layer)
        assert value(ours, batch, sets(200, size)) == pytest.approx(expected, rel=1e-4)

    def test_fid_clean(self, pytorch_fid, inception_weights, sets, batch, size, layer):
        oracle = pytest.importorskip("cleanfid.fid", reason=EXTRA)
        block = {64: 0, 2048: 3}[layer]
        features = [clean_features(pytorch_fid, images, block) for images in sets(200, size)]
        expected = oracle.fid_from_feats(*features)
        ours = CleanFID(weights=inception_weights, allow_unverified=True, layer=layer)
        assert value(ours, batch, sets(200, size)) == pytest.approx(expected, rel=1e-3)
