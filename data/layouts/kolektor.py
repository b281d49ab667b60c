"""KolektorSDD and KolektorSDD2 as downloaded: a mask beside each image, which marks nothing where it is nominal.

KolektorSDD has a folder for each item, kos01, kos02, ..., with PartN.jpg and PartN_label.bmp, and no split: whole
folders are held out for the test. KolektorSDD2 has train and test, with NNNNN.png and NNNNN_GT.png. Sources: Tabernik
et al., Segmentation-based deep-learning approach for surface-defect detection, 2019; Božič et al., Mixed supervision
for surface-defect detection, 2021.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from data import image_io
from data.folders import DatasetNotes, images_below, subfolders
from data.layouts.category import GOOD, Listing, name_below, sample
from data.layouts.tree import require
from data.mask_files import fold
from data.mask_matching import and_n_more
from data.mvtec import TestSample
from runtime.device import map_in_threads
from runtime.errors import UserError
from runtime.names import as_on_disk
from runtime.provenance import file_state

ITEM = re.compile(r"kos\d+", re.IGNORECASE)
LABEL, TRUTH = "_label.bmp", "_GT.png"  # endings of the masks' names; the suffix may be another one
DEFECT = "defect"
_EMPTY: dict[tuple, bool] = {}  # path and state of a mask -> whether it marks nothing, for the duration of the process


def fits(folder: Path) -> bool:
    """Whether a folder has items of KolektorSDD, or masks of KolektorSDD2."""
    return bool(_items(folder)) or _has_truth(folder)


def _items(folder: Path) -> list[Path]:
    return [path for path in subfolders(folder) if ITEM.fullmatch(path.name)]


def _has_truth(folder: Path) -> bool:
    parts = [folder / name for name in ("train", "test") if (folder / name).is_dir()]
    return any(fold(path.stem).endswith(_stem(TRUTH)) for part in parts for path in part.iterdir())


def read(data_path: Path, category: str) -> Listing:
    """The images of the dataset, which is one category. Its masks are read."""
    folder, notes = Path(as_on_disk(f"{data_path}/{category}")), DatasetNotes()
    items = _items(folder)
    if items and _has_truth(folder):
        raise UserError(
            folder,
            f"has {items[0].name} of KolektorSDD and masks *{TRUTH} of KolektorSDD2",
            "separate the two datasets",
        )
    if items:
        files = [file for item in items for file in images_below(item, notes)]
        for other in subfolders(folder):
            for path in images_below(other) if other not in items else ():
                notes.skip("images outside of folders kos01, kos02, ...", name_below(path, folder))
        samples = _samples(folder, files, LABEL, notes)
        groups = {one.path: one.path.relative_to(folder).parts[0] for one in samples}
        nominal = [one.path for one in samples if not one.has_anomaly]
        test = [one for one in samples if one.has_anomaly]
        return Listing(folder, nominal, test, groups=groups, has_split=False, notes=notes)
    require("kolektor", folder, ["train", "test"])
    train, test = (_samples(folder, images_below(folder / name, notes), TRUTH, notes) for name in ("train", "test"))
    for other in subfolders(folder):
        for path in images_below(other) if other.name not in ("train", "test") else ():
            notes.skip("images and masks outside of train and test", name_below(path, folder))
    for one in train:
        if one.has_anomaly:
            notes.skip("defective images of train/", one.name)
    return Listing(folder, [one.path for one in train if not one.has_anomaly], test, notes=notes)


def _samples(folder: Path, files: Sequence[Path], ending: str, notes: DatasetNotes) -> list[TestSample]:
    """The images among files, each with its mask if that marks a pixel. UserError where one has no mask."""
    end = _stem(ending)
    masks = {(path.parent, fold(path.stem)): path for path in files if fold(path.stem).endswith(end)}
    images = [path for path in files if not fold(path.stem).endswith(end)]
    if missing := [path for path in images if (path.parent, fold(path.stem) + end) not in masks]:
        problem = f"has no mask {missing[0].stem}{ending} beside it, as the form kolektor needs it"
        raise UserError(f"{missing[0]}{and_n_more(missing)}", problem, "add it, or set data.layout")
    own = [masks[path.parent, fold(path.stem) + end] for path in images]
    for mask in sorted(set(masks.values()) - set(own)):
        notes.skip("masks that match no image", name_below(mask, folder))
    empty = map_in_threads(_is_empty, own)
    return [
        sample(folder, path, GOOD if is_empty else DEFECT, [] if is_empty else [mask])
        for path, mask, is_empty in zip(images, own, empty, strict=True)
    ]


def _stem(ending: str) -> str:
    """The ending of a mask's stem, as `fold` returns it."""
    return fold(Path(ending).stem)


def _is_empty(mask: Path) -> bool:
    key = (str(mask), *file_state(mask))
    if key not in _EMPTY:
        _EMPTY[key] = not image_io.decode_mask_file(mask).mask.any()
    return _EMPTY[key]
