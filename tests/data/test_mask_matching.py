"""data/mask_matching.py: which ground-truth mask belongs to which image."""

import shutil

import numpy as np
import pytest
from conftest import make_dataset, spots, write
from messages import assert_names, raises_user_error

from data.folders import DatasetNotes
from data.mvtec import (
    list_nominal,
    list_test,
)

IMAGE = np.random.default_rng(0).integers(90, 110, (40, 48, 3), dtype=np.uint8)


MASK = np.pad(np.full((10, 10), 255, np.uint8), ((10, 20), (10, 28)))


@pytest.fixture
def category(tmp_path):
    return make_dataset(tmp_path) / "mvtec/tile"


def test_a_mask_that_marks_pixels_of_a_nominal_image_is_a_user_error(category):
    write(category / "ground_truth/good/000_mask.png", MASK * 0)
    assert len(list_test(category)) == 6
    write(category / "ground_truth/good/001_mask.png", MASK)
    with raises_user_error("good/001_mask.png"):
        list_test(category)


def test_images_that_differ_only_in_the_suffix(category):
    write(category / "test/spot/000.jpg", IMAGE)
    with raises_user_error("000_mask.png", "000.jpg", "000.png"):
        list_test(category)
    write(category / "ground_truth/spot/000_mask.jpg", MASK)
    assert spots(category)["000.jpg"] == ["ground_truth/spot/000_mask.jpg"]
    assert spots(category)["000.png"] == ["ground_truth/spot/000_mask.png"]
    (category / "ground_truth/spot/000_mask.jpg").rename(category / "ground_truth/spot/000.jpg_mask.png")
    assert spots(category)["000.jpg"] == ["ground_truth/spot/000.jpg_mask.png"]


@pytest.mark.parametrize("folder", ["train/good", "test/good", "test/dent"])
def test_a_mask_with_the_name_of_its_image_beside_it_is_a_user_error(category, folder):
    write(category / folder / "000.jpg", IMAGE)
    write(category / folder / "000.png", MASK)
    with raises_user_error(category / folder / "000.png", "000.jpg", "ground_truth"):
        list_nominal(category)
        list_test(category)


@pytest.mark.parametrize("name", ["000_mask.png", "000_label.bmp", "000-gt.png", "masks/000.png", "mask_000.png"])
def test_masks_beside_images_are_matched(category, name):
    shutil.rmtree(category / "ground_truth")
    for i in ("001", "002"):
        write(category / "test/spot" / name.replace("000", i), MASK)
    write(category / "test/spot" / name, MASK)
    notes = DatasetNotes()
    assert spots(category, notes)["000.png"] == [f"test/spot/{name}"] and len(list_test(category)) == 6
    [line] = notes.lines()
    assert_names(line, "test/spot")
    write(category / "train/good" / name, MASK * 0)
    assert len(list_nominal(category, notes)) == 6
    assert_names(notes.lines()[-1], 1, name.rpartition("/")[2])


@pytest.mark.parametrize(
    "folders", ["images masks", "rgb gt xyz", "img label", "a/images a/masks", "shown Annotations"]
)
def test_masks_in_a_subfolder_beside_that_of_the_images(category, folders):
    """The masks were tested as anomalous images, and those of nominal ones as nominal images or trained on."""
    shutil.rmtree(category)
    images, masks, *depth = folders.split()
    for name, count in (("train/good", 4), ("test/good", 2), ("test/spot", 3)):
        for i in range(count):
            write(category / name / images / f"{i:03}.png", IMAGE)
            write(category / name / masks / f"{i:03}.png", MASK if "spot" in name else MASK * 0)
            if depth:
                write(category / name / depth[0] / f"{i:03}.tiff", -IMAGE.astype(np.float32))
    notes = DatasetNotes()
    expected = {f"{images}/{i:03}.png": [f"test/spot/{masks}/{i:03}.png"] for i in range(3)}
    assert spots(category, notes) == expected
    assert len(list_test(category)) == 5 and len(list_nominal(category, notes)) == 4
    assert len(notes.skipped.get("depth maps beside images", [])) == (9 if depth else 0)
    write(category / "test/good" / masks / "001.png", MASK)
    with raises_user_error(f"test/good/{masks}/001.png"):
        list_test(category)


def test_masks_of_several_subfolders_and_of_subfolders_named_after_images(category):
    for part in ("a", "b"):
        write(category / "test/dent" / part / "images/0.png", IMAGE)
        write(category / "test/dent" / part / "masks/0_mask.png", MASK)
    write(category / "test/split/images/0.png", IMAGE)
    for i in range(2):
        write(category / f"test/split/masks/0/{i}.png", np.roll(MASK, 15 * i, axis=1))
    found = {one.name: [mask.relative_to(category).as_posix() for mask in one.masks] for one in list_test(category)}
    assert found["test/dent/a/images/0.png"] == ["test/dent/a/masks/0_mask.png"]
    assert found["test/dent/b/images/0.png"] == ["test/dent/b/masks/0_mask.png"]
    assert found["test/split/images/0.png"] == [f"test/split/masks/0/{i}.png" for i in range(2)]
    assert len(found) == 9


@pytest.mark.parametrize("image", ["images/000.png", "000.png"])
def test_a_subfolder_of_masks_with_another_name_is_a_user_error(category, image):
    write(category / "test/dent" / image, IMAGE)
    mask = write(category / "test/dent/pixels/000.png", MASK)
    with raises_user_error(mask, "masks"):
        list_test(category)


def test_a_mask_in_a_subfolder_that_matches_no_image_is_not_tested(category):
    for i in range(2):
        write(category / f"test/dent/images/{i}.png", IMAGE)
        write(category / f"test/dent/masks/{i}.png", MASK)
    write(category / "test/dent/masks/7.png", MASK)
    notes = DatasetNotes()
    assert len(list_test(category, notes)) == 8
    assert_names(notes.lines()[-1], "test/dent/masks/7.png")


@pytest.mark.parametrize("name", ["Spot", "SPOT", "s-pot", "sp_ot"])
def test_mask_folders_that_differ_in_case_and_signs(category, name):
    (category / "ground_truth/spot").rename(category / "ground_truth/x")
    (category / "ground_truth/x").rename(category / "ground_truth" / name)
    notes = DatasetNotes()
    assert spots(category, notes)["000.png"] == [f"ground_truth/{name}/000_mask.png"]
    [line] = notes.lines()
    assert_names(line, "test/spot", f"ground_truth/{name}")


def test_a_mask_folder_of_a_similar_name_is_a_user_error(category):
    (category / "ground_truth/spot").rename(category / "ground_truth/spots")
    with raises_user_error("ground_truth/spots", "test/spot"):
        list_test(category)


@pytest.mark.parametrize("name", ["masks", "GroundTruth", "gt"])
def test_other_names_of_the_ground_truth_folder(category, name):
    (category / "ground_truth").rename(category / name)
    assert spots(category)["000.png"] == [f"{name}/spot/000_mask.png"]
    shutil.copytree(category / name, category / "labels")
    with raises_user_error(name, "labels", "ground_truth"):
        list_test(category)


def test_masks_without_a_folder_of_their_anomaly_type(category):
    for mask in (category / "ground_truth/spot").iterdir():
        mask.rename(category / "ground_truth" / mask.name)
    assert spots(category)["001.png"] == ["ground_truth/001_mask.png"]
    write(category / "test/dent/001.png", IMAGE)
    with raises_user_error("001_mask.png", "test/dent/001.png", "test/spot/001.png"):
        list_test(category)


@pytest.mark.parametrize("names", [("000/000.png", "000/001.png"), ("000_mask_1.png", "000_mask_2.png")])
def test_several_masks_of_an_image_are_united(category, names):
    (category / "ground_truth/spot/000_mask.png").unlink()
    for place, name in enumerate(names):
        write(category / "ground_truth/spot" / name, np.roll(MASK, 15 * place, axis=1))
    assert spots(category)["000.png"] == [f"ground_truth/spot/{name}" for name in names]
    from data_loader import DRAEMTestDataset

    [image] = [image for image in list_test(category) if image.name == "test/spot/000.png"]
    mask = DRAEMTestDataset([image], (40, 48)).read(0)[1]
    np.testing.assert_array_equal(mask, np.maximum(MASK, np.roll(MASK, 15, axis=1)))


def test_all_missing_masks_are_named_in_one_error(category):
    for i in (0, 2):
        (category / f"ground_truth/spot/00{i}_mask.png").unlink()
    with raises_user_error("000.png", 1, "000_mask.png", "002_mask.png"):
        list_test(category)


def test_masks_named_like_no_image_are_a_user_error(category):
    for number, path in enumerate(sorted((category / "ground_truth/spot").iterdir())):
        path.rename(path.with_name(f"mask{number + 100}.png"))
    with raises_user_error("mask100.png", 2, "test/spot", "000_mask.png"):
        list_test(category)


def test_masks_without_an_image_are_counted(category):
    write(category / "ground_truth/spot/999_mask.png", MASK)
    write(category / "ground_truth/rust/000_mask.png", MASK)
    notes = DatasetNotes()
    list_test(category, notes)
    assert_names(notes.lines()[0], 2, "ground_truth/spot/999_mask.png")


def test_a_missing_mask_is_a_user_error(tmp_path):
    category = make_dataset(tmp_path) / "mvtec/tile"
    (category / "ground_truth/spot/001_mask.png").unlink()
    with raises_user_error("spot/001.png", "001_mask.png"):
        list_test(category)


@pytest.mark.parametrize("moved", [True, False])
def test_masks_in_two_folders_are_refused_and_other_files_there_are_not(category, moved):
    """Those beside ground_truth were left out without a word."""
    (category / "labels").mkdir()
    (category / "labels/classes.txt").write_text("spot")
    assert len(list_test(category)) == 6
    shutil.copytree(category / "ground_truth/spot", category / "masks/spot")
    if moved:
        shutil.rmtree(category / "ground_truth/spot")
    with raises_user_error(category, "ground_truth and masks"):
        list_test(category)
