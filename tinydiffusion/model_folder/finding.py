"""The model folder that a user's path refers to."""

import warnings
from pathlib import Path

from tinydiffusion.model_folder.layout import INDEX
from tinydiffusion.model_folder.opening import ModelFolderError
from tinydiffusion.training.checkpoints.folder import CHECKPOINTS, CheckpointFolder, is_checkpoint

MODEL = "model"
"""Folder of a run that holds its model."""
GRIDS = "samples"
"""Folder of a run that holds its sample grids."""


def find_model(path: Path) -> Path:
    """Find the model folder that a path refers to; for a run, it is the run's model.

    Args:
        path: The user's path. A folder that is neither a run nor part of one is returned as it is:
            opening it reports what it lacks.

    Returns:
        The model folder; a warning is given if it is not `path`.

    Raises:
        ModelFolderError: a run without a model, a checkpoint, or the sample grids of a run; the
            message names a remedy.
    """
    try:
        if (path / INDEX).is_file():
            return path
        if not path.is_dir():
            name = str(path) if str(path).isprintable() else repr(str(path))
            raise ModelFolderError(f"there is no folder {name}")
    except OSError:  # such as too long a name: opening it reports that
        return path
    if is_checkpoint(path):
        raise ModelFolderError(
            f"{path} is a checkpoint, not a model; make one of it: tinydiffusion export {path} "
            "FOLDER"
        )
    _refuse_parts_of_a_run(path)
    if not is_run(path):
        return path
    model = path / MODEL
    if not (model / INDEX).is_file():
        raise ModelFolderError(f"{path} is a run without a model; {_how_to_get_one(path)}")
    warnings.warn(f"{path} is a run: its model {model} is used", stacklevel=3)
    return model


def is_run(path: Path) -> bool:
    """Return whether a folder is that of a training run, finished or not."""
    begun = any((path / name).exists() for name in ("metrics.jsonl", CHECKPOINTS))
    return (begun and (path / "config.yaml").is_file()) or bool(_checkpoints(path))


def _refuse_parts_of_a_run(path: Path) -> None:
    """Raise ModelFolderError where a path is a folder of a run that holds no model."""
    run = path.resolve().parent
    if path.resolve().name not in (CHECKPOINTS, GRIDS) or not is_run(run):
        return
    if path.resolve().name == GRIDS:
        raise ModelFolderError(
            f"{path} holds the sample grids of a run, not single pictures; name its model, or "
            "pictures of it that `tinydiffusion sample` made"
        )
    raise ModelFolderError(
        f"{path} holds the checkpoints of a run, not a model; {_how_to_get_one(path.parent)}"
    )


def _how_to_get_one(run: Path) -> str:
    if _checkpoints(run):
        return f"make one of its newest checkpoint: tinydiffusion export {run} FOLDER"
    return "it has no checkpoint either: train it first"


def _checkpoints(run: Path) -> list[Path]:
    return CheckpointFolder(run / CHECKPOINTS).list()
