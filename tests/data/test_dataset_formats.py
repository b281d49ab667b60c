"""Dataset formats through main.py: images, masks and folders in other forms give the same results, or an error."""

import json
import re

import cv2
import numpy as np
import pytest
from conftest import RESULT, detect, metrics_of, rows_of, write
from messages import assert_line, assert_names, assert_user_error

from data.mask_decoding import MOST
from inference import checkpoint

CHANGES = ("image_threshold", "pixel_threshold", "notes")


def rewrite(mask, how):
    return {
        "class numbers": lambda: (mask > 0).astype(np.uint8) * 2,
        "128": lambda: (mask > 0).astype(np.uint8) * 128,
        "uint16": lambda: mask.astype(np.uint16),
        "int32": lambda: mask.astype(np.int32),
        "red on white": lambda: np.where(mask[..., None] > 0, (0, 0, 255), (255, 255, 255)).astype(np.uint8),
        "alpha": lambda: np.dstack([np.full((*mask.shape, 3), 255, np.uint8), mask]),
    }[how]()


@pytest.mark.parametrize("how", ["class numbers", "128", "uint16", "int32", "red on white", "alpha"])
def test_masks_in_any_form_give_the_same_metrics(two, cli, how):
    detect(cli)
    expected = metrics_of(two)
    for path in (two / "mvtec/tile/ground_truth/spot").iterdir():
        stored = rewrite(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), how)
        path.unlink()
        write(path.with_suffix(".tif" if how == "int32" else ".png"), stored)
    detect(cli)
    assert metrics_of(two) == expected


def test_a_region_file_is_decoded_like_a_mask(two, cli):
    region = np.zeros((40, 48), np.uint8)
    region[:, :20] = 1
    write(two / "ones.png", region)
    rectangles = "masking.regions.tile=[[0, 40, 0, 20]]"
    detect(cli, "--set", "metrics.masking=true", "--set", rectangles)
    path = two / "results/tiny/tile/checkpoint_2/post_masking/p_quantile/metrics.json"
    expected = json.loads(path.read_text())
    detect(cli, "--set", "metrics.masking=true", "--set", f"masking.regions.tile={two / 'ones.png'}")
    assert json.loads(path.read_text()) == expected and expected["notes"]["left_out"]


def test_an_undecodable_mask_is_a_user_error_and_a_doubtful_one_a_note(two, cli):
    detect(cli)
    natural = np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8)
    write(two / "mvtec/tile/ground_truth/spot/001_mask.png", natural)
    assert_user_error(cli("--detection"), two / "mvtec/tile/ground_truth/spot/001_mask.png", 255)
    mask = cv2.imread(str(two / "mvtec/tile/ground_truth/spot/000_mask.png"), cv2.IMREAD_GRAYSCALE)
    write(two / "mvtec/tile/ground_truth/spot/001_mask.png", 255 - mask)
    out = detect(cli)
    assert_line(out, MOST, re.compile(r"\b1\b.*spot/001_mask\.png"))
    assert_names(str(metrics_of(two)["notes"]["mask_files"]), MOST, "001_mask.png")


def test_only_masks_with_marked_pixels_can_vanish(two, cli):
    masks = [np.zeros((40, 48), np.uint8) for _ in range(2)]
    masks[1][20, 21] = 255
    for i, mask in enumerate(masks):
        write(two / f"mvtec/tile/ground_truth/spot/00{i}_mask.png", mask)
    detect(cli)
    named = re.findall(r"test/\w+/\w+\.png", metrics_of(two)["notes"]["masks"])
    assert named == ["test/spot/001.png"]


def test_the_white_level_of_12_bit_images_is_found_and_kept_in_the_checkpoint(workplace, cli):
    for path in (workplace / "mvtec/tile").rglob("*.png"):
        if "ground_truth" not in path.parts:
            image = cv2.imread(str(path)).astype(np.uint16)
            write(path, np.where(image == 240, 4095, image * 16).astype(np.uint16))
    status, out, error = cli("--train", "--threshold", "--detection")
    assert status == 0, error
    assert_line(out, 4095, "data.white_level")
    last = workplace / "checkpoints/tile/tiny/last.pt"
    assert checkpoint.read(last)["white_level"] == 4095
    decoded = [np.load(path) for path in (workplace / "checkpoints/.decoded").glob("nominal*.npy")]
    assert len(decoded) == 1 and decoded[0].mean() > 90  # divided by 256 it would be 6
    other = cli("--detection", "--set", "data.white_level=1023")
    assert_user_error(other, "data.white_level", 1023, 4095, "last.pt", "auto")
    write(workplace / "mvtec/tile/test/good/000.png", np.full((40, 48), 60_000, np.uint16))
    assert_user_error(cli("--detection"), "test/good/000.png", 60000, 4095, "data.white_level")


def test_other_folder_names_and_skipped_folders_are_reported(two, cli):
    image = cv2.imread(str(two / "mvtec/tile/test/good/000.png"))
    write(two / "mvtec/tile/test/ok/000.png", image)
    write(two / "mvtec/tile/test/spot/.ipynb_checkpoints/000.png", image)
    out = detect(cli)
    assert_line(out, "test/ok", "good")
    assert_line(out, re.compile(r"\b1\b.*spot/\.ipynb_checkpoints\b"))
    rows = {row["path"]: row["label"] for row in rows_of(two / RESULT / "scores.csv")}
    assert rows["test/ok/000.png"] == "0" and len(rows) == 7
    assert (two / RESULT / "panels/ok/000.png").is_file() and (two / RESULT / "panels/good/000.png").is_file()
