"""Image-level metrics and curves, computed by scikit-learn from scores and labels.

A score is anomalous where it is greater than the threshold. What is undefined is None. Importing this takes a second,
for scikit-learn.
"""

import numpy as np
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve

from evaluation.metrics import IMAGE_KEYS, IMAGE_KEYS_AT_THRESHOLD
from evaluation.ranking import CRITERIA, f1, last_best, midway, precision


def _counts(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Thresholds (N + 1,): infinity and each score that occurs, falling; nominal and anomalous images that reach them.

    None where `labels` (N,), 0 or 1, has one class.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if len(np.unique(labels)) < 2:
        return None
    fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    fp, tp = (np.rint(rate * np.sum(labels == label)).astype(int) for rate, label in ((fpr, 0), (tpr, 1)))
    return thresholds, fp, tp


def image_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float | None]:
    """IMAGE_KEYS over all thresholds; all None where `labels` (N,), 0 or 1, has one class. `scores`: float (N,)."""
    counts = _counts(labels, scores)
    if counts is None:
        return dict.fromkeys(IMAGE_KEYS)
    auroc, ap = (float(measure(labels, scores)) for measure in (roc_auc_score, average_precision_score))
    return dict(zip(IMAGE_KEYS, (auroc, ap, float(f1(*counts[1:]).max())), strict=True))


def optimal_image_threshold(labels: np.ndarray, scores: np.ndarray, by: str = "f1") -> float | None:
    """Midway between the lowest score that reaches the best value and the next lower one; None with one class only.

    by: a name in CRITERIA.
    """
    counts = _counts(labels, scores)
    if counts is None:
        return None
    thresholds, fp, tp = counts
    return midway(thresholds, last_best(CRITERIA[by](fp, tp)))


def image_curves(labels: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray] | None:
    """For drawing, from the highest threshold down: `threshold`, `fpr`, `tpr` (recall), `precision`.

    Counts are of scores that reach the threshold. None where `labels` has one class.
    """
    counts = _counts(labels, scores)
    if counts is None:
        return None
    thresholds, fp, tp = counts
    return {"threshold": thresholds, "fpr": fp / fp[-1], "tpr": tp / tp[-1], "precision": precision(fp, tp)}


def image_metrics_at(labels: np.ndarray, scores: np.ndarray, threshold: float | None) -> dict[str, float | int | None]:
    """IMAGE_KEYS_AT_THRESHOLD; all None without a threshold, F1 None where `labels` (N,) holds no anomaly."""
    if threshold is None:
        return dict.fromkeys(IMAGE_KEYS_AT_THRESHOLD)
    predicted = np.asarray(scores, np.float64) > threshold
    tn, fp, fn, tp = map(int, confusion_matrix(np.asarray(labels) == 1, predicted, labels=[False, True]).ravel())
    return {
        "accuracy": (tp + tn) / len(predicted),
        "image_f1_at_threshold": 2 * tp / (2 * tp + fp + fn) if tp + fn else None,
        "true_positives": tp,
        "false_positives": fp,
        "true_negatives": tn,
        "false_negatives": fn,
    }
