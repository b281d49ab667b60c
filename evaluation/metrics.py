"""Metrics of anomaly maps: the image score, and an accumulator of pixel metrics. Keys of all metrics.

A score is anomalous where it is greater than the threshold. What is undefined is None.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from evaluation.bootstrap import ImageHistograms
from evaluation.image_overlap import ImageOverlaps
from evaluation.ranking import CRITERIA, area, last_best, midway, precision, ranking_metrics
from evaluation.score_bins import BINS, bin_of, bin_scores, coarse, threshold_bin

IMAGE_KEYS = ("image_auroc", "image_ap", "image_f1")
PIXEL_KEYS = ("pixel_auroc", "pixel_ap", "pixel_f1", "pro", "pro_05", "iou_max")
IMAGE_KEYS_AT_THRESHOLD = (
    "accuracy",
    "image_f1_at_threshold",
    "true_positives",
    "false_positives",
    "true_negatives",
    "false_negatives",
)
PIXEL_KEYS_AT_THRESHOLD = ("iou", "pixel_f1_at_threshold")
HIT_RATE = "hit_rate"  # at the image threshold
AUPIMO = "aupimo"
SPRO = "spro_05"
OVERLAP_KEYS = (AUPIMO, SPRO)  # over all thresholds; they came later, and stand behind all others in files
_FIRST_KEYS = (*IMAGE_KEYS, *PIXEL_KEYS, *IMAGE_KEYS_AT_THRESHOLD, *PIXEL_KEYS_AT_THRESHOLD)
MEASURED_KEYS = (*_FIRST_KEYS, HIT_RATE, *OVERLAP_KEYS)


def _intervals(*keys: str) -> tuple[str, ...]:
    return tuple(f"{key}_{end}" for key in keys for end in ("low", "high"))


METRIC_KEYS = (  # of metrics.json
    *_FIRST_KEYS,
    "image_threshold",
    "pixel_threshold",
    HIT_RATE,
    *_intervals(*_FIRST_KEYS, HIT_RATE),
    *OVERLAP_KEYS,
    *_intervals(*OVERLAP_KEYS),
)

PRO_LIMIT, LOW_LIMIT = 0.3, 0.05  # false-positive rates up to which `pro`, and `pro_05` and `spro_05` average
SCORE_WINDOW = 21  # pixels, of the average pooling behind an image score

_PENDING = 2**19  # pixels that are binned at once: fewer would spend the time on adding up empty bins


def image_score(anomaly_map: np.ndarray) -> float:
    """Largest value of the map (H, W) after `smooth`."""
    return float(smooth(anomaly_map).max())


def is_pointing_game_hit(smoothed: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the largest value of a map that `smooth` gave (H, W) lies in the mask (H, W), or at most 10 pixels away.

    10 pixels: half the window. False for a map that is the same everywhere.
    """
    edge = SCORE_WINDOW // 2  # zero padding makes the rim lower
    inside = smoothed[edge:-edge, edge:-edge]
    if inside.size and np.ptp(inside) <= 1e-9:
        return False
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((SCORE_WINDOW, SCORE_WINDOW), np.uint8))
    return bool(grown[smoothed == smoothed.max()].any())


def smooth(anomaly_map: np.ndarray) -> np.ndarray:
    """The map (H, W) after 21 x 21 average pooling with stride 1 and zero padding, float64."""
    window = (SCORE_WINDOW, SCORE_WINDOW)
    return cv2.boxFilter(anomaly_map, cv2.CV_64F, window, normalize=True, borderType=cv2.BORDER_CONSTANT)


def saturated_overlap(bins: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Of a defect's pixels those that add to its saturated overlap: bins, falling, and what each adds, float64 (K,).

    With A pixels the overlap min(found / s, 1), s = share * A, is complete with the s highest; others add nothing.

    Args:
        bins: of its pixels, int (A,).
    """
    limit = share * bins.size
    count = math.ceil(limit)
    return np.sort(bins)[::-1][:count], np.minimum(limit - np.arange(count), 1) / max(limit, 1e-12)


class Region(NamedTuple):
    """A connected region: its bounding box in pixels, ends excluded, and its area in pixels."""

    x0: int
    y0: int
    x1: int
    y1: int
    area: int


def regions(mask: np.ndarray) -> list[Region]:
    """Connected regions (8 neighbors) of a mask, bool (H, W), the largest first."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = [Region(int(x), int(y), int(x + width), int(y + height), int(area)) for x, y, width, height, area in stats]
    return sorted(found[1:], key=lambda region: (-region.area, region))  # the first is the background


class PixelMetrics:
    """Pixel metrics over any number of images in memory that does not grow.

    Each is a function of three histograms over the score: nominal pixels, anomalous pixels, and anomalous pixels
    weighted by 1 / size of their region (8-connected), which gives PRO: P. Bergmann et al., 'Uninformed students',
    CVPR 2020. Of defects whose overlap saturates a fourth gives sPRO: P. Bergmann et al., 'Beyond dents and scratches',
    IJCV 2022.

    Args:
        keeps_images: also keep a small histogram of each image in `images`, for intervals, and its anomalous pixels in
            `overlaps`, for AUPIMO; else these stay empty.
    """

    def __init__(self, keeps_images: bool = False):
        self.images, self.overlaps, self._keeps_images = ImageHistograms(), ImageOverlaps(BINS), keeps_images
        self._nominal = np.zeros(BINS, np.int64)
        self._anomalous = np.zeros(BINS, np.int64)
        self._overlap = np.zeros(BINS, np.float64)
        self._saturated: np.ndarray | None = None  # see `saturated_overlap`; None without such defects
        self._regions = self._defects = 0
        self._pending: list[np.ndarray] = []
        self._pending_pixels = 0
        self._curve: dict[str, np.ndarray] | None = None

    def update(
        self,
        scores: np.ndarray,
        mask: np.ndarray,
        valid: np.ndarray | None = None,
        is_nominal: bool | None = None,
        defects: Sequence[tuple[np.ndarray, float]] = (),
    ) -> None:
        """Add one image.

        Args:
            scores: float32 (H, W) in [0, 1]. mask: bool (H, W), ground truth.
            valid: bool (H, W), False where a pixel is left out. Regions are labelled before it is applied.
            is_nominal: whether the image is nominal; None: where its mask is empty.
            defects: for sPRO, masks of single defects, bool (H, W), which can overlap, each with the share of its
                pixels from which on its overlap is complete, in (0, 1].

        Raises:
            ValueError: shapes that differ, scores outside [0, 1].
        """
        scores = np.ascontiguousarray(scores, np.float32)
        if scores.shape != mask.shape or (valid is not None and valid.shape != mask.shape):
            raise ValueError(f"scores {scores.shape}, mask {mask.shape} and valid must have one shape")
        if scores.size and not (scores.min() >= 0 and scores.max() <= 1):
            raise ValueError("anomaly scores must lie in [0, 1]")
        self._curve = None
        mask = mask.astype(bool, copy=False)
        if is_nominal is None:
            is_nominal = not mask.any()
        index = bin_of(scores)
        anomalous, overlap, count = index[:0, 0], None, 0
        saturated = [
            saturated_overlap(index[defect if valid is None else defect & valid], share) for defect, share in defects
        ]
        saturated = [one for one in saturated if one[0].size]
        for places, weights in saturated:
            self._saturated = np.zeros(BINS) if self._saturated is None else self._saturated
            np.add.at(self._saturated, places, weights)
        self._defects += len(saturated)
        if mask.any():
            _, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
            inside = mask if valid is None else mask & valid
            labels = regions[inside]
            sizes = np.bincount(labels)
            count = int((sizes[1:] > 0).sum())
            self._regions += count
            anomalous, overlap = index[inside], 1 / sizes[labels]
            np.add.at(self._anomalous, anomalous, 1)
            np.add.at(self._overlap, anomalous, overlap)
            index = index[~mask if valid is None else ~mask & valid]
        elif valid is not None:
            index = index[valid]
        if self._keeps_images:
            own_histograms = [(coarse()[places], weights) for places, weights in saturated]
            self.images.add(coarse()[index.ravel()], coarse()[anomalous], overlap, count, own_histograms)
            self.overlaps.add(index.ravel(), anomalous, overlap, count, is_nominal, saturated)
        self._pending.append(index.ravel())
        self._pending_pixels += index.size
        if self._pending_pixels >= _PENDING:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._nominal += np.bincount(np.concatenate(self._pending), minlength=BINS)
            self._pending, self._pending_pixels = [], 0

    @property
    def missing(self) -> str | None:
        """Why the metrics are undefined, or None where they are not."""
        self._flush()
        if not self._anomalous.any():
            return "no anomalous pixel in the ground-truth masks"
        return None if self._nominal.any() else "no nominal pixel"

    def _cumulated(self) -> dict[str, np.ndarray]:
        """Cumulative counts over the occupied bins, from the highest score down; each begins with 0."""
        if self._curve is None:
            self._flush()
            occupied = np.flatnonzero(self._nominal + self._anomalous)[::-1]

            def cumulate(histogram: np.ndarray) -> np.ndarray:
                return np.concatenate(([0], np.cumsum(histogram[occupied])))

            self._curve = {
                "fp": cumulate(self._nominal),
                "tp": cumulate(self._anomalous),
                "pro": cumulate(self._overlap) / max(self._regions, 1),
                "score": bin_scores()[occupied],
                "bin": occupied,
            }
            if self._saturated is not None:
                self._curve["spro"] = cumulate(self._saturated) / self._defects
        return self._curve

    def compute(self, threshold: float | None = None) -> dict[str, float | None]:
        """PIXEL_KEYS, SPRO (None without defects that saturate), and PIXEL_KEYS_AT_THRESHOLD (None without one).

        Scores in one bin count as equal: those that differ by less than 2^-14 (from 2^-8 on, else 2^-11) of their
        distance from 0 or 1, whichever is nearer. Against exact values that changes at most 2e-5 where the scores'
        standard deviation is 0.1 or more or they saturate, 6e-4 at 1.5e-3 and 6e-3 at 1.5e-4.
        """
        if self.missing:
            return dict.fromkeys((*PIXEL_KEYS, SPRO, *PIXEL_KEYS_AT_THRESHOLD))
        curve = self._cumulated()
        fp, tp, pro = curve["fp"], curve["tp"], curve["pro"]
        positives, negatives = int(tp[-1]), int(fp[-1])
        values = {name: float(value) for name, value in ranking_metrics(fp, tp).items()}
        result = {
            "pixel_auroc": values["auroc"],
            "pixel_ap": values["ap"],
            "pixel_f1": values["f1"],
            "pro": _area_to(fp / negatives, pro, PRO_LIMIT),
            "pro_05": _area_to(fp / negatives, pro, LOW_LIMIT),
            "iou_max": values["iou_max"],
            SPRO: _area_to(fp / negatives, curve["spro"], LOW_LIMIT) if "spro" in curve else None,
            "iou": None,
            "pixel_f1_at_threshold": None,
        }
        if threshold is not None:
            # Scores that equal the threshold are not above it: its own bin does not count.
            above = int(np.sum(curve["bin"] > threshold_bin(threshold)))
            result["iou"] = float(tp[above] / (fp[above] + positives))
            result["pixel_f1_at_threshold"] = float(2 * tp[above] / (tp[above] + fp[above] + positives))
        return result

    def region_overlaps(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each image kept its number of regions, and what they add to PRO; see `ImageOverlaps.region_overlaps`."""
        self._flush()
        return self.overlaps.region_overlaps(self._nominal, PRO_LIMIT)

    def saturated_overlaps(self) -> tuple[np.ndarray, np.ndarray]:
        """The same of sPRO; see `ImageOverlaps.saturated_overlaps`."""
        self._flush()
        return self.overlaps.saturated_overlaps(self._nominal, LOW_LIMIT)

    @property
    def anomalous_share(self) -> float:
        """Of the pixels that count, in [0, 1]."""
        self._flush()
        anomalous = int(self._anomalous.sum())
        return anomalous / max(anomalous + int(self._nominal.sum()), 1)

    def coarse_bin(self, threshold: float) -> float:
        """The coarse bin of a threshold: bins of `images` above it are above it. -1: all are; infinity: none is."""
        found = threshold_bin(threshold)
        return found if found < 0 else np.inf if found == BINS else float(coarse()[found])

    def optimal_threshold(self, by: str = "f1") -> float | None:
        """Midway between the lowest score that reaches the best value and the next lower one; None where undefined.

        by: a name in CRITERIA.
        """
        if self.missing:
            return None
        curve = self._cumulated()
        best = last_best(CRITERIA[by](curve["fp"], curve["tp"])[1:])
        threshold = midway(curve["score"], best)
        while threshold_bin(threshold) >= curve["bin"][best]:  # on the edge that two bins share
            threshold = float(np.nextafter(np.float32(threshold), np.float32(-1)))
        return threshold

    def curves(self, points: int = 1000) -> dict[str, np.ndarray] | None:
        """For drawing, from the highest threshold down: `threshold`, `fpr`, `tpr` (recall), `precision`, `pro`, `iou`.

        Each float64, at most about 2 x `points` long; the first point has nothing above its threshold, infinity. None
        where undefined.
        """
        if self.missing:
            return None
        curve = self._cumulated()
        fp, tp = curve["fp"], curve["tp"]
        # Points that lie evenly along both axes, so that neither end is drawn coarsely.
        progress = fp / fp[-1] + tp / tp[-1]
        keep = np.unique(np.searchsorted(progress, np.linspace(0, 2, 2 * points)).clip(0, len(fp) - 1))
        fp, tp = fp[keep], tp[keep]
        return {
            "threshold": np.concatenate(([np.inf], curve["score"]))[keep],
            "fpr": fp / curve["fp"][-1],
            "tpr": tp / curve["tp"][-1],
            "precision": precision(fp, tp),
            "pro": curve["pro"][keep],
            "iou": tp / (fp + curve["tp"][-1]),
        }


def _area_to(x: np.ndarray, y: np.ndarray, limit: float) -> float:
    """Area under the curve up to x = limit, divided by it."""
    inside = int(np.searchsorted(x, limit, side="right"))
    at_limit = np.interp(limit, x, y)
    return float(area(np.append(x[:inside], limit), np.append(y[:inside], at_limit)) / limit)
