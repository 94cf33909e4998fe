"""Access to open_clip's models: the architecture of a text tower and its pretrained weights."""

from typing import Any

from torch import nn

from tinydiffusion.registry import suggest
from tinydiffusion.runtime.hub import hub_advice, read_errors, reason_of


def check_architecture(architecture: dict[str, Any]) -> None:
    """Raise ValueError unless a tower reads CLIP tokens and returns a state for each of them."""
    text = architecture["text_cfg"]
    for key in ("hf_model_name", "hf_tokenizer_name", "embed_cls"):
        if text.get(key):
            raise ValueError(
                f"text_encoder 'open_clip' needs CLIP's tokenizer and one state per token, got an "
                f"architecture with {key}={text[key]!r}; choose another model, such as 'ViT-B-32'"
            )


def find_architecture(model: str, tag: str | None) -> dict[str, Any]:
    """Return the part of open_clip's model config that determines the text tower.

    Raises:
        ValueError: there is no such model, or its folder cannot be read.
    """
    import open_clip

    try:
        config = open_clip.get_model_config(model)
    except (*read_errors(), RuntimeError) as error:
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
    """Return whether the weights of the tag were trained with QuickGELU.

    The model's own config may differ: that of ViT-B-32 has GELU, its tag openai QuickGELU.
    """
    import open_clip

    return tag is not None and open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)


def load_tower(model: str, tag: str | None) -> nn.Module:
    """Load the text tower with its pretrained weights, by open_clip's own factory.

    Raises:
        ValueError: the weights cannot be loaded.
    """
    import open_clip

    try:
        loaded: Any = open_clip.create_model(
            model,
            pretrained=tag,
            require_pretrained=True,
            force_custom_text=True,  # one layout for both of open_clip's model classes
            force_quick_gelu=_trained_with_quick_gelu(model, tag),
        )
    except (*read_errors(), RuntimeError) as error:
        raise _no_weights(model, tag, error) from error
    return loaded.text


def _no_weights(model: str, tag: str | None, error: Exception) -> ValueError:
    of_tag = f" with pretrained={tag!r}" if tag else ""
    files = "open_clip_config.json and open_clip_model.safetensors"
    advice = f"put {files}, whole ones, into a folder and set model='local-dir:FOLDER'"
    if not model.startswith("local-dir:"):
        advice = hub_advice(advice)
    return ValueError(
        f"cannot load open_clip model {model!r}{of_tag}: {reason_of(error)}; {advice}"
    )
