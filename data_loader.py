"""Datasets and data loaders for training and test."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, default_collate

from data.dtd import fetch_dtd as fetch_dtd  # as README calls it
from data.image_io import read_all, read_image, read_mask, resize, resize_mask
from data.mvtec import TestSample
from runtime import signals
from runtime.device import setup
from synthesis import AnomalySynthesizer

SAMPLE_BYTES = 16  # maximum per pixel of a sample: image 3, augmented image 12, mask 1
PREFETCHED = 2**32  # bytes, maximum size of all prefetched batches, which are in shared memory


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """Array (H, W, C) -> contiguous tensor (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def scaled(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy images to the device as float32 in [0, 1]; uint8 images are divided by 255, others are not changed."""
    images = images.to(device, non_blocking=True)
    if images.dtype != torch.uint8:
        return images
    # Divided by a tensor: with a Python number CUDA multiplies by the inverse, which rounds differently from NumPy.
    return images.float().div_(torch.full((), 255.0, device=device))


class DRAEMTrainDataset(Dataset):
    """Nominal images with synthetic anomalies.

    `dataset[k]` is sample k % N of epoch k // N, with N = len(dataset); its image is number k % N % len(images). The
    random generator is seeded by (seed, epoch, index, stream), so a sample does not depend on the loader process.
    If images are larger than the synthesizer's image size, a sample is a tile of that size at a random position.

    Samples are dicts: `image` uint8 (3, H, W), BGR, for `scaled`; `augmented_image` float32 (3, H, W) in [0, 1];
    `anomaly_mask` bool (1, H, W); `has_anomaly` float32 (1,); `idx` int.

    Args:
        images: files, decoded here to the synthesizer's image size; or decoded images, uint8 (H, W, 3), BGR, of at
            least that size.
        synthesizer: makes the anomalies. seed, stream: two datasets with different streams share no random numbers.
        per_image: samples of each image in an epoch.
    """

    def __init__(
        self,
        images: Sequence[Path | np.ndarray],
        synthesizer: AnomalySynthesizer,
        seed: int = 0,
        stream: int = 1,
        per_image: int = 1,
    ):
        self.images = read_all(images, synthesizer.image_size)
        self.synthesizer, self.seed, self.stream, self.per_image = synthesizer, seed, stream, per_image

    def __len__(self) -> int:
        return len(self.images) * self.per_image

    def _tile(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A random tile, as a view. An image of the tile's size is returned without drawing a random number."""
        size = self.synthesizer.image_size
        if image.shape[:2] == size:
            return image
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(image.shape, size, strict=False))
        return image[top : top + size[0], left : left + size[1]]

    def __getitem__(self, key: int) -> dict[str, torch.Tensor | int]:
        epoch, index = divmod(int(key), len(self))
        rng = np.random.default_rng([self.seed, epoch, index, self.stream])
        image = self._tile(self.images[index % len(self.images)], rng)
        image, augmented, mask = self.synthesizer.corrupt(image, rng)
        return {
            "image": _to_tensor(image),
            "augmented_image": _to_tensor(augmented),
            "anomaly_mask": torch.from_numpy(mask[None]),
            "has_anomaly": torch.tensor([float(mask.any())]),
            "idx": index,
        }

    def collate(self, samples: list[dict[str, torch.Tensor | int]]) -> dict[str, torch.Tensor]:
        """Collate samples into a batch. The list may be empty: a process's share of a small last batch can be."""
        batch = default_collate(samples or [self[0]])
        return batch if samples else {key: value[:0] for key, value in batch.items()}


class DRAEMTestDataset(Dataset):
    """Test images with their ground-truth masks.

    Samples are dicts: `image` uint8 (3, H, W), BGR, for `scaled`; `mask` bool (1, H, W), all False without a mask file;
    `has_anomaly` float32 (1,); `idx` int.

    Args:
        images: the samples. image_size: (height, width) to resize to. white_level: see `image_io.read_image`.
    """

    def __init__(self, images: Sequence[TestSample], image_size: tuple[int, int], white_level: float | None = None):
        self.images, self.white_level = list(images), white_level
        self.image_size = (image_size[0], image_size[1])

    def __len__(self) -> int:
        return len(self.images)

    def name(self, idx: int) -> str:
        """Name of a sample in error messages: the path of its image."""
        return str(self.images[idx].path)

    def read(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        """Read an image, uint8 (H, W, 3), BGR, and its mask, uint8 (H, W), 0 or 255, at their own size."""
        sample = self.images[idx]
        image = read_image(sample.path, white_level=self.white_level)
        mask = np.zeros(image.shape[:2], np.uint8)
        for path in sample.masks:
            mask |= read_mask(path, image.shape[:2])
        return image, mask

    def sample(self, idx: int, image: np.ndarray, mask: np.ndarray) -> dict[str, torch.Tensor | int]:
        """The sample dict for an image, uint8 (H, W, 3), and a mask, bool (H, W), both of `image_size`."""
        return {
            "image": _to_tensor(image),
            "mask": torch.from_numpy(mask[None]),
            "has_anomaly": torch.tensor([float(self.images[idx].has_anomaly)]),
            "idx": idx,
        }

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor | int]:
        image, mask = self.read(idx)
        return self.sample(idx, resize(image, self.image_size), resize_mask(mask, self.image_size))


class EpochSampler(Sampler):
    """Shuffled keys of one epoch for a `DRAEMTrainDataset`: epoch * count + index. Set `epoch` before each pass.

    Attributes:
        epoch: from 0. start: number of samples to skip, which the run has processed before it was interrupted.
    """

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch, self.start = count, seed, 0, 0

    def __len__(self) -> int:
        return max(self.count - self.start, 0)  # the last batch can be smaller

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch, 0, 2]).permutation(self.count)
        return iter((self.epoch * self.count + order[self.start :]).tolist())


class Shares(BatchSampler):
    """Batch sampler for one process of a distributed run: `share` selects its keys from those of a whole batch."""

    def __init__(self, sampler: EpochSampler, batch_size: int, share: Callable[[list[int]], list[int]]):
        super().__init__(sampler, batch_size, drop_last=False)
        self.share = share

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.share, super().__iter__())


def train_loader(
    dataset: DRAEMTrainDataset,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
    share: Callable[[list[int]], list[int]] = lambda keys: keys,
) -> DataLoader:
    """Loader of training batches; set `loader.batch_sampler.sampler.epoch` before each pass. share: see `Shares`."""
    batches = Shares(EpochSampler(len(dataset), dataset.seed), batch_size, share)
    size = batch_size * math.prod(dataset.synthesizer.image_size) * SAMPLE_BYTES
    options = _workers(workers, size, 4, pin_memory) | {"persistent_workers": workers > 0}
    return DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collate, **options)


def test_loader(
    dataset: Dataset,
    batch_size: int,
    workers: int,
    image_size: tuple[int, int],
    pin_memory: bool = False,
    every: tuple[int, int] = (0, 1),
) -> DataLoader:
    """Loader of test batches, in order.

    Args:
        image_size: (height, width) of the samples. every: first batch and step, to load every n-th batch only.
    """
    size = batch_size * math.prod(image_size) * SAMPLE_BYTES
    keys = range(len(dataset))  # type: ignore[arg-type]  # datasets here have a length
    batches = list(BatchSampler(keys, batch_size, drop_last=False))[every[0] :: every[1]]
    return DataLoader(dataset, batch_sampler=batches, **_workers(workers, size, 2, pin_memory))


def _set_up_worker(_: int) -> None:
    setup()
    signals.ignore_in_loader()


def _workers(count: int, batch_size: int, ahead: int, pin_memory: bool) -> dict[str, Any]:
    """Options of a DataLoader with `count` workers that prefetch `ahead` batches of `batch_size` bytes each.

    Both are reduced if the prefetched batches would exceed PREFETCHED bytes.
    """
    setup()  # before processes are forked: OpenCV's thread pool hangs in a forked process
    count = min(count, max(PREFETCHED // batch_size, 1))
    prefetched = max(min(ahead, PREFETCHED // (batch_size * count)), 1) if count else None
    own = {"num_workers": count, "prefetch_factor": prefetched, "worker_init_fn": _set_up_worker}
    return own | {"pin_memory": pin_memory}
