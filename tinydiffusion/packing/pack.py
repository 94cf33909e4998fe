"""`tinydiffusion pack`: pack any data set into tar shards with a manifest."""

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import PIL
from rich.console import Console

from tinydiffusion import registry
from tinydiffusion.packing.progress import Packer, Progress, finished
from tinydiffusion.packing.source import Item, Source, id_of, open_source
from tinydiffusion.packing.writer import QUALITY, Result, encode
from tinydiffusion.pictures.decode import quiet
from tinydiffusion.pictures.packed import describe
from tinydiffusion.pictures.views import View, view_of
from tinydiffusion.runtime.outputs import check_owner, held
from tinydiffusion.shards.addresses import is_shards
from tinydiffusion.shards.manifest import Manifest

LOCAL = ("path", "workers")  # options of a data set that do not affect its pictures

console = Console(highlight=False, markup=False, soft_wrap=True)


def pack(
    section: dict[str, Any], out: Path, *, picture_format: str, shard_size: int, workers: int,
    overwrite: bool = False,
) -> int:  # fmt: skip
    """Pack a data set into shards with a manifest; continue the work of a call that was killed.

    Args:
        section: The data set, as in a config; its `size` becomes that of the pictures.
        out: The folder of the shards.
        picture_format: One of `FORMATS`.
        shard_size: Number of pictures per shard.
        workers: Number of threads that decode and encode; does not change the output.
        overwrite: See `outputs.held`.

    Returns:
        Exit code, 0.

    Raises:
        ValueError: there is no such set, it has changed since an earlier call, `out` has other
            contents, or more than half of the pictures cannot be used.
        DiskError: the folder cannot be written.
    """
    section = {"size": _default_size(section["name"]), **section}
    settings = {
        "dataset": {key: value for key, value in section.items() if key not in LOCAL},
        "picture_format": picture_format,
        "quality": QUALITY if picture_format in ("jpg", "webp") else None,
        "shard_size": shard_size,
        "pillow": PIL.__version__,  # another version may give other bytes
    }
    settings = json.loads(json.dumps(settings))
    if manifest := finished(out, settings):
        _say(f"{out} is packed already", manifest)
        return 0
    check_owner(out, "pack", overwrite=overwrite)
    source = open_source(section)
    with held(out, "pack", overwrite=overwrite):
        progress = Progress(out, settings)
        encoded = partial(encode, view=_view(section), suffix=picture_format)
        results = _results(source, progress, encoded, workers)
        with closing(Packer(progress, shard_size, picture_format)) as packer:
            manifest = _write(source, packer, results)
    _say(f"packed in {out}", manifest)
    return 0


def section_of(path: str) -> dict[str, Any]:
    """Return the `dataset` section for a path or address: shards, or a folder of pictures."""
    name = "shards" if "://" in path else "tar" if is_shards(Path(path)) else "folder"
    return {"name": name, "path": path}


def _default_size(name: str) -> Any:
    """Return the default size of a data set's pictures, None where it has no such option."""
    options = registry.options_of(registry.load("dataset", name)) or {}
    return options["size"].default if "size" in options else None


def _view(section: dict[str, Any]) -> View | None:
    """Return the view for packing: pictures cover the size, to be cropped later, or are padded."""
    if section["size"] is None:
        return None
    fit = section.get("fit", "crop")
    crop = "random" if fit == "crop" else "center"
    return view_of(section["size"], fit=fit, crop=crop, max_value=section.get("max_value"))


def _results(
    source: Source, progress: Progress, encoded: Callable[[Item], Result], workers: int
) -> Iterator[tuple[str, Result]]:
    """Yield id and result of each further item, in order; few are held in memory at a time."""
    _check_unchanged(source, progress)
    waiting: deque[tuple[str, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool, quiet():
        for item in source.items(progress.taken):
            waiting.append((id_of(item), pool.submit(encoded, item)))
            if len(waiting) > 2 * workers:
                id_, future = waiting.popleft()
                yield id_, future.result()
        for id_, future in waiting:
            yield id_, future.result()


def _check_unchanged(source: Source, progress: Progress) -> None:
    if not progress.steps:
        return
    last = progress.steps[-1].last
    item = next(source.items(progress.taken - 1), None)
    if item is None or id_of(item) != last:
        now = "missing" if item is None else repr(id_of(item))
        raise ValueError(
            f"the data set has changed since {progress.out} was begun: picture {progress.taken} "
            f"was {last!r} and is {now}; remove the folder or name another one"
        )


def _write(source: Source, packer: Packer, results: Iterator[tuple[str, Result]]) -> Manifest:
    """Write the results to shards, and then the manifest."""
    if packer.number != source.limit:
        for id_, result in results:
            packer.take(id_, result)
            if packer.number == source.limit:
                break
    packer.finish_shard()
    progress = packer.progress
    skipped = progress.skipped + packer.skipped
    if not packer.number or len(skipped) > packer.number:
        raise ValueError(
            f"{len(skipped)} of {len(skipped) + packer.number} pictures cannot be used, at most "
            f"half may be: {describe(skipped)}. Mend or remove them, and remove {progress.out}"
        )
    return progress.finish(skipped)


def _say(what: str, manifest: Manifest) -> None:
    pictures = sum(shard.pictures for shard in manifest.shards)
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    console.print(f"{what}: {pictures} pictures, {len(manifest.shards)} shards, {megabytes:.1f} MB")
    if manifest.skipped:
        console.print(f"  skipped: {describe(list(manifest.skipped))}")
