"""Captioned pictures of a folder: `metadata.jsonl`, `metadata.csv`, or a text file beside each."""

import difflib
import os
from pathlib import Path, PurePosixPath

from tinydiffusion.datasets._captions import (
    METADATA_NAMES,
    clean_caption,
    leads_out,
    read_metadata,
    read_text,
)
from tinydiffusion.datasets._packed import Found, PackedDataset, Skipped
from tinydiffusion.datasets._pictures import is_picture_name

SIDECARS = (".txt", ".caption")
LAYOUTS = (
    "metadata.jsonl with lines like "
    '{"file_name": "a.png", "text": "a red cube"}; '
    "metadata.csv with the columns file_name,text; "
    "or a.txt (or a.caption) beside a.png"
)


class FolderDataset(PackedDataset):
    """The captioned pictures of a folder and its sub-folders, sorted by path.

    Captions come from `metadata.jsonl` or `metadata.csv` in the folder (the imagefolder layout of
    Hugging Face `datasets`: `file_name` and `text`, in JSON also a list of texts), else from a
    `.txt` or `.caption` file beside each picture, read as one caption. Names that begin with a
    dot are ignored. Pictures that cannot be used are listed in `skipped` with the reason.

    Args:
        path: The folder.
        size: Width and height of every example; smaller pictures are skipped, not blown up.
        crop: "center", or "random" for a window drawn at each visit.
        flip: Whether a visit mirrors the picture left to right with probability 1/2.
        limit: Stop after this many usable pictures; None takes all.
        caption_column: The metadata column that holds the caption.

    Raises:
        ValueError: no such folder, no pictures, no captions, a malformed metadata file (with its
            line), text that is not UTF-8, or more than half of the pictures unusable.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        size: int = 32,
        crop: str = "center",
        flip: bool = False,
        limit: int | None = None,
        caption_column: str = "text",
    ) -> None:
        pictures = find_pictures(Path(path), caption_column)
        super().__init__(
            pictures,
            total=len(pictures),
            name=str(path),
            size=size,
            crop=crop,
            flip=flip,
            limit=limit,
        )


def find_pictures(root: Path, caption_column: str = "text") -> list[Found | Skipped]:
    """The folder's pictures with their captions, sorted by path, nothing decoded yet."""
    if not root.exists():
        raise ValueError(f"no such folder: {root}")
    if not root.is_dir():
        raise ValueError(f"not a folder: {root}; give the folder that holds the pictures")
    names = _list_names(root)
    metadata = [name for name in METADATA_NAMES if name in names]
    if len(metadata) > 1:
        raise ValueError(f"{root} has both {' and '.join(metadata)}; keep one")
    if metadata:
        pictures = _listed(root, names, metadata[0], caption_column)
    else:
        pictures = _with_sidecars(root, names)
    return sorted(pictures, key=lambda picture: picture[0])


def _list_names(root: Path) -> set[str]:
    """Relative posix paths of all files, and of folders that are named like a picture."""
    names: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        listed = files + [name for name in folders if is_picture_name(name)]
        relative = Path(folder).relative_to(root)
        names.update((relative / name).as_posix() for name in listed if not name.startswith("."))
    return names


def _listed(root: Path, names: set[str], file: str, caption_column: str) -> list[Found | Skipped]:
    rows = read_metadata(root / file, caption_column)
    if not rows:
        raise ValueError(f"{root / file} lists no pictures")
    unlisted = set(filter(is_picture_name, names)) - {row.file_name for row in rows}
    return [
        *(Found(row.file_name, root / row.file_name, row.caption) for row in rows),
        *(Skipped(name, f"not listed in {file}") for name in unlisted),
    ]


def _with_sidecars(root: Path, names: set[str]) -> list[Found | Skipped]:
    pictures = [name for name in names if is_picture_name(name)]
    if not pictures:
        raise ValueError(f"no pictures in {root}{_hint(names)}")
    found = [_with_sidecar(root, name, names) for name in pictures]
    if not any(isinstance(picture, Skipped) or picture.caption for picture in found):
        raise ValueError(f"no captions in {root}{_hint(names)}; accepted are: {LAYOUTS}")
    return found


def _with_sidecar(root: Path, name: str, names: set[str]) -> Found | Skipped:
    path = PurePosixPath(name)
    sidecars = [s for s in (str(path.with_suffix(suffix)) for suffix in SIDECARS) if s in names]
    if len(sidecars) > 1:
        return Skipped(name, f"with two captions: {' and '.join(sidecars)}")
    if any(leads_out(root, file) for file in (name, *sidecars)):
        return Skipped(name, "a link out of the folder")
    caption = clean_caption(read_text(root / sidecars[0])) if sidecars else ""
    return Found(name, root / name, caption)


def _hint(names: set[str]) -> str:
    """What a missing caption file may be called instead, or where it may be."""
    nested = sorted(name for name in names if PurePosixPath(name).name in METADATA_NAMES)
    if nested:
        return f"; found {', '.join(nested)}: set path to the folder of one"
    for name in sorted(names):
        near = difflib.get_close_matches(name.lower(), METADATA_NAMES, n=1, cutoff=0.8)
        if near:
            return f"; rename {name} to {near[0]}"
    return ""


def _refuse(error: OSError) -> None:
    raise ValueError(f"cannot read folder {error.filename}: {error.strerror}") from error


PLUGIN = FolderDataset
