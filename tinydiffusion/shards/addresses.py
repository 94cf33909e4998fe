"""The shards of a set, on this machine or at any address that fsspec reads."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tinydiffusion.pictures.captions import decode
from tinydiffusion.pictures.scan import Skipped
from tinydiffusion.registry import PluginError
from tinydiffusion.shards.manifest import FILE, Manifest, ShardRecord, parse_manifest
from tinydiffusion.shards.members import RANGE, SUFFIXES, WILDCARDS, expand_range, find_shards

HERE = re.compile(r"(file|local)://")


class Shard(NamedTuple):
    """A tar file of a set."""

    name: str  # relative to the set; the ids of its pictures begin with it
    place: str  # path, or address
    is_remote: bool
    size: int | None  # bytes; None where it is not known without reading
    stamp: str  # differs where the file differs
    record: ShardRecord | None  # entry in the manifest

    @property
    def packed(self) -> ShardRecord | None:
        """The manifest's record, if the file still has the recorded size (or an unknown one)."""
        fits = self.record is not None and self.size in (None, self.record.bytes)
        return self.record if fits else None


class ShardSet(NamedTuple):
    """All shards of a set, in their order."""

    shards: list[Shard]
    skipped: list[Skipped]  # listed but missing, or present but not listed
    manifest: Manifest | None


def find_set(path: str) -> ShardSet:
    """Find the shards at a path or address, sorted by name, without reading them.

    Args:
        path: A shard, a folder of them, a pattern such as "shards/*.tar" or a range such as
            "shards/{00000..00099}.tar", on this machine or as an address ("s3://bucket/set"). A
            folder's `manifest.json` is read and lists its shards.

    Raises:
        ValueError: there are no shards, or the manifest is broken.
        PluginError: a package is needed that reads such addresses.
    """
    if HERE.match(path):
        path = HERE.sub("", path, count=1)
    return _find_remote(path) if "://" in path else _find_here(Path(path))


# ---- on this machine -------------------------------------------------------------------------


def _find_here(path: Path) -> ShardSet:
    root, files = find_shards(path)

    def shard(name: str, record: ShardRecord | None) -> Shard:
        about = (root / name).stat()
        place = str((root / name).resolve())
        return Shard(name, place, False, about.st_size, stamp_of(place, about), record)

    names = [file.relative_to(root).as_posix() for file in files]
    try:
        manifest = None
        if path.is_dir() and (path / FILE).is_file():
            manifest = parse_manifest(decode((path / FILE).read_bytes()), str(path / FILE))
        return _of_names(names, manifest, shard)
    except OSError as error:
        raise ValueError(f"cannot read {error.filename}: {error.strerror}") from error


def stamp_of(place: str, about: os.stat_result) -> str:
    """Return the `stamp` of a file on this machine."""
    return f"{place} {about.st_size} {about.st_mtime_ns}"


def _of_names(
    names: Iterable[str], manifest: Manifest | None, shard: Callable[[str, Any], Shard]
) -> ShardSet:
    """Return the set of the existing files, compared with the manifest if there is one."""
    if manifest is None:
        return ShardSet([shard(name, None) for name in names], [], None)
    there = set(names)
    records = {record.name: record for record in manifest.shards}
    missing = [
        Skipped(name, f"shard missing: {record.pictures} pictures")
        for name, record in records.items()
        if name not in there
    ]
    others = [Skipped(name, f"shard not listed in {FILE}") for name in sorted(there - {*records})]
    shards = [shard(name, record) for name, record in records.items() if name in there]
    return ShardSet(shards, missing + others, manifest)


# ---- elsewhere -------------------------------------------------------------------------------


def _find_remote(url: str) -> ShardSet:
    fs, path = filesystem(url)
    with naming_remote_errors(url):
        if RANGE.search(path):
            files, root = list(expand_range(path)), RANGE.split(path)[0].rpartition("/")[0]
        elif set(path) & set(WILDCARDS):
            files = sorted(fs.glob(path))
            root = re.split(f"[{re.escape(WILDCARDS)}]", path)[0].rpartition("/")[0]
        elif path.endswith(SUFFIXES):
            files, root = [path], path.rpartition("/")[0]
        else:
            return _find_folder(fs, path.rstrip("/"), url)
        if not files:
            raise _none_at(url)
        return ShardSet([_remote(fs, file, root) for file in files], [], None)


def _find_folder(fs: Any, root: str, url: str) -> ShardSet:
    try:
        content = fs.cat_file(f"{root}/{FILE}")
    except FileNotFoundError:
        files = sorted(f for f in fs.ls(root, detail=False) if str(f).endswith(SUFFIXES))
        if not files:
            raise _none_at(url) from None
        return ShardSet([_remote(fs, file, root) for file in files], [], None)
    manifest = parse_manifest(decode(content), f"{url}/{FILE}")
    sizes = _listed_sizes(fs, root)

    def shard(name: str, record: ShardRecord) -> Shard:
        place = fs.unstrip_protocol(f"{root}/{name}")
        return Shard(name, place, True, sizes.get(name), f"{place} {record.sha256}", record)

    return _of_names(sizes or [record.name for record in manifest.shards], manifest, shard)


def _listed_sizes(fs: Any, root: str) -> dict[str, int | None]:
    """Return shard -> size in bytes, None if unknown; empty without a listing (most of http)."""
    try:
        entries = fs.ls(root, detail=True)
    except (FileNotFoundError, NotImplementedError):
        return {}
    names = {PurePosixPath(entry["name"]).name: entry.get("size") for entry in entries}
    return {name: size for name, size in names.items() if name.endswith(SUFFIXES)}


def _remote(fs: Any, file: str, root: str) -> Shard:
    place = fs.unstrip_protocol(file)
    name = file.removeprefix(root).lstrip("/")
    return Shard(name, place, True, fs.info(file).get("size"), f"{place} {fs.ukey(file)}", None)


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it; for this process only.

    Raises:
        ValueError: the kind of address is unknown, or the server does not respond.
        PluginError: a package is needed that reads it.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise PluginError(f"cannot read {url}: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {url}: {str(error).splitlines()[0]}") from error


@contextmanager
def naming_remote_errors(url: str) -> Iterator[None]:
    """Raise ValueError in place of an OSError inside the `with`.

    Raises:
        ValueError: the address cannot be read; one line.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot read {url}: {error.strerror or error}") from error


def _none_at(url: str) -> ValueError:
    return ValueError(f"no shards at {url}; give a .tar file, a folder of them or a pattern")


def is_shards(path: Path) -> bool:
    """Return whether a path is to be read by the data set `tar` rather than by `folder`."""
    return ".tar" in path.name or (path.is_dir() and any(path.glob("*.tar*")))
