"""Confidence intervals of metrics: their variance by bootstrap over images, separately for nominal and anomalous ones.

B. Efron and R. Tibshirani, 'An introduction to the bootstrap', 1993.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import betaincinv, stdtrit

from evaluation.ranking import ranking_metrics

DRAWS = 1000
CHUNK = 100  # draws at once
LEVEL = 0.95
LARGE = 1e6  # degrees of freedom of Student's distribution that count as infinitely many
IMAGES_AT_ONCE = 500  # images whose histograms are dense at a time, which limits memory


class ImageHistograms:
    """Histograms over the score, one set per image, with coarse bins; empty bins are not kept.

    For each image: nominal pixels, anomalous pixels, anomalous pixels weighted by 1 / size of their region, and the
    number of regions. Of images with defects whose overlap saturates also what their pixels add to it, and the number
    of these defects.
    """

    def __init__(self):
        self._bins: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []  # float32 (3, K), or (4, K) with such defects
        self.regions: list[int] = []
        self.defects: list[int] = []

    def __len__(self) -> int:
        return len(self.regions)

    def add(
        self,
        nominal: np.ndarray,
        anomalous: np.ndarray,
        overlap: np.ndarray | None,
        regions: int,
        saturated: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    ) -> None:
        """Add an image.

        Args:
            nominal, anomalous: bins of its pixels, int (N,). overlap: weights of the anomalous ones, float (N,).
            regions: their number.
            saturated: of each defect whose overlap saturates, bins and weights of its pixels, see
                `metrics.saturated_overlap`; all among the anomalous ones.
        """
        size = int(max(nominal.max(initial=-1), anomalous.max(initial=-1))) + 1
        counts = np.zeros((4 if saturated else 3, size), np.float32)
        counts[0] = np.bincount(nominal, minlength=size)
        if anomalous.size:
            counts[1] = np.bincount(anomalous, minlength=size)
            counts[2] = np.bincount(anomalous, overlap, minlength=size)
        for places, weights in saturated:
            counts[3] += np.bincount(places, weights, size)[:size]
        bins = np.flatnonzero(counts.any(axis=0))
        self._bins.append(bins.astype(np.int32))
        self._counts.append(counts[:, bins])
        self.regions.append(regions)
        self.defects.append(len(saturated))

    def occupied(self) -> np.ndarray:
        """Bins that are occupied in any image, int (B,), rising."""
        return np.unique(np.concatenate(self._bins)) if self._bins else np.zeros(0, np.int32)

    def weighted(self, weights: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Histograms (3, D, B), or (4, D, B), summed over images with `weights` (D, N), in the bins `columns` (B,)."""
        rows = 4 if any(self.defects) else 3
        total = np.zeros((rows, len(weights), len(columns)))
        for start in range(0, len(self), IMAGES_AT_ONCE):
            stop = min(start + IMAGES_AT_ONCE, len(self))
            dense = np.zeros((rows, stop - start, len(columns)), np.float32)
            for place in range(start, stop):
                counts = self._counts[place]
                dense[: len(counts), place - start, np.searchsorted(columns, self._bins[place])] = counts
            total += weights[:, start:stop].astype(np.float32) @ dense
        return total


def bootstrap_weights(labels: np.ndarray, count: int = DRAWS, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each image is drawn, float64 (D, N), in chunks of CHUNK draws. labels: (N,), whose counts stay."""
    rng, labels = np.random.default_rng(seed), np.asarray(labels)
    for start in range(0, count, CHUNK):
        weights = np.zeros((min(CHUNK, count - start), len(labels)))
        for label in np.unique(labels):
            places = np.flatnonzero(labels == label)
            weights[:, places] = rng.multinomial(len(places), np.full(len(places), 1 / len(places)), len(weights))
        yield weights


def partial_area(x: np.ndarray, y: np.ndarray, limit: float) -> np.ndarray:
    """Area (D,) under the curves through the points (D, K), x rising, up to x = limit, divided by it."""
    left, right = np.minimum(x[:, :-1], limit), np.minimum(x[:, 1:], limit)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.nan_to_num((right - x[:, :-1]) / (x[:, 1:] - x[:, :-1]))
    at_right = y[:, :-1] + (y[:, 1:] - y[:, :-1]) * np.clip(share, 0, 1)
    return np.sum((right - left) * (y[:, :-1] + at_right) / 2, axis=1) / limit


def image_counts(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted numbers of nominal and of anomalous images that reach each of K distinct scores, from the highest down.

    weights: (D, N). Two arrays (D, K + 1) that begin with 0.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    counts = []
    for label in (0, 1):
        summed = np.cumsum(weights[:, order] * (labels[order] == label), axis=1)[:, ends]
        counts.append(np.concatenate([np.zeros((len(weights), 1)), summed], axis=1))
    return counts[0], counts[1]


def resampled_image_metrics(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """image_auroc, image_ap and image_f1 (D,), each image counted as often as `weights` (D, N) say."""
    values = ranking_metrics(*image_counts(np.asarray(labels), np.asarray(scores), weights))
    return {f"image_{name}": values[name] for name in ("auroc", "ap", "f1")}


def resampled_image_metrics_at(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, F1 and counts (D,). predicted: whether each image (N,) is called anomalous."""
    labels, predicted = np.asarray(labels) == 1, np.asarray(predicted, bool)
    cases = (labels & predicted, ~labels & predicted, ~labels & ~predicted, labels & ~predicted)
    tp, fp, tn, fn = (weights @ case for case in cases)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = 2 * tp / (2 * tp + fp + fn)
    values = {"accuracy": (tp + tn) / weights.sum(axis=1), "image_f1_at_threshold": f1}
    counts = ("true_positives", "false_positives", "true_negatives", "false_negatives")
    return values | dict(zip(counts, (tp, fp, tn, fn), strict=True))


def resampled_pixel_metrics(
    images: ImageHistograms, weights: np.ndarray, threshold_bins: dict[str, float]
) -> dict[str, dict[str, np.ndarray]]:
    """Pixel metrics (D,) at each threshold, each image counted as often as `weights` (D, N) say.

    threshold_bins: threshold kind -> its bin; the bins above it are above the threshold.
    """
    columns = images.occupied()[::-1]
    sums = images.weighted(weights, columns[::-1])[:, :, ::-1]
    counts = np.concatenate([np.zeros((*sums.shape[:2], 1)), np.cumsum(sums, axis=2)], axis=2)
    fp, tp, overlap = counts[:3]
    values = ranking_metrics(fp, tp)
    with np.errstate(divide="ignore", invalid="ignore"):
        pro = overlap / (weights @ np.array(images.regions))[:, None]
        fpr = fp / fp[:, -1:]
    common = {f"pixel_{name}": values[name] for name in ("auroc", "ap", "f1")}
    common |= {"pro": partial_area(fpr, pro, 0.3), "pro_05": partial_area(fpr, pro, 0.05), "iou_max": values["iou_max"]}
    if any(images.defects):
        with np.errstate(divide="ignore", invalid="ignore"):
            spro = counts[3] / (weights @ np.array(images.defects))[:, None]
        common["spro_05"] = partial_area(fpr, spro, 0.05)
    result = {}
    for kind, threshold_bin in threshold_bins.items():
        above = int(np.sum(columns > threshold_bin))
        found, wrong, all_ = tp[:, above], fp[:, above], tp[:, -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            at = {"iou": found / (wrong + all_), "pixel_f1_at_threshold": 2 * found / (found + wrong + all_)}
        result[kind] = common | at
    return result


def share_interval(share: float, images: float) -> tuple[float, float]:
    """95 % confidence interval of a share, 0 to 1, of independent images (need not be whole).

    C. Clopper and E. Pearson, 'The use of confidence or fiducial limits illustrated in the case of the binomial', 1934.
    """
    inside, outside, tail = share * images, (1 - share) * images, (1 - LEVEL) / 2
    low = betaincinv(inside, outside + 1, tail) if inside > 0 else 0.0
    high = betaincinv(inside + 1, outside, 1 - tail) if outside > 0 else 1.0
    return float(low), float(high)


def interval(drawn: np.ndarray, base: float, exact: float, images: float = math.inf) -> tuple[float, float]:
    """95 % confidence interval of a metric from 0 to 1: that of a share of as many images as give its variance.

    That holds at the ends, too, where all draws are the same (E. Korn and B. Graubard, 'Confidence intervals for
    proportions with small expected number of positive counts', 1998). The variance is from the draws, widened as in
    Student's distribution, and at least that of a share of which one image is wrong.

    Args:
        drawn: of the metric (D,); NaN, where it is undefined, does not count.
        base: the metric from the coarse histograms, which the draws use too. exact: from all scores.
        images: the fewest independent images that it rests on, such as those of the rarer label.
    """
    drawn = drawn[np.isfinite(drawn)]
    smoothed, one = (exact + 1 / images) / (1 + 2 / images), 1 / (images + 2)
    variance = one * (1 - one) / images
    if drawn.size and images > 1:
        freedom = min(images - 1, LARGE)
        spread = stdtrit(freedom, (1 + LEVEL) / 2) / stdtrit(LARGE, (1 + LEVEL) / 2)
        variance = max(variance, float(np.mean((drawn - base) ** 2)) / (1 - 1 / images) * spread**2)
    low, high = share_interval(exact, smoothed * (1 - smoothed) / variance) if variance else (exact, exact)
    return min(low, exact), max(high, exact)
