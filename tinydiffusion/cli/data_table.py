"""The output of `tinydiffusion data` on the sets that it has scanned."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate

from tinydiffusion.build import build_text_encoder
from tinydiffusion.pictures.brightness import Brightness
from tinydiffusion.pictures.captions import shown
from tinydiffusion.pictures.grid import save_grid
from tinydiffusion.pictures.packed import describe
from tinydiffusion.pictures.scan import Sample, Scan
from tinydiffusion.pictures.views import middle_window
from tinydiffusion.runtime.durable import replace_file
from tinydiffusion.survey import SURVEYED, spread

SCHEMA = "tinydiffusion.data/1"
SHEET = 64  # pictures of the contact sheet
LISTED = 5  # groups that are printed; the JSON file has all
CHUNK = 1000  # captions that are tokenized at once

Scans = Mapping[str, Scan]  # by split
Group = list[tuple[str, str]]  # split and path of pictures whose prepared pixels are the same


def describe_scan(split: str, scan: Scan) -> str:
    """Describe in lines how many pictures load, what is skipped and why, sizes, and notes."""
    total = len(scan.samples) + len(scan.skipped)
    lines = [f"{split}: {len(scan.samples)} of {total} pictures load"]
    if scan.skipped:
        lines.append(f"  skipped: {describe(scan.skipped)}")
    lines.append(f"  sizes: {_describe_sizes(scan.samples)}")
    lines += [f"  note: {count} x {note}" for note, count in count_notes([scan]).items()]
    return "\n".join(map(shown, lines))


def count_notes(scans: Iterable[Scan]) -> dict[str, int]:
    """Count the pictures that have each note, the commonest note first."""
    notes = Counter(note for scan in scans for sample in scan.samples for note in sample.notes)
    return dict(sorted(notes.items(), key=lambda item: (-item[1], item[0])))


def find_groups(scans: Scans) -> tuple[list[Group], list[Group]]:
    """Group the pictures with the same pixels: within a split, and in several splits."""
    places: defaultdict[str, Group] = defaultdict(list)
    for split, scan in scans.items():
        for sample in scan.samples:
            places[sample.sha256].append((split, sample.id))
    duplicates: list[Group] = []
    shared: list[Group] = []
    for group in places.values():
        by_split = [[place for place in group if place[0] == split] for split in scans]
        duplicates += [part for part in by_split if len(part) > 1]
        shared += [group] if sum(map(bool, by_split)) > 1 else []
    return duplicates, shared


def describe_groups(what: str, groups: Sequence[Group]) -> str:
    """Describe how many groups there are, and the first ones."""
    lines = [f"{what}: {len(groups)} groups" if groups else f"{what}: none"]
    for group in groups[:LISTED]:
        names = " = ".join(f"{split}/{path}" for split, path in group[:LISTED])
        lines.append(shown(f"  {names}{' ...' if len(group) > LISTED else ''}"))
    if len(groups) > LISTED:
        lines.append(f"  ... and {len(groups) - LISTED} more")
    return "\n".join(lines)


def describe_brightness(scan: Scan) -> str:
    """Describe a set that is nearly black or white as a whole; empty for other sets."""
    brightness = Brightness()
    for index in spread(len(scan.samples), SURVEYED):
        brightness.add(scan.pixels(index))
    return brightness.describe()


def describe_captions(scans: Scans, section: dict[str, Any]) -> str:
    """Describe caption lengths in the text encoder's tokens, learned from the first split."""
    first = next(iter(scans.values())).samples
    learned = [text for i in spread(len(first), SURVEYED) for text in _captions(first[i])]
    encoder = build_text_encoder(section, learned)
    texts = [t for scan in scans.values() for sample in scan.samples for t in _captions(sample)]
    lengths: list[int] = []
    cut = 0
    for start in range(0, len(texts), CHUNK):
        tokens = encoder.tokenize(texts[start : start + CHUNK])
        lengths += tokens.mask.sum(dim=1).tolist()
        cut += tokens.num_truncated
    lengths.sort()
    median, most = lengths[len(lengths) // 2], lengths[math.ceil(0.95 * len(lengths)) - 1]
    return (
        f"captions: {len(texts)}, in tokens of {section['name']}: median {median}, 95 % up to "
        f"{most}, longest {lengths[-1]}; {cut} are cut to {encoder.max_length}"
    )


def save_json(
    file: Path, scans: Scans, duplicates: Sequence[Group], shared: Sequence[Group]
) -> None:
    """Write every sample and every skipped file; the same sets give the same bytes."""
    several = len(scans) > 1

    def place(split: str, path: str) -> dict[str, str]:
        return {"split": split, "path": path} if several else {"path": path}

    report = {
        "schema": SCHEMA,
        "samples": [
            {
                **place(split, sample.id),
                "caption": sample.caption,
                "width": sample.width,
                "height": sample.height,
            }
            for split, scan in scans.items()
            for sample in scan.samples
        ],
        "skipped": [
            {**place(split, item.path), "reason": item.reason}
            for split, scan in scans.items()
            for item in scan.skipped
        ],
        "notes": count_notes(scans.values()),
        "duplicates": [[place(*member) for member in group] for group in duplicates],
        "shared": [[place(*member) for member in group] for group in shared],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    # Names that are not Unicode are written as escaped half characters.
    replace_file(file, (json.dumps(report, indent=1) + "\n").encode())


def save_sheet(file: Path, scans: Scans) -> None:
    """Write pictures spread over the sets as training sees them, each above its caption."""
    samples = [(scan, index) for scan in scans.values() for index in range(len(scan.samples))]
    chosen = [samples[i] for i in spread(len(samples), SHEET)]
    windows = [middle_window(scan.pixels(index), scan.size) for scan, index in chosen]
    shape = windows[0].shape[1:]  # two sets of a run may differ in size
    images = torch.cat([interpolate(window[None], tuple(shape)) for window in windows])
    texts = [_captions(scan.samples[index])[0] for scan, index in chosen]
    save_grid(file, images, texts)


def _describe_sizes(samples: Sequence[Sample]) -> str:
    def name(size: tuple[int, int]) -> str:
        return f"{size[0]}x{size[1]}"

    sizes = sorted(((s.width, s.height) for s in samples), key=lambda s: (s[0] * s[1], s))
    commonest, count = Counter(sizes).most_common(1)[0]
    return (
        f"{name(sizes[0])} to {name(sizes[-1])}, median {name(sizes[len(sizes) // 2])}, "
        f"commonest {name(commonest)} ({count})"
    )


def _captions(sample: Sample) -> list[str]:
    return [sample.caption] if isinstance(sample.caption, str) else sample.caption
