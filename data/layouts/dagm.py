"""DAGM 2007 as downloaded: Class1 to Class10 with Train and Test, each with a folder Label of masks.

Source: Wieler and Hahn, Weakly supervised learning for industrial optical inspection, DAGM symposium 2007.
"""

from pathlib import Path

from data.folders import DatasetNotes, images_below
from data.layouts.category import GOOD, Listing, name_below, sample
from data.layouts.tree import require
from data.mask_files import fold
from data.mask_matching import and_n_more
from data.mvtec import TestSample
from runtime.errors import UserError
from runtime.names import as_on_disk

PARTS, MASKS = ("Train", "Test"), "Label"
LIST = "Labels.txt"  # a line for each image: number, 1 if defective, file, 0, file of the mask
ENDING = "_label"  # of the masks' stems, as `fold` returns them


def fits(folder: Path) -> bool:
    """Whether a class's folder has a folder Label in Train or Test."""
    return any((folder / part / MASKS).is_dir() for part in PARTS)


def read(data_path: Path, category: str) -> Listing:
    """The images of a class. Those with a mask are defective.

    Raises:
        UserError: folders or all masks of a part are missing, or a mask has no image: then defective images could be
            taken for nominal ones.
    """
    folder, notes = Path(as_on_disk(f"{data_path}/{category}")), DatasetNotes()
    require("dagm", folder, [name for part in PARTS for name in (part, f"{part}/{MASKS}")])
    train, test = (_samples(folder, folder / part) for part in PARTS)
    for one in train:
        if one.has_anomaly:
            notes.skip("defective images of Train/", one.name)
    return Listing(folder, [one.path for one in train if not one.has_anomaly], test, notes=notes)


def _samples(folder: Path, part: Path) -> list[TestSample]:
    masks = {fold(path.stem): path for path in images_below(part / MASKS)}
    if not masks:
        raise UserError(part / MASKS, "has no masks, so no image would be defective", "restore the masks")
    samples = []
    for path in images_below(part):
        if path.parent == part:
            mask = masks.pop(fold(path.stem) + ENDING, None)
            samples.append(sample(folder, path, "defect" if mask else GOOD, [mask] if mask else []))
    if lost := sorted(_listed(part / MASKS / LIST) & {fold(one.path.stem) for one in samples if not one.has_anomaly}):
        raise UserError(part / MASKS / LIST, f"says that {lost[0]} is defective, but its mask is missing", "restore it")
    if rest := list(masks.values()):
        problem = f"matches no image of {part.name}: {name_below(rest[0], folder)} is no NNNN{ENDING} of one"
        raise UserError(f"{rest[0]}{and_n_more(rest)}", problem, "restore the image, or the name of the mask")
    return samples


def _listed(file: Path) -> set[str]:
    """Folded stems of the defective images in a list; none where there is no list."""
    if not file.is_file():
        return set()
    lines = (line.split() for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
    return {fold(Path(cells[2]).stem) for cells in lines if len(cells) == 5 and cells[1] == "1"}
