"""engine/check.py, --check: what a dataset has, and what would stop training or detection."""

import json
import re
import shutil

import numpy as np
from conftest import write
from messages import assert_line, assert_user_error, lines_with

from engine import check


def test_check_reports_a_dataset_and_writes_nothing(workplace, cli):
    category = workplace / "mvtec/tile"
    shutil.copy(category / "train/good/000.png", category / "test/good/copy.png")
    write(category / "train/good/.thumbs/0.png", np.zeros((8, 8), np.uint8))
    before = sorted(workplace.rglob("*"))
    status, out, _ = cli("--check", "True")
    assert status == 0 and sorted(workplace.rglob("*")) == before
    for facts in (
        (4, 2, "train/good"),  # to train on, held out
        (4, "good", 3, "spot"),  # test images
        (4, "48 x 40"),
        (1, "good/.thumbs"),  # hidden folders
        (3, "0 and 255"),  # masks
        ("p_quantile", 2, "34 %"),
        (2, 4, 2, re.compile(r"\d (s|min|h)")),  # steps an epoch, of two epochs, and their time
        ("inference:", re.compile(r"\d ms \(float32\)"), "(openvino)", re.compile(r"\d ms \(openvino-int8\)")),
    ):
        assert_line(out, *facts)
    # The copy is of a training or of a held-out image, as the split has it.
    assert_line(out, 1, "good/copy.png")


def test_check_names_everything_that_would_stop_training_or_detection(workplace, cli):
    category = workplace / "mvtec/tile"
    (category / "train/good/003.png").write_bytes(b"no image")
    write(category / "ground_truth/spot/002_mask.png", np.full((40, 48), 128, np.uint8))
    write(category / "ground_truth/spot/001_mask.png", np.zeros((10, 10), np.uint8))
    status, out, error = cli("--check", "True")
    assert status == 2 and "Traceback" not in error
    for path in ("train/good/003.png", "ground_truth/spot/002_mask.png", "ground_truth/spot/001_mask.png"):
        assert len(lines_with(out, f"{category / path}")) == 1
    (category / "ground_truth/spot/000_mask.png").unlink()
    assert_user_error(cli("--check", "True"), "spot/000.png", "000_mask.png")


def test_check_names_weights_to_start_from_that_are_none(workplace, cli):
    path = workplace / "mvtec/tile/test/good/000.png"
    assert_user_error(cli("--check", "--set", f"train.start_from={path}"), path)


def test_check_names_a_configuration_of_loco_that_lacks_a_mask(workplace, cli):
    masks, folder = sorted((workplace / "mvtec/tile/ground_truth/spot").glob("*.png")), workplace / "mvtec/tile"
    entry = {"defect_name": "spot", "pixel_value": 7, "saturation_threshold": 1, "relative_saturation": True}
    for mask in masks:  # one folder of masks for each image
        stem = mask.stem.removesuffix("_mask")
        (mask.parent / stem).mkdir()
        mask.rename(mask.parent / stem / "000.png")
    (folder / "defects_config.json").write_text(json.dumps([entry]))
    assert_user_error(cli("--check"), "defects_config.json")


def test_copies_count_once_in_the_expected_false_positive_rate(workplace, cli, monkeypatch):
    category = workplace / "mvtec/tile"
    for name in ("_print_time", "_print_inference_time"):
        monkeypatch.setattr(check, name, lambda *_: None)
    for i, source in enumerate(["test/good/000.png"] * 4 + ["train/good/001.png"]):
        shutil.copy(category / source, write(category / f"validation/good/{i}.png", np.zeros((1, 1))))
    status, out, _ = cli("--check", "True")
    assert status == 0
    assert_line(out, "p_quantile", "from 1 ")


def test_the_time_of_an_image_is_that_of_all_its_tiles(workplace, cli, monkeypatch):
    def planted(base_width, base_channels, size, device):
        assert (base_width, base_channels, size) == (4, 4, (32, 32))
        return {"float32": 3.0, "openvino": 1.5}

    monkeypatch.setattr(check, "milliseconds_by_form", planted)
    sets = ("--set", "data.img_size=[64, 96]", "--set", "data.tile_size=32", "--set", "data.tile_overlap=0")
    status, out, _ = cli("--check", "True", *sets)
    assert status == 0
    assert_line(out, "inference: 18 ms (float32), 9 ms (openvino) an image")
    assert_line(out, "openvino-int8", "requirements-export.txt")


def test_test_images_with_a_mistake_are_not_said_to_be_none(workplace, cli):
    (workplace / "mvtec/tile/ground_truth/spot/001_mask.png").unlink()
    status, out, error = cli("--check")
    assert status == 2 and "001.png" in error
    assert_line(out, "layout: mvtec", "test: not counted")
    assert not lines_with(out, "test images")
