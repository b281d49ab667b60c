"""data/folders.py: names of folders and files, and which files a folder has."""

import os
import re
import shutil
import time

import numpy as np
import pytest
from conftest import make_dataset, write
from messages import assert_names, raises_user_error

from data import folders
from data.folders import DatasetNotes, list_categories, list_textures
from data.mvtec import (
    list_nominal,
    list_test,
)

IMAGE = np.random.default_rng(0).integers(90, 110, (40, 48, 3), dtype=np.uint8)


@pytest.fixture
def category(tmp_path):
    return make_dataset(tmp_path) / "mvtec/tile"


def test_hidden_folders_are_skipped_and_counted(category):
    for folder in ("test/.ipynb_checkpoints", "train/good/.ipynb_checkpoints", "test/spot/.thumbs", "test/__MACOSX"):
        write(category / folder / "000.png", IMAGE)
    write(category.parents[1] / "textures/.ipynb_checkpoints/0.png", IMAGE)
    (category / "test/spot/Thumbs.db").write_text("x")
    notes = DatasetNotes()
    assert len(list_nominal(category, notes)) == 6 and len(list_test(category, notes)) == 6
    assert len(list_textures(category.parents[1] / "textures", notes)) == 3
    [line] = notes.lines()
    assert_names(line, re.compile(r"\b1\b[^;]*\bThumbs\.db\b"), re.compile(r"\b3\b[^;]*\.ipynb_checkpoints\b"))
    shutil.copytree(category, category.parent / ".hidden")
    assert list_categories(category.parent) == ["tile"]


def test_links_are_followed_and_loops_end(category, tmp_path):
    write(tmp_path / "elsewhere/more/900.png", IMAGE)
    (category / "train/good/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (category / "train/good/loop").symlink_to(category / "train/good", target_is_directory=True)
    assert len(list_nominal(category)) == 7


@pytest.mark.parametrize("name", ["Good", "ok", "OK", "normal", "defect-free"])
def test_other_names_of_the_nominal_folder(category, name):
    (category / "test/good").rename(category / "test/x")
    (category / "test/x").rename(category / "test" / name)
    (category / "train/good").rename(category / "train/x")
    (category / "train/x").rename(category / "train" / name)
    notes = DatasetNotes()
    assert [image.has_anomaly for image in list_test(category, notes)] == [False] * 3 + [True] * 3
    [line] = notes.lines()
    assert_names(line, f"test/{name}", "good")
    assert list_categories(category.parent) == ["tile"] and len(list_nominal(category)) == 6


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_file_name_that_is_not_utf_8_is_a_user_error(category):
    shutil.copy(category / "train/good/000.png", os.fsencode(category / "train/good") + b"/b\xf6se.png")
    with raises_user_error(r"b\xf6se.png", "UTF-8"):
        list_nominal(category)


def test_a_folder_without_read_permission_is_an_error(tmp_path, monkeypatch):
    category = make_dataset(tmp_path) / "mvtec/tile"
    scandir = folders.os.scandir

    def refuse(path):
        if str(path).endswith("spot"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(PermissionError, match="spot"):
        list_test(category)


def test_textures_at_any_depth(tmp_path):
    for path in ("a.png", "b/c.JPG", "b/d/e/f.tif"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    assert len(folders.list_textures(tmp_path)) == 3
    with raises_user_error("data.anomaly_source_path", tmp_path / "none", "fetch_dtd"):
        folders.list_textures(tmp_path / "none")


@pytest.mark.parametrize("source", ["mvtec", ".", "mvtec/tile", "mvtec/tile/test/spot", "textures", "kept"])
def test_textures_from_the_dataset_are_a_user_error(category, source):
    """Test defects and their masks would be trained on; also where only a link leads to them."""
    root = category.parents[1]
    if source == "textures":
        assert len(list_textures(root / source, None, root / "mvtec")) == 3
        (root / "textures/more").symlink_to(category / "test", target_is_directory=True)
    if source == "kept":
        (root / source).mkdir()
        (root / source / "0.png").symlink_to(category / "test/spot/000.png")
    with raises_user_error("data.anomaly_source_path", root / source):
        list_textures(root / source, None, root / "mvtec")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes there")
def test_pipes_are_skipped(tmp_path):
    """Reading one would wait for ever. A link to a missing file stays an error."""
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "missing.png")
    notes = folders.DatasetNotes()
    assert folders.images_below(tmp_path, notes) == [tmp_path / "b.png"] and "a.png" in notes.lines()[0]


def test_a_category_given_as_the_dataset_is_a_user_error_with_the_fix(category):
    with raises_user_error("data.data_path", f"data.data_path={category.parent}", f"data.category={category.name}"):
        folders.category_folder(category, "bottle")


def test_a_category_without_train_good_is_told_where_images_belong(category):
    write(category.parent / "photos/a.png", IMAGE)
    with raises_user_error(category.parent / "photos", "train/good"):
        folders.category_folder(category.parent, "photos")


def test_many_unused_files_take_little_time():
    """Their names were looked for in a list: the time grew with the square of their number."""
    notes, start = DatasetNotes(), time.process_time()
    for number in range(40_000):
        notes.skip("files that are no image", f"{number}.txt")
    assert time.process_time() - start < 2
    assert "files that are no image: 40000 (0.txt, 1.txt, 2.txt, ...)" in notes.lines()[0]
