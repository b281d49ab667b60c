"""The detection mode: anomaly maps of the test images to metrics, curves and panels."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import data_loader
import runtime
from config import Config
from engine.threshold import load_thresholds
from evaluation.thresholds import OPTIMAL
from inference import checkpoint
from inference.detect import detect
from inference.techniques import Preparation, Technique, configured
from reporting.result import Result


def run(config: Config) -> Path:
    """Detect on test/ with the configured checkpoint; the folder of results."""
    technique = configured(config)
    with runtime.mendable_errors():
        category = data_loader.category_folder(Path(config.data.data_path), config.data.category)
        pictures = data_loader.list_test(category)
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


def identity(
    config: Config, fingerprint: str, preparation: Preparation, technique: Technique, pictures: Sequence
) -> dict[str, Any]:
    """What the numbers depend on; where it has changed since, they are out of date."""
    own = {"category": config.data.category, "fingerprint": fingerprint, "p": config.metrics.p, "k": config.metrics.k}
    return own | preparation.identity(technique, pictures)


def evaluate_pass(
    config: Config,
    ckpt: checkpoint.Checkpoint,
    preparation: Preparation,
    pictures: list[data_loader.TestImage],
    nominal: dict[Technique, dict[str, Any] | None],
    kinds: Sequence[str],
) -> str:
    """Detect with one checkpoint under techniques that share an input variant, in one pass, and write their results.

    Args:
        nominal: thresholds of nominal images of each technique, None where only `optimal` is asked for.
        kinds: types of thresholds to judge at.

    Returns:
        tables of the metrics.
    """
    dataset = preparation.dataset(pictures, list(nominal))
    category = Path(config.data.data_path) / config.data.category
    results = {}
    for technique, thresholds in nominal.items():
        notes: dict[str, Any] = {}
        if technique.registered and (kept := preparation.unregistered(pictures)):
            shown = ", ".join(kept[:3]) + (", ..." if len(kept) > 3 else "")
            count = f"{len(kept)} of {len(pictures)} pictures"
            notes["registration"] = f"{count} could not be registered and are kept as they are: {shown}"
            notes["unregistered"] = kept
        if thresholds and not thresholds["held_out"]:
            notes["nominal"] = "max, p_quantile and k_sigma come from TRAINING images: nothing was held out"
        folder, made_with = result_folder(config, ckpt.name, technique), checkpoint_file(ckpt.path)
        made_with |= identity(config, ckpt.fingerprint, preparation, technique, pictures)
        results[technique] = Result(config, folder, category, pictures, thresholds, kinds, made_with, notes)
    seconds = 0.0
    for found, taken in _timed(detect(ckpt.model, dataset, config, "test images")):
        seconds += taken
        for technique, result in results.items():
            result.update(found.under(technique))
    return "\n".join(result.finish(seconds) for result in results.values())


def checkpoint_file(path: Path) -> dict[str, Any]:
    """What tells quickly whether a checkpoint's file is still the same."""
    stat = path.stat()
    return {"checkpoint_file": path.as_posix(), "checkpoint_size": stat.st_size, "checkpoint_time": stat.st_mtime_ns}


def _timed(items: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Items, each with the seconds that it was waited for."""
    while True:
        start = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        yield item, time.perf_counter() - start
