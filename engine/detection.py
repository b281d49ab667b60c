"""The detection mode: anomaly maps of the test images to metrics, curves and panels."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from config import Config, map_settings, threshold_settings
from data.folders import DatasetNotes, category_folder
from data.mvtec import TestSample, check_bit_depth, list_test, with_masks_read
from engine.threshold import NOT_KNOWN, load_thresholds
from evaluation.thresholds import MANUAL, OPTIMAL
from inference import checkpoint, threshold_file
from inference.checkpoint import Checkpoint
from inference.detect import detect
from inference.preprocessing import Preprocessor, Technique, apply_valid_mask, configured
from reporting.result import Result
from runtime import provenance
from runtime.device import Together
from runtime.provenance import Content, Provenance


def run(config: Config, group: Together | None = None) -> Path:
    """Detect on test/ with the configured checkpoint; the folder of results.

    group: processes that share the pictures out, the first of which writes.
    """
    technique, notes = configured(config), DatasetNotes()
    kind = config.metrics.threshold_type
    manual = manual_thresholds(config) if config.metrics.threshold and kind == MANUAL else None
    category = category_folder(Path(config.data.data_path), config.data.category)
    pictures = list_test(category, notes)
    for line in notes.lines():
        print(line)
    pictures, warnings = with_masks_read(pictures)
    ckpt = checkpoint.load(config)
    config = checkpoint.resolve_white_level(config, ckpt)
    warnings += check_bit_depth(pictures, config.data.white_level)
    for line in warnings:
        print(line)
    preprocessor = Preprocessor(config, [technique], embedded=ckpt.assets_for(config))
    if group and group.rank:
        for _ in detect(ckpt.model, preprocessor.dataset(pictures, [technique], group), config, "", group):
            pass
        return result_folder(config, ckpt.name, technique)
    nominal = manual
    if config.metrics.threshold and kind != MANUAL:
        nominal = load_thresholds(config, ckpt, preprocessor, technique)
    print(evaluate_pass(config, ckpt, preprocessor, pictures, {technique: nominal}, (kind, OPTIMAL), warnings, group))
    return result_folder(config, ckpt.name, technique)


def manual_thresholds(config: Config) -> dict[str, Any]:
    """Thresholds of the settings, as `load_thresholds` gives others. UserError where one is not set."""
    return threshold_file.manual(config) | {"held_out": True, "nominal": None}


def result_folder(config: Config, checkpoint_name: str, technique: Technique) -> Path:
    """Folder of a technique's results."""
    folder = Path(config.data.results_path) / config.data.run_name / config.data.category
    return folder / f"checkpoint_{checkpoint_name}" / technique.name


def provenance_of(
    config: Config,
    fingerprint: str,
    preprocessor: Preprocessor,
    technique: Technique,
    pictures: Sequence[TestSample],
    nominal: Content | None,
    kinds: Sequence[str],
) -> Provenance:
    """What results are made from.

    Args:
        nominal: of the pictures that thresholds come from, None where none does. kinds: types of thresholds.
    """
    digests = provenance.file_digests([picture.path for picture in pictures])
    named = [f"{one.name} {digest}" for one, digest in zip(pictures, digests, strict=True)]
    masked = [(picture.name, mask) for picture in pictures for mask in picture.masks]
    mask_digests = provenance.file_digests([mask for _, mask in masked])
    masks = [f"{name} {digest}" for (name, _), digest in zip(masked, mask_digests, strict=True)]
    settings = threshold_settings(config) if nominal else {}
    settings |= threshold_settings(config, OPTIMAL)
    if MANUAL in kinds:
        settings |= threshold_settings(config, MANUAL)
    return Provenance(
        weights=fingerprint,
        pictures=Content(len(named), provenance.digest(named)),
        masks=Content(len(masks), provenance.digest(masks)),
        nominal=nominal,
        settings=settings | map_settings(config),
        **preprocessor.facts(technique),
    )


def evaluate_pass(
    config: Config,
    ckpt: Checkpoint,
    preprocessor: Preprocessor,
    pictures: list[TestSample],
    nominal: dict[Technique, dict[str, Any] | None],
    kinds: Sequence[str],
    warnings: Sequence[str] = (),
    group: Together | None = None,
) -> str:
    """Detect with one checkpoint under techniques that share an input variant, in one pass, and write their results.

    Results that are there stay until all new ones are whole.

    Args:
        nominal: thresholds of nominal images of each technique, None where only `optimal` is asked for.
        kinds: types of thresholds to judge at. warnings: about masks, to be told with the results.
        group: see `detect`; this is the first of them.

    Returns:
        tables of the metrics.
    """
    dataset = preprocessor.dataset(pictures, list(nominal), group)
    with ExitStack() as stack:
        results = {}
        for technique, thresholds in nominal.items():
            made_from = provenance_of(
                config, ckpt.fingerprint, preprocessor, technique, pictures, thresholds and thresholds["nominal"], kinds
            )
            folder = result_folder(config, ckpt.name, technique)
            result = Result(config, folder, pictures, thresholds, kinds, made_from, ckpt.path)
            result.notes |= _notes(preprocessor, technique, pictures, thresholds)
            if ckpt.is_of_registered and not technique.registered:
                result.notes["registration"] = "trained on registered pictures; these are as they are"
            if warnings:
                result.notes["mask_files"] = "; ".join(warnings)
            results[technique] = stack.enter_context(result)
        seconds = 0.0
        for found, taken in _timed(detect(ckpt.model, dataset, config, "test images", group)):
            seconds += taken
            for technique, result in results.items():
                result.update(apply_valid_mask(found, technique))
        return "\n".join(result.finish(seconds) for result in results.values())


def _notes(
    preprocessor: Preprocessor, technique: Technique, pictures: list[TestSample], thresholds: dict[str, Any] | None
) -> dict[str, Any]:
    """What readers of the metrics must know of how the pictures and thresholds came about."""
    notes: dict[str, Any] = {}
    if technique.registered and (kept := preprocessor.registration.unregistered(pictures)):
        notes["registration"] = (
            f"{preprocessor.registration.registration_summary(pictures, 'pictures')}; they are kept as they are"
        )
        notes["unregistered"] = kept
    if thresholds and thresholds["held_out"] is None:
        notes["nominal"] = f"max, p_quantile and k_sigma: {NOT_KNOWN}"
    elif thresholds and not thresholds["held_out"]:
        notes["nominal"] = "max, p_quantile and k_sigma come from TRAINING images: nothing was held out"
    return notes


def _timed(items: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Items, each with the seconds that it was waited for."""
    while True:
        start = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        yield item, time.perf_counter() - start
