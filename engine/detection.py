"""The detection mode: anomaly maps of the test images to metrics, curves and panels."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import data_loader
from config import Config
from engine import checkpoint, runtime
from engine.inference import detect
from engine.result import OPTIMAL, Result
from engine.techniques import Preparation, Technique, configured
from engine.threshold import load_thresholds


def detection(config: Config) -> Path:
    """Detect on test/ with the configured checkpoint; the folder of results."""
    technique = configured(config)
    with runtime.mendable_errors():
        category = data_loader.category_folder(Path(config.data.data_path), config.data.category)
        pictures = data_loader.list_test(category)
        ckpt = checkpoint.load(config)
        preparation = Preparation(config, [technique])
        nominal = load_thresholds(config, ckpt, preparation, technique) if config.metrics.threshold else None
    kinds = (config.metrics.threshold_type, OPTIMAL)
    table, _ = evaluate(config, ckpt, preparation, pictures, {technique: nominal}, kinds)
    print(table)
    return result_folder(config, ckpt.name, technique)


def result_folder(config: Config, checkpoint_name: str, technique: Technique) -> Path:
    """Folder of a technique's results."""
    folder = Path(config.data.results_path) / config.data.run_name / config.data.category
    return folder / f"checkpoint_{checkpoint_name}" / technique.name


def made_with(
    config: Config, path: Path, preparation: Preparation, technique: Technique, pictures: Sequence, kinds: Sequence[str]
) -> dict[str, Any]:
    """What results depend on; where it has changed since, they are out of date."""
    stat = path.stat()
    return preparation.identity(technique) | {
        "checkpoint_file": path.name,
        "checkpoint_size": stat.st_size,
        "checkpoint_time": stat.st_mtime_ns,
        "category": config.data.category,
        "img_size": list(config.data.img_size),
        "pictures": len(pictures),
        "thresholds": list(kinds),
        "p": config.metrics.p,
        "k": config.metrics.k,
    }


def evaluate(
    config: Config,
    ckpt: checkpoint.Checkpoint,
    preparation: Preparation,
    pictures: list[data_loader.TestImage],
    nominal: dict[Technique, dict[str, dict[str, float]] | None],
    kinds: Sequence[str],
) -> tuple[str, float]:
    """Detect with one checkpoint under techniques that share an input variant, in one pass, and write their results.

    Args:
        nominal: thresholds of nominal images of each technique, None where only `optimal` is asked for.
        kinds: types of thresholds to judge at.

    Returns:
        tables of the metrics, and the seconds that the networks and reading for them took.
    """
    [variant] = {technique.variant for technique in nominal}
    dataset = preparation.dataset(pictures, variant)
    notes: dict[str, str | list[str]] = {}
    if variant.registered and (kept := preparation.unregistered(pictures)):
        names = [path.relative_to(path.parents[2]).as_posix() for path in kept]
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        count = f"{len(kept)} of {len(pictures)} pictures"
        notes["registration"] = f"{count} could not be registered and are kept as they are: {shown}"
        notes["unregistered"] = names
    category = Path(config.data.data_path) / config.data.category
    results = {
        technique: Result(
            config,
            result_folder(config, ckpt.name, technique),
            category,
            pictures,
            thresholds,
            kinds,
            made_with(config, ckpt.path, preparation, technique, pictures, kinds),
            notes,
        )
        for technique, thresholds in nominal.items()
    }
    seconds = 0.0
    for found, taken in _timed(detect(ckpt.model, dataset, config, "test images")):
        seconds += taken
        for technique, result in results.items():
            result.update(found.under(technique))
    return "\n".join(result.finish() for result in results.values()), seconds


def _timed(items: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Items, each with the seconds that it was waited for."""
    while True:
        start = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        yield item, time.perf_counter() - start
