"""What `pack` writes has the pictures, captions and ids of its source, of any kind."""

import io
import json
import tarfile

import fsspec
import pytest
import torch
from pack_toys import SIZE, contents, fill, manifest_of, opened, pack, pack_section
from PIL import Image

from tinydiffusion.build import build_dataset
from tinydiffusion.datasets.folder import FolderDataset
from tinydiffusion.datasets.tar import TarDataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 pictures, of which 4 cannot be read."""
    return fill(tmp_path_factory.mktemp("source") / "set", 23)


def assert_equal_pictures(packed, expected):
    """The same pictures in the same order, whatever their ids."""
    assert len(packed) == len(expected)
    for i in range(len(expected)):
        torch.testing.assert_close(packed[i]["image"], expected[i]["image"], rtol=0, atol=0)
        assert packed[i]["caption"] == expected[i]["caption"]


def original_ids(out):
    """What the pictures were called before, in the order of the shards."""
    ids = []
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as archive:
            members = [m for m in archive.getmembers() if m.name.endswith(".json")]
            ids += [json.load(archive.extractfile(m))["id"] for m in members]
    return ids


# ---- any data set ----------------------------------------------------------------------------


@pytest.mark.parametrize("crop", ["center", "random"])
def test_a_folder_packed_is_the_folder(folder, tmp_path, crop):
    pack(folder, tmp_path / "out", *SIZE, "--shard-size", 5)
    expected = FolderDataset(path=folder, size=8, crop=crop, flip=True)
    packed = opened(tmp_path / "out", crop=crop, flip=True)
    assert_equal_pictures(packed, expected)
    assert original_ids(tmp_path / "out") == [expected[i]["id"] for i in range(19)]
    assert [packed[i]["id"] for i in (0, 18)] == [
        "shard-00000.tar/00000000", "shard-00003.tar/00000018",
    ]  # fmt: skip
    for i in range(19):
        seen = packed.visit(0, i, torch.Generator().manual_seed(i))
        number = int(seen["id"][-8:])
        visit = expected.augment(number, torch.Generator().manual_seed(i))
        torch.testing.assert_close(seen["image"], visit["image"], rtol=0, atol=0)
    manifest = manifest_of(tmp_path / "out")
    assert manifest["pictures"] == 19
    assert [shard["pictures"] for shard in manifest["shards"]] == [5, 5, 5, 4]
    assert [item["path"] for item in manifest["skipped"]] == [f"{i:04}.png" for i in (4, 9, 14, 19)]
    assert (manifest["num_skipped"], manifest["skipped_reasons"]) == (4, {"unreadable": 4})


def test_shards_are_packed_again(folder, tmp_path):
    pack(folder, tmp_path / "first", *SIZE, "--shard-size", 4)
    pack(tmp_path / "first", tmp_path / "second", *SIZE, "--shard-size", 7)
    pack(tmp_path / "first/*.tar", tmp_path / "third", *SIZE, "--shard-size", 7)
    assert contents(tmp_path / "second") == contents(tmp_path / "third")
    assert_equal_pictures(TarDataset(path=tmp_path / "second", size=8), opened(tmp_path / "first"))
    section = {"name": "shards", "path": str(tmp_path / "first"), "size": 8}
    pack_section(tmp_path, tmp_path / "fourth", "--shard-size", "7", **section)
    assert contents(tmp_path / "fourth").keys() == contents(tmp_path / "third").keys()
    fs = fsspec.filesystem("memory")
    for name, content in contents(tmp_path / "first").items():
        fs.pipe_file(f"/first/{name}", content)
    pack("memory://first", tmp_path / "fifth", *SIZE, "--shard-size", 7)
    for out in ("fourth", "fifth"):
        for shard in (tmp_path / "third").glob("*.tar"):
            assert (tmp_path / out / shard.name).read_bytes() == shard.read_bytes()
    fs.store.clear()


def test_drawn_scenes_are_packed(tmp_path):
    section = {"name": "scenes", "size": 16, "num_scenes": 9}
    pack_section(tmp_path, tmp_path / "out", "--shard-size", "4", **section)
    scenes = build_dataset(section)
    assert_equal_pictures(opened(tmp_path / "out", size=16), scenes)
    assert original_ids(tmp_path / "out") == [scenes[i]["id"] for i in range(9)]
    assert manifest_of(tmp_path / "out")["settings"]["dataset"] == section


def test_a_hugging_face_set_is_packed(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [folder / f"{i:04}.png" for i in range(6)]
    columns = {"image": [{"bytes": row.read_bytes(), "path": None} for row in rows]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    (tmp_path / "set").mkdir()
    rows = datasets.Dataset.from_dict({**columns, "label": list("abcdef")}, features)
    rows.to_parquet(tmp_path / "set/train.parquet")
    section = {
        "name": "huggingface", "path": str(tmp_path / "set"), "caption_column": "label", "size": 8,
        "crop": "random",
    }  # fmt: skip
    pack_section(tmp_path, tmp_path / "out", **section)
    assert_equal_pictures(opened(tmp_path / "out"), build_dataset(section))
    assert original_ids(tmp_path / "out") == [f"row-{i}" for i in (0, 1, 2, 3, 5)]
    assert [item["path"] for item in manifest_of(tmp_path / "out")["skipped"]] == ["row-4"]


def test_a_config_s_limit_and_size_count(folder, tmp_path):
    section = {"name": "folder", "path": str(folder), "size": 8, "limit": 7}
    pack_section(tmp_path, tmp_path / "out", "--shard-size", "4", **section)
    assert_equal_pictures(opened(tmp_path / "out"), FolderDataset(path=folder, size=8, limit=7))
    pack_section(tmp_path, tmp_path / "larger", "--size", "10", **section)
    assert opened(tmp_path / "larger", size=10)[0]["image"].shape == (3, 10, 10)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_formats(tmp_path, suffix):
    (tmp_path / "set").mkdir()
    Image.radial_gradient("L").resize((16, 16)).convert("RGB").save(tmp_path / "set/a.png")
    (tmp_path / "set/a.txt").write_text("a gradient")
    pack(tmp_path / "set", tmp_path / "out", *SIZE, "--format", suffix)
    with tarfile.open(tmp_path / "out/shard-00000.tar") as archive:
        first, second = archive.getmembers()[:2]
        content = archive.extractfile(first).read()
    assert (first.name, second.name) == (f"00000000.{suffix}", "00000000.json")
    kind = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[suffix]
    assert Image.open(io.BytesIO(content)).format == kind
    error = opened(tmp_path / "out")[0]["image"].float()
    error -= FolderDataset(path=tmp_path / "set", size=8)[0]["image"].float()
    assert error.abs().max() <= {"png": 0, "jpg": 4, "webp": 12}[suffix]
