"""Captioned pictures of a folder: `metadata.jsonl`, `metadata.csv`, or a text file beside each."""

import difflib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tinydiffusion.datasets._captions import (
    METADATA_NAMES,
    clean_caption,
    leads_out,
    read_caption,
    read_metadata,
    shown,
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
        size: Side of every example, or [height, width]; smaller pictures are skipped, not blown up.
        fit: "crop" cuts pictures of other proportions, "pad" gives them a white border.
        crop: "center", or "random" for a window drawn at each visit.
        flip: Whether a visit mirrors the picture left to right with probability 1/2.
        max_value: The value that means white in files of more than 8 bits, such as 4095; None takes
            65535, but 4095 for a picture that has nothing brighter.
        limit: Stop after this many usable pictures; None takes all.
        workers: Threads that decode; alters no example.
        caption_column: The metadata column that holds the caption.

    Raises:
        ValueError: no such folder, no pictures, no captions, a malformed metadata file (with its
            line), or more than half of the pictures unusable.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        size: int | Sequence[int] = 32,
        fit: str = "crop",
        crop: str = "center",
        flip: bool = False,
        max_value: int | None = None,
        limit: int | None = None,
        workers: int = 2,
        caption_column: str = "text",
    ) -> None:
        pictures = find_pictures(Path(path), caption_column)
        super().__init__(
            pictures,
            total=len(pictures),
            name=str(path),
            size=size,
            fit=fit,
            crop=crop,
            flip=flip,
            max_value=max_value,
            limit=limit,
            workers=workers,
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


def is_set(root: Path) -> bool:
    """Whether pictures or their metadata lie in the folder itself, not in its sub-folders."""
    files = [entry.name for entry in root.iterdir() if not entry.name.startswith(".")]
    return any(is_picture_name(name) or name in METADATA_NAMES for name in files)


def _list_names(root: Path) -> set[str]:
    """Relative posix paths of files, linked folders and folders that are named like a picture."""
    names: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = (name for name in folders if Path(folder, name).is_symlink())
        listed = [*files, *links, *filter(is_picture_name, folders)]
        relative = Path(folder).relative_to(root)
        names.update((relative / name).as_posix() for name in listed if not name.startswith("."))
    return names


def _listed(root: Path, names: set[str], file: str, caption_column: str) -> list[Found | Skipped]:
    rows = read_metadata(root / file, caption_column)
    if not rows:
        raise ValueError(f"{root / file} lists no pictures")
    unlisted = set(filter(is_picture_name, names)) - {row.file_name for row in rows}
    alike = {_fold(name): name for name in unlisted}
    pictures: list[Found | Skipped] = []
    for row in rows:
        near = alike.get(_fold(row.file_name))
        if near is None or (root / row.file_name).exists():
            pictures.append(Found(row.file_name, root / row.file_name, row.caption))
        else:
            reason = f"missing or not a file: the folder has {near!a}"
            pictures.append(Skipped(row.file_name, reason))
            unlisted.discard(near)
    return [*pictures, *(Skipped(name, f"not listed in {file}") for name in unlisted)]


def _fold(name: str) -> str:
    """The same for names that differ in case or in how accents are written."""
    return unicodedata.normalize("NFC", name).casefold()


def _with_sidecars(root: Path, names: set[str]) -> list[Found | Skipped]:
    pictures = [name for name in names if is_picture_name(name)]
    if not pictures:
        raise ValueError(f"no pictures in {root}{_hint(names)}")
    found = [_with_sidecar(root, name, names) for name in pictures]
    if not any(isinstance(picture, Skipped) or picture.caption for picture in found):
        raise ValueError(f"no captions in {root}{_hint(names)}; accepted are: {LAYOUTS}")
    others = {name for name in names if PurePosixPath(name).suffix not in SIDECARS} - {*pictures}
    links = (Skipped(name, "a linked folder") for name in others if (root / name).is_dir())
    unread = (Skipped(name, f"metadata not read: {hint}") for name, hint in _near_metadata(names))
    return [*found, *links, *unread]


def _with_sidecar(root: Path, name: str, names: set[str]) -> Found | Skipped:
    path = PurePosixPath(name)
    sidecars = [s for s in (str(path.with_suffix(suffix)) for suffix in SIDECARS) if s in names]
    if len(sidecars) > 1:
        return Skipped(name, f"with two captions: {' and '.join(map(shown, sidecars))}")
    if any(leads_out(root, file) for file in (name, *sidecars)):
        return Skipped(name, "a link out of the folder")
    try:
        caption = clean_caption(read_caption(root / sidecars[0])) if sidecars else ""
    except ValueError as error:
        return Skipped(name, str(error))
    return Found(name, root / name, caption)


def _hint(names: set[str]) -> str:
    """What a missing caption file may be called instead, or where it may be."""
    near = list(_near_metadata(names))
    return f"; found {', '.join(shown(name) for name, _ in near)}: {near[0][1]}" if near else ""


def _near_metadata(names: set[str]) -> Iterator[tuple[str, str]]:
    """Files that may be meant as metadata, each with what to do."""
    for path in sorted(map(PurePosixPath, names)):
        if path.name in METADATA_NAMES:
            yield str(path), "set path to its folder"
        elif path.suffix not in SIDECARS and not is_picture_name(path.name):
            near = difflib.get_close_matches(path.name.lower(), METADATA_NAMES, n=1, cutoff=0.8)
            if near:
                yield str(path), f"rename it to {near[0]}"


def _refuse(error: OSError) -> None:
    raise ValueError(f"cannot read folder {error.filename}: {error.strerror}") from error


PLUGIN = FolderDataset
