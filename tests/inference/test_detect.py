"""inference/detect.py: memory of a pass, and several processes that share a dataset."""

import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import config_of, write

from data.mvtec import TestSample
from data_loader import DRAEMTestDataset
from inference.detect import detect
from model import DRAEM
from runtime import signals


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_share_a_dataset_stop_together(workplace, rank):
    """One of three is interrupted in the second of six rounds: all end after it, and every exchange is complete."""
    config = config_of(workplace, "data.test_batch_size=1")
    sample = {"image": torch.zeros(3, 32, 32), "mask": torch.zeros(1, 32, 32)}
    samples, exchanged, rounds = [sample | {"idx": idx} for idx in range(17)], [], 0
    ranks = SimpleNamespace(rank=rank, count=3, barrier=lambda: None, send=exchanged.append)
    ranks.receive = lambda other: exchanged.append(other) or []

    def check():
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            raise signals.Interrupted(signal.SIGTERM)

    with pytest.raises(signals.Interrupted):
        list(detect(DRAEM(2, 2), samples, config, "", ranks, check))
    found = [one.idx for batch in exchanged for one in batch] if rank else exchanged
    assert found == ([1, 4] if rank else [1, 2, 1, 2])
    rounds = -1000
    exchanged.clear()
    list(detect(DRAEM(2, 2), samples, config, "", ranks, check))
    assert rounds == -994 and len(exchanged) == (6 if rank else 11)  # the last round is one of two


def noise(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def seeded_model():
    torch.manual_seed(3)
    return DRAEM(4, 4).eval()


def test_a_pass_has_a_batch_of_tiles_however_many_an_image_has(workplace, batch_sizes):
    config = config_of(
        workplace, "data.img_size=256", "data.tile_size=32", "data.test_batch_size=4", "train.compile=off"
    )
    image = TestSample(write(workplace / "large.png", noise(256, 256, 3)), False, "large.png")
    found = list(detect(seeded_model(), DRAEMTestDataset([image] * 2, config.data.img_size), config, ""))
    assert batch_sizes == [4] * (2 * 121 // 4) + [2] and len(found) == 2
    np.testing.assert_allclose(found[0].anomaly_map, found[1].anomaly_map, atol=1e-6)
