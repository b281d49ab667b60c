"""Match the ground-truth masks of a category to its images. docs/data.md lists the accepted layouts and names."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from data.folders import DatasetNotes, images_below, normalize_name, subfolders
from data.mask_files import MASK_FOLDERS, check_twins, fold, mask_stems, subfolders_in
from runtime.errors import UserError
from runtime.names import composed


def name_in(path: Path, category: Path) -> str:
    """Path relative to the folder of the category, with forward slashes."""
    return path.relative_to(category).as_posix()


def and_n_more(items: Sequence) -> str:
    """Text to append to the name of the first item: ' (and 3 more)'; empty for a single item."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


class Masks:
    """The masks of a category, matched to the images of one test folder after the other.

    Call `assign` for each folder of anomalous images, then `assign_loose`, then `check_complete`.

    Args:
        category: folder of the category. notes: gets the assumptions, and the masks that match no image.

    Attributes:
        found: image -> its masks; images without a mask are missing.
    """

    def __init__(self, category: Path, notes: DatasetNotes):
        self.category, self.notes = category, notes
        root = self._root()
        self._folders = {path: images_below(path, notes) for path in subfolders(root)} if root else {}
        self._loose = [path for path in images_below(root) if path.parent == root] if root else []
        self._root_folder = root
        # folder of a defect in test/ -> its images, and the folder of its masks
        self._images: dict[Path, tuple[list[Path], Path | None]] = {}
        self._unmatched: list[Path] = []
        self.found: dict[Path, list[Path]] = {}

    def _root(self) -> Path | None:
        """The folder ground_truth, or the only folder whose name means the same; None if there is none."""
        usual = self.category / "ground_truth"
        folders = [path for path in subfolders(self.category) if normalize_name(path.name) in MASK_FOLDERS]
        if usual.is_dir():
            folders = [usual, *(path for path in folders if path != usual and images_below(path))]
        if len(folders) > 1:
            names = " and ".join(path.name for path in folders)
            fix = "keep the right one, as ground_truth, and move the others out of there"
            raise UserError(self.category, f"{names} could both hold the masks", fix)
        if folders and folders[0] != usual:
            self.notes.assume(f"masks are taken from {folders[0].name}/ (usual: ground_truth/)")
        return folders[0] if folders else None

    def of_nominal(self, folder: Path) -> list[Path]:
        """Masks in a folder of the same name as this folder of nominal images. They are removed from this object."""
        own = [path for path in self._folders if normalize_name(path.name) == normalize_name(folder.name)]
        return [mask for path in own for mask in self._folders.pop(path)]

    def assign(self, folder: Path, images: list[Path], beside: dict[Path, Path]) -> None:
        """Match the images of a defect to their masks.

        Args:
            folder: the defect's folder in test/. images: its images. beside: masks stored in the same folder -> folder
                of their images; those in the mask folder of the same name are added.
        """
        mask_folder = self._folder_of(folder)
        self._images[folder] = images, mask_folder
        subfolders_of = {mask: parent.relative_to(folder) for mask, parent in beside.items()}
        if mask_folder:
            subfolders_of |= {mask: mask.parent.relative_to(mask_folder) for mask in self._folders.pop(mask_folder)}
        self._match(subfolders_of, images, folder)

    def _folder_of(self, folder: Path) -> Path | None:
        """The mask folder of a defect: of the same name, or one that differs only in case and punctuation."""
        exact = [path for path in self._folders if composed(path.name) == composed(folder.name)]
        exact = [path for path in exact if path.name == folder.name] or exact
        alike = exact or [path for path in self._folders if normalize_name(path.name) == normalize_name(folder.name)]
        if len(alike) > 1:
            raise UserError(
                f"{alike[0]} and {alike[1].name}",
                f"both could hold the masks of test/{folder.name}",
                f"rename the right one to {folder.name}",
            )
        if alike and not exact:
            name = name_in(alike[0], self.category)
            self.notes.assume(f"masks of test/{folder.name} are taken from {name}")
        return alike[0] if alike else None

    def assign_loose(self) -> None:
        """Match the masks directly in ground_truth/ by name to images that have no mask yet."""
        by_stem: dict[str, list[Path]] = {}
        for images, _ in self._images.values():
            for path in images:
                if path not in self.found:
                    by_stem.setdefault(fold(path.stem), []).append(path)
        for mask in self._loose:
            owners = next((by_stem[stem] for stem in mask_stems(mask.stem) if stem in by_stem), [])
            if len(owners) > 1:
                raise UserError(
                    mask,
                    f"matches {name_in(owners[0], self.category)} and {name_in(owners[1], self.category)}",
                    f"move it to {mask.parent.name}/<defect>",
                )
            if owners:
                self.found.setdefault(owners[0], []).append(mask)
            else:
                self._unmatched.append(mask)

    def _name_like(self, known: Path, stem: str) -> Path:
        """Where the mask of an image would be, from that of another one in its folder."""
        mask = Path(self.found[known][0])
        if mask.parent.name == known.stem:  # a folder of masks for each image
            return mask.parent.with_name(stem) / mask.name
        return mask.with_name(f"{stem}{mask.name.removeprefix(known.stem)}")

    def check_complete(self) -> None:
        """Note the masks that match no image; UserError if a defect has masks, but not for all of its images."""
        missing = []
        for folder, (images, mask_folder) in self._images.items():
            without = [path for path in images if path not in self.found]
            if images and len(without) == len(images):
                self._check_near_names(folder)
                check_twins(images)
                if own := [mask for mask in self._unmatched if mask_folder and mask_folder in mask.parents]:
                    raise UserError(
                        f"{own[0]}{and_n_more(own)}",
                        f"matches no image of test/{folder.name}, which has no other masks",
                        f"name each mask after its image, for example {images[0].stem}_mask{own[0].suffix}",
                    )
            elif without:
                known = next(path for path in images if path in self.found)
                missing += [(path, self._name_like(known, path.stem)) for path in without]
        for mask in [*self._unmatched, *(mask for masks in self._folders.values() for mask in masks)]:
            self.notes.skip("masks that match no image", name_in(mask, self.category))
        if missing:
            names = ", ".join(str(name) for _, name in missing)
            if len(missing) == 1:
                raise UserError(
                    missing[0][0],
                    f"its mask {names} is missing, while other images of this defect have masks",
                    "add it",
                )
            raise UserError(
                f"{missing[0][0]}{and_n_more(missing)}",
                "has no mask, while other images of this defect have masks",
                f"add {names}",
            )

    def _check_near_names(self, folder: Path) -> None:
        """UserError if a defect has no masks, but there is a mask folder with a similar name."""
        names = {normalize_name(path.name): path for path, files in self._folders.items() if files}
        similar = difflib.get_close_matches(normalize_name(folder.name), names, 1, 0.75)
        if similar:
            path = names[similar[0]]
            raise UserError(
                path, f"may be meant for test/{folder.name}, which has no masks", f"rename it to {folder.name}"
            )

    def _match(self, subfolders_of: dict[Path, Path], images: Sequence[Path], folder: Path) -> None:
        """Match masks and images of one defect by subfolder and name; fill `found` and `_unmatched`.

        Args:
            subfolders_of: mask -> subfolder, relative to `folder`, in which its image is expected.
            folder: the defect's folder in test/.
        """
        by_subfolder: dict[tuple[Path, str], list[Path]] = {}
        by_stem: dict[str, list[Path]] = {}
        for path in images:
            for stem in {fold(path.stem), fold(path.name)}:  # a mask's name may include the image's suffix
                by_subfolder.setdefault((Path(*subfolders_in(folder, path)), stem), []).append(path)
                by_stem.setdefault(stem, []).append(path)
        matched: dict[Path, list[tuple[bool, Path]]] = {}
        ambiguous: dict[Path, tuple[list[Path], bool]] = {}  # masks of images whose names differ only in the suffix
        for mask, subfolder in subfolders_of.items():
            stems, subfolder = list(mask_stems(mask.stem)), Path(composed(str(subfolder)))
            owners = next((by_subfolder[subfolder, stem] for stem in stems if (subfolder, stem) in by_subfolder), None)
            has_image_name = owners is not None and stems[0] in (fold(owners[0].stem), fold(owners[0].name))
            # A folder named after an image contains one mask for each of its defects.
            owners = owners or by_subfolder.get((subfolder.parent, fold(subfolder.name)))
            owners = owners or next((by_stem[stem] for stem in stems if len(by_stem.get(stem, ())) == 1), None)
            if owners and len(owners) == 1:
                matched.setdefault(owners[0], []).append((has_image_name, mask))
            elif owners:
                ambiguous[mask] = owners, has_image_name
            else:
                self._unmatched.append(mask)
        for mask, (owners, has_image_name) in ambiguous.items():
            without = [path for path in owners if path not in matched]
            owner = _owner(mask, without or owners, list(subfolders_of))
            matched.setdefault(owner, []).append((has_image_name, mask))
        for path, own in matched.items():
            # 000_mask.png takes precedence over a mask named like its image, 000.png.
            preferred = [mask for has_image_name, mask in own if not has_image_name]
            self.found[path] = preferred or [mask for _, mask in own]
            self._unmatched += [mask for _, mask in own if mask not in self.found[path]]


def _owner(mask: Path, images: Sequence[Path], masks: Sequence[Path]) -> Path:
    """The image of a mask, among images whose names differ only in the suffix; UserError if it is ambiguous."""
    if len(images) == 1:
        return images[0]
    same_suffix = [path for path in images if path.suffix.lower() == mask.suffix.lower()]
    same_stem = [other for other in masks if other.with_suffix("") == mask.with_suffix("")]
    if len(same_suffix) != 1 or len(same_stem) != len(images):
        names = " and ".join(path.name for path in images)
        raise UserError(mask, f"{names} could both be its image", "give the images different names")
    return same_suffix[0]
