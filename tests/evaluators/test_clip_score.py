"""The CLIP score equals open_clip by hand, long prompts too, on a tiny random CLIP."""

import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tinydiffusion.evaluators.clip_score import CLIPScore

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
PROMPTS = ["a red circle", "a blue square", "word " * 100, "a dog", "five cats"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips") / "tiny"
    folder.mkdir()
    config = json.dumps({"model_cfg": MODEL, "preprocess_cfg": {}})
    (folder / "open_clip_config.json").write_text(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = open_clip.CLIP(**MODEL)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return f"local-dir:{folder}"


@torch.no_grad()
def by_hand(model, images, prompts):
    network, preprocess = open_clip.create_model_from_pretrained(model)
    tokens = open_clip.get_tokenizer(model)(prompts)
    pictures = [preprocess(Image.fromarray(x.permute(1, 2, 0).numpy())) for x in images]
    a = network.eval().encode_image(torch.stack(pictures))
    b = network.encode_text(tokens)
    return torch.nn.functional.cosine_similarity(a, b)


def test_equals_open_clip_by_hand(model, batch, pictures):
    images = pictures(5, 40)
    evaluator = CLIPScore(model=model)
    evaluator.update(batch("generated", images, prompts=PROMPTS))
    (row,) = evaluator.compute()
    cosines = by_hand(model, images, PROMPTS)
    assert row.value == pytest.approx(100 * cosines.mean().item(), abs=1e-5)
    assert row.details == {"n_negative": int((cosines < 0).sum()), "n_truncated_prompts": 1}
    assert row.n == 5
    assert row.ci95[0] < row.value < row.ci95[1]


def test_negative_cosines_are_kept(model, batch, pictures):
    images = pictures(64, 32)
    prompts = [f"{word} {i}" for i, word in enumerate(["red", "dog", "sky", "tree"] * 16)]
    cosines = by_hand(model, images, prompts)
    worst = cosines.argsort()[:4]
    assert cosines[worst[0]] < 0  # else this test needs another seed
    evaluator = CLIPScore(model=model)
    evaluator.update(batch("generated", images[worst], prompts=[prompts[i] for i in worst]))
    (row,) = evaluator.compute()
    assert row.value == pytest.approx(100 * cosines[worst].mean().item(), abs=1e-5)
    assert row.details["n_negative"] == int((cosines[worst] < 0).sum())


def test_truncation_starts_with_the_78th_token(model, batch, pictures):
    """Start, end and 75 words fit into 77 tokens; 76 words do not."""
    evaluator = CLIPScore(model=model)
    prompts = ["dog " * 75, "dog " * 76]
    evaluator.update(batch("generated", pictures(2), prompts=prompts))
    assert evaluator.rows.tensor("truncated").tolist() == [False, True]


def test_parts_merge_to_the_whole_in_any_order(model, batch, merge, pictures):
    images = pictures(5)
    whole, a, b, merged = (CLIPScore(model=model) for _ in range(4))
    whole.update(batch("generated", images, prompts=PROMPTS))
    a.update(batch("generated", images[3:], prompts=PROMPTS[3:], first_id=3))
    b.update(batch("generated", images[:3], prompts=PROMPTS[:3]))
    b.update(batch("reference", images))  # passed over
    merged.load_state(merge(a.state(), b.state()))
    assert merged.compute()[0].value == pytest.approx(whole.compute()[0].value, abs=1e-5)


def test_name_and_provenance_carry_the_model_but_no_path(model, folder, batch, pictures):
    evaluator = CLIPScore(model=model)
    evaluator.update(batch("generated", pictures(1), prompts=["a dog"]))
    (row,) = evaluator.compute()
    assert (row.name, row.ci95) == ("clip_score[local-dir:tiny]", None)
    record = json.dumps(evaluator.provenance())
    assert str(folder.parent) not in record
    assert len(evaluator.provenance()["weights_sha256"]) == 64


def test_wrong_models_are_refused(tmp_path, folder):
    with pytest.raises(
        ValueError, match="no pretrained='nobody' of model='ViT-B-32'; it has openai"
    ):
        CLIPScore(model="ViT-B-32", pretrained="nobody")
    with pytest.raises(ValueError, match="no weights of it"):
        CLIPScore(model="ViT-B-33")
    with pytest.raises(ValueError, match="brings its weights"):
        CLIPScore(model=f"local-dir:{folder}", pretrained="openai")
    with pytest.raises(ValueError, match="cannot load the open_clip model"):
        CLIPScore(model=f"local-dir:{tmp_path / 'missing'}")
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(ValueError, match="Required pretrained weights"):
        CLIPScore(model=f"local-dir:{tmp_path}")


def test_the_wrong_activation_is_refused(monkeypatch):
    """OpenAI's weights want QuickGELU: open_clip warns of a plain ViT-B-32 and loads it."""
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: None)
    with pytest.raises(ValueError, match=r"QuickGELU mismatch .* Use model=ViT-B-32-quickgelu"):
        CLIPScore(model="ViT-B-32", pretrained="openai")


def test_no_picture_is_an_error(model):
    with pytest.raises(ValueError, match="no generated picture"):
        CLIPScore(model=model).compute()
