"""The detection mode: anomaly maps of the test images to metrics, curves and panels."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from config import Config, map_settings, threshold_settings
from data import image_io
from data.folders import DatasetNotes
from data.layouts.registry import Category, open_category
from data.mask_matching import and_n_more
from data.mvtec import TestSample, with_masks_read
from engine.threshold import NOT_KNOWN, load_thresholds, nominal_images
from evaluation.thresholds import MANUAL, OPTIMAL
from inference import checkpoint, threshold_file
from inference.checkpoint import Checkpoint, CheckpointMetadata
from inference.detect import detect
from inference.preprocessing import Preprocessor, Technique, Variant, apply_valid_mask, configured
from inference.threshold_file import NominalThresholds
from reporting.result import Record, Result
from runtime import provenance
from runtime.device import Together
from runtime.errors import UserError
from runtime.names import composed
from runtime.provenance import Content, Provenance


def run(config: Config, group: Together | None = None) -> Path:
    """Detect on test/ with the configured checkpoint; the folder of results.

    group: processes that share the images; the first writes.
    """
    technique, notes = configured(config), DatasetNotes()
    kind = config.metrics.threshold_type
    manual = threshold_file.manual(config) if config.metrics.threshold and kind == MANUAL else None
    category = open_category(config)
    samples = category.test(notes)
    for line in notes.lines():
        print(line)
    samples, warnings = with_masks_read(samples, config.data.img_size)
    ckpt = checkpoint.load(config)
    refuse_trained(category, samples, ckpt)
    preprocessor = Preprocessor.for_checkpoint(config, ckpt, [technique])
    config = preprocessor.config
    warnings += preprocessor.check(samples, [technique])
    for line in (*warnings, *preprocessor.notes):
        print(line)
    if group and group.rank:
        for _ in detect(ckpt.model, preprocessor.dataset(samples, [technique], group), config, "", group):
            pass
        return result_folder(config, ckpt.name, technique)
    nominal = manual
    if config.metrics.threshold and kind != MANUAL:
        nominal = load_thresholds(config, ckpt, preprocessor, technique)
    print(evaluate_pass(ckpt, preprocessor, TestSet(samples, warnings), {technique: nominal}, (kind, OPTIMAL), group))
    return result_folder(config, ckpt.name, technique)


def refuse_trained(category: Category, samples: Sequence[TestSample], ckpt: CheckpointMetadata) -> None:
    """UserError if test images that the seed has chosen were trained on, or held out for thresholds.

    That happens where another share or seed was set for the training, or images were added since. A dataset with a
    split of its own is taken as it is.
    """
    if category.has_split or ckpt.images is None:
        return
    known = ckpt.images.training | ckpt.images.held_out
    there = {category.key(one.path): one.path for one in samples if category.key(one.path) in known}
    digests = dict(zip(there, provenance.file_digests(list(there.values())), strict=True))
    if used := [name for name, digest in digests.items() if known[name] == digest]:
        raise UserError(
            f"{used[0]}{and_n_more(used)}",
            f"chosen for the test by data.test_seed and data.test_split, but {ckpt.path} was trained with it",
            "set both as in the training, restore the images, or train again",
        )


def result_folder(config: Config, checkpoint_name: str, technique: Technique) -> Path:
    """Folder of a technique's results."""
    folder = Path(config.data.results_path) / config.data.run_name / config.data.category
    return folder / f"checkpoint_{checkpoint_name}" / technique.name


def provenance_of(
    fingerprint: str,
    preprocessor: Preprocessor,
    technique: Technique,
    samples: Sequence[TestSample],
    nominal: Content | None,
    kinds: Sequence[str],
) -> Provenance:
    """What results are computed from.

    Args:
        fingerprint: of the weights. nominal: the images that thresholds come from; None for no such thresholds.
        kinds: of thresholds.
    """
    config = preprocessor.config
    digests = provenance.file_digests([sample.path for sample in samples])
    # A label that is not in the name, but in a table, can change alone.
    named = [
        f"{composed(one.name)} {digest} {one.label}".rstrip() for one, digest in zip(samples, digests, strict=True)
    ]
    masked = [(sample.name, mask) for sample in samples for mask in sample.masks]
    mask_digests = provenance.file_digests([mask for _, mask in masked])
    masks = [f"{composed(name)} {digest}" for (name, _), digest in zip(masked, mask_digests, strict=True)]
    configs = sorted({sample.defects_config for sample in samples if sample.defects_config})
    masks += provenance.file_digests(configs)
    settings = threshold_settings(config) if nominal else {}
    settings |= threshold_settings(config, OPTIMAL)
    if MANUAL in kinds:
        settings |= threshold_settings(config, MANUAL)
    return Provenance(
        weights=fingerprint,
        pictures=Content(len(named), provenance.digest(named)),
        masks=Content(len(masked), provenance.digest(masks)),
        nominal=nominal,
        settings=settings | map_settings(config),
        **preprocessor.provenance_fields(technique),
    )


def weights_file(record: Record, epoch: str) -> Path:
    """The checkpoint that results are of. Those made with last.pt are of an epoch: last.pt may have gone on since."""
    path = Path(record.content["checkpoint_file"])
    if (
        path.name == "last.pt"
        and epoch.isdecimal()
        and (kept := checkpoint.epoch_path(path.parent, int(epoch))).is_file()
    ):
        return kept
    return path


def differences(
    record: Record, path: Path, preprocessor: Preprocessor, technique: Technique, samples: Sequence[TestSample]
) -> list[str]:
    """Why results are out of date, in words; empty where they are valid. Reads only checkpoints that have changed."""
    config = preprocessor.config
    is_same = record.content.get("checkpoint_file") == path.as_posix()
    is_same = is_same and record.content.get("checkpoint_state") == list(provenance.file_state(path))
    weights = record.made_from.weights if is_same else None
    weights = weights or checkpoint.load(config, path.as_posix()).fingerprint
    nominal = None
    if record.made_from.nominal:
        nominal = provenance.content([one.path for one in nominal_images(config, checkpoint.load_metadata(path))[0]])
    now = provenance_of(weights, preprocessor, technique, samples, nominal, record.thresholds)
    return record.made_from.differences(now)


@dataclass(frozen=True)
class TestSet:
    """The test images of a category. warnings: about their masks and bit depth, shown with the results."""

    samples: list[TestSample]
    warnings: list[str] = field(default_factory=list)


def evaluate_pass(
    ckpt: Checkpoint,
    preprocessor: Preprocessor,
    test_set: TestSet,
    nominal: dict[Technique, NominalThresholds | None],
    kinds: Sequence[str],
    group: Together | None = None,
) -> str:
    """Detect with one checkpoint under techniques that share an input variant, in one pass, and write their results.

    Earlier results stay until all new ones are complete.

    Args:
        nominal: technique -> thresholds, None where only `optimal` is asked for. kinds: of thresholds to evaluate.
        group: see `detect`; this is called in the first process only.

    Returns:
        tables of the metrics.
    """
    config, samples = preprocessor.config, test_set.samples
    dataset = preprocessor.dataset(samples, list(nominal), group)
    with ExitStack() as stack:
        results = {}
        for technique, thresholds in nominal.items():
            made_from = provenance_of(
                ckpt.fingerprint, preprocessor, technique, samples, thresholds.nominal if thresholds else None, kinds
            )
            folder = result_folder(config, ckpt.name, technique)
            result = Result(config, folder, samples, thresholds, kinds, made_from)
            result.notes |= _notes(preprocessor, technique, samples, thresholds)
            if ckpt.is_of_registered and not technique.registered:
                result.notes["registration"] = "trained on registered images; these are not registered"
            if test_set.warnings:
                result.notes["mask_files"] = "; ".join(test_set.warnings)
            results[technique] = stack.enter_context(result)
        seconds = 0.0
        for output, waited in _timed(detect(ckpt.model, dataset, config, "test images", group)):
            seconds += waited
            if sample_defects := _defects(preprocessor, dataset.variant, samples[output.idx]):
                output = replace(output, defects=sample_defects)
            for technique, result in results.items():
                result.update(apply_valid_mask(output, technique))
        return "\n".join(result.finish(seconds, ckpt.path) for result in results.values())


def _defects(preprocessor: Preprocessor, variant: Variant, sample: TestSample) -> list[np.ndarray]:
    """The masks of a sample one by one, prepared as its image, bool (H, W); none where overlaps do not saturate."""
    if not sample.saturation:
        return []
    shape = image_io.read_size(sample.path)
    homography = preprocessor.registration.homography_of(sample.path) if variant.registered else None
    blank = np.zeros((*shape, 3), np.uint8)
    aligned = (preprocessor.align(blank, homography, image_io.read_mask(mask, shape)).mask for mask in sample.masks)
    return [mask for mask in aligned if mask is not None]


def _notes(
    preprocessor: Preprocessor, technique: Technique, samples: list[TestSample], thresholds: NominalThresholds | None
) -> dict[str, Any]:
    """What readers of the metrics must know about registration and thresholds."""
    notes: dict[str, Any] = {}
    registration = preprocessor.registration
    if technique.registered and (unregistered := registration.unregistered(samples)):
        notes["registration"] = f"{registration.registration_summary(samples, 'images')}; they stay unregistered"
        notes["unregistered"] = unregistered
    if thresholds and thresholds.held_out is None:
        notes["nominal"] = f"max, p_quantile and k_sigma: {NOT_KNOWN}"
    elif thresholds and not thresholds.held_out:
        notes["nominal"] = "max, p_quantile and k_sigma come from TRAINING images: nothing was held out"
    return notes


def _timed(items: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Items, each with the seconds that waiting for it took."""
    while True:
        start = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        yield item, time.perf_counter() - start
