"""Which files of a dataset are masks, by their names and the subfolders that they are in."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data import image_io
from data.folders import DatasetNotes, normalize_name
from runtime.errors import UserError
from runtime.names import composed

# Names of folders of masks, as `normalize_name` returns them.
MASK_FOLDERS = {"groundtruth", "gt", "mask", "masks", "label", "labels", "annotation", "annotations", "segmentation"}
MASK_FOLDERS |= {"groundtruths", "gts", "segmentations", "seg", "anno", "annos"}
# Of folders with the shape of what is in the images.
DEPTH_FOLDERS = {"xyz", "depth", "depths", "depthmap", "depthmaps", "pointcloud", "pointclouds"}
COMPARED = 4  # pairs of subfolders, at most, of which one image is read
# Names of masks: <stem>_mask and common variants, with a number at the end where an image has several masks.
_WORDS = "masks?|gt|ground[_-]?truth|labels?|seg|segmentation|annotation"
MASK_ENDING = re.compile(rf"^(.+?)[ ._-]+(?:{_WORDS})([ ._-]?\d+)?$", re.IGNORECASE)
MASK_BEGINNING = re.compile(r"^masks?[ ._-]+(.+)$", re.IGNORECASE)


def fold(name: str) -> str:
    """A name as it is compared: composed, in lower case."""
    return composed(name).casefold()


def mask_stems(stem: str) -> Iterator[str]:
    """Stems, in lower case, that the image of a mask with this stem can have, the most likely first."""
    yield fold(stem)
    for pattern in (MASK_ENDING, MASK_BEGINNING):
        if match := pattern.match(stem):
            yield fold(match[1])


def split_images_and_masks(
    folder: Path, files: Sequence[Path], notes: DatasetNotes
) -> tuple[list[Path], dict[Path, Path]]:
    """Separate the images below a folder from masks, and from depth maps, stored with them.

    A mask is <stem>_mask next to <stem>, or a file of a matching name in a subfolder named as in `MASK_FOLDERS`, inside
    the folder of images or beside it: masks/000.png of 000.png, or of images/000.png. With one such file all of that
    subfolder are masks.

    Args:
        folder: of a defect or of nominal images. files: image files below it. notes: gets the depth maps.

    Returns:
        images, in the order of `files`; mask -> folder in which its image is expected.

    Raises:
        UserError: files that look like the masks of images in another subfolder, whose name does not say so.
    """
    stems_of = {(file.parent, fold(file.stem)) for file in files}
    places = _by_place(folder, [file for file in files if _subfolder_place(folder, file) is None])
    masks: dict[Path, Path] = {}
    depth_maps: set[Path] = set()
    in_subfolder: dict[Path, dict[Path, Path | None]] = {}  # subfolder -> its files -> folders of their images
    for file in files:
        stems = list(mask_stems(file.stem))
        place = _subfolder_place(folder, file)
        if any((file.parent, stem) in stems_of for stem in stems[1:]):
            masks[file] = file.parent
        elif place is not None:
            inside = subfolders_in(folder, file)
            above, below = folder.joinpath(*inside[:place]), inside[place + 1 :]
            parent = next((places[above, below, stem] for stem in stems if (above, below, stem) in places), None)
            if below and parent is None and (of := places.get((above, below[:-1], fold(below[-1])))):
                parent = of / below[-1]  # a subfolder named after an image has its masks
            in_subfolder.setdefault(above / inside[place], {})[file] = parent
    for subfolder, found in in_subfolder.items():
        parents = [parent for parent in found.values() if parent]
        if parents and normalize_name(subfolder.name) in DEPTH_FOLDERS:
            depth_maps |= found.keys()
        elif parents:
            masks |= {file: parent or parents[0] for file, parent in found.items()}
    for file in sorted(depth_maps):
        notes.skip("depth maps beside images", Path(*folder.parts[-2:], file.relative_to(folder)).as_posix())
    images = [file for file in files if file not in masks and file not in depth_maps]
    _check_subfolders(folder, images)
    return images, masks


def subfolders_in(folder: Path, file: Path) -> tuple[str, ...]:
    """Names (composed) of the subfolders of `folder` that lead to a file."""
    return Path(composed(str(file.relative_to(folder)))).parent.parts


def _subfolder_place(folder: Path, file: Path) -> int | None:
    """Place, in the path within `folder`, of the last subfolder whose name is one of masks or depth maps, if any."""
    names = map(normalize_name, subfolders_in(folder, file))
    return max((place for place, name in enumerate(names) if name in MASK_FOLDERS | DEPTH_FOLDERS), default=None)


def _by_place(folder: Path, images: Sequence[Path]) -> dict[tuple[Path, tuple[str, ...], str], Path]:
    """Where masks of images can be (folder above the subfolder of masks, subfolders below that, stem) -> their folder.

    The subfolder of masks is in a folder of images, or beside one.
    """
    places: dict[tuple[Path, tuple[str, ...], str], Path] = {}
    for file in images:
        inside = subfolders_in(folder, file)
        for place in range(len(inside) + 1):
            for below in (inside[place:], inside[place + 1 :]):
                places.setdefault((folder.joinpath(*inside[:place]), below, fold(file.stem)), file.parent)
    return places


def _check_subfolders(folder: Path, images: Sequence[Path]) -> None:
    """UserError if subfolders have images of the same names, and those in one of them look like masks.

    One image of each is read, and only of the first COMPARED pairs.
    """
    first: dict[tuple[Path, str], Path] = {}
    compared: set[tuple[Path, Path]] = set()
    for file in images:
        for above in {file.parent, file.parent.parent} - {folder.parent}:
            other = first.setdefault((above, fold(file.stem)), file)
            pair = other.parent, file.parent
            if other.parent == file.parent or pair in compared or len(compared) == COMPARED:
                continue
            compared.add(pair)
            looks = [_looks_like_a_mask(path) for path in (other, file)]
            if sum(looks) == 1:
                mask = (other, file)[looks.index(True)]
                raise UserError(
                    mask,
                    "looks like a mask: another folder beside or above has an image of this name",
                    f"rename its folder {mask.parent.name} to masks, or the file if it is an image",
                )


def check_twins(images: Sequence[Path]) -> None:
    """UserError if two images have names that differ only in the suffix, and one of them looks like a mask."""
    groups: dict[Path, list[Path]] = {}
    for path in images:
        groups.setdefault(Path(composed(str(path.with_suffix("")))), []).append(path)
    for group in groups.values():
        masks = [path for path in group if _looks_like_a_mask(path)] if len(group) > 1 else []
        if 0 < len(masks) < len(group):
            mask, image = masks[0], next(path for path in group if path not in masks)
            raise UserError(
                mask,
                f"looks like the mask of {image.name}",
                f"move it to ground_truth/{mask.parent.name}/{mask.stem}_mask{mask.suffix}, or rename it if it is an "
                "image",
            )


def _looks_like_a_mask(path: Path) -> bool:
    try:
        image_io.decode_mask_file(path)
    except UserError:
        return False
    return True
