"""Folders and their names: image files at any depth, categories, textures, and what is skipped."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".jp2", ".exr", ".avif"}
IMAGE_SUFFIXES |= {".gif", ".pgm", ".ppm", ".pbm", ".pnm", ".pam", ".hdr", ".ras", ".sr"}
# As `normalize_name` returns them.
NOMINAL_NAMES = {"good", "ok", "normal", "nominal", "defectfree", "nodefect", "nondefective", "anomalyfree"}
NOT_UTF8, RENAME = "the name is not UTF-8", "rename it"
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir"}


@dataclass
class DatasetNotes:
    """Notes for people about files that a dataset has beside its images, and about what was assumed."""

    skipped: dict[str, list[str]] = field(default_factory=dict)  # kind -> names of files that are not used
    assumed: list[str] = field(default_factory=list)

    def skip(self, kind: str, name: object) -> None:
        """Note something of a kind (in the plural) that is not used."""
        names = self.skipped.setdefault(kind, [])
        if str(name) not in names:
            names.append(str(name))

    def assume(self, text: str) -> None:
        """Note how something was understood."""
        if text not in self.assumed:
            self.assumed.append(text)

    def lines(self) -> list[str]:
        """What was assumed, and one line about all that was skipped."""
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in self.skipped.items()
        ]
        return [*self.assumed, *(["skipped: " + "; ".join(parts)] if parts else [])]


def normalize_name(name: str) -> str:
    """A name without case, spaces and signs."""
    return re.sub(r"[\W_]", "", name.casefold())


def is_visible_folder(name: str) -> bool:
    """Whether a folder of this name is one of the user's."""
    return not name.startswith(".") and name not in SYSTEM_FOLDERS


def entries_below(folder: Path | str, skips_errors: bool = False) -> Iterator[os.DirEntry]:
    """Files in visible folders at any depth, and the hidden folders, as they are found.

    Links are followed; a folder that several of them lead to is walked once.

    Args:
        skips_errors: leave out folders that cannot be read, or vanish meanwhile.
    """
    pending, seen = [os.fspath(folder)], set()
    while pending:
        path, below = pending.pop(), []
        try:
            state = os.stat(path)
            if (state.st_dev, state.st_ino) in seen and state.st_ino:
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir() and is_visible_folder(entry.name):
                        below.append(entry.path)
                    else:
                        yield entry
        except OSError:
            if not skips_errors:
                raise
        pending += sorted(below, reverse=True)


def images_below(folder: Path, notes: DatasetNotes | None = None) -> list[Path]:
    """Images at any depth below a folder, sorted; none where there is no such folder. Links are followed."""
    found, notes = [], notes or DatasetNotes()
    for entry in entries_below(folder) if folder.is_dir() else ():
        _check_name(entry.path)
        path = Path(entry.path)
        if entry.is_dir():
            notes.skip("hidden folders", path.relative_to(folder.parent))
        elif entry.name.startswith("."):
            notes.skip("hidden files", entry.name)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            found.append(path)
        else:
            notes.skip("files that are no images", entry.name)
    return sorted(found)


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(as_utf8(path), NOT_UTF8, RENAME) from error


def as_utf8(path: str) -> str:
    """A path as it can be written in UTF-8, other bytes escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def subfolders(folder: Path) -> list[Path]:
    """Visible folders in a folder, sorted."""
    if not folder.is_dir():
        return []
    there = [path for path in folder.iterdir() if path.is_dir() and is_visible_folder(path.name)]
    for path in there:
        _check_name(str(path))
    return sorted(there)


def nominal_folders(folder: Path, notes: DatasetNotes | None = None) -> list[Path]:
    """good, and folders of names that mean the same, which is noted."""
    found = [path for path in subfolders(folder) if normalize_name(path.name) in NOMINAL_NAMES]
    for path in found if notes else ():
        if path.name != "good":
            notes.assume(f"{folder.name}/{path.name} is taken as nominal (good)")
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
    if images_below(folder / "train"):
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
        "name a folder in MVTec AD form (docs/data.md), or try the sample: python make_sample.py, then "
        "--config configs/sample.yaml",
    )


def chosen_categories(data_path: Path, names: Sequence[str] | None) -> list[str]:
    """The named categories, or all that are there; UserError where one is not there, or none is."""
    present = list_categories(data_path)
    for name in names or ():
        if name not in present:
            category_folder(data_path, name)
            raise UserError(f"--categories {name}", "must be a plain folder name", f"there are: {', '.join(present)}")
    return list(dict.fromkeys(names)) if names else present or [category_folder(data_path, "*").name]


def list_textures(folder: Path, notes: DatasetNotes | None = None) -> list[Path]:
    """Texture images at any depth below `folder`, sorted; UserError where there is none."""
    files = images_below(folder, notes)
    if not files:
        what = "is a file, not a folder" if folder.is_file() else "holds no texture images"
        raise UserError(
            "data.anomaly_source_path",
            f"{folder} {what}",
            "name a folder of images, or fetch DTD (600 MB):\n"
            'python -c "from data_loader import fetch_dtd; fetch_dtd()"   (by hand: put the images folder of '
            "DTD r1.0.1 at dtd/images)",
        )
    return files
