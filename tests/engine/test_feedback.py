"""--feedback: files of marks are checked; rates, best threshold and drift are those of the marked images."""

import os
import shutil
from datetime import datetime

import numpy as np
import pytest
from conftest import rows_of, write
from messages import assert_line, assert_user_error

from engine.feedback import marks, review
from evaluation.drift import drift
from evaluation.thresholds import Thresholds
from inference.detector import Detector


def feedback(folder, rows, name="feedback.csv", head="path,verdict,mark,sample"):
    (folder / name).write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return folder / name


@pytest.fixture
def line(ready):
    """A workplace with thresholds, and 12 images of a line in `line/`, of which the last four are bright."""
    rng = np.random.default_rng(5)
    for i in range(12):
        low = 90 if i < 8 else 200
        path = write(ready / f"line/{i:02}.png", rng.integers(low, low + 20, (40, 48, 3), dtype=np.uint8))
        moment = datetime(2026, 3, 1 + i // 2, 12).timestamp()
        os.utime(path, (moment, moment))
    return ready


def test_a_file_by_hand_is_read(line):
    shutil.copy(line / "line/00.png", line / "line/copy.png")
    rows = ["'line/00.png;Nominal ", " ; ", "line/copy.png;;", "line/01.png;anomalous;random", "line/02.png"]
    file = line / "by hand.csv"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["path;mark;sample;inspector", *rows[1:]]).encode())
    found = marks.read(file)
    assert [(one.path.name, one.mark, one.is_random) for one in found] == [
        ("copy.png", "", False),
        ("01.png", "anomalous", True),
        ("02.png", "", False),
    ]
    found = marks.read(feedback(line, ["line/copy.png,,,random", "line/00.png,nominal,nominal,"]))
    assert [(one.path.name, one.verdict, one.mark, one.is_random) for one in found] == [
        ("00.png", "nominal", "nominal", True)  # once, as copies are the same image
    ]


@pytest.mark.parametrize(
    "rows, names",
    [
        (["line/00.png,,good,"], ("line 2", "good", "nominal")),
        (["line/00.png,nominal,nominal,", "line/01.png,maybe,nominal,"], ("line 3", "maybe")),
        (["line/00.png,,nominal,", "line/01.png,,nominal,yes"], ("line 3", "yes", "random")),
        (["line/00.png,,nominal,", "line/gone.png,,nominal,"], ("line 3", "gone.png")),
        (["line/00.png,,nominal,", "line/00.png,,anomalous,"], ("line 3", "line 2")),
        (["line/00.png,,nominal,", " ,,anomalous,"], ("line 3",)),
        (["line/00.png,,,"], ("feedback.csv",)),
    ],
)
def test_mistakes_in_a_file_are_named_with_their_line(line, cli, rows, names):
    assert_user_error(cli("--feedback", str(feedback(line, rows))), *names)


def test_files_of_another_form_are_refused(line, cli):
    assert_user_error(cli("--feedback", str(line / "none.csv")), "none.csv")
    assert_user_error(cli("--feedback", str(line / "line/00.png")), "00.png")
    assert_user_error(cli("--feedback", str(feedback(line, ["a.png"], head="image,mark"))), "line 1", "path")
    assert_user_error(cli("--feedback", str(feedback(line, ["a.png"], head="path,comment"))), "line 1", "mark")


def test_rates_and_the_best_threshold_are_those_of_the_marked_images(line, cli):
    words = ["nominal"] * 8 + ["anomalous"] * 3 + ["unclear"]
    file = feedback(line, [f"line/{i:02}.png,,{word}," for i, word in enumerate(words)])
    digests = set(Detector.load(line / "checkpoints/tile/tiny").ckpt.images.training.values())
    trained = next(
        path
        for path in sorted((line / "mvtec/tile/train/good").iterdir())
        if review.marks.file_digests([path])[0] in digests
    )
    feedback(line, [*file.read_text().splitlines()[1:], f"{trained},,nominal,", "mvtec/tile/test/good/000.png,,,"])
    status, out, error = cli("--feedback", str(file))
    assert status == 0, error
    folder = out.splitlines()[-1].removeprefix("feedback: ")
    assert out.endswith((line / folder / "summary.txt").read_text() + f"feedback: {folder}\n")
    assert_line(out, "8 nominal", "3 anomalous", "1 unclear")
    assert_line(out, 1, "trained")
    assert_line(out, 1, "without a mark")
    assert_line(out, "random sample")  # what these marks do not say
    rows, detector = rows_of(line / folder / "scores.csv"), Detector.load(line / "checkpoints/tile/tiny")
    scores = {row["mark"]: [] for row in rows}
    for row in rows:
        scores[row["mark"]].append(float(row["score"]))
    assert {mark: len(found) for mark, found in scores.items()} == {"nominal": 8, "anomalous": 3, "unclear": 1}
    assert rows[0]["day"] == "2026-03-01" and rows[11]["day"] == "2026-03-06"
    for kind, found in detector.all_thresholds.items():
        false, hit = (sum(one > found.image for one in scores[mark]) for mark in ("nominal", "anomalous"))
        assert_line(out, kind, f"{false} of 8", f"{hit} of 3")
    assert_line(out, "best for these")


def test_intervals_are_those_of_clopper_and_pearson():
    assert review._share(np.array([False] * 10)) == "0.000 [0.000, 0.308] (0 of 10)"  # 1 - 0.025 ** 0.1
    assert review._share(np.array([True, *[False] * 19])) == "0.050 [0.001, 0.249] (1 of 20)"
    assert review._share(np.array([])) == "-"


def test_without_thresholds_there_is_nothing_to_say(two, cli):
    file = feedback(two, ["mvtec/tile/test/good/000.png,,nominal,"])
    assert_user_error(cli("--feedback", str(file)), "no_masking.json", "--threshold")


def test_metrics_threshold_is_needed(line, cli):
    file = feedback(line, ["line/10.png,,nominal,"])
    assert_user_error(cli("--feedback", str(file), "--set", "metrics.threshold=false"), "metrics.threshold", "true")


def test_drift_begins_on_the_day_that_scores_change():
    rng = np.random.default_rng(0)
    held_out, days = rng.normal(0.3, 0.02, 40), np.arange(60) // 6
    steady = rng.normal(0.3, 0.02, 60)
    found = drift(held_out, np.where(days >= 6, steady + 0.05, steady), days)
    assert found.day == 6 and found.is_significant and found.after - found.before == pytest.approx(0.05, abs=0.01)
    found = drift(held_out, np.where(days >= 6, steady - 0.05, steady), days)
    assert found.day == 6 and found.is_significant and found.after < found.before
    assert not drift(held_out, steady, days).is_significant
    assert drift(held_out, np.array([]), []) is None and drift(np.array([]), steady, days) is None


def test_steady_scores_seldom_drift():
    """At 1 %, corrected for all days: of 300 lines without a change at most a few."""
    rng = np.random.default_rng(1)
    false = sum(drift(rng.random(20), rng.random(30), np.arange(30) // 3).is_significant for _ in range(300))
    assert false <= 7


def test_the_day_of_a_drift_is_printed(line, cli, monkeypatch):
    file = feedback(line, [f"line/{i:02}.png,,nominal,random" for i in range(12)])
    monkeypatch.setattr(review, "scores_of", lambda detector, files: _Scores(np.arange(len(files)) / 100 + 0.5))
    held_out = list(np.linspace(0.501, 0.53, 30))

    def chosen(self):
        self.nominal_scores, self.all_thresholds = held_out, {"max": Thresholds("max", 0.575, 0.9)}
        return self.all_thresholds["max"]

    monkeypatch.setattr(Detector, "_read_thresholds", chosen)
    status, out, error = cli("--feedback", str(file))
    assert status == 0, error
    assert_line(out, "drift", "2026-03-02")  # the fourth image is the first above all held-out ones but for 0.02
    assert_line(out, "2026-03-05", 2, "2")
    assert_line(out, "random sample", 12)


class _Scores:
    def __init__(self, scores):
        self.image_scores = list(scores)
