"""Streams equal the stored data set, in an order of nothing but seed and place, and name faults."""

import gc
import json
import os
import pickle
import random
import sys
import zipfile

import pyarrow
import pytest
import torch
from picture_toys import encode, noise, quadrants
from PIL import Image
from torch.utils.data import DataLoader

from tinydiffusion.abilities import Fingerprinted, Selective, Streaming
from tinydiffusion.datasets.huggingface import HuggingFaceDataset
from tinydiffusion.datasets.huggingface_stream import HuggingFaceStreamDataset
from tinydiffusion.pictures.usable import first_usable, usable
from tinydiffusion.protocols import Dataset
from tinydiffusion.registry import PluginError
from tinydiffusion.training.data_order import Batches

datasets = pytest.importorskip("datasets")

COUNTS = (7, 150, 1, 22)  # of the parts; more than are read at a time in one of them
TOTAL = sum(COUNTS)


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_part(folder, name, **columns):
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns).to_parquet(folder / f"train-{name}.parquet")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Pictures whose colour says part and row, and whose caption says both."""
    folder = tmp_path_factory.mktemp("parts")
    for part, count in enumerate(COUNTS):
        images = [encode(Image.new("RGB", (8, 8), (part, n, 0))) for n in range(count)]
        write_part(folder, part, image=images, text=[f"{part} {n}" for n in range(count)])
    return folder


def load(folder, **options) -> HuggingFaceStreamDataset:
    options = {"num_examples": TOTAL, "window": 16, "size": 8, **options}
    return HuggingFaceStreamDataset(path=str(folder), **options)


def visit(dataset, seed, place):
    return dataset.visit(seed, place, torch.Generator().manual_seed(place))


def ids(dataset, seed, places=range(TOTAL)):
    return [visit(dataset, seed, place)["id"] for place in places]


ALL = [f"part-{part}/row-{n}" for part, count in enumerate(COUNTS) for n in range(count)]


# ---- what comes ------------------------------------------------------------------------------


def test_it_is_what_the_protocols_ask_for(parts):
    dataset = load(parts)
    assert isinstance(dataset, (Dataset, Streaming, Selective, Fingerprinted))
    assert len(dataset) == TOTAL


def test_rows_equal_the_stored_data_set(parts):
    stored, stream = HuggingFaceDataset(path=str(parts), size=8), load(parts)
    for index in [*range(TOTAL), 3, 170, 0]:
        theirs, ours = stored[index], stream[index]
        assert (ours["id"], ours["caption"]) == (ALL[index], theirs["caption"])
        torch.testing.assert_close(ours["image"], theirs["image"])


def test_visits_equal_the_stored_data_sets_with_the_same_draws(tmp_path):
    for part in range(2):
        pictures = [encode(noise(12 + n, seed=n + 5 * part), "JPEG") for n in range(5)]
        write_part(tmp_path, part, image=pictures, text=["x"] * 5)
    view = {"size": 8, "crop": "random", "flip": True}
    stored = HuggingFaceDataset(path=str(tmp_path), **view)
    stream = load(tmp_path, num_examples=10, window=3, **view)
    for place in range(10):
        ours = visit(stream, 5, place)
        part, row = (int(name.partition("-")[2]) for name in ours["id"].split("/"))
        theirs = stored.augment(5 * part + row, torch.Generator().manual_seed(place))
        torch.testing.assert_close(ours["image"], theirs["image"])


def test_imagefolder_and_a_zip_of_it(tmp_path):
    lines = [json.dumps({"file_name": f"{n}.png", "text": f"letter {n}"}) for n in "abc"]
    files = {f"{n}.png": encode(quadrants(12 + number, 9)) for number, n in enumerate("abc")}
    files["metadata.jsonl"] = "\n".join(lines).encode()
    for kind in ("plain", "packed"):
        (tmp_path / kind).mkdir()
    with zipfile.ZipFile(tmp_path / "packed/all.zip", "w") as archive:
        for name, content in files.items():
            (tmp_path / "plain" / name).write_bytes(content)
            archive.writestr(name, content)
    stored = HuggingFaceDataset(path=str(tmp_path / "plain"), size=8)
    for kind in ("plain", "packed"):
        stream = load(tmp_path / kind, num_examples=3, window=2)
        for index in range(3):
            assert stream[index]["caption"] == stored[index]["caption"]
            torch.testing.assert_close(stream[index]["image"], stored[index]["image"])


def test_the_number_of_rows_is_the_cards_where_it_tells(tmp_path):
    write_part(tmp_path, 0, image=[encode(quadrants())] * 3, text=["x"] * 3)
    card = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: train-*\ndataset_info:\n  splits:\n  - name: train\n    num_examples: 3\n---\n"
    )
    (tmp_path / "README.md").write_text(card)
    assert len(HuggingFaceStreamDataset(path=str(tmp_path), size=8)) == 3


# ---- the order -------------------------------------------------------------------------------


def test_every_row_once_per_epoch_and_epochs_differ(parts):
    dataset = load(parts)
    first, second = ids(dataset, 1), ids(dataset, 2)
    assert sorted(first) == sorted(second) == sorted(ALL)
    assert first != second
    assert ids(load(parts), 1) == first
    orders = {tuple(dict.fromkeys(name.split("/")[0] for name in ids(dataset, s))) for s in (1, 2)}
    assert len(orders) == 2  # of the parts


def test_near_rows_come_at_near_times(parts):
    order = ids(load(parts, window=5), 3)
    unshuffled = ids(load(parts, window=1), 3)
    for start in range(0, TOTAL, 5):
        assert sorted(order[start : start + 5]) == sorted(unshuffled[start : start + 5])
    assert order != unshuffled


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_together_see_what_one_sees(parts, count):
    """Each with batches of 4, its own data set, and a stop in the middle of a window."""
    expected = ids(load(parts), 7)
    seen: list[str] = [""] * TOTAL
    for rank in range(count):
        dataset = load(parts)
        places = [p for p in range(TOTAL) if p // 4 % count == rank]
        stop = len(places) // 2
        for mine in (places[:stop], places[stop:]):
            for place, id_ in zip(mine, ids(dataset, 7, mine), strict=True):
                seen[place] = id_
            dataset = load(parts)
    assert seen == expected


def test_any_place_at_any_time_gives_the_same(parts):
    expected = {seed: ids(load(parts), seed) for seed in (1, 2)}
    dataset = load(parts)
    draw = random.Random(0)
    for _ in range(60):
        seed, place = draw.choice((1, 2)), draw.randrange(TOTAL)
        assert visit(dataset, seed, place)["id"] == expected[seed][place]
        if draw.random() < 0.3:
            assert dataset[place]["id"] == ALL[place]
        if draw.random() < 0.1:
            dataset = load(parts)


def test_parts_whose_length_is_known_are_not_read_again(parts):
    dataset, last = load(parts, window=5), TOTAL - 1
    ids(dataset, 1)
    read: list[int] = []
    stream = dataset._visited
    tables = stream._tables
    stream._tables = lambda part: read.append(part) or tables(part)
    assert visit(dataset, 2, last)["id"] == visit(load(parts, window=5), 2, last)["id"]
    assert 0 < len(read) < len(COUNTS)


def test_more_files_than_parts(tmp_path, monkeypatch):
    from tinydiffusion.shards import row_stream

    monkeypatch.setattr(row_stream, "MAX_PARTS", 2)
    for part in range(5):
        write_part(tmp_path, part, image=[encode(quadrants())], text=[str(part)])
    dataset = load(tmp_path, num_examples=5, window=2)
    assert [dataset[n]["caption"] for n in range(5)] == list("01234")
    assert sorted(visit(dataset, 1, n)["caption"] for n in range(5)) == list("01234")


class Visits(torch.utils.data.Dataset):
    def __init__(self, dataset, seed):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place):
        return visit(self.dataset, self.seed, place)["id"]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_loader_see_the_same(parts, context):
    """They inherit, or are sent, a data set that has been read from in their parent."""
    dataset = load(parts)
    expected = ids(dataset, 3)
    assert ids(dataset, 3, range(20)) == expected[:20]
    assert dataset[5]["id"] == ALL[5]
    if context == "spawn":
        copied = pickle.loads(pickle.dumps(dataset))
        assert ids(copied, 3, range(12, 20)) == expected[12:20]
        assert copied._visited is not dataset._visited
        return
    loader = DataLoader(
        Visits(dataset, 3), batch_size=5, num_workers=2, multiprocessing_context=context,
        sampler=range(10, 60),
    )  # fmt: skip
    assert [id_ for batch in loader for id_ in batch] == expected[10:60]
    assert ids(dataset, 3, range(20, 40)) == expected[20:40]  # the parent goes on


# ---- memory ----------------------------------------------------------------------------------


def test_memory_is_that_of_a_window_and_one_file(tmp_path):
    """Of 16 files of 2.5 MB a window holds 1.25 MB, and the reader of Parquet one file or two."""
    blobs = [os.urandom(25_000) for _ in range(100)]
    for part in range(16):
        write_part(tmp_path, part, image=blobs, text=["x"] * 100)
    stream = load(tmp_path, num_examples=1600, window=50)._visited
    gc.collect()  # of what other tests have left open
    before, most = pyarrow.total_allocated_bytes(), 0
    for number in range(32):
        assert len(stream.rows(1, number)) == 50
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert 0 < most < 10e6
    assert len(stream._rows) == 50


# ---- faults ----------------------------------------------------------------------------------


@pytest.fixture
def faulty(tmp_path):
    good = encode(quadrants())
    images = [good, None, good[:60], encode(noise(4)), *[good] * 4]
    texts = ["x", "x", "x", "x", None, "x", "x", "x"]
    write_part(tmp_path, 0, image=images, text=texts)
    return tmp_path


def ids_in_a_batch(dataset):
    return Batches(dataset, 8).batch_at(0)["id"]


def test_an_unusable_picture_is_named_and_left_out_never_replaced(faulty):
    dataset = load(faulty, num_examples=8, window=8)
    with pytest.warns(UserWarning, match=r"part-0/row-\d: .*left out") as caught:
        found = [example["id"] for example in usable(dataset, range(8))]
    assert found == [f"part-0/row-{row}" for row in (0, 5, 6, 7)]
    assert len(caught) == 4
    told = dataset.describe_skipped()
    for reason in ("missing or not a file", "unreadable", "smaller than size=8", "without caption"):
        assert f"1 {reason}" in told
    order = ids_in_a_batch(dataset)
    assert sorted(order) == found
    with pytest.warns(UserWarning, match="left out"):
        assert ids_in_a_batch(load(faulty, num_examples=8, window=8)) == order
    assert dataset.describe_skipped() == told  # each counted once


def test_a_window_without_a_usable_picture_is_an_error(faulty):
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="none of the 8 pictures of the data set can be used"),
    ):
        first_usable(load(faulty, num_examples=8, window=8, size=256))


def test_a_shorter_stream_is_an_error_that_says_how_long_it_is(parts):
    dataset = load(parts, num_examples=TOTAL + 1)
    assert ids(dataset, 1, range(16)) == ids(load(parts), 1, range(16))
    for ask in (lambda: visit(dataset, 1, TOTAL), lambda: dataset[TOTAL]):
        with pytest.raises(ValueError, match=f"ends after {TOTAL} rows.*set num_examples to"):
            ask()


def test_a_longer_stream_is_named(parts):
    dataset = load(parts, num_examples=TOTAL - 3)
    with pytest.warns(UserWarning, match=f"goes on behind {TOTAL - 3} rows") as caught:
        seen = ids(dataset, 1, range(TOTAL - 3))
    assert len(set(seen)) == TOTAL - 3
    assert len(caught) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path, parts):
    for file in sorted(parts.iterdir()):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damaged = tmp_path / "train-3.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    dataset = load(tmp_path)
    assert dataset[0]["id"] == ALL[0]
    with pytest.raises(ValueError, match="cannot be read in part 3 of 4"):
        dataset[TOTAL - 1]
    assert dataset[0]["id"] == ALL[0]


def test_fingerprints_tell_files_and_do_not_change_by_copying(tmp_path, parts):
    before = load(parts).fingerprints()
    assert list(before) == [f"train-{part}.parquet" for part in range(4)]
    for file in parts.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert load(tmp_path).fingerprints() == before
    write_part(tmp_path, 1, image=[encode(quadrants())], text=["x"])
    after = load(tmp_path).fingerprints()
    assert [name for name in after if after[name] != before[name]] == ["train-1.parquet"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "img"}, "no column 'img'.*its columns are image, text, label"),
        ({"caption_column": "txt"}, r"no column 'txt' \(did you mean 'text'\?\)"),
        ({"caption_column": "label"}, "row-0: 'label' must be text or a list of texts, got 7"),
        ({"image_column": "text"}, "image_column 'text' must hold pictures"),
        ({"split": "test"}, "test"),
        ({"split": "train[:1]"}, "train"),
        ({"crop": "middle"}, "crop must be one of center, random"),
        ({"window": 0}, "window must be at least 1"),
        ({"num_examples": 0}, "num_examples must be at least 1, got 0"),
        ({"num_examples": None}, "does not tell how many rows it has.*set num_examples"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    write_part(tmp_path, 0, image=[encode(quadrants())], text=["x"], label=[7])
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **{"num_examples": 1, **options})[0]


def test_no_columns_no_data_set_no_index(tmp_path, parts):
    with pytest.raises(ValueError, match="cannot load data set"):
        load(tmp_path / "none")
    for index in (-1, TOTAL):
        with pytest.raises(IndexError):
            load(parts)[index]
    (tmp_path / "train.csv").write_text("image,text\na,b\n")
    with pytest.raises(ValueError, match="does not tell its columns"):
        load(tmp_path)


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PluginError, match=r"pip install 'tinydiffusion\[data\]'"):
        load("anything")
