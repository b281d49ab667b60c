"""List the images and masks of a category in the MVTec AD layout: training, held-out and test images.

The layout is <category>/train/good/*, test/good/*, test/<defect>/*, ground_truth/<defect>/*_mask.* and optionally
validation/good/* with nominal images to hold out. docs/data.md lists the deviations that are accepted.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from data import image_io
from data.annotations import MaskSource
from data.folders import IMAGE_SUFFIXES, DatasetNotes, images_below, nominal_folders, normalize_name, subfolders
from data.layouts import loco
from data.mask_files import MASK_FOLDERS, check_twins, split_images_and_masks
from data.mask_matching import Masks, and_n_more, name_in
from runtime.device import map_in_threads
from runtime.errors import UserError
from runtime.names import composed

VALIDATION_FOLDERS = {"validation", "valid", "val"}  # as `normalize_name` returns them
SOME = 20  # number of test images whose bit depth is checked


class Named(Protocol):
    """Names and groups of a category's images, see `layouts.category.ListedCategory`."""

    @property
    def groups(self) -> Mapping[Path, str]: ...

    def split_name(self, file: Path) -> str: ...


@dataclass(frozen=True)
class TestSample:
    """A test image or a held-out nominal image, with its masks.

    Attributes:
        path: the image file. has_anomaly: whether it is in a folder of a defect.
        name: path within the category, with forward slashes.
        masks: mask files (or annotations), whose union marks the anomaly; empty for nominal images and for defects
            without masks.
        has_empty_mask: the masks have been read and mark no pixel.
        label: kind of defect, or good, where no folder in test/ says it.
        defects_config: the file that says from which overlap on a mask counts as found (MVTec LOCO); None for none.
        saturation: of each mask that share of its pixels; empty until the masks have been read, or without such a file.
    """

    path: Path
    has_anomaly: bool
    name: str
    masks: tuple[MaskSource, ...] = ()
    has_empty_mask: bool = False
    label: str = ""
    defects_config: Path | None = None
    saturation: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        """The kind of defect, or good: the label, else the image's folder in test/."""
        return self.label or self.name.split("/")[1]

    @property
    def name_in_test(self) -> str:
        """The name without the folder test/, for files of results."""
        return self.name.removeprefix("test/")


def list_nominal(category: Path, notes: DatasetNotes | None = None) -> list[Path]:
    """Images of train/good at any depth, sorted; UserError if there are none.

    Args:
        category: folder of the category. notes: gets skipped files and assumptions.
    """
    notes, train = notes or DatasetNotes(), category / "train"
    files = _nominal_files(train, notes)
    if not files:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(train / "good", f"has no images ({suffixes})", "put nominal images into it")
    good = {folder.name for folder in nominal_folders(train)}
    for file in images_below(train):
        if file.relative_to(train).parts[0] not in good:
            notes.skip("images of train/ outside of train/good", name_in(file, category))
    return files


def list_validation(category: Path, notes: DatasetNotes | None = None) -> list[Path]:
    """Images of validation/good, sorted: nominal images to hold out; an empty list if the folder does not exist."""
    folders = [folder for folder in subfolders(category) if normalize_name(folder.name) in VALIDATION_FOLDERS]
    return [file for folder in folders for file in _nominal_files(folder, notes or DatasetNotes())]


def _nominal_files(folder: Path, notes: DatasetNotes) -> list[Path]:
    files = []
    for good in nominal_folders(folder, notes):
        images, masks = split_images_and_masks(good, images_below(good, notes), notes)
        for mask in masks:
            notes.skip("masks beside nominal images", f"{folder.name}/{name_in(mask, folder)}")
        check_twins(images)
        files += images
    return sorted(files)


def image_key(category: Path, file: Path) -> str:
    """Name of a nominal image in a checkpoint, never that of another: its path below train/, or within the category."""
    name = file.relative_to(category)
    return composed(Path(*name.parts[1:]).as_posix() if name.parts[0] == "train" else name.as_posix())


def nominal_name(category: Path, file: Path) -> str:
    """What `data.split_by` is matched with: the path of an image within train/good, or else within the category."""
    name = file.relative_to(category)
    return composed(Path(*name.parts[2:]).as_posix() if name.parts[0] == "train" else name.as_posix())


def split_nominal(
    files: Sequence[Path],
    val_split: float,
    seed: int,
    split_by: str | None = None,
    category: Path | None = None,
    named: "Named | None" = None,
) -> tuple[list[Path], list[Path]]:
    """Split nominal images into training and held-out files at random.

    Args:
        files: images of train/good, sorted. val_split: share to hold out, from 0 to below 1. seed: of the split.
        split_by: regular expression with groups, searched in the names within train/good. Files whose groups match the
            same text are never separated. None: each file is drawn on its own.
        category: folder of the category; needed with `split_by`. named: names and groups of its images, in its place.

    Returns:
        training files and held-out files, both sorted; no held-out files where val_split is 0.

    Raises:
        UserError: one of the two parts would be empty, `split_by` does not match a file, or all files are one group.
    """
    if val_split == 0:
        return list(files), []
    if named:
        groups = _groups(files, split_by, named.split_name, named.groups)
    else:
        groups = _groups(files, split_by, partial(nominal_name, category) if category else None, {})
    count = round(len(files) * val_split)
    if not 0 < count < len(files):
        purpose = "to hold out" if count == 0 else "to train on"
        raise UserError(
            f"data.val_split = {val_split}",
            f"leaves none of the {len(files)} images of train/good {purpose}",
            "change it, or set it to 0",
        )
    held_out: set[int] = set()
    for number in np.random.default_rng([seed, 0, 0, 3]).permutation(len(groups)):
        if len(held_out) < count and len(held_out) + len(groups[number]) < len(files):
            held_out.update(groups[number])
    return (
        [file for i, file in enumerate(files) if i not in held_out],
        [file for i, file in enumerate(files) if i in held_out],
    )


def _groups(
    files: Sequence[Path], split_by: str | None, name_of: Callable[[Path], str] | None, groups_of: Mapping[Path, str]
) -> list[list[int]]:
    """Groups of files that must not be separated, as lists of indices into `files`."""
    groups: dict[tuple, list[int]] = {}
    if groups_of and split_by:
        raise UserError(
            f"data.split_by = {split_by!r}",
            "the dataset has groups of its own, which are kept together",
            "leave it out",
        )
    if split_by is None or name_of is None:
        for index, file in enumerate(files):
            groups.setdefault((groups_of[file],) if file in groups_of else (None, index), []).append(index)
        return list(groups.values())
    match: re.Match[str] | None = None
    for index, file in enumerate(files):
        if not (match := re.search(split_by, name_of(file))):
            raise UserError(
                f"data.split_by = {split_by!r}", f"does not match {file}", "change it so that it matches every file"
            )
        groups.setdefault(match.groups(), []).append(index)
    if match and len(groups) == 1:
        raise UserError(
            f"data.split_by = {split_by!r}",
            f"puts all of train/good into one group ({match[0]!r})",
            "change it so that files fall into several groups",
        )
    return list(groups.values())


def list_test(category: Path, notes: DatasetNotes | None = None) -> list[TestSample]:
    """Test images with their masks: nominal images first, then by defect.

    Args:
        category: folder of the category. notes: gets skipped files and assumptions.

    Raises:
        UserError: no test images, masks missing for some images of a defect, or an ambiguous layout.
    """
    notes, test = notes or DatasetNotes(), category / "test"
    if direct := [path for path in images_below(test) if path.parent == test]:
        raise UserError(
            f"{direct[0]}{and_n_more(direct)}",
            "is directly in test/",
            "put nominal images into test/good, anomalous ones into test/<defect>",
        )
    masks = Masks(category, notes)
    samples, nominal = [], nominal_folders(test, notes)
    for folder in nominal:
        images, beside = split_images_and_masks(folder, images_below(folder, notes), notes)
        check_twins(images)
        _check_nominal_masks([*beside, *masks.of_nominal(folder)])
        samples += [TestSample(path, False, name_in(path, category)) for path in images]
    for folder in (path for path in subfolders(test) if path not in nominal):
        if normalize_name(folder.name) in MASK_FOLDERS:
            raise UserError(folder, "looks like a folder of masks", f"move it to {category / 'ground_truth'}")
        images, beside = split_images_and_masks(folder, images_below(folder, notes), notes)
        if not images:
            notes.skip("folders without images", name_in(folder, category))
        if beside:
            notes.assume(f"masks beside the images of {name_in(folder, category)} are used")
        masks.assign(folder, images, beside)
        samples += [TestSample(path, True, name_in(path, category)) for path in images]
    masks.assign_loose()
    masks.check_complete()
    if not samples:
        raise UserError(
            test, "has no test images", "put images into test/good and test/<defect>, which detection needs"
        )
    return [replace(sample, masks=tuple(masks.found.get(sample.path, ()))) for sample in samples]


def vanishing_regions(mask: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """How many regions (8-connected) of a mask, bool (H, W), have no pixel left once it is resized; how many it has.

    size: (height, width), of `image_io.resize_mask`.
    """
    count, regions = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    left = image_io.resize_mask(mask.view(np.uint8) * np.uint8(255), size)
    # A pixel that is left has only marked pixels around its center: the nearest one tells its region.
    rows, columns = (
        np.rint((np.arange(new) + 0.5) * old / new - 0.5).astype(int).clip(0, old - 1)
        for new, old in zip(size, mask.shape, strict=True)
    )
    kept = np.unique(regions[rows[:, None], columns][left])
    return count - 1 - len(kept), count - 1


def vanishing_note(counts: dict[MaskSource, tuple[int, int]]) -> list[str]:
    """A sentence about masks whose `vanishing_regions` are not 0; an empty list where there are none."""
    lost = [f"{gone} of {of} in {mask.parent.name}/{mask.name}" for mask, (gone, of) in counts.items() if gone]
    total = sum(gone for gone, _ in counts.values())
    names = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
    return [f"masks: regions that vanish at data.img_size and count as nominal: {total} ({names})"] if lost else []


def with_masks_read(samples: Sequence[TestSample], size: tuple[int, int]) -> tuple[list[TestSample], list[str]]:
    """Read all masks, to find the empty ones and those that need a warning.

    size: (height, width) that masks will be resized to.

    Returns:
        the samples with `has_empty_mask` and `saturation` set, and one sentence for each kind of warning.

    Raises:
        UserError: ambiguous or unreadable masks, or ones that defects_config.json does not list.
    """

    def read(path: MaskSource) -> tuple[bool, str | None, tuple[int, int]]:
        """Whether the mask is empty, the warning, and its vanishing regions."""
        mask = image_io.decode_mask_file(path)
        return not mask.mask.any(), mask.warning, vanishing_regions(mask.mask, size)

    files = [mask for sample in samples for mask in sample.masks]
    decoded = dict(zip(files, map_in_threads(read, files), strict=True))
    files_of: dict[str, list[str]] = {}  # warning -> masks
    for mask, (_, warning, _) in decoded.items():
        if warning:
            files_of.setdefault(warning, []).append(f"{mask.parent.name}/{mask.name}")
    warnings = [
        f"masks: {warning}: {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for warning, names in files_of.items()
    ]
    warnings += vanishing_note({mask: counts for mask, (_, _, counts) in decoded.items()})
    saturation = saturation_by_mask(samples)
    checked = [
        replace(
            sample,
            has_empty_mask=bool(sample.masks) and all(decoded[mask][0] for mask in sample.masks),
            saturation=tuple(saturation[mask] for mask in sample.masks if sample.defects_config),
        )
        for sample in samples
    ]
    return checked, warnings


def saturation_by_mask(samples: Sequence[TestSample]) -> dict[MaskSource, float]:
    """Mask -> share of its pixels from which on its overlap counts as complete, where a file says it."""
    configs = {one: loco.read_config(one) for one in {sample.defects_config for sample in samples} if one}
    sources = {
        mask: sample.defects_config
        for sample in samples
        for mask in sample.masks
        if sample.defects_config and isinstance(mask, Path)
    }
    files = list(sources)
    shares = map_in_threads(lambda mask: loco.saturation(mask, configs[sources[mask]], sources[mask]), files)
    return dict(zip(files, shares, strict=True))


def check_bit_depth(samples: Sequence[TestSample], white_level: float | None) -> list[str]:
    """Warn if the test images have more than 8 bits per channel and are darker than the training images.

    Only some of the images are read.

    Args:
        white_level: value of white of the training images; None for 8-bit images and for those that use all 16 bits.

    Returns:
        a list with one sentence, or an empty list.
    """
    some = [samples[index].path for index in range(0, len(samples), -(-len(samples) // SOME))]
    try:
        test_white = image_io.find_white_level(some)
    except UserError:
        return []  # the error is raised when the image is read
    white = white_level or 65535
    if test_white is None or test_white >= white:
        return []
    return [
        f"test images with more than 8 bits have values up to {test_white:g}, but white is {white:g} as in training: "
        "the networks get images that are too dark; write the test images with the value range of the training images"
    ]


def _check_nominal_masks(masks: Sequence[Path]) -> None:
    """UserError if a mask of a nominal image marks a pixel."""
    for mask in masks:
        if image_io.decode_mask_file(mask).mask.any():
            raise UserError(
                mask, "marks pixels of a nominal image", "move the image to the folder of a defect, or remove the mask"
            )
