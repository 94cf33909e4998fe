"""The text tower of any open_clip model that reads CLIP's own vocabulary, frozen."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinydiffusion.protocols import TextStates, Tokens
from tinydiffusion.registry import suggest
from tinydiffusion.text_encoders._cache import CaptionStates, StatesCache
from tinydiffusion.text_encoders._captions import MAX_CHARACTERS, check_captions

ENCODE_BATCH = 64
# open_clip builds a text tower only beside one for pictures; this is the least there is.
NO_VISION: Any = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 32, "image_size": 32}


class OpenClipTextEncoder(nn.Module):
    """Frozen CLIP text tower: states after the final LayerNorm, pooled as `encode_text` has it.

    Radford et al. (2021), section 2.4, https://arxiv.org/abs/2103.00020; Ilharco et al. (2021),
    https://github.com/mlfoundations/open_clip. Pooled is projected and not normalised. It runs in
    the precision of its weights even under autocast, and `encode` remembers the states of each
    caption, up to 1 GiB in memory.

    `from_captions` loads a pretrained tower; the constructor rebuilds one whose weights come from
    a state dict.

    Args:
        architecture: `embed_dim`, `text_cfg` and `quick_gelu` as in open_clip's model configs.
        cache_dir: Folder that keeps the states of each caption between runs; None for none.

    Raises:
        ValueError: the architecture gives no states per CLIP token.
    """

    frozen = True

    def __init__(
        self, *, architecture: dict[str, Any], cache_dir: str | Path | None = None
    ) -> None:
        import open_clip

        super().__init__()
        _check_architecture(architecture)
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
        self._cache = StatesCache(Path(cache_dir) if cache_dir else None)
        self.register_load_state_dict_post_hook(_forget)

    @classmethod
    def from_captions(
        cls,
        captions: Sequence[str],
        *,
        model: str = "ViT-B-32",
        pretrained: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> "OpenClipTextEncoder":
        """A pretrained encoder; the captions are not used.

        Args:
            captions: Not used: the vocabulary is CLIP's.
            model: An architecture that open_clip lists, `local-dir:FOLDER` with
                open_clip_config.json and open_clip_model.safetensors, or `hf-hub:OWNER/NAME`.
            pretrained: Tag or checkpoint file for a listed architecture; None means "openai".
                Folders and hub models bring their weights.
            cache_dir: See the class.

        Raises:
            ValueError: the model or its weights cannot be had, or it gives no token states.
        """
        del captions
        has_own_weights = model.startswith(("local-dir:", "hf-hub:"))
        if has_own_weights and pretrained:
            raise ValueError(f"{model!r} brings its weights; leave out pretrained={pretrained!r}")
        tag = None if has_own_weights else pretrained or "openai"
        architecture = _find_architecture(model, tag)
        encoder = cls(architecture=architecture, cache_dir=cache_dir)
        encoder.tower.load_state_dict(_load_tower(model, tag).state_dict())
        return encoder

    def train(self, mode: bool = True) -> "OpenClipTextEncoder":
        """The encoder itself, which stays in evaluation mode."""
        del mode
        return super().train(False)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """CLIP's ids, padded with 0; cut captions keep their end-of-text."""
        encoded = [self._ids(caption) for caption in check_captions(captions)]
        ids = torch.zeros(len(encoded), self.max_length, dtype=torch.long)
        mask = torch.zeros(len(encoded), self.max_length, dtype=torch.bool)
        for row, (caption_ids, _) in enumerate(encoded):
            ids[row, : len(caption_ids)] = torch.tensor(caption_ids)
            mask[row, : len(caption_ids)] = True
        return Tokens(ids, mask, sum(cut for _, cut in encoded))

    @torch.no_grad()
    def forward(self, tokens: Tokens) -> TextStates:
        """States of every token, 0 on padding, without a gradient."""
        with torch.autocast(tokens.ids.device.type, enabled=False):
            pooled, hidden = self.tower(tokens.ids)
        padding = ~tokens.mask.unsqueeze(-1)
        return TextStates(hidden.masked_fill(padding, 0), tokens.mask, pooled)

    def encode(self, captions: Sequence[str]) -> TextStates:
        """States on the encoder's device; each caption is run once and remembered."""
        captions = [caption[:MAX_CHARACTERS] for caption in check_captions(captions)]
        fingerprint = self._fingerprint if self._cache.folder else ""
        found = {c: self._cache.get(c, fingerprint) for c in dict.fromkeys(captions)}
        states = {c: s for c, s in found.items() if s is not None}
        missing = [c for c in found if c not in states]
        for start in range(0, len(missing), ENCODE_BATCH):
            for caption, new in self._run(missing[start : start + ENCODE_BATCH]).items():
                states[caption] = new
                self._cache.put(caption, fingerprint, new)
        return self._stack([states[caption] for caption in captions])

    def config(self) -> dict[str, Any]:
        """Keyword arguments that rebuild the encoder without its folder or the network."""
        return {"architecture": self.architecture}

    def _ids(self, caption: str) -> tuple[list[int], bool]:
        """Ids of one caption without padding, and whether it was cut to fit."""
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        ids = self.tokenizer.encode(caption[:MAX_CHARACTERS])
        # Only a caption that spells a special token gives its id here: put the spelling back.
        ids = [i for id_ in ids for i in self._spelling.get(id_, (id_,))]
        kept = ids[: self.max_length - 2]
        return [start, *kept, end], len(kept) < len(ids) or len(caption) > MAX_CHARACTERS

    @cached_property
    def _spelling(self) -> dict[int, list[int]]:
        return {
            self.tokenizer.sot_token_id: self.tokenizer.encode("< start_of_text >"),
            self.tokenizer.eot_token_id: self.tokenizer.encode("< end_of_text >"),
        }

    @cached_property
    def _fingerprint(self) -> str:
        """Sha256 of the architecture and the weights."""
        digest = hashlib.sha256(json.dumps(self.architecture, sort_keys=True).encode())
        for name, tensor in sorted(self.tower.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

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
        hidden = torch.zeros(len(states), self.max_length, self.hidden_size, dtype=weight.dtype)
        pooled = torch.zeros(len(states), self.pooled_size, dtype=weight.dtype)
        mask = torch.zeros(len(states), self.max_length, dtype=torch.bool)
        for row, caption in enumerate(states):
            hidden[row, : len(caption.hidden)] = caption.hidden
            mask[row, : len(caption.hidden)] = True
            pooled[row] = caption.pooled
        device = weight.device
        return TextStates(hidden.to(device), mask.to(device), pooled.to(device))


def _forget(encoder: nn.Module, incompatible_keys: Any) -> None:
    """Drop what the old weights said; runs after every `load_state_dict`."""
    del incompatible_keys
    assert isinstance(encoder, OpenClipTextEncoder)
    encoder._cache.clear()
    encoder.__dict__.pop("_fingerprint", None)


def _check_architecture(architecture: dict[str, Any]) -> None:
    text = architecture["text_cfg"]
    for key in ("hf_model_name", "hf_tokenizer_name", "embed_cls"):
        if text.get(key):
            raise ValueError(
                f"text_encoder 'open_clip' needs CLIP's tokenizer and one state per token, got an "
                f"architecture with {key}={text[key]!r}; choose another model, such as 'ViT-B-32'"
            )


def _find_architecture(model: str, tag: str | None) -> dict[str, Any]:
    """The part of open_clip's model config that shapes the text tower."""
    import open_clip

    try:
        config = open_clip.get_model_config(model)
    except (OSError, RuntimeError, ValueError) as error:
        raise _no_weights(model, tag, error) from error
    if config is None:
        known = open_clip.list_models()
        raise ValueError(f"unknown open_clip model {model!r}{suggest(model, known)}")
    return {
        "embed_dim": config["embed_dim"],
        "text_cfg": config["text_cfg"],
        "quick_gelu": config.get("quick_gelu", False) or _trained_with_quick_gelu(model, tag),
    }


def _trained_with_quick_gelu(model: str, tag: str | None) -> bool:
    """What the tag says of its weights: ViT-B-32's own config has GELU, its openai tag has not."""
    import open_clip

    return tag is not None and open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)


def _load_tower(model: str, tag: str | None) -> nn.Module:
    """The text tower with its pretrained weights, as open_clip's own factory makes it."""
    import open_clip

    try:
        loaded: Any = open_clip.create_model(
            model,
            pretrained=tag,
            require_pretrained=True,
            force_custom_text=True,  # one layout for both of open_clip's model classes
            force_quick_gelu=_trained_with_quick_gelu(model, tag),
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise _no_weights(model, tag, error) from error
    return loaded.text


def _no_weights(model: str, tag: str | None, error: Exception) -> ValueError:
    of_tag = f" with pretrained={tag!r}" if tag else ""
    return ValueError(
        f"cannot load open_clip model {model!r}{of_tag}: {error}. Without a network, put "
        f"open_clip_config.json and open_clip_model.safetensors into a folder and set "
        f"model='local-dir:FOLDER'"
    )


PLUGIN = OpenClipTextEncoder
