"""Common parts of both plug-ins for Hugging Face `datasets`: checks, columns and cells."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinydiffusion.pictures.captions import Caption, clean_caption
from tinydiffusion.registry import PluginError, suggest
from tinydiffusion.runtime.hub import hub_advice, read_errors, reason_of


def import_datasets() -> Any:
    """Import the package `datasets`.

    Raises:
        PluginError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise PluginError(
            "Hugging Face data sets need the package datasets: pip install 'tinydiffusion[data]'"
        ) from error
    return datasets


@contextmanager
def naming_load_errors(path: str, doing: str = "load") -> Iterator[None]:
    """Raise ValueError in place of the errors of `datasets` inside the `with`.

    Args:
        path: Argument of `datasets.load_dataset`.
        doing: Verb for the message, as in "cannot load data set".

    Raises:
        ValueError: `datasets` or a package below it has failed; one line with cause and advice.
    """
    try:
        yield
    except PluginError:
        raise
    except read_errors() as error:
        advice = _advice(Path(path))
        raise ValueError(
            f"cannot {doing} data set {path!r}: {reason_of(error)}; {advice}"
        ) from error


def _advice(path: Path) -> str:
    """Return advice for a path that cannot be loaded; other names are looked up on the hub."""
    if path.is_file():
        return "give the folder that holds the file"
    if path.exists():
        return "mend or remove what is damaged in that folder"
    if path.is_absolute() or len(path.parts) > 2:
        return "there is no such path: give a folder that holds the files"
    return hub_advice("set path to a folder that holds the files")


def two_columns(rows: Any, name: str, image_column: str, caption_column: str) -> Any:
    """Select these two columns of the rows, with the pictures not decoded.

    Raises:
        ValueError: there is no such column, the columns are unknown, or the first does not hold
            pictures.
    """
    datasets = import_datasets()
    if rows.column_names is None:
        raise ValueError(
            f"{name} does not tell its columns before it is read; the data set 'huggingface' "
            "reads it"
        )
    for column in (image_column, caption_column):
        _check_is_there(column, rows.column_names, name)
    _check_holds_pictures(rows.features[image_column], image_column)
    # Decoded by our own loader, which names what is wrong with a picture.
    rows = rows.select_columns([image_column, caption_column])
    return rows.cast_column(image_column, datasets.Image(decode=False))


def caption_of_cell(cell: object, column: str, row: str) -> Caption:
    """Return the caption of a row, cleaned by `clean_caption`.

    Raises:
        ValueError: it is neither text nor a list of texts.
    """
    try:
        return clean_caption(cell)
    except TypeError as error:
        raise ValueError(f"{row}: {column!r} {error}") from error


def source_of_cell(cell: Any) -> Path | bytes | None:
    """Return path or bytes of a cell of `Image(decode=False)`; None where it has no picture."""
    if cell is None:
        return None
    if cell["bytes"] is not None:
        return cell["bytes"]
    return None if cell["path"] is None else Path(cell["path"])


def _check_is_there(column: str, known: list[str], name: str) -> None:
    if column not in known:
        raise ValueError(
            f"{name} has no column {column!r}{suggest(column, known)}; "
            f"its columns are {', '.join(known)}"
        )


def _check_holds_pictures(feature: Any, column: str) -> None:
    """Check that a column holds pictures; text, above all, would be opened as paths."""
    datasets = import_datasets()
    is_bytes = isinstance(feature, datasets.Value) and feature.dtype.endswith("binary")
    if not (is_bytes or isinstance(feature, (datasets.Image, dict))):
        raise ValueError(f"image_column {column!r} must hold pictures, not {feature}")
