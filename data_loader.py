"""Training and test datasets, loaders."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, default_collate

from data.image_io import read_all, read_image, read_mask, resize, resize_mask
from data.mvtec import TestSample
from runtime import signals
from runtime.device import setup
from runtime.errors import UserError
from synthesis import AnomalySynthesizer

SAMPLE_BYTES = 16  # a pixel at most: image 3, augmented image 12, mask 1
PREFETCHED = 2**32  # bytes of batches that loader processes hold ready, in shared memory


def fetch_dtd(folder: str | Path = ".") -> Path:
    """Download the Describable Textures Dataset (600 MB) with torchvision; its images end up in `folder`/dtd/images."""
    target = Path(folder) / "dtd" / "images"
    if target.is_dir():
        return target
    try:
        from torchvision.datasets import DTD
    except Exception as error:  # a torchvision beside another build of torch fails in various ways
        raise UserError(
            "torchvision",
            f"cannot be imported ({error})",
            "install the torchvision that belongs to your torch build, or download DTD by hand and put its images "
            f"folder at {target}",
        ) from error
    try:
        DTD(root=str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            "DTD", f"cannot be downloaded ({error})", f"download it by hand and put its images folder at {target}"
        ) from error
    (Path(folder) / "dtd" / "dtd" / "images").replace(target)
    return target


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, C) -> contiguous (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def scaled(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images on the device, float32 in [0, 1]: uint8 ones divided by 255, as NumPy would to the last digit."""
    images = images.to(device, non_blocking=True)
    if images.dtype != torch.uint8:
        return images
    # By a tensor on the device: by a plain number, CUDA would multiply with its inverse.
    return images.float().div_(torch.full((), 255.0, device=device))


class DRAEMTrainDataset(Dataset):
    """Nominal images with synthetic anomalies.

    `dataset[k]` is sample k % N of epoch k // N, of picture k % N % len(images); its randomness comes from
    (seed, epoch, index) alone, so it is the same whichever worker makes it. Where the synthesizer's image size is
    smaller than the images, a sample is a tile of that size from a random place.
    Samples are dicts: `image` uint8 (3, H, W), for `scaled`; `augmented_image` float32 (3, H, W) in [0, 1];
    `anomaly_mask` bool (1, H, W); `has_anomaly` float32 (1,); `idx`.

    Args:
        images: files, decoded once, here, to the synthesizer's image size, or decoded images, uint8 (H, W, 3), BGR, of
            at least that size. per_image: samples of each image in an epoch.
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
        """A view of a random place; all of an image that is no larger, for which no number is drawn."""
        size = self.synthesizer.image_size
        if image.shape[:2] == size:
            return image
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(image.shape, size, strict=False))
        return image[top : top + size[0], left : left + size[1]]

    def __getitem__(self, key: int) -> dict[str, torch.Tensor | int]:
        epoch, index = divmod(int(key), len(self))
        rng = np.random.default_rng([self.seed, epoch, index, self.stream])  # the last number tells streams apart
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
        """A batch of samples; of none too, for a process whose share of a small batch is empty."""
        batch = default_collate(samples or [self[0]])
        return batch if samples else {key: value[:0] for key, value in batch.items()}


class DRAEMTestDataset(Dataset):
    """Pictures to detect on.

    Samples are dicts: `image` uint8 (3, H, W), for `scaled`; `mask` bool (1, H, W), False where there is none;
    `has_anomaly` float32 (1,); `idx`.

    Args:
        white_level: see `image_io.read_image`.
    """

    def __init__(self, images: Sequence[TestSample], image_size: tuple[int, int], white_level: float | None = None):
        self.images, self.image_size, self.white_level = list(images), tuple(image_size), white_level

    def __len__(self) -> int:
        return len(self.images)

    def name(self, idx: int) -> str:
        """What errors call a sample."""
        return str(self.images[idx].path)

    def read(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        """A picture, uint8 (H, W, 3), and its mask, uint8 (H, W), both of the original size."""
        record = self.images[idx]
        image = read_image(record.path, white_level=self.white_level)
        mask = np.zeros(image.shape[:2], np.uint8)
        for path in record.masks:
            mask |= read_mask(path, mask.shape)
        return image, mask

    def sample(self, idx: int, image: np.ndarray, mask: np.ndarray) -> dict[str, torch.Tensor | int]:
        """Of a resized picture and mask."""
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
    """A shuffled pass over all samples; set `epoch` before each. Keys count on over the epochs.

    start: samples that a stopped run has done of this epoch, and that are left out.
    """

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch, self.start = count, seed, 0, 0

    def __len__(self) -> int:
        return max(self.count - self.start, 0)  # the last batch can be a smaller one

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch, 0, 2]).permutation(self.count)
        return iter((self.epoch * self.count + order[self.start :]).tolist())


class Shares(BatchSampler):
    """Batches of which `share` takes what one of several processes has of each."""

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
    """Batches of training samples; set `loader.batch_sampler.sampler.epoch` before each pass. share: see `Shares`."""
    batches = Shares(EpochSampler(len(dataset), dataset.seed), batch_size, share)
    size = batch_size * math.prod(dataset.synthesizer.image_size) * SAMPLE_BYTES
    own = {"collate_fn": dataset.collate, "persistent_workers": workers > 0}
    return DataLoader(dataset, batch_sampler=batches, **_workers(workers, size, 4, pin_memory), **own)


def test_loader(
    dataset: Dataset,
    batch_size: int,
    workers: int,
    image_size: tuple[int, int],
    pin_memory: bool = False,
    every: tuple[int, int] = (0, 1),
) -> DataLoader:
    """Batches of test samples of an image size, in order. every: first batch and step between those wanted."""
    size = batch_size * math.prod(image_size) * SAMPLE_BYTES
    batches = list(BatchSampler(range(len(dataset)), batch_size, drop_last=False))[every[0] :: every[1]]
    return DataLoader(dataset, batch_sampler=batches, **_workers(workers, size, 2, pin_memory))


def _set_up_worker(_: int) -> None:
    setup()
    signals.ignore_in_loader()


def _workers(count: int, batch_size: int, ahead: int, pin_memory: bool) -> dict[str, Any]:
    """Options of a loader: so many processes, each `ahead` batches of so many bytes ahead, but at most PREFETCHED."""
    setup()  # before any process is forked: OpenCV's pool of threads hangs in such a one
    count = min(count, max(PREFETCHED // batch_size, 1))
    ahead = max(min(ahead, PREFETCHED // (batch_size * count)), 1) if count else None
    own = {"num_workers": count, "prefetch_factor": ahead, "worker_init_fn": _set_up_worker}
    return own | {"pin_memory": pin_memory}
