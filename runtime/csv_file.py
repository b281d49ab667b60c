"""CSV files that spreadsheets can open safely, and that give back what was written."""

import csv
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.files import atomic_write, naming, sync
from runtime.json_file import PIPE

FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")  # a spreadsheet runs cells that begin so; the last is our escape


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically. rows: the first row has the names of the columns; see `append_csv`."""
    with atomic_write(path) as beside:
        append_csv(beside, rows)


def append_csv(path: Path, rows: Iterable[Sequence[Any]], durable: bool = False) -> None:
    """Append rows to a CSV file; all of them, or, where that fails, none. durable: see `atomic_write`.

    A text that a spreadsheet would run as a formula gets an apostrophe in front, which `read_csv` takes off.
    """
    with naming(path):
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows(map(_escaped, row) for row in rows)
            if durable:
                sync(path)
        except BaseException:
            with suppress(OSError):
                os.truncate(path, size)
            raise


def read_csv(path: Path, errors: str = "strict") -> Iterator[dict[str, str]]:
    """Rows of a CSV file as column -> text, as they were given to `write_csv`; without the cells that a row lacks.

    errors: what to do with bytes that are not UTF-8, see `open`.

    Raises:
        OSError, UnicodeDecodeError, csv.Error: it cannot be read.
    """
    if path.is_fifo():
        raise OSError(errno.EINVAL, PIPE, str(path))
    with path.open(newline="", encoding="utf-8", errors=errors) as stream:
        lines = csv.reader(stream)
        columns = next(lines, [])
        for cells in lines:
            yield dict(zip(columns, map(unescaped, cells), strict=False))


def _escaped(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    with suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


def unescaped(cell: str) -> str:
    """The text of a cell that `append_csv` has written."""
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(FORMULA) else cell
