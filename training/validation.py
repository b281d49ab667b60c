"""Validation without any defective picture: pixel AP on synthetic anomalies put on held-out nominal images."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

import data_loader
from config import Config
from evaluation.metrics import PixelMetrics
from inference.detect import detect
from model import DRAEM


class SyntheticSamples(Dataset):
    """Synthetic anomalies on nominal images as samples to detect on, the same ones each time.

    Args:
        nominal: training samples of the images to put them on. files: those images'. count: samples, at least; each
            image gets as many.
    """

    def __init__(self, nominal: data_loader.DRAEMTrainDataset, files: Sequence[Path], count: int = 64):
        self.nominal, self.files, self.count = nominal, list(files), -(-count // len(nominal)) * len(nominal)

    def __len__(self) -> int:
        return self.count

    def name(self, idx: int) -> str:
        """What errors call a sample."""
        return str(self.files[idx % len(self.files)])

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor | int]:
        sample = self.nominal[idx]
        return {"image": sample["augmented_image"], "mask": sample["anomaly_mask"], "idx": idx}


def synthetic_pixel_ap(model: DRAEM, samples: SyntheticSamples, config: Config) -> float | None:
    """Pixel AP on synthetic anomalies: tells checkpoints apart without any test image. None without a masked pixel."""
    pixels = PixelMetrics()
    for result in detect(model, samples, config, ""):
        pixels.update(result.anomaly_map, result.mask)
    return pixels.compute()["pixel_ap"]
