"""AUROC, AP, F1 and IoU from counts over falling thresholds, and the thresholds at which a criterion is best.

Counts are numbers of nominal (`fp`) and anomalous (`tp`) images or pixels whose score reaches a threshold. Leading
axes, written as `...`, are separate sets of counts.
"""

import numpy as np


def area(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Area (...) under the curves through the points (..., N), by the trapezoidal rule."""
    return np.sum(np.diff(x) * ((y[..., 1:] + y[..., :-1]) / 2), axis=-1)  # halved first: whole numbers could overflow


def ranking_metrics(fp: np.ndarray, tp: np.ndarray) -> dict[str, np.ndarray]:
    """`auroc`, `ap`, largest F1 `f1` and largest IoU `iou_max` (...).

    NaN where there is no nominal or no anomalous one.

    Args:
        fp, tp: counts (..., N + 1), the first with nothing above its threshold.
    """
    positives, negatives = tp[..., -1], fp[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.nan_to_num(tp[..., 1:] / (tp[..., 1:] + fp[..., 1:]))
        ap = np.sum(np.diff(tp) * precisions, axis=-1) / positives
        return {
            "auroc": area(fp, tp) / (np.asarray(positives, np.float64) * negatives),
            "ap": np.where(negatives > 0, ap, np.nan),
            "f1": np.max(f1(fp, tp), axis=-1),
            "iou_max": np.max(tp / (fp + positives[..., None]), axis=-1),
        }


def f1(fp: np.ndarray, tp: np.ndarray) -> np.ndarray:
    """F1 from counts (..., N), the last with everything above its threshold."""
    return 2 * tp / (tp + fp + tp[..., -1:])


def youden(fp: np.ndarray, tp: np.ndarray) -> np.ndarray:
    """Youden's J (true- minus false-positive rate) times both class sizes, in exact whole numbers. Counts (N,)."""
    return tp.astype(object) * int(fp[-1]) - fp.astype(object) * int(tp[-1])


CRITERIA = {"f1": f1, "youden": youden}  # that `optimal` thresholds are chosen by


def precision(fp: np.ndarray, tp: np.ndarray) -> np.ndarray:
    """Precision from counts (N,); 1 where nothing lies above the threshold."""
    return np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), 1.0)


def last_best(values: np.ndarray) -> int:
    """Index of the lowest threshold with the largest value (N,)."""
    return len(values) - 1 - int(np.argmax(values[::-1]))


def midway(scores: np.ndarray, place: int) -> float:
    """Midway between scores[place] and the next lower score; just below scores[place] if it is the last. They fall.

    Always strictly below scores[place].
    """
    below = float(np.nextafter(scores[place], -np.inf))
    return below if place + 1 == len(scores) else min(below, (float(scores[place + 1]) + float(scores[place])) / 2)
