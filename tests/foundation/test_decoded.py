"""Decoded images in a mapped file."""

import multiprocessing
import os
import pickle
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import data_loader
from data import cache
from data.cache import DecodedImages
from data.image_io import read_image
from runtime.device import core_count
from runtime.errors import UserError
from synthesis import AnomalySynthesizer

SIZE = (32, 64)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / "pictures" / f"{i}.png" for i in range(5)]
    paths[0].parent.mkdir()
    for path in paths:
        cv2.imwrite(str(path), rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    return paths


def same(images, files) -> bool:
    return len(images) == len(files) and all(
        np.array_equal(image, read_image(file, SIZE)) for image, file in zip(images, files, strict=True)
    )


def test_they_are_what_the_files_hold_and_are_decoded_once(tmp_path, files, monkeypatch):
    first = DecodedImages(tmp_path, "some pictures", files, SIZE)
    assert same(first, files) and first.path.name.startswith("some_pictures_32x64_")
    with pytest.raises(IndexError):
        first[5]
    expected = [image.copy() for image in first]
    monkeypatch.setattr(cache, "read_image", None)
    again = DecodedImages(tmp_path, "some pictures", files, SIZE)
    assert again.path == first.path and all(map(np.array_equal, again, expected))


def test_they_are_made_anew_when_a_file_changes(tmp_path, files):
    old = DecodedImages(tmp_path, "pictures", files, SIZE)
    other_size = DecodedImages(tmp_path, "pictures", files, (64, 64))
    cv2.imwrite(str(files[3]), np.full((40, 48, 3), 7, np.uint8))
    os.utime(files[3], ns=(1, 1))
    new = DecodedImages(tmp_path, "pictures", files, SIZE)
    assert same(new, files) and (new[3] == 7).all()
    assert sorted(tmp_path.glob("*.npy")) == sorted([old.path, new.path, other_size.path])  # side by side
    fewer = DecodedImages(tmp_path, "pictures", files[:4], SIZE)
    assert same(fewer, files[:4])


def test_images_beyond_the_limit_are_decoded_when_drawn(tmp_path, files, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 2 * 3 * SIZE[0] * SIZE[1] + 1)
    images = DecodedImages(tmp_path, "pictures", files, SIZE)
    assert same(images, files) and images.path.stat().st_size < 3 * 3 * SIZE[0] * SIZE[1]
    files[1].unlink()
    assert images[1].shape == (*SIZE, 3)
    files[2].unlink()
    with pytest.raises(UserError, match=r"2\.png"):
        images[2]


def test_pictures_of_every_epoch_may_take_half_of_the_free_disk(tmp_path, files, monkeypatch):
    """What is kept stays so when its own file has taken the room, and grows when there is more."""
    each, free = 3 * SIZE[0] * SIZE[1], 0
    monkeypatch.setattr(cache, "LIMIT", each)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    def kept(room):
        nonlocal free
        free = room
        limit = cache.half_of_disk(tmp_path / "not/there/yet")
        images = DecodedImages(tmp_path, "pictures", files, SIZE, limit=limit)
        assert same(images, files)
        return images.path.stat().st_size // each

    assert [kept(room * each) for room in (0, 4, 2, 6, 100)] == [1, 2, 2, 3, 5]


def test_few_large_pictures_are_decoded_ahead(tmp_path, files, monkeypatch):
    """Those that wait to be written are bounded by their bytes."""
    done, ahead = [], []

    class Slow(cache.ArrayCache):
        def make(self, index):
            done.append(index)
            return np.zeros(1000, np.uint8)

    class Bar(cache.tqdm):
        def update(self, n=1):
            time.sleep(0.02)  # a slow disk
            ahead.append(len(done) - len(ahead))
            return super().update(n)

    monkeypatch.setattr(cache, "tqdm", Bar)
    monkeypatch.setattr(cache, "AHEAD", 4000)
    Slow(tmp_path, "slow", "arrays", 30, (1000,))
    assert len(done) == 30 and max(ahead) <= max(4, core_count())


def test_a_file_that_is_deleted_or_cut_short_is_no_loss(tmp_path, files):
    images = DecodedImages(tmp_path, "pictures", files, SIZE)
    whole = images.path.read_bytes()
    images.path.unlink()
    assert same(images, files)
    images.path.write_bytes(whole[:-1])
    assert same(DecodedImages(tmp_path, "pictures", files, SIZE), files) and images.path.read_bytes() == whole


def test_a_broken_file_leaves_nothing_behind(tmp_path, files):
    files[4].write_bytes(b"x")
    with pytest.raises(UserError, match=r"4\.png: cannot be decoded"):
        DecodedImages(tmp_path / "there", "pictures", files, SIZE)
    assert not list((tmp_path / "there").iterdir())


def test_a_worker_process_gets_the_file_and_not_its_content(tmp_path, files):
    images = DecodedImages(tmp_path, "pictures", files, SIZE)
    assert same(images, files)
    assert len(pickle.dumps(images)) < 2000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(same, (images, files))


def test_samples_are_those_of_the_files(tmp_path, files):
    kept = DecodedImages(tmp_path, "pictures", files, SIZE)
    mapped = data_loader.DRAEMTrainDataset(kept, AnomalySynthesizer(kept, SIZE), seed=1)
    plain = data_loader.DRAEMTrainDataset(files, AnomalySynthesizer(files, SIZE), seed=1)
    assert len(mapped) == 5
    for key in range(30):
        first, second = mapped[key], plain[key]
        assert all(np.array_equal(first[name], second[name]) for name in first)
