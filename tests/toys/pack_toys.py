"""Captioned folders to pack, and what became of them."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tinydiffusion.cli.main import main
from tinydiffusion.datasets.shards import ShardsDataset

SIZE = ("--size", "8")


def fill(folder, count, side=(14, 11)):
    """Pictures of noise; every third has two captions, one of five cannot be read."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (*side, 3), dtype=np.uint8)
        name = f"{i:04}.png"
        Image.fromarray(pixels).save(folder / name)
        if i % 5 == 4:
            (folder / name).write_bytes((folder / name).read_bytes()[:100])
        text = [f"first {i}", f"second {i}"] if i % 3 == 0 else f"only {i}"
        rows.append(json.dumps({"file_name": name, "text": text}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def pack(*arguments, code=0):
    assert main(["pack", *map(str, arguments)]) == code


def pack_section(tmp_path, out, *arguments, **section):
    """Pack the data set of a config file."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"dataset": section, "validation": None}))
    pack(out, "--config", file, *arguments)


def opened(path, size=8, **options):
    return ShardsDataset(path=path, size=size, **options)


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_bytes())


def contents(folder):
    """All files that are there to stay, by name."""
    files = [file for file in Path(folder).iterdir() if file.name != ".lock"]
    return {file.name: file.read_bytes() for file in files}
