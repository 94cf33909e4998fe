"""What a run is, and what of that may be another when it goes on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinydiffusion.training.checkpoints.data_record import Fingerprints, describe_change, digest
from tinydiffusion.training.checkpoints.folder import CheckpointError, difference


class Identity:
    """The settings of a run and its data, compared with those of a checkpoint.

    Args:
        settings: JSON-able: model, batch, schedule ...
        fingerprints: Of the data.
        run_dir: Where `data_record.save_record` has left what the data were.
    """

    def __init__(
        self, settings: Mapping[str, Any], fingerprints: Fingerprints, run_dir: Path
    ) -> None:
        self.fingerprints = fingerprints
        self.run_dir = run_dir
        values = {**settings, "data": digest(fingerprints)}
        self.values: dict[str, Any] = json.loads(json.dumps(values))

    def changes(
        self, checkpoint: Path, saved: Mapping[str, Any], allow_change: Sequence[str]
    ) -> list[str]:
        """List what has changed since a checkpoint was written, in lines.

        Args:
            checkpoint: Its folder.
            saved: Its identity.
            allow_change: Keys, or sections of them, that may differ; "data" for the fingerprints.

        Raises:
            CheckpointError: another setting differs; the message names every one.
        """
        changed = difference(saved, self.values)
        if "data" in changed:
            changed["data"] = describe_change(self.run_dir, saved.get("data"), self.fingerprints)
        refused = [key for key in changed if not _among(key, allow_change)]
        if refused:
            first = f"cannot resume {checkpoint}; these settings changed since it was written:"
            lines = [f"{key}: {changed[key]}" for key in refused]
            last = f"\nTo go on all the same: --allow-change {' '.join(refused)}"
            raise CheckpointError("\n  ".join([first, *lines]) + last)
        return [f"{key}: {words}" for key, words in changed.items()]


def _among(key: str, allowed: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)
