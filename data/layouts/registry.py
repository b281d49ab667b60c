"""Which form a dataset has, and its categories. Everything that needs a category's files asks here."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from config import Config
from data import folders
from data.folders import DatasetNotes, subfolders
from data.layouts import dagm, kolektor, table, tree, visa
from data.layouts.category import ListedCategory, Listing, hold_out_test
from data.layouts.tree import TreeCategory
from data.mvtec import TestSample
from runtime.errors import UserError
from runtime.names import as_on_disk, composed

Category = TreeCategory | ListedCategory
TREES = ("mvtec", "mvtec-ad-2", "mvtec-3d", "btad")


class Form(NamedTuple):
    """A form of datasets below data.data_path.

    Attributes:
        categories: data.data_path -> names of the categories that have this form, or nearly have it.
        read: data.data_path, category -> its files; UserError where something of the form is missing.
    """

    categories: Callable[[Path], Sequence[str]]
    read: Callable[[Path, str], Listing]


FORMS = {
    "visa": Form(visa.categories, visa.read),
    "kolektor": Form(kolektor.categories, kolektor.read),
    "dagm": Form(dagm.categories, dagm.read),
    "table": Form(table.categories, table.read),
}
# Forms that one of these settings asks for.
KEYS = {"table": "data.table", "coco": "data.coco", "folders": "data.nominal_folder"}


def open_category(config: Config) -> Category:
    """The configured category.

    Raises:
        UserError: it is not there, has two forms, or nearly has one.
    """
    layout, data_path, name = _layout(config), Path(config.data.data_path), config.data.category
    if layout in TREES:
        return tree.open_tree(layout, Path(as_on_disk(f"{data_path}/{name}")))
    listing = FORMS[layout].read(data_path, name)
    return ListedCategory(layout, hold_out_test(listing, config.data.test_split, config.data.test_seed))


def _layout(config: Config) -> str:
    """The form of the configured category."""
    layout, data_path, name = config.data.layout, Path(config.data.data_path), config.data.category
    folder = Path(as_on_disk(f"{data_path}/{name}"))
    fitting = _fitting(data_path, name)
    if layout == "auto" and len(fitting) > 1:
        raise UserError(
            f"data.layout = auto: {name}",
            f"in {data_path.absolute()} it has the forms {' and '.join(fitting)}",
            "set data.layout to the right one",
        )
    if layout == "auto" and fitting:
        return fitting[0]
    if layout in fitting or (layout == "mvtec" and folders.nominal_folders(folder / "train")):
        return layout
    present = list_categories(config)
    if layout in ("auto", "mvtec") and set(present) <= set(folders.list_categories(data_path)):
        folders.category_folder(data_path, name)  # a UserError that says what is wrong with the tree
    if fitting:
        raise UserError(f"data.layout = {layout}", f"{name} has the form {fitting[0]}", "set it to this, or to auto")
    raise UserError(
        f"data.category = {name}",
        f"not in {data_path.absolute()}" + ("" if layout == "auto" else f" in the form {layout}"),
        f"choose one of: {', '.join(present)}" if present else "set data.data_path, or data.layout (docs/data.md)",
    )


def _fitting(data_path: Path, name: str) -> list[str]:
    """The forms that a category has, or nearly has."""
    found = tree.forms_of(Path(as_on_disk(f"{data_path}/{name}")))
    return found + [layout for layout, form in FORMS.items() if name in form.categories(data_path)]


def nominal_if_there(config: Config) -> list[Path]:
    """Nominal images of the configured category; none where the category is not there."""
    if len(_fitting(Path(config.data.data_path), config.data.category)) != 1:
        return []
    return open_category(config).nominal()


def list_categories(config: Config) -> list[str]:
    """Names (composed) of the categories of the dataset, sorted; UserError if two are the same."""
    layout, data_path = config.data.layout, Path(config.data.data_path)
    names = set(folders.list_categories(data_path)) if layout in ("auto", "mvtec") else set()
    if layout in ("auto", *TREES):
        wanted = set(TREES) if layout == "auto" else {layout}
        names |= {composed(path.name) for path in subfolders(data_path) if wanted & set(tree.forms_of(path))}
    for other, form in FORMS.items():
        # A table beside folders of categories can be about anything; it is a category where it is asked for by name.
        if layout == other or (layout == "auto" and not (other == "table" and names)):
            names |= set(form.categories(data_path))
    return sorted(names)


def chosen_categories(config: Config, names: Sequence[str] | None) -> list[str]:
    """The named categories without duplicates, or all that exist; UserError if one does not exist, or none exists."""
    present, data_path = list_categories(config), Path(config.data.data_path)
    chosen = list(dict.fromkeys(composed(name) for name in names or ())) or present
    tables = table.categories(data_path) if config.data.layout == "auto" else []
    missing = [name for name in chosen if name not in (*present, *tables)]
    if chosen and not missing:
        return chosen
    if config.data.layout in ("auto", "mvtec") and set(present) <= set(folders.list_categories(data_path)):
        return folders.chosen_categories(data_path, names)  # a UserError that says what is wrong with the tree
    if not missing:
        raise UserError("data.data_path", f"no category in {data_path.absolute()}", "set it to the dataset's folder")
    raise UserError(f"--categories {missing[0]}", "not in the dataset", f"choose from: {', '.join(present)}")


def summary(category: Category, config: Config, trained: int, held_out: int, test: Sequence[TestSample]) -> str:
    """One line with the form of the dataset and how many images it has for what."""
    anomalous = [one for one in test if one.has_anomaly]
    source = "recognised" if config.data.layout == "auto" else "data.layout"
    return (
        f"layout: {category.layout} ({source}): {trained} images to train on, {held_out} held out; test: "
        f"{len(test) - len(anomalous)} nominal, {len(anomalous)} anomalous, "
        f"{sum(bool(one.masks) for one in anomalous)} with masks"
    )


def list_textures(config: Config, notes: DatasetNotes | None = None) -> list[Path]:
    """Texture images, sorted; UserError if there are none, or some belong to the dataset."""
    return folders.list_textures(Path(config.data.anomaly_source_path), notes, Path(config.data.data_path))
