"""Validation without anomalous images: pixel AP on synthetic anomalies put on held-out nominal images."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

import data_loader
from config import Config
from evaluation import bootstrap
from evaluation.metrics import PixelMetrics
from inference.detect import NetworkOutput, detect
from model import DRAEM
from runtime import provenance
from runtime.device import Together

HELD_OUT_TEXTURES = 0.2  # share of the textures
SAMPLES = 200  # at least


def split_textures(files: Sequence[Path], seed: int) -> tuple[list[int], list[int]]:
    """Indices of the training textures, and of the fifth that is held out for val_ap; chosen by seed and content.

    A single texture is in both.
    """
    if len(files) < 2:
        return list(range(len(files))), list(range(len(files)))
    digests = provenance.file_digests(files)
    by_content = sorted(range(len(files)), key=lambda place: (digests[place], files[place].name))
    order = np.random.default_rng([seed, 0, 0, 5]).permutation(len(files))
    held_out = {by_content[number] for number in order[: max(round(len(files) * HELD_OUT_TEXTURES), 1)]}
    return [place for place in range(len(files)) if place not in held_out], sorted(held_out)


class SyntheticSamples(Dataset):
    """Nominal images with synthetic anomalies, as test samples; always the same ones.

    Args:
        nominal: synthesizes the samples. files: of its images.
    """

    def __init__(self, nominal: data_loader.DRAEMTrainDataset, files: Sequence[Path]):
        self.nominal, self.files = nominal, list(files)
        self.set_count(SAMPLES)

    def set_count(self, fewest: int) -> None:
        """How many samples there are: so many or more, the same number for each image."""
        self.count = -(-fewest // len(self.nominal)) * len(self.nominal)

    def __len__(self) -> int:
        return self.count

    def name(self, idx: int) -> str:
        """Name of a sample, for messages."""
        return str(self.files[idx % len(self.files)])

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor | int]:
        sample = self.nominal[idx]
        return {"image": sample["augmented_image"], "mask": sample["anomaly_mask"], "idx": idx}


def outputs(
    model: DRAEM,
    samples: SyntheticSamples,
    config: Config,
    group: Together | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[NetworkOutput]:
    """Run the networks over synthetic samples, see `detect`."""
    data = config.data.model_copy(update={"img_size": config.data.input_size, "tile_size": None})  # samples are tiles
    return detect(model, samples, config.model_copy(update={"data": data}), "", group, check)


def synthetic_pixel_ap(
    model: DRAEM,
    samples: SyntheticSamples,
    config: Config,
    group: Together | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[float | None, float | None]:
    """Pixel AP on synthetic anomalies, which compares checkpoints without any test image, and its standard error.

    The standard error is from a bootstrap over the held-out images, each with all of its samples; None with a single
    image, which says nothing about others. Both are None without an anomalous pixel.

    Args:
        group: processes that share the samples; the result is valid in the first.
        check: called in all processes after each batch; what it raises ends the validation.
    """
    pixels = PixelMetrics(keeps_images=True)
    for result in outputs(model, samples, config, group, check):
        pixels.update(result.anomaly_map, result.mask)
    value = pixels.compute()["pixel_ap"]
    if value is None:
        return None, None
    count = len(samples.files)
    if count < 2:
        return value, None
    of_sample = np.arange(len(samples)) % count
    drawn = [
        bootstrap.resampled_pixel_metrics(pixels.images, weights[:, of_sample], {"": 0})[""]["pixel_ap"]
        for weights in bootstrap.bootstrap_weights(np.zeros(count), count=200)
    ]
    spread = np.concatenate(drawn)
    spread = spread[np.isfinite(spread)]
    return value, float(spread.std()) if spread.size else None
