"""Captioned pictures through Hugging Face `datasets`: a hub name, or local files of any kind."""

from collections.abc import Iterator, Sequence
from typing import Any

from tinydiffusion.pictures.huggingface import (
    caption_of_cell,
    import_datasets,
    naming_load_errors,
    source_of_cell,
    two_columns,
)
from tinydiffusion.pictures.packed import Found, PackedDataset


class HuggingFaceDataset(PackedDataset):
    """The captioned pictures of one split, in its order, with ids `row-0`, `row-1`, ...

    Pictures that cannot be used are listed in `skipped` with the reason.

    Args:
        path: Name on the hub, or a local folder, as for `datasets.load_dataset`.
        subset: The configuration (subset), where the data set has several.
        split: Name of the split; may have a slice, such as "train[:100]".
        image_column: The column that holds the pictures.
        caption_column: The column that holds a caption, or a list of captions.
        size: Side of every example, or [height, width]; smaller pictures are skipped, not enlarged.
        fit: "crop" cuts pictures of other proportions, "pad" gives them a white border.
        crop: "center", or "random" for a window drawn at each visit.
        flip: Whether a visit mirrors the picture left to right with probability 1/2.
        max_value: The value that means white in files of more than 8 bits, such as 4095; None uses
            65535, or 4095 for a picture without a brighter value.
        limit: Stop after this many usable pictures; None uses all.
        workers: Number of threads that decode; does not change the examples.

    Raises:
        ValueError: there is no such data set, split or column, a caption is not text, or more than
            half of the pictures are unusable.
    """

    def __init__(
        self,
        *,
        path: str,
        subset: str | None = None,
        split: str = "train",
        image_column: str = "image",
        caption_column: str = "text",
        size: int | Sequence[int] = 32,
        fit: str = "crop",
        crop: str = "center",
        flip: bool = False,
        max_value: int | None = None,
        limit: int | None = None,
        workers: int = 2,
    ) -> None:
        rows = _load_rows(path, subset, split, image_column, caption_column)
        super().__init__(
            _pictures(rows, path, image_column, caption_column),
            total=len(rows),
            name=f"{path}[{split}]",
            size=size,
            fit=fit,
            crop=crop,
            flip=flip,
            max_value=max_value,
            limit=limit,
            workers=workers,
        )


def _load_rows(
    path: str, subset: str | None, split: str, image_column: str, caption_column: str
) -> Any:
    """Load the two columns of a split, with the pictures not decoded."""
    datasets = import_datasets()
    with naming_load_errors(path):
        rows = datasets.load_dataset(path, subset, split=split)
    return two_columns(rows, f"{path}[{split}]", image_column, caption_column)


def _pictures(rows: Any, path: str, image_column: str, caption_column: str) -> Iterator[Found]:
    for number, row in enumerate(_read(rows, path)):
        caption = caption_of_cell(row[caption_column], caption_column, f"row {number}")
        yield Found(f"row-{number}", source_of_cell(row[image_column]), caption)


def _read(rows: Any, path: str) -> Iterator[Any]:
    """Yield the rows; raise ValueError if the file is damaged or gone when it is read."""
    with naming_load_errors(path, "read"):
        yield from rows


PLUGIN = HuggingFaceDataset
