"""Captioned pictures of a folder, with captions from a table, files or the names of folders."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from tinydiffusion.pictures.folder import read_folder
from tinydiffusion.pictures.packed import Found, PackedDataset, Skipped


class FolderDataset(PackedDataset):
    """The captioned pictures of a folder and its sub-folders, sorted by path.

    Captions come from `metadata.jsonl`, `metadata.csv` or `metadata.tsv` in the folder (the
    imagefolder layout of Hugging Face `datasets`: `file_name` and `text`, in JSON also a list of
    texts; several rows of one picture give it several captions), else from a `.txt`, `.caption` or
    `.json` file beside each picture. Links are followed. Names that begin with a dot are ignored.
    Pictures that cannot be used are listed in `skipped` with the reason.

    Args:
        path: The folder.
        size: Side of every example, or [height, width]; smaller pictures are skipped, not enlarged.
        fit: "crop" cuts pictures of other proportions, "pad" gives them a white border.
        crop: "center", or "random" for a window drawn at each visit.
        flip: Whether a visit mirrors the picture left to right with probability 1/2.
        max_value: The value that means white in files of more than 8 bits, such as 4095; None uses
            65535, or 4095 for a picture without a brighter value.
        limit: Stop after this many usable pictures; None uses all.
        workers: Number of threads that decode; does not change the examples.
        caption_column: The column of the metadata, or key of the JSON, that holds the caption.
        captions: "auto" as above; "folder" uses the name of the sub-folder that contains a picture,
            with underscores and hyphens read as blanks.

    Raises:
        ValueError: there is no such folder, it has no pictures or no captions, a metadata file is
            malformed (names the line), or more than half of the pictures are unusable.
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
        captions: str = "auto",
    ) -> None:
        pictures = find_pictures(Path(path), caption_column, captions)
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


def find_pictures(
    root: Path, caption_column: str = "text", captions: str = "auto"
) -> list[Found | Skipped]:
    """Find the captioned pictures of a folder, sorted by path, nothing decoded yet.

    A warning is given if the folder is read in an unusual way.

    Raises:
        ValueError: see `read_folder`; or the folder has no captions.
    """
    contents = read_folder(root, [caption_column], captions)
    if contents.refusal:
        raise ValueError(contents.refusal)
    remarks = list(contents.remarks)
    if caption_column not in ("text", *contents.columns):
        remarks.append(f"caption_column {caption_column!r} is of no use: no metadata is read")
    for remark in remarks:
        warnings.warn(f"{root}: {remark}", stacklevel=3)
    return contents.captioned()


PLUGIN = FolderDataset
