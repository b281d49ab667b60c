"""engine/threshold.py, --threshold: of held-out nominal images, manual ones; also inference/threshold_file.py."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
from conftest import RESULT, config_of, detect, metrics_of, rows_of, write
from messages import assert_line, assert_user_error

from engine.threshold import nominal_images
from inference import checkpoint
from inference.checkpoint import TrainingImages
from runtime.provenance import file_digest


def test_held_out_images_that_are_also_trained_on_set_no_threshold(workplace, cli):
    assert cli("--train")[0] == 0
    category = workplace / "mvtec/tile"
    held_out = list(checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")["images"]["held_out"])
    shutil.rmtree(workplace / "checkpoints/tile/tiny")
    (category / "validation/good").mkdir(parents=True)
    for path in (category / "train/good").iterdir():
        if f"good/{path.name}" in held_out:
            shutil.copy(path, category / "validation/good" / path.name)
    image = cv2.imread(str(category / "test/good/000.png"))
    write(category / "validation/good/new.png", image)
    assert cli("--train")[0] == 0
    assert cli("--threshold")[0] == 0
    kept = json.loads((workplace / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking.json").read_text())
    assert held_out and kept["pictures"] == len(kept["image_scores"]) == 1  # new.png alone


@pytest.mark.parametrize("is_foreign", [True, False])
def test_copies_count_once_in_thresholds(workplace, is_foreign):
    """Of weights of another program, and of training images where nothing was held out, they counted each."""
    category, config = workplace / "mvtec/tile", config_of(workplace)
    for i in range(3 * is_foreign):
        shutil.copy(category / "test/good/000.png", write(category / f"validation/good/{i}.png", np.zeros((1, 1))))
    shutil.copy(category / "train/good/000.png", category / "train/good/copy.png")
    images = TrainingImages({path.name: file_digest(path) for path in (category / "train/good").iterdir()}, {})
    ckpt = checkpoint.CheckpointMetadata("1", workplace, None if is_foreign else images)
    samples, held_out = nominal_images(config, ckpt)
    assert len(samples) == (1 if is_foreign else 6) and held_out is (None if is_foreign else False)


def test_thresholds_come_with_their_expected_false_positive_rate(two, cli):
    status, out, _ = cli("--threshold")
    assert status == 0
    assert_line(out, "p_quantile", "34 %", "2.6 %", "78 %")  # of two images
    assert_line(out, "conformal", 2, "0.05", 19)
    assert_line(out, 99, "1 %")
    assert cli("--detection", "--set", "metrics.threshold_type=conformal")[0] == 0
    found = metrics_of(two, "conformal")
    assert found["image_threshold"] is None and found["pixel_threshold"] is None
    assert found["notes"]["image_threshold"] and found["notes"]["pixel_threshold"]
    assert (found["true_positives"], found["false_positives"], found["iou"]) == (0, 0, 0.0)
    detect(cli, "--set", "metrics.threshold_type=conformal", "--set", "metrics.max_false_alarms=0.5")
    kept = json.loads((two / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking.json").read_text())
    assert kept["conformal"]["image"] == sorted(kept["image_scores"])[1]
    assert metrics_of(two, "conformal")["image_threshold"] == kept["conformal"]["image"]


def test_manual_thresholds(two, cli):
    manual = ("--detection", "--set", "metrics.threshold_type=manual")
    assert_user_error(cli(*manual), "metrics.image_threshold", "manual")
    both = ("--set", "metrics.image_threshold=0.25", "--set", "metrics.pixel_threshold=0.75")
    assert cli(*manual, *both)[0] == 0
    found, rows = metrics_of(two, "manual"), rows_of(two / RESULT / "scores.csv")
    assert (found["image_threshold"], found["pixel_threshold"]) == (0.25, 0.75)
    called = [float(row["score"]) > 0.25 for row in rows]
    assert found["accuracy"] == np.mean([call == (row["label"] == "1") for call, row in zip(called, rows, strict=True)])


def test_nominal_test_images_whose_scores_differ_significantly_are_reported(workplace, cli, plant):
    for folder, count in (("train/good", 30), ("test/good", 20)):
        for i in range(count):
            write(
                workplace / f"mvtec/tile/{folder}/{i:03}.png",
                np.random.default_rng(i).integers(90, 110, (40, 48, 3)) + (40 if folder == "test/good" else 0),
            )
    assert cli("--train", "--set", "train.epochs=1")[0] == 0
    plant(lambda model, image: np.full(image.shape[1:], image.mean() ** 4))  # brighter test images score higher
    out = detect(cli, "--set", "train.epochs=1")
    assert_line(out, 20, 10)


def test_without_held_out_images_thresholds_come_from_training_images(workplace, cli):
    status, out, _ = cli("--train", "--threshold", "--set", "data.val_split=0")
    assert status == 0
    assert_line(out, 6, re.compile("(?i)training"), "val_split")
    kept = json.loads((workplace / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking.json").read_text())
    assert kept["held_out"] is False and kept["pictures"] == 6


REGION = ("--set", "masking.regions.tile=[[0, 10, 0, 48], [20, 24, 5, 9]]", "--set", "metrics.masking=true")


def test_thresholds_of_other_masking_regions_are_a_user_error(workplace, cli):
    assert cli("--train", "--threshold", *REGION)[0] == 0
    moved = ("--set", "masking.regions.tile=[[0, 11, 0, 48]]", *REGION[2:])
    assert_user_error(cli("--detection", *moved), "post_masking.json", "regions", "--threshold True")
    assert cli("--threshold", "--detection", *moved)[0] == 0


def test_damaged_thresholds_are_noticed_wherever_they_are_read(ready, cli):
    path = ready / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking.json"
    whole = path.read_text()
    value = json.loads(whole)["image"]["p_quantile"]
    path.write_text(whole.replace(repr(value), repr(value + 1e-9)))
    for mode in (["--detection"], ["--predict", str(ready / "mvtec/tile/test/good")]):
        assert_user_error(cli(*mode), path, "damaged", "--threshold True")
