"""data_loader.py: training and test samples, their types and loaders."""

import cv2
import numpy as np
import pytest
import torch
from conftest import make_dataset, write
from messages import raises_user_error

import data_loader
from data import folders, image_io
from data.mvtec import TestSample, list_nominal, list_test
from synthesis import AnomalySynthesizer


def test_masks_are_resized_and_binarized(tmp_path):
    image = write(tmp_path / "image.png", np.zeros((64, 64), np.uint8))

    def anomalous(path, size):
        [sample] = data_loader.DRAEMTestDataset([TestSample(image, True, "image.png", (path,))], size)
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
    with raises_user_error("tiny.png", "64 x 64", "48 x 64"):
        image_io.read_mask(tiny, (64, 48))


def test_a_test_sample(tmp_path):
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


def test_samples_have_the_smallest_lossless_types(tmp_path):
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


def test_scaling_equals_numpys_exactly():
    values = torch.arange(256, dtype=torch.uint8)
    scaled = data_loader.scaled(values, torch.device("cpu"))
    assert scaled.dtype == torch.float32
    np.testing.assert_array_equal(scaled.numpy(), np.arange(256, dtype=np.uint8).astype(np.float32) / 255)
    assert data_loader.scaled(scaled, torch.device("cpu")) is scaled


@pytest.mark.parametrize(("side", "batch", "workers"), [(1024, 8, 16), (2048, 16, 16), (8192, 8, 4), (256, 8, 8)])
def test_prefetched_batches_are_bounded_by_bytes(side, batch, workers):
    texture = np.zeros((side, side, 3), np.uint8)
    dataset = data_loader.DRAEMTrainDataset([texture], AnomalySynthesizer([texture], (side, side)))
    loader = data_loader.train_loader(dataset, batch, workers)
    size = batch * side * side * 16
    assert loader.num_workers >= 1
    assert loader.num_workers * loader.prefetch_factor * size <= max(2**32, size)
    if side <= 1024:
        assert loader.num_workers == workers
