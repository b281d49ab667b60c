"""The comparison of checkpoints and techniques: best_models.json, .md and .png, from summary.csv and the logs.

With it goes the table over categories at the best checkpoint, categories.md and .tex.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from config import Config
from evaluation import comparison
from evaluation.comparison import HEADLINE, TIE
from evaluation.metrics import METRIC_KEYS
from reporting import curves
from reporting.paper import categories
from reporting.significance import next_of_category, next_overall, warnings_of
from reporting.summary import is_possible
from reporting.tables import LABELS, cell
from runtime.csv_file import read_csv, unescaped
from runtime.errors import UserError
from runtime.files import atomic_write, write_text
from runtime.names import composed

HEAD = ("category", "checkpoint", "technique", "threshold")
FIX_SUMMARY = "run evaluate_checkpoints.py again, with the same --config and --set"


def write_report(
    config: Config, results: Path, rows: list[dict[str, Any]], failed: list[dict[str, str]]
) -> tuple[str, Path]:
    """Compare rows of the summary and write best_models.json, .md and .png, and the table over categories.

    Args:
        rows, failed: of `read_summary`.

    Returns:
        the report's first part, and its path.
    """
    best = {
        "run": config.data.run_name,
        "categories": comparison.best_of_categories(rows),
        "techniques": _techniques(rows),
        **comparison.overall(rows),
        "failed": failed,
    }
    names = dict.fromkeys(row["category"] for row in rows)
    logs = {name: Path(config.data.checkpoint_path) / name / config.data.run_name / "train_log.csv" for name in names}
    val_ap = {name: read_val_ap(log) for name, log in logs.items()}
    errors = {name: read_val_ap(log, "val_ap_se") for name, log in logs.items()}
    best["label_free"] = comparison.label_free(rows, val_ap, best["headline"], errors)
    best["next"] = next_overall(results, best)
    best["next_of_categories"] = {name: next_of_category(results, rows, name) for name in names}
    best["doubts"] = warnings_of(results, best["headline"])
    headline = best["headline"]
    table = categories.write_tables(results, rows, headline["checkpoint"] if headline else None)
    write_text(results / "best_models.json", json.dumps(best, indent=2, allow_nan=False) + "\n")
    text = _render(best, table)
    write_text(results / "best_models.md", text)
    _draw(results / "best_models.png", rows, best)
    return text.partition("\n## ")[0], results / "best_models.md"


def _techniques(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Category -> techniques that it has results of."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        found.setdefault(row["category"], {})[row["technique"]] = None
    return {category: list(names) for category, names in found.items()}


def _draw(path: Path, rows: list[dict[str, Any]], best: dict[str, Any]) -> None:
    """Image AUROC and pixel AP over checkpoints."""
    lines = {
        label: comparison.plain_results(rows, metric)
        for label, metric in (("image AUROC", HEADLINE), ("pixel AP", TIE))
    }
    names = {name for line in lines.values() for values in line.values() for name in values}
    marks = {"best on the test set": best["headline"]["checkpoint"]} if best["headline"] else {}
    if best["label_free"]["overall"]:
        marks["chosen without labels"] = best["label_free"]["overall"]["checkpoint"]
    with atomic_write(path) as beside:
        order = sorted(names, key=comparison.training_order)
        curves.metric_over_checkpoints(beside, f"Run {best['run']}, no masking", lines, order, marks)


def read_summary(results: Path, categories: Sequence[str] | None) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows of summary.csv with numbers or None for metrics, and its failures; UserError where it is damaged."""
    path = results / "summary.csv"
    if not path.is_file():
        what = "is missing" if results.is_dir() else f"is missing (there is no folder {results})"
        raise UserError(path, what, "run evaluate_checkpoints.py first, with the same --config and --set")
    rows, failed, seen = [], [], set()
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            table = [list(map(unescaped, cells)) for cells in csv.reader(stream)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(path, f"damaged ({error})", FIX_SUMMARY) from error
    if not table or not set((*HEAD, *METRIC_KEYS, "error")) <= set(table[0]):
        raise UserError(path, "line 1 is damaged: columns are missing", FIX_SUMMARY)
    for number, cells in enumerate(table[1:], 2):
        row = dict(zip(table[0], cells, strict=False))
        key = tuple(composed(row.get(column, "")) for column in HEAD)
        if len(cells) != len(table[0]) or not key[0] or key in seen:
            raise UserError(path, f"line {number} is damaged or a duplicate", FIX_SUMMARY)
        seen.add(key)
        if categories and key[0] not in categories:
            continue
        if row["error"]:
            failed.append({column: row[column] for column in (*HEAD, "error")})
            continue
        try:
            values = {name: float(row[name]) if row[name] else None for name in METRIC_KEYS}
        except ValueError as error:
            raise UserError(path, f"line {number} is damaged ({error})", FIX_SUMMARY) from error
        if not all(key) or not all(value is None or is_possible(name, value) for name, value in values.items()):
            raise UserError(path, f"line {number} is damaged", FIX_SUMMARY)
        rows.append(dict(zip(HEAD, key, strict=True)) | values)
    there = {key[0] for key in seen}
    for name in categories or ():
        if name not in there:
            raise UserError(
                f"--categories {name}", f"no results in {path}", f"there are: {', '.join(sorted(there)) or 'none'}"
            )
    if not rows:
        raise UserError(path, "holds no results" + (", only failures" if failed else ""), FIX_SUMMARY)
    return rows, failed


def unlisted(
    results: Path, rows: list[dict[str, Any]], failed: list[dict[str, str]]
) -> list[tuple[str, str, str, str]]:
    """Category, checkpoint, technique and threshold of results on disk that have no row, and did not fail."""
    seen = {tuple(row[column] for column in HEAD) for row in (*rows, *failed)}
    keys = []
    for measured in sorted(results.glob("*/checkpoint_*/*/*/metrics.json")):
        category, name, technique, threshold = measured.parts[-5:-1]
        key = (composed(category), name.removeprefix("checkpoint_"), technique, threshold)
        if key not in seen and not any(key[:3] == other[:3] for other in seen if not other[3]):
            keys.append(key)
    return keys


def read_val_ap(log: Path, column: str = "val_ap") -> dict[str, float]:
    """Checkpoint -> val_ap, or another column, as far as the log has them."""
    if not log.is_file():
        return {}
    try:
        rows = list(read_csv(log))
        if column != "val_ap" and rows and column not in rows[0]:
            return {}  # of an earlier version
        values = {row["epoch"]: float(row[column]) for row in rows if row[column]}
        if not all(0 <= value <= 1 for value in values.values()):
            raise ValueError(f"{column} is not from 0 to 1")
        return values
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(log, f"damaged ({error})", "restore it, or move it away to do without val_ap") from error


def _render(best: dict[str, Any], table: list[str]) -> str:
    """best_models.md. table: lines of the table over categories."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"cell": cell, "label": _label, "reached": _reached}
    environment.tests["unmasked"] = lambda technique: technique.startswith("no_")
    return environment.get_template("best_models.md.jinja").render(best=best, table=table)


def _reached(combinations: list[dict[str, str]]) -> str:
    """The first combinations that reach a value, and how many more."""
    shown = [", ".join(one.values()) for one in combinations]
    return "; ".join(shown[:3]) + (f"; and {len(shown) - 3} more" if len(shown) > 3 else "")


def _label(metric: str) -> str:
    name, _, kind = metric.partition(" ")
    return LABELS[name].strip() + (f" at {kind.strip('()')}" if kind else "")
