"""A category with the nominal images that --learn has added to a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.folders import DatasetNotes, images_below
from data.layouts.category import ListedCategory, name_below
from data.layouts.tree import TreeCategory
from data.mvtec import TestSample

FEEDBACK = "feedback"  # folder of a run
TRAINING, HELD_OUT = "training", "held_out"  # its subfolders


@dataclass(frozen=True)
class ExtendedCategory:
    """The files of a dataset's category, and those of the folder `added`, which belongs to a run.

    Everything that is not about nominal images is as in the dataset.
    """

    own: TreeCategory | ListedCategory
    added: Path

    def is_added(self, file: Path) -> bool:
        """Whether an image is none of the dataset."""
        return file.is_relative_to(self.added)

    def nominal(self, notes: DatasetNotes | None = None) -> list[Path]:
        """Nominal images to train on, those of the dataset first."""
        return self.own.nominal(notes) + sorted(images_below(self.added / TRAINING))

    def validation(self, notes: DatasetNotes | None = None) -> list[Path]:
        """Nominal images to hold out, those of the dataset first."""
        return self.own.validation(notes) + sorted(images_below(self.added / HELD_OUT))

    def test(self, notes: DatasetNotes | None = None) -> list[TestSample]:
        """Test images of the dataset."""
        return self.own.test(notes)

    def key(self, file: Path) -> str:
        """Name of a nominal image in a checkpoint, never that of another."""
        return self._name(file) if self.is_added(file) else self.own.key(file)

    def name(self, file: Path) -> str:
        """Name of an image in results and messages."""
        return self._name(file) if self.is_added(file) else self.own.name(file)

    def split_name(self, file: Path) -> str:
        """What `data.split_by` is matched with."""
        return self._name(file) if self.is_added(file) else self.own.split_name(file)

    def _name(self, file: Path) -> str:
        return name_below(file, self.added.parent)

    @property
    def layout(self) -> str:
        """Form of the dataset."""
        return self.own.layout

    @property
    def folder(self) -> Path:
        """The folder that names of the dataset's images are relative to."""
        return self.own.folder

    @property
    def groups(self) -> Mapping[Path, str]:
        """Image -> group, of images that no split may separate."""
        return self.own.groups

    @property
    def has_test(self) -> bool:
        """Whether there is anything to test on."""
        return self.own.has_test

    @property
    def has_split(self) -> bool:
        """Whether the dataset itself says which nominal images are for the test."""
        return self.own.has_split
