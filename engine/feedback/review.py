"""The feedback mode: what marks of people say about verdicts, thresholds and drift."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import Config
from engine.feedback import marks
from engine.feedback.marks import ANOMALOUS, NOMINAL, UNCLEAR, MarkedImage
from engine.threshold import scores_of
from evaluation.bootstrap import share_interval
from evaluation.drift import drift
from evaluation.image_metrics import optimal_image_threshold
from evaluation.thresholds import FEWEST
from inference import threshold_file
from inference.detector import Detector
from reporting import tables
from runtime.csv_file import write_csv
from runtime.errors import UserError
from runtime.files import write_text

BIASED = (
    "marks of false alarms alone are of the images with the highest scores: they say nothing about how many there are; "
    "pick a random sample in the report, and mark all of it"
)


class ScoredImage(NamedTuple):
    """A marked image with its score. day: of the file's time, as `date.toordinal` counts."""

    image: MarkedImage
    score: float
    day: int


@dataclass(frozen=True)
class Review:
    """Marks and what they say.

    Attributes:
        file: feedback.csv. detector: of the checkpoint. folder: that the review is written to.
        images: with a mark, which were not trained on. sample: all of the random sample, marked or not.
    """

    file: Path
    detector: Detector
    folder: Path
    images: Sequence[ScoredImage]
    sample: Sequence[MarkedImage]

    def marked(self, mark: str) -> list[ScoredImage]:
        """Those with this mark."""
        return [one for one in self.images if one.image.mark == mark]

    @property
    def is_random(self) -> bool:
        """Whether there is a random sample of which all images are marked."""
        return bool(self.sample) and all(image.mark for image in self.sample)


def run(config: Config, file: Path) -> Review:
    """Score the marked images, and write and print what the marks say.

    Raises:
        UserError: mistakes in the file, no marks, no checkpoint or no thresholds.
    """
    rows = marks.read(file)
    if not config.metrics.threshold:
        raise UserError("metrics.threshold", "is false, but marks are compared with thresholds", "set it to true")
    detector = Detector.for_new_images(config)
    for line in detector.notes:
        print(line)
    if not detector.all_thresholds:
        raise UserError(detector.thresholds_path, "no thresholds yet", threshold_file.FIX_HINT)
    trained = set(detector.ckpt.images.training.values()) if detector.ckpt.images else set()
    used = [row for row in rows if row.mark and row.digest not in trained]
    if not used:
        raise UserError(file, "has no marked image that was not trained on", "mark some in the report")
    scores = scores_of(detector, [row.path for row in used]).image_scores
    days = [date.fromtimestamp(row.path.stat().st_mtime).toordinal() for row in used]
    images = list(map(ScoredImage, used, scores, days))
    review = Review(file, detector, folder_of(detector, file), images, [row for row in rows if row.is_random])
    lines = [*_counts(review, rows), *_tables(review), *_drift(review)]
    _write(review, lines)
    for line in lines:
        print(line)
    return review


def name_of(file: Path) -> str:
    """What a file of marks is called in names of files, and by metrics.nominal."""
    return threshold_file.nominal_name(file.with_suffix(""))


def folder_of(detector: Detector, file: Path) -> Path:
    """Folder of a file's review, below the checkpoint's results."""
    data = detector.config.data
    checkpoint = Path(data.results_path) / data.run_name / data.category / f"checkpoint_{detector.name}"
    return checkpoint / "feedback" / name_of(file)


def _counts(review: Review, rows: Sequence[MarkedImage]) -> list[str]:
    counts = Counter(one.image.mark for one in review.images)
    lines = [f"{review.file}: " + ", ".join(f"{counts[mark]} {mark}" for mark in marks.MARKS)]
    if unmarked := sum(not row.mark for row in rows):
        lines.append(f"{unmarked} without a mark are not used: what the program alone says is no evidence")
    if trained := sum(bool(row.mark) for row in rows) - len(review.images):
        lines.append(f"{trained} that were trained on are not used")
    if review.sample and not review.is_random:
        left = sum(not image.mark for image in review.sample)
        lines.append(f"{left} of {len(review.sample)} images of the random sample are not marked: mark these too")
    elif review.sample:
        unclear = sum(image.mark == UNCLEAR for image in review.sample)
        lines.append(f"a random sample of {len(review.sample)} images, {unclear} of them unclear")
    if not all(one.image.is_random for one in review.images) or not review.is_random:
        lines.append(BIASED)
    return lines


def _tables(review: Review) -> list[str]:
    """False-positive rate and recall at each threshold."""
    lines = [_table(review, review.images, "of the marked images")]
    if review.is_random:
        sample = [one for one in review.images if one.image.is_random]
        lines.append(_table(review, sample, "of the random sample: what to expect of new images like these"))
    return lines


def _table(review: Review, images: Sequence[ScoredImage], title: str) -> str:
    known = [one for one in images if one.image.mark != UNCLEAR]
    labels = np.array([one.image.mark == ANOMALOUS for one in known], int)
    scores = np.array([one.score for one in known])
    by = review.detector.config.metrics.optimal
    limits = {kind: found.image for kind, found in review.detector.all_thresholds.items()}
    best = optimal_image_threshold(labels, scores, by) if known else None
    rows: list[tuple] = [(title, "threshold", "false-positive rate", "recall")]
    for kind, limit in (limits | {f"best for these ({by})": best}).items():
        if limit is not None:
            above = scores > limit
            shares = _share(above[labels == 0]), _share(above[labels == 1])
            rows.append((kind, "none" if np.isinf(limit) else float(limit), *shares))
    lines = [tables.text_table(rows), "in brackets: 95 % intervals"]
    if best is None:
        lacking = "anomalous" if not labels.any() else "nominal"
        lines.append(f"no {lacking} image is marked: which threshold is best for these is not known")
    return "\n".join(lines)


def _share(is_above: np.ndarray) -> str:
    """Share of images, with its interval."""
    if not len(is_above):
        return "-"
    low, high = share_interval(float(is_above.mean()), len(is_above))
    return f"{is_above.mean():.3f} [{low:.3f}, {high:.3f}] ({is_above.sum()} of {len(is_above)})"


def _drift(review: Review) -> list[str]:
    """Nominal scores by day, and since when they differ from the held-out ones."""
    is_random = review.is_random
    nominal = [one for one in review.marked(NOMINAL) if one.image.is_random or not is_random]
    reference = np.array(review.detector.nominal_scores)
    scores, days = np.array([one.score for one in nominal]), [one.day for one in nominal]
    found = drift(reference, scores, days)
    if not found:
        return ["drift: not known, without nominal images and held-out ones"]
    limit = review.detector.thresholds
    rows: list[tuple] = [("day", "nominal images", "median score", "false positives")]
    for day in sorted(set(days)):
        own = scores[np.array(days) == day]
        above = int((own > limit.image).sum()) if limit and limit.image is not None else None
        rows.append((date.fromordinal(day).isoformat(), len(own), float(np.median(own)), above))
    lines = [tables.text_table(rows)]
    medians = f"median {found.after:.4f} of {sum(day >= found.day for day in days)} images, {found.before:.4f} before"
    if found.is_significant:
        way, since = "higher" if found.after > found.before else "lower", date.fromordinal(found.day)
        lines.append(f"drift: nominal scores are {way} since {since} ({medians}; p = {found.p:.1g})")
        if not is_random:
            lines.append("where only false alarms are marked, that can be their choice instead of a drift")
    elif len(scores) < FEWEST:
        lines.append(f"drift: too few nominal images to say, {len(scores)}")
    else:
        lines.append(f"drift: no significant one ({len(scores)} nominal images, {len(reference)} held-out ones)")
    return lines


def _write(review: Review, lines: Sequence[str]) -> None:
    rows = [
        (one.image.path.as_posix(), one.image.mark, marks.RANDOM if one.image.is_random else "", day, one.score)
        for one in review.images
        for day in [date.fromordinal(one.day).isoformat()]
    ]
    write_csv(review.folder / "scores.csv", [("path", "mark", "sample", "day", "score"), *rows])
    write_text(review.folder / "summary.txt", "\n".join(lines) + "\n")
