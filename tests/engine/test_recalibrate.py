"""--recalibrate: thresholds from held-out and marked nominal images, and when they come with a guarantee."""

import json

import numpy as np
import pytest
from conftest import config_of, rows_of, write
from messages import assert_line, assert_user_error, lines_with
from test_feedback import feedback

from engine.threshold import nominal_images
from inference import checkpoint
from inference.detector import Detector

FOLDER = "checkpoints/tile/tiny/thresholds/checkpoint_2"


@pytest.fixture
def line(ready):
    """A workplace with thresholds, and 24 images of a line."""
    rng = np.random.default_rng(5)
    for i in range(24):
        write(ready / f"line/{i:02}.png", rng.integers(90 + 4 * i, 110 + 4 * i, (40, 48, 3), dtype=np.uint8))
    return ready


def recalibrated(line, cli, rows, *arguments):
    status, out, error = cli("--feedback", str(feedback(line, rows)), "--recalibrate", *arguments)
    assert status == 0, error
    [path] = (line / FOLDER).glob("no_masking_from_feedback-*.json")
    assert f"thresholds: {path}" in out.splitlines()
    return out, json.loads(path.read_text())


def scores_of(line, files):
    detector = Detector.load(line / "checkpoints/tile/tiny")
    return [detector.run([detector.read(file)])[0].score for file in files]


def test_marked_nominal_images_join_the_held_out_ones(line, cli):
    config = config_of(line)
    held_out, _ = nominal_images(config, checkpoint.load(config))
    digests = checkpoint.load(config).images
    rows = [f"line/{i:02}.png,anomalous,nominal," for i in range(4)]
    rows += ["line/04.png,nominal,,", "line/05.png,anomalous,anomalous,", "line/06.png,anomalous,unclear,"]
    rows += [f"mvtec/tile/train/good/{i:03}.png,,nominal," for i in range(6)]  # trained on, or held out already
    before = (line / FOLDER / "no_masking.json").read_text()
    out, content = recalibrated(line, cli, rows, "--predict", str(line / "line"), "--output", str(line / "out"))
    files = [sample.path for sample in held_out] + [line / f"line/{i:02}.png" for i in range(4)]
    assert content["image_scores"] == pytest.approx(scores_of(line, files), abs=1e-6)
    assert content["pictures"] == len(held_out) + 4 and len(digests.held_out) == len(held_out)
    assert_line(out, len(held_out), 4)
    assert (line / FOLDER / "no_masking.json").read_text() == before
    # The modes that follow use them; without metrics.nominal those before.
    assert {float(row["threshold"]) for row in rows_of(line / "out/predictions.csv")} == {
        content["image"]["p_quantile"]
    }
    assert_line(out, "random sample")
    assert not lines_with("\n".join(content["promises"].values()), "5 %")  # no guarantee for such marks


@pytest.mark.parametrize("nominal, is_guaranteed", [(19, True), (18, False)])
def test_a_random_sample_has_the_conformal_guarantee_if_it_is_large_enough(line, cli, nominal, is_guaranteed):
    rows = [f"line/{i:02}.png,,{'nominal' if i < nominal else 'anomalous'},random" for i in range(20)]
    out, content = recalibrated(line, cli, rows)
    assert bool(lines_with(content["promises"]["conformal"], "5 %", nominal)) == is_guaranteed
    assert bool(lines_with(content["promises"]["conformal"], 19, nominal)) != is_guaranteed or is_guaranteed
    if is_guaranteed:
        own = max(scores_of(line, [line / f"line/{i:02}.png" for i in range(nominal)]))
        assert content["conformal"]["image"] >= own - 1e-9
    assert_line(out, "conformal")


def test_a_random_sample_that_is_not_marked_whole_has_no_guarantee(line, cli):
    rows = [f"line/{i:02}.png,,{'nominal' if i else ''},random" for i in range(24)]
    out, content = recalibrated(line, cli, rows)
    assert not lines_with(content["promises"]["conformal"], "5 %")
    assert_line(out, 1, 24)


def test_mistakes(line, cli):
    file = feedback(line, ["line/00.png,,anomalous,"])
    assert_user_error(cli("--feedback", str(file), "--recalibrate"), "feedback.csv")
    assert cli("--recalibrate")[0] == 2
    assert_user_error(cli("--threshold", "--recalibrate"), "--recalibrate", "--feedback")
