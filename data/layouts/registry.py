"""Which form a dataset has, and its categories. Everything that needs a category's files asks here."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from config import Config
from config_types import folder_name
from data import folders
from data.folders import DatasetNotes, subfolders
from data.layouts import coco, dagm, kolektor, real_iad, table, tree, two_folders, visa
from data.layouts.category import ListedCategory, Listing, hold_out_test
from data.layouts.extended import FEEDBACK, ExtendedCategory
from data.layouts.tree import TreeCategory
from data.mvtec import TestSample
from runtime.errors import UserError
from runtime.names import as_on_disk, composed

Category = TreeCategory | ListedCategory | ExtendedCategory
IMAGES_IN = ("train", "test", "validation", "ground_truth")  # folders of a category
MOST_LOOKED_AT = 100  # folders, for a message
TREES = ("mvtec", "mvtec-ad-2", "mvtec-3d", "btad")


class Form(NamedTuple):
    """A form of datasets below data.data_path. One of the last two says which categories have it, or nearly have it.

    Attributes:
        read: data.data_path, category -> its files; UserError where something of the form is missing.
        fits: a category's folder -> whether it has the form. categories: data.data_path -> names of the categories.
    """

    read: Callable[[Path, str], Listing]
    fits: Callable[[Path], bool] | None = None
    categories: Callable[[Path], Sequence[str]] = lambda data_path: ()


FORMS = {
    "visa": Form(visa.read, fits=visa.fits),
    "kolektor": Form(kolektor.read, fits=kolektor.fits),
    "dagm": Form(dagm.read, fits=dagm.fits),
    "real-iad": Form(real_iad.read, categories=real_iad.categories),
    "table": Form(table.read, categories=table.categories),
}
# Forms that a setting asks for -> keys.
KEYS = {
    "table": ("data.table",),
    "coco": ("data.coco",),
    "folders": (two_folders.NOMINAL_KEY, two_folders.ANOMALOUS_KEY),
}


def open_category(config: Config) -> Category:
    """The configured category, with the nominal images that --learn has added to the configured run.

    Raises:
        UserError: it is not there, has two forms, or nearly has one; or what is written would lie among its images.
    """
    _check_outputs(config)
    added = config.run_folder / FEEDBACK
    return ExtendedCategory(_open(config), added) if added.is_dir() else _open(config)


def _check_outputs(config: Config) -> None:
    """UserError where images that are written would be images or textures of the next run."""
    category = Path(as_on_disk(f"{config.data.data_path}/{config.data.category}"))
    read = [*(category / name for name in IMAGES_IN), Path(config.data.anomaly_source_path)]
    for key in ("data.checkpoint_path", "data.results_path"):
        place = Path(os.path.realpath(config[key]))
        if folder := next((one for one in read if place.is_relative_to(os.path.realpath(one))), None):
            raise UserError(f"{key} = {config[key]}", f"lies in {folder}, where images are read", "set it to another")


def _open(config: Config) -> TreeCategory | ListedCategory:
    data_path, name = Path(config.data.data_path), config.data.category
    if layout := asked_for(config):
        listing = _read_asked_for(config, layout)
        return ListedCategory(layout, hold_out_test(listing, config.data.test_split, config.data.test_seed))
    layout = _layout(config)
    if layout in TREES:
        return tree.open_tree(layout, Path(as_on_disk(f"{data_path}/{name}")))
    listing = FORMS[layout].read(data_path, name)
    return ListedCategory(layout, hold_out_test(listing, config.data.test_split, config.data.test_seed))


def asked_for(config: Config) -> str | None:
    """The form that data.table, data.coco or data.nominal_folder asks for; UserError where settings contradict it."""
    given = {form: key for form, keys in KEYS.items() for key in reversed(keys) if config[key] is not None}
    layout = config.data.layout
    if len(given) > 1:
        raise UserError(
            " and ".join(given.values()), "say two things about where the images are", "set only one to a value"
        )
    form = next(iter(given), None)
    if form and layout not in ("auto", form):
        raise UserError(f"data.layout = {layout}", f"but {given[form]} is set", "set one of them back")
    if not form and layout in ("coco", "folders"):
        raise UserError(f"data.layout = {layout}", f"needs {' and '.join(KEYS[layout])}", "set them")
    return form


def _read_asked_for(config: Config, layout: str) -> Listing:
    data = config.data
    if layout == "folders":
        return two_folders.read(data.nominal_folder, data.anomalous_folder)
    file = data.table or data.coco or ""
    if not Path(file).is_file():
        raise UserError(f"data.{layout} = {file}", "no such file", f"set data.{layout} to a file that is there")
    present = list_categories(config)
    if data.category not in present:
        raise UserError(
            f"data.category = {data.category}",
            f"not in {file}",
            f"choose one of: {', '.join(present)}",
        )
    if data.table:
        return table.read_category(Path(data.table), data.category)
    return coco.read(Path(str(data.coco)), Path(data.data_path))


def _layout(config: Config) -> str:
    """The form of the configured category."""
    layout, data_path, name = config.data.layout, Path(config.data.data_path), config.data.category
    folder = Path(as_on_disk(f"{data_path}/{name}"))
    if layout == "mvtec":
        folders.category_folder(data_path, name)
        return layout
    if layout != "auto" and (layout in TREES or FORMS[layout].fits) and folder.is_dir():
        return layout  # reading it says what is missing
    fitting = _fitting(data_path, name)
    if layout in fitting or (layout == "auto" and len(fitting) == 1):
        return fitting[0] if layout == "auto" else layout
    if layout == "auto" and fitting:
        raise UserError(
            f"data.layout = auto: {name}",
            f"in {data_path.absolute()} it has the forms {' and '.join(fitting)}",
            "set data.layout to the right one",
        )
    present = list_categories(config)
    if name not in present and (whole := _forms_of(data_path.resolve())) and whole != ["mvtec"]:
        parent, own = data_path.resolve().parent, data_path.resolve().name
        raise UserError(
            "data.data_path",
            f"{data_path} is a category itself, in the form {whole[0]}",
            f"set data.data_path={parent} and data.category={own}",
        )
    _check_is_no_parent(config, present)
    if layout == "auto" and set(present) <= set(folders.list_categories(data_path)):
        folders.category_folder(data_path, name)  # a UserError that says what is wrong with the tree
    raise UserError(
        f"data.category = {name}",
        f"not in {data_path.absolute()}"
        + (f" in the form {layout}" if layout != "auto" else " in a form that is known" if folder.is_dir() else ""),
        f"choose one of: {', '.join(present)}" if present else "set data.data_path, or data.layout (docs/data.md)",
    )


def _check_is_no_parent(config: Config, present: Sequence[str]) -> None:
    """UserError where data.data_path has no categories, but a folder in it has. present: the categories."""
    data_path = Path(config.data.data_path)
    if present or _forms_of(data_path.resolve()):  # a category itself has messages of its own
        return
    for folder in subfolders(data_path)[:MOST_LOOKED_AT]:
        try:
            below = list_categories(config.with_values({"data.data_path": folder.as_posix()}))
        except (UserError, OSError):  # no dataset, a wrong one, or one that may not be read
            continue
        if below:
            problem = f"no category in {data_path.absolute()}, but in the folder {folder.name}: {', '.join(below[:3])}"
            raise UserError("data.data_path", problem, f"set data.data_path={folder}")


def _forms_of(folder: Path) -> list[str]:
    """The forms that a category's folder has, or nearly has."""
    return tree.forms_of(folder) + [layout for layout, form in FORMS.items() if form.fits and form.fits(folder)]


def _fitting(data_path: Path, name: str) -> list[str]:
    """The forms that a category has, or nearly has."""
    found = _forms_of(Path(as_on_disk(f"{data_path}/{name}")))
    return found + [layout for layout, form in FORMS.items() if name in form.categories(data_path)]


def nominal_if_there(config: Config) -> list[Path]:
    """Nominal images of the configured category; none where the category is not there."""
    try:
        category = open_category(config)
    except UserError:
        return []
    return category.nominal()


def list_categories(config: Config) -> list[str]:
    """Names (composed) of the categories of the dataset, sorted.

    Raises:
        UserError: two are the same, or one is no name of a folder, so that its files would be written elsewhere.
    """
    names = _names(config)
    if wrong := [name for name in names if not _is_name(name, config)]:
        source = config.data.table or config.data.coco or config.data.data_path
        raise UserError(source, f"has a category called {wrong[0]!r}", "give it the name of a folder")
    return names


def _is_name(name: str, config: Config) -> bool:
    """Whether a category can be called so; a folder that is there has a name that this system can have."""
    if not asked_for(config):
        return Path(name).name == name and name != ".."
    with suppress(ValueError):
        return folder_name(name) == name
    return False


def _names(config: Config) -> list[str]:
    layout, data_path = config.data.layout, Path(config.data.data_path)
    if asked_for(config):
        if config.data.table:
            return table.categories_of(Path(config.data.table))
        return [composed(Path(config.data.coco).stem) if config.data.coco else config.data.category]
    names = set(folders.list_categories(data_path)) if layout in ("auto", "mvtec") else set()
    if layout != "mvtec":
        wanted = {*TREES, *FORMS} if layout == "auto" else {layout}
        names |= {composed(path.name) for path in subfolders(data_path) if wanted & set(_forms_of(path))}
    for other, form in FORMS.items():
        # A table beside folders of categories can be about anything; it is a category where it is asked for by name.
        if layout == other or (layout == "auto" and not (other == "table" and names)):
            names |= set(form.categories(data_path))
    return sorted(names)


def chosen_categories(config: Config, names: Sequence[str] | None) -> list[str]:
    """The named categories without duplicates, or all that exist; UserError if one does not exist, or none exists."""
    present, data_path = list_categories(config), Path(config.data.data_path)
    chosen = list(dict.fromkeys(composed(name) for name in names or ())) or present
    form = asked_for(config)
    tables = table.categories(data_path) if config.data.layout == "auto" and not form else []
    missing = [name for name in chosen if name not in (*present, *tables)]
    if chosen and not missing:
        return chosen
    if not form:
        _check_is_no_parent(config, present)
    if not form and config.data.layout in ("auto", "mvtec") and set(present) <= set(folders.list_categories(data_path)):
        return folders.chosen_categories(data_path, names)  # a UserError that says what is wrong with the tree
    if not missing:
        raise UserError("data.data_path", f"no category in {data_path.absolute()}", "set it to the dataset's folder")
    raise UserError(f"--categories {missing[0]}", "not in the dataset", f"choose from: {', '.join(present)}")


def summary(category: Category, config: Config, trained: int, held_out: int, test: Sequence[TestSample] | None) -> str:
    """One line with the form of the dataset and how many images it has for what. test: None where it has a mistake."""
    source = "recognised" if config.data.layout == "auto" else "data.layout"
    line = f"layout: {category.layout} ({source}): {trained} images to train on, {held_out} held out; test: "
    if test is None:
        return line + "not counted, for the mistake below"
    anomalous = [one for one in test if one.has_anomaly]
    masks = sum(bool(one.masks) for one in anomalous)
    return line + f"{len(test) - len(anomalous)} nominal, {len(anomalous)} anomalous, {masks} with masks"


def list_textures(config: Config, category: Category, notes: DatasetNotes | None = None) -> list[Path]:
    """Texture images, sorted; UserError if there are none, or some belong to the dataset."""
    own: set[Path] = set()
    category = category.own if isinstance(category, ExtendedCategory) else category
    if isinstance(category, ListedCategory):
        listing = category.listing
        files = [*listing.nominal, *listing.validation]
        files += [file for one in listing.test for file in (one.path, *one.masks) if isinstance(file, Path)]
        own = {file.parent for file in files}
        if not asked_for(config):
            categories = [Path(as_on_disk(f"{config.data.data_path}/{name}")) for name in list_categories(config)]
            own |= {folder for folder in categories if folder.is_dir()}
    return folders.list_textures(Path(config.data.anomaly_source_path), notes, Path(config.data.data_path), own)


def folders_of(config: Config) -> list[Path]:
    """Folders that a machine must see to read the dataset."""
    data = config.data
    others = [Path(file).parent for file in (data.table, data.coco) if file]
    others += [Path(folder) for folder in (data.nominal_folder, data.anomalous_folder) if folder]
    return others or [Path(data.data_path)]
