"""The detection mode: anomaly maps of the test images to metrics, curves and panels."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import folders
import provenance
from config import Config
from engine.threshold import NOT_KNOWN, load_thresholds
from evaluation.thresholds import OPTIMAL
from folders import TestImage
from inference import checkpoint
from inference.checkpoint import Checkpoint
from inference.detect import detect
from inference.techniques import Preparation, Technique, configured, left_out
from provenance import Content, Provenance
from reporting.result import Result


def run(config: Config) -> Path:
    """Detect on test/ with the configured checkpoint; the folder of results."""
    technique = configured(config)
    category = folders.category_folder(Path(config.data.data_path), config.data.category)
    pictures = folders.list_test(category)
    ckpt = checkpoint.load(config)
    preparation = Preparation(config, [technique])
    nominal = load_thresholds(config, ckpt, preparation, technique) if config.metrics.threshold else None
    kinds = (config.metrics.threshold_type, OPTIMAL)
    print(evaluate_pass(config, ckpt, preparation, pictures, {technique: nominal}, kinds))
    return result_folder(config, ckpt.name, technique)


def result_folder(config: Config, checkpoint_name: str, technique: Technique) -> Path:
    """Folder of a technique's results."""
    folder = Path(config.data.results_path) / config.data.run_name / config.data.category
    return folder / f"checkpoint_{checkpoint_name}" / technique.name


def provenance_of(
    config: Config,
    fingerprint: str,
    preparation: Preparation,
    technique: Technique,
    pictures: Sequence[TestImage],
    nominal: Content | None,
) -> Provenance:
    """What results are made from.

    Args:
        nominal: of the pictures that thresholds come from, None where only `optimal` is asked for.
    """
    digests = provenance.file_digests([picture.path for picture in pictures])
    named = [f"{'/'.join(one.path.parts[-2:])} {digest}" for one, digest in zip(pictures, digests, strict=True)]
    masked = [picture for picture in pictures if picture.mask_path]
    mask_digests = provenance.file_digests([picture.mask_path for picture in masked])
    masks = [f"{'/'.join(one.path.parts[-2:])} {digest}" for one, digest in zip(masked, mask_digests, strict=True)]
    settings = {"p": config.metrics.p, "k": config.metrics.k} if nominal else {}
    return Provenance(
        weights=fingerprint,
        pictures=Content(len(named), provenance.digest(named)),
        masks=Content(len(masks), provenance.digest(masks)),
        nominal=nominal,
        settings=settings | {"img_size": list(config.data.img_size), "category": config.data.category},
        **preparation.facts(technique),
    )


def evaluate_pass(
    config: Config,
    ckpt: Checkpoint,
    preparation: Preparation,
    pictures: list[TestImage],
    nominal: dict[Technique, dict[str, Any] | None],
    kinds: Sequence[str],
) -> str:
    """Detect with one checkpoint under techniques that share an input variant, in one pass, and write their results.

    Results that are there stay until all new ones are whole.

    Args:
        nominal: thresholds of nominal images of each technique, None where only `optimal` is asked for.
        kinds: types of thresholds to judge at.

    Returns:
        tables of the metrics.
    """
    dataset = preparation.dataset(pictures, list(nominal))
    category = Path(config.data.data_path) / config.data.category
    with ExitStack() as stack:
        results = {}
        for technique, thresholds in nominal.items():
            made_from = provenance_of(
                config, ckpt.fingerprint, preparation, technique, pictures, thresholds and thresholds["nominal"]
            )
            folder = result_folder(config, ckpt.name, technique)
            result = Result(config, folder, category, pictures, thresholds, kinds, made_from, ckpt.path)
            result.notes |= _notes(preparation, technique, pictures, thresholds)
            results[technique] = stack.enter_context(result)
        seconds = 0.0
        for found, taken in _timed(detect(ckpt.model, dataset, config, "test images")):
            seconds += taken
            for technique, result in results.items():
                result.update(left_out(found, technique))
        return "\n".join(result.finish(seconds) for result in results.values())


def _notes(
    preparation: Preparation, technique: Technique, pictures: list[TestImage], thresholds: dict[str, Any] | None
) -> dict[str, Any]:
    """What readers of the metrics must know of how the pictures and thresholds came about."""
    notes: dict[str, Any] = {}
    if technique.registered and (kept := preparation.unregistered(pictures)):
        shown = ", ".join(kept[:3]) + (", ..." if len(kept) > 3 else "")
        count = f"{len(kept)} of {len(pictures)} pictures"
        notes["registration"] = f"{count} could not be registered and are kept as they are: {shown}"
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
