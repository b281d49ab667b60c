"""The threshold mode: thresholds from nominal images that were not trained on."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from config import Config, Metrics, map_settings, threshold_settings
from data.folders import DatasetNotes, images_below
from data.layouts.registry import open_category
from data.mask_files import split_images_and_masks
from data.mask_matching import and_n_more
from data.mvtec import TestSample, split_nominal
from evaluation.metrics import image_score
from evaluation.thresholds import (
    NominalScores,
    NoScoresError,
    Thresholds,
    conformal,
    false_positive_estimate,
    images_needed,
)
from inference import checkpoint, threshold_file
from inference.checkpoint import Checkpoint, CheckpointMetadata
from inference.detect import NetworkOutput, detect
from inference.detector import Detector
from inference.preprocessing import Preprocessor, Technique, apply_valid_mask, configured
from inference.threshold_file import NominalThresholds, nominal_name
from reporting import tables
from runtime import provenance
from runtime.device import Together, map_in_threads
from runtime.errors import UserError
from runtime.provenance import Provenance

NOT_KNOWN = "whether these weights were trained on the images that thresholds come from is not known"


def run(config: Config, group: Together | None = None) -> Path:
    """Compute, save and print the thresholds of the configured checkpoint and technique; their file.

    group: processes that share the images; the first writes.
    """
    technique = configured(config)
    ckpt = checkpoint.load(config)
    preprocessor = Preprocessor.for_checkpoint(config, ckpt, [technique])
    for line in preprocessor.notes:
        print(line)
    for found in compute_thresholds(preprocessor.config, ckpt, preprocessor, [technique], group):
        print(table(found, config.metrics))
    return threshold_file.path_of(config.run_folder, ckpt.name, technique)


def run_on(config: Config, folder: Path) -> Path:
    """Thresholds of a trained model from any folder of nominal images, kept beside the others; their file.

    Like --predict it needs a checkpoint and nothing else.

    Raises:
        UserError: no images there, one that cannot be read, or all of them were trained on.
    """
    notes = DatasetNotes()
    files, masks = split_images_and_masks(folder, images_below(folder, notes), notes)
    for mask in masks:
        notes.skip("masks beside nominal images", mask.relative_to(folder).as_posix())
    for line in notes.lines():
        print(f"{folder}: {line}")
    if not files:
        problem = "no images" if folder.is_dir() else "no such folder"
        raise UserError(f"--nominal {folder}", problem, "name a folder of nominal images")
    detector = Detector.for_new_images(config.with_values({"metrics.threshold": False}))  # earlier ones are not needed
    trained = set(detector.ckpt.images.training.values()) if detector.ckpt.images else set()
    digests = provenance.file_digests(files)
    untrained = {digest: file for file, digest in zip(files, digests, strict=True) if digest not in trained}
    left = sorted(untrained.values())
    if count := sum(digest in trained for digest in digests):
        print(f"{folder}: {count} images were trained on; left out of thresholds")
    if copies := len(files) - count - len(left):
        print(f"{folder}: {copies} copies of other images, which count once")
    if not left:
        raise UserError(f"--nominal {folder}", "all images there were trained on", "name a folder of others")
    scores, held_out = scores_of(detector, left), None if detector.ckpt.images is None else True
    path = threshold_file.path_of(
        detector.run_folder, detector.name, detector.technique, nominal_name(folder), detector.engine
    )
    found = thresholds_of(detector.config, scores, provenance_with(detector, left), held_out)
    threshold_file.write(path, detector.config, detector.ckpt, found)
    print(table(found, detector.config.metrics))
    print(f"for --predict, --watch and --export with these thresholds: --set metrics.nominal={nominal_name(folder)}")
    return path


def of_held_out(detector: Detector) -> NominalThresholds | None:
    """Thresholds of a detector, in its precision, from the held-out images; None where these are not at hand."""
    config = detector.config
    try:
        samples, is_held_out = nominal_images(config, detector.ckpt)
    except (UserError, OSError):
        return None
    files = [sample.path for sample in samples]
    return thresholds_of(config, scores_of(detector, files), provenance_with(detector, files), is_held_out)


def provenance_with(detector: Detector, files: Sequence[Path]) -> Provenance:
    settings = threshold_settings(detector.config) | detector.made_from().settings
    return replace(detector.made_from(), nominal=provenance.content(files), settings=settings)


def scores_of(detector: Detector, files: Sequence[Path]) -> "Scores":
    """Scores of image files; UserError with all that cannot be read."""
    config, (height, width) = detector.config, detector.config.data.img_size
    scores = Scores(config.metrics.p, config.metrics.k, len(files), height * width)
    size = detector.images_at_once
    for first in tqdm(range(0, len(files), size), "nominal images", unit="pass", leave=None):
        try:
            batch = map_in_threads(detector.read, files[first : first + size])
        except UserError:  # name all images that fail
            map_in_threads(lambda file: detector.read(file) and None, files)
            raise
        for found in detector.run(batch):
            scores.update(found.output)
        if detector.technique.registered:
            names = [file.name for file in files[first : first + size]]
            scores.unregistered += [name for name, one in zip(names, batch, strict=True) if one.homography is None]
    return scores


def nominal_images(config: Config, ckpt: CheckpointMetadata) -> tuple[list[TestSample], bool | None]:
    """Nominal images to compute thresholds from, and whether they are held out (False: trained on; None: not known).

    Images are identified by content: renamed ones stay held out, and copies count once, as they say nothing new.
    """
    category = open_category(config)
    own, validation = category.nominal(), category.validation()
    files = own + validation
    if ckpt.images is None:  # weights of another program
        _, held_out = split_nominal(own, config.data.val_split, config.train.seed, config.data.split_by, None, category)
        held_out = validation or held_out
    else:
        digests = dict(zip(files, provenance.file_digests(files), strict=True))
        there = {digest: file for file, digest in digests.items()}
        trained = set(ckpt.images.training.values())
        if there.keys() & (trained | set(ckpt.images.held_out.values())):
            wanted = {name: digest for name, digest in ckpt.images.held_out.items() if digest not in trained}
            held_out = _found(there, wanted, ckpt)
            if not held_out:  # nothing was held out, but validation images may have been added since
                held_out = [there[digest] for digest in {digests[file] for file in validation} - trained]
        else:  # weights of another dataset: trained on none of these
            held_out = list(there.values())
    of_content = dict(zip(provenance.file_digests(held_out or own), held_out or own, strict=True))
    samples = [TestSample(file, False, category.name(file)) for file in sorted(of_content.values())]
    return samples, None if ckpt.images is None else bool(held_out)


def _found(there: dict[str, Path], wanted: dict[str, str], ckpt: CheckpointMetadata) -> list[Path]:
    """The wanted files. there: digest -> file. wanted: name -> digest."""
    missing = [name for name, digest in wanted.items() if digest not in there]
    if missing:
        raise UserError(
            f"{missing[0]}{and_n_more(missing)}",
            f"held out when {ckpt.path} was trained, now missing",
            "restore it, or train anew",
        )
    return [there[digest] for digest in set(wanted.values())]


def provenance_of(
    config: Config,
    ckpt_fingerprint: str,
    preprocessor: Preprocessor,
    technique: Technique,
    samples: Sequence[TestSample],
) -> Provenance:
    """What thresholds are computed from."""
    settings = threshold_settings(config) | map_settings(config)
    nominal = provenance.content([sample.path for sample in samples])
    return Provenance(
        weights=ckpt_fingerprint, nominal=nominal, settings=settings, **preprocessor.provenance_fields(technique)
    )


class Scores:
    """Scores of nominal images under a technique.

    Attributes:
        image_scores: of each image. unregistered: names of the images that could not be registered.
    """

    def __init__(self, p: float, k: float, count: int, pixels: int):
        self._of_images, self.of_pixels = NominalScores(p, k, count), NominalScores(p, k, count * pixels)
        self.image_scores: list[float] = []
        self.unregistered: list[str] = []
        self._largest: list[float] = []  # largest pixel score of each image

    def update(self, output: NetworkOutput) -> None:
        """Add an image."""
        score = image_score(output.anomaly_map)
        self.image_scores.append(score)
        self._of_images.update(np.array(score))
        counted = output.anomaly_map if output.valid is None else output.anomaly_map[output.valid]
        self.of_pixels.update(counted)
        self._largest.append(float(counted.max(initial=0)))

    def thresholds(self, max_false_alarms: float) -> dict[str, Thresholds]:
        """Threshold kind -> thresholds; conformal ones are infinite where there are too few images."""
        image, pixel = self._of_images.compute(), self.of_pixels.compute()
        image["conformal"], pixel["conformal"] = (
            conformal(np.array(scores), max_false_alarms) for scores in (self.image_scores, self._largest)
        )
        return {kind: Thresholds(kind, value, pixel[kind]) for kind, value in image.items()}


def _false_positive_sentence(config: Config, kind: str, count: int, threshold: float | None) -> str:
    """The false-positive rate to expect of an image threshold, in a sentence."""
    limit = config.metrics.max_false_alarms
    assert threshold is not None  # only `optimal` ones can be undefined
    if math.isinf(threshold):
        return (
            f"no image is called anomalous: {count} images are too few for a false-positive rate of at most "
            f"{limit:.3g}, {images_needed(limit)} are needed"
        )
    rate = false_positive_estimate(kind, count, config.metrics.p, config.metrics.k, limit)
    words = f"false-positive rate about {_percent(rate.expected)} (90 % interval {_percent(rate.low)} to "
    words += f"{_percent(rate.high)})"
    if kind == "k_sigma":
        words += " if scores were normally distributed"
    if kind == "conformal":
        words += f", on average at most {_percent(limit)} whatever the scores' distribution"
    return words + ("; no image is called anomalous: no score is above 1" if threshold >= 1 else "")


def _percent(rate: float) -> str:
    return f"{100 * rate:.2g} %"


def compute_thresholds(
    config: Config,
    ckpt: Checkpoint,
    preprocessor: Preprocessor,
    techniques: Sequence[Technique],
    group: Together | None = None,
) -> list[NominalThresholds]:
    """Compute and save the thresholds of techniques that share an input variant, in one pass; these.

    group: see `detect`; processes other than the first return nothing.
    """
    samples, is_held_out = nominal_images(config, ckpt)
    if ckpt.images and (copies := ckpt.images.held_out_copies):
        print(f"held-out images that are also training images, left out of thresholds: {len(copies)}")
    dataset = preprocessor.dataset(samples, techniques, group)
    height, width = config.data.img_size
    p, k, count = config.metrics.p, config.metrics.k, len(samples)
    scores = [Scores(p, k, count, height * width) for _ in techniques]
    for result in detect(ckpt.model, dataset, config, "nominal images", group):
        for technique, own in zip(techniques, scores, strict=True):
            own.update(apply_valid_mask(result, technique))
    if group and group.rank:
        return []
    found = []
    for technique, own in zip(techniques, scores, strict=True):
        made_from = provenance_of(config, ckpt.fingerprint, preprocessor, technique, samples)
        own.unregistered = preprocessor.registration.unregistered(samples) if technique.registered else []
        path = threshold_file.path_of(config.run_folder, ckpt.name, technique)
        found.append(thresholds_of(config, own, made_from, is_held_out))
        threshold_file.write(path, config, ckpt, found[-1])
    return found


def thresholds_of(config: Config, scores: Scores, made_from: Provenance, is_held_out: bool | None) -> NominalThresholds:
    """Thresholds of all kinds, with what to expect of them."""
    count, (height, width) = len(scores.image_scores), config.data.img_size
    try:
        by_kind = scores.thresholds(config.metrics.max_false_alarms)
    except NoScoresError as error:
        key = f"masking.regions.{config.data.category}"
        raise UserError(key, error, "leave some of the image outside the regions") from error
    return NominalThresholds(
        by_kind,
        is_held_out,
        {kind: _false_positive_sentence(config, kind, count, one.image) for kind, one in by_kind.items()},
        scores.image_scores,
        scores.unregistered,
        count * height * width - scores.of_pixels.count,
        made_from,
    )


def table(found: NominalThresholds, settings: Metrics) -> str:
    """The thresholds, and what to expect of them, as text."""
    source = {
        True: "held-out nominal images",
        None: "nominal images (whether these weights were trained on them is not known)",
        False: "TRAINING images (val_split is 0: nothing was held out, so these thresholds are too low)",
    }[found.held_out]
    head = [f"thresholds from {len(found.image_scores)} {source}"]
    if found.unregistered:
        head.append(f"{len(found.unregistered)} of them could not be registered and stay unregistered")
    if found.pixels_left_out:
        head.append(f"{found.pixels_left_out:,} pixels are left out: masked, or outside of the registered image")
    lines = sentences(found)
    lines.append(
        f"valid for images taken like the held-out ones; a rate of 1 % needs at least {images_needed(0.01)} of them"
    )
    if found.held_out is False:
        lines = ["the false-positive rates of thresholds from training images are not known"]
    return "\n".join([*head, values_table(found, settings), *lines])


def sentences(found: NominalThresholds) -> list[str]:
    """What false-positive rates to expect, a sentence for each kind of threshold."""
    return [f"{kind}: {sentence}" for kind, sentence in found.false_positive_rates.items()]


def values_table(found: NominalThresholds, settings: Metrics) -> str:
    """The thresholds alone, as text."""
    names = {
        "max": "max",
        "p_quantile": f"p_quantile (p = {settings.p:g})",
        "k_sigma": f"k_sigma (k = {settings.k:g})",
        "conformal": f"conformal ({settings.max_false_alarms:g})",
    }
    rows: list[tuple[Any, ...]] = [("", "image", "pixel")]
    for kind, name in names.items():
        _, *values = found.by_kind[kind]
        rows.append((name, *("none" if value is not None and math.isinf(value) else value for value in values)))
    return tables.number_table(rows, 22, 10)


def load_thresholds(
    config: Config, ckpt: Checkpoint, preprocessor: Preprocessor, technique: Technique
) -> NominalThresholds:
    """Thresholds that fit this checkpoint, image size and technique.

    Raises:
        UserError: they are not computed yet, or belong to something else.
    """
    path = threshold_file.path_of(config.run_folder, ckpt.name, technique)
    if not path.is_file():
        raise UserError(
            path, "no thresholds yet", f"{threshold_file.FIX_HINT}, or set metrics.threshold=false for `optimal` only"
        )
    found = threshold_file.read(path)
    now = provenance_of(config, ckpt.fingerprint, preprocessor, technique, nominal_images(config, ckpt)[0])
    assert found.made_from is not None  # `read` refuses files without
    if changed := found.made_from.differences(now):
        raise UserError(path, f"out of date: {', '.join(changed)}", threshold_file.FIX_HINT)
    return found
