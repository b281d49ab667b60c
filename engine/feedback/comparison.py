"""Whether a run that has learned from feedback is better than the one that it came from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from config import Config, with_white_level
from engine.feedback.marks import ANOMALOUS
from engine.feedback.review import Review
from engine.threshold import scores_of
from evaluation.image_metrics import image_metrics
from evaluation.metrics import PixelMetrics, image_score
from inference.detector import Detector
from reporting import tables
from training.data import datasets, find_files, split
from training.validation import SyntheticSamples, outputs

LOSS = 0.01  # of a metric with synthetic anomalies on old images that counts as worse
SAMPLES = 1000  # with synthetic anomalies, at least: so many that chance seldom decides


@dataclass
class Figures:
    """What weights and a threshold reach, on old images and on new ones (of feedback).

    Attributes:
        false_positives: of the held-out nominal images, with their number.
        recall, auroc, pixel_ap: with synthetic anomalies on these; image AUROC and pixel AP need no threshold.
        found: of the marked anomalies, with their number.
    """

    false_positives: dict[str, tuple[int, int]] = field(default_factory=dict)
    recall: dict[str, float | None] = field(default_factory=dict)
    auroc: dict[str, float | None] = field(default_factory=dict)
    pixel_ap: dict[str, float | None] = field(default_factory=dict)
    found: tuple[int, int] = (0, 0)


def run(config: Config, before: Detector, after: Detector, review: Review) -> tuple[list[str], bool]:
    """Compare on held-out old images, on held-out new ones, and with synthetic anomalies on both.

    Args:
        config: the settings of the new run. before, after: detectors of both.

    Returns:
        a table and sentences, and whether the new run is better.
    """
    assert after.ckpt.images is not None
    files = split(config, find_files(config), after.ckpt.images)
    settled = with_white_level(config, after.ckpt.white_level)
    _, synthetic = datasets(settled, files, after.ckpt.embedded_assets.get("reference"))
    assert synthetic is not None  # a fifth of the new images is held out
    synthetic.set_count(SAMPLES)
    new = files.added()
    parts = {
        "old": [file for file in files.held_out if file not in new],
        "new": [file for file in files.held_out if file in new],
    }
    of_both = scores_of(before, [*parts["old"], *parts["new"]]).thresholds(config.metrics.max_false_alarms)
    limits = [one.thresholds.image if one.thresholds else None for one in (before, after)]
    kind = before.config.metrics.threshold_type
    limits.insert(1, of_both[kind].image if kind in of_both else limits[0])
    seen = [_Seen(one, config, synthetic, parts, review) for one in (before, after)]
    figures = [
        one.at(float("inf") if limit is None else limit) for one, limit in zip((seen[0], *seen), limits, strict=True)
    ]
    reasons = worse(*figures)
    lines = [_table(figures)]
    if reasons:
        lines += [f"not better: {reason}" for reason in reasons]
        lines.append(f"nothing else has changed: {before.ckpt.path} is used as before")
    else:
        lines.append(f"better; it is used where its run is named: --set data.run_name={config.data.run_name}")
    return lines, not reasons


class _Seen:
    """Scores of everything that is compared, of one detector."""

    def __init__(
        self,
        detector: Detector,
        config: Config,
        synthetic: SyntheticSamples,
        parts: dict[str, list[Path]],
        review: Review,
    ):
        self.nominal = {part: _scores(detector, files) for part, files in parts.items()}
        self.anomalous = _scores(detector, [one.image.path for one in review.marked(ANOMALOUS)])
        new, count = set(parts["new"]), len(synthetic.files)
        labels: dict[str, list[bool]] = {"old": [], "new": []}
        scores: dict[str, list[float]] = {"old": [], "new": []}
        pixels = {part: PixelMetrics() for part in parts}
        settled = with_white_level(config, detector.ckpt.white_level)
        for number, output in enumerate(outputs(detector.ckpt.model, synthetic, settled)):
            part = "new" if synthetic.files[number % count] in new else "old"
            labels[part].append(bool(output.mask.any()))
            scores[part].append(image_score(output.anomaly_map))
            pixels[part].update(output.anomaly_map, output.mask)
        self.labels = {part: np.array(values, bool) for part, values in labels.items()}
        self.scores = {part: np.array(values, float) for part, values in scores.items()}
        self.pixel_ap = {
            part: one.compute()["pixel_ap"] if self.labels[part].any() else None for part, one in pixels.items()
        }

    def at(self, limit: float) -> Figures:
        """The figures at an image threshold."""
        found = int((self.anomalous > limit).sum()), len(self.anomalous)
        figures = Figures(pixel_ap=self.pixel_ap, found=found)
        for part, scores in self.nominal.items():
            figures.false_positives[part] = int((scores > limit).sum()), len(scores)
            above = self.scores[part][self.labels[part]] > limit
            figures.recall[part] = float(above.mean()) if len(above) else None
            figures.auroc[part] = image_metrics(self.labels[part].astype(int), self.scores[part])["image_auroc"]
        return figures


def _scores(detector: Detector, files: Sequence[Path]) -> np.ndarray:
    return np.array(scores_of(detector, files).image_scores) if files else np.zeros(0)


def worse(before: Figures, recalibrated: Figures, after: Figures) -> list[str]:
    """Why a run is not better; empty where it is.

    recalibrated: the old weights with a threshold from the held-out old and new images.
    """
    reasons = []
    (old, count), (old_after, _) = before.false_positives["old"], after.false_positives["old"]
    (new, new_count), (new_after, _) = before.false_positives["new"], after.false_positives["new"]
    if new_count and new_after >= new:
        reasons.append(f"{new_after} of {new_count} held-out new images are false positives, {new} were before")
    if old_after > old + max(1, LOSS * count):
        reasons.append(f"{old_after} of {count} held-out old images are false positives, {old} were before")
    for name, values in (("image AUROC", "auroc"), ("pixel AP", "pixel_ap")):
        was, now = getattr(before, values)["old"], getattr(after, values)["old"]
        if was is not None and now is not None and was - now > LOSS:
            reasons.append(f"{name} with synthetic anomalies on old images is {now:.4f}, it was {was:.4f}")
    recalls = [[one.recall[part] for part in ("old", "new")] for one in (recalibrated, after)]
    means = [float(np.mean([value for value in values if value is not None] or [0])) for values in recalls]
    if means[1] < means[0] - LOSS:
        reasons.append(
            f"new thresholds alone (--recalibrate) find {means[0]:.3f} of the synthetic anomalies, "
            f"the new run {means[1]:.3f}"
        )
    return reasons


def _table(figures: Sequence[Figures]) -> str:
    rows: list[tuple] = [("", "before", "new thresholds alone", "after")]
    for part in ("old", "new"):
        shares = (one.false_positives[part] for one in figures)
        rows.append((f"held-out {part} images: false positives", *(f"{some} of {all_}" for some, all_ in shares)))
        for title, values in (("recall", "recall"), ("image AUROC", "auroc"), ("pixel AP", "pixel_ap")):
            name = f"  with synthetic anomalies: {title}"
            rows.append((name, *(getattr(one, values)[part] for one in figures)))
    if figures[0].found[1]:
        rows.append(("marked anomalies found", *(f"{some} of {all_}" for some, all_ in (one.found for one in figures))))
    return tables.text_table(rows)
