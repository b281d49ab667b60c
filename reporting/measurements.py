"""The results of a pass over the test images under one technique: scores, metrics, and the worst mistakes."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.mvtec import TestSample
from evaluation import bootstrap, image_metrics, metrics
from evaluation.thresholds import OPTIMAL, Thresholds, differ_significantly
from reporting.panels import eight_bit

if TYPE_CHECKING:
    from inference.detect import NetworkOutput

MISTAKES = 8  # of each kind, on the contact sheet
# Limits of `warning`: it applies from this image AUROC on, if pixel AP is below so many times the share of anomalous
# pixels, or the pointing game accuracy is below the last.
HIGH_AUROC, CHANCE_TIMES, LOW_POINTING_GAME = 0.75, 3, 0.2


class Extreme(NamedTuple):
    """One of the worst-scored images of its label."""

    idx: int
    image: np.ndarray  # uint8 (H, W, 3)
    mask: np.ndarray  # bool (H, W)
    anomaly_map: np.ndarray  # float32 (H, W)


class Measurements:
    """Collects the images one by one; then metrics over all thresholds and at each.

    Args:
        samples: in the dataset's order. optimal: criterion of `optimal` thresholds, see `ranking.CRITERIA`.

    Attributes:
        scores: float64 (N,). labels: int (N,), 1 for anomalous. pixels: the pixel metrics' accumulator.
    """

    def __init__(self, samples: Sequence[TestSample], optimal: str = "f1"):
        self.samples, self._optimal = samples, optimal
        self.scores = np.zeros(len(samples))
        self.labels = np.array([int(sample.has_anomaly) for sample in samples])
        self.pixels = metrics.PixelMetrics(keeps_images=True)
        self._counted: list[int] = []  # images that count in pixel metrics
        self._hits = np.full(len(samples), np.nan)  # of images with a mask: whether the map's maximum lies in it
        self._vanished: list[str] = []
        self._left_out = self._seen = 0
        self._extremes: dict[int, list[Extreme]] = {0: [], 1: []}

    def name(self, idx: int) -> str:
        """Path of an image within its category."""
        return self.samples[idx].name

    def update(self, found: "NetworkOutput") -> None:
        """Add an image."""
        sample = self.samples[found.idx]
        smoothed = metrics.smooth(found.anomaly_map)
        self.scores[found.idx] = smoothed.max()  # the image score
        if sample.masks or not sample.has_anomaly:
            defects = list(zip(found.defects, sample.saturation, strict=True)) if found.defects else []
            self.pixels.update(found.anomaly_map, found.mask, found.valid, not sample.has_anomaly, defects)
            self._counted.append(found.idx)
        if found.mask.any():
            self._hits[found.idx] = metrics.is_pointing_game_hit(smoothed, found.mask)
        if sample.masks and not sample.has_empty_mask and not found.mask.any():
            self._vanished.append(self.name(found.idx))
        self._seen += found.mask.size
        if found.valid is not None:
            self._left_out += found.mask.size - int(found.valid.sum())
        self._keep_extreme(found)

    def _keep_extreme(self, found: "NetworkOutput") -> None:
        label = int(self.labels[found.idx])
        kept = self._extremes[label]
        if len(kept) == MISTAKES and self._order(found.idx, label) > self._order(kept[-1].idx, label):
            return
        # Copies: views would keep whole batches.
        kept.append(Extreme(found.idx, eight_bit(found.image).copy(), found.mask.copy(), found.anomaly_map.copy()))
        kept.sort(key=lambda one: self._order(one.idx, label))
        del kept[MISTAKES:]

    def _order(self, idx: int, label: int) -> tuple[float, int]:
        """Sort key, the most wrong first: nominal images by falling, anomalous ones by rising score."""
        return (self.scores[idx] if label else -self.scores[idx], idx)

    def most_wrong(self, label: int) -> list[Extreme]:
        """Nominal images (label 0) with the highest scores, or anomalous ones (1) with the lowest, worst first."""
        return self._extremes[label]

    def optimal_thresholds(self) -> Thresholds:
        """Thresholds that are optimal on these test images."""
        of_images = image_metrics.optimal_image_threshold(self.labels, self.scores, self._optimal)
        return Thresholds(OPTIMAL, of_images, self.pixels.optimal_threshold(self._optimal))

    @cached_property
    def image_metrics(self) -> dict[str, float | None]:
        """Over all thresholds, once all images are added."""
        return image_metrics.image_metrics(self.labels, self.scores)

    @cached_property
    def aupimo(self) -> np.ndarray:
        """AUPIMO of each image, float64 (N,), once all are added; NaN where undefined, as of nominal ones."""
        values = np.full(len(self.samples), np.nan)
        values[self._counted] = self.pixels.overlaps.aupimo()
        return values

    def region_overlaps(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each image (N,) its number of regions, and what they add to PRO, see `PixelMetrics.region_overlaps`.

        The second is NaN where PRO is undefined.
        """
        return self._of_all(self.pixels.region_overlaps)

    def saturated_overlaps(self) -> tuple[np.ndarray, np.ndarray]:
        """The same of sPRO: defects whose overlap saturates."""
        return self._of_all(self.pixels.saturated_overlaps)

    def _of_all(self, of_counted: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        counts, sums = np.zeros(len(self.samples)), np.full(len(self.samples), np.nan)
        if not self.pixels.missing:
            counts[self._counted], sums[self._counted] = of_counted()
        return counts, sums

    def metrics_at(self, thresholds: Thresholds) -> dict[str, Any]:
        """Values of MEASURED_KEYS, and the thresholds."""
        _, image_threshold, pixel_threshold = thresholds
        values = self.image_metrics | image_metrics.image_metrics_at(self.labels, self.scores, image_threshold)
        values |= self.pixels.compute(pixel_threshold)
        hits = self._hits[(self.scores > np.inf if image_threshold is None else self.scores > image_threshold)]
        hits = hits[~np.isnan(hits)]
        values[metrics.HIT_RATE] = float(hits.mean()) if hits.size else None
        rated = self.aupimo[~np.isnan(self.aupimo)]
        values[metrics.AUPIMO] = float(rated.mean()) if rated.size else None
        return values | {"image_threshold": image_threshold, "pixel_threshold": pixel_threshold}

    def with_intervals(self, columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Metrics at each kind of threshold, with 95 % intervals: METRIC_KEYS, None where undefined."""
        ones = np.ones((1, len(self.samples)))
        base = self._resampled(ones, columns)
        chunks = [self._resampled(weights, columns) for weights in bootstrap.bootstrap_weights(self.labels)]
        completed = {}
        for kind, values in columns.items():
            values = dict(values)
            for key in metrics.MEASURED_KEYS:
                ends: tuple[float | None, float | None] = (None, None)
                if values[key] is not None:
                    drawn = np.concatenate([chunk[kind][key] for chunk in chunks])
                    ends = self._interval(key, values, drawn, float(base[kind][key][0]))
                values |= dict(zip((f"{key}_low", f"{key}_high"), ends, strict=True))
            completed[kind] = {key: values[key] for key in metrics.METRIC_KEYS}
        return completed

    def _interval(self, key: str, values: dict[str, Any], drawn: np.ndarray, base: float) -> tuple[float, float]:
        """95 % interval of a metric. values: metrics at a kind of threshold. drawn, base: see `bootstrap.interval`."""
        nominal, anomalous = (int(np.sum(self.labels == label)) for label in (0, 1))
        counts = {"true_positives": anomalous, "false_negatives": anomalous}
        counts |= {"true_negatives": nominal, "false_positives": nominal}
        if key in counts:
            count = counts[key]
            low, high = bootstrap.share_interval(values[key] / max(count, 1), count)
            return low * count, high * count
        if key == "accuracy":
            return bootstrap.share_interval(values[key], len(self.samples))
        if key == metrics.HIT_RATE:
            called = self.scores > (np.inf if values["image_threshold"] is None else values["image_threshold"])
            return bootstrap.share_interval(values[key], int(np.sum(called & ~np.isnan(self._hits))))
        if key in (*metrics.PIXEL_KEYS, *metrics.PIXEL_KEYS_AT_THRESHOLD, metrics.SPRO):
            return bootstrap.interval(drawn, base, values[key], max(int(self.labels[self._counted].sum()), 1))
        if key == metrics.AUPIMO:
            anomalous = int(np.sum(~np.isnan(self.aupimo)))
        return bootstrap.interval(drawn, base, values[key], min(filter(None, (nominal, anomalous))))

    def _resampled(self, weights: np.ndarray, columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
        """Metrics (D,) at each kind of threshold, each image counted as often as `weights` (D, N) say."""
        over_all = bootstrap.resampled_image_metrics(self.labels, self.scores, weights)
        bins = {kind: self.pixels.coarse_bin(values["pixel_threshold"] or 0) for kind, values in columns.items()}
        pixels = (
            bootstrap.resampled_pixel_metrics(self.pixels.images, weights[:, self._counted], bins)
            if self._counted
            else {}
        )
        over_all[metrics.AUPIMO] = self.pixels.overlaps.resampled(weights[:, self._counted])
        drawn = {}
        for kind, values in columns.items():
            called = self.scores > (np.inf if values["image_threshold"] is None else values["image_threshold"])
            seen = called & ~np.isnan(self._hits)
            with np.errstate(divide="ignore", invalid="ignore"):
                hit_rate = weights @ np.where(seen, np.nan_to_num(self._hits), 0) / (weights @ seen)
            drawn[kind] = (
                over_all | bootstrap.resampled_image_metrics_at(self.labels, called, weights) | pixels.get(kind, {})
            )
            drawn[kind][metrics.HIT_RATE] = hit_rate
        return drawn

    def notes(self) -> dict[str, str]:
        """What readers of the metrics must know."""
        notes = {}
        unmasked = sum(sample.has_anomaly and not sample.masks for sample in self.samples)
        if unmasked:
            notes["pixels"] = f"{unmasked} anomalous images without a mask are left out of the pixel metrics"
        if self._vanished:
            names = ", ".join(self._vanished)
            notes["masks"] = f"masks that vanish at this img_size (their images keep the label): {names}"
        if warning := self.pixels.overlaps.warning:
            notes[metrics.AUPIMO] = warning
        if self._left_out:
            share = f"{self._left_out:,} of {self._seen:,} pixels ({100 * self._left_out / self._seen:.1f} %)"
            notes["left_out"] = (
                f"{share} are left out of scores and metrics: masked, or outside of the registered image"
            )
        return notes

    def reasons(self, kind: str, values: dict[str, Any]) -> dict[str, str]:
        """Why values are undefined, and a warning about `optimal` thresholds."""
        reasons = {}
        for key, value in values.items():
            if value is None and not key.endswith(("_low", "_high")):
                reasons[key] = self._reason(key)
        if kind == OPTIMAL:
            reasons["thresholds"] = "chosen on the test set: optimistic"
        return reasons

    def warning(self, values: dict[str, Any]) -> str | None:
        """A warning where scores separate the images, but the maps do not show the defects; None otherwise."""
        auroc, ap, hit_rate = (values[key] for key in ("image_auroc", "pixel_ap", metrics.HIT_RATE))
        share = self.pixels.anomalous_share
        if auroc is None or ap is None or auroc < HIGH_AUROC:
            return None
        is_missed = hit_rate is not None and hit_rate < LOW_POINTING_GAME
        if ap >= CHANCE_TIMES * share and not is_missed:
            return None
        found = f"pixel AP is {ap:.3f} where {share:.3f} is chance"
        if is_missed:
            found += f", and the pointing game accuracy is {hit_rate:.2f}"
        return (
            f"scores separate nominal from anomalous images (AUROC {auroc:.2f}), but maps do not show the defects "
            f"({found}): the scores may rest on lighting or background"
        )

    def compared_with(self, held_out: Sequence[float]) -> str | None:
        """A warning where scores of nominal test images differ significantly from these; None otherwise."""
        own, others = self.scores[self.labels == 0], np.array(held_out)
        if not differ_significantly(own, others):
            return None
        here, there = np.median(own), np.median(others)
        return (
            f"scores of the {len(own)} nominal test images (median {here:.3f}) differ significantly from those of the "
            f"{len(others)} images that thresholds come from (median {there:.3f}): the thresholds may not fit"
        )

    def _reason(self, key: str) -> str:
        if key == metrics.HIT_RATE:
            return "no anomalous image with a mask is called anomalous"
        if key in (*metrics.PIXEL_KEYS, *metrics.PIXEL_KEYS_AT_THRESHOLD, *metrics.OVERLAP_KEYS, "pixel_threshold"):
            if not any(sample.masks for sample in self.samples):
                return "no anomalous image has a mask"
            if key == metrics.SPRO and not any(sample.defects_config for sample in self.samples):
                return "the category has no defects_config.json, as those of MVTec LOCO have"
            missing = self.pixels.overlaps.missing if key == metrics.AUPIMO else self.pixels.missing
            return missing or ("every mask vanishes at this img_size" if key == metrics.SPRO else "no threshold")
        return "test/ has no nominal image" if self.labels.all() else "test/ has no anomalous image"
