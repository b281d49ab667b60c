"""Metrics of each kind of defect: its images against all nominal ones, with 95 % intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation import bootstrap
from evaluation.image_metrics import image_metrics
from evaluation.metrics import SPRO
from reporting.measurements import Measurements
from reporting.tables import text_table, with_interval

FILE = "defects.csv"
KEYS = ("image_auroc", "pro", "recall", SPRO)  # recall at the image threshold
TITLES = ("image AUROC", "PRO", "recall at the threshold", "sPRO to 5 % false positives")
COLUMNS = ("defect", "images", *(column for key in KEYS for column in (key, f"{key}_low", f"{key}_high")))
MOST = 1000  # images of a kind, up to which the page has the interval of every recall

Row = dict[str, Any]  # column -> value, None where undefined


def over_all_thresholds(measured: Measurements) -> list[Row]:
    """A row of each kind of defect, sorted by name, without its recall.

    PRO is that of the kind's regions at the false-positive rates of the whole test set, so that the mean over kinds,
    weighted by their regions, is the PRO of all. Its interval is from draws of the kind's images alone. The same holds
    for sPRO, over the defects whose overlap saturates.
    """
    overlaps = {"pro": measured.region_overlaps(), SPRO: measured.saturated_overlaps()}
    kinds = np.array([sample.kind if sample.has_anomaly else "" for sample in measured.samples])
    rows = []
    for kind in sorted({sample.kind for sample in measured.samples if sample.has_anomaly}):
        own = (kinds == kind) & (measured.labels == 1)
        row = {"defect": kind, "images": int(own.sum())} | _auroc(measured, own)
        for key, (counts, found) in overlaps.items():
            row |= _overlap(key, counts[own], found[own])
        rows.append(row)
    return rows


def _auroc(measured: Measurements, own: np.ndarray) -> Row:
    together = own | (measured.labels == 0)
    labels, scores = measured.labels[together], measured.scores[together]
    value = image_metrics(labels, scores)["image_auroc"]
    if value is None:
        return _row("image_auroc", None)
    drawn = [
        bootstrap.resampled_image_metrics(labels, scores, weights)["image_auroc"]
        for weights in bootstrap.bootstrap_weights(labels)
    ]
    fewest = int(min(labels.sum(), (1 - labels).sum()))
    return _row("image_auroc", value, bootstrap.interval(np.concatenate(drawn), value, value, fewest))


def _overlap(key: str, counts: np.ndarray, found: np.ndarray) -> Row:
    """PRO or sPRO. counts: regions or defects of each image (N,). found: what they add, NaN where undefined."""
    found, counts = found[counts > 0], counts[counts > 0]
    if not len(counts) or not np.isfinite(found).all():
        return _row(key, None)
    value = float(found.sum() / counts.sum())
    weights = np.concatenate(list(bootstrap.bootstrap_weights(np.zeros(len(counts)))))
    return _row(key, value, bootstrap.interval(weights @ found / (weights @ counts), value, value, len(counts)))


def _row(key: str, value: float | None, ends: tuple[float | None, float | None] = (None, None)) -> Row:
    return {key: value, f"{key}_low": ends[0], f"{key}_high": ends[1]}


def at_threshold(rows: Sequence[Row], measured: Measurements, threshold: float | None) -> list[Row]:
    """The rows with recall: the share of a kind's images whose score is above the image threshold (Clopper-Pearson)."""
    completed = []
    for row in rows:
        recall = _row("recall", None)
        if threshold is not None:
            share = float((_scores(measured, row["defect"]) > threshold).mean())
            recall = _row("recall", share, bootstrap.share_interval(share, row["images"]))
        completed.append(row | recall)
    return completed


def _scores(measured: Measurements, kind: str) -> np.ndarray:
    return measured.scores[[one.has_anomaly and one.kind == kind for one in measured.samples]]


def cells(rows: Sequence[Row]) -> list[list[Any]]:
    """Rows of a CSV file, the first with the names of the columns; empty cells where undefined."""
    return [list(COLUMNS), *(["" if row[column] is None else row[column] for column in COLUMNS] for row in rows)]


def text(rows: Sequence[Row]) -> str:
    """The rows as text; empty where there are none."""
    if not rows:
        return ""
    keys = KEYS if _has_spro(rows) else KEYS[:-1]
    head = ["kind of defect", "images", *TITLES[: len(keys)]]
    body = [[row["defect"], row["images"], *(with_interval(row, key) for key in keys)] for row in rows]
    return text_table([head, *body])


def _has_spro(rows: Sequence[Row]) -> bool:
    return any(row[SPRO] is not None for row in rows)


def for_page(rows: Sequence[Row]) -> list[Row]:
    """For the report, which counts recall itself: with `recalls`, the interval for each number of images found.

    With sPRO where a kind has it.
    """
    shown, keys = [], ("image_auroc", "pro", *((SPRO,) if _has_spro(rows) else ()))
    for row in rows:
        count = row["images"]
        ends = [bootstrap.share_interval(one / count, count) for one in range(count + 1)] if count <= MOST else []
        recalls = [[round(end, 4) for end in pair] for pair in ends]
        texts = {key: "–" if row[key] is None else with_interval(row, key) for key in keys}
        shown.append({"defect": row["defect"], "images": count, "recalls": recalls} | texts)
    return shown
