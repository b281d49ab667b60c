"""--recalibrate: thresholds from held-out and marked nominal images together."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.feedback.marks import NOMINAL
from engine.feedback.review import BIASED, Review, name_of
from engine.threshold import (
    nominal_images,
    provenance_with,
    scores_of,
    sentences,
    thresholds_of,
    values_table,
)
from evaluation.thresholds import Thresholds, images_needed
from inference import threshold_file
from inference.threshold_file import NominalThresholds
from runtime.errors import UserError
from runtime.provenance import file_digests

NO_ESTIMATE = "what false-positive rate to expect is not known: the images that it comes from were not drawn alike"


def run(review: Review) -> Path:
    """Compute and keep thresholds beside those of the held-out images; their file.

    Images without a mark are not used, and none that was trained on.

    Raises:
        UserError: no nominal image is marked, or held-out images are missing.
    """
    detector, marked = review.detector, [one.image for one in review.marked(NOMINAL)]
    if not marked:
        raise UserError(review.file, "no nominal image is marked that was not trained on", "mark some in the report")
    samples, is_held_out = nominal_images(detector.config, detector.ckpt)
    held_out = [sample.path for sample in samples if is_held_out is not False]
    known = set(file_digests(held_out))
    files = held_out + [image.path for image in marked if image.digest not in known]
    made_from = provenance_with(detector, files)
    is_untrained = None if detector.ckpt.images is None else True  # those that were trained on are left out
    found = thresholds_of(detector.config, scores_of(detector, files), made_from, is_untrained)
    sample = [image.path for image in marked if image.is_random] if review.is_random else []
    found = _with_expectations(review, found, sample)
    name, technique = name_of(review.file), detector.technique
    path = threshold_file.path_of(detector.run_folder, detector.name, technique, name, detector.engine)
    threshold_file.write(path, detector.config, detector.ckpt, found)
    print(f"thresholds from {len(held_out)} held-out and {len(files) - len(held_out)} marked nominal images")
    print(values_table(found, detector.config.metrics))
    for line in sentences(found):
        print(line)
    if not sample:
        print(BIASED)
    print(f"for --predict, --watch and --export with these thresholds: --set metrics.nominal={name}")
    return path


def _with_expectations(review: Review, found: NominalThresholds, sample: Sequence[Path]) -> NominalThresholds:
    """The thresholds with what to expect of them; with the conformal guarantee where there is a random sample.

    The guarantee is that of the sample alone, since held-out images may be taken in another way: the threshold is the
    higher one of its own and that of all images.
    """
    expected = dict.fromkeys(found.by_kind, NO_ESTIMATE)
    limit = review.detector.config.metrics.max_false_alarms
    if not sample:
        return replace(found, false_positive_rates=expected)
    of_sample = scores_of(review.detector, sample).thresholds(limit)["conformal"]
    if math.isinf(of_sample.image or 0):
        expected["conformal"] = (
            f"no guarantee: {len(sample)} nominal images of the random sample are too few for a false-positive rate "
            f"of at most {limit:.3g}, {images_needed(limit)} are needed"
        )
        return replace(found, false_positive_rates=expected)
    expected["conformal"] = (
        f"false-positive rate on average at most {100 * limit:.2g} % of images drawn as the random sample was, whose "
        f"{len(sample)} nominal images guarantee it"
    )
    _, image, pixel = found.by_kind["conformal"]
    assert of_sample.image is not None and of_sample.pixel is not None and image is not None and pixel is not None
    conformal = Thresholds("conformal", max(image, of_sample.image), max(pixel, of_sample.pixel))
    return replace(found, by_kind=found.by_kind | {"conformal": conformal}, false_positive_rates=expected)
