"""feedback.csv: what people say about images, as the report saves it or as it is written by hand."""

import csv
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.mask_matching import and_n_more
from runtime.csv_file import unescaped
from runtime.errors import UserError
from runtime.json_file import PIPE
from runtime.provenance import file_digests

NOMINAL, ANOMALOUS, UNCLEAR = MARKS = ("nominal", "anomalous", "unclear")
VERDICTS = (NOMINAL, ANOMALOUS)
RANDOM = "random"  # in the column `sample`: chance has picked the image
COLUMNS = ("path", "verdict", "mark", "sample")  # the first and the third are needed


class MarkedImage(NamedTuple):
    """A row of feedback.csv.

    Attributes:
        path: of the image. digest: of its content.
        verdict: of the program, empty where the file does not say it. mark: of a person, empty without one.
        is_random: whether the image is of a random sample.
    """

    path: Path
    digest: str
    verdict: str
    mark: str
    is_random: bool


class _Row(NamedTuple):
    line: int
    path: Path
    verdict: str
    mark: str
    sample: str


def read(file: Path) -> list[MarkedImage]:
    """The rows of feedback.csv, each image once, in order.

    Columns are separated by commas, or by semicolons as some spreadsheets write them; others than COLUMNS are not read.
    Paths are relative to the file.

    Raises:
        UserError: with the line; an unknown word, a missing image, an image with two marks.
    """
    try:
        rows = list(_rows(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problem = error.strerror if isinstance(error, OSError) else "not a CSV file in UTF-8"
        raise UserError(f"--feedback {file}", problem, "name a feedback.csv, as the report saves it") from error
    if missing := [row for row in rows if not _is_file(row.path)]:
        problem = f"no file {str(missing[0].path)[:400]}{and_n_more(missing)}"
        raise UserError(_place(file, missing[0]), problem, "restore or remove it")
    found: dict[str, tuple[_Row, MarkedImage]] = {}  # by content
    for row, digest in zip(rows, file_digests([row.path for row in rows]), strict=True):
        image = MarkedImage(row.path, digest, row.verdict, row.mark, bool(row.sample))
        earlier, known = found.get(digest, (row, image))
        if known.mark and image.mark and known.mark != image.mark:
            problem = f"marked {image.mark}, but {known.mark} in line {earlier.line}, which is the same image"
            raise UserError(_place(file, row), problem, "remove one of the two")
        if digest not in found or not known.mark:
            found[digest] = row, image._replace(is_random=image.is_random or known.is_random)
        elif image.is_random:
            found[digest] = earlier, known._replace(is_random=True)
    return [image for _, image in found.values()]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _rows(file: Path) -> Iterator[_Row]:
    if file.is_fifo():
        raise OSError(errno.EINVAL, PIPE, str(file))
    with file.open(newline="", encoding="utf-8-sig") as stream:
        first = stream.readline()
        stream.seek(0)
        lines = csv.reader(stream, delimiter=";" if ";" in first and "," not in first else ",")
        columns = [cell.strip().lower() for cell in next(lines, [])]
        for needed in ("path", "mark"):
            if columns.count(needed) != 1:
                fix = f"begin it with a line of columns: {','.join(COLUMNS)}"
                raise UserError(f"{file}, line 1", f"has no column {needed}", fix)
        for cells in lines:
            if any(cell.strip() for cell in cells):
                yield _checked(file, lines.line_num, dict(zip(columns, cells, strict=False)))


def _checked(file: Path, line: int, cells: dict[str, str]) -> _Row:
    path, words = unescaped(cells["path"]), {}
    allowed = {"verdict": VERDICTS, "mark": MARKS, "sample": (RANDOM,)}
    for column, choices in allowed.items():
        words[column] = cells.get(column, "").strip().lower()
        if words[column] not in (*choices, ""):
            fix = f"write one of: {', '.join(choices)}; or nothing"
            raise UserError(f"{file}, line {line}", f"{column} = {cells[column]}", fix)
    if not path.strip():
        raise UserError(f"{file}, line {line}", "has no path", "name the image")
    return _Row(line, file.parent / path, **words)


def _place(file: Path, row: _Row) -> str:
    return f"{file}, line {row.line}"
