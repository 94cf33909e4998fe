"""Rows arrive where they should: whole, once, and without cursor codes outside a terminal."""

import importlib
import io
import json

import pytest
from rich.console import Console

from tinydiffusion.training.log.console import LiveBar, PlainLines, TimeLeft, console_tracker
from tinydiffusion.training.log.trackers import JsonlTracker, TensorBoardTracker


def training_row(pictures_seen, speed=100.0, **more):
    return {
        "pictures_seen": pictures_seen,
        "progress": pictures_seen / 1000,
        "seconds": pictures_seen / 100,
        "pictures_per_second": speed,
        "data_wait": 0.25,
        "loss": 0.125,
        **more,
    }


def write(run_dir, pictures_seen, rows):
    tracker = JsonlTracker()
    tracker.start(run_dir, pictures_seen)
    for row in rows:
        tracker.log({"pictures_seen": row})
    tracker.close()
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["pictures_seen"] for line in lines]


def test_rows_beyond_the_resumed_position_are_cut(tmp_path):
    assert write(tmp_path, -1, [0, 100, 200, 300]) == [0, 100, 200, 300]
    assert write(tmp_path, 200, [250]) == [0, 100, 200, 250]
    assert write(tmp_path, -1, [0]) == [0]


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
    write(tmp_path, -1, [100])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"pictures_seen": 150, "lo')
    assert write(tmp_path, 500, [200]) == [100, 200]


def test_a_row_is_on_disk_at_once(tmp_path):
    tracker = JsonlTracker()
    tracker.start(tmp_path, -1)
    tracker.log(training_row(100))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == training_row(100)
    tracker.close()


def test_missing_tensorboard_is_said_plainly(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"tinydiffusion\[tensorboard\]"):
        TensorBoardTracker()


def test_tensorboard_holds_the_numbers(tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = TensorBoardTracker()
    tracker.start(tmp_path, -1)
    tracker.log(training_row(100, grid="samples/100.png"))
    tracker.close()
    events = loader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Scalars("loss")
    assert (event.step, event.value) == (100, 0.125)
    assert "grid" not in events.Tags()["scalars"]


def test_plain_lines_hold_no_cursor_codes(tmp_path):
    stream = io.StringIO()
    tracker = console_tracker(1000, console=Console(file=stream))
    assert isinstance(tracker, PlainLines)
    tracker.start(tmp_path, -1)
    tracker.log(training_row(500))
    tracker.log({"pictures_seen": 500, "grid": "samples/500.png", "accuracy": 0.5})
    tracker.log(training_row(600) | {"loss": 0.0625})
    tracker.close()
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.splitlines() == [
        f"training in {tmp_path} from picture 0",
        "500/1000 pictures  loss 0.125  100.0 pictures/s  waiting for data 25%  0:00:05 left",
        "pictures_seen 500  grid samples/500.png  accuracy 0.5",
        "600/1000 pictures  loss 0.0625  100.0 pictures/s  waiting for data 25%  0:00:04 left",
    ]


def test_a_window_without_a_finite_loss_says_so(tmp_path):
    stream = io.StringIO()
    row = training_row(500)
    del row["loss"]
    console_tracker(1000, console=Console(file=stream)).log(row)
    assert "loss not finite" in stream.getvalue()


def test_a_terminal_gets_a_bar_and_the_hooks_rows_above_it(tmp_path):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    tracker = LiveBar(console, TimeLeft(1000, None))
    tracker.start(tmp_path, -1)
    tracker.log(training_row(500))
    tracker.log({"pictures_seen": 500, "grid": "samples/500.png"})
    tracker.close()
    assert "grid samples/500.png" in stream.getvalue()
    assert "loss 0.125" in stream.getvalue()
    assert "50%" in stream.getvalue()


def test_time_left_is_by_the_median_speed_and_the_budget():
    time_left = TimeLeft(1000, None)
    for speed in (100.0, 100.0, 1.0):  # one slow row changes nothing
        left = time_left.after(training_row(500, speed))
    assert left == pytest.approx(5)
    assert TimeLeft(1000, 6.0).after(training_row(500)) == pytest.approx(1)
    assert TimeLeft(1000, 3.0).after(training_row(500)) == 0
