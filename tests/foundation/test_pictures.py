"""What lies in folders is taken as its owner means it, or named."""

import os
import shutil

import numpy as np
import pytest
from conftest import make_dataset, write

from data.folders import DatasetNotes, list_categories, list_textures
from data.mvtec import (
    check_bit_depth,
    list_nominal,
    list_test,
    list_validation,
    split_nominal,
    with_masks_read,
)
from runtime.errors import UserError

PICTURE = np.random.default_rng(0).integers(90, 110, (40, 48, 3), dtype=np.uint8)
MASK = np.zeros((40, 48), np.uint8)
MASK[10:20, 10:20] = 255


@pytest.fixture
def category(tmp_path):
    return make_dataset(tmp_path) / "mvtec/tile"


def spots(category, notes=None):
    """Masks of the pictures of test/spot, as their names within the category."""
    found = [image for image in list_test(category, notes) if image.name.startswith("test/spot")]
    return {
        image.name.removeprefix("test/spot/"): [mask.relative_to(category).as_posix() for mask in image.masks]
        for image in found
    }


def test_hidden_folders_are_passed_over_and_counted(category):
    for folder in ("test/.ipynb_checkpoints", "train/good/.ipynb_checkpoints", "test/spot/.thumbs", "test/__MACOSX"):
        write(category / folder / "000.png", PICTURE)
    write(category.parents[1] / "textures/.ipynb_checkpoints/0.png", PICTURE)
    (category / "test/spot/Thumbs.db").write_text("x")
    notes = DatasetNotes()
    assert len(list_nominal(category, notes)) == 6 and len(list_test(category, notes)) == 6
    assert len(list_textures(category.parents[1] / "textures", notes)) == 3
    [line] = notes.lines()
    assert "hidden folders" in line and "1 files that are no pictures (Thumbs.db)" in line
    shutil.copytree(category, category.parent / ".hidden")
    assert list_categories(category.parent) == ["tile"]


def test_links_are_followed_but_not_round_and_round(category, tmp_path):
    write(tmp_path / "elsewhere/more/900.png", PICTURE)
    (category / "train/good/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (category / "train/good/loop").symlink_to(category / "train/good", target_is_directory=True)
    assert len(list_nominal(category)) == 7


def test_subfolders_are_taken(category):
    write(category / "train/good/shift2/000.png", PICTURE)
    write(category / "test/good/shift2/000.png", PICTURE)
    write(category / "test/spot/deep/000.png", PICTURE)
    write(category / "ground_truth/spot/deep/000_mask.png", MASK)
    assert len(list_nominal(category)) == 7
    names = [image.name for image in list_test(category) if not image.has_anomaly]
    assert names == ["test/good/000.png", "test/good/001.png", "test/good/002.png", "test/good/shift2/000.png"]
    assert spots(category)["deep/000.png"] == ["ground_truth/spot/deep/000_mask.png"]
    assert spots(category)["000.png"] == ["ground_truth/spot/000_mask.png"]


def test_pictures_directly_in_test_are_named(category):
    write(category / "test/preview.png", PICTURE)
    with pytest.raises(UserError, match=r"preview\.png: lies directly in test/; put nominal pictures into test/good"):
        list_test(category)


@pytest.mark.parametrize("name", ["Good", "ok", "OK", "normal", "defect-free"])
def test_other_names_of_good(category, name):
    (category / "test/good").rename(category / "test/x")
    (category / "test/x").rename(category / "test" / name)
    (category / "train/good").rename(category / "train/x")
    (category / "train/x").rename(category / "train" / name)
    notes = DatasetNotes()
    assert [image.has_anomaly for image in list_test(category, notes)] == [False] * 3 + [True] * 3
    assert notes.lines() == [f"test/{name} is taken as nominal (good)"]
    assert list_categories(category.parent) == ["tile"] and len(list_nominal(category)) == 6


def test_nominal_pictures_whose_masks_mark_something_are_refused(category):
    write(category / "ground_truth/good/000_mask.png", MASK * 0)
    assert len(list_test(category)) == 6
    write(category / "ground_truth/good/001_mask.png", MASK)
    with pytest.raises(UserError, match=r"good.001_mask\.png: marks pixels of a nominal picture"):
        list_test(category)


def test_pictures_that_differ_in_the_suffix_only(category):
    write(category / "test/spot/000.jpg", PICTURE)
    with pytest.raises(UserError, match=r"000_mask\.png: 000\.jpg and 000\.png could both be its picture"):
        list_test(category)
    write(category / "ground_truth/spot/000_mask.jpg", MASK)
    assert spots(category)["000.jpg"] == ["ground_truth/spot/000_mask.jpg"]
    assert spots(category)["000.png"] == ["ground_truth/spot/000_mask.png"]
    (category / "ground_truth/spot/000_mask.jpg").rename(category / "ground_truth/spot/000.jpg_mask.png")
    assert spots(category)["000.jpg"] == ["ground_truth/spot/000.jpg_mask.png"]


@pytest.mark.parametrize("folder", ["train/good", "test/good", "test/dent"])
def test_masks_of_the_pictures_own_name_beside_them_are_named(category, folder):
    write(category / folder / "000.jpg", PICTURE)
    write(category / folder / "000.png", MASK)
    with pytest.raises(UserError, match=r"000\.png: looks like the mask of 000\.jpg; move it to ground_truth"):
        list_nominal(category)
        list_test(category)


@pytest.mark.parametrize("name", ["000_mask.png", "000_label.bmp", "000-gt.png", "masks/000.png", "mask_000.png"])
def test_masks_beside_pictures(category, name):
    shutil.rmtree(category / "ground_truth")
    for i in ("001", "002"):
        write(category / "test/spot" / name.replace("000", i), MASK)
    write(category / "test/spot" / name, MASK)
    notes = DatasetNotes()
    assert spots(category, notes)["000.png"] == [f"test/spot/{name}"] and len(list_test(category)) == 6
    assert notes.lines() == ["masks that lie beside the pictures of test/spot are taken"]
    write(category / "train/good" / name, MASK * 0)
    assert len(list_nominal(category, notes)) == 6
    assert "1 masks beside nominal pictures" in notes.lines()[-1]


@pytest.mark.parametrize("name", ["Spot", "SPOT", "s-pot", "sp_ot"])
def test_mask_folders_that_differ_in_case_and_signs(category, name):
    (category / "ground_truth/spot").rename(category / "ground_truth/x")
    (category / "ground_truth/x").rename(category / "ground_truth" / name)
    notes = DatasetNotes()
    assert spots(category, notes)["000.png"] == [f"ground_truth/{name}/000_mask.png"]
    assert notes.lines() == [f"masks of test/spot are taken from ground_truth/{name}"]


def test_mask_folders_of_a_near_name_are_named(category):
    (category / "ground_truth/spot").rename(category / "ground_truth/spots")
    with pytest.raises(UserError, match=r"spots: is it for test/spot, which has no masks\? rename it to spot"):
        list_test(category)


@pytest.mark.parametrize("name", ["masks", "GroundTruth", "gt"])
def test_other_names_of_ground_truth(category, name):
    (category / "ground_truth").rename(category / name)
    assert spots(category)["000.png"] == [f"{name}/spot/000_mask.png"]
    shutil.copytree(category / name, category / "labels")
    with pytest.raises(UserError, match="could both hold the masks"):
        list_test(category)


def test_masks_without_a_folder_of_their_defect(category):
    for mask in (category / "ground_truth/spot").iterdir():
        mask.rename(category / "ground_truth" / mask.name)
    assert spots(category)["001.png"] == ["ground_truth/001_mask.png"]
    write(category / "test/dent/001.png", PICTURE)
    with pytest.raises(UserError, match=r"001_mask\.png: may be of test/dent/001\.png or test/spot/001\.png"):
        list_test(category)


@pytest.mark.parametrize("names", [("000/000.png", "000/001.png"), ("000_mask_1.png", "000_mask_2.png")])
def test_several_masks_of_a_picture_add_up(category, names):
    (category / "ground_truth/spot/000_mask.png").unlink()
    for place, name in enumerate(names):
        write(category / "ground_truth/spot" / name, np.roll(MASK, 15 * place, axis=1))
    assert spots(category)["000.png"] == [f"ground_truth/spot/{name}" for name in names]
    from data_loader import DRAEMTestDataset

    [picture] = [image for image in list_test(category) if image.name == "test/spot/000.png"]
    mask = DRAEMTestDataset([picture], (40, 48)).read(0)[1]
    np.testing.assert_array_equal(mask, np.maximum(MASK, np.roll(MASK, 15, axis=1)))


def test_all_missing_masks_are_named_at_once(category):
    for i in (0, 2):
        (category / f"ground_truth/spot/00{i}_mask.png").unlink()
    with pytest.raises(UserError, match=r"000\.png \(and 1 more\): their masks are missing.*000_mask.*002_mask"):
        list_test(category)


def test_masks_that_are_all_named_otherwise_are_told(category):
    for number, path in enumerate(sorted((category / "ground_truth/spot").iterdir())):
        path.rename(path.with_name(f"mask{number + 100}.png"))
    with pytest.raises(
        UserError, match=r"mask100\.png \(and 2 more\): named like no picture of test/spot.* 000_mask\.png"
    ):
        list_test(category)


def test_masks_that_no_picture_took_are_counted(category):
    write(category / "ground_truth/spot/999_mask.png", MASK)
    write(category / "ground_truth/rust/000_mask.png", MASK)
    notes = DatasetNotes()
    list_test(category, notes)
    assert "2 masks that no picture took (ground_truth/spot/999_mask.png" in notes.lines()[0]


def test_validation_pictures_are_listed(category):
    assert list_validation(category) == []
    path = write(category / "validation/good/7.png", PICTURE)
    assert list_validation(category) == [path]


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_not_utf_8_are_refused_by_name(category):
    shutil.copy(category / "train/good/000.png", os.fsencode(category / "train/good") + b"/b\xf6se.png")
    with pytest.raises(UserError, match=r"b\\xf6se\.png: the name is not UTF-8; rename it"):
        list_nominal(category)


def test_deep_pictures_darker_than_those_trained_on_are_doubted(category):
    for path in (category / "test").rglob("*.png"):
        write(path, PICTURE.astype(np.uint16) * 16)
    [said] = check_bit_depth(list_test(category), None)
    assert "up to 4095, but white is 65535 as in training: they are seen too dark" in said
    assert check_bit_depth(list_test(category), 4095.0) == []
    write(category / "test/good/000.png", PICTURE.astype(np.uint16) * 257)
    assert check_bit_depth(list_test(category), None) == []


def test_groups_stay_together(tmp_path):
    files = [tmp_path / f"train/good/part{i // 5:02}_{i}.png" for i in range(50)]
    train, held_out = split_nominal(files, 0.2, 0, r"(part\d+)_", tmp_path)
    parts = [{file.name.split("_")[0] for file in some} for some in (train, held_out)]
    assert not parts[0] & parts[1] and len(held_out) == 10 and sorted(train + held_out) == sorted(files)
    with pytest.raises(UserError, match=r"data\.split_by.*does not match.*part00_0\.png"):
        split_nominal(files, 0.2, 0, "(shift)", tmp_path)
    with pytest.raises(UserError, match="is one group"):
        split_nominal(files, 0.2, 0, "(part)", tmp_path)


def test_doubts_about_masks_are_told_once_per_kind_and_unreadable_ones_all(category):
    for i in range(3):
        write(category / f"ground_truth/spot/00{i}_mask.png", 255 - MASK)
    pictures, said = with_masks_read(list_test(category))
    assert len(said) == 1 and "more than half" in said[0] and ": 3 (spot/000_mask.png, " in said[0]
    write(category / "ground_truth/spot/000_mask.png", MASK * 0)
    pictures, said = with_masks_read(list_test(category))
    assert [image.has_empty_mask for image in pictures] == [False] * 3 + [True, False, False] and len(said) == 2
    for i in range(2):
        write(category / f"ground_truth/spot/00{i}_mask.png", PICTURE)
    with pytest.raises(UserError, match=r"000_mask\.png: .*\n1 more masks cannot be read either"):
        with_masks_read(list_test(category))
