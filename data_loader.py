"""Dataset folders in MVTec AD form, training and test datasets, loaders.

<category>/train/good/*, <category>/test/good/*, <category>/test/<defect>/*, <category>/ground_truth/<defect>/*_mask.*
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

import runtime
from errors import UserError
from image_io import read_all, read_image, read_mask, resize
from synthesis import AnomalySynthesizer

SAMPLE_BYTES = 16  # a pixel at most: image 3, augmented image 12, mask 1
PREFETCHED = 2**32  # bytes of batches that loader processes hold ready, in shared memory
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


def fetch_dtd(folder: str | Path = ".") -> Path:
    """Download the Describable Textures Dataset (600 MB) with torchvision; its images end up in `folder`/dtd/images."""
    target = Path(folder) / "dtd" / "images"
    if target.is_dir():
        return target
    try:
        from torchvision.datasets import DTD
    except Exception as error:  # a torchvision beside another build of torch fails in various ways
        raise UserError(
            f"torchvision cannot be imported ({error}); install the torchvision that belongs to your torch build "
            f"from the same index, or download DTD by hand and put its images folder at {target}"
        ) from error
    try:
        DTD(root=str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"DTD cannot be downloaded ({error}); download it by hand and put its images folder at {target}"
        ) from error
    (Path(folder) / "dtd" / "dtd" / "images").replace(target)
    return target


def _refuse(error: OSError) -> None:
    raise error  # a folder that may not be read is not an empty one


def _files(folder: Path, is_deep: bool = False) -> list[Path]:
    """Image files in a folder, or at any depth below it, sorted; none where there is no such folder."""
    found = []
    for root, folders, names in os.walk(folder, onerror=_refuse) if folder.is_dir() else ():
        if not is_deep:
            folders.clear()
        found += [Path(root) / name for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)


def _folder(path: Path, key: str) -> Path:
    if path.exists() and not path.is_dir():
        raise UserError(f"{key}: {path} is a file; a folder is needed there")
    if not path.is_dir():
        raise UserError(f"{key}: folder {path} does not exist")
    return path


def list_categories(data_path: Path) -> list[str]:
    """Names of the folders below `data_path` that have train/good."""
    if not data_path.is_dir():
        return []
    return sorted(path.parent.parent.name for path in data_path.glob("*/train/good") if path.is_dir())


def category_folder(data_path: Path, category: str) -> Path:
    """Folder of a category; UserError says where it looked and what is there."""
    folder = data_path / category
    if (folder / "train" / "good").is_dir():
        return folder
    for path in (data_path, folder, folder / "train", folder / "train" / "good"):
        if path.is_file():
            raise UserError(f"data.data_path: {path} is a file; a folder is needed there")
    present = list_categories(data_path)
    if present:
        raise UserError(
            f"data.category: no category '{category}' (a folder with train/good) in {data_path.absolute()}; "
            f"there are: {', '.join(present)}"
        )
    raise UserError(
        f"data.data_path: no dataset in {data_path.absolute()}: looked for {category}/train/good there\n"
        "get one in MVTec AD form (see README, 'Your own images'), or try the sample: python make_sample.py, "
        "then --config configs/sample.yaml"
    )


def chosen_categories(data_path: Path, names: Sequence[str] | None) -> list[str]:
    """The named categories, or all that are there; UserError where one is not there, or none is."""
    present = list_categories(data_path)
    for name in names or ():
        if name not in present:
            category_folder(data_path, name)
            raise UserError(f"category '{name}': must be a plain folder name; there are: {', '.join(present)}")
    return list(dict.fromkeys(names)) if names else present or [category_folder(data_path, "*").name]


def list_nominal(category: Path) -> list[Path]:
    """Images of train/good, sorted; UserError where there is none."""
    files = _files(category / "train" / "good")
    if not files:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{category / 'train' / 'good'}: no images ({suffixes}) there; put nominal images into it")
    return files


def list_textures(folder: Path) -> list[Path]:
    """Texture images at any depth below `folder`, sorted; UserError where there is none."""
    files = _files(folder, is_deep=True)
    if not files:
        what = "is a file, not a folder" if folder.is_file() else "holds no texture images"
        raise UserError(
            f"data.anomaly_source_path: {folder} {what}; name a folder of images, or fetch DTD (600 MB):\n"
            'python -c "from data_loader import fetch_dtd; fetch_dtd()"   (by hand: put the images folder of '
            "DTD, r1.0.1, at dtd/images)"
        )
    return files


def split_nominal(files: Sequence[Path], val_split: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Training and held-out files, both sorted, chosen by seed. At least one of each, or UserError."""
    if val_split == 0:
        return list(files), []
    count = round(len(files) * val_split)
    if not 0 < count < len(files):
        rest = "to hold out" if count == 0 else "to train on"
        raise UserError(
            f"data.val_split = {val_split} leaves none of the {len(files)} images of train/good {rest}; "
            "change it, or set it to 0"
        )
    held_out = set(np.random.default_rng([seed, 0, 0, 3]).permutation(len(files))[:count].tolist())
    return (
        [file for i, file in enumerate(files) if i not in held_out],
        [file for i, file in enumerate(files) if i in held_out],
    )


@dataclass(frozen=True)
class TestImage:
    """One picture of test/ or of the held-out nominal ones: `mask_path` is None for nominal and for unmasked ones."""

    path: Path
    has_anomaly: bool
    mask_path: Path | None = None


def list_test(category: Path) -> list[TestImage]:
    """Pictures of test/: nominal ones first, then by defect. UserError where there is none, or one lacks its mask."""
    test = category / "test"
    images = [TestImage(path, False) for path in _files(test / "good")]
    folders = test.iterdir() if test.is_dir() else ()
    defects = sorted(path for path in folders if path.is_dir() and path.name != "good")
    for defect in defects:
        mask_folder = category / "ground_truth" / defect.name
        masks = {path.stem: path for path in _files(mask_folder)}
        for path in _files(defect):
            mask = masks.get(f"{path.stem}_mask", masks.get(path.stem))
            if mask is None and masks:
                expected = mask_folder / f"{path.stem}_mask.png"
                raise UserError(f"{path}: its mask {expected} is missing, while others are there; add it")
            images.append(TestImage(path, True, mask))
    if not images:
        raise UserError(f"{test}: no test images there; detection needs test/good and test/<defect> with images")
    return images


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

    `dataset[k]` is sample k % N of epoch k // N; its randomness comes from
    (seed, epoch, index) alone, so it is the same whichever worker makes it.
    Samples are dicts: `image` uint8 (3, H, W), for `scaled`; `augmented_image` float32 (3, H, W) in [0, 1];
    `anomaly_mask` bool (1, H, W); `has_anomaly` float32 (1,); `idx`.

    Args:
        images: files, decoded once, here, or decoded images, uint8 (H, W, 3), BGR, of the synthesizer's image size.
    """

    def __init__(
        self, images: Sequence[Path | np.ndarray], synthesizer: AnomalySynthesizer, seed: int = 0, stream: int = 1
    ):
        self.images = read_all(images, synthesizer.image_size)
        self.synthesizer, self.seed, self.stream = synthesizer, seed, stream

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int) -> dict[str, torch.Tensor | int]:
        epoch, index = divmod(int(key), len(self))
        rng = np.random.default_rng([self.seed, epoch, index, self.stream])  # the last number tells streams apart
        image, augmented, mask = self.synthesizer.corrupt(self.images[index], rng)
        return {
            "image": _to_tensor(image),
            "augmented_image": _to_tensor(augmented),
            "anomaly_mask": torch.from_numpy(mask[None]),
            "has_anomaly": torch.tensor([float(mask.any())]),
            "idx": index,
        }


class DRAEMTestDataset(Dataset):
    """Pictures to detect on.

    Samples are dicts: `image` uint8 (3, H, W), for `scaled`; `mask` bool (1, H, W), False where there is none;
    `has_anomaly` float32 (1,); `idx`.
    """

    def __init__(self, images: Sequence[TestImage], image_size: tuple[int, int]):
        self.images, self.image_size = list(images), tuple(image_size)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, idx: int) -> str:
        """What errors call a sample."""
        return str(self.images[idx].path)

    def read(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        """A picture, uint8 (H, W, 3), and its mask, uint8 (H, W), both of the original size."""
        record = self.images[idx]
        image = read_image(record.path)
        size = image.shape[:2]
        return image, read_mask(record.mask_path, size) if record.mask_path else np.zeros(size, np.uint8)

    def resized(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A picture and its mask, uint8 (H, W, 3) and bool (H, W), of the image size.

        As in the original the mask is resized linearly, and 255 counts as anomalous.
        """
        return resize(image, self.image_size), resize(mask, self.image_size) == 255

    def sample(self, idx: int, image: np.ndarray, mask: np.ndarray) -> dict[str, torch.Tensor | int]:
        """Of a resized picture and mask."""
        return {
            "image": _to_tensor(image),
            "mask": torch.from_numpy(mask[None]),
            "has_anomaly": torch.tensor([float(self.images[idx].has_anomaly)]),
            "idx": idx,
        }

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor | int]:
        return self.sample(idx, *self.resized(*self.read(idx)))


class EpochSampler(Sampler):
    """A shuffled pass over all samples; set `epoch` before each. Keys count on over the epochs."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch, 0, 2]).permutation(self.count)
        return iter((self.epoch * self.count + order).tolist())


def train_loader(dataset: DRAEMTrainDataset, batch_size: int, workers: int, pin_memory: bool = False) -> DataLoader:
    """Batches of training samples; set `loader.sampler.epoch` before each pass."""
    sampler = EpochSampler(len(dataset), dataset.seed)
    size = batch_size * math.prod(dataset.synthesizer.image_size) * SAMPLE_BYTES
    return DataLoader(
        dataset, batch_size, sampler=sampler, **_workers(workers, size, 4, pin_memory), persistent_workers=workers > 0
    )


def test_loader(
    dataset: Dataset, batch_size: int, workers: int, image_size: tuple[int, int], pin_memory: bool = False
) -> DataLoader:
    """Batches of test samples of an image size, in order."""
    size = batch_size * math.prod(image_size) * SAMPLE_BYTES
    return DataLoader(dataset, batch_size, **_workers(workers, size, 2, pin_memory))


def _workers(count: int, batch_size: int, ahead: int, pin_memory: bool) -> dict[str, Any]:
    """Options of a loader: so many processes, each `ahead` batches of so many bytes ahead, but at most PREFETCHED."""
    runtime.setup()  # before any process is forked: OpenCV's pool of threads hangs in such a one
    count = min(count, max(PREFETCHED // batch_size, 1))
    ahead = max(min(ahead, PREFETCHED // (batch_size * count)), 1) if count else None
    own = {"num_workers": count, "prefetch_factor": ahead, "worker_init_fn": runtime.setup}
    return own | {"pin_memory": pin_memory}
