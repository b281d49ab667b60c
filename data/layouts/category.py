"""A category's files in whatever form its dataset has them: what training, thresholds and detection ask for."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from data import image_io
from data.annotations import MaskSource
from data.folders import DatasetNotes, other_case
from data.mask_matching import and_n_more
from data.mvtec import TestSample
from runtime.errors import UserError
from runtime.names import composed

GOOD = "good"  # label of nominal images


@dataclass(frozen=True)
class Listing:
    """The files of a category, as a form lists them.

    Attributes:
        folder: names are relative to it.
        nominal: images to train on. validation: nominal images that the dataset holds out. test: test images.
        groups: image -> group, of images that no split may separate.
        has_split: whether the dataset says which nominal images are for the test. If not, `nominal` has all of them.
        notes: what was left out or assumed.
    """

    folder: Path
    nominal: list[Path]
    test: list[TestSample]
    validation: list[Path] = field(default_factory=list)
    groups: Mapping[Path, str] = field(default_factory=dict)
    has_split: bool = True
    notes: DatasetNotes = field(default_factory=DatasetNotes)

    def __post_init__(self) -> None:
        files = [*self.nominal, *self.validation, *(one.path for one in self.test)]
        if len(set(files)) < len(files):
            twice = next(path for path, count in Counter(files).items() if count > 1)
            raise UserError(twice, "is listed twice: an image has one place in the dataset", "remove one of the two")


@dataclass(frozen=True)
class ListedCategory:
    """A category whose files a form has listed."""

    layout: str
    listing: Listing

    @property
    def folder(self) -> Path:
        """The folder that names are relative to."""
        return self.listing.folder

    @property
    def groups(self) -> Mapping[Path, str]:
        """Image -> group, of images that no split may separate."""
        return self.listing.groups

    @property
    def has_test(self) -> bool:
        """Whether there is anything to test on."""
        return bool(self.listing.test)

    @property
    def has_split(self) -> bool:
        """Whether the dataset itself says which nominal images are for the test."""
        return self.listing.has_split

    def nominal(self, notes: DatasetNotes | None = None) -> list[Path]:
        """Nominal images to train on, sorted; UserError if there are none."""
        self._add_notes(notes)
        if not self.listing.nominal:
            raise UserError(self.folder, f"has no nominal images to train on (layout {self.layout})", "add some")
        return sorted(self.listing.nominal)

    def validation(self, notes: DatasetNotes | None = None) -> list[Path]:
        """Nominal images that the dataset itself holds out, sorted."""
        return sorted(self.listing.validation)

    def test(self, notes: DatasetNotes | None = None) -> list[TestSample]:
        """Test images with their masks, nominal ones first; UserError if there are none."""
        self._add_notes(notes)
        if not self.listing.test:
            raise UserError(
                self.folder, f"has no test images (layout {self.layout})", "add some, which detection needs"
            )
        return sorted(self.listing.test, key=lambda one: (one.has_anomaly, one.label, one.name))

    def name(self, file: Path) -> str:
        """Name of an image in results and messages."""
        return name_below(file, self.folder)

    def key(self, file: Path) -> str:
        """Name of a nominal image in a checkpoint, never that of another."""
        return self.name(file)

    def split_name(self, file: Path) -> str:
        """What `data.split_by` is matched with."""
        return self.name(file)

    def _add_notes(self, notes: DatasetNotes | None) -> None:
        if notes:
            for line in self.listing.notes.assumed:
                notes.assume(line)
            for kind, names in self.listing.notes.skipped.items():
                for name in names:
                    notes.skip(kind, name)


def name_below(file: Path, folder: Path) -> str:
    """Path (composed) relative to a folder, with forward slashes; `up` for each folder above that it passes."""
    try:
        parts = Path(os.path.relpath(file, folder)).parts
    except ValueError:  # on another drive
        parts = file.parts[1:]
    return composed("/".join("up" if part == os.pardir else part for part in parts))


def sample(folder: Path, file: Path, label: str, masks: Iterable[MaskSource] = ()) -> TestSample:
    """A test image. folder: of the listing. label: GOOD, or the kind of defect."""
    return TestSample(file, label != GOOD, name_below(file, folder), tuple(masks), label=label)


def check_there(files: Sequence[MaskSource], source: Path, what: str = "images") -> None:
    """UserError if files that `source` names are missing."""
    if missing := [file for file in files if isinstance(file, Path) and not file.is_file()]:
        raise UserError(
            source,
            f"names {what} that are missing: {missing[0]}{and_n_more(missing)}{other_case(missing[0])}",
            "add them, or correct the paths",
        )


def check_nominal_masks(samples: Sequence[TestSample]) -> list[TestSample]:
    """The samples, nominal ones without their masks; UserError if one of these marks a pixel."""
    for one in samples:
        for mask in one.masks if not one.has_anomaly else ():
            if image_io.decode_mask_file(mask).mask.any():
                raise UserError(mask, f"marks pixels of the nominal image {one.name}", "correct the label or the mask")
    return [one if one.has_anomaly else replace(one, masks=()) for one in samples]


def hold_out_test(listing: Listing, share: float, seed: int) -> Listing:
    """Hold out nominal images for the test, of a dataset that has no split.

    Groups are drawn by a hash of seed and name, so an added image changes little. Anomalous images of a group that is
    trained on are left out of the test; those of groups without nominal images, or without a group, stay in it.

    Args:
        share: of the nominal images, from 0 to below 1.

    Raises:
        UserError: nothing would be left to train on, or nothing would be held out.
    """
    if listing.has_split:
        return listing
    members: dict[str, list[Path]] = {}
    for file in sorted(listing.nominal):
        members.setdefault(_group(listing, file), []).append(file)
    count = round(share * len(listing.nominal))
    held_out: set[str] = set()
    drawn: list[Path] = []
    for group in sorted(members, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        if len(drawn) < count and len(held_out) < len(members) - 1:
            held_out.add(group)
            drawn += members[group]
    if listing.nominal and share and not held_out:
        raise UserError(
            f"data.test_split = {share}",
            f"holds out none of {len(listing.nominal)} nominal images in {len(members)} groups",
            "raise it, add images, or set it to 0",
        )
    trained, notes = members.keys() - held_out, listing.notes
    test = [one for one in listing.test if _group(listing, one.path) not in trained]
    for one in listing.test:
        if _group(listing, one.path) in trained:
            notes.skip("anomalous images of groups that are trained on", one.name)
    whole = f" ({len(held_out)} of {len(members)} groups)" if listing.groups else ""
    notes.assume(
        f"the dataset has no split: {len(drawn)} of {len(listing.nominal)} nominal images{whole} are held out for the "
        f"test (data.test_split = {share:g}, data.test_seed = {seed})"
    )
    return replace(
        listing,
        nominal=[file for group in trained for file in members[group]],
        test=test + [sample(listing.folder, file, GOOD) for file in drawn],
    )


def _group(listing: Listing, file: Path) -> str:
    """The group of an image, or its name where it has none."""
    group = listing.groups.get(file)
    return f"group {group}" if group is not None else f"image {name_below(file, listing.folder)}"
