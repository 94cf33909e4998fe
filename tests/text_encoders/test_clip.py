"""Proves that the text transformer computes what open_clip's does and learns only from text."""

import math

import pytest
import torch

from tinydiffusion.text_encoders.clip import ClipTextEncoder

CAPTIONS = [
    "a red circle above a blue square on a white background",
    "a green circle left of a red square on a white background",
    "one blue circle",
    "",
]


def make(**options) -> ClipTextEncoder:
    torch.manual_seed(0)
    return ClipTextEncoder.from_captions(CAPTIONS, width=32, layers=2, heads=4, **options)


@pytest.fixture
def encoder() -> ClipTextEncoder:
    return make()


def copy_into_open_clip(encoder: ClipTextEncoder, layers: int):
    from open_clip.transformer import TextTransformer

    reference = TextTransformer(
        context_length=encoder.max_length,
        vocab_size=encoder.tokenizer.vocab_size,
        width=encoder.hidden_size,
        heads=encoder.heads,
        layers=layers,
        output_dim=None,
        output_tokens=True,
    )
    ours = encoder.state_dict()
    names = {
        "attention_norm": "ln_1",
        "qkv.weight": "attn.in_proj_weight",
        "attention_out": "attn.out_proj",
        "mlp_norm": "ln_2",
        "mlp_in": "mlp.c_fc",
        "mlp_out": "mlp.c_proj",
        "blocks": "transformer.resblocks",
        "position_embedding": "positional_embedding",
        "final_norm": "ln_final",
    }
    renamed = {}
    for name, weight in ours.items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = weight
        if name.endswith("in_proj_weight"):  # ours has no such bias
            renamed[name.replace("weight", "bias")] = torch.zeros(len(weight))
    reference.load_state_dict(renamed)
    return reference


def test_equals_open_clip_with_the_same_weights(encoder):
    with torch.no_grad():
        for parameter in encoder.parameters():  # biases and gains too
            parameter.add_(torch.randn_like(parameter) * 0.1)
    reference = copy_into_open_clip(encoder, layers=2)
    tokens = encoder.tokenize(CAPTIONS)
    states = encoder(tokens)
    pooled, hidden = reference(tokens.ids)
    torch.testing.assert_close(states.encoder_hidden_states, hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states.pooled, pooled, atol=1e-5, rtol=1e-5)


def test_initial_deviations_are_clips():
    encoder = ClipTextEncoder(merges=[], words=None, width=128, layers=3, heads=2)
    reference = copy_into_open_clip(encoder, layers=3)
    ours = {name: weight.std().item() for name, weight in reference.state_dict().items()}
    reference.init_parameters()
    for name, weight in reference.named_parameters():
        if weight.ndim == 2:
            assert ours[name] == pytest.approx(weight.std().item(), rel=0.05), name


def test_the_convolution_adds_torchs_depthwise_one():
    encoder = make(conv_size=4)
    x, weight = torch.randn(2, 16, 32), encoder.conv.weight
    kernel = torch.cat([weight.flip(0), torch.zeros(1, 32)]).T[
        :, None
    ]  # the token itself comes last
    padded = torch.nn.functional.pad(x.mT, (3, 0))
    expected = x + torch.nn.functional.conv1d(padded, kernel, groups=32).mT
    torch.testing.assert_close(encoder.conv(x), expected)
    assert weight.std().item() == pytest.approx(3**-0.5, rel=0.15)


def test_a_rebuilt_encoder_with_a_convolution_gives_the_same_states():
    encoder = make(conv_size=4)
    rebuilt = ClipTextEncoder(**encoder.config())
    rebuilt.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(rebuilt.encode(CAPTIONS), encoder.encode(CAPTIONS))


@pytest.mark.parametrize("conv_size", [1, 4])
def test_a_token_sees_only_what_stands_before_it(conv_size):
    encoder = make(conv_size=conv_size)
    tokens = encoder.tokenize(CAPTIONS[:1])
    hidden = encoder(tokens).encoder_hidden_states
    changed = tokens.ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 512
    other = encoder(tokens._replace(ids=changed)).encoder_hidden_states
    torch.testing.assert_close(other[:, :5], hidden[:, :5], atol=1e-6, rtol=0)
    assert ((other - hidden)[0, 5:].abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("conv_size", [1, 4])
def test_padding_never_matters(conv_size):
    encoder = make(conv_size=conv_size)
    tokens = encoder.tokenize(CAPTIONS)
    noise = torch.randint_like(tokens.ids, encoder.tokenizer.vocab_size)
    noisy = encoder(tokens._replace(ids=torch.where(tokens.mask, tokens.ids, noise)))
    states = encoder(tokens)
    torch.testing.assert_close(noisy.pooled, states.pooled)
    torch.testing.assert_close(
        noisy.encoder_hidden_states[tokens.mask], states.encoder_hidden_states[tokens.mask]
    )


def test_every_parameter_that_the_captions_reach_gets_a_gradient(encoder):
    states = encoder.encode(CAPTIONS)
    (states.encoder_hidden_states[states.mask].sin().sum() + states.pooled.cos().sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    embedding = encoder.token_embedding.weight.grad
    assert embedding[encoder.tokenizer.pad_id].abs().max() == 0


def test_learns_to_tell_captions_apart_in_bf16(encoder):
    target = torch.eye(4, 32) * math.sqrt(32)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16):
            loss = (encoder.encode(CAPTIONS).pooled.float() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_max_length_fits_the_captions():
    def length(caption: str) -> int:
        return ClipTextEncoder.from_captions(["red", caption], width=8, layers=1).max_length

    assert length("red") == 16  # the least
    assert length("red " * 14) == 16
    assert length("red " * 15) == 20
    assert length("red " * 200) == 77  # the most


def test_prompts_longer_than_training_captions_are_cut_and_counted(encoder):
    room = encoder.max_length - 2
    tokens = encoder.tokenize(["red " * room, "red " * (room + 1)])
    assert tokens.num_truncated == 1
    assert (tokens.ids[:, -1] == encoder.tokenizer.end_id).all()


@pytest.mark.parametrize(
    "text", ["", "🙂" * 30, "שלום עולם", "a\0b", "\ud800 lone", "<|endoftext|>", "\u200f\ufeff"]
)
def test_unusual_text_gives_finite_states(encoder, text):
    states = encoder.encode([text])
    assert states.encoder_hidden_states.isfinite().all()
    assert states.pooled.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 30, "heads": 4}, "width must be a multiple of heads"),
        ({"width": 0}, "width must be a multiple of heads"),
        ({"width": 10**9}, "width must be at most 8192, got 1000000000"),
        ({"layers": 0}, r"layers must be in \[1, 128\], got 0"),
        ({"layers": 10**9}, r"layers must be in \[1, 128\], got 1000000000"),
        ({"max_length": 78}, r"max_length must be in \[3, 77\], got 78"),
        ({"max_length": 2}, r"max_length must be in \[3, 77\], got 2"),
        ({"conv_size": 0}, r"conv_size must be in \[1, 16\], got 0"),
        ({"conv_size": 17}, r"conv_size must be in \[1, 16\], got 17"),
        ({"conv_size": 4, "max_length": 3}, r"conv_size must be in \[1, 3\], got 4"),
        ({"vocab_size": 100}, "vocab_size must be at least 515, got 100"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClipTextEncoder.from_captions(CAPTIONS, **options)


def test_no_captions_are_refused():
    with pytest.raises(ValueError, match="at least one caption"):
        ClipTextEncoder.from_captions([])
