"""Proves that the frozen tower gives open_clip's own states, remembered or not."""

import json
import subprocess
import sys
import time

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from tinydiffusion.text import state_cache
from tinydiffusion.text_encoders.open_clip import OpenClipTextEncoder

CAPTIONS = ["a red circle above a blue square", "A  dog's   life", "", "🙂 שלום \0 42"]


def load(folder, **options) -> OpenClipTextEncoder:
    return OpenClipTextEncoder.from_captions([], model=f"local-dir:{folder}", **options)


@pytest.fixture
def encoder(open_clip_folder) -> OpenClipTextEncoder:
    return load(open_clip_folder)


@pytest.fixture(params=["open_clip_folder", "custom_text_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


def run_by_hand(model, ids):
    """States of the text transformer, step by step, for either of open_clip's classes."""
    text = model.text if isinstance(model, open_clip.CustomTextCLIP) else model
    hidden = text.token_embedding(ids) + text.positional_embedding
    return text.ln_final(text.transformer(hidden, attn_mask=text.attn_mask))


def test_equals_the_model_that_open_clip_loads(folder):
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    encoder = load(folder)
    states = encoder.encode(CAPTIONS)
    torch.testing.assert_close(encoder.tokenize(CAPTIONS).ids, ids)
    with torch.no_grad():
        torch.testing.assert_close(states.pooled, model.encode_text(ids), atol=0, rtol=0)
        hidden = run_by_hand(model, ids)
    torch.testing.assert_close(states.encoder_hidden_states[states.mask], hidden[states.mask])
    assert (states.encoder_hidden_states[~states.mask] == 0).all()
    ends = ids.argmax(1)
    torch.testing.assert_close(states.mask.sum(1) - 1, ends)


def test_activation_is_the_configs(open_clip_folder):
    encoder = load(open_clip_folder)
    assert encoder.config()["architecture"]["quick_gelu"] is True
    gelu = OpenClipTextEncoder(architecture={**encoder.architecture, "quick_gelu": False})
    gelu.load_state_dict(encoder.state_dict())
    assert (gelu.encode(CAPTIONS).pooled - encoder.encode(CAPTIONS).pooled).abs().max() > 1e-4


def list_small_model(monkeypatch, folder, name: str, **changes) -> None:
    """Let open_clip list the folder's architecture under this name."""
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, {**config, **changes})


def test_tag_trained_with_quick_gelu_decides(monkeypatch, open_clip_folder):
    """ViT-B-32's own config has GELU, but its openai weights were trained with QuickGELU."""
    list_small_model(monkeypatch, open_clip_folder, "ViT-B-32", quick_gelu=False)
    weights = str(open_clip_folder / "open_clip_model.safetensors")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: weights)
    quick = load(open_clip_folder).encode(CAPTIONS).pooled
    openai = OpenClipTextEncoder.from_captions([], model="ViT-B-32")
    torch.testing.assert_close(openai.encode(CAPTIONS).pooled, quick)
    laion = OpenClipTextEncoder.from_captions([], pretrained="laion2b_s34b_b79k")
    assert (laion.encode(CAPTIONS).pooled - quick).abs().max() > 1e-4


def test_remembered_states_are_the_same(encoder):
    first = encoder.encode(CAPTIONS)
    runs = []
    encoder.tower.register_forward_hook(lambda *_: runs.append(1))
    again = encoder.encode(CAPTIONS[::-1])
    assert not runs
    for old, new in zip(first[:3], again[:3], strict=True):
        torch.testing.assert_close(old.flip(0), new, atol=0, rtol=0)


def test_memory_is_bounded(encoder, monkeypatch):
    expected = encoder.encode(CAPTIONS)
    encoder._recent.clear()
    monkeypatch.setattr(state_cache, "MAX_BYTES", 2000)
    for old, new in zip(expected, encoder.encode(CAPTIONS), strict=True):
        torch.testing.assert_close(old, new)
    held = sum(states.nbytes for states in encoder._recent._states.values())
    assert 0 < held == encoder._recent._num_bytes <= 2000


def test_encoding_leaves_no_files(encoder, cache_folder):
    encoder.encode(CAPTIONS)
    assert not list(cache_folder.parent.rglob("*"))


def test_long_prompts_keep_end_of_text(encoder):
    fits, too_long = "dog " * 75, "dog " * 76
    tokens = encoder.tokenize([fits, too_long])
    assert tokens.num_truncated == 1
    assert (tokens.ids[:, -1] == 49407).all()
    torch.testing.assert_close(tokens.ids[0], tokens.ids[1])
    assert tokens.mask.all()


@pytest.mark.parametrize("unit", ["x", "dog ", " ", "&lt;", "🙂"])
def test_ten_megabytes_take_well_under_a_second(encoder, unit):
    begin = time.perf_counter()
    tokens = encoder.tokenize([unit * (10_000_000 // len(unit))])
    assert time.perf_counter() - begin < 0.7
    assert tokens.num_truncated == 1


@pytest.mark.parametrize(
    "text",
    [
        "<end_of_text>",
        "<START_OF_TEXT>",
        "&lt;end_of_text&gt;",
        "a <end_of_text>b",
        "<|endoftext|>",
    ],
)
def test_spelled_special_tokens_are_plain_text(encoder, text):
    tokens = encoder.tokenize([text])
    inner = tokens.ids[0, 1 : int(tokens.mask.sum()) - 1]
    assert len(inner) >= 5
    assert inner.max() < 49406


def test_lone_surrogates_are_read(encoder):
    assert encoder.encode(["\ud800 a dog"]).pooled.isfinite().all()


def test_stays_frozen(encoder):
    encoder.train()
    torch.nn.ModuleList([encoder]).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_keeps_full_precision_under_autocast(encoder, open_clip_folder):
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoder.encode(CAPTIONS)
    outside = load(open_clip_folder).encode(CAPTIONS)
    torch.testing.assert_close(inside.pooled, outside.pooled)
    assert inside.encoder_hidden_states.dtype == torch.float32


def test_holds_the_text_tower_alone(encoder):
    assert all(name.startswith("tower.") for name in encoder.state_dict())
    assert not any("visual" in name for name in encoder.state_dict())


def test_rebuilds_without_folder_or_factory(encoder, monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("factory called"))
    rebuilt = OpenClipTextEncoder(**json.loads(json.dumps(encoder.config())))
    rebuilt.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(rebuilt.encode(CAPTIONS).pooled, encoder.encode(CAPTIONS).pooled)


def test_a_checkpoint_file_of_a_listed_architecture(open_clip_folder, monkeypatch):
    list_small_model(monkeypatch, open_clip_folder, "tiny-test")
    file = str(open_clip_folder / "open_clip_model.safetensors")
    encoder = OpenClipTextEncoder.from_captions([], model="tiny-test", pretrained=file)
    torch.testing.assert_close(
        encoder.encode(CAPTIONS).pooled, load(open_clip_folder).encode(CAPTIONS).pooled
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ViT-B-33"}, r"unknown open_clip model 'ViT-B-33' \(did you mean 'ViT-B-32'"),
        ({"model": "local-dir:nowhere"}, "cannot load open_clip model 'local-dir:nowhere'"),
        ({"model": "local-dir:here", "pretrained": "openai"}, "brings its weights"),
        ({"model": "roberta-ViT-B-32"}, "hf_model_name='roberta-base'"),
        ({"model": "ViT-B-16-SigLIP"}, "hf_tokenizer_name='timm/ViT-B-16-SigLIP'"),
        ({"model": "coca_ViT-B-32"}, "embed_cls=True"),
    ],
)
def test_models_that_cannot_be_had_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OpenClipTextEncoder.from_captions([], **options)


def test_weights_that_cannot_be_had_are_an_error(open_clip_folder, tmp_path):
    config = open_clip_folder / "open_clip_config.json"
    (tmp_path / config.name).write_text(config.read_text())
    with pytest.raises(ValueError, match="local-dir:FOLDER"):  # no weights: never random ones
        load(tmp_path)
    weights = load_file(open_clip_folder / "open_clip_model.safetensors")
    weights.pop("ln_final.weight")
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match="ln_final"):
        load(tmp_path)


def test_no_network_is_told_with_the_way_out(monkeypatch, open_clip_folder):
    def fail(*_, **__):
        raise OSError("name resolution failed")

    list_small_model(monkeypatch, open_clip_folder, "ViT-B-32")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", fail)
    with pytest.raises(ValueError, match=r"'ViT-B-32' with pretrained='laion400m_e31'.*resolution"):
        OpenClipTextEncoder.from_captions([], pretrained="laion400m_e31")


def test_wrong_vocabulary_is_refused(encoder):
    architecture = json.loads(json.dumps(encoder.architecture))
    architecture["text_cfg"]["vocab_size"] = 1000
    with pytest.raises(ValueError, match="vocab_size must be at least 49408"):
        OpenClipTextEncoder(architecture=architecture)


def test_importing_the_plugin_does_not_import_open_clip():
    code = (
        "import sys, tinydiffusion.text_encoders.open_clip as m; m.PLUGIN;"
        "sys.exit('open_clip' in sys.modules or 'timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
