"""`manifest.json`: the shards of a packed set, and the settings that it was made with."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from tinydiffusion.pictures.captions import parse_record
from tinydiffusion.pictures.scan import Skipped

FILE = "manifest.json"
FORMAT, VERSION = "tinydiffusion-shards", 1
MOST = 2**53  # bound of integers that every JSON reader reads exactly
FIELDS = {"name": str, "pictures": int, "bytes": int, "sha256": str}


class ShardRecord(NamedTuple):
    """Name, sizes and hash of a shard as it was written."""

    name: str
    pictures: int
    bytes: int
    sha256: str  # hash of the file


class Manifest(NamedTuple):
    """All shards of a packed set, in their order."""

    settings: dict[str, Any]
    shards: list[ShardRecord]
    skipped: Sequence[Skipped] = ()


def dump_manifest(manifest: Manifest) -> bytes:
    """Return the content of the manifest's file; it is deterministic."""
    reasons = Counter(item.reason.partition(":")[0] for item in manifest.skipped)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "settings": manifest.settings,
        "pictures": sum(shard.pictures for shard in manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "num_skipped": len(manifest.skipped),
        "skipped_reasons": dict(sorted(reasons.items())),
        "shards": [shard._asdict() for shard in manifest.shards],
        "skipped": [item._asdict() for item in manifest.skipped],
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def parse_manifest(text: str, where: str) -> Manifest:
    """Parse the text of a manifest's file.

    Args:
        text: Content of the file.
        where: Name of the file, for messages.

    Raises:
        ValueError: the text is not a manifest, or is of another version; names the file.
    """
    try:
        content = parse_record(text)
        if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"not of format {FORMAT!r}, version {VERSION}")
        shards = [_record(shard) for shard in content["shards"]]
        if len({shard.name for shard in shards}) < len(shards):
            raise ValueError("a shard is listed twice")
        skipped = [Skipped(item["path"], item["reason"]) for item in content["skipped"]]
        return Manifest(content["settings"], shards, skipped)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: no manifest of packed shards: {error}") from error


def _record(content: Any) -> ShardRecord:
    if set(content) != set(FIELDS) or any(
        type(content[field]) is not kind for field, kind in FIELDS.items()
    ):
        raise ValueError(f"a shard must have {', '.join(FIELDS)}, got {content!r:.200}")
    record = ShardRecord(**content)
    # Untrusted: the name must not lead out of the set.
    if not re.fullmatch(r"[\w-][\w.-]*\.tar", record.name):
        raise ValueError(f"a shard named {record.name!r:.100}")
    if not (0 <= record.pictures < MOST and 0 <= record.bytes < MOST):
        raise ValueError(f"shard {record.name} has absurd numbers")
    return record
