"""Proves that the page of a report is whole in itself, and shows pictures before numbers."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from tinydiffusion.cli.main import main
from tinydiffusion.evaluation.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    chart,
)
from tinydiffusion.evaluation.report.film import MAX_FRAMES, MAX_SIDE, film_of
from tinydiffusion.evaluation.report.illustrations import NUM_SHOWN, extremes

VOID = {"meta", "img", "line", "circle", "polyline", "br", "input"}
ATTACK = "<script>alert(1)</script>\" onload='x'"


class Page(HTMLParser):
    """Tags, attributes and text of a page, every tag being closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]
        assert not [k for k, _ in attributes if k.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory):
    """The report of a model at three guidance scales."""
    out = tmp_path_factory.mktemp("report") / "report.json"
    flags = ["--metrics", "pixel_fd", "scene_accuracy", "copy_rate", "--num-images", "6"]
    scales = ["--guidance-scales", "1", "2"]
    assert main(["evaluate", model, *flags, *scales, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def page(tmp_path):
    def page(report, *flags) -> tuple[str, Page]:
        out = tmp_path / "pages" / "report.html"
        assert main(["report", str(report), "--out", str(out), *flags]) == 0
        text = out.read_text()
        return text, Page(text)

    return page


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def changed(report, **more):
    """The report with other contents, in place."""
    report.write_text(json.dumps({**json.loads(report.read_text()), **more}))
    return report


# ---- the report ------------------------------------------------------------------------------


def test_the_report_holds_the_sweep_and_the_pictures(measured):
    report = json.loads(measured.read_text())
    first, second = report["sweep"]
    assert (first["guidance_scale"], second["guidance_scale"]) == (1.0, 2.0)
    names = [row["name"] for row in report["results"]]
    assert [row["name"] for row in first["results"]] == names
    assert first["results"][0]["value"] != second["results"][0]["value"]
    assert sorted(report["pictures"], key=int) == [str(i) for i in range(6)]
    assert len(report["context"]["prompts"]) == 6
    assert report["context"]["sampling"]["steps"] == 2


# ---- the page --------------------------------------------------------------------------------


@pytest.mark.parametrize("of_run", [False, True])
def test_the_page_needs_nothing_from_anywhere(measured, finished, page, of_run):
    text, parsed = page(finished / "report.json" if of_run else measured)
    assert {"script", "link", "iframe", "object"}.isdisjoint(parsed.tags)
    assert parsed.addresses
    assert all(re.match("data:image/(png|jpeg);base64,", a) for a in parsed.addresses)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in text
    assert '<meta name="generator" content="tinydiffusion report">' in text


def test_the_page_of_a_run_shows_pictures_before_numbers(finished, page):
    text, parsed = page(finished / "report.json")
    assert headings(text) == [
        "What the model draws", "The grid over training", "Numbers", "Training",
        "How these numbers were made",
    ]  # fmt: skip
    report = json.loads((finished / "report.json").read_text())
    beginning = text[: text.index("The grid over training")]
    assert len(report["grid"]) == 4  # sampling.num_prompts
    for each in report["grid"]:
        assert each["png"] in beginning
        assert f"<figcaption>{each['prompt']}</figcaption>" in beginning
    film = film_of(finished)
    assert [frame.when for frame in film.frames] == [f"{n} pictures" for n in (0, 32, 64)]
    assert all(frame.jpeg in text for frame in film.frames)
    assert len(film.prompts) == 4
    assert all(f"<li>{prompt}</li>" in text for prompt in film.prompts)
    assert text.count('type="radio"') == 3
    words = " ".join(parsed.words)
    assert "64 training pictures in" in words
    assert "pictures_per_second" in words
    assert report["context"]["sources"]["reference"]["sha256"] in words


def test_the_page_of_an_evaluation_opens_with_its_samples(measured, page):
    text, parsed = page(measured)
    assert headings(text)[0] == "Samples"
    assert headings(text)[-4:-1] == ["Numbers", "Guidance", "Training"]
    assert {"Figures", "Right and wrong by scene_accuracy"} <= set(headings(text))
    report = json.loads(measured.read_text())
    words = " ".join(parsed.words)
    for row in report["results"]:
        assert row["name"] in words
        assert all(warning in words for warning in row["warnings"])
    assert all(prompt in words for prompt in report["context"]["prompts"])
    assert "The floor is the distance between two halves" in words
    assert report["context"]["weights_sha256"] in words
    assert parsed.tags.count("svg") > 3
    assert parsed.tags.count("img") >= 7


def test_text_from_outside_is_text(measured, run, page):
    report = json.loads(measured.read_text())
    report["context"] |= {"target": ATTACK, "prompts": [ATTACK] * 6, "run": ATTACK}
    report["context"]["sources"] = {ATTACK: {"path": ATTACK}}
    report["results"][0] |= {"name": ATTACK, "warnings": [ATTACK], "error": ATTACK}
    report["sweep"][0]["results"][0]["name"] = ATTACK
    report |= {"figures": {ATTACK: ATTACK}, "pictures": {"0": ATTACK}}
    report["grid"] = [{"prompt": ATTACK, "png": ATTACK}]
    (run / "report.json").write_text(json.dumps(report))
    with (run / "metrics.jsonl").open("a") as curves:
        for seen in (1, 2):
            curves.write(json.dumps({"pictures_seen": seen, ATTACK: 1.0}) + "\n")
    text, parsed = page(run / "report.json")
    assert "script" not in parsed.tags
    assert "<script" not in text
    assert parsed.words.count(ATTACK) > 5


@pytest.mark.parametrize(
    ("missing", "said"),
    [("samples", "has no sample grids"), ("grid.png", ""), ("model", "")],
)
def test_what_a_run_lacks_is_said(run, page, missing, said):
    place = run / missing
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    text, _ = page(run / "report.json")
    assert said in text


def test_a_report_without_pictures_opens_with_the_grid_of_its_run(run, page):
    report = changed(run / "report.json", grid=[], pictures={})
    text, _ = page(report)
    whole = text.index('class="whole"')
    assert text.index("The final grid.") < whole < text.index("The grid over training")
    (run / "grid.png").write_text("no picture")
    assert "The report holds no pictures" in page(report)[0]


def test_a_run_that_has_gone_leaves_the_pictures_of_its_report(run, page, tmp_path, capsys):
    report = json.loads((run / "report.json").read_text())
    report["context"] |= {"run": str(tmp_path / "gone"), "target": str(tmp_path / "gone/model")}
    (tmp_path / "alone.json").write_text(json.dumps(report))
    text, _ = page(tmp_path / "alone.json")
    assert "The grid over training" not in headings(text)
    assert report["grid"][0]["png"] in text
    assert f"no film and no curves: {tmp_path / 'gone'} is not there" in capsys.readouterr().err


def test_failed_rows_are_shown(run, page):
    report = json.loads((run / "report.json").read_text())
    report["results"][0] |= {"value": None, "skipped": "no weights here"}
    _, parsed = page(changed(run / "report.json", results=report["results"]))
    assert "skipped: pixel_fd: no weights here" in parsed.words


# ---- best and worst --------------------------------------------------------------------------


def ranked(values, *, higher_is_better=True) -> dict:
    pictures = {str(i): value for i, value in enumerate(values)}
    return {
        "name": "m", "evaluator": "m", "value": 1.0, "n": len(values), "ci95": None,
        "per_picture": pictures, "higher_is_better": higher_is_better, "details": {},
        "warnings": [], "provenance": {},
    }  # fmt: skip


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize(
    ("values", "best", "worst"),
    [
        ([3.0, 1.0, 2.0, 0.0], [0, 2], [3, 1]),
        ([1.0] * 9 + [0.0], [0, 1, 2, 3, 4], [9]),
        ([0.0] * 9 + [1.0], [9], [4, 5, 6, 7, 8]),
        ([1.0] * 20, [], []),
        ([1.0], [], []),
        ([], [], []),
        ([2.0, 1.0, 1.0, 0.0], [0, 1], [3, 2]),
        (list(range(100)), list(range(99, 91, -1)), list(range(8))),
    ],
)
def test_no_picture_is_best_and_worst(values, best, worst, higher):
    signed = values if higher else [-value for value in values]
    found = extremes(ranked(signed, higher_is_better=higher))
    assert not set(found.best) & set(found.worst)
    assert max(map(len, found)) <= NUM_SHOWN
    assert found == (best, worst)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0] * 6, ["Right and wrong by m", "6 of 6", "none of 6"]),
        ([1.0] * 4 + [0.0] * 2, ["Right and wrong by m", "4 of 6", "2 of 6"]),
        ([0.5] * 6, ["Best and worst by m", "All alike", "each of the 6 pictures has 0.5"]),
        ([0.5, 0.25, 1, 2, 3, 4], ["Best and worst by m", "Best", "Worst", "0.25"]),
    ],
)
def test_ties_are_said(run, page, values, said):
    pictures = {str(i): "cGljdHVyZQ==" for i in range(6)}
    report = changed(run / "report.json", results=[ranked(values)], pictures=pictures)
    _, parsed = page(report)
    words = [word.strip() for word in parsed.words]
    assert [each for each in said if each not in words] == []


# ---- film and curves -------------------------------------------------------------------------


def test_a_long_film_is_cut_to_frames_spread_over_it(tmp_path):
    (tmp_path / "samples").mkdir()
    for number in range(60):
        wide = Image.new("RGB", (3 * MAX_SIDE, MAX_SIDE), (number, 0, 0))
        wide.save(tmp_path / f"samples/{1000 * number:08d}.png")
    (tmp_path / "samples/notes.png").write_text("not of the run")
    film = film_of(tmp_path)
    assert len(film.frames) == MAX_FRAMES
    assert (film.frames[0].when, film.frames[-1].when) == ("0 pictures", "59,000 pictures")
    assert film.notes == [f"The same prompts and seeds each time. {MAX_FRAMES} of the run's 60 "
                          "grids, evenly chosen"]  # fmt: skip
    with Image.open(io.BytesIO(base64.b64decode(film.frames[0].jpeg))) as frame:
        assert frame.size == (MAX_SIDE, MAX_SIDE // 3)


def test_a_broken_grid_costs_its_frame(run, page):
    (run / "samples/00000032.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    text, _ = page(run / "report.json")
    assert f"{run}/samples/00000032.png cannot be read" in text
    assert text.count('type="radio"') == 2


def test_curves_are_those_of_the_run(measured, page, tmp_path, mistake):
    text, _ = page(measured)
    assert "validation_loss" in text
    (tmp_path / "run").mkdir()
    rows = [{"pictures_seen": n, "fid": 9.0 - n, "loss": 1 / (n + 1)} for n in range(4)]
    rows.append({"pictures_seen": 4, "fid": float("nan"), "loss": None})
    lines = [*map(json.dumps, rows), '{"pictures_seen": 5, "fid']
    (tmp_path / "run/metrics.jsonl").write_text("\n".join(lines))
    text, _ = page(measured, "--run", str(tmp_path / "run"))
    assert "fid over pictures seen" in text
    assert "validation_loss" not in text
    assert "nan" not in text
    assert "1 lines of" in text
    flags = ["--out", str(tmp_path / "x.html"), "--run", str(tmp_path / "nowhere")]
    assert "has no curves" in mistake("report", str(measured), *flags)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "points", [[(1, 2)], [(0, 1e-3), (5, 1e3)], [(3, 7), (3, 7)], [(0, 2), (1, 2.5)]]
)
def test_charts_stay_inside_their_frame(points, log):
    drawn = chart([Line("a", points, ["x"] * len(points)), Line("b", points)], "x", "y", log_y=log)
    places = re.findall(r'<circle class="f0" cx="([\d.-]+)" cy="([\d.-]+)"', drawn)
    ticks = re.findall(r'<line class="grid" x1="[\d.]+" y1="([\d.-]+)"', drawn)
    assert len(places) == len(points)
    assert 1 <= len(ticks) <= 10
    for x, y in [*places, *((LEFT, y) for y in ticks)]:
        assert LEFT <= float(x) <= WIDTH - RIGHT
        assert TOP <= float(y) <= HEIGHT - BOTTOM
    assert chart([], "x", "y") == ""
