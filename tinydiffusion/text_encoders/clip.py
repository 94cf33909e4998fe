"""CLIP's text transformer, trained from scratch together with the network."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinydiffusion.abilities import KnowsWords
from tinydiffusion.protocols import TextStates, Tokens
from tinydiffusion.text.bpe import BytePairTokenizer, learn_merges
from tinydiffusion.text.captions import check_captions
from tinydiffusion.text.words import fitting, words_of

LONGEST = 77  # CLIP's context length
MAX_WIDTH, MAX_LAYERS = 8192, 128
SHORTEST = 3  # start-of-text, one token, end-of-text
MAX_CONV_SIZE = 16


class ClipTextEncoder(nn.Module, KnowsWords):
    """Causal transformer over byte pairs; pooled is the final state at end-of-text.

    Radford et al. (2021), section 2.4, https://arxiv.org/abs/2103.00020, without the projection
    into the space shared with pictures. The vocabulary is learned from the captions and is stored
    as `merges`, so that `config()` includes it.

    Args:
        merges: Byte pairs to join, in order, as `learn_merges` returns them.
        words: Words of the training captions; None where they were too many to store.
        all_words: Whether `words` are those of all training captions, not only of some.
        width: Width D of the states, a multiple of `heads`.
        layers: Number of blocks.
        heads: Number of attention heads.
        max_length: Number L of tokens of every caption, in [3, 77], including the two special
            tokens.
        conv_size: Size in tokens of a causal depthwise convolution before the blocks (a token and
            those before it), in [1, 16] and at most `max_length`. 1 is none, as in CLIP; with 4,
            left and right are learned from a third fewer captions (docs/results.md).

    Raises:
        ValueError: an option is out of its range.
    """

    frozen = False

    def __init__(
        self,
        *,
        merges: Sequence[Sequence[str]],
        words: Sequence[str] | None = None,
        all_words: bool = False,
        width: int = 256,
        layers: int = 4,
        heads: int = 4,
        max_length: int = LONGEST,
        conv_size: int = 1,
    ) -> None:
        super().__init__()
        _check_sizes(width, layers, heads, max_length, conv_size)
        self.hidden_size = self.pooled_size = width
        self.layers, self.heads, self.max_length = layers, heads, max_length
        self.conv_size = conv_size
        self.merges = [(first, second) for first, second in merges]
        self.words, self.all_words = None if words is None else set(words), all_words
        self.tokenizer = BytePairTokenizer(self.merges, max_length)
        self.token_embedding = nn.Embedding(self.tokenizer.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(max_length, width))
        self.conv = _CausalConvolution(width, conv_size) if conv_size > 1 else nn.Identity()
        self.blocks = nn.ModuleList(_Block(width, heads, layers) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        # From a list: arithmetic on the meta device, where models are tested, imports torch's
        # compiler.
        places = range(max_length)
        causal = [[-math.inf if other > own else 0.0 for other in places] for own in places]
        self.register_buffer("causal_mask", torch.tensor(causal), persistent=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

    @classmethod
    def from_captions(
        cls,
        captions: Sequence[str],
        *,
        width: int = 256,
        layers: int = 4,
        heads: int = 4,
        max_length: int | None = None,
        vocab_size: int = 4096,
        conv_size: int = 1,
    ) -> "ClipTextEncoder":
        """Build a new encoder, with a vocabulary learned from these captions.

        Args:
            captions: Training captions.
            width: See the class.
            layers: See the class.
            heads: See the class.
            max_length: None uses the length of the longest caption, rounded up to a multiple of 4,
                in [16, 77]. Longer prompts are cut there: positions that no training caption
                reaches would keep their random embedding.
            vocab_size: Largest number of tokens, at least 515; small caption sets need fewer.
            conv_size: See the class.

        Raises:
            ValueError: there are no captions or an option is out of its range.
        """
        captions = check_captions(captions)
        if not captions:
            raise ValueError("from_captions needs at least one caption, got none")
        merges = learn_merges(captions, vocab_size)
        if max_length is None:
            max_length = _fitting_length(captions, BytePairTokenizer(merges, LONGEST))
        words = fitting(words_of(captions))
        return cls(
            merges=merges,
            words=None if words is None else sorted(words),
            width=width,
            layers=layers,
            heads=heads,
            max_length=max_length,
            conv_size=conv_size,
        )

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Return ids and mask of shape (B, max_length), and the number of captions cut to fit."""
        return self.tokenizer.encode(captions)

    def forward(self, tokens: Tokens) -> TextStates:
        """Compute the states of every token; those of padding are unused and affect no other."""
        hidden = self.conv(self.token_embedding(tokens.ids) + self.position_embedding)
        for block in self.blocks:
            hidden = block(hidden, self.causal_mask)
        hidden = self.final_norm(hidden)
        rows = torch.arange(len(hidden), device=hidden.device)
        end_of_text = tokens.mask.sum(1) - 1
        return TextStates(hidden, tokens.mask, pooled=hidden[rows, end_of_text])

    def encode(self, captions: Sequence[str]) -> TextStates:
        """Tokenize captions and compute their states, on the encoder's device."""
        ids, mask, num_truncated = self.tokenize(captions)
        device = self.position_embedding.device
        return self(Tokens(ids.to(device), mask.to(device), num_truncated))

    def words_of(self, captions: Iterable[str]) -> list[str]:
        """Return the distinct words of captions in their order, in lower case, without signs."""
        return words_of(captions)

    def learn_words(self, captions: Iterable[str], *, are_all: bool) -> None:
        """Add the words of training captions to `words`, unless they become too many."""
        if self.words is not None:
            self.words = fitting([*self.words, *words_of(captions)])
        self.all_words = are_all

    def config(self) -> dict[str, Any]:
        """Return keyword arguments that rebuild the encoder, including the vocabulary."""
        return {
            "merges": [list(pair) for pair in self.merges],
            "words": None if self.words is None else sorted(self.words),
            "all_words": self.all_words,
            "width": self.hidden_size,
            "layers": self.layers,
            "heads": self.heads,
            "max_length": self.max_length,
            "conv_size": self.conv_size,
        }


class _CausalConvolution(nn.Module):
    """A layer that adds to every token a weighted sum of the few before it, channel by channel.

    The Canon layer of Allen-Zhu (2025), section 2, https://arxiv.org/abs/2512.17351, used once,
    before the first norm: attention then need not find neighbouring tokens by their positions.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size - 1, width))  # row 0: for the previous token
        nn.init.normal_(self.weight, std=(size - 1) ** -0.5)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        # Not conv1d: if depthwise, it takes 1.5 times as long on a CPU.
        pad = nn.functional.pad
        before = (w * pad(x, (0, 0, i, -i)) for i, w in enumerate(self.weight, start=1))
        return sum(before, start=x)


class _Block(nn.Module):
    """A transformer block: pre-norm self-attention and an MLP with a GELU layer 4 times as wide."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.heads = heads
        # CLIP's standard deviations: residual branches shrink with the number of layers.
        residual_std = (2 * layers * width) ** -0.5
        self.attention_norm = nn.LayerNorm(width)
        # Without CLIP's bias: that of the keys has no effect, and Adam amplifies its rounding
        # errors.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        self.attention_out = _linear(width, width, std=residual_std)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = _linear(width, 4 * width, std=(2 * width) ** -0.5)
        self.mlp_out = _linear(4 * width, width, std=residual_std)

    def forward(
        self, x: Float[Tensor, "B L D"], causal_mask: Float[Tensor, "L L"]
    ) -> Float[Tensor, "B L D"]:
        x = x + self.attention_out(self._attend(self.attention_norm(x), causal_mask))
        return x + self.mlp_out(nn.functional.gelu(self.mlp_in(self.mlp_norm(x))))

    def _attend(
        self, x: Float[Tensor, "B L D"], causal_mask: Float[Tensor, "L L"]
    ) -> Float[Tensor, "B L D"]:
        # Plain matmuls: the fused CPU attention is several times slower in bf16.
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scale = q.shape[-1] ** -0.5
        weights = ((q * scale) @ k.mT + causal_mask).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)


def _linear(in_features: int, out_features: int, std: float) -> nn.Linear:
    linear = nn.Linear(in_features, out_features)
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    return linear


def _fitting_length(captions: Sequence[str], tokenizer: BytePairTokenizer) -> int:
    longest = max(len(tokenizer.ids(caption)[0]) for caption in captions)
    return min(LONGEST, max(16, math.ceil(longest / 4) * 4))


def _check_sizes(width: int, layers: int, heads: int, max_length: int, conv_size: int) -> None:
    if heads < 1 or width < heads or width % heads:
        raise ValueError(f"width must be a multiple of heads, got width={width}, heads={heads}")
    if width > MAX_WIDTH:
        raise ValueError(f"width must be at most {MAX_WIDTH}, got {width}")
    if not 1 <= layers <= MAX_LAYERS:
        raise ValueError(f"layers must be in [1, {MAX_LAYERS}], got {layers}")
    if not SHORTEST <= max_length <= LONGEST:
        raise ValueError(f"max_length must be in [{SHORTEST}, {LONGEST}], got {max_length}")
    most = min(MAX_CONV_SIZE, max_length)
    if not 1 <= conv_size <= most:
        raise ValueError(f"conv_size must be in [1, {most}], got {conv_size}")


PLUGIN = ClipTextEncoder
