"""AUPIMO, and what single images add to PRO and sPRO, at the full resolution of the scores' bins.

J. Bertoldo et al., 'AUPIMO: redefining anomaly localization benchmarks with high speed and low tolerance', BMVC 2024.
"""

import math
from collections.abc import Sequence

import numpy as np

LOWEST, HIGHEST = 1e-5, 1e-4  # false-positive rates between which AUPIMO averages
PIXELS_NEEDED = round(1 / HIGHEST)  # nominal pixels, so that one of them is not above the highest rate
PIXELS_WANTED = round(1 / LOWEST)  # so that one is not above the lowest either
TAIL = 0.01  # share of a nominal image's pixels, those with the highest scores, that draws of images count
GRID = np.logspace(-6, -2, 200)  # false-positive rates at whose thresholds draws of images are evaluated


def log_area(fpr: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Mean of `overlap` over the logarithm of the false-positive rate from LOWEST to HIGHEST: AUPIMO.

    Between two points the overlap is linear in the logarithm. From a rate of 0, which has none, to the next it stays:
    that is what is found without any false positive.

    Args:
        fpr, overlap: points (..., P) from the highest threshold down, the first with an `fpr` of 0.
    """
    with np.errstate(divide="ignore"):
        x = np.log(fpr)
    inside = np.clip(x, math.log(LOWEST), math.log(HIGHEST))
    left, right, begin, end = inside[..., :-1], inside[..., 1:], x[..., :-1], x[..., 1:]
    is_sloped = np.isfinite(begin) & (end > begin)
    begin, end = np.where(is_sloped, begin, 0.0), np.where(is_sloped, end, 1.0)
    middle = np.where(is_sloped, ((left + right) / 2 - begin) / (end - begin), 0.0)
    values = overlap[..., :-1] + (overlap[..., 1:] - overlap[..., :-1]) * middle
    rest = (math.log(HIGHEST) - inside[..., -1]) * overlap[..., -1]
    mean = (np.sum((right - left) * values, axis=-1) + rest) / math.log(HIGHEST / LOWEST)
    return np.clip(mean, 0, 1)  # of roundings


class ImageOverlaps:
    """Anomalous pixels of each image, and false positives of the nominal images.

    Args:
        bins: number of bins of the score.
    """

    def __init__(self, bins: int):
        self._size = bins
        self._false_positives: np.ndarray | None = None  # histogram: share of a nominal image, summed over these
        self._pending: list[np.ndarray] = []
        self._anomalous: list[np.ndarray] = []  # of each image: bins of its anomalous pixels, rising
        self._region_sizes: list[np.ndarray] = []  # of each image: size of the region of each of these, in pixels
        self._regions: list[int] = []
        self._saturated: list[Sequence[tuple[np.ndarray, np.ndarray]]] = []  # of each image: see `saturated_overlap`
        self._tails: list[np.ndarray | None] = []  # of each nominal image: its highest bins, rising; None for others
        self._sizes: list[int] = []  # of each nominal image: its number of pixels; 0 for others

    def add(
        self,
        nominal: np.ndarray,
        anomalous: np.ndarray,
        overlap: np.ndarray | None,
        regions: int,
        is_nominal: bool,
        saturated: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    ) -> None:
        """Add an image.

        Args:
            nominal, anomalous: bins of its pixels, int (N,). overlap: 1 / size of the region of each anomalous one,
                float (N,). regions: their number. is_nominal: whether the image is nominal.
            saturated: of each defect the pixels that add to its overlap, see `metrics.saturated_overlap`.
        """
        order = np.argsort(anomalous)
        self._anomalous.append(anomalous[order])
        self._region_sizes.append(order if overlap is None else np.rint(1 / overlap[order]).astype(np.int32))
        self._regions.append(regions)
        self._saturated.append(saturated)
        is_nominal = is_nominal and nominal.size > 0
        self._sizes.append(nominal.size if is_nominal else 0)
        self._tails.append(None)
        if is_nominal:
            count = math.ceil(TAIL * nominal.size)
            self._tails[-1] = np.sort(np.partition(nominal, -count)[-count:])
            self._pending.append(nominal)
            if sum(one.size for one in self._pending) >= 2**19:
                self._flush()

    def _flush(self) -> np.ndarray:
        if self._false_positives is None:
            self._false_positives = np.zeros(self._size)
        if self._pending:
            sizes = [one.size for one in self._pending]
            weights = np.repeat(1 / np.array(sizes), sizes)
            self._false_positives += np.bincount(np.concatenate(self._pending), weights, self._size)
            self._pending = []
        return self._false_positives

    @property
    def missing(self) -> str | None:
        """Why AUPIMO is undefined, or None where it is not."""
        if not any(one.size for one in self._anomalous):
            return "no anomalous pixel in the ground-truth masks"
        if sum(self._sizes) < PIXELS_NEEDED:
            return (
                f"the nominal test images have {sum(self._sizes):,} pixels, but a false-positive rate of "
                f"{HIGHEST:.0e} needs {PIXELS_NEEDED:,}"
            )
        return None

    @property
    def warning(self) -> str | None:
        """A warning where AUPIMO is coarse; None otherwise."""
        pixels = sum(self._sizes)
        if self.missing or pixels >= PIXELS_WANTED:
            return None
        return (
            f"AUPIMO is coarse: the nominal test images have {pixels:,} pixels, so one false positive is a rate of "
            f"{1 / pixels:.1e}; below that, it counts what is found without any"
        )

    def _rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Occupied bins, falling, and the mean over nominal images of their false-positive rate from each bin on."""
        histogram = self._flush()
        occupied = np.flatnonzero(histogram)[::-1]
        return occupied, np.cumsum(histogram[occupied]) / sum(size > 0 for size in self._sizes)

    def aupimo(self) -> np.ndarray:
        """AUPIMO of each image added, in [0, 1], float64 (N,); NaN for those without anomalous pixels."""
        values = np.full(len(self._anomalous), np.nan)
        if self.missing:
            return values
        bins, rates = self._rates()
        count = int(np.searchsorted(rates, HIGHEST)) + 1
        bins, rates = bins[:count], rates[:count]
        # Of each bin two points: all that is above it, at the rate before, and with it.
        fpr = np.stack([np.append(0, rates[:-1]), rates], axis=1).ravel()
        for place, own in enumerate(self._anomalous):
            if own.size:
                below = np.stack([np.searchsorted(own, bins, "right"), np.searchsorted(own, bins, "left")], axis=1)
                values[place] = log_area(fpr, 1 - below.ravel() / own.size)
        return values

    def resampled(self, weights: np.ndarray) -> np.ndarray:
        """Mean AUPIMO (D,), each image counted as often as `weights` (D, N) say; NaN where undefined."""
        if self.missing:
            return np.full(len(weights), np.nan)
        bins, rates = self._rates()
        grid = bins[np.unique(np.searchsorted(rates, GRID).clip(0, len(bins) - 1))]
        grid = np.append(self._size, grid)  # above all scores there is no false positive
        is_nominal = np.array([tail is not None for tail in self._tails])
        has_anomaly = np.array([own.size > 0 for own in self._anomalous])
        nominal = [
            (tail.size - np.searchsorted(tail, grid)) / size
            for tail, size in zip(self._tails, self._sizes, strict=True)
            if tail is not None
        ]
        found = [1 - np.searchsorted(own, grid) / own.size for own in self._anomalous if own.size]
        with np.errstate(divide="ignore", invalid="ignore"):
            fpr, overlap = (
                weights[:, which] @ np.array(curves) / weights[:, which].sum(axis=1)[:, None]
                for which, curves in ((is_nominal, nominal), (has_anomaly, found))
            )
        return np.where(np.isfinite(fpr + overlap).all(axis=1), log_area(fpr, overlap), np.nan)

    def region_overlaps(self, nominal: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
        """Of each image its number of regions (N,), and what they add to PRO times all regions, float64 (N,).

        So the sum of the second over some images, divided by that of the first, is the PRO of their regions at the
        false-positive rates of all images.

        Args:
            nominal: histogram of the nominal pixels of all images, over the bins. limit: see `metrics.PixelMetrics`.
        """
        added = _added(nominal, limit)
        sums = [float(np.sum(added[own] / of)) for own, of in zip(self._anomalous, self._region_sizes, strict=True)]
        return np.array(self._regions), np.array(sums)

    def saturated_overlaps(self, nominal: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
        """The same of sPRO: of each image its number of defects whose overlap saturates, and what they add to it."""
        added = _added(nominal, limit)
        sums = [sum(float(added[bins] @ weights) for bins, weights in own) for own in self._saturated]
        return np.array([len(own) for own in self._saturated]), np.array(sums)


def _added(nominal: np.ndarray, limit: float) -> np.ndarray:
    """Of each bin, float64 (bins,): what a pixel in it adds to the area under the curve, as a share of `limit`.

    See `ImageOverlaps.region_overlaps`.
    """
    rate = np.cumsum(nominal[::-1])[::-1] / max(int(nominal.sum()), 1)  # from each bin on
    above = np.append(rate[1:], 0.0)
    # A pixel is found from the rate above its bin on: linearly more, up to the rate at its bin.
    end = np.minimum(rate, limit)
    with np.errstate(divide="ignore", invalid="ignore"):
        ramp = np.nan_to_num((end - above) ** 2 / (2 * (rate - above)))
    return np.where(above < limit, ramp + limit - end, 0.0) / limit
