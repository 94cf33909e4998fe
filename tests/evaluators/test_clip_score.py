"""The CLIP score equals open_clip by hand, long prompts too, on a tiny random CLIP."""

import hashlib
import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tinydiffusion.evaluators.clip_score import CLIPScore
from tinydiffusion.metrics import clip as metrics_clip

LONG = "word " * 100
PROMPTS = ["a red circle", "a blue square", LONG, "a dog", "five cats"]


@torch.no_grad()
def by_hand(model, images, prompts):
    network, preprocess = open_clip.create_model_from_pretrained(model)
    tokens = open_clip.get_tokenizer(model)(prompts)
    pictures = [preprocess(Image.fromarray(x.permute(1, 2, 0).numpy())) for x in images]
    a = network.eval().encode_image(torch.stack(pictures))
    b = network.encode_text(tokens)
    return torch.nn.functional.cosine_similarity(a.double(), b.double())


def measured(model, batch, images, prompts):
    evaluator = CLIPScore(model=model)
    evaluator.update(batch("generated", images, prompts=prompts))
    return evaluator


def test_equals_open_clip_by_hand(clip_model, batch, pictures):
    images = pictures(5, 40)
    (row,) = measured(clip_model, batch, images, PROMPTS).compute()
    cosines = by_hand(clip_model, images, PROMPTS)
    assert row.value == pytest.approx(100 * cosines.mean().item(), abs=1e-5)
    assert row.details == {"n_negative": int((cosines < 0).sum()), "n_truncated_prompts": 1}
    assert row.per_picture == pytest.approx(dict(enumerate((100 * cosines).tolist())), abs=1e-5)
    assert row.n == 5
    assert row.ci95[0] < row.value < row.ci95[1]


def test_prompts_of_other_lengths_equal_open_clip_each(clip_model, batch, pictures):
    """74 to 400 words: at the limit, one beyond and far beyond."""
    prompts = ["dog " * n for n in (1, 74, 75, 76, 77, 150, 400)]
    images = pictures(len(prompts), 32)
    (row,) = measured(clip_model, batch, images, prompts).compute()
    expected = dict(enumerate((100 * by_hand(clip_model, images, prompts)).tolist()))
    assert row.per_picture == pytest.approx(expected, abs=1e-5)
    assert row.details["n_truncated_prompts"] == 4


def test_cut_prompts_keep_their_end_token(clip_model):
    clip = metrics_clip.shared_clip(clip_model, None)
    texts = clip.encode_texts([LONG, "a dog"])
    end = clip.tokenizer.eot_token_id
    assert texts.tokens[0, -1] == end
    assert int((texts.tokens[0] == end).sum()) == 1
    assert texts.truncated.tolist() == [True, False]


def test_truncation_starts_with_the_78th_token(clip_model, batch, pictures):
    """Start, end and 75 words fit into 77 tokens; 76 words do not."""
    evaluator = measured(clip_model, batch, pictures(2), ["dog " * 75, "dog " * 76])
    assert evaluator.tables["generated"].tensor("truncated").tolist() == [False, True]


def test_negative_cosines_are_kept(clip_model, batch, pictures):
    images = pictures(64, 32)
    prompts = [f"{word} {i}" for i, word in enumerate(["red", "dog", "sky", "tree"] * 16)]
    cosines = by_hand(clip_model, images, prompts)
    worst = cosines.argsort()[:4]
    assert cosines[worst[0]] < 0  # else this test needs another seed
    chosen = [prompts[i] for i in worst]
    (row,) = measured(clip_model, batch, images[worst], chosen).compute()
    assert row.value == pytest.approx(100 * cosines[worst].mean().item(), abs=1e-5)
    assert row.details["n_negative"] == int((cosines[worst] < 0).sum())


def test_parts_merge_to_the_whole_in_any_order(clip_model, batch, merge, pictures):
    images = pictures(5)
    whole, a, b, merged = (CLIPScore(model=clip_model) for _ in range(4))
    whole.update(batch("generated", images, prompts=PROMPTS))
    a.update(batch("generated", images[3:], prompts=PROMPTS[3:], first_id=3))
    b.update(batch("generated", images[:3], prompts=PROMPTS[:3]))
    b.update(batch("reference", images))  # passed over
    merged.load_state(merge(a.state(), b.state()))
    assert merged.compute()[0].value == pytest.approx(whole.compute()[0].value, abs=1e-5)


def test_evaluators_of_one_model_share_it_and_its_texts(clip_model, batch, pictures, monkeypatch):
    one, other = CLIPScore(model=clip_model), CLIPScore(model=clip_model)
    assert one.clip is other.clip
    runs = []
    encode = one.clip._encode
    monkeypatch.setattr(
        one.clip, "_encode", lambda prompts: runs.append(prompts) or encode(prompts)
    )
    for evaluator in (one, other):
        evaluator.update(batch("generated", pictures(2), prompts=["a fox", "a hen"]))
    assert runs == [["a fox", "a hen"]]


def test_name_and_provenance_carry_the_model_but_no_path(clip_model, clip_folder, batch, pictures):
    evaluator = measured(clip_model, batch, pictures(1), ["a dog"])
    (row,) = evaluator.compute()
    assert (row.name, row.ci95) == ("clip_score[local-dir:tiny]", None)
    assert "not verified" in row.warnings[0]
    record = evaluator.provenance()
    assert str(clip_folder.parent) not in json.dumps(record)
    assert len(record["weights_sha256"]) == 64
    table = load_file(clip_folder / "open_clip_model.safetensors")["token_embedding.weight"]
    digest = hashlib.sha256(table.numpy().tobytes()).hexdigest()
    assert record["token_embedding_sha256"] == digest


def test_wrong_models_are_refused(tmp_path, clip_folder):
    with pytest.raises(
        ValueError, match="no pretrained='nobody' of model='ViT-B-32'; it has openai"
    ):
        CLIPScore(model="ViT-B-32", pretrained="nobody")
    with pytest.raises(ValueError, match="brings its weights"):
        CLIPScore(model=f"local-dir:{clip_folder}", pretrained="openai")
    with pytest.raises(ValueError, match=r"open_clip model .*missing"):
        CLIPScore(model=f"local-dir:{tmp_path / 'missing'}")


def test_damaged_weights_are_named(tmp_path, clip_folder, batch, pictures):
    config = (clip_folder / "open_clip_config.json").read_text()
    (tmp_path / "open_clip_config.json").write_text(config)
    tensors = load_file(clip_folder / "open_clip_model.safetensors")
    tensors["text_projection"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match="NaN or infinite features for 2 of 2 prompts"):
        measured(f"local-dir:{tmp_path}", batch, pictures(2), ["a", "b"])


def test_pictures_that_are_not_uint8_rgb_are_refused(clip_model, batch, pictures):
    grey = pictures(2)[:, :1]
    with pytest.raises(ValueError, match=r"uint8 RGB .* got torch.uint8 of shape \(2, 1, 16, 16\)"):
        measured(clip_model, batch, grey, ["a", "b"])
    with pytest.raises(ValueError, match=r"uint8 RGB .* got torch.float32"):
        measured(clip_model, batch, pictures(2) / 255, ["a", "b"])


def test_no_picture_is_an_error(clip_model):
    with pytest.raises(ValueError, match="no generated picture"):
        CLIPScore(model=clip_model).compute()
