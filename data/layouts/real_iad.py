"""Real-IAD as downloaded: a JSON file for each category with paths, masks and classes of images of five views.

The files are in realiad_jsons, also twice nested, or beside the categories; images in realiad_1024, realiad_512, ... or
in data.data_path itself. Beside them come folders of other splits, realiad_jsons_sv (a single view) and
realiad_jsons_fuiad_0.1, ... (anomalous images among those to train on); data.data_path names such a folder to use it.
The views of one sample are never separated by a split. Source: Wang et al., Real-IAD: a real-world multi-view dataset
for benchmarking versatile industrial anomaly detection, CVPR 2024.
"""

from pathlib import Path
from typing import Any

from data.folders import DatasetNotes, subfolders
from data.layouts.category import GOOD, Listing, check_nominal_masks, check_there, name_below, sample
from runtime.errors import UserError
from runtime.json_file import read_json
from runtime.names import composed

JSONS, IMAGES = "realiad_jsons", "realiad_"
HEAD = 400  # characters of a JSON file that are searched for its first key


def categories(data_path: Path) -> list[str]:
    """Stems (composed) of the JSON files of categories; UserError where images are there, but not the files."""
    files = _files(data_path)
    if not files and (others := _other_splits(data_path)):
        raise UserError(
            data_path,
            f"has no {JSONS} of Real-IAD, but other splits: {', '.join(path.name for path in others)}",
            f"add it, or set data.data_path to one of them, such as {others[0]}",
        )
    if not files and (images := [path for path in subfolders(data_path) if _is_of_images(path)]):
        raise UserError(
            data_path,
            f"not in the form real-iad: it has {images[0].name}, but no {JSONS}, which says what is in it",
            "add what is missing, or set data.layout",
        )
    return sorted({composed(path.stem) for path in files})


def _is_of_images(folder: Path) -> bool:
    return folder.name.startswith(IMAGES) and not folder.name.startswith(JSONS)


def _folders(data_path: Path) -> list[Path]:
    """Where the folders of JSON files are."""
    above = [data_path.parent, data_path.parent / JSONS] if _is_of_images(data_path) else []
    return [data_path, data_path / JSONS, *above]


def _other_splits(data_path: Path) -> list[Path]:
    """Folders of other splits than that of JSONS."""
    below = [path for folder in _folders(data_path) for path in subfolders(folder) if path.name.startswith(f"{JSONS}_")]
    return [path for path in below if any(map(_is_listing, path.glob("*.json")))]


def _files(data_path: Path) -> list[Path]:
    folders = [data_path, *(folder / JSONS for folder in _folders(data_path))]
    return [
        path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json")) if _is_listing(path)
    ]


def _is_listing(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return '"meta"' in (head := stream.read(HEAD)) and '"prefix"' in head
    except OSError:
        return False


def read(data_path: Path, category: str) -> Listing:
    """The images of a category, as its JSON file splits them."""
    file = next(path for path in _files(data_path) if composed(path.stem) == category)
    try:
        content = read_json(file)
        meta, parts = content["meta"], {part: list(content[part]) for part in ("train", "test")}
        prefix, normal = str(meta["prefix"]), str(meta["normal_class"])
        rows = {part: [_row(one) for one in parts[part]] for part in parts}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            file, f"not as Real-IAD has it ({type(error).__name__}: {error})", "use the file as downloaded"
        ) from error
    folder, notes = _folder_of_images(data_path, file, prefix), DatasetNotes()
    check_there([folder / image for part in rows.values() for image, _, _ in part], file)
    check_there([folder / mask for part in rows.values() for _, _, mask in part if mask], file, "masks")
    samples = {
        part: check_nominal_masks(
            [
                sample(folder, folder / image, GOOD if kind == normal else kind, [folder / mask] if mask else [])
                for image, kind, mask in own
            ]
        )
        for part, own in rows.items()
    }
    for one in samples["train"]:
        if one.has_anomaly:
            notes.skip("anomalous images of train", one.name)
    if others := _other_splits(data_path):
        names = ", ".join(path.name for path in others)
        notes.assume(f"the split is that of {file.parent.name}; data.data_path can name another one: {names}")
    nominal = [one.path for one in samples["train"] if not one.has_anomaly]
    return Listing(
        folder,
        nominal,
        samples["test"],
        groups={path: name_below(path.parent, folder) for path in nominal},
        notes=notes,
    )


def _row(entry: dict[str, Any]) -> tuple[str, str, str | None]:
    """Image, class and mask of an entry."""
    mask = str(entry["mask_path"]) if entry["mask_path"] else None
    return str(entry["image_path"]), str(entry["anomaly_class"]), mask


def _folder_of_images(data_path: Path, file: Path, prefix: str) -> Path:
    """The folder that the paths in a JSON file are relative to; UserError if there is none, or several sizes of it."""
    found = [path for path in (data_path / prefix, file.parent / prefix) if path.is_dir()][:1]
    if not found:
        is_split = data_path.name.startswith(JSONS)  # the images are beside it, or one folder above
        around = [data_path, *(data_path.absolute().parents[:2] if is_split else ())]
        sizes = [path for folder in around for path in subfolders(folder) if _is_of_images(path)]
        found = [path / prefix for path in sizes if (path / prefix).is_dir()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(file, f"its images are missing: no {prefix} in {data_path}", "unpack them there")
    raise UserError(
        f"data.data_path = {data_path}",
        f"has the images of {file.stem} in {' and '.join(path.parent.name for path in found)}",
        f"set it to one of them, such as {found[0].parent}"
        if data_path in found[0].parents
        else "leave only one of them there",
    )
