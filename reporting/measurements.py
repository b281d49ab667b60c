"""What a pass over the test pictures adds up to under one technique: scores, pixel metrics, the most wrong pictures."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from evaluation import image_metrics, metrics
from evaluation.thresholds import OPTIMAL
from folders import TestImage
from reporting.panels import eight_bit

if TYPE_CHECKING:
    from inference.detect import NetworkOutput

MISTAKES = 8  # of each kind, on the contact sheet


class Extreme(NamedTuple):
    """A picture whose score is among the most wrong ones of its label."""

    idx: int
    image: np.ndarray  # uint8 (H, W, 3)
    mask: np.ndarray  # bool (H, W)
    anomaly_map: np.ndarray  # float32 (H, W)


class Measurements:
    """Fed picture by picture; then metrics over all thresholds and at each.

    Args:
        pictures: in the dataset's order. category: the folder that names are told relative to.

    Attributes:
        scores: float64 (N,). labels: int (N,), 1 for anomalous. pixels: the pixel metrics' accumulator.
    """

    def __init__(self, pictures: Sequence[TestImage], category: Path):
        self.pictures, self._category = pictures, category
        self.scores = np.zeros(len(pictures))
        self.labels = np.array([int(picture.has_anomaly) for picture in pictures])
        self.pixels = metrics.PixelMetrics()
        self._vanished: list[str] = []
        self._left_out = self._seen = 0
        self._extremes: dict[int, list[Extreme]] = {0: [], 1: []}

    def name(self, idx: int) -> str:
        """Path of a picture within its category."""
        return self.pictures[idx].path.relative_to(self._category).as_posix()

    def update(self, found: "NetworkOutput") -> None:
        """Take in one picture."""
        picture = self.pictures[found.idx]
        self.scores[found.idx] = metrics.image_score(found.anomaly_map)
        if picture.mask_path or not picture.has_anomaly:
            self.pixels.update(found.anomaly_map, found.mask, found.valid)
        if picture.mask_path and not found.mask.any():
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
        return image_metrics.optimal_image_threshold(self.labels, self.scores), self.pixels.optimal_threshold()

    @cached_property
    def image_metrics(self) -> dict[str, float | None]:
        """Over all thresholds, when all pictures have come."""
        return image_metrics.image_metrics(self.labels, self.scores)

    def metrics_at(self, image_threshold: float | None, pixel_threshold: float | None) -> dict[str, Any]:
        """Values of METRIC_KEYS."""
        values = self.image_metrics | image_metrics.image_metrics_at(self.labels, self.scores, image_threshold)
        values |= self.pixels.compute(pixel_threshold)
        values |= {"image_threshold": image_threshold, "pixel_threshold": pixel_threshold}
        return {key: values[key] for key in metrics.METRIC_KEYS}

    def notes(self) -> dict[str, str]:
        """What readers of the metrics must know."""
        notes = {}
        unmasked = sum(picture.has_anomaly and not picture.mask_path for picture in self.pictures)
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
        reasons = {key: self._reason(key) for key, value in values.items() if value is None}
        if kind == OPTIMAL:
            reasons["thresholds"] = "chosen on the test set: optimistic"
        return reasons

    def _reason(self, key: str) -> str:
        if key in (*metrics.PIXEL_KEYS, *metrics.PIXEL_KEYS_AT_THRESHOLD, "pixel_threshold"):
            if not any(picture.mask_path for picture in self.pictures):
                return "no defect image has a mask"
            return self.pixels.missing or "no threshold"
        return "test/ has no nominal image" if self.labels.all() else "test/ has no defect image"
