"""Proves that labels show their text in every script that a font draws, and never boxes."""

import unicodedata
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tinydiffusion.pictures import fonts as pictures_fonts
from tinydiffusion.pictures.bidi import directions, is_rtl, visual_order
from tinydiffusion.pictures.fonts import BUNDLED, INVISIBLE, LINE_HEIGHT, Face, face_for
from tinydiffusion.pictures.labels import _runs, _width, can_draw, clean, clusters, wrap

SCRIPTS = {
    "latin": "Größe, ñandú, čeština, Tiếng Việt, ŵ ǿ",
    "greek": "ένας κόκκινος κύκλος, ᾧ",
    "cyrillic": "красный круг, ґ, ђ, қ",
    "arabic": "دائرة حمراء على يسار مربع أزرق",
    "hebrew": "עיגול אדום ליד (ריבוע) כחול 12",
    "chinese": "蓝色方块左边的红色圆圈、白色背景",
    "japanese": "赤い円と青い四角",
    "korean": "빨간 원과 파란 사각형",
    "hindi": "नीले वर्ग के बाईं ओर लाल वृत्त क्षत्रिय",
    "bengali": "লাল বৃত্ত",
    "tamil": "சிவப்பு வட்டம்",
    "thai": "วงกลมสีแดงทางซ้าย",
    "georgian": "წითელი წრე",
    "armenian": "կարմիր շրջան",
    "amharic": "ቀይ ክበብ",
    "khmer": "រង្វង់ក្រហម",
    "emoji": "red 🔴 🎨👩‍🚀 🇩🇪 👍🏽 1️⃣ ☀️",
    "hieroglyphs": "𓀀𓂀",
    "private": "\ue000\U000f0000",
    "mixed": "page דף 12 mixed دائرة 3 圆 🔴",
    "invisible": "x\u200by\ufeff \u202dz\u2060 so\u00adft",
}
LONG = {"a word": "Donaudampfschiff" * 9, "wide": "W" * 50, "narrow": "i" * 500}
BUNDLED_SCRIPTS = ("latin", "greek", "cyrillic", "invisible")


def drawn(face: Face, text: str) -> bytes:
    line = Image.new("RGB", (4 * LINE_HEIGHT, LINE_HEIGHT), "white")
    face.draw(line, LINE_HEIGHT, text, "black")
    return line.tobytes()


def boxes(text: str) -> list[str]:
    """Characters that are drawn as their font draws what it does not have."""
    found = []
    for run in _runs(text, is_rtl(text)):
        missing = drawn(run.face, "\U0010ffff")
        visible = INVISIBLE.sub("", run.text).replace(" ", "")
        has_box = set(missing) != {255}  # colour fonts have none
        found += [c for c in visible if has_box and drawn(run.face, c) == missing]
    return found


@pytest.fixture
def forgetting():
    """Forgets which font draws what, before and after."""
    caches = (face_for, pictures_fonts.machine_faces, wrap)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


# ---- fonts -----------------------------------------------------------------------------------


def test_the_bundled_font_has_what_its_charset_says():
    """... no character more or less, beside those that are others of its with a mark."""
    missing = drawn(BUNDLED, "\U0010ffff")
    assert set(missing) != {255}
    blocks = map(chr, chain(range(0x21, 0x530), range(0x1E00, 0x2270)))
    letters = [c for c in blocks if unicodedata.category(c)[0] in "LNPS"]
    composed = [c for c in letters if unicodedata.normalize("NFD", c) != c and not BUNDLED._has(c)]
    found = [c for c in letters if c not in composed and drawn(BUNDLED, c) != missing]
    assert found == list(filter(BUNDLED._has, letters))
    assert len(found) > 1000


def test_invisible_characters_leave_no_box():
    """... of all those that are taken to need no font."""
    planes = [*range(0x10000), *range(0x1D000, 0x1E000), *range(0xE0000, 0xE1000)]
    hidden = [c for c in map(chr, planes) if INVISIBLE.match(c)]
    assert len(hidden) > 4000
    assert set(drawn(BUNDLED, "".join(hidden))) == {255}


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_label_has_a_box(script):
    """Whatever fonts the machine has: a text is drawn as a whole, or told not to be."""
    text = clean(SCRIPTS[script])
    assert can_draw(text) or script not in BUNDLED_SCRIPTS
    assert not can_draw(text) or boxes(text) == []


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=12))
def test_no_text_at_all_has_a_box(text):
    text = clean(text)
    assert not can_draw(text) or boxes(text) == []


def test_latin_greek_and_cyrillic_ask_for_no_font_of_the_machine(monkeypatch, forgetting):
    def fail(family):
        raise AssertionError(f"asked for {family}")

    monkeypatch.setattr(pictures_fonts, "machine_faces", fail)
    assert all(can_draw(clean(SCRIPTS[script])) for script in BUNDLED_SCRIPTS)


@pytest.fixture
def fontconfig(tmp_path, monkeypatch, forgetting):
    """Puts a shell script in the place of fontconfig, or nothing."""

    def fontconfig(body: str | None) -> None:
        if body is not None:
            script = tmp_path / "fc-match"
            script.write_text(f"#!/bin/sh\n{body}\n")
            script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path) if body is None else f"{tmp_path}:/bin")

    return fontconfig


FONTCONFIGS = {
    "absent": None,
    "failing": "exit 1",
    "slow": "exec sleep 30",
    "of no use": "echo what is this",
    "of fonts that went away": r"printf '/nowhere/a.ttf\t0\t0-10ffff\n'",
}


@pytest.mark.parametrize("kind", FONTCONFIGS)
def test_without_a_usable_fontconfig_other_scripts_are_not_drawn(kind, fontconfig, monkeypatch):
    monkeypatch.setattr(pictures_fonts, "SEARCH_SECONDS", 0.5)
    fontconfig(FONTCONFIGS[kind])
    assert [script for script in SCRIPTS if can_draw(clean(SCRIPTS[script]))] == [*BUNDLED_SCRIPTS]


def test_a_font_of_the_machine_is_found_by_its_characters(fontconfig):
    fonts = [
        ("first", "41-5a"),
        (pictures_fonts.BUNDLED_FILE, "61-7a 2603"),
        (pictures_fonts.BUNDLED_FILE, "2603"),
    ]
    rows = "".join(rf"{file}\t0\t{charset}\n" for file, charset in fonts)
    fontconfig(f"printf '{rows}'")
    face = face_for("\u2603")
    assert face is pictures_fonts.machine_faces("sans-serif")[1]
    assert face_for("\u2604") is None


def test_a_font_that_has_a_box_for_everything_is_none(tmp_path, fontconfig):
    font = tmp_path / ".LastResort.otf"
    font.write_bytes(pictures_fonts.BUNDLED_FILE.read_bytes())
    fontconfig(rf"printf '{font}\t0\t0-10ffff\n'")
    assert face_for("\u2603") is None


def test_without_raqm_nothing_is_drawn_that_has_to_be_shaped(monkeypatch, forgetting):
    """... and invisible characters, which Pillow then draws as boxes, are left out."""
    monkeypatch.setattr(pictures_fonts, "shapes", lambda: False)
    monkeypatch.setattr(pictures_fonts, "BUNDLED", Face(BUNDLED.file, 0, BUNDLED.charset))
    for script in ("arabic", "hebrew", "hindi", "thai"):
        assert not can_draw(SCRIPTS[script])
    for script in BUNDLED_SCRIPTS:
        assert can_draw(clean(SCRIPTS[script]))
    assert drawn(pictures_fonts.BUNDLED, "x\u200by") == drawn(pictures_fonts.BUNDLED, "xy")


# ---- lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [96, 111, 300])
@pytest.mark.parametrize("kind", [*SCRIPTS, *LONG])
def test_lines_are_as_wide_as_the_picture_at_most(kind, width):
    text = clean({**SCRIPTS, **LONG}[kind])
    if not can_draw(text):
        pytest.skip("no font here")
    lines = wrap(text, width, 100)
    assert max(_width(line, is_rtl(text)) for line in lines) <= width
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@settings(deadline=None, max_examples=50)
@given(st.text(st.sampled_from("aWжω \n\u0301…"), max_size=200), st.integers(1, 6))
def test_what_is_too_long_ends_in_an_ellipsis(text, max_lines):
    text = clean(text)
    lines = wrap(text, 96, max_lines)
    assert len(lines) <= max_lines
    assert all(_width(line, False) <= 96 for line in lines)
    if "".join(lines).replace(" ", "") != text.replace(" ", ""):
        assert len(lines) == max_lines
        assert lines[-1].endswith("…")


def test_words_stay_together_where_they_fit():
    assert wrap("a red circle left of a blue square", 96, 6) == (
        "a red circle left", "of a blue", "square"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("abc", ["a", "b", "c"]),
        ("e\u0301x", ["e\u0301", "x"]),
        ("👩‍🚀👍🏽", ["👩‍🚀", "👍🏽"]),
        ("🇩🇪🇫🇷", ["🇩🇪", "🇫🇷"]),
        ("1️⃣2", ["1️⃣", "2"]),
        ("क्षि", ["क्षि"]),
        ("ที่", ["ที่"]),
    ],
)
def test_a_sign_is_never_broken(text, parts):
    assert list(clusters(text)) == parts


def test_labels_are_one_line_of_composed_letters():
    assert clean(" e\u0301\n\ttwo\u3000three\x1b\x00 ") == "é two three"


# ---- directions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rtl", "found"),
    [
        ("ab 1", False, "llll"),
        ("אב 1", True, "rrrr"),
        ("a אב c", False, "llrrll"),
        ("a א, ב", False, "llrrrr"),
        ("a (א)", False, "lllrl"),
        ("א ab ב", True, "rrllrr"),
        ("a א 12", False, "llrrrr"),  # the number belongs to the Hebrew word before it
        ("12 א", True, "rrrr"),
        ("", True, ""),
    ],
)
def test_signs_run_as_unicode_says(text, rtl, found):
    assert is_rtl(text) == rtl or text in ("", "12 א")
    assert directions(text, rtl) == [letter == "r" for letter in found]


@pytest.mark.parametrize(
    ("runs", "rtl", "seen"),
    [
        ("ab", False, "ab"),
        ("aBCd", False, "aCBd"),
        ("AbcD", True, "DbcA"),
        ("ABC", True, "CBA"),
    ],
)
def test_runs_stand_as_unicode_says(runs, rtl, seen):
    """Capitals run from right to left."""
    order = visual_order([run.isupper() for run in runs], rtl)
    assert "".join(runs[place] for place in order) == seen
