"""Datasets in a table: a CSV file with columns path, split, label, mask, group, of which only path is needed."""

import csv
import errno
import re
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from data.folders import NOMINAL_NAMES, DatasetNotes, normalize_name
from data.layouts.category import GOOD, Listing, check_nominal_masks, check_there, name_below, sample
from data.mvtec import VALIDATION_FOLDERS, TestSample
from runtime.errors import UserError
from runtime.json_file import PIPE
from runtime.names import composed

COLUMNS = ("path", "split", "label", "mask", "group", "category")
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(VALIDATION_FOLDERS, "validation")
# Labels as `normalize_name` returns them. Every other one is the name of a kind of defect.
NOMINAL_LABELS = NOMINAL_NAMES | {"0", "false", "no"}
ANOMALOUS_LABELS = {
    "1",
    "true",
    "yes",
    "anomaly",
    "anomalous",
    "abnormal",
    "defect",
    "defective",
    "bad",
    "ko",
    "ng",
    "nok",
}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, as names of columns in lower case -> text without spaces around it.

    Cells are separated by commas, semicolons or tabs, whichever the first line has.

    Raises:
        UserError: it is not there or cannot be read, two columns have one name, or a row has more cells than there are
            columns.
    """
    try:
        if path.is_fifo():
            raise OSError(errno.EINVAL, PIPE)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path, f"cannot be read ({error})", "name a CSV file in UTF-8") from error
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    try:
        lines = list(csv.reader(text.splitlines(), delimiter=delimiter))
    except csv.Error as error:
        raise UserError(path, f"not a CSV file ({error})", "save the table as CSV") from error
    columns = [name.strip().casefold() for name in lines[0]] if lines else []
    if twice := next((name for name, count in Counter(columns).items() if name and count > 1), None):
        raise UserError(path, f"has two columns {twice}", "rename or remove one")
    for number, cells in enumerate(lines[1:], 2):
        if len(cells) > len(columns):
            raise UserError(
                path, f"row {number} has {len(cells)} cells, but there are {len(columns)} columns", "correct the row"
            )
    rows = [dict(zip(columns, (cell.strip() for cell in cells), strict=False)) for cells in lines[1:]]
    return [row for row in rows if any(row.values())]


def _check_spelling(path: Path, columns: Sequence[str]) -> None:
    """UserError for a column that is nearly one of COLUMNS, which is not there: it would be left out without a word."""
    for column in columns:
        if column not in COLUMNS and (known := get_close_matches(column, set(COLUMNS) - set(columns), 1, 0.8)):
            raise UserError(
                path, f"has a column {column}, but none {known[0]}", f"rename it to {known[0]}, or remove it"
            )


def require_columns(path: Path, rows: Sequence[dict[str, str]], needed: Sequence[str]) -> None:
    """UserError with the columns that a table lacks."""
    present = rows[0].keys() if rows else ()
    if missing := [name for name in needed if name not in present]:
        if not rows:
            raise UserError(path, "has no rows", "add rows")
        named = f"{'column' if len(missing) == 1 else 'columns'} {', '.join(missing)}"
        raise UserError(path, f"has no {named} (it has {', '.join(present)})", "add what is missing")


def categories(data_path: Path) -> list[str]:
    """Stems (composed) of the tables of images in a folder."""
    if not data_path.is_dir():
        return []
    found = [path for path in data_path.glob("*.csv") if path.is_file() and not path.name.startswith(".")]
    return [composed(path.stem) for path in found if _is_of_images(path)]


def _is_of_images(path: Path) -> bool:
    """Whether the first line has a column path, or split and another one of a table of images."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as stream:
            head = stream.readline()
    except OSError:
        return False
    columns = {cell.strip().strip('"').casefold() for cell in re.split("[,;\t]", head)}
    return "path" in columns or ("split" in columns and len(columns & set(COLUMNS)) > 1)


def read(data_path: Path, category: str) -> Listing:
    """The images of `<category>.csv` in a folder."""
    file = next(path for path in data_path.glob("*.csv") if composed(path.stem) == category)
    return listing_of(file, read_rows(file))


def categories_of(file: Path) -> list[str]:
    """Categories of a table: the values of its column category, or its stem."""
    rows = read_rows(file)
    return sorted({composed(row["category"]) for row in rows if row.get("category")}) or [composed(file.stem)]


def read_category(file: Path, category: str) -> Listing:
    """The images of one category of a table."""
    rows = read_rows(file)
    if any(row.get("category") for row in rows):
        rows = [row for row in rows if composed(row.get("category", "")) == category]
    return listing_of(file, rows)


def listing_of(file: Path, rows: Sequence[dict[str, str]]) -> Listing:
    """The images that rows of a table name, with paths relative to it.

    Raises:
        UserError: a file is missing, an image is named twice, a label or split is missing or contradicts a mask, or a
            group is on both sides of the split.
    """
    require_columns(file, rows, ["path"])
    _check_spelling(file, list(rows[0]))
    folder, notes = file.parent, DatasetNotes()
    paths = [folder / row["path"].replace("\\", "/") for row in rows]
    check_there(paths, file)
    if twice := next((path for path, count in Counter(paths).items() if count > 1), None):
        raise UserError(file, f"names {name_below(twice, folder)} twice", "remove one of the rows")
    has_split = "split" in rows[0]
    nominal: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    test: list[TestSample] = []
    sides: dict[str, dict[str, Path]] = {}  # group -> side of the split -> an image
    groups: dict[Path, str] = {}
    for row, path in zip(rows, paths, strict=True):
        name = name_below(path, folder)
        split = _split(file, row, name) if has_split else "train"
        label = _label(file, row, name, split)
        mask = [folder / row["mask"].replace("\\", "/")] if row.get("mask") else []
        if row.get("group"):
            groups[path] = row["group"]
        one = sample(folder, path, label, mask)
        if has_split and one.has_anomaly and split != "test":
            notes.skip(f"anomalous images of split {split}", name)
            continue
        if row.get("group") and has_split:
            sides.setdefault(row["group"], {})[split] = path
        if one.has_anomaly or split == "test":
            test.append(one)
        else:
            nominal[split].append(path)
            check_nominal_masks([one])
    for group, images in sides.items():
        if len(images) > 1:
            raise UserError(
                file, f"group {group} is in the splits {' and '.join(images)}", "keep its images in one split"
            )
    check_there([mask for one in test for mask in one.masks], file, "masks")
    return Listing(folder, nominal["train"], check_nominal_masks(test), nominal["validation"], groups, has_split, notes)


def _split(file: Path, row: dict[str, str], name: str) -> str:
    split = SPLITS.get(normalize_name(row.get("split", "")))
    if split is None:
        raise UserError(file, f"split of {name} is {row.get('split', '')!r}", "set it to train, val or test")
    return split


def _label(file: Path, row: dict[str, str], name: str, split: str) -> str:
    """GOOD, or the kind of defect. Without a label, a mask says that an image is anomalous."""
    label = normalize_name(row.get("label", ""))
    if label in NOMINAL_LABELS:
        return GOOD
    if label in ANOMALOUS_LABELS:
        return "anomalous"
    if label:
        return row["label"].replace("/", "_")
    if "label" not in row and row.get("mask"):
        return "anomalous"
    if "label" not in row and ("mask" in row or split != "test"):
        return GOOD
    raise UserError(file, f"nothing says whether {name} is nominal or anomalous", "add its label, for example good")
