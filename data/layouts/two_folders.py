"""Datasets of two folders: nominal images in one, anomalous ones in another, with masks beside them or none."""

from pathlib import Path

from data.folders import NOMINAL_NAMES, DatasetNotes, images_below, normalize_name, other_case
from data.layouts.category import Listing, sample
from data.mask_files import fold, mask_stems, split_images_and_masks
from data.mask_matching import and_n_more
from runtime.errors import UserError

NOMINAL_KEY, ANOMALOUS_KEY = "data.nominal_folder", "data.anomalous_folder"


def read(nominal_folder: str | None, anomalous_folder: str | None) -> Listing:
    """The images of both folders, at any depth. Without anomalous ones, all nominal ones are trained on.

    A subfolder of the anomalous images is a kind of defect.

    Raises:
        UserError: a folder is missing or empty, one lies within the other, or some anomalous images have masks and
            others do not.
    """
    if nominal_folder is None:
        raise UserError(NOMINAL_KEY, f"not set, but {ANOMALOUS_KEY} is", "set both")
    nominal, notes = Path(nominal_folder), DatasetNotes()
    images, masks_of_nominal = _images(NOMINAL_KEY, nominal, notes)
    for mask in masks_of_nominal:
        notes.skip("masks beside nominal images", mask.relative_to(nominal).as_posix())
    folder = nominal.absolute().parent  # so that names of nominal images do not depend on the other folder
    if anomalous_folder is None:
        return Listing(folder, images, [], notes=notes)
    anomalous = Path(anomalous_folder)
    real = nominal.resolve(), anomalous.resolve()
    if real[0] in (real[1], *real[1].parents) or real[1] in real[0].parents:
        raise UserError(
            f"{ANOMALOUS_KEY} = {anomalous}", f"lies within {NOMINAL_KEY} = {nominal}, or around it", "separate them"
        )
    files, beside = _images(ANOMALOUS_KEY, anomalous, notes)
    for path in files:
        if normalize_name(_kind(path, anomalous)) in NOMINAL_NAMES:
            raise UserError(
                path.parent, f"is called as nominal images are, within {ANOMALOUS_KEY}", "move or rename it"
            )
    masks: dict[Path, list[Path]] = {}
    places = {(path.parent, stem): path for path in files for stem in (fold(path.name), fold(path.stem))}
    for mask, parent in beside.items():
        owner = next((places[parent, stem] for stem in mask_stems(mask.stem) if (parent, stem) in places), None)
        if owner:
            masks.setdefault(owner, []).append(mask)
        else:
            notes.skip("masks that match no image", mask.relative_to(anomalous).as_posix())
    if masks and (missing := [path for path in files if path not in masks]):
        raise UserError(
            f"{missing[0]}{and_n_more(missing)}",
            f"has no mask {missing[0].stem}_mask.png beside it, while other anomalous images have masks",
            "add it",
        )
    test = [sample(folder, path, _kind(path, anomalous), masks.get(path, ())) for path in files]
    return Listing(folder, images, test, has_split=False, notes=notes)


def _images(key: str, folder: Path, notes: DatasetNotes) -> tuple[list[Path], dict[Path, Path]]:
    images, masks = split_images_and_masks(folder, images_below(folder, notes), notes)
    if not images:
        problem = "has no images" if folder.is_dir() else f"is no folder{other_case(folder)}"
        raise UserError(f"{key} = {folder}", problem, "set it to a folder with images")
    return images, masks


def _kind(path: Path, folder: Path) -> str:
    """The kind of defect: the subfolder that an image is in, but for one that only separates images from masks."""
    inside = [
        part for part in path.relative_to(folder).parts[:-1] if fold(part) not in ("images", "img", "image", "rgb")
    ]
    return inside[0] if inside else "anomalous"
