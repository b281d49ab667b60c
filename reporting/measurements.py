"""What a pass over the test pictures adds up to under one technique: scores, pixel metrics, the most wrong pictures."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.mvtec import TestSample
from evaluation import bootstrap, image_metrics, metrics
from evaluation.thresholds import OPTIMAL, differ_significantly
from reporting.panels import eight_bit

if TYPE_CHECKING:
    from inference.detect import NetworkOutput

MISTAKES = 8  # of each kind, on the contact sheet
# Where image AUROC reaches the first, pixel AP should reach so many times chance, and so large a share of the detected
# defects should be hit.
TOLD_APART, CHANCE_TIMES, FEW_HITS = 0.75, 3, 0.2


class Extreme(NamedTuple):
    """A picture whose score is among the most wrong ones of its label."""

    idx: int
    image: np.ndarray  # uint8 (H, W, 3)
    mask: np.ndarray  # bool (H, W)
    anomaly_map: np.ndarray  # float32 (H, W)


class Measurements:
    """Fed picture by picture; then metrics over all thresholds and at each.

    Args:
        pictures: in the dataset's order. optimal: what `optimal` thresholds are best in, see `metrics.CRITERIA`.

    Attributes:
        scores: float64 (N,). labels: int (N,), 1 for anomalous. pixels: the pixel metrics' accumulator.
    """

    def __init__(self, pictures: Sequence[TestSample], optimal: str = "f1"):
        self.pictures, self._optimal = pictures, optimal
        self.scores = np.zeros(len(pictures))
        self.labels = np.array([int(picture.has_anomaly) for picture in pictures])
        self.pixels = metrics.PixelMetrics(keeps_images=True)
        self._counted: list[int] = []  # pictures that pixel metrics are measured on
        self._hits = np.full(len(pictures), np.nan)  # of pictures with a mask: whether their score lies in it
        self._vanished: list[str] = []
        self._left_out = self._seen = 0
        self._extremes: dict[int, list[Extreme]] = {0: [], 1: []}

    def name(self, idx: int) -> str:
        """Path of a picture within its category."""
        return self.pictures[idx].name

    def update(self, found: "NetworkOutput") -> None:
        """Take in one picture."""
        picture = self.pictures[found.idx]
        smoothed = metrics.smooth(found.anomaly_map)
        self.scores[found.idx] = smoothed.max()  # the image score
        if picture.masks or not picture.has_anomaly:
            self.pixels.update(found.anomaly_map, found.mask, found.valid)
            self._counted.append(found.idx)
        if found.mask.any():
            self._hits[found.idx] = metrics.is_pointing_game_hit(smoothed, found.mask)
        if picture.masks and not picture.has_empty_mask and not found.mask.any():
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
        """The most wrong first: nominal pictures by falling, anomalous ones by rising score."""
        return (self.scores[idx] if label else -self.scores[idx], idx)

    def most_wrong(self, label: int) -> list[Extreme]:
        """Nominal pictures (label 0) with the highest scores, or anomalous ones (1) with the lowest, worst first."""
        return self._extremes[label]

    def optimal_thresholds(self) -> tuple[float | None, float | None]:
        """Of images and of pixels, chosen on these very pictures."""
        of_images = image_metrics.optimal_image_threshold(self.labels, self.scores, self._optimal)
        return of_images, self.pixels.optimal_threshold(self._optimal)

    @cached_property
    def image_metrics(self) -> dict[str, float | None]:
        """Over all thresholds, when all pictures have come."""
        return image_metrics.image_metrics(self.labels, self.scores)

    def metrics_at(self, image_threshold: float | None, pixel_threshold: float | None) -> dict[str, Any]:
        """Values of MEASURED_KEYS, and the thresholds."""
        values = self.image_metrics | image_metrics.image_metrics_at(self.labels, self.scores, image_threshold)
        values |= self.pixels.compute(pixel_threshold)
        hits = self._hits[(self.scores > np.inf if image_threshold is None else self.scores > image_threshold)]
        hits = hits[~np.isnan(hits)]
        values[metrics.HIT_RATE] = float(hits.mean()) if hits.size else None
        return values | {"image_threshold": image_threshold, "pixel_threshold": pixel_threshold}

    def with_intervals(self, columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Metrics at each type of threshold, completed to METRIC_KEYS by 95 % intervals, None where undefined."""
        ones = np.ones((1, len(self.pictures)))
        base = self._resampled(ones, columns)
        chunks = [self._resampled(weights, columns) for weights in bootstrap.bootstrap_weights(self.labels)]
        completed = {}
        for kind, values in columns.items():
            values = dict(values)
            for key in metrics.MEASURED_KEYS:
                ends = (None, None)
                if values[key] is not None:
                    drawn = np.concatenate([chunk[kind][key] for chunk in chunks])
                    highest = len(self.pictures) if isinstance(values[key], int) else 1.0
                    ends = bootstrap.interval(drawn, float(base[kind][key][0]), values[key], highest)
                values |= dict(zip((f"{key}_low", f"{key}_high"), ends, strict=True))
            completed[kind] = {key: values[key] for key in metrics.METRIC_KEYS}
        return completed

    def _resampled(self, weights: np.ndarray, columns: dict[str, dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
        """Metrics (D,) at each type of threshold, of pictures that count as often as `weights` (D, N) says."""
        over_all = bootstrap.resampled_image_metrics(self.labels, self.scores, weights)
        bins = {kind: self.pixels.coarse_bin(values["pixel_threshold"] or 0) for kind, values in columns.items()}
        pixels = (
            bootstrap.resampled_pixel_metrics(self.pixels.images, weights[:, self._counted], bins)
            if self._counted
            else {}
        )
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
        unmasked = sum(picture.has_anomaly and not picture.masks for picture in self.pictures)
        if unmasked:
            notes["pixels"] = f"{unmasked} defect images without a mask are left out of the pixel metrics"
        if self._vanished:
            names = ", ".join(self._vanished)
            notes["masks"] = f"masks that vanish at this img_size (their images keep the label): {names}"
        if self._left_out:
            share = f"{self._left_out:,} of {self._seen:,} pixels ({100 * self._left_out / self._seen:.1f} %)"
            notes["left_out"] = (
                f"{share} are left out of scores and metrics: masked, or without a source after registration"
            )
        return notes

    def reasons(self, kind: str, values: dict[str, Any]) -> dict[str, str]:
        """Why values are undefined, and how far thresholds of this kind can be trusted."""
        reasons = {}
        for key, value in values.items():
            if value is None and not key.endswith(("_low", "_high")):
                reasons[key] = self._reason(key)
        if kind == OPTIMAL:
            reasons["thresholds"] = "chosen on the test set: optimistic"
        return reasons

    def warning(self, values: dict[str, Any]) -> str | None:
        """A sentence where images are told apart, but not by what their masks mark."""
        auroc, ap, hit_rate = (values[key] for key in ("image_auroc", "pixel_ap", metrics.HIT_RATE))
        share = self.pixels.anomalous_share
        if auroc is None or ap is None or auroc < TOLD_APART:
            return None
        is_missed = hit_rate is not None and hit_rate < FEW_HITS
        if ap >= CHANCE_TIMES * share and not is_missed:
            return None
        found = f"pixel AP is {ap:.3f} where {share:.3f} is chance"
        if is_missed:
            found += f", and {100 * hit_rate:.0f} % of the detected defects are hit"
        return (
            f"images are told apart (AUROC {auroc:.2f}), but their defects are not found ({found}): "
            "the scores may rest on lighting or background"
        )

    def compared_with(self, held_out: Sequence[float]) -> str | None:
        """A sentence where the nominal test pictures score clearly otherwise than those that thresholds come from."""
        own, others = self.scores[self.labels == 0], np.array(held_out)
        if not differ_significantly(own, others):
            return None
        here, there = np.median(own), np.median(others)
        return (
            f"the {len(own)} nominal test pictures score clearly otherwise than the {len(others)} that thresholds come "
            f"from (median {here:.3f}, there {there:.3f}): the thresholds may not fit these pictures"
        )

    def _reason(self, key: str) -> str:
        if key == metrics.HIT_RATE:
            return "no defect image with a mask is called anomalous"
        if key in (*metrics.PIXEL_KEYS, *metrics.PIXEL_KEYS_AT_THRESHOLD, "pixel_threshold"):
            if not any(picture.masks for picture in self.pictures):
                return "no defect image has a mask"
            return self.pixels.missing or "no threshold"
        return "test/ has no nominal image" if self.labels.all() else "test/ has no defect image"
