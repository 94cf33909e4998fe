"""What a run finds in its folder: its own earlier work, another run's, or files of the user."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinydiffusion import config as config_file
from tinydiffusion.config import Config, ConfigError
from tinydiffusion.model_folder.finding import MODEL
from tinydiffusion.model_folder.layout import INDEX
from tinydiffusion.protocols import TextEncoder
from tinydiffusion.runtime.durable import replace_file
from tinydiffusion.runtime.errors import SettingWarning
from tinydiffusion.runtime.outputs import check_owner
from tinydiffusion.training.checkpoints.folder import CHECKPOINTS, CheckpointFolder, difference

CONFIG = "config.yaml"
WRITTEN = ".config.sha256"
"""File with the SHA-256 of the config.yaml that a run wrote, by which an edit is noticed."""
VOCABULARY = "text_encoder.json"
"""File from which a run's text encoder is rebuilt: other captions give another vocabulary."""
REPORT = "report.json"
GRID = "grid.png"
BEST, BEST_RECORD = "best", "best.json"
SHOWN = 5  # changed settings that a message names


def check_run_folder(run_dir: Path, config: Config) -> None:
    """Check that a run may write into a folder, before anything is computed.

    A folder with checkpoints belongs to a run that continues, and is checked when it is resumed.

    Raises:
        ConfigError: there is no checkpoint, but there are results that would be trained anew, or a
            config.yaml that no run wrote.
    """
    if has_checkpoints(run_dir):
        return
    if results := _results(run_dir):
        raise ConfigError(
            f"{run_dir} holds {' and '.join(results)} of a run whose checkpoints are gone, which "
            "would be trained anew and replaced; take another --run-dir, or --overwrite"
        )
    if (changes := edits(run_dir, config)) is not None:
        file = run_dir / CONFIG
        told = f" ({'; '.join(changes)})" if changes else ""
        raise ConfigError(
            f"{file} was not written by a run and would be replaced{told}; move it out of there, "
            f"or take another --run-dir. To train by it: --config {file} --run-dir another"
        )


def check_run_owner(run_dir: Path, *, overwrite: bool) -> None:
    """Check that a folder belongs to a run; raise ValueError otherwise, see `outputs.held`.

    A run with checkpoints continues, so that `overwrite` has no effect: that is a warning.
    """
    check_owner(run_dir, "train", overwrite=overwrite)
    if overwrite and has_checkpoints(run_dir):
        told = "--overwrite has no effect: the run has checkpoints, and goes on"
        warnings.warn(told, SettingWarning, stacklevel=2)


def has_checkpoints(run_dir: Path) -> bool:
    """Return whether this folder has a checkpoint of a run."""
    return bool(CheckpointFolder(run_dir / CHECKPOINTS).list())


def missing_results(run_dir: Path) -> list[str]:
    """List the results of a finished run that are missing from its folder."""
    files = {MODEL: run_dir / MODEL / INDEX, GRID: run_dir / GRID, REPORT: run_dir / REPORT}
    return [name for name, file in files.items() if not file.is_file()]


def edits(run_dir: Path, config: Config) -> Sequence[str] | None:
    """Compare the config.yaml of a folder with what a run wrote there.

    Args:
        run_dir: Folder of the run.
        config: The config that this run would write.

    Returns:
        None where there is no such file, the last run wrote it, or this run would write the same.
        Otherwise the settings that differ, in words; empty where only the text differs.
    """
    file, record = run_dir / CONFIG, run_dir / WRITTEN
    if not file.is_file() or file.read_bytes() == config_file.to_yaml(config):
        return None
    if record.is_file() and record.read_text() == _sha256(file):
        return None
    try:
        there = config_file.to_dict(config_file.load(file))
    except ConfigError as error:
        return [str(error)]
    changes = difference(there, config_file.to_dict(config))
    lines = [f"{key}: {words}" for key, words in changes.items()]
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *more]


def save_config(run_dir: Path, config: Config) -> str | None:
    """Write config.yaml and, beside it, the hash by which an edit is noticed.

    Returns:
        A remark on the edits of the file that is replaced; None where there were none.
    """
    changes = edits(run_dir, config)
    config_file.save(config, run_dir / CONFIG)
    replace_file(run_dir / WRITTEN, _sha256(run_dir / CONFIG).encode())
    if changes is None:
        return None
    told = "; ".join(changes) or "no setting differs"
    return f"{run_dir / CONFIG} was edited and is replaced: {told}"


def save_vocabulary(run_dir: Path, text_encoder: TextEncoder) -> None:
    """Write the config of a text encoder that learned its vocabulary; not of a frozen one."""
    if not text_encoder.frozen:
        vocabulary = json.dumps(text_encoder.config())
        replace_file(run_dir / VOCABULARY, vocabulary.encode())


def earlier_vocabulary(run_dir: Path) -> dict[str, Any] | None:
    """Read the text encoder's config of a run in this folder; None without a checkpoint."""
    file = run_dir / VOCABULARY
    if not (file.exists() and has_checkpoints(run_dir)):
        return None
    return json.loads(file.read_bytes())


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _results(run_dir: Path) -> list[str]:
    """List the results that would be lost if a run began anew here."""
    names = [name for name in (MODEL, GRID, REPORT) if name not in missing_results(run_dir)]
    return names + [BEST] * ((run_dir / BEST / INDEX).is_file() and _has_learned(run_dir))


def _has_learned(run_dir: Path) -> bool:
    """Return whether the best model is later than the start: a run killed early may begin again."""
    try:
        return json.loads((run_dir / BEST_RECORD).read_bytes())["pictures_seen"] > 0
    except (OSError, ValueError, KeyError, TypeError):
        return True  # unknown, so it is kept
