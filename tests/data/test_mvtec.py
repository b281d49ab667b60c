"""data/mvtec.py: which images and masks a dataset has, and how nominal ones are split."""

import re

import numpy as np
import pytest
from conftest import make_dataset, spots, write
from messages import assert_names, raises_user_error

from data.mask_decoding import MOST
from data.mvtec import (
    check_bit_depth,
    list_nominal,
    list_test,
    list_validation,
    split_nominal,
    vanishing_regions,
    with_masks_read,
)

IMAGE = np.random.default_rng(0).integers(90, 110, (40, 48, 3), dtype=np.uint8)
MASK = np.pad(np.full((10, 10), 255, np.uint8), ((10, 20), (10, 28)))


@pytest.fixture
def category(tmp_path):
    return make_dataset(tmp_path) / "mvtec/tile"


def test_subfolders_are_listed(category):
    write(category / "train/good/shift2/000.png", IMAGE)
    write(category / "test/good/shift2/000.png", IMAGE)
    write(category / "test/spot/deep/000.png", IMAGE)
    write(category / "ground_truth/spot/deep/000_mask.png", MASK)
    assert len(list_nominal(category)) == 7
    names = [image.name for image in list_test(category) if not image.has_anomaly]
    assert names == ["test/good/000.png", "test/good/001.png", "test/good/002.png", "test/good/shift2/000.png"]
    assert spots(category)["deep/000.png"] == ["ground_truth/spot/deep/000_mask.png"]
    assert spots(category)["000.png"] == ["ground_truth/spot/000_mask.png"]


def test_an_image_directly_in_test_is_a_user_error(category):
    write(category / "test/preview.png", IMAGE)
    with raises_user_error("preview.png", "test/good"):
        list_test(category)


def test_validation_images_are_listed(category):
    assert list_validation(category) == []
    path = write(category / "validation/good/7.png", IMAGE)
    assert list_validation(category) == [path]


def test_test_images_far_below_the_white_level_of_training_are_reported(category):
    for path in (category / "test").rglob("*.png"):
        write(path, IMAGE.astype(np.uint16) * 16)
    [said] = check_bit_depth(list_test(category), None)
    assert_names(said, 4095, 65535)
    assert check_bit_depth(list_test(category), 4095.0) == []
    write(category / "test/good/000.png", IMAGE.astype(np.uint16) * 257)
    assert check_bit_depth(list_test(category), None) == []


def test_a_split_keeps_groups_together(tmp_path):
    files = [tmp_path / f"train/good/part{i // 5:02}_{i}.png" for i in range(50)]
    train, held_out = split_nominal(files, 0.2, 0, r"(part\d+)_", tmp_path)
    parts = [{file.name.split("_")[0] for file in some} for some in (train, held_out)]
    assert not parts[0] & parts[1] and len(held_out) == 10 and sorted(train + held_out) == sorted(files)
    with raises_user_error("data.split_by", "(shift)", "part00_0.png"):
        split_nominal(files, 0.2, 0, "(shift)", tmp_path)
    with raises_user_error("data.split_by", "(part)"):
        split_nominal(files, 0.2, 0, "(part)", tmp_path)


def test_doubtful_masks_are_reported_once_per_kind_and_unreadable_ones_are_counted(category):
    for i in range(3):
        write(category / f"ground_truth/spot/00{i}_mask.png", 255 - MASK)
    images, said = with_masks_read(list_test(category), (40, 48))
    assert len(said) == 1
    assert_names(said[0], MOST, re.compile(r"\b3\b.*spot/000_mask\.png"))
    write(category / "ground_truth/spot/000_mask.png", MASK * 0)
    images, said = with_masks_read(list_test(category), (40, 48))
    assert [image.has_empty_mask for image in images] == [False] * 3 + [True, False, False] and len(said) == 2
    for i in range(2):
        write(category / f"ground_truth/spot/00{i}_mask.png", IMAGE)
    with raises_user_error("000_mask.png", 1):
        with_masks_read(list_test(category), (40, 48))


def test_regions_of_a_mask_that_vanish_when_resized_are_reported(category):
    mask = np.zeros((40, 48), np.uint8)
    mask[24:36, 4:40] = 255  # two that stay, of which one falls apart
    mask[30, 20:24] = 0
    mask[4:16, 24:40] = 255
    mask[2:20:4, 2:18:4] = 255  # 20 that vanish
    path = write(category / "ground_truth/spot/001_mask.png", mask)
    assert vanishing_regions(mask > 0, (20, 24)) == (20, 22) and vanishing_regions(mask > 0, (40, 48)) == (0, 22)
    _, said = with_masks_read(list_test(category), (20, 24))
    assert len(said) == 1
    assert_names(said[0], "data.img_size", "20 of 22", f"spot/{path.name}")
    assert with_masks_read(list_test(category), (40, 48))[1] == []


def test_test_images_are_listed_with_their_masks(tmp_path):
    category = make_dataset(tmp_path) / "mvtec/tile"
    write(category / "test/plain/a.png", np.zeros((8, 8), np.uint8))  # an anomaly type without masks
    write(category / "test/dent/b.jpg", np.zeros((8, 8), np.uint8))
    write(category / "ground_truth/dent/b.bmp", np.full((8, 8), 255, np.uint8))  # named without _mask
    (category / "test/good/notes.txt").write_text("ignored")
    (category / "test/good/._000.png").write_text("ignored")
    found = {image.path.relative_to(category).as_posix(): image for image in list_test(category)}
    assert len(found) == 8 and list(found)[:3] == [f"test/good/{i:03}.png" for i in range(3)]
    assert found["test/plain/a.png"].masks == () and found["test/plain/a.png"].has_anomaly
    assert found["test/dent/b.jpg"].masks == (category / "ground_truth/dent/b.bmp",)
    assert found["test/spot/001.png"].masks == (category / "ground_truth/spot/001_mask.png",)


def test_split_is_seeded_disjoint_and_complete(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(50)]
    train, held_out = split_nominal(files, 0.2, 1)
    assert len(held_out) == 10 and sorted(train + held_out) == sorted(files)
    assert (train, held_out) == split_nominal(files, 0.2, 1)
    assert held_out != split_nominal(files, 0.2, 2)[1]
    assert split_nominal(files, 0, 1) == (files, [])
    for share in (0.001, 0.999):
        with raises_user_error("data.val_split", share, 50):
            split_nominal(files, share, 1)
