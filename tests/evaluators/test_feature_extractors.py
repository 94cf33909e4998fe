"""Extractors give what their networks give; weights are fitted strictly and hashed; no network."""

import json

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from tinydiffusion import registry
from tinydiffusion.feature_extractors import dinov2
from tinydiffusion.feature_extractors.classifier import Classifier
from tinydiffusion.feature_extractors.dinov2 import DINOv2, _fit_positions
from tinydiffusion.feature_extractors.open_clip import OpenCLIP
from tinydiffusion.metrics.features import shared_extractor
from tinydiffusion.protocols import FeatureExtractor
from tinydiffusion.runtime.errors import MissingWeightsError, WeightsError

SMALL = "vit_small_patch14_dinov2"
SCENES = {"name": "scenes", "size": 32, "num_scenes": 200}


@pytest.fixture(scope="module")
def dinov2_weights(tmp_path_factory):
    """Random tensors in the layout of torch.hub: 37 x 37 positions and a mask token."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(SMALL, pretrained=False, num_classes=0)
        tensors = network.state_dict()
        tensors["pos_embed"] = torch.randn_like(tensors["pos_embed"]) * 0.02
    assert tensors["pos_embed"].shape == (1, 1370, 384)
    path = tmp_path_factory.mktemp("dinov2") / "dinov2_vits14_pretrain.pth"
    torch.save({**tensors, "mask_token": torch.zeros(1, 384)}, path)
    return path


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP as open_clip saves it, weights random."""
    folder = tmp_path_factory.mktemp("tiny-clip")
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = open_clip.CLIP(**model)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def classifier():
    return Classifier(dataset=SCENES, steps=40)


# ---- every extractor -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pixels", "classifier", "dinov2", "open_clip", "inception"])
def test_contract(name, dinov2_weights, clip_folder, inception_weights, pictures):
    options = {
        "pixels": {"size": 3},
        "classifier": {"dataset": SCENES, "steps": 2},
        "dinov2": {"weights": str(dinov2_weights), "model": SMALL},
        "open_clip": {"model": f"local-dir:{clip_folder}"},
        "inception": {"weights": inception_weights, "allow_unverified": True, "layer": 192},
    }[name]
    extractor = registry.create("feature_extractor", name, **options)
    assert isinstance(extractor, FeatureExtractor)
    images = pictures(3, 24)
    features = extractor(images)
    assert features.shape == (3, extractor.dimensions)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(extractor(images[1:2]), features[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features[0], features[1])
    spec = extractor.spec()
    assert {"name", "weights_sha256", "verified", "resize", "antialias", "dtype"} <= set(spec)
    json.dumps(spec, allow_nan=False)


def test_a_batch_goes_through_a_shared_extractor_once(pictures, monkeypatch):
    shared = shared_extractor("pixels", size=5)
    calls = []
    monkeypatch.setattr(
        shared, "extractor", lambda images: calls.append(1) or images.float()[:, :, 0, 0]
    )
    images = pictures(2, 8)
    assert shared(images) is shared_extractor("pixels", size=5)(images)
    shared(pictures(2, 8))
    assert len(calls) == 2


# ---- dinov2 ----------------------------------------------------------------------------------


def test_dinov2_is_timms_network_on_the_resized_picture(dinov2_weights, pictures):
    images = pictures(2, 224)
    network = timm.create_model(SMALL, pretrained=False, num_classes=0, img_size=224)
    tensors = torch.load(dinov2_weights, weights_only=True)
    del tensors["mask_token"]
    tensors["pos_embed"] = _fit_positions(tensors["pos_embed"])
    network.load_state_dict(tensors)
    mean, std = (torch.tensor(v)[:, None, None] for v in (dinov2.MEAN, dinov2.STD))
    with torch.no_grad():
        expected = network.eval()((images / 255 - mean) / std)
    extractor = DINOv2(weights=str(dinov2_weights), model=SMALL)
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-4)
    assert extractor.dimensions == 384


def test_dinov2_in_timms_layout_is_the_same(dinov2_weights, pictures, tmp_path):
    tensors = torch.load(dinov2_weights, weights_only=True)
    del tensors["mask_token"]
    save_file(tensors, tmp_path / "model.safetensors")
    one, other = (
        DINOv2(weights=str(path), model=SMALL)(pictures(1, 30))
        for path in (dinov2_weights, tmp_path / "model.safetensors")
    )
    torch.testing.assert_close(one, other)


def test_positions_are_stretched_as_dinov2_does_it():
    """By (16 + 0.1) / 37 and not by 16 / 37: output i samples input (i + 0.5) / scale - 0.5."""
    ramp = torch.arange(37.0).expand(37, 37).reshape(1, -1, 1)
    positions = torch.cat([torch.full((1, 1, 1), 7.0), ramp], dim=1)
    fitted = _fit_positions(positions)
    assert fitted.shape == (1, 257, 1)
    assert fitted[0, 0, 0] == 7
    row = fitted[0, 1:, 0].reshape(16, 16)[5]
    expected = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    # Cubic convolution keeps a ramp to 0.05; without the 0.1 the last is 0.2 away.
    torch.testing.assert_close(row[1:-1], expected[1:-1], rtol=0, atol=0.06)


def test_weights_that_are_not_dinov2_are_refused(dinov2_weights, inception_weights, tmp_path):
    with pytest.raises(WeightsError, match="does not hold DINOv2: it has no pos_embed"):
        DINOv2(weights=inception_weights, model=SMALL)
    with pytest.raises(WeightsError, match="does not hold vit_base_patch14_dinov2"):
        DINOv2(weights=str(dinov2_weights), model="vit_base_patch14_dinov2")
    tensors = torch.load(dinov2_weights, weights_only=True)
    del tensors["blocks.0.norm1.weight"]
    torch.save(tensors, tmp_path / "less.pth")
    with pytest.raises(WeightsError, match=r"Missing key.*blocks\.0\.norm1\.weight"):
        DINOv2(weights=str(tmp_path / "less.pth"), model=SMALL)
    with pytest.raises(MissingWeightsError, match=r"no weights file .*nowhere"):
        DINOv2(weights="nowhere.pth", model=SMALL)
    with pytest.raises(ValueError, match=r"no DINOv2 model 'resnet18'.*vit_small_patch14_dinov2"):
        DINOv2(weights=str(dinov2_weights), model="resnet18")


# ---- open_clip -------------------------------------------------------------------------------


def test_open_clip_is_encode_image_of_the_models_own_transform(clip_folder, pictures):
    from PIL import Image

    images = pictures(2, 40)
    network, transform = open_clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    inputs = [transform(Image.fromarray(x.permute(1, 2, 0).numpy())) for x in images]
    with torch.no_grad():
        expected = network.eval().encode_image(torch.stack(inputs))
    extractor = OpenCLIP(model=f"local-dir:{clip_folder}")
    torch.testing.assert_close(extractor(images), expected)
    assert extractor.spec()["name"] == f"local-dir:{clip_folder.name}"
    assert extractor.dimensions == 24


def test_open_clip_names_what_is_missing(tmp_path):
    with pytest.raises(MissingWeightsError, match="cannot load the open_clip model 'local-dir:"):
        OpenCLIP(model=f"local-dir:{tmp_path}")
    with pytest.raises(ValueError, match=r"no pretrained='nobody'.*openai"):
        OpenCLIP(model="ViT-B-32", pretrained="nobody")
    with pytest.raises(ValueError, match="leave out pretrained='openai'"):
        OpenCLIP(model=f"local-dir:{tmp_path}", pretrained="openai")


# ---- classifier ------------------------------------------------------------------------------


def test_classifier_is_a_function_of_data_and_seed(classifier):
    again = Classifier(dataset=SCENES, steps=40)
    other = Classifier(dataset=SCENES, steps=40, seed=1)
    assert again.spec() == classifier.spec()
    assert other.sha256 != classifier.sha256
    assert {"red", "circle", "triangle"} <= set(classifier.words)
    assert "a" not in classifier.words  # in every caption: it tells nothing


def test_classifier_learns(classifier):
    """Better than the words' frequencies, which is what a network that sees nothing would say."""
    from tinydiffusion.feature_extractors.classifier import _read, _words

    _, captions = _read(registry.create("dataset", **SCENES), 200)
    has_word = torch.tensor([[w in _words(c) for w in classifier.words] for c in captions])
    share = has_word.double().mean(dim=0)
    blind = -(share * share.log() + (1 - share) * (1 - share).log()).mean()
    assert classifier.loss < 0.9 * blind


def test_classifier_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    Classifier(dataset=SCENES, steps=1, max_pictures=2)
    torch.testing.assert_close(torch.rand(1), expected)


def test_classifier_names_wrong_options(tmp_path):
    with pytest.raises(ValueError, match="got steps=0"):
        Classifier(dataset=SCENES, steps=0)
    with pytest.raises(registry.PluginError, match="unknown dataset 'scene'"):
        Classifier(dataset={"name": "scene"})
