"""Datasets with annotations in COCO form: a JSON file of images, annotations and names of defects."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from data.annotations import FIX, DrawnMask, draw_shape
from data.folders import DatasetNotes, normalize_name
from data.layouts.category import GOOD, Listing, check_there, sample
from data.layouts.table import SPLITS
from data.mask_matching import and_n_more
from runtime.errors import UserError
from runtime.json_file import read_json

LONGEST_SIDE = 2**15  # pixels, of an image with annotations: their masks are drawn at its size


def read(file: Path, data_path: Path) -> Listing:
    """The images that a file annotates. Those without an annotation are nominal.

    The split is that of a key `split` of the images, or of their folder (train, val, test); without one, nominal images
    are held out for the test by seed.

    Raises:
        UserError: the file is not in COCO form, images are missing, or only some have a split.
    """
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.coco = {file}", f"cannot be read ({error})", "set it to a JSON file in COCO form"
        ) from error
    missing = [key for key in ("images", "annotations") if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(file, f"has no {' and no '.join(missing)}: not in COCO form", FIX)
    try:
        names = {one["id"]: str(one["name"]) for one in content.get("categories", ())}
        images = {one["id"]: one for one in content["images"]}
        shapes: dict[Any, list[Any]] = {}
        kinds: dict[Any, set[str]] = {}
        for one in content["annotations"]:
            shapes.setdefault(one["image_id"], []).append(_shape(one))
            kinds.setdefault(one["image_id"], set()).add(names.get(one.get("category_id"), "anomalous"))
        entries = [
            (str(one["file_name"]).replace("\\", "/"), (int(one["height"]), int(one["width"])), key)
            for key, one in images.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(file, f"not in COCO form ({type(error).__name__}: {error})", FIX) from error
    if len(images) < (count := len(content["images"])):
        raise UserError(file, f"lists {count} images with only {len(images)} different ids", FIX)
    if unknown := [key for key in shapes if key not in images]:
        raise UserError(file, f"annotates images that it does not list: {unknown[0]}{and_n_more(unknown)}", FIX)
    if not entries:
        raise UserError(file, "lists no images", "add images")
    if twice := next((name for name, count in Counter(name for name, _, _ in entries).items() if count > 1), None):
        raise UserError(file, f"lists {twice} twice", "remove one of the entries")
    if wrong := next((name for name, size, _ in entries if not 0 < min(size) <= max(size) <= LONGEST_SIDE), None):
        raise UserError(file, f"gives {wrong} a size that no image has", FIX)
    folder = _folder_of_images(file, data_path, [name for name, _, _ in entries])
    splits = {key: _split(images[key], name) for name, _, key in entries}
    if (without := [name for name, _, key in entries if not splits[key]]) and any(splits.values()):
        raise UserError(file, f"gives some images a split, but not {without[0]}{and_n_more(without)}", "give all one")
    listing = Listing(folder, [], [], has_split=not without, notes=DatasetNotes())
    for name, size, key in entries:
        split = splits[key] or "train"
        if key in shapes:
            _check_shapes(file, name, shapes[key], size)
            mask = DrawnMask(file, name, size, json.dumps(shapes[key]))
            one = sample(folder, folder / name, "+".join(sorted(kinds[key])).replace("/", "_"), [mask])
            if listing.has_split and split != "test":
                listing.notes.skip(f"anomalous images of split {split}", one.name)
            else:
                listing.test.append(one)
        elif split == "test":
            listing.test.append(sample(folder, folder / name, GOOD))
        else:
            (listing.nominal if split == "train" else listing.validation).append(folder / name)
    return listing


def _shape(annotation: dict[str, Any]) -> Any:
    """The shape of an annotation, as `DrawnMask` has them."""
    if annotation.get("segmentation"):
        return annotation["segmentation"]
    return {"bbox": [float(side) for side in annotation["bbox"]]}


def _check_shapes(file: Path, name: str, shapes: list[Any], size: tuple[int, int]) -> None:
    """UserError where one cannot be drawn. Outlines are drawn on a single pixel: images can be large."""
    try:
        for shape in shapes:
            draw_shape(shape, size if isinstance(shape, dict) and "counts" in shape else (1, 1))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(file, f"an annotation of {name} is malformed ({error})", FIX) from error


def _split(image: dict[str, Any], name: str) -> str | None:
    if image.get("split"):
        return SPLITS.get(normalize_name(str(image["split"])))
    return SPLITS.get(normalize_name(name.split("/")[0])) if "/" in name else None


def _folder_of_images(file: Path, data_path: Path, names: list[str]) -> Path:
    """The folder that names of images are relative to: the file's, the one above, their `images`, or data.data_path."""
    above = file.absolute().parent.parent
    for folder in (file.parent, file.parent / "images", above, above / "images", data_path):
        if (folder / names[0]).is_file():
            check_there([folder / name for name in names], file)
            return folder
    raise UserError(
        file,
        f"its images are missing: no {names[0]} beside it, in images/ or in data.data_path = {data_path}",
        "set data.data_path",
    )
