"""Proves that the page of a report is whole in itself and shows what the report holds."""

import json
import re
from html.parser import HTMLParser

import pytest

from tinydiffusion.cli import main
from tinydiffusion.commands._svg import Line, chart

VOID = {"meta", "img", "line", "circle", "polyline", "br"}


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
def page(tmp_path):
    def page(report, *flags) -> tuple[str, Page]:
        out = tmp_path / "pages" / "report.html"
        assert main(["report", str(report), "--out", str(out), *flags]) == 0
        text = out.read_text()
        return text, Page(text)

    return page


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


def test_the_page_needs_nothing_from_anywhere(measured, page):
    text, parsed = page(measured)
    assert "script" not in parsed.tags
    assert {"link", "iframe", "object"}.isdisjoint(parsed.tags)
    assert all(a.startswith("data:image/png;base64,") for a in parsed.addresses)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in text


def test_the_page_shows_every_part(measured, page):
    text, parsed = page(measured)
    report = json.loads(measured.read_text())
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings[:3] == ["Numbers", "Guidance", "Training"]
    assert {"Figures", "Samples", "Prompts by scene_accuracy"} <= set(headings)
    words = " ".join(parsed.words)
    for row in report["results"]:
        assert row["name"] in words
        assert all(warning in words for warning in row["warnings"])
    assert "The floor is the distance between two halves" in words
    assert report["context"]["weights_sha256"] in words
    assert parsed.tags.count("svg") > 3
    assert parsed.tags.count("img") >= 7


def test_text_from_outside_is_text(measured, page, tmp_path):
    report = json.loads(measured.read_text())
    attack = "<script>alert(1)</script>\" onload='x'"
    report["context"] |= {"target": attack, "prompts": [attack] * 6}
    report["results"][0] |= {"name": attack, "warnings": [attack]}
    report["figures"] = {attack: attack}
    report["pictures"] = {"0": attack}
    file = tmp_path / "attack.json"
    file.write_text(json.dumps(report))
    text, parsed = page(file)
    assert "script" not in parsed.tags
    assert "<script" not in text


def test_curves_are_those_of_the_run(measured, page, tmp_path, mistake):
    text, _ = page(measured)
    assert "validation_loss" in text
    (tmp_path / "run").mkdir()
    rows = [{"pictures_seen": n, "fid": 9.0 - n, "loss": 1 / (n + 1)} for n in range(4)]
    (tmp_path / "run/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text, _ = page(measured, "--run", str(tmp_path / "run"))
    assert "fid over pictures seen" in text
    assert "validation_loss" not in text
    flags = ["--out", str(tmp_path / "x.html"), "--run", str(tmp_path / "nowhere")]
    assert "has no curves" in mistake("report", str(measured), *flags)


def test_the_report_of_a_run_and_failed_rows_are_shown(finished, page, tmp_path):
    _, parsed = page(finished / "report.json")
    assert "pictures_per_second" in " ".join(parsed.words)
    report = json.loads((finished / "report.json").read_text())
    report["results"][0] |= {"value": None, "skipped": "no weights here"}
    (tmp_path / "failed.json").write_text(json.dumps(report))
    _, parsed = page(tmp_path / "failed.json")
    assert "no weights here" in " ".join(parsed.words)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("points", [[(1, 2)], [(0, 1e-3), (5, 1e3)], [(3, 7), (3, 7)]])
def test_charts_stay_inside_their_frame(points, log):
    drawn = chart([Line("a", points, ["x"] * len(points)), Line("b", points)], "x", "y", log_y=log)
    places = re.findall(r'<circle class="f0" cx="([\d.-]+)" cy="([\d.-]+)"', drawn)
    assert len(places) == len(points)
    for x, y in places:
        assert 62 <= float(x) <= 504
        assert 12 <= float(y) <= 200
    assert chart([], "x", "y") == ""
