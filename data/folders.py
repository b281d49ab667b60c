"""Dataset folders: find image files, categories and textures, and note the files that are not used."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from runtime.errors import UserError
from runtime.names import as_on_disk, composed

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".jp2", ".exr", ".avif"}
IMAGE_SUFFIXES |= {".gif", ".pgm", ".ppm", ".pbm", ".pnm", ".pam", ".hdr", ".ras", ".sr"}
# Names of folders with nominal images, as `normalize_name` returns them.
NOMINAL_NAMES = {"good", "ok", "normal", "nominal", "defectfree", "nodefect", "nondefective", "anomalyfree"}
NOT_UTF8, RENAME = "the name is not UTF-8", "rename it"
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir"}


@dataclass
class DatasetNotes:
    """Notes for the user: files of a dataset that are not used, and assumptions about its layout.

    Attributes:
        skipped: kind of file (a plural, such as 'hidden files') -> names of the files that are not used, the keys of a
            dict, as there may be very many.
        assumed: one sentence for each assumption.
    """

    skipped: dict[str, dict[str, None]] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)

    def skip(self, kind: str, name: object) -> None:
        """Note that a file or folder is not used."""
        self.skipped.setdefault(kind, {})[str(name)] = None

    def assume(self, text: str) -> None:
        """Note an assumption about the layout of the dataset."""
        if text not in self.assumed:
            self.assumed.append(text)

    def lines(self) -> list[str]:
        """One line for each assumption, and one line that summarizes all skipped files."""
        parts = [
            f"{kind}: {len(names)} ({', '.join(list(names)[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in self.skipped.items()
        ]
        return [*self.assumed, *(["skipped: " + "; ".join(parts)] if parts else [])]


def normalize_name(name: str) -> str:
    """A name in lower case, without spaces and punctuation: 'Broken-Large' -> 'brokenlarge'."""
    return re.sub(r"[\W_]", "", composed(name).casefold())


def is_visible_folder(name: str) -> bool:
    """Whether a folder is used: its name has no leading dot and is not that of a folder of the operating system."""
    return not name.startswith(".") and name not in SYSTEM_FOLDERS


def entries_below(folder: Path | str, skips_errors: bool = False) -> Iterator[os.DirEntry]:
    """All files at any depth below `folder`, and the hidden folders, which are not entered; in no particular order.

    Symbolic links are followed. A folder that several links point to is visited once.

    Args:
        skips_errors: skip folders that cannot be read or are deleted during the walk, instead of raising OSError.
    """
    pending, visited = [os.fspath(folder)], set()
    while pending:
        path, below = pending.pop(), []
        try:
            state = os.stat(path)
            if (state.st_dev, state.st_ino) in visited and state.st_ino:
                continue
            visited.add((state.st_dev, state.st_ino))
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
    """Image files at any depth below a folder, sorted; an empty list if the folder does not exist.

    Symbolic links are followed.

    Args:
        notes: gets the hidden files and folders and the files that are not images.

    Raises:
        UserError: a name is not UTF-8.
    """
    images, notes = [], notes or DatasetNotes()
    for entry in entries_below(folder) if folder.is_dir() else ():
        _check_name(entry.path)
        path = Path(entry.path)
        if entry.is_dir():
            notes.skip("hidden folders", path.relative_to(folder.parent))
        elif entry.name.startswith("."):
            notes.skip("hidden files", entry.name)
        elif path.suffix.lower() in IMAGE_SUFFIXES and not entry.is_file() and path.exists():
            notes.skip("pipes and devices", entry.name)  # reading one could wait for ever
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        else:
            notes.skip("files that are not images", entry.name)
    return sorted(images)


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(as_utf8(path), NOT_UTF8, RENAME) from error


def as_utf8(path: str) -> str:
    """A path as valid UTF-8; bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def subfolders(folder: Path) -> list[Path]:
    """Visible folders directly in a folder, sorted; an empty list if the folder does not exist."""
    if not folder.is_dir():
        return []
    folders = [path for path in folder.iterdir() if path.is_dir() and is_visible_folder(path.name)]
    for path in folders:
        _check_name(str(path))
    return sorted(folders)


def other_case(path: Path) -> str:
    """For messages about a path that is not there: ', but X', where X is there in other upper or lower case; or ''."""
    found = next((parent for parent in path.absolute().parents if parent.is_dir()), None)
    if found is None or path.exists():
        return ""
    for part in path.absolute().relative_to(found).parts:
        names = [one.name for one in found.iterdir()] if found.is_dir() else []
        alike = [name for name in names if name.casefold() == part.casefold()]
        if not alike:
            return ""
        found /= part if part in alike else alike[0]
    return f", but {found.name} in {found.parent}: upper and lower case differ"


def nominal_folders(folder: Path, notes: DatasetNotes | None = None) -> list[Path]:
    """The folder `good`, and folders whose names mean the same (`NOMINAL_NAMES`); these are noted as an assumption."""
    folders = [path for path in subfolders(folder) if normalize_name(path.name) in NOMINAL_NAMES]
    for path in folders:
        if notes and path.name != "good":
            notes.assume(f"{folder.name}/{path.name} is taken as nominal (good)")
    return folders


def list_categories(data_path: Path) -> list[str]:
    """Names (composed) of the folders in `data_path` that contain train/good, sorted; UserError if two are the same."""
    names = sorted(composed(path.name) for path in subfolders(data_path) if nominal_folders(path / "train"))
    if doubled := next((name for name, other in pairwise(names) if name == other), None):
        raise UserError(data_path, f"two folders are called {doubled}, in different forms of Unicode", "rename one")
    return names


def category_folder(data_path: Path, category: str) -> Path:
    """Folder of a category; UserError if it has no train/good, with the categories that exist."""
    folder = Path(as_on_disk(f"{data_path}/{category}"))
    if nominal_folders(folder / "train"):
        return folder
    for path in (data_path, folder, folder / "train", folder / "train" / "good"):
        if path.is_file():
            raise UserError("data.data_path", f"{path} is a file, not a folder", "set it to the folder of the dataset")
    if images_below(folder / "train"):
        raise UserError(
            folder / "train", "has images, but none in a folder named good", "put nominal images into train/good"
        )
    if folder.is_dir() and images_below(folder):
        raise UserError(folder, "has images, but none in train/good", "put nominal images into train/good below it")
    if nominal_folders(data_path / "train"):
        whole = data_path.resolve()
        fix = f"set data.data_path={whole.parent} and data.category={whole.name}"
        raise UserError("data.data_path", f"{data_path} is a category itself, it has train/good", fix)
    present = list_categories(data_path)
    if present:
        raise UserError(
            f"data.category = {category}",
            f"no folder of this name with train/good in {data_path.absolute()}",
            f"choose one of: {', '.join(present)}",
        )
    raise UserError(
        "data.data_path",
        f"no dataset in {data_path.absolute()}, which has no {category}/train/good",
        "set it to a folder in the MVTec AD layout (docs/data.md), or try the sample dataset: python make_sample.py, "
        "then --config configs/sample.yaml",
    )


def chosen_categories(data_path: Path, names: Sequence[str] | None) -> list[str]:
    """The named categories without duplicates, or all that exist; UserError if one does not exist, or none exists."""
    present, names = list_categories(data_path), [composed(name) for name in names or ()]
    for name in names:
        if name not in present:
            if not present or name in {folder.name for folder in subfolders(data_path)}:
                category_folder(data_path, name)  # a UserError that says what it lacks
            raise UserError(
                f"--categories {name}", f"not in {data_path.absolute()}", f"choose from: {', '.join(present)}"
            )
    return list(dict.fromkeys(names)) if names else present or [category_folder(data_path, "*").name]


def list_textures(
    folder: Path, notes: DatasetNotes | None = None, data_path: Path | None = None, own: Iterable[Path] = ()
) -> list[Path]:
    """Texture images at any depth below `folder`, sorted.

    Args:
        data_path: folder of the dataset, whose categories must not be among the textures; None: not checked.
        own: other folders of which the same is true.

    Raises:
        UserError: there are none, or some are images or masks of a category.
    """
    files = images_below(folder, notes)
    if not files:
        is_there = "is a file, not a folder" if folder.is_file() else "contains no texture images"
        problem = is_there if folder.exists() else "does not exist"
        raise UserError(
            "data.anomaly_source_path",
            f"{folder} {problem}",
            "set it to a folder of images, or download DTD (600 MB):\n"
            'python -c "from data_loader import fetch_dtd; fetch_dtd()"   (by hand: put the images folder of '
            "DTD r1.0.1 at dtd/images)",
        )
    categories = {path.resolve() for path in own}
    if data_path:
        categories |= {Path(as_on_disk(f"{data_path}/{name}")).resolve() for name in list_categories(data_path)}
    place = f" in {data_path}" if data_path and not own else ""
    for parent in dict.fromkeys((file.resolve() if file.is_symlink() else file).parent for file in files):
        if categories & {parent.resolve(), *parent.resolve().parents}:
            raise UserError(
                f"data.anomaly_source_path = {folder}",
                f"{parent} belongs to the dataset{place}: its images and masks would be taken as textures",
                "set it to a folder of other images, outside of the dataset",
            )
    return files
