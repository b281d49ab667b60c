"""Comparison of results: rows with the keys `category`, `checkpoint`, `technique`, `threshold` and the metrics."""

import math
from typing import Any

import numpy as np
from scipy.stats import rankdata

from evaluation import bootstrap, metrics

HEADLINE, TIE = "image_auroc", "pixel_ap"
PLAIN = "no_masking"  # checkpoints are compared by results without masking and registration
METRICS = metrics.IMAGE_KEYS + metrics.PIXEL_KEYS + metrics.OVERLAP_KEYS
OF_PIXELS = metrics.PIXEL_KEYS + metrics.PIXEL_KEYS_AT_THRESHOLD + metrics.OVERLAP_KEYS
METRICS_AT_THRESHOLD = ("accuracy", "image_f1_at_threshold", *metrics.PIXEL_KEYS_AT_THRESHOLD)


def training_order(name: str) -> tuple:
    """Checkpoints in the order of training time."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def best_of_categories(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The best value of each category and metric, and every combination that reaches it; None where undefined.

    Pixel metrics are compared on the same pixels: where a category has results with masking, those without it are left
    out. Post-masking has their values outside of the regions.
    """
    best: dict[str, dict[str, Any]] = {}
    for category in dict.fromkeys(row["category"] for row in rows):
        best[category] = {}
        for metric in (*METRICS, *METRICS_AT_THRESHOLD):
            own = [row for row in rows if row["category"] == category and row[metric] is not None]
            masked = [row for row in own if not row["technique"].startswith("no_")]
            own = masked if masked and metric in OF_PIXELS else own
            value = max((row[metric] for row in own), default=None)
            where = ["checkpoint", "technique", *(["threshold"] if metric in METRICS_AT_THRESHOLD else [])]
            reached = {tuple(row[column] for column in where): None for row in own if row[metric] == value}
            combinations = [dict(zip(where, names, strict=True)) for names in reached]
            best[category][metric] = {"value": value, "reached_by": combinations}
    return best


def plain_results(rows: list[dict[str, Any]], metric: str, threshold: str | None = None) -> dict[str, dict[str, float]]:
    """Category -> checkpoint -> value without masking and registration. threshold: its kind, for metrics at one."""
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["technique"] == PLAIN and row[metric] is not None and threshold in (None, row["threshold"]):
            table.setdefault(row["category"], {})[row["checkpoint"]] = row[metric]
    return table


def mean_ranks(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """Checkpoint -> rank (1 is best, ties share one) averaged over categories, for checkpoints that all have."""
    if not table:
        return {}
    names = sorted(set.intersection(*map(set, table.values())), key=training_order)
    ranks = [rankdata([-values[name] for name in names]) for values in table.values()]
    return {name: float(sum(own[i] for own in ranks) / len(ranks)) for i, name in enumerate(names)}


def mean(table: dict[str, dict[str, float]], checkpoint: str) -> float | None:
    """Mean value of a checkpoint over the categories that have it; None where none has."""
    values = [values[checkpoint] for values in table.values() if checkpoint in values]
    return sum(values) / len(values) if values else None


def overall(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The checkpoint with the best mean rank over categories: of each metric, and of the headline."""
    tie = mean_ranks(plain_results(rows, TIE))
    best: dict[str, dict[str, Any]] = {}
    kinds = dict.fromkeys(row["threshold"] for row in rows)
    cases: list[tuple[str, str | None]] = [(metric, None) for metric in METRICS]
    cases += [(metric, kind) for metric in METRICS_AT_THRESHOLD for kind in kinds]
    for metric, kind in cases:
        table = plain_results(rows, metric, kind)
        ranks = mean_ranks(table)
        if not ranks:
            continue
        chosen = min(ranks, key=lambda name: (ranks[name], tie.get(name, float("inf")), training_order(name)))
        tied = [name for name in ranks if ranks[name] == ranks[chosen]]
        best[metric if kind is None else f"{metric} ({kind})"] = {
            "checkpoint": chosen,
            "tied": tied,
            "mean_rank": ranks[chosen],
            "mean": mean(table, chosen),
            "mean_ranks": ranks,
        }
    names = {row["checkpoint"] for row in rows if row["technique"] == PLAIN}
    headline = None
    if HEADLINE in best:
        chosen = best[HEADLINE]["checkpoint"]
        headline = {
            "checkpoint": chosen,
            "metric": HEADLINE,
            "categories": list(plain_results(rows, HEADLINE)),
            "mean_rank": best[HEADLINE]["mean_rank"],
            **{metric: mean(plain_results(rows, metric), chosen) for metric in (HEADLINE, TIE)},
        }
        names -= set(best[HEADLINE]["mean_ranks"])
    return {"headline": headline, "overall": best, "not_in_every_category": sorted(names, key=training_order)}


def difference(pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Image AUROC of one result less that of another, averaged over categories; 95 % interval by paired bootstrap.

    Both are computed on the same draws of images.

    Args:
        pairs: of each category the labels (N,), 0 or 1, and both results' scores (N,) of the same images.
    """
    total, exact = np.zeros(bootstrap.DRAWS), 0.0
    for seed, (labels, one, other) in enumerate(pairs):
        drawn = []
        for weights in bootstrap.bootstrap_weights(labels, seed=seed):
            first, second = (
                bootstrap.resampled_image_metrics(labels, scores, weights)[HEADLINE] for scores in (one, other)
            )
            drawn.append(first - second)
        ones = np.ones((1, len(labels)))
        first, second = (
            bootstrap.resampled_image_metrics(labels, scores, ones)[HEADLINE][0] for scores in (one, other)
        )
        total += np.concatenate(drawn) / len(pairs)
        exact += float(first - second) / len(pairs)
    low, high = np.quantile(total, [(1 - bootstrap.LEVEL) / 2, (1 + bootstrap.LEVEL) / 2])
    if low == high:  # the same in all draws, but other images could have come
        fewest = [min(np.sum(labels == label) for label in (0, 1)) for labels, *_ in pairs]
        variance = 2 * sum((count + 1) / ((count + 2) ** 2 * count) for count in fewest) / len(pairs) ** 2
        low, high = np.clip(exact + np.array([-1, 1]) * 1.96 * math.sqrt(variance), -1, 1)
    return {"difference": exact, "low": float(low), "high": float(high), "is_told_apart": bool(low > 0 or high < 0)}


def label_free(
    rows: list[dict[str, Any]],
    val_ap: dict[str, dict[str, float]],
    headline: dict[str, Any] | None,
    errors: dict[str, dict[str, float]] | None = None,
) -> dict[str, Any]:
    """The choice by val_ap: pixel AP on synthetic anomalies on held-out nominal images, without test labels.

    The earliest checkpoint within one standard error of the best (L. Breiman et al., 'Classification and regression
    trees', 1984); over categories, the earliest within it in each of them, else the one with the best mean rank. The
    choice on the test set is added for comparison.

    Args:
        rows: as above. val_ap: category -> checkpoint -> value. headline: of `overall`.
        errors: category -> checkpoint -> standard error of val_ap, where known.
    """
    errors, near = errors or {}, {}
    measured, table = plain_results(rows, HEADLINE), {}
    evaluated = {(row["category"], row["checkpoint"]) for row in rows}
    names = list(dict.fromkeys(row["category"] for row in rows))
    for category in names:
        values = val_ap.get(category, {})
        if own := {name: value for name, value in values.items() if (category, name) in evaluated}:
            table[category] = own
    categories = {}
    for category, values in table.items():
        best, there = min(values, key=lambda name: (-values[name], training_order(name))), measured.get(category, {})
        limit = values[best] - errors.get(category, {}).get(best, 0.0)
        near[category] = [name for name in values if values[name] >= limit]
        chosen = min(near[category], key=training_order)
        top = min(there, key=lambda name: (-there[name], training_order(name)), default=None)
        categories[category] = {
            "checkpoint": chosen,
            "val_ap": values[chosen],
            "val_ap_se": errors.get(category, {}).get(chosen),
            "best_val_ap_checkpoint": best,
            HEADLINE: there.get(chosen),
            "best_checkpoint": top,
            f"best_{HEADLINE}": None if top is None else there[top],
            "difference": None if top is None or chosen not in there else there[top] - there[chosen],
        }
    ranks = mean_ranks(table)
    overall: dict[str, Any] | None = None
    if ranks:
        everywhere = [name for name in ranks if all(name in names for names in near.values())]
        best = min(ranks, key=lambda name: (ranks[name], training_order(name)))
        chosen = min(everywhere, key=training_order, default=best)
        overall = {
            "checkpoint": chosen,
            "mean_rank": ranks[chosen],
            "is_within_error": bool(everywhere),
            HEADLINE: mean(measured, chosen),
            "difference": None,
        }
        if headline:  # over the categories that have both
            both = {c: v for c, v in measured.items() if c in table and {chosen, headline["checkpoint"]} <= v.keys()}
            if both:
                overall[HEADLINE] = mean(both, chosen)
                overall["difference"] = (mean(both, headline["checkpoint"]) or 0.0) - (mean(both, chosen) or 0.0)
    reason = None if ranks else "no checkpoint compared has a val_ap in every category"
    if not table:
        reason = "no val_ap in the training logs of the checkpoints compared (data.val_split was 0, or no log is there)"
    without = [name for name in names if name not in table]
    return {"overall": overall, "reason": reason, "categories": categories, "without_val_ap": without}
