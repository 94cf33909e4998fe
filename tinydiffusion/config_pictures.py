"""What a config file says of its own pictures, and no other set should inherit."""

from typing import Any

SAME_PICTURES = (
    "size", "crop", "fit", "flip", "limit", "max_value", "window", "cache_gb", "workers",
)  # fmt: skip
"""Options of data sets that alter how their pictures are read, but not which there are."""


def pictures_of(values: dict[str, Any]) -> Any:
    """What of the `dataset` section decides which pictures and captions there are."""
    section = values.get("dataset")
    if not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if key not in SAME_PICTURES}


def drop_prompts(values: dict[str, Any], flags: dict[str, Any], file: str) -> list[str]:
    """Empty the prompts that a file has for other pictures than the flags name."""
    notes = []
    sampling, validation = values.get("sampling"), values.get("validation")
    given = any(key in flags for key in ("sampling", "sampling.prompts"))
    if isinstance(sampling, dict) and sampling.get("prompts") and not given:
        values["sampling"] = {**sampling, "prompts": []}
        notes.append(
            f"sampling.prompts of {file} are for its own data set and left out; the grids show "
            "captions of yours (--sampling.prompts names others)"
        )
    given = any(key.partition(".")[0] == "validation" for key in flags)
    if isinstance(validation, dict) and {"name", "path"} & validation.keys() and not given:
        notes.append(
            f"the validation set is still that of {file}, beside another training set: name yours "
            "with --validation.path, or have none with --validation null"
        )
    return notes
