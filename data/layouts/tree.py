"""Datasets in the form of MVTec AD and its relatives: a folder for each category, with train/good, test, ground_truth.

MVTec LOCO, with its folder of masks for each image, and MPDD have the form of MVTec AD itself. BTAD has train/ok,
test/ok, test/ko and ground_truth/ko; MVTec 3D-AD rgb, gt and xyz below each folder; MVTec AD 2 test_public for test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from data import mvtec
from data.folders import DatasetNotes, images_below, nominal_folders, other_case, subfolders
from data.layouts import loco
from data.mask_matching import Masks
from data.mvtec import TestSample
from runtime.errors import UserError

PUBLIC, PRIVATE = "test_public", "test_private"  # of MVTec AD 2; the second also begins other names


@dataclass(frozen=True)
class TreeCategory:
    """A category in MVTec AD form. Its folders are walked when they are asked for: training needs no test images.

    Attributes:
        layout: mvtec, or a form that differs from it in names of folders only.
        folder: the category's folder, which names are relative to.
        groups: image -> group, of images that no split may separate.
    """

    layout: str
    folder: Path
    groups: Mapping[Path, str] = field(default_factory=dict)
    has_split: ClassVar[bool] = True

    def nominal(self, notes: DatasetNotes | None = None) -> list[Path]:
        """Nominal images to train on, sorted; see `mvtec.list_nominal`."""
        return mvtec.list_nominal(self.folder, notes)

    def validation(self, notes: DatasetNotes | None = None) -> list[Path]:
        """Nominal images that the dataset itself holds out, sorted; see `mvtec.list_validation`."""
        return mvtec.list_validation(self.folder, notes)

    def test(self, notes: DatasetNotes | None = None) -> list[TestSample]:
        """Test images with their masks; see `mvtec.list_test`. With those of MVTec LOCO goes its configuration."""
        samples, config = mvtec.list_test(self.folder, notes), self.folder / loco.CONFIG
        if not config.is_file():
            return samples
        loco.read_config(config)  # a malformed one is an error here
        return [replace(one, defects_config=config) if one.masks else one for one in samples]

    @property
    def has_test(self) -> bool:
        """Whether there is anything to test on."""
        return (self.folder / "test").is_dir()

    def name(self, file: Path) -> str:
        """Name of an image in results and messages."""
        return mvtec.name_in(file, self.folder)

    def key(self, file: Path) -> str:
        """Name of a nominal image in a checkpoint, never that of another."""
        return mvtec.image_key(self.folder, file)

    def split_name(self, file: Path) -> str:
        """What `data.split_by` is matched with."""
        return mvtec.nominal_name(self.folder, file)


@dataclass(frozen=True)
class PublicTestCategory(TreeCategory):
    """A category of MVTec AD 2. Its private test sets have no labels; they are for --predict."""

    def test(self, notes: DatasetNotes | None = None) -> list[TestSample]:
        """Images of test_public/good and test_public/bad, with masks of test_public/ground_truth/bad."""
        public, notes = self.folder / PUBLIC, notes or DatasetNotes()
        for folder in subfolders(self.folder):
            if folder.name.startswith(PRIVATE):
                notes.assume(f"{folder.name} has no labels and is left out; it can be given to --predict")
        for folder in subfolders(public):
            if folder.name not in ("good", "bad", "ground_truth"):
                for path in images_below(folder):
                    notes.skip(f"images of {PUBLIC} outside of good and bad", self.name(path))
        masks, anomalous = Masks(public, notes), images_below(public / "bad", notes)
        masks.assign(public / "bad", anomalous, {})
        masks.check_complete()
        nominal = [TestSample(path, False, self.name(path)) for path in images_below(public / "good", notes)]
        return nominal + [
            TestSample(path, True, self.name(path), tuple(masks.found.get(path, ()))) for path in anomalous
        ]

    @property
    def has_test(self) -> bool:
        """Whether there is anything to test on."""
        return True


def forms_of(folder: Path) -> list[str]:
    """The forms that a category's folder has, or nearly has."""
    nominal, forms = nominal_folders(folder / "train"), []
    if any(path.name == PUBLIC or path.name.startswith(PRIVATE) for path in subfolders(folder)):
        forms.append("mvtec-ad-2")
    if any((path / "xyz").is_dir() for path in nominal):
        forms.append("mvtec-3d")
    has_other_parts = any(path.name not in ("ok", "ko") for path in subfolders(folder / "test"))
    has_ko = any((folder / name).is_dir() for name in ("test/ko", "ground_truth/ko"))
    if (folder / "train/ok").is_dir() and has_ko and not has_other_parts:
        forms.append("btad")
    if nominal and (not forms or (forms == ["mvtec-ad-2"] and (folder / "test").is_dir())):
        forms.append("mvtec")
    return forms


def open_tree(layout: str, folder: Path) -> TreeCategory:
    """A category in one of these forms; UserError where something of the form is missing."""
    needed: list[str] = []
    if layout == "mvtec-ad-2":
        needed = [
            "train/good",
            "validation/good",
            *(f"{PUBLIC}/{name}" for name in ("good", "bad", "ground_truth/bad")),
        ]
    if layout == "btad":
        needed = ["train/ok", "test/ok", "test/ko", "ground_truth/ko"]
    if layout == "mvtec-3d":
        needed = [f"{name}/good/rgb" for name in ("train", "test")]
        for part in ("validation", "test"):
            for path in subfolders(folder / part):
                needed += [f"{part}/{path.name}/{name}" for name in ("rgb", "gt")]
    require(layout, folder, needed)
    return (PublicTestCategory if layout == "mvtec-ad-2" else TreeCategory)(layout, folder)


def require(layout: str, folder: Path, needed: Sequence[str]) -> None:
    """UserError with the folders that a form needs and that are missing or empty."""
    if missing := [name for name in dict.fromkeys(needed) if not (folder / name).is_dir()]:
        raise UserError(
            folder,
            f"not in the form {layout}: it has no {', '.join(missing)}{other_case(folder / missing[0])}",
            "add what is missing, or set data.layout",
        )
    if empty := [name for name in dict.fromkeys(needed) if not any((folder / name).iterdir())]:
        raise UserError(
            folder, f"not in the form {layout}: nothing is in {', '.join(empty)}", "add the files, or set data.layout"
        )
