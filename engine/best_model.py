"""The choice of the best checkpoint and technique, from the results of evaluate_checkpoints.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from config import Config
from engine import evaluate_all
from reporting import best_models, seeds, summary
from reporting.best_models import FIX_SUMMARY
from reporting.paper import categories
from reporting.result import read_record
from runtime.errors import UserError
from runtime.names import composed


def run(config: Config, names: Sequence[str] | None) -> Path:
    """Compare the results in summary.csv, write and print the report, and return its path.

    Where the run has several seeds, mean and standard deviation over them are compared as well.

    Args:
        names: categories to compare; None: all in summary.csv.

    Raises:
        UserError: no summary, a damaged one, or one without results that exist on disk.
    """
    names = names and [composed(name) for name in names]
    results = Path(config.data.results_path) / config.data.run_name
    folders = seeds.folders_of(results.parent, config.data.run_name)
    if len(folders) > 1:
        path = results / "seeds.md"
        print(seeds.write_report(path, config.data.run_name, folders, names))
        if not (results / "summary.csv").is_file():
            return path
    rows, failed = best_models.read_summary(results, names)
    unlisted = [key for key in best_models.unlisted(results, rows, failed) if not names or key[0] in names]
    if unlisted or _is_mixed(results, rows):
        current, stale = evaluate_all.current_results(results, config, {})
        for key in unlisted:
            if any(found.key == key[:3] and key[3] in found.kinds for found in current):
                path = results / "summary.csv"
                raise UserError(
                    path, f"the row of {', '.join(key)} is missing, although its metrics.json exists", FIX_SUMMARY
                )
        rows = [row for row in rows if (row["category"], row["checkpoint"], row["technique"]) not in stale]
        if not rows:
            raise UserError(results / "summary.csv", "all of its results are out of date", FIX_SUMMARY)
        summary.print_stale(stale)
    text, report = best_models.write_report(config, results, rows, failed)
    print(text)
    if (results / categories.MARKDOWN).is_file():
        print(f"table over categories: {results / categories.MARKDOWN}, {results / categories.LATEX}")
    return report


def _is_mixed(results: Path, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether rows of a category come from different images or settings."""
    conditions: dict[str, set[str]] = {}
    for category, name, technique in {(row["category"], row["checkpoint"], row["technique"]) for row in rows}:
        if record := read_record(results / category / f"checkpoint_{name}" / technique):
            conditions.setdefault(category, set()).add(record.made_from.conditions())
    return any(len(found) > 1 for found in conditions.values())
