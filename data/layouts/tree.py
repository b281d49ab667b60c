"""Datasets in the form of MVTec AD: a folder for each category, with train/good, test and ground_truth."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data import mvtec
from data.folders import DatasetNotes
from data.mvtec import TestSample


@dataclass(frozen=True)
class TreeCategory:
    """A category in MVTec AD form. Its folders are walked when they are asked for: training needs no test images.

    Attributes:
        folder: the category's folder, which names are relative to.
        groups: image -> group, of images that no split may separate.
    """

    folder: Path
    groups: Mapping[Path, str] = field(default_factory=dict)

    def nominal(self, notes: DatasetNotes | None = None) -> list[Path]:
        """Nominal images to train on, sorted; see `mvtec.list_nominal`."""
        return mvtec.list_nominal(self.folder, notes)

    def validation(self, notes: DatasetNotes | None = None) -> list[Path]:
        """Nominal images that the dataset itself holds out, sorted; see `mvtec.list_validation`."""
        return mvtec.list_validation(self.folder, notes)

    def test(self, notes: DatasetNotes | None = None) -> list[TestSample]:
        """Test images with their masks; see `mvtec.list_test`."""
        return mvtec.list_test(self.folder, notes)

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
