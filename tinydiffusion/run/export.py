"""`tinydiffusion export`: a model folder of a run that has not finished, or of one checkpoint."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tinydiffusion.build import build_objective
from tinydiffusion.config import ConfigError, from_dict, to_dict
from tinydiffusion.model_folder.layout import INDEX, Model
from tinydiffusion.model_folder.saving import check_replaceable, save_model
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.run.start import starting_model
from tinydiffusion.runtime.locks import FolderLock
from tinydiffusion.training.checkpoints.folder import (
    CHECKPOINTS,
    Checkpoint,
    CheckpointError,
    CheckpointFolder,
    difference,
    is_checkpoint,
    load_checkpoint,
)
from tinydiffusion.training.ema import trained_parameters
from tinydiffusion.training.learner import remember

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def about_model(model: TextToImage) -> dict[str, Any]:
    """Collect what a checkpoint must keep so that a model can be made from it without the data."""
    encoder: Any = model.text_encoder
    return {
        "config": to_dict(model.config),
        "image_shape": list(model.image_shape),
        # A frozen encoder loads its weights from the place in the config.
        "text_encoder": None if encoder.frozen else encoder.config(),
    }


def export(source: Path, folder: Path, *, overwrite: bool = False) -> int:
    """Write the averaged weights of a checkpoint as the model that the run would have saved.

    The training pictures are not needed. For a run that began with another model (`init_from`),
    that model is needed.

    Args:
        source: A run, whose newest undamaged checkpoint is taken, or the folder of one checkpoint.
        folder: The model folder to write.
        overwrite: Replace a model that is there.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: the source is neither, or `folder` holds something.
        CheckpointError: no checkpoint is usable.
    """
    replaced = (folder / INDEX).is_file()
    if replaced and not overwrite:
        raise ConfigError(f"{folder} holds a model; name another folder, or --overwrite")
    check_replaceable(folder)
    path, checkpoint = _open(source)
    with FolderLock(folder.resolve().parent):  # the run's lock, if the run saves its model there
        save_model(folder, _model(path, checkpoint))
    seen = checkpoint.state["pictures_seen"]
    instead = ", in place of the model that was there" if replaced else ""
    console.print(f"{path}, {seen} pictures seen, exported to {folder}{instead}")
    return 0


def _open(source: Path) -> tuple[Path, Checkpoint]:
    if is_checkpoint(source):
        return source, load_checkpoint(source)
    if (source / INDEX).is_file():
        raise ConfigError(f"{source} is a model already; copy its folder")
    run_dir = source.parent if source.name == CHECKPOINTS else source
    checkpoints = CheckpointFolder(run_dir / CHECKPOINTS)
    if not checkpoints.list():
        raise ConfigError(f"{source} is neither a run with a checkpoint nor a checkpoint")
    return checkpoints.load()


def _model(path: Path, checkpoint: Checkpoint) -> Model:
    """Build the components of the run, with the averaged weights of the checkpoint."""
    about = checkpoint.state.get("about")
    if not about:
        raise CheckpointError(
            f"{path} was written by an older version, which did not keep what a model needs beside "
            "its weights; go on with the run: the next checkpoint has it"
        )
    config, image_shape = from_dict(about["config"]), tuple(about["image_shape"])
    start = starting_model(config)
    digest = None if start is None else start.digest
    if digest != checkpoint.state["identity"].get("init_from"):
        raise CheckpointError(
            f"init_from {config.init_from} is not the model any more that the run of {path} began "
            "with; put that one back"
        )
    objective = build_objective(
        config,
        (),
        image_shape[0],
        about["text_encoder"] if start is None else start.text_encoder.config(),
        None if start is None else (start.network, start.text_encoder),
    )
    _load_average(path, checkpoint, trained_parameters(objective))
    remember(objective, checkpoint.objective)
    return Model(objective.denoiser.network, objective.text_encoder, config, image_shape)


@torch.no_grad()
def _load_average(
    path: Path, checkpoint: Checkpoint, parameters: dict[str, torch.nn.Parameter]
) -> None:
    shapes = [
        {name: list(t.shape) for name, t in part.items()} for part in (checkpoint.ema, parameters)
    ]
    if changed := difference(*shapes):
        name, words = next(iter(changed.items()))
        raise CheckpointError(f"{path} does not fit its run: {name} has shape {words}")
    for name, parameter in parameters.items():
        parameter.copy_(checkpoint.ema[name])
