"""The text tower of any open_clip model that reads CLIP's own vocabulary, frozen."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinydiffusion.abilities import EncodingAhead
from tinydiffusion.protocols import TextStates, Tokens
from tinydiffusion.runtime.durable import cache_root
from tinydiffusion.text.ahead import BATCH, Progress, encode_ahead, warn_not_kept
from tinydiffusion.text.captions import MAX_CHARACTERS, check_captions
from tinydiffusion.text.packed_states import BYTES_PER_CAPTION, StatesFolder
from tinydiffusion.text.state_cache import CaptionStates, RecentStates
from tinydiffusion.text_encoders._open_clip_models import (
    check_architecture,
    find_architecture,
    load_tower,
)

CACHE_DTYPES = {"float32": torch.float32, "float16": torch.float16}
SAMPLED = 1000  # captions that an estimate is made from
# open_clip builds a text tower only together with one for pictures; this is the smallest.
NO_VISION: Any = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32}


class OpenClipTextEncoder(nn.Module, EncodingAhead):
    """Frozen CLIP text tower: states after the final LayerNorm, pooled as in `encode_text`.

    Radford et al. (2021), section 2.4, https://arxiv.org/abs/2103.00020; Ilharco et al. (2021),
    https://github.com/mlfoundations/open_clip. The pooled state is projected and not normalised.
    The tower runs in the precision of its weights even under autocast, and `encode` caches the
    states of each caption, up to 1 GiB in memory. Only those of `encode_ahead` are stored on disk,
    for any later run with the same weights.

    `from_captions` loads a pretrained tower; the constructor builds one whose weights are to be
    loaded from a state dict.

    Args:
        architecture: `embed_dim`, `text_cfg` and `quick_gelu` as in open_clip's model configs.
        cache_dir: Folder for the states of `encode_ahead`; None for "text_states" in the user's
            cache, see `cache_root`.
        cache_dtype: "float32" stores states as they are; "float16" takes half the disk and rounds
            them by up to 2^-11 of their value, as half-precision inference does at every layer.

    Raises:
        ValueError: the architecture returns no state per CLIP token, or there is no such dtype.
    """

    frozen = True

    def __init__(
        self,
        *,
        architecture: dict[str, Any],
        cache_dir: str | Path | None = None,
        cache_dtype: str = "float32",
    ) -> None:
        import open_clip

        super().__init__()
        check_architecture(architecture)
        if cache_dtype not in CACHE_DTYPES:
            raise ValueError(
                f"cache_dtype must be one of {', '.join(CACHE_DTYPES)}, got {cache_dtype!r}"
            )
        self.architecture = architecture
        text = architecture["text_cfg"]
        self.tokenizer = open_clip.SimpleTokenizer(**(text.get("tokenizer_kwargs") or {}))
        tower: Any = open_clip.CustomTextCLIP(vision_cfg=NO_VISION, **architecture).text
        if tower.vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"text_cfg.vocab_size must be at least {self.tokenizer.vocab_size} for CLIP's "
                f"tokenizer, got {tower.vocab_size}"
            )
        tower.output_tokens = True
        self.tower: nn.Module = tower
        self.max_length: int = tower.context_length
        self.hidden_size: int = tower.width
        self.pooled_size: int = tower.width if tower.text_projection is None else tower.output_dim
        self.requires_grad_(False).eval()
        self.cache_dir, self.cache_dtype = cache_dir, cache_dtype
        self._recent = RecentStates()
        self._ahead: StatesFolder | None = None
        self.register_load_state_dict_post_hook(_forget)

    @classmethod
    def from_captions(
        cls,
        captions: Sequence[str],
        *,
        model: str = "ViT-B-32",
        pretrained: str | None = None,
        cache_dir: str | Path | None = None,
        cache_dtype: str = "float32",
    ) -> "OpenClipTextEncoder":
        """Load a pretrained encoder; the captions are not used.

        Args:
            captions: Not used: the vocabulary is CLIP's.
            model: An architecture that open_clip lists, `local-dir:FOLDER` with
                open_clip_config.json and open_clip_model.safetensors, or `hf-hub:OWNER/NAME`.
            pretrained: Tag or checkpoint file for a listed architecture; None means "openai".
                Folders and hub models bring their weights.
            cache_dir: See the class.
            cache_dtype: See the class.

        Raises:
            ValueError: the model or its weights cannot be loaded, or it returns no token states.
        """
        del captions
        has_own_weights = model.startswith(("local-dir:", "hf-hub:"))
        if has_own_weights and pretrained:
            raise ValueError(f"{model!r} brings its weights; leave out pretrained={pretrained!r}")
        tag = None if has_own_weights else pretrained or "openai"
        architecture = find_architecture(model, tag)
        encoder = cls(architecture=architecture, cache_dir=cache_dir, cache_dtype=cache_dtype)
        encoder.tower.load_state_dict(load_tower(model, tag).state_dict())
        return encoder

    def train(self, mode: bool = True) -> "OpenClipTextEncoder":
        """Return the encoder itself, which stays in evaluation mode."""
        del mode
        return super().train(False)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Return CLIP's ids, padded with 0, and mask; cut captions keep their end-of-text."""
        encoded = [self._ids(caption) for caption in check_captions(captions)]
        ids = torch.zeros(len(encoded), self.max_length, dtype=torch.long)
        mask = torch.zeros(len(encoded), self.max_length, dtype=torch.bool)
        for row, (caption_ids, _) in enumerate(encoded):
            ids[row, : len(caption_ids)] = torch.tensor(caption_ids)
            mask[row, : len(caption_ids)] = True
        return Tokens(ids, mask, sum(cut for _, cut in encoded))

    @torch.no_grad()
    def forward(self, tokens: Tokens) -> TextStates:
        """Compute the states of every token, 0 for padding, without gradients."""
        with torch.autocast(tokens.ids.device.type, enabled=False):
            pooled, hidden = self.tower(tokens.ids)
        padding = ~tokens.mask.unsqueeze(-1)
        return TextStates(hidden.masked_fill(padding, 0), tokens.mask, pooled)

    def encode(self, captions: Sequence[str]) -> TextStates:
        """Return states on the encoder's device; those of each caption are computed once."""
        captions = _cut(captions)
        states = self._recent.find(captions)
        if self._ahead and len(states) < len(captions):
            states |= self._ahead.find(c for c in captions if c not in states)
        missing = [c for c in dict.fromkeys(captions) if c not in states]
        for start in range(0, len(missing), BATCH):
            new = self._run(missing[start : start + BATCH])
            self._recent.add(new)
            states |= new
        return self._stack([states[caption] for caption in captions])

    def encode_ahead(
        self,
        captions: Iterable[str],
        share: tuple[int, int] = (0, 1),
        progress: Progress | None = None,
    ) -> None:
        """Compute and store this process's share of the missing states, including that of "".

        A warning is given if the folder cannot be written.

        Args:
            captions: All captions, the same for every share; repeats cost nothing.
            share: Rank and number of processes, as (rank, count).
            progress: Called with the number of captions that are done, and of all in the share.

        Raises:
            ValueError: there is no such share, or a state overflows `cache_dtype`.
        """
        captions = _cut(captions)
        try:
            root = Path(self.cache_dir) if self.cache_dir else cache_root() / "text_states"
        except RuntimeError as error:
            warn_not_kept(f"anywhere: {error}")
            return
        folder = root / f"{self._fingerprint()}-{self.cache_dtype}"
        self._ahead = StatesFolder(folder, CACHE_DTYPES[self.cache_dtype])
        encode_ahead(self._run, self._ahead, captions, share, progress)

    def bytes_for(self, captions: Iterable[str]) -> int:
        """Estimate the bytes on disk that the states of captions take, from about 1,000 of them."""
        unique = list(dict.fromkeys(["", *_cut(captions)]))
        sample = unique[:: math.ceil(len(unique) / SAMPLED)]
        num_tokens = sum(len(self._ids(caption)[0]) for caption in sample) / len(sample)
        numbers = num_tokens * self.hidden_size + self.pooled_size
        per_caption = numbers * CACHE_DTYPES[self.cache_dtype].itemsize + BYTES_PER_CAPTION
        return math.ceil(len(unique) * per_caption)

    def config(self) -> dict[str, Any]:
        """Return keyword arguments that rebuild the encoder without its folder or the network."""
        return {"architecture": self.architecture}

    def _ids(self, caption: str) -> tuple[list[int], bool]:
        """Return the ids of one caption without padding, and whether it was cut to fit."""
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        ids = self.tokenizer.encode(caption[:MAX_CHARACTERS])
        # A special token's id occurs here only if the caption spells it: restore the spelling.
        ids = [i for id_ in ids for i in self._spelling.get(id_, (id_,))]
        kept = ids[: self.max_length - 2]
        return [start, *kept, end], len(kept) < len(ids) or len(caption) > MAX_CHARACTERS

    @cached_property
    def _spelling(self) -> dict[int, list[int]]:
        return {
            self.tokenizer.sot_token_id: self.tokenizer.encode("< start_of_text >"),
            self.tokenizer.eot_token_id: self.tokenizer.encode("< end_of_text >"),
        }

    def _fingerprint(self) -> str:
        """Return a name of the encoder with the shortened SHA-256 of architecture and weights."""
        digest = hashlib.sha256(json.dumps(self.architecture, sort_keys=True).encode())
        for name, tensor in sorted(self.tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
        return f"open_clip-{digest.hexdigest()[:32]}"

    def _run(self, captions: list[str]) -> dict[str, CaptionStates]:
        ids, mask, _ = self.tokenize(captions)
        device = next(self.parameters()).device
        states = self(Tokens(ids.to(device), mask.to(device)))
        hidden, pooled = states.encoder_hidden_states.cpu(), states.pooled.cpu()
        lengths = mask.sum(1).tolist()
        # Cloned, as a slice would keep the whole batch alive.
        return {
            caption: CaptionStates(hidden[row, : lengths[row]].clone(), pooled[row].clone())
            for row, caption in enumerate(captions)
        }

    def _stack(self, states: list[CaptionStates]) -> TextStates:
        weight = next(self.parameters())
        lengths = torch.tensor([len(own.hidden) for own in states], dtype=torch.long)
        mask = torch.arange(self.max_length) < lengths.unsqueeze(1)
        # Only actual states are copied to the device: most of the tensor is padding.
        places = mask.flatten().nonzero().squeeze(1).to(weight.device)
        none = torch.zeros(0, self.hidden_size), torch.zeros(0, self.pooled_size)
        flat = torch.cat([none[0], *(own.hidden for own in states)]).to(weight)
        hidden = weight.new_zeros(mask.numel(), self.hidden_size).index_copy_(0, places, flat)
        pooled = torch.cat([none[1], *(own.pooled.unsqueeze(0) for own in states)]).to(weight)
        return TextStates(hidden.unflatten(0, mask.shape), mask.to(weight.device), pooled)


def _cut(captions: Iterable[str]) -> list[str]:
    return [caption[:MAX_CHARACTERS] for caption in check_captions(captions)]


def _forget(encoder: nn.Module, incompatible_keys: Any) -> None:
    """Drop the states of the old weights; runs after every `load_state_dict`."""
    del incompatible_keys
    assert isinstance(encoder, OpenClipTextEncoder)
    encoder._recent.clear()
    encoder._ahead = None


PLUGIN = OpenClipTextEncoder
