"""The folder of predictions: a row, an anomaly map and a panel for each image, written as they come."""

import csv
import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data import image_io
from reporting import panels, report
from runtime.csv_file import append_csv, read_csv, unescaped, write_csv
from runtime.errors import UserError
from runtime.files import atomic_write, run_lock, write_text
from runtime.json_file import read_json
from runtime.version import program_version

if TYPE_CHECKING:
    from evaluation.thresholds import Thresholds
    from inference.detector import Detection

ROWS, MADE_WITH, SUMMARY = "predictions.csv", "made_with.json", "summary.txt"
OURS = (ROWS, MADE_WITH, SUMMARY, "maps", "panels", report.VIEW, report.PAGE, ".lock", ".owner.json")
COLUMNS = (
    "path",
    "score",
    "relative",
    "threshold",
    "verdict",
    "area",  # share of the pixels that are above the pixel threshold
    "regions",
    "box",  # x0 y0 x1 y1 of the largest region
    "seconds",
    "error",
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # a small file may still fit
LONGEST_ROW = 65536  # bytes
MOST_SHOWN = 20_000  # images on the page


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder of predictions.

    Raises:
        UserError: it is not a folder, holds other files, or another process writes to it.
    """
    check_folder(folder)
    with run_lock(folder, "name another folder with --output"):
        yield


def check_folder(folder: Path, is_new: bool = False) -> None:
    """UserError where predictions cannot be written to a folder. is_new: there must be none yet."""
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "is a link to nothing"
        raise UserError(folder, problem, "name a folder with --output")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in OURS):
        raise UserError(folder, "holds other files", "name a new folder with --output")
    if is_new and any((folder / name).exists() for name in (ROWS, MADE_WITH)):
        fix = "continue them with --resume, or name a new folder with --output"
        raise UserError(folder, "holds earlier predictions", fix)


def _is_sound(row: dict[str, str]) -> bool:
    """Whether the numbers of a row that pages show are numbers."""
    return all(math.isfinite(float(cell)) for cell in (row["score"], row["area"] or "0"))


class Predictions:
    """Writes the folder image by image. The folder is `locked`.

    Args:
        thresholds: that the verdicts come from, None for none.
        made_with: what the predictions depend on, plain values that JSON can hold.
        wanted: panels, see metrics.visualisation; `errors` means images called anomalous.
        earlier: what to do with predictions that are there: refuse them, `continue` them, or, where they were made with
            something else, `keep` them under other names. An unfinished last row is removed.

    Raises:
        UserError: the folder holds predictions, or, to continue, those of other weights, settings or thresholds.
    """

    def __init__(
        self,
        folder: Path,
        thresholds: "Thresholds | None",
        made_with: dict[str, Any],
        wanted: int | str,
        earlier: Literal["refuse", "continue", "keep"],
    ):
        self.folder, self._thresholds, self._wanted, self._panels = folder, thresholds, wanted, 0
        self._check_earlier(made_with, earlier)
        content = made_with | {"program_version": program_version()}
        self._made_with = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_text(folder / MADE_WITH, self._made_with)
        if (folder / ROWS).is_file():
            self._cut_unfinished()
        else:
            write_csv(folder / ROWS, [COLUMNS])

    def _check_earlier(self, made_with: dict[str, Any], earlier: str) -> None:
        check_folder(self.folder, is_new=earlier == "refuse")
        if not any((self.folder / name).exists() for name in (ROWS, MADE_WITH)):
            return
        try:
            there = read_json(self.folder / MADE_WITH)
            there.pop("program_version", None)
        except (OSError, ValueError, AttributeError, TypeError):
            there = None
        if there == json.loads(json.dumps(made_with)):
            return
        if there and there.get("images_of") != made_with.get("images_of"):
            raise UserError(self.folder, "holds predictions of other images", "name a new folder with --output")
        if earlier == "continue":
            problem = "made with another checkpoint, other settings or thresholds"
            raise UserError(self.folder, problem, "leave out --resume, and name a new folder with --output")
        number = 1
        while any((self.folder / _numbered(name, number)).exists() for name in (ROWS, MADE_WITH)):
            number += 1
        for name in (ROWS, MADE_WITH):
            if (self.folder / name).exists():
                os.replace(self.folder / name, self.folder / _numbered(name, number))

    def _cut_unfinished(self) -> None:
        """Remove an unfinished last row. One that lacks only its end, as an editor leaves it, gets that."""
        path = self.folder / ROWS
        with path.open("r+b") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - LONGEST_ROW))
            last = stream.read().rpartition(b"\n")[2]
            if b"\r" in last.rstrip(b"\r"):
                raise UserError(path, "its lines end in another way", "save it as CSV of Windows or Unix")
            cells = next(csv.reader([last.decode("utf-8", "replace").rstrip("\r")]), [])
            # An unfinished row has fewer cells; the last one, the error, may be half of a text.
            if tuple(cells) == COLUMNS or (len(cells) == len(COLUMNS) and not cells[-1]):
                stream.write(b"\r\n"[last.endswith(b"\r") :])
            elif last:
                stream.truncate(end - len(last))

    def rows(self, pattern: str = ROWS) -> Iterator[dict[str, str]]:
        """All rows, column -> text, but for damaged ones.

        pattern: of the files; `predictions*.csv` has also those that were kept under other names.
        """
        for path in sorted(self.folder.glob(pattern)):
            with suppress(csv.Error):
                for row in read_csv(path, errors="replace"):
                    with suppress(ValueError):
                        if row.keys() >= set(COLUMNS) and (row["error"] or _is_sound(row)):
                            yield row

    def last_rows(self) -> list[list[str]]:
        """The last rows, as `write` was given them."""
        with (self.folder / ROWS).open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - LONGEST_ROW))
            lines = stream.read().decode("utf-8", "replace").splitlines()[1:]
        return [list(map(unescaped, cells)) for cells in csv.reader(lines) if len(cells) == len(COLUMNS)]

    def done(self) -> set[str]:
        """Paths of the images with a result; rows of failed images are removed, so that these are run again."""
        rows = [row for row in self.rows() if not row["error"]]
        write_csv(self.folder / ROWS, [COLUMNS, *([row[column] for column in COLUMNS] for row in rows)])
        self._panels = len(rows)
        return {row["path"] for row in rows}

    def write(self, rows: Sequence[Sequence[Any]], durable: bool = False) -> None:
        """Append rows; then their images count as done. Files that were removed or rotated away are begun anew.

        durable: see `atomic_write`.
        """
        path = self.folder / ROWS
        if not path.is_file():
            write_text(self.folder / MADE_WITH, self._made_with)
        is_new = not path.is_file() or not path.stat().st_size
        append_csv(path, [COLUMNS, *rows] if is_new else rows, durable)

    def draw(self, label: str, found: "Detection", has_panel: bool) -> None:
        """Write an image's anomaly map and panel. May be called from several threads.

        label: path of its files within the folder.

        Raises:
            UserError: they cannot be written, but other files can.
            OSError: there is no place to write to.
        """
        try:
            self._draw(label, found, has_panel)
        except OSError as error:
            if error.errno in FULL or not self._is_writable():
                raise
            fix = "make way for it, or rename the image"
            raise UserError(error.filename or label, error.strerror or error, fix) from error

    def _is_writable(self) -> bool:
        with suppress(OSError):
            write_text(self.folder / ".writable", "")
            (self.folder / ".writable").unlink()
            return True
        return False

    def _draw(self, label: str, found: "Detection", has_panel: bool) -> None:
        name = report.png_name(label)
        levels = np.rint(found.anomaly_map * 65535).astype(np.uint16)
        with atomic_write(self.folder / "maps" / name) as beside:
            image_io.write_image(beside, levels)
        if has_panel:
            with atomic_write(self.folder / "panels" / name) as beside:
                image_io.write_image(beside, self._panel(label, found))
        if self._wanted != "none":
            output, files = found.output, report.view_files(label, has_truth=False)
            report.write_view(self.folder, files, output.image, output.reconstruction, output.anomaly_map, None)

    def write_report(
        self, title: str, label_of: Callable[[str], str | None], thresholds: "dict[str, Thresholds]"
    ) -> None:
        """Write the page to look through the images; the newest MOST_SHOWN of them.

        Args:
            label_of: image path -> label of `draw`; None leaves the image out. thresholds: by kind.
        """
        rows: dict[str, dict[str, str]] = {}  # the newest of each path
        count = 0
        for row in self.rows():
            if label_of(row["path"]) is not None:
                count += rows.pop(row["path"], None) is None
                rows[row["path"]] = row
            if len(rows) > MOST_SHOWN:
                del rows[next(iter(rows))]
        shown = [self._shown(row, label_of(path) or "") for path, row in rows.items()]
        about = f"{len(shown)} images" if count == len(shown) else f"The newest {len(shown)} of {count} images"
        if failed := sum(one.score is None for one in shown):
            about += f", {failed} of them failed"
        opens_with = self._thresholds and self._thresholds.kind
        report.write_page(self.folder, report.Page(title, f"{about}.", shown, thresholds, opens_with))

    def _shown(self, row: dict[str, str], label: str) -> report.Shown:
        if row["error"]:
            return report.Shown(label, "", None, None, None, row["error"])
        files = report.view_files(label, has_truth=False) if self._wanted != "none" else {}
        area = float(row["area"]) if row["area"] else None
        path = Path(row["path"]).absolute().as_posix()
        return report.Shown(label, label.rpartition("/")[0], None, float(row["score"]), area, path=path, **files)

    def wants_panel(self, found: "Detection") -> bool:
        """Whether an image gets a panel; to be called once for each."""
        if isinstance(self._wanted, int):
            self._panels += 1
            return self._panels <= self._wanted
        return self._wanted == "all" or (self._wanted == "errors" and found.verdict == "anomalous")

    def _panel(self, label: str, found: "Detection") -> np.ndarray:
        verdict = f"score {found.score:.3f}"
        threshold: float | None = math.inf
        if self._thresholds:
            sign, threshold = ">" if found.verdict == "anomalous" else "<=", self._thresholds.pixel
            verdict = f"{found.verdict}: {verdict} {sign} {self._thresholds.image:.3f} ({self._thresholds.kind})"
        output = found.output
        arrays = (output.image, output.reconstruction, output.anomaly_map, None, output.anomaly_map > threshold)
        return panels.panel(panels.PanelContent(label, verdict, None, *arrays, shows_truth=False))


def _numbered(name: str, number: int) -> str:
    """`predictions.csv` -> `predictions_1.csv`."""
    return f"{Path(name).stem}_{number}{Path(name).suffix}"


def row(path: str, found: "Detection", thresholds: "Thresholds | None", seconds: float) -> list[Any]:
    """The row of an image with a result."""
    verdict: list[Any] = ["", "", "", "", "", ""]
    if thresholds and found.mask is not None:
        largest = found.regions[0] if found.regions else None
        box = f"{largest.x0} {largest.y0} {largest.x1} {largest.y1}" if largest else ""
        area = repr(round(float(found.mask.mean()), 6))
        verdict = [f"{found.relative:.4f}", repr(thresholds.image), found.verdict, area, len(found.regions), box]
    return [path, repr(found.score), *verdict, f"{seconds:.4f}", ""]


def row_of_error(path: str, error: str) -> list[Any]:
    """The row of an image that failed."""
    return [path, *[""] * (len(COLUMNS) - 2), error]
