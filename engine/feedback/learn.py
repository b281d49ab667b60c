"""--learn: training goes on with false alarms among the training images, as a run of its own."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from config import Config, effects, weight_settings
from config_file import Files, settings_text
from data.layouts.extended import FEEDBACK, HELD_OUT, TRAINING
from data.layouts.registry import open_category
from engine import threshold, train
from engine.feedback import comparison
from engine.feedback.marks import ANOMALOUS, COLUMNS, NOMINAL
from engine.feedback.review import Review, ScoredImage
from inference import checkpoint
from inference.detector import Detector
from runtime.csv_file import write_csv
from runtime.errors import UserError
from runtime.files import atomic_folder, short_hash, write_text
from runtime.provenance import file_digests
from runtime.version import program_version

HELD_OUT_SHARE = 0.2  # of the false alarms
MADE_FROM, COMPARISON = "made_from.json", "comparison.txt"


def run(config: Config, files: Files, review: Review) -> tuple[Path, bool]:
    """Train on from the configured checkpoint, as a new run, and compare both.

    The same feedback, weights and settings are the same run: an interrupted one resumes.

    Args:
        config: the settings. files: that they are from, of which the first is kept with the run, with new values.

    Returns:
        the new checkpoint, and whether it is better.

    Raises:
        UserError: fewer than two false alarms to learn from, weights of another program, or mistakes in the dataset.
        FloatingPointError, Interrupted: see `engine.train.run`.
    """
    before = review.detector
    if before.ckpt.images is None or before.ckpt.settings is None:
        raise UserError(before.ckpt.path, "of another program: what it was trained on is not known", "train first")
    images = _false_alarms(review)
    own = _settings(config, before, images)
    if own.train.batch_size < 2:
        raise UserError("train.batch_size = 1", "no batch can have old and new images", "set it to 2 or more")
    _add_images(own.run_folder / FEEDBACK, review, images, own.train.seed)
    print(f"a new run, {own.data.run_name}, from {own.train.start_from}")
    path = train.run(own, settings_text(files, own))
    own = own.with_values({"data.load_epoch": path.as_posix()})
    threshold.run(own)
    lines, is_better = comparison.run(own, before, Detector.for_new_images(own), review)
    write_text(own.run_folder / FEEDBACK / COMPARISON, "\n".join(lines) + "\n")
    for line in lines:
        print(line)
    return path, is_better


def _false_alarms(review: Review) -> list[ScoredImage]:
    """Images marked nominal that the program called anomalous, without those that must not be trained on."""
    detector, limit = review.detector, review.detector.thresholds
    assert detector.ckpt.images is not None and limit is not None and limit.image is not None
    found = [
        one
        for one in review.marked(NOMINAL)
        if one.image.verdict == ANOMALOUS or (not one.image.verdict and one.score > limit.image)
    ]
    category = open_category(detector.config)
    test = set(file_digests([sample.path for sample in category.test()])) if category.has_test else set()
    for title, digests in (("held out", set(detector.ckpt.images.held_out.values())), ("for the test", test)):
        if count := sum(one.image.digest in digests for one in found):
            print(f"{count} false alarms are {title}: not learned from")
        found = [one for one in found if one.image.digest not in digests]
    if len(found) < 2:
        raise UserError(
            review.file,
            f"has {len(found)} false alarms to learn from, and 2 are the fewest",
            "mark images nominal that the program calls anomalous, outside of the dataset",
        )
    return found


def _settings(config: Config, before: Detector, images: Sequence[ScoredImage]) -> Config:
    """The settings of the new run: the recipe of the checkpoint, for a few epochs, from its weights."""
    trained = before.ckpt.settings
    assert trained is not None
    recipe = {
        key: trained[key] for key, one in effects().items() if "weights" in one.what and not config.is_explicit(key)
    }
    changes: dict[str, Any] = {
        "data.image_registration": before.config.data.image_registration,
        "data.load_epoch": "last",
        "metrics.nominal": None,
        "inference.engine": "torch",
        "train.start_from": _weights_of(before).absolute().as_posix(),
        "train.epochs": config.feedback.epochs,
        "train.lr_schedule": "one_cycle",  # at the end of so few epochs the rate must have fallen
    }
    own = config.with_values(recipe).with_values(changes)
    made_from = [before.ckpt.fingerprint, *sorted(one.image.digest for one in images), weight_settings(own)]
    name = re.sub(f"_{FEEDBACK}-[0-9a-f]{{8}}$", "", before.config.data.run_name)
    return own.with_values({"data.run_name": f"{name}_{FEEDBACK}-{short_hash(' '.join(map(str, made_from)))}"})


def _weights_of(before: Detector) -> Path:
    """The file of a checkpoint; in place of last.pt, which can change, that of its epoch."""
    path = before.ckpt.path
    of_epoch = checkpoint.epoch_path(path.parent, int(before.name)) if before.name.isdecimal() else path
    return of_epoch if path.name == "last.pt" and of_epoch.is_file() else path


def _add_images(folder: Path, review: Review, images: Sequence[ScoredImage], seed: int) -> None:
    """Copy the images into the run's folder, with those that the checkpoint's run has added, and say what it is from.

    Copies, as images of a line are deleted sooner or later.
    """
    if folder.is_dir():
        return  # the run is resumed
    by_content = sorted(images, key=lambda one: one.image.digest)
    order = np.random.default_rng([seed, 0, 0, 6]).permutation(len(by_content))
    held_out = set(order[: max(1, round(len(by_content) * HELD_OUT_SHARE))].tolist())
    earlier = review.detector.run_folder / FEEDBACK
    with atomic_folder(folder) as beside:
        for part in (TRAINING, HELD_OUT):
            shutil.copytree(earlier / part, beside / part) if (earlier / part).is_dir() else (beside / part).mkdir(
                parents=True
            )
        rows = []
        for place, (image, *_) in enumerate(by_content):
            part = HELD_OUT if place in held_out else TRAINING
            name = f"{part}/{image.digest}{image.path.suffix}"
            shutil.copyfile(image.path, beside / name)
            rows.append((image.path.as_posix(), image.verdict, image.mark, "random" if image.is_random else "", name))
        write_csv(beside / "feedback.csv", [(*COLUMNS, "file"), *rows])
        content = {
            "checkpoint_file": _weights_of(review.detector).absolute().as_posix(),
            "weights": review.detector.ckpt.fingerprint,
            "feedback_file": review.file.absolute().as_posix(),
            "program_version": program_version(),
        }
        write_text(beside / MADE_FROM, json.dumps(content, indent=2) + "\n")
