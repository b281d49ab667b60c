"""data/cache.py: decoded images in a mapped file."""

import errno
import multiprocessing
import os
import pickle
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from messages import raises_user_error

import data_loader
from data import cache
from data.cache import ArrayCache, DecodedImages
from data.image_io import read_image
from runtime.device import core_count
from synthesis import AnomalySynthesizer

SIZE = (32, 64)


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / "images" / f"{i}.png" for i in range(5)]
    paths[0].parent.mkdir()
    for path in paths:
        cv2.imwrite(str(path), rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    return paths


def same(images, files) -> bool:
    return len(images) == len(files) and all(
        np.array_equal(image, read_image(file, SIZE)) for image, file in zip(images, files, strict=True)
    )


def test_cached_images_equal_the_files_and_are_decoded_once(tmp_path, files, monkeypatch):
    first = DecodedImages(tmp_path, "some images", files, SIZE)
    assert same(first, files) and first.path.name.startswith("some_images_32x64_")
    with pytest.raises(IndexError):
        first[5]
    expected = [image.copy() for image in first]
    monkeypatch.setattr(cv2, "imdecode", None)
    again = DecodedImages(tmp_path, "some images", files, SIZE)
    assert again.path == first.path and all(map(np.array_equal, again, expected))


def test_the_file_of_another_user_is_used(tmp_path, files, monkeypatch):
    """Its time cannot be set, although it can be read."""
    DecodedImages(tmp_path, "images", files, SIZE)

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(cv2, "imdecode", None)
    assert len(DecodedImages(tmp_path, "images", files, SIZE)) == len(files)


def test_images_are_cached_again_when_a_file_changes(tmp_path, files):
    old = DecodedImages(tmp_path, "images", files, SIZE)
    other_size = DecodedImages(tmp_path, "images", files, (64, 64))
    cv2.imwrite(str(files[3]), np.full((40, 48, 3), 7, np.uint8))
    os.utime(files[3], ns=(1, 1))
    new = DecodedImages(tmp_path, "images", files, SIZE)
    assert same(new, files) and (new[3] == 7).all()
    assert sorted(tmp_path.glob("*.npy")) == sorted([old.path, new.path, other_size.path])  # side by side
    fewer = DecodedImages(tmp_path, "images", files[:4], SIZE)
    assert same(fewer, files[:4])


def test_images_beyond_the_limit_are_decoded_on_access(tmp_path, files, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 2 * 3 * SIZE[0] * SIZE[1] + 1)  # the real one is gigabytes
    images = DecodedImages(tmp_path, "images", files, SIZE)
    assert same(images, files) and images.path.stat().st_size < 3 * 3 * SIZE[0] * SIZE[1]
    files[1].unlink()
    assert images[1].shape == (*SIZE, 3)
    files[2].unlink()
    with raises_user_error("2.png"):
        images[2]


def test_images_of_every_epoch_take_at_most_half_of_the_free_disk(tmp_path, files, monkeypatch):
    """The share of images that are cached stays when their own file takes the space, and grows when more is free."""
    each, free = 3 * SIZE[0] * SIZE[1], 0
    monkeypatch.setattr(cache, "LIMIT", each)  # of the disk of a test machine half would be far more
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    def kept(room):
        nonlocal free
        free = room
        limit = cache.half_of_disk(tmp_path / "not/there/yet")
        images = DecodedImages(tmp_path, "images", files, SIZE, limit=limit)
        assert same(images, files)
        return images.path.stat().st_size // each

    assert [kept(room * each) for room in (0, 4, 2, 6, 100)] == [1, 2, 2, 3, 5]


def test_images_that_wait_to_be_written_are_bounded_by_their_bytes(tmp_path, files, monkeypatch):
    """Also where writing is slower than decoding."""
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

    monkeypatch.setattr(cache, "tqdm", Bar)  # the progress bar advances once an array is written
    monkeypatch.setattr(cache, "AHEAD", 4000)  # the real one would need large images
    Slow(tmp_path, "slow", "arrays", 30, (1000,))
    assert len(done) == 30 and max(ahead) <= max(4, core_count())


def test_a_deleted_or_truncated_cache_file_is_made_again(tmp_path, files):
    images = DecodedImages(tmp_path, "images", files, SIZE)
    whole = images.path.read_bytes()
    images.path.unlink()
    assert same(images, files)
    images.path.write_bytes(whole[:-1])
    assert same(DecodedImages(tmp_path, "images", files, SIZE), files) and images.path.read_bytes() == whole


def test_an_image_that_cannot_be_decoded_leaves_no_cache_file(tmp_path, files):
    files[4].write_bytes(b"x")
    with raises_user_error("4.png"):
        DecodedImages(tmp_path / "there", "images", files, SIZE)
    assert not list((tmp_path / "there").iterdir())


def test_a_worker_process_gets_the_file_and_not_its_content(tmp_path, files):
    images = DecodedImages(tmp_path, "images", files, SIZE)
    assert same(images, files)
    assert len(pickle.dumps(images)) < 2000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(same, (images, files))


def test_training_samples_equal_those_of_the_files(tmp_path, files):
    kept = DecodedImages(tmp_path, "images", files, SIZE)
    mapped = data_loader.DRAEMTrainDataset(kept, AnomalySynthesizer(kept, SIZE), seed=1)
    plain = data_loader.DRAEMTrainDataset(files, AnomalySynthesizer(files, SIZE), seed=1)
    assert len(mapped) == 5
    for key in range(30):
        first, second = mapped[key], plain[key]
        assert all(np.array_equal(first[name], second[name]) for name in first)


class Ramp(ArrayCache):
    """Arrays of 1,000 bytes whose values are their index."""

    def make(self, index):
        return np.full(1000, index, np.uint8)


def test_cache_files_have_a_bounded_total_and_stay_while_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr("data.cache.TOTAL", 12_000)  # the real one is gigabytes
    first = Ramp(tmp_path, "first", "arrays", 4, (1000,))
    Ramp(tmp_path, "second", "arrays", 4, (1000,))  # not in use
    os.utime(tmp_path / "second.npy", ns=(10**18, 10**18))
    os.utime(tmp_path / "first.npy", ns=(1, 1))  # the longest unused, but in use
    third = Ramp(tmp_path, "third", "arrays", 4, (1000,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.npy", "third.npy"]
    assert [int(one[0]) for one in first] == [int(one[0]) for one in third] == [0, 1, 2, 3]
