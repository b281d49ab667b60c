"""Which mask belongs to which picture of a category. docs/data.md says what is understood."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data import image_io
from data.folders import DatasetNotes, images_below, normalize_name, subfolders
from runtime.errors import UserError

# Names of folders, as `plain` has them.
MASK_FOLDERS = {"groundtruth", "gt", "mask", "masks", "label", "labels", "annotation", "annotations", "segmentation"}
# <stem>_mask, and the other ways in which people tell a mask from its picture; a number behind it where there are more.
_WORDS = "masks?|gt|ground[_-]?truth|labels?|seg|segmentation|annotation"
MASK_ENDING = re.compile(rf"^(.+?)[ ._-]+(?:{_WORDS})([ ._-]?\d+)?$", re.IGNORECASE)
MASK_BEGINNING = re.compile(r"^masks?[ ._-]+(.+)$", re.IGNORECASE)


def name_in(path: Path, category: Path) -> str:
    return path.relative_to(category).as_posix()


def and_n_more(items: Sequence) -> str:
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def _mask_stems(stem: str) -> Iterator[str]:
    """What a picture's stem may be, by that of its mask, the likeliest first."""
    yield stem.casefold()
    for pattern in (MASK_ENDING, MASK_BEGINNING):
        if match := pattern.match(stem):
            yield match[1].casefold()


def split_images_and_masks(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Pictures, and masks that lie beside them: <stem>_mask beside <stem>, or in a folder named like masks."""
    stems = {(file.parent, file.stem.casefold()) for file in files}
    pictures, masks = [], []
    for file in files:
        own, *others = _mask_stems(file.stem)
        is_beside = any((file.parent, stem) in stems for stem in others)
        in_folder = normalize_name(file.parent.name) in MASK_FOLDERS
        in_folder = in_folder and any((file.parent.parent, stem) in stems for stem in (own, *others))
        (masks if is_beside or in_folder else pictures).append(file)
    return pictures, masks


def check_twins(pictures: Sequence[Path]) -> None:
    """UserError where one of two pictures that differ in the suffix only looks like the other's mask."""
    groups: dict[Path, list[Path]] = {}
    for path in pictures:
        groups.setdefault(path.with_suffix(""), []).append(path)
    for group in groups.values():
        masks = [path for path in group if _looks_like_a_mask(path)] if len(group) > 1 else []
        if 0 < len(masks) < len(group):
            mask, picture = masks[0], next(path for path in group if path not in masks)
            raise UserError(
                mask,
                f"looks like the mask of {picture.name}",
                f"move it to ground_truth/{mask.parent.name}/{mask.stem}_mask{mask.suffix}, or rename it if it is one",
            )


def _looks_like_a_mask(path: Path) -> bool:
    try:
        image_io.decode_mask_file(path)
    except UserError:
        return False
    return True


class Masks:
    """The masks of a category. Pictures are given theirs folder by folder; what is left then is told.

    Attributes:
        found: masks of each picture that has some.
    """

    def __init__(self, category: Path, notes: DatasetNotes):
        self.category, self.notes = category, notes
        root = self._root()
        self._folders = {path: images_below(path, notes) for path in subfolders(root)} if root else {}
        self._loose = [path for path in images_below(root) if path.parent == root] if root else []
        self._root_folder = root
        self._pictures: dict[
            Path, tuple[list[Path], Path | None]
        ] = {}  # of each defect's folder, with that of the masks
        self._left: list[Path] = []
        self.found: dict[Path, list[Path]] = {}

    def _root(self) -> Path | None:
        """ground_truth, or the one folder of a name that means the same."""
        if (self.category / "ground_truth").is_dir():
            return self.category / "ground_truth"
        found = [path for path in subfolders(self.category) if normalize_name(path.name) in MASK_FOLDERS]
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise UserError(self.category, f"{names} could both hold the masks", "name the right one ground_truth")
        if found:
            self.notes.assume(f"masks are taken from {found[0].name}/ (usual: ground_truth/)")
        return found[0] if found else None

    def of_nominal(self, folder: Path) -> list[Path]:
        """Masks in a folder named like one of nominal pictures; they are not asked for again."""
        own = [path for path in self._folders if normalize_name(path.name) == normalize_name(folder.name)]
        return [mask for path in own for mask in self._folders.pop(path)]

    def assign(self, folder: Path, pictures: list[Path], beside: list[Path]) -> None:
        """Give the pictures of a defect the masks that lie beside them, and those of the folder of its name."""
        taken = self._folder_of(folder)
        self._pictures[folder] = pictures, taken
        places = {mask: _place(mask, folder) for mask in beside}
        places |= {mask: mask.parent.relative_to(taken) for mask in self._folders.pop(taken)} if taken else {}
        self._give(places, pictures, folder)

    def _folder_of(self, folder: Path) -> Path | None:
        """The folder of a defect's masks: of its name, or of one that differs in case and signs only."""
        exact = [path for path in self._folders if path.name == folder.name]
        alike = exact or [path for path in self._folders if normalize_name(path.name) == normalize_name(folder.name)]
        if len(alike) > 1:
            raise UserError(
                f"{alike[0]} and {alike[1].name}",
                f"both could hold the masks of test/{folder.name}",
                f"name the right one {folder.name}",
            )
        if alike and not exact:
            name = name_in(alike[0], self.category)
            self.notes.assume(f"masks of test/{folder.name} are taken from {name}")
        return alike[0] if alike else None

    def assign_loose(self) -> None:
        """Give pictures that have none the masks that lie in no defect's folder: their name says whose they are."""
        without = {
            path: folder for folder, (all_, _) in self._pictures.items() for path in all_ if path not in self.found
        }
        by_stem: dict[str, list[Path]] = {}
        for path in without:
            by_stem.setdefault(path.stem.casefold(), []).append(path)
        for mask in self._loose:
            owners = next((by_stem[stem] for stem in _mask_stems(mask.stem) if stem in by_stem), [])
            if len(owners) > 1:
                raise UserError(
                    mask,
                    f"may be of {name_in(owners[0], self.category)} or {name_in(owners[1], self.category)}",
                    f"move it to {self._root_folder.name}/<defect>",
                )
            if owners:
                self.found.setdefault(owners[0], []).append(mask)
            else:
                self._left.append(mask)

    def check_complete(self) -> None:
        """Tell the masks that none took; UserError where pictures lack theirs."""
        missing = []
        for folder, (pictures, taken) in self._pictures.items():
            rest = [path for path in pictures if path not in self.found]
            if pictures and len(rest) == len(pictures):
                self._check_near_names(folder)
                check_twins(pictures)
                if own := [mask for mask in self._left if taken and taken in mask.parents]:
                    raise UserError(
                        f"{own[0]}{and_n_more(own)}",
                        f"named like no image of test/{folder.name}, which has no other masks",
                        f"rename each to its image's, as {pictures[0].stem}_mask{own[0].suffix}",
                    )
            elif rest:
                where = (taken or self.category / "ground_truth" / folder.name).relative_to(self.category)
                missing += [(path, (where / f"{path.stem}_mask.png").as_posix()) for path in rest]
        for mask in [*self._left, *(mask for masks in self._folders.values() for mask in masks)]:
            self.notes.skip("masks that no picture took", name_in(mask, self.category))
        if missing:
            names = ", ".join(str(self.category / name) for _, name in missing)
            if len(missing) == 1:
                raise UserError(missing[0][0], f"its mask {names} is missing, while others are there", "add it")
            raise UserError(
                f"{missing[0][0]}{and_n_more(missing)}",
                "without masks, while other images of this defect have some",
                f"add {names}",
            )

    def _check_near_names(self, folder: Path) -> None:
        """UserError where a defect has no masks, but a folder of nearly its name does."""
        names = {normalize_name(path.name): path for path, files in self._folders.items() if files}
        near = difflib.get_close_matches(normalize_name(folder.name), names, 1, 0.75)
        if near:
            path = names[near[0]]
            raise UserError(
                path, f"may be meant for test/{folder.name}, which has no masks", f"rename it to {folder.name}"
            )

    def _give(self, places: dict[Path, Path], pictures: Sequence[Path], folder: Path) -> None:
        """Give pictures their masks. places: of each mask, the folder of its picture within the defect's folder."""
        by_place: dict[tuple[Path, str], list[Path]] = {}
        by_stem: dict[str, list[Path]] = {}
        for path in pictures:
            for stem in {path.stem.casefold(), path.name.casefold()}:  # a mask may be named after the whole name
                by_place.setdefault((path.parent.relative_to(folder), stem), []).append(path)
                by_stem.setdefault(stem, []).append(path)
        found: dict[Path, list[tuple[bool, Path]]] = {}
        unclear: dict[Path, tuple[list[Path], bool]] = {}  # masks of pictures that differ in the suffix only
        for mask, place in places.items():
            stems = list(_mask_stems(mask.stem))
            owners = next((by_place[place, stem] for stem in stems if (place, stem) in by_place), None)
            is_plain = owners is not None and stems[0] in (owners[0].stem.casefold(), owners[0].name.casefold())
            # A folder of the picture's name holds a mask of each of its defects.
            owners = owners or by_place.get((place.parent, place.name.casefold()))
            owners = owners or next((by_stem[stem] for stem in stems if len(by_stem.get(stem, ())) == 1), None)
            if owners and len(owners) == 1:
                found.setdefault(owners[0], []).append((is_plain, mask))
            elif owners:
                unclear[mask] = owners, is_plain
            else:
                self._left.append(mask)
        for mask, (owners, is_plain) in unclear.items():
            rest = [path for path in owners if path not in found]
            found.setdefault(_owner(mask, rest or owners, list(places)), []).append((is_plain, mask))
        for path, own in found.items():
            named = [mask for is_plain, mask in own if not is_plain]  # 000_mask.png goes before 000.png
            self.found[path] = named or [mask for _, mask in own]
            self._left += [mask for _, mask in own if mask not in self.found[path]]


def _place(mask: Path, folder: Path) -> Path:
    """Folder of the picture of a mask that lies beside it, within the defect's folder."""
    place = mask.parent.relative_to(folder)
    return place.parent if normalize_name(place.name) in MASK_FOLDERS else place


def _owner(mask: Path, pictures: Sequence[Path], masks: Sequence[Path]) -> Path:
    """Whose a mask is, of pictures that differ in the suffix only."""
    if len(pictures) == 1:
        return pictures[0]
    same = [path for path in pictures if path.suffix.lower() == mask.suffix.lower()]
    alike = [other for other in masks if other.with_suffix("") == mask.with_suffix("")]
    if len(same) != 1 or len(alike) != len(pictures):
        names = " and ".join(path.name for path in pictures)
        raise UserError(mask, f"{names} could both be its image", "give the images different names")
    return same[0]
