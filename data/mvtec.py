"""The pictures of a category in MVTec AD form, and of one that is nearly in it: nominal, held out, to test, and masks.

<category>/train/good/*, <category>/test/good/*, <category>/test/<defect>/*, <category>/ground_truth/<defect>/*_mask.*
and, if there, <category>/validation/good/*: nominal pictures to hold out. docs/data.md says what else is understood.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data import image_io
from data.folders import IMAGE_SUFFIXES, DatasetNotes, images_below, nominal_folders, normalize_name, subfolders
from data.mask_decoding import DecodedMask
from data.mask_matching import MASK_FOLDERS, Masks, and_n_more, check_twins, name_in, split_images_and_masks
from runtime.device import core_count
from runtime.errors import UserError

# Names of folders, as `plain` has them.
VALIDATION_FOLDERS = {"validation", "valid", "val"}
SOME = 20  # test pictures whose depth is looked at


@dataclass(frozen=True)
class TestSample:
    """One picture of test/ or of the held-out nominal ones.

    Attributes:
        name: path within the category. masks: files that together mark its defects; none for nominal and unmasked ones.
        has_empty_mask: the masks are known to mark nothing.
    """

    path: Path
    has_anomaly: bool
    name: str
    masks: tuple[Path, ...] = ()
    has_empty_mask: bool = False


def list_nominal(category: Path, notes: DatasetNotes | None = None) -> list[Path]:
    """Pictures of train/good at any depth, sorted; UserError where there is none."""
    notes, train = notes or DatasetNotes(), category / "train"
    files = _nominal_files(train, notes)
    if not files:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(train / "good", f"no images ({suffixes}) there", "put nominal images into it")
    good = {folder.name for folder in nominal_folders(train)}
    for file in images_below(train):
        if file.relative_to(train).parts[0] not in good:
            notes.skip("pictures of train/ outside of train/good", name_in(file, category))
    return files


def list_validation(category: Path, notes: DatasetNotes | None = None) -> list[Path]:
    """Pictures of validation/good, sorted: nominal ones that their owner wants held out; none without such a folder."""
    found = [folder for folder in subfolders(category) if normalize_name(folder.name) in VALIDATION_FOLDERS]
    return [file for folder in found for file in _nominal_files(folder, notes or DatasetNotes())]


def _nominal_files(folder: Path, notes: DatasetNotes) -> list[Path]:
    files = []
    for good in nominal_folders(folder, notes):
        pictures, beside = split_images_and_masks(images_below(good, notes))
        for mask in beside:
            notes.skip("masks beside nominal pictures", f"{folder.name}/{name_in(mask, folder)}")
        check_twins(pictures)
        files += pictures
    return sorted(files)


def nominal_name(category: Path, file: Path) -> str:
    """What a checkpoint calls a nominal picture: its path within train/good, else within the category."""
    name = file.relative_to(category)
    return Path(*name.parts[2:]).as_posix() if name.parts[0] == "train" else name.as_posix()


def split_nominal(
    files: Sequence[Path], val_split: float, seed: int, split_by: str | None = None, category: Path | None = None
) -> tuple[list[Path], list[Path]]:
    """Training and held-out files, both sorted, chosen by seed. At least one of each, or UserError.

    Args:
        split_by: a regular expression to look for in names within train/good; files whose groups are the same stay
            together. None: each file for itself. category: the folder that the names are told from.
    """
    if val_split == 0:
        return list(files), []
    parts = _parts(files, split_by, category)
    count = round(len(files) * val_split)
    if not 0 < count < len(files):
        rest = "to hold out" if count == 0 else "to train on"
        raise UserError(
            f"data.val_split = {val_split}",
            f"leaves none of the {len(files)} images of train/good {rest}",
            "change it, or set it to 0",
        )
    held_out: set[int] = set()
    for number in np.random.default_rng([seed, 0, 0, 3]).permutation(len(parts)):
        if len(held_out) < count and len(held_out) + len(parts[number]) < len(files):
            held_out.update(parts[number])
    return (
        [file for i, file in enumerate(files) if i not in held_out],
        [file for i, file in enumerate(files) if i in held_out],
    )


def _parts(files: Sequence[Path], split_by: str | None, category: Path | None) -> list[list[int]]:
    """Places of the files that must stay together."""
    if split_by is None:
        return [[place] for place in range(len(files))]
    parts: dict[tuple, list[int]] = {}
    for place, file in enumerate(files):
        if not (match := re.search(split_by, nominal_name(category, file))):
            raise UserError(
                f"data.split_by = {split_by!r}", f"does not match {file}", "change it, so that it matches all"
            )
        parts.setdefault(match.groups(), []).append(place)
    if len(parts) == 1:
        raise UserError(f"data.split_by = {split_by!r}", f"all of train/good is one group ({match[0]!r})", "change it")
    return list(parts.values())


def list_test(category: Path, notes: DatasetNotes | None = None) -> list[TestSample]:
    """Pictures of test/: nominal ones first, then by defect.

    Raises:
        UserError: none is there, defect pictures lack masks (all are named), or what is there can mean two things.
    """
    notes, test = notes or DatasetNotes(), category / "test"
    if direct := [path for path in images_below(test) if path.parent == test]:
        raise UserError(
            f"{direct[0]}{and_n_more(direct)}",
            "lies directly in test/",
            "put nominal images into test/good, anomalous ones into test/<defect>",
        )
    masks = Masks(category, notes)
    images, nominal = [], nominal_folders(test, notes)
    for folder in nominal:
        pictures, beside = split_images_and_masks(images_below(folder, notes))
        check_twins(pictures)
        _check_nominal_masks([*beside, *masks.of_nominal(folder)])
        images += [TestSample(path, False, name_in(path, category)) for path in pictures]
    for folder in (path for path in subfolders(test) if path not in nominal):
        if normalize_name(folder.name) in MASK_FOLDERS:
            raise UserError(folder, "looks like a folder of masks", f"move it to {category / 'ground_truth'}")
        pictures, beside = split_images_and_masks(images_below(folder, notes))
        if not pictures:
            notes.skip("folders without pictures", name_in(folder, category))
        if beside:
            notes.assume(f"masks that lie beside the pictures of {name_in(folder, category)} are taken")
        masks.assign(folder, pictures, beside)
        images += [TestSample(path, True, name_in(path, category)) for path in pictures]
    masks.assign_loose()
    masks.check_complete()
    if not images:
        raise UserError(
            test, "no test images there", "put images into test/good and test/<defect>, which detection needs"
        )
    return [replace(image, masks=tuple(masks.found.get(image.path, ()))) for image in images]


def with_masks_read(pictures: Sequence[TestSample]) -> tuple[list[TestSample], list[str]]:
    """The pictures with what is known of their masks once these are read, and a sentence for each kind of warning.

    Raises:
        UserError: masks that cannot be read without guessing; it names the first, and how many there are.
    """

    def read(path: Path) -> DecodedMask | UserError:
        try:
            found = image_io.decode_mask_file(path)
        except UserError as error:
            return error
        return DecodedMask(np.array([found.mask.any()]), found.kind, found.warning)

    files = [mask for picture in pictures for mask in picture.masks]
    with ThreadPoolExecutor(core_count()) as pool:
        found = dict(zip(files, pool.map(read, files), strict=True))
    if wrong := [found[path] for path in files if isinstance(found[path], UserError)]:
        others = f"\n{len(wrong) - 1} more masks cannot be read either" if len(wrong) > 1 else ""
        raise UserError(wrong[0].subject, wrong[0].problem, wrong[0].fix + others)
    warnings: dict[str, list[str]] = {}
    for picture in pictures:
        for mask in picture.masks:
            if found[mask].warning:
                warnings.setdefault(found[mask].warning, []).append(f"{mask.parent.name}/{mask.name}")
    said = [
        f"masks: {warning}: {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for warning, names in warnings.items()
    ]
    read_ones = [
        replace(picture, has_empty_mask=bool(picture.masks) and not any(found[mask].mask[0] for mask in picture.masks))
        for picture in pictures
    ]
    return read_ones, said


def check_bit_depth(pictures: Sequence[TestSample], white_level: float | None) -> list[str]:
    """A sentence where pictures of more than 8 bits stay far below the white that training found; a few are read.

    Args:
        white_level: of the pictures that were trained on, None for 8 bits or all 16.
    """
    few = [pictures[place].path for place in range(0, len(pictures), -(-len(pictures) // SOME))]
    try:
        found = image_io.find_white_level(few)
    except UserError:
        return []  # such files are refused when they are read
    white = white_level or 65535
    if found is None or found >= white:
        return []
    return [
        f"test pictures hold values of more than 8 bits up to {found:g}, but white is {white:g} as in training: they "
        "are seen too dark; write them as the training pictures were written"
    ]


def _check_nominal_masks(masks: Sequence[Path]) -> None:
    """UserError where a mask of a nominal picture marks something."""
    for mask in masks:
        if image_io.decode_mask_file(mask).mask.any():
            raise UserError(
                mask, "marks pixels of a nominal image", "move that image to a defect's folder, or the mask away"
            )
