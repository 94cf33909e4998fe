"""Captioned pictures through Hugging Face `datasets`: a hub name, or local files of any kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinydiffusion.datasets._captions import clean_caption
from tinydiffusion.datasets._packed import Found, PackedDataset
from tinydiffusion.registry import PluginError, suggest


class HuggingFaceDataset(PackedDataset):
    """The captioned pictures of one split, in its order, with ids `row-0`, `row-1`, ...

    Pictures that cannot be used are listed in `skipped` with the reason.

    Args:
        path: What `datasets.load_dataset` takes: a name on the hub, or a local folder.
        subset: The configuration (subset), where the data set has several.
        split: Which split, slices such as "train[:100]" included.
        image_column: The column that holds the pictures.
        caption_column: The column that holds a caption, or a list of captions.
        size: Width and height of every example; smaller pictures are skipped, not blown up.
        crop: "center", or "random" for a window drawn at each visit.
        flip: Whether a visit mirrors the picture left to right with probability 1/2.
        limit: Stop after this many usable pictures; None takes all.
        workers: Threads that decode; alters no example.

    Raises:
        ValueError: no such data set, split or column, a caption that is not text, or more than
            half of the pictures unusable.
    """

    def __init__(
        self,
        *,
        path: str,
        subset: str | None = None,
        split: str = "train",
        image_column: str = "image",
        caption_column: str = "text",
        size: int = 32,
        crop: str = "center",
        flip: bool = False,
        limit: int | None = None,
        workers: int = 2,
    ) -> None:
        rows = _load_rows(path, subset, split, image_column, caption_column)
        super().__init__(
            _pictures(rows, image_column, caption_column),
            total=len(rows),
            name=f"{path}[{split}]",
            size=size,
            crop=crop,
            flip=flip,
            limit=limit,
            workers=workers,
        )


def _load_rows(
    path: str, subset: str | None, split: str, image_column: str, caption_column: str
) -> Any:
    """The split's two columns, the pictures as they lie in the file."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise PluginError(
            "dataset 'huggingface' needs the package datasets: pip install 'tinydiffusion[data]'"
        ) from error
    try:
        rows = datasets.load_dataset(path, subset, split=split)
    except (FileNotFoundError, DatasetsError) as error:
        raise ValueError(f"cannot load data set {path!r}: {error}") from error
    for column in (image_column, caption_column):
        if column not in rows.column_names:
            known = rows.column_names
            raise ValueError(
                f"{path}[{split}] has no column {column!r}{suggest(column, known)}; "
                f"its columns are {', '.join(known)}"
            )
    _check_holds_pictures(rows.features[image_column], image_column)
    # Decoded by our own loader, which names what is wrong with a picture.
    rows = rows.select_columns([image_column, caption_column])
    return rows.cast_column(image_column, datasets.Image(decode=False))


def _check_holds_pictures(feature: Any, column: str) -> None:
    """Refuse columns of text above all: they would be opened as paths."""
    import datasets

    is_bytes = isinstance(feature, datasets.Value) and feature.dtype.endswith("binary")
    if not (is_bytes or isinstance(feature, (datasets.Image, dict))):
        raise ValueError(f"image_column {column!r} must hold pictures, not {feature}")


def _pictures(rows: Any, image_column: str, caption_column: str) -> Iterator[Found]:
    for number, row in enumerate(rows):
        try:
            caption = clean_caption(row[caption_column])
        except TypeError as error:
            raise ValueError(f"row {number}: {caption_column!r} {error}") from error
        yield Found(f"row-{number}", _source(row[image_column]), caption)


def _source(cell: Any) -> Path | bytes | None:
    """A picture column's cell after `Image(decode=False)`."""
    if cell is None:
        return None
    if cell["bytes"] is not None:
        return cell["bytes"]
    return None if cell["path"] is None else Path(cell["path"])


PLUGIN = HuggingFaceDataset
