"""Whether the best results differ significantly from the next, by scores of the same images; their warnings."""

import csv
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import comparison
from evaluation.comparison import HEADLINE
from runtime.csv_file import read_csv
from runtime.json_file import read_json


def _read_scores(folder: Path) -> dict[str, tuple[int, float]] | None:
    """Image path -> label and score, of a folder of results; None where they cannot be read."""
    try:
        found = {row["path"]: (int(row["label"]), float(row["score"])) for row in read_csv(folder / "scores.csv")}
        is_sound = {label for label, _ in found.values()} == {0, 1} and all(math.isfinite(s) for _, s in found.values())
        return found if is_sound else None
    except (OSError, KeyError, ValueError, TypeError, csv.Error):
        return None


def _paired(one: Path, other: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Labels and both scores of the images of two folders of results; None where the images are not the same."""
    first, second = _read_scores(one), _read_scores(other)
    if not first or not second or first.keys() != second.keys():
        return None
    labels = np.array([label for label, _ in first.values()])
    return labels, np.array([s for _, s in first.values()]), np.array([second[path][1] for path in first])


def next_overall(results: Path, best: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint that follows the best in mean rank of image AUROC, and whether the two differ significantly."""
    if not best["headline"]:
        return None
    ranks, chosen = best["overall"][HEADLINE]["mean_ranks"], best["headline"]["checkpoint"]
    others = [name for name in ranks if name != chosen]
    if not others:
        return None
    follower = min(others, key=lambda name: (ranks[name], comparison.training_order(name)))
    folders = [results / category for category in best["headline"]["categories"]]
    pairs = [
        _paired(*(folder / f"checkpoint_{name}" / comparison.PLAIN for name in (chosen, follower)))
        for folder in folders
    ]
    known = [pair for pair in pairs if pair is not None]
    if len(known) < len(pairs):
        return None
    return {"checkpoint": follower, **comparison.difference(known)}


def next_of_category(results: Path, rows: list[dict[str, Any]], category: str) -> dict[str, Any] | None:
    """Best and next combination of a category in image AUROC, and whether the two differ significantly."""
    values = {
        (row["checkpoint"], row["technique"]): row[HEADLINE]
        for row in rows
        if row["category"] == category and row[HEADLINE] is not None
    }
    order = sorted(values, key=lambda key: (-values[key], comparison.training_order(key[0]), key[1]))
    lower = [key for key in order if values[key] < values[order[0]]]
    if not lower:
        return None
    both = [order[0], lower[0]]
    pair = _paired(*(results / category / f"checkpoint_{name}" / technique for name, technique in both))
    if pair is None:
        return None
    names = [{"checkpoint": name, "technique": technique} for name, technique in both]
    return {"best": names[0], "next": names[1], **comparison.difference([pair])}


def warnings_of(results: Path, headline: dict[str, Any] | None) -> dict[str, str]:
    """Category -> the warning in its results at the best checkpoint."""
    warnings: dict[str, str] = {}
    if not headline:
        return warnings
    for category in headline["categories"]:
        folder = results / category / f"checkpoint_{headline['checkpoint']}" / comparison.PLAIN
        for path in sorted(folder.glob("*/metrics.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                warnings[category] = read_json(path)["notes"]["masks_not_found"]
    return warnings
