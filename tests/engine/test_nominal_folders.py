"""--threshold --nominal, and how new scores compare with those that thresholds come from; see test_predict.py."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import rows_of, write
from messages import assert_line, assert_names, assert_user_error, lines_with
from test_predict import predict

from engine.predict import _compared
from inference import checkpoint, threshold_file
from inference.detector import Detector


def test_thresholds_from_other_nominal_images_are_kept_beside_the_old_ones(ready, cli):
    station, rng = ready / "station 2", np.random.default_rng(1)
    for i in range(5):
        write(station / f"{i}.png", rng.integers(150, 200, (40, 48, 3), dtype=np.uint8))
    write(station / "masks/0.png", np.zeros((40, 48), np.uint8))  # no nominal image
    shutil.copy(ready / "mvtec/tile/train/good/000.png", station / "copy.png")
    shutil.copy(ready / "mvtec/tile/train/good/003.png", station / "copy2.png")
    old = (ready / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking.json").read_text()
    arguments = (
        "--threshold",
        "--nominal",
        str(station),
        "--predict",
        str(station),
        "--output",
        str(ready / "out"),
    )
    status, out, error = cli(*arguments)
    assert status == 0, error
    folder = ready / "checkpoints/tile/tiny/thresholds/checkpoint_2"
    [path] = folder.glob("no_masking_from_station 2-*.json")
    assert f"thresholds: {path}" in out.splitlines() and path.with_name("no_masking.json").read_text() == old
    content, rows = json.loads(path.read_text()), rows_of(ready / "out/predictions.csv")
    held_out = list(checkpoint.read(ready / "checkpoints/tile/tiny/last.pt")["images"]["held_out"])
    trained = sum(name not in held_out for name in ("000.png", "003.png"))
    assert trained and content["pictures"] == 7 - trained
    assert_line(out, re.compile(rf"\b{trained}\b"), re.compile("(?i)trained"))
    scores = {float(row["score"]) for row in rows}
    assert set(content["image_scores"]) <= scores and content["image"]["max"] == max(content["image_scores"])
    assert {float(row["threshold"]) for row in rows} == {content["image"]["p_quantile"]}
    summary = (ready / "out/summary.txt").read_text()
    assert_line(summary, "Kolmogorov-Smirnov", content["pictures"])
    assert "--nominal" not in summary  # advice for scores that differ, which the next test has
    chosen = ("--output", ready / "again", "--set", "metrics.nominal=station 2")
    assert_line(predict(cli, station, *chosen), "Kolmogorov-Smirnov", content["pictures"])
    assert Detector.load(ready / "checkpoints/tile/tiny", nominal="station 2").thresholds.image == rows_limit(rows)
    missing = ("--predict", str(station), "--output", str(ready / "other"), "--set", "metrics.nominal=other")
    told = ("metrics.nominal = other", "no_masking_from_other.json", "--nominal FOLDER")
    assert_user_error(cli(*missing), *told, threshold_file.nominal_name(station))
    assert_user_error(cli("--export", "openvino", *missing[4:]), *told)
    assert not (ready / "other").exists() and not (ready / "checkpoints/tile/tiny/export").exists()
    shutil.copytree(station, ready / "b/station 2")
    assert cli("--threshold", "--nominal", str(ready / "b/station 2"))[0] == 0
    second = path.with_name(f"no_masking_from_{threshold_file.nominal_name(ready / 'b/station 2')}.json")
    assert second.is_file() and json.loads(path.read_text()) == content
    several = cli("--predict", str(station), "--output", str(ready / "new"), "--set", "metrics.nominal=station 2")
    assert_user_error(several, "metrics.nominal", path.stem.removeprefix("no_masking_from_"))
    one = ("--output", ready / "new", "--set", f"metrics.nominal={threshold_file.nominal_name(station)}")
    predict(cli, station, *one)


def rows_limit(rows):
    return float(rows[0]["threshold"])


@pytest.mark.parametrize("count", [1, 9])
def test_too_few_scores_are_compared_with_nothing(count):
    """One score above all others had 'no significant difference' at a distance of 1."""
    [line] = _compared([0.9] * count, list(np.linspace(0, 0.5, 40)))
    assert_names(line, "1.00", 40, "too few to say", count, 10)
    assert "significant" not in line


def test_scores_that_differ_significantly_from_those_of_the_thresholds_are_reported(ready, cli, plant):
    """Networks give brighter images higher scores; thresholds come from 20 dark ones."""
    plant(lambda model, image: np.full(image.shape[1:], image.mean()))
    for name, low in (("dark", 90), ("bright", 150)):
        for i in range(20):
            image = np.random.default_rng(100 + i).integers(low, low + 20, (40, 48, 3), dtype=np.uint8)
            write(ready / name / f"{i}.png", image)
    assert cli("--threshold", "--nominal", str(ready / "dark"))[0] == 0
    advice = {}
    for name in ("dark", "bright"):
        out = predict(cli, ready / name, "--output", ready / f"out {name}", "--set", "metrics.nominal=dark")
        assert_line(out, "Kolmogorov-Smirnov", 20)
        advice[name] = lines_with(out, "--threshold True", "--nominal")
    assert advice["bright"] and not advice["dark"]
