"""Proves that real pictures come out of the folder data set byte for byte."""

from pathlib import Path

import pytest
from PIL import Image

from tinydiffusion.datasets.folder import FolderDataset

EMOJI = Path(__file__).parents[3] / "shared/data/fluent-emoji-64/train"


@pytest.mark.skipif(not EMOJI.is_dir(), reason="the emoji set is not beside this repository")
def test_real_pictures_keep_every_byte_at_their_own_size():
    dataset = FolderDataset(path=EMOJI, size=64)
    assert (len(dataset), dataset.skipped) == (1397, [])
    assert [dataset[i]["id"] for i in range(1397)] == sorted(
        path.name for path in EMOJI.glob("*.png")
    )
    for index in range(0, len(dataset), 200):
        example = dataset[index]
        with Image.open(EMOJI / example["id"]) as image:
            assert example["image"].permute(1, 2, 0).numpy().tobytes() == image.tobytes()
        assert example["caption"].startswith("a 3D emoji of ")
