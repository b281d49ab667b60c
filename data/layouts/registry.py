"""Which form a dataset has, and its categories. Everything that needs a category's files asks here."""

from collections.abc import Sequence
from pathlib import Path

from config import Config
from data import folders
from data.folders import DatasetNotes
from data.layouts.tree import TreeCategory
from runtime.names import as_on_disk


def open_category(config: Config) -> TreeCategory:
    """The configured category; UserError if it is not there."""
    return TreeCategory(folders.category_folder(Path(config.data.data_path), config.data.category))


def nominal_if_there(config: Config) -> list[Path]:
    """Nominal images of the configured category; none where the category is not there."""
    folder = Path(as_on_disk(f"{config.data.data_path}/{config.data.category}"))
    return TreeCategory(folder).nominal() if folders.nominal_folders(folder / "train") else []


def chosen_categories(config: Config, names: Sequence[str] | None) -> list[str]:
    """The named categories without duplicates, or all that exist; UserError if one does not exist, or none exists."""
    return folders.chosen_categories(Path(config.data.data_path), names)


def list_textures(config: Config, notes: DatasetNotes | None = None) -> list[Path]:
    """Texture images, sorted; UserError if there are none, or some belong to the dataset."""
    return folders.list_textures(Path(config.data.anomaly_source_path), notes, Path(config.data.data_path))
