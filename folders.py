"""What lies where in a dataset folder in MVTec AD form.

<category>/train/good/*, <category>/test/good/*, <category>/test/<defect>/*, <category>/ground_truth/<defect>/*_mask.*
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


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
