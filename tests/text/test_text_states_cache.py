"""Proves that captions encoded ahead are run once in all processes, and read back as they were."""

import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tinydiffusion.abilities import EncodingAhead
from tinydiffusion.text import ahead as text_ahead
from tinydiffusion.text.packed_states import StatesFolder
from tinydiffusion.text.state_cache import CaptionStates
from tinydiffusion.text_encoders.open_clip import OpenClipTextEncoder

CAPTIONS = ["a red circle above a blue square", "A  dog's   life", "🙂 שלום \0 42", "\ud800 a dog"]
MANY = [f"{shape} number {n}" for n in range(40) for shape in ("circle", "star", "a long square")]


def load(folder, **options) -> OpenClipTextEncoder:
    return OpenClipTextEncoder.from_captions([], model=f"local-dir:{folder}", **options)


def parts(folder) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def count_runs(encoder) -> list[int]:
    """Captions that the tower sees from now on, call by call."""
    seen: list[int] = []
    encoder.tower.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    return seen


def assert_same(states, others):
    for our, other in zip(states[:3], others[:3], strict=True):
        torch.testing.assert_close(our, other, atol=0, rtol=0)


def write(store: StatesFolder, *captions: str, length: int = 3) -> dict[str, CaptionStates]:
    new = {c: CaptionStates(torch.randn(length, 4), torch.randn(2)) for c in captions}
    store.add(new)
    return new


def test_encoded_ahead_equals_encoded_now_and_nothing_is_run(open_clip_folder, tmp_path):
    ahead, later = (load(open_clip_folder, cache_dir=tmp_path) for _ in range(2))
    assert isinstance(ahead, EncodingAhead)
    ahead.encode_ahead(CAPTIONS)
    later.encode_ahead(CAPTIONS[::-1])
    runs = [count_runs(encoder) for encoder in (ahead, later)]
    assert_same(ahead.encode(CAPTIONS), later.encode(CAPTIONS))
    assert_same(ahead.encode(["", *CAPTIONS]), load(open_clip_folder).encode(["", *CAPTIONS]))
    assert runs == [[], []]
    assert len(parts(tmp_path)) == 1


def test_the_default_is_the_users_cache(open_clip_folder, cache_folder):
    load(open_clip_folder).encode_ahead(CAPTIONS)
    assert len(parts(cache_folder.parent / "text_states")) == 1


def test_a_caption_that_was_not_ahead_is_run_once_and_not_kept(open_clip_folder, tmp_path):
    encoder = load(open_clip_folder, cache_dir=tmp_path)
    encoder.encode_ahead(CAPTIONS)
    runs = count_runs(encoder)
    both = encoder.encode([CAPTIONS[0], "a prompt", "a prompt"])
    assert_same(encoder.encode(["a prompt"]), both.rows(slice(2, None)))
    assert runs == [1]
    assert len(parts(tmp_path)) == 1


def test_shares_are_all_captions_once_and_read_each_others(open_clip_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(text_ahead, "BIN", 12)
    first, second, third = (load(open_clip_folder, cache_dir=tmp_path) for _ in range(3))
    runs = [count_runs(encoder) for encoder in (first, second, third)]
    for rank, encoder in enumerate((first, second, third)):
        encoder.encode_ahead([*MANY, *MANY], share=(rank, 3))
    assert sum(map(sum, runs)) == len(MANY) + 1
    assert all(sum(seen) > 10 for seen in runs)
    before = [list(seen) for seen in runs]
    states = [encoder.encode([*MANY, ""]) for encoder in (first, second, third)]
    assert_same(states[0], states[1])
    assert_same(states[0], states[2])
    assert runs == before
    alone = load(open_clip_folder, cache_dir=tmp_path / "alone")
    alone.encode_ahead(MANY)  # in the same batches: equal to the last bit
    assert_same(alone.encode([*MANY, ""]), states[0])


def test_another_number_of_processes_finds_all(open_clip_folder, tmp_path):
    for rank in range(2):
        load(open_clip_folder, cache_dir=tmp_path).encode_ahead(MANY, share=(rank, 2))
    again = load(open_clip_folder, cache_dir=tmp_path)
    runs = count_runs(again)
    again.encode_ahead([*MANY, "a new one"])
    assert runs == [1]


def test_progress_counts_the_share(open_clip_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(text_ahead, "BATCH", 16)
    told: list[tuple[int, int]] = []
    encoder = load(open_clip_folder, cache_dir=tmp_path)
    encoder.encode_ahead(MANY, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (121, 121)
    assert [done for done, _ in told] == [0, *range(16, 121, 16), 121]
    told.clear()
    encoder.encode_ahead(MANY, progress=lambda done, total: told.append((done, total)))
    assert told == [(121, 121)]


def test_parts_are_bounded_and_so_is_what_a_crash_loses(open_clip_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(text_ahead, "BATCH", 10)
    monkeypatch.setattr(text_ahead, "PART_BYTES", 20_000)
    encoder = load(open_clip_folder, cache_dir=tmp_path)
    ran = []

    def stop(*_):
        ran.append(1)
        if len(ran) == 9:
            raise KeyboardInterrupt

    hook = encoder.tower.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        encoder.encode_ahead(MANY)
    sizes = [path.stat().st_size for path in parts(tmp_path)]
    assert len(sizes) >= 2
    assert max(sizes) < 35_000
    hook.remove()
    again = load(open_clip_folder, cache_dir=tmp_path)
    runs = count_runs(again)
    again.encode_ahead(MANY)
    assert 0 < sum(runs) < 100  # what was written is not run again


def test_other_weights_and_architectures_have_other_entries(open_clip_folder, tmp_path):
    encoder = load(open_clip_folder, cache_dir=tmp_path)
    encoder.encode_ahead(CAPTIONS)
    before = encoder.encode(CAPTIONS).pooled
    encoder.load_state_dict({k: v * 1.5 for k, v in encoder.state_dict().items()})
    direct = encoder.encode(CAPTIONS)  # nothing of the old weights is left
    assert (direct.pooled - before).abs().max() > 1e-3
    encoder.encode_ahead(CAPTIONS)
    encoder._recent.clear()
    torch.testing.assert_close(encoder.encode(CAPTIONS).pooled, direct.pooled)
    architecture = {**encoder.architecture, "quick_gelu": False}
    gelu = OpenClipTextEncoder(architecture=architecture, cache_dir=tmp_path)
    gelu.load_state_dict(encoder.state_dict())
    gelu.encode_ahead(CAPTIONS)
    assert (gelu.encode(CAPTIONS).pooled - direct.pooled).abs().max() > 1e-4
    assert len(list(tmp_path.iterdir())) == len(parts(tmp_path)) == 3


def test_half_precision_takes_half_and_rounds_by_at_most_its_unit(open_clip_folder, tmp_path):
    full = load(open_clip_folder, cache_dir=tmp_path)
    half = load(open_clip_folder, cache_dir=tmp_path, cache_dtype="float16")
    for encoder in (full, half):
        encoder.encode_ahead(MANY)
    for exact, rounded in zip(full.encode(MANY)[:3], half.encode(MANY)[:3], strict=True):
        assert exact.dtype == rounded.dtype
        if exact.is_floating_point():
            assert not torch.equal(exact, rounded)
            bound = (exact.abs() * 2**-11).clamp(min=2**-25)  # half a unit in the last place
            assert ((exact - rounded).abs() <= bound).all()
    sizes = sorted(path.stat().st_size for path in parts(tmp_path))
    assert sizes[0] < 0.55 * sizes[1]


def test_what_half_precision_cannot_hold_is_refused(tmp_path):
    store = StatesFolder(tmp_path, torch.float16)
    with pytest.raises(ValueError, match=r"1e\+05 does not fit float16.*cache_dtype to float32"):
        store.add({"x": CaptionStates(torch.full((2, 4), 1e5), torch.zeros(2))})
    assert parts(tmp_path) == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bytes_are_told_before(open_clip_folder, tmp_path, dtype):
    encoder = load(open_clip_folder, cache_dir=tmp_path, cache_dtype=dtype)
    captions = [f"{caption} {n}" for n in range(12) for caption in MANY]  # over 1,000
    told = encoder.bytes_for([*captions, *captions])
    encoder.encode_ahead(captions)
    taken = sum(path.stat().st_size for path in parts(tmp_path))
    assert told == pytest.approx(taken, rel=0.02)


def test_wrong_options_are_named(open_clip_folder, tmp_path):
    with pytest.raises(ValueError, match="cache_dtype must be one of float32, float16, got 'bf16'"):
        load(open_clip_folder, cache_dtype="bf16")
    encoder = load(open_clip_folder, cache_dir=tmp_path)
    for share in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="rank < count"):
            encoder.encode_ahead(CAPTIONS, share=share)
    with pytest.raises(ValueError, match="list of strings"):
        encoder.encode_ahead("a red circle")


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "lengths", "keys missing"])
def test_a_damaged_part_is_named_and_computed_again(open_clip_folder, tmp_path, damage):
    load(open_clip_folder, cache_dir=tmp_path).encode_ahead(CAPTIONS)
    (path,) = parts(tmp_path)
    content = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        tensors["hidden"].view(torch.uint8)[-1, -1] ^= 64
        save_file(tensors, path)
    elif damage == "lengths":
        tensors["lengths"][0] += 1
        save_file(tensors, path)
    else:
        tensors.pop("keys")
        save_file(tensors, path)
    encoder = load(open_clip_folder, cache_dir=tmp_path)

    def encode():
        encoder.encode_ahead(CAPTIONS)
        return encoder.encode(["", *CAPTIONS])

    with pytest.warns(UserWarning, match=f"{path.name}: damaged text states"):
        states = encode()
    assert path not in parts(tmp_path)
    expected = load(open_clip_folder).encode(["", *CAPTIONS])
    torch.testing.assert_close(states.encoder_hidden_states, expected.encoder_hidden_states)
    assert_same(encode(), states)


def test_random_damage_is_never_read(tmp_path):
    """Any byte of a part changed: what is found is what was written, or nothing."""
    expected = write(StatesFolder(tmp_path), *MANY[:20])
    (path,) = parts(tmp_path)
    content = path.read_bytes()
    draw = random.Random(0)
    for _ in range(150):
        place = draw.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ draw.randrange(1, 256)])
                         + content[place + 1 :])  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = StatesFolder(tmp_path).find(MANY[:20])
        for caption, states in found.items():
            assert_same(states, expected[caption])
        path.write_bytes(content)


def test_what_killed_writers_left_is_swept_and_never_read(open_clip_folder, tmp_path):
    encoder = load(open_clip_folder, cache_dir=tmp_path)
    encoder.encode_ahead(CAPTIONS)
    (path,) = parts(tmp_path)
    old, young = (path.with_name(f".tmp-{n}-{path.name}") for n in "ab")
    for file in (old, young):
        file.write_bytes(path.read_bytes()[:100])
    os.utime(old, (0, 0))
    encoder.encode_ahead([*CAPTIONS, "one more"])
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_cannot_be_written_is_one_warning(open_clip_folder, tmp_path):
    (tmp_path / "file").touch()
    encoder = load(open_clip_folder, cache_dir=tmp_path / "file")
    with pytest.warns(UserWarning, match="cannot keep text states") as caught:
        encoder.encode_ahead(CAPTIONS)
    assert len(caught) == 1
    assert_same(encoder.encode(CAPTIONS), load(open_clip_folder).encode(CAPTIONS))


def test_no_home_is_a_warning(open_clip_folder, monkeypatch):
    for name in ("TINYDIFFUSION_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.warns(UserWarning, match="anywhere: Could not determine home"):
        load(open_clip_folder).encode_ahead(CAPTIONS)


def test_a_part_added_later_is_found(tmp_path):
    reader, writer = StatesFolder(tmp_path), StatesFolder(tmp_path)
    assert reader.find(["a"]) == {}
    new = write(writer, "a", "b")
    assert_same(reader.find(["a"])["a"], new["a"])
    newer = write(writer, "c", length=5)
    assert reader.missing(["a", "c", "d"]) == ["d"]
    assert_same(reader.find(["c"])["c"], newer["c"])


def test_memory_is_that_of_the_index(tmp_path):
    """What is found is mapped from the file: 200 MB of states take a few in memory."""
    code = f"""
import resource, sys, torch
from pathlib import Path
from tinydiffusion.text.state_cache import CaptionStates
from tinydiffusion.text.packed_states import StatesFolder
store = StatesFolder(Path({str(tmp_path)!r}))
captions = [str(n) for n in range(5000)]
if sys.argv[1] == "write":
    for n in range(0, 5000, 500):
        store.add({{c: CaptionStates(torch.ones(20, 512), torch.ones(512))
                   for c in captions[n:n + 500]}})
else:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not store.missing(captions)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    for what in ("write", "read"):
        done = subprocess.run(
            [sys.executable, "-c", code, what], capture_output=True, text=True, check=True
        )
    assert sum(path.stat().st_size for path in parts(tmp_path)) > 200e6
    assert int(done.stdout) < 15_000  # kB
    for path in parts(tmp_path):
        path.unlink()


SCRIPT = """
import sys, time, torch
from pathlib import Path
from tinydiffusion.text import ahead
from tinydiffusion.text.state_cache import CaptionStates
from tinydiffusion.text.packed_states import StatesFolder
_, folder, rank, count = sys.argv
ahead.BIN, ahead.BATCH = 8, 4
captions = [f"{s} number {n}" for n in range(40) for s in ("circle", "star", "a long square")]
ran = []
def run(batch):
    time.sleep(0.005)
    ran.extend(batch)
    return {c: CaptionStates(torch.ones(len(c) + 1, 4), torch.ones(2)) for c in batch}
store = StatesFolder(Path(folder))
print("ready", flush=True)
sys.stdin.readline()
ahead.encode_ahead(run, store, captions, (int(rank), int(count)), None)
if count == "1":
    assert len(store.find(captions)) == len(captions)
print(len(ran))
"""


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def let_go(jobs: list[subprocess.Popen]) -> None:
    """Begin all at the same time."""
    for job in jobs:
        assert job.stdout.readline() == "ready\n"
    for job in jobs:
        job.stdin.write("\n")
        job.stdin.flush()


def test_jobs_that_begin_at_the_same_time_run_each_caption_once(tmp_path):
    """Two jobs of one process each, that know nothing of each other, and the two of a third."""
    jobs = [start(tmp_path / "alone", 0, 1) for _ in range(2)]
    jobs += [start(tmp_path / "shared", rank, 2) for rank in range(2)]
    let_go(jobs)
    ran = [int(job.communicate(timeout=60)[0]) for job in jobs]
    assert ran[0] + ran[1] == ran[2] + ran[3] == len(MANY) + 1
    assert min(ran) > 0
    for folder in ("alone", "shared"):
        assert StatesFolder(tmp_path / folder).missing([*MANY, ""]) == []


def test_a_killed_process_leaves_nothing_half_read_and_no_lock(tmp_path):
    job = start(tmp_path, 0, 1)
    let_go([job])
    while len(parts(tmp_path)) < 3:
        time.sleep(0.001)
    job.kill()
    job.communicate()
    left = StatesFolder(tmp_path).missing(MANY)
    assert 0 < len(left) < len(MANY)
    again = start(tmp_path, 0, 1)
    let_go([again])
    assert len(left) <= int(again.communicate(timeout=60)[0]) <= len(left) + 1


def test_keys_are_told_apart_by_all_their_bytes(tmp_path):
    """Two captions whose hashes begin alike (here by force) are not taken for each other."""
    store = StatesFolder(tmp_path)
    write(store, "a")
    store.missing([])
    store._entries["rest"] ^= np.uint64(1)
    assert store.missing(["a"]) == ["a"]
