"""The files of a batch of evaluations: summary.csv, defects.csv, inference_times.txt, index.html, figures."""

import csv
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from config import Metrics
from evaluation.metrics import METRIC_KEYS
from evaluation.thresholds import KINDS
from reporting import curves, report, tables
from reporting.paper import defects
from reporting.result import CURVES, Record
from runtime.csv_file import read_csv, write_csv
from runtime.files import atomic_write, write_text
from runtime.json_file import read_json


@dataclass
class Found:
    """Up-to-date results of one checkpoint and technique."""

    key: tuple[str, str, str]  # category, checkpoint, technique
    folder: Path
    record: Record
    kinds: dict[str, dict[str, Any]]  # threshold -> content of metrics.json


def is_possible(metric: str, value: Any) -> bool:
    """Whether a metric can have this value: counts and thresholds any number, the others one from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    is_any = metric.startswith(("true_", "false_")) or metric in ("image_threshold", "pixel_threshold")
    return is_any or 0 <= value <= 1


def read_kinds(folder: Path, record: Record) -> dict[str, dict[str, Any]]:
    """Threshold kind -> content of its metrics.json, for those in a folder that can be read."""
    found = {}
    for kind in KINDS:
        if kind in record.thresholds:
            with suppress(OSError, ValueError, KeyError, TypeError):
                content = read_json(folder / kind / "metrics.json")
                values = {key: content[key] for key in METRIC_KEYS}
                if all(value is None or is_possible(key, value) for key, value in values.items()):
                    found[kind] = values
    return found


def write_summary(
    results: Path, there: list[Found], failed: dict, planned: set[tuple[str, str, str]], has_nodes: bool = False
) -> int:
    """Write summary.csv: all results, and all failures; the number of failures.

    Args:
        failed: failures of this call; those of earlier calls stay in the file unless their key is in `planned`.
        planned: keys of this call. has_nodes: add columns with node and device.
    """
    path = results / "summary.csv"
    columns = ("category", "checkpoint", "technique", "threshold", *METRIC_KEYS, "error")
    columns += ("node", "device") if has_nodes else ()
    if path.is_file():
        with suppress(csv.Error):
            for row in read_csv(path, errors="replace"):
                key = tuple(row.get(column) or "" for column in columns[:3])
                if row.get("error") and key not in planned:
                    failed = {key: row["error"]} | failed
    rows = []
    for one in there:
        where = {key: one.record.content.get(key, "") for key in ("node", "device")}
        rows += [dict(zip(columns, (*one.key, kind), strict=False)) | one.kinds[kind] | where for kind in one.kinds]
    rows += [dict(zip(columns, key, strict=False)) | {"error": error} for key, error in failed.items()]
    cells = [["" if row.get(column) is None else row[column] for column in columns] for row in rows]
    write_csv(path, [columns, *cells])
    return len(failed)


def write_defects(path: Path, there: list[Found]) -> None:
    """Write the tables over kinds of defects of all results, one below the other."""
    head, rows = ("category", "checkpoint", "technique", "threshold"), []
    for one in there:
        for kind in one.kinds:
            with suppress(OSError, ValueError, csv.Error):
                for row in read_csv(one.folder / kind / defects.FILE):
                    rows.append([*one.key, kind, *(row.get(column, "") for column in defects.COLUMNS)])
    write_csv(path, [[*head, *defects.COLUMNS], *rows])


def write_times(path: Path, there: list[Found]) -> None:
    """Write how long inference took. Techniques that share a pass have the same time."""
    rows = [("category", "checkpoint", "technique", "images", "seconds", "images_per_second")]
    for one in there:
        images, seconds = one.record.content.get("images", 0), one.record.content.get("seconds", 0.0)
        rows.append((*one.key, str(images), f"{seconds:.3f}", f"{images / max(seconds, 1e-3):.2f}"))
    write_text(path, tables.text_table(rows) + "\n")


INDEXED = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pro", "accuracy", "image_f1_at_threshold", "hit_rate")


def write_index(results: Path, there: list[Found]) -> None:
    """Write the page of all results, each linked to its report."""
    keys = ("category", "checkpoint", "technique", "threshold")
    names = {key: tables.LABELS[key].strip() for key in INDEXED}
    rows = []
    for one in there:
        link = one.folder.relative_to(results) / report.PAGE
        for kind, values in one.kinds.items():
            shown = {names[key]: "" if values[key] is None else f"{values[key]:.4f}" for key in INDEXED}
            has_page = (results / link).is_file()
            rows.append(
                {
                    **dict(zip(keys, (*one.key, kind), strict=True)),
                    **shown,
                    "link": quote(link.as_posix()) if has_page else None,
                }
            )
    report.write_index(results, f"Results of run {results.name}", [*keys, *names.values()], rows)


def draw_batch(results: Path, there: list[Found], wanted: Metrics) -> dict[tuple[str], str]:
    """Draw the figures that compare categories and checkpoints, unless up to date; key -> error of a failed one.

    They show the kinds of curves that are wanted of each result; without any, none is drawn.
    """
    kinds = [kind for kind, is_wanted in curves.wanted_kinds(wanted).items() if is_wanted]
    if not kinds:
        return {}
    figures: dict[tuple[str, str, bool], dict[str, Path]] = {}
    for one in there:
        category, name, technique = one.key
        title = f"checkpoint {name}, {technique}: categories compared"
        figures.setdefault((f"checkpoint_{name}_{technique}", title, False), {})[category] = one.folder / CURVES
        title = f"{category}, {technique}: checkpoints compared"
        figures.setdefault((f"category_{category}_{technique}", title, True), {})[f"epoch {name}"] = one.folder / CURVES
    failed = {}
    for (figure, title, is_rising), lines in figures.items():
        path = results / "curves" / f"{figure}.png"
        try:
            newest = max(line.stat().st_mtime_ns for line in lines.values())
            # One that is newer than now was drawn before the clock was set back.
            if len(lines) < 2 or (path.is_file() and newest <= path.stat().st_mtime_ns <= time.time_ns()):
                continue
            lines_of = {}
            for label, line in lines.items():
                with np.load(line) as arrays:
                    lines_of[label] = dict(arrays)
            with atomic_write(path) as beside:
                curves.batch_curves(beside, title, lines_of, is_rising, kinds)
        except Exception as error:  # damaged archives fail in several ways
            failed[(f"figure {path}",)] = f"{error}; evaluate again with --force"
    return failed


def print_stale(stale: dict[tuple[str, str, str], str]) -> None:
    """Print how many results are out of date, why, and how to renew them."""
    if not stale:
        return
    print(f"results that are out of date and left out: {len(stale)}")
    reasons: dict[str, list[tuple[str, str, str]]] = {}
    for key, reason in stale.items():
        reasons.setdefault(reason, []).append(key)
    for reason, keys in reasons.items():
        print(f"  {', '.join(keys[0])}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "") + f": {reason}")
    names = " ".join(dict.fromkeys(key[0] for key in stale))
    print(f"to renew them: python evaluate_checkpoints.py --categories {names} (with the same --config and --set)")
