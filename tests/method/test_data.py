"""Dataset folders, image formats and masks."""

import cv2
import numpy as np
import pytest
import torch
from conftest import make_dataset, write

import data_loader
from data import folders, image_io
from data.image_io import read_image
from data.mvtec import TestSample, list_nominal, list_test, split_nominal
from runtime.errors import UserError
from synthesis import AnomalySynthesizer


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "tif", "TIFF"])
def test_formats(tmp_path, suffix):
    image = np.full((20, 30, 3), (10, 100, 200), np.uint8)
    path = tmp_path / f"ünï.{suffix}"
    path.write_bytes(cv2.imencode(f".{suffix.lower()}", image)[1].tobytes())
    read = read_image(path)
    assert read.dtype == np.uint8 and read.shape == (20, 30, 3)
    np.testing.assert_allclose(read, image, atol=3)
    assert folders.list_textures(tmp_path) == [path]


def test_depths_and_channels_are_read_as_8_bit_bgr(tmp_path):
    gray, alpha = np.full((8, 8), 77, np.uint8), np.full((8, 8, 4), (1, 2, 3, 128), np.uint8)
    np.testing.assert_array_equal(read_image(write(tmp_path / "gray.png", gray)), np.full((8, 8, 3), 77))
    np.testing.assert_array_equal(read_image(write(tmp_path / "rgba.png", alpha)), np.full((8, 8, 3), (1, 2, 3)))
    wide = read_image(write(tmp_path / "wide.png", np.full((8, 8), 77 * 256 + 5, np.uint16)))
    assert wide.dtype == np.uint8 and (wide == 77).all()


def test_test_images_and_masks(tmp_path):
    category = make_dataset(tmp_path) / "mvtec/tile"
    write(category / "test/plain/a.png", np.zeros((8, 8), np.uint8))  # a defect without masks
    write(category / "test/dent/b.jpg", np.zeros((8, 8), np.uint8))
    write(category / "ground_truth/dent/b.bmp", np.full((8, 8), 255, np.uint8))  # named without _mask
    (category / "test/good/notes.txt").write_text("passed over")
    (category / "test/good/._000.png").write_text("passed over")
    found = {image.path.relative_to(category).as_posix(): image for image in list_test(category)}
    assert len(found) == 8 and list(found)[:3] == [f"test/good/{i:03}.png" for i in range(3)]
    assert found["test/plain/a.png"].masks == () and found["test/plain/a.png"].has_anomaly
    assert found["test/dent/b.jpg"].masks == (category / "ground_truth/dent/b.bmp",)
    assert found["test/spot/001.png"].masks == (category / "ground_truth/spot/001_mask.png",)


def test_a_folder_that_may_not_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    category = make_dataset(tmp_path) / "mvtec/tile"
    scandir = folders.os.scandir

    def refuse(path):
        if str(path).endswith("spot"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(PermissionError, match="spot"):
        list_test(category)


def test_a_single_missing_mask_is_named(tmp_path):
    category = make_dataset(tmp_path) / "mvtec/tile"
    (category / "ground_truth/spot/001_mask.png").unlink()
    with pytest.raises(UserError, match=r"spot.001\.png: its mask .*001_mask\.png is missing"):
        list_test(category)


def test_mask_rules(tmp_path):
    picture = write(tmp_path / "picture.png", np.zeros((64, 64), np.uint8))

    def anomalous(path, size):
        [sample] = data_loader.DRAEMTestDataset([TestSample(picture, True, "picture.png", (path,))], size)
        return sample["mask"][0].numpy() > 0

    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 1
    ones = write(tmp_path / "ones.png", mask)
    expected = np.zeros((32, 32), bool)
    expected[:16] = True
    np.testing.assert_array_equal(anomalous(ones, (32, 32)), expected)
    wide = write(tmp_path / "wide.png", mask.astype(np.uint16))
    np.testing.assert_array_equal(anomalous(wide, (32, 32)), expected)
    full = write(tmp_path / "full.png", mask.astype(np.uint16) * 65535)
    np.testing.assert_array_equal(anomalous(full, (32, 32)), expected)
    mask[:] = 0
    mask[20, 21] = 255  # one pixel of 64 x 64 is a quarter of one of 32 x 32: it vanishes
    tiny = write(tmp_path / "tiny.png", mask)
    assert not anomalous(tiny, (32, 32)).any()
    assert anomalous(tiny, (64, 64)).sum() == 1
    with pytest.raises(UserError, match=r"tiny\.png: mask of 64 x 64 pixels, but its image has 48 x 64"):
        image_io.read_mask(tiny, (64, 48))


def test_test_sample(tmp_path):
    category = make_dataset(tmp_path) / "mvtec/tile"
    dataset = data_loader.DRAEMTestDataset(list_test(category), (32, 64))
    sample = dataset[4]
    assert sample["image"].shape == (3, 32, 64) and sample["mask"].shape == (1, 32, 64)
    assert sample["has_anomaly"].tolist() == [1.0] and sample["idx"] == 4
    assert set(sample["mask"].unique().tolist()) == {0.0, 1.0}
    image = cv2.resize(cv2.imread(str(category / "test/spot/001.png")), (64, 32))
    assert sample["image"].dtype == torch.uint8 and sample["mask"].dtype == torch.bool
    scaled = data_loader.scaled(sample["image"], torch.device("cpu"))
    np.testing.assert_array_equal(scaled.numpy(), image.transpose(2, 0, 1).astype(np.float32) / 255)


def test_split_is_seeded_disjoint_and_complete(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(50)]
    train, held_out = split_nominal(files, 0.2, 1)
    assert len(held_out) == 10 and sorted(train + held_out) == sorted(files)
    assert (train, held_out) == split_nominal(files, 0.2, 1)
    assert held_out != split_nominal(files, 0.2, 2)[1]
    assert split_nominal(files, 0, 1) == (files, [])
    for share in (0.001, 0.999):
        with pytest.raises(UserError, match=r"data\.val_split"):
            split_nominal(files, share, 1)


def test_textures_at_any_depth(tmp_path):
    for path in ("a.png", "b/c.JPG", "b/d/e/f.tif"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    assert len(folders.list_textures(tmp_path)) == 3
    with pytest.raises(UserError, match="fetch_dtd"):
        folders.list_textures(tmp_path / "none")


def test_fetch_dtd(tmp_path, monkeypatch):
    import sys
    import types

    def download(root, download):
        (tmp_path / "dtd/dtd/images/banded").mkdir(parents=True)
        (tmp_path / "dtd/dtd/images/banded/1.jpg").write_bytes(b"x")

    fake = types.ModuleType("torchvision.datasets")
    fake.DTD = download
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    assert data_loader.fetch_dtd(tmp_path) == tmp_path / "dtd/images"
    assert (tmp_path / "dtd/images/banded/1.jpg").is_file()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # its import fails
    assert data_loader.fetch_dtd(tmp_path).is_dir()  # already there
    with pytest.raises(UserError, match="torchvision cannot be imported"):
        data_loader.fetch_dtd(tmp_path / "elsewhere")


def test_samples_travel_in_the_smallest_types_that_lose_nothing(tmp_path):
    make_dataset(tmp_path)
    files = list_nominal(tmp_path / "mvtec/tile")
    textures = folders.list_textures(tmp_path / "textures")
    synthesizer = AnomalySynthesizer(textures, (32, 32), cut=True)
    dataset = data_loader.DRAEMTrainDataset(files, synthesizer, seed=1)
    for key in range(20):
        sample = dataset[key]
        assert [sample[name].dtype for name in ("image", "augmented_image", "anomaly_mask")] == [
            *(torch.uint8, torch.float32, torch.bool),
        ]
        rng = np.random.default_rng([1, key // 6, key % 6, 1])
        image, augmented, mask, has_anomaly = synthesizer(dataset.images[key % 6], rng)
        assert np.array_equal(data_loader.scaled(sample["image"], torch.device("cpu")), image.transpose(2, 0, 1))
        assert np.array_equal(sample["augmented_image"], augmented.transpose(2, 0, 1))
        assert np.array_equal(sample["anomaly_mask"], mask.transpose(2, 0, 1)) and sample["has_anomaly"] == has_anomaly


def test_scaling_is_numpys_to_the_last_digit():
    values = torch.arange(256, dtype=torch.uint8)
    scaled = data_loader.scaled(values, torch.device("cpu"))
    assert scaled.dtype == torch.float32
    np.testing.assert_array_equal(scaled.numpy(), np.arange(256, dtype=np.uint8).astype(np.float32) / 255)
    assert data_loader.scaled(scaled, torch.device("cpu")) is scaled


@pytest.mark.parametrize(("side", "batch", "workers"), [(1024, 8, 16), (2048, 16, 16), (8192, 8, 4), (256, 8, 8)])
def test_what_loader_processes_hold_ready_is_bounded_by_bytes(side, batch, workers):
    texture = np.zeros((side, side, 3), np.uint8)
    dataset = data_loader.DRAEMTrainDataset([texture], AnomalySynthesizer([texture], (side, side)))
    loader = data_loader.train_loader(dataset, batch, workers)
    size = batch * side * side * 16
    assert loader.num_workers >= 1
    assert loader.num_workers * loader.prefetch_factor * size <= max(2**32, size)
    if side <= 1024:
        assert loader.num_workers == workers
