"""What a run was trained on, example by example, so that a change can be told in words."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from tinydiffusion.runtime.durable import make_folder, replace_file, sweep

Fingerprints = Mapping[str, str]
"""Example id -> fingerprint of its content, in the data set's order."""


def digest(fingerprints: Fingerprints) -> str:
    """SHA-256 of all ids and fingerprints, order included."""
    return hashlib.sha256(_json(fingerprints)).hexdigest()


def save_record(run_dir: Path, fingerprints: Fingerprints) -> None:
    """Write `data/<digest>.json`, unless it is there; a checkpoint keeps the digest only."""
    file = _file(run_dir, digest(fingerprints))
    if not file.exists():
        make_folder(file.parent)
        sweep(file.parent)
        replace_file(file, _json(fingerprints))


def describe_change(run_dir: Path, before: str | None, fingerprints: Fingerprints) -> str:
    """Describe what changed since the digest was `before`: counts, and the first of each."""
    file = _file(run_dir, str(before))
    try:
        content = file.read_bytes()
    except OSError:
        content = b""
    if hashlib.sha256(content).hexdigest() != before:
        return f"changed; {file} does not tell what"
    old: dict[str, str] = json.loads(content)
    kinds = {
        "added": [name for name in fingerprints if name not in old],
        "removed": [name for name in old if name not in fingerprints],
        "edited": [name for name in old if fingerprints.get(name, old[name]) != old[name]],
    }
    words = [f"{len(names)} {kind} (first {names[0]!r})" for kind, names in kinds.items() if names]
    kept = [name for name in old if name in fingerprints]
    if kept != [name for name in fingerprints if name in old]:
        words.append("order changed")
    return ", ".join(words)


def _file(run_dir: Path, digest: str) -> Path:
    return run_dir / "data" / f"{digest[:16]}.json"


def _json(fingerprints: Fingerprints) -> bytes:
    return json.dumps(dict(fingerprints)).encode()
