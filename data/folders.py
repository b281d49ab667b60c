"""Folders and their names: picture files at any depth, categories, textures, and what is passed over."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".jp2", ".exr", ".avif"}
IMAGE_SUFFIXES |= {".gif", ".pgm", ".ppm", ".pbm", ".pnm", ".pam", ".hdr", ".ras", ".sr"}
# As `plain` has them.
NOMINAL_NAMES = {"good", "ok", "normal", "nominal", "defectfree", "nodefect", "nondefective", "anomalyfree"}
NOT_UTF8, RENAME = "the name is not UTF-8", "rename it"
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir"}


@dataclass
class Remarks:
    """What a look through folders came upon and did not take as it is."""

    passed: dict[str, list[str]] = field(default_factory=dict)  # kind -> names of what was passed over
    taken: list[str] = field(default_factory=list)  # what was taken in a sense that its owner should know

    def pass_over(self, kind: str, name: object) -> None:
        """Note something of a kind (in the plural) that is not used."""
        names = self.passed.setdefault(kind, [])
        if str(name) not in names:
            names.append(str(name))

    def take(self, text: str) -> None:
        """Note how something was understood."""
        if text not in self.taken:
            self.taken.append(text)

    def lines(self) -> list[str]:
        """For people: how things were understood, and one line about all that was passed over."""
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in self.passed.items()
        ]
        return [*self.taken, *(["passed over: " + "; ".join(parts)] if parts else [])]


def plain(name: str) -> str:
    """A name without case, spaces and signs."""
    return re.sub(r"[\W_]", "", name.casefold())


def is_visible_folder(name: str) -> bool:
    """Whether a folder of this name is one of the user's."""
    return not name.startswith(".") and name not in SYSTEM_FOLDERS


def _refuse(error: OSError) -> None:
    raise error  # a folder that may not be read is not an empty one


def pictures_below(folder: Path, remarks: Remarks | None = None) -> list[Path]:
    """Pictures at any depth below a folder, sorted; none where there is no such folder. Links are followed."""
    found, seen, remarks = [], set(), remarks or Remarks()
    for root, folders, names in os.walk(folder, onerror=_refuse, followlinks=True) if folder.is_dir() else ():
        _check_names(root, (*folders, *names))
        hidden = [name for name in folders if not is_visible_folder(name)]
        for name in hidden:
            remarks.pass_over("hidden folders", Path(root, name).relative_to(folder.parent))
        # A link to a folder above it would lead round and round.
        state = os.stat(root)
        if (state.st_dev, state.st_ino) in seen and state.st_ino:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(set(folders) - set(hidden))
        for name in names:
            path = Path(root, name)
            if name.startswith("."):
                remarks.pass_over("hidden files", name)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                found.append(path)
            else:
                remarks.pass_over("files that are no pictures", name)
    return sorted(found)


def _check_names(root: str, names: Sequence[str]) -> None:
    for name in names:
        try:
            os.path.join(root, name).encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(os.path.join(root, name)).decode("utf-8", "backslashreplace")
            raise UserError(shown, NOT_UTF8, RENAME) from error


def subfolders(folder: Path) -> list[Path]:
    """Visible folders in a folder, sorted."""
    if not folder.is_dir():
        return []
    there = [path for path in folder.iterdir() if path.is_dir() and is_visible_folder(path.name)]
    _check_names(str(folder), [path.name for path in there])
    return sorted(there)


def nominal_folders(folder: Path, remarks: Remarks | None = None) -> list[Path]:
    """good, and folders of names that mean the same, which is noted."""
    found = [path for path in subfolders(folder) if plain(path.name) in NOMINAL_NAMES]
    for path in found if remarks else ():
        if path.name != "good":
            remarks.take(f"{folder.name}/{path.name} is taken as nominal (good)")
    return found


def list_categories(data_path: Path) -> list[str]:
    """Names of the folders below `data_path` that have train/good."""
    return [path.name for path in subfolders(data_path) if nominal_folders(path / "train")]


def category_folder(data_path: Path, category: str) -> Path:
    """Folder of a category; UserError says where it looked and what is there."""
    folder = data_path / category
    if nominal_folders(folder / "train"):
        return folder
    for path in (data_path, folder, folder / "train", folder / "train" / "good"):
        if path.is_file():
            raise UserError("data.data_path", f"{path} is a file", "put a folder there, or name another")
    if pictures_below(folder / "train"):
        raise UserError(
            folder / "train", "has images, but none in a folder named good", "put the nominal ones into train/good"
        )
    present = list_categories(data_path)
    if present:
        raise UserError(
            f"data.category = {category}",
            f"no such folder with train/good in {data_path.absolute()}",
            f"there are: {', '.join(present)}",
        )
    raise UserError(
        "data.data_path",
        f"no dataset in {data_path.absolute()}, which has no {category}/train/good",
        "name a folder in MVTec AD form (docs/data.md), or try the sample: python make_sample.py, then --config configs/sample.yaml",
    )


def chosen_categories(data_path: Path, names: Sequence[str] | None) -> list[str]:
    """The named categories, or all that are there; UserError where one is not there, or none is."""
    present = list_categories(data_path)
    for name in names or ():
        if name not in present:
            category_folder(data_path, name)
            raise UserError(f"--categories {name}", "must be a plain folder name", f"there are: {', '.join(present)}")
    return list(dict.fromkeys(names)) if names else present or [category_folder(data_path, "*").name]


def list_textures(folder: Path, remarks: Remarks | None = None) -> list[Path]:
    """Texture images at any depth below `folder`, sorted; UserError where there is none."""
    files = pictures_below(folder, remarks)
    if not files:
        what = "is a file, not a folder" if folder.is_file() else "holds no texture images"
        raise UserError(
            "data.anomaly_source_path",
            f"{folder} {what}",
            "name a folder of images, or fetch DTD (600 MB):\n"
            'python -c "from data_loader import fetch_dtd; fetch_dtd()"   (by hand: put the images folder of DTD r1.0.1 at dtd/images)',
        )
    return files
