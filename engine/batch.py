"""Evaluation of categories x checkpoints x techniques x thresholds: what to do, what is complete, and the passes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import data_loader
from config import Config
from engine.detection import checkpoint_file, evaluate_pass, identity, result_folder
from engine.threshold import load_thresholds, thresholds_of
from errors import UserError
from evaluation.thresholds import KINDS, OPTIMAL
from inference import checkpoint
from inference.techniques import MASKINGS, TECHNIQUES, Preparation, Technique
from reporting import summary
from reporting.result import CURVES, is_made_with, read_made_with
from reporting.summary import Found


@dataclass
class Item:
    """Techniques of one checkpoint that share an input variant: one pass over the images."""

    config: Config
    path: Path
    epoch: int
    pictures: list
    preparation: Preparation
    techniques: list[Technique]


def run(
    config: Config,
    categories: Sequence[str] | None,
    checkpoints: Sequence[str] | None,
    maskings: Sequence[str] | None,
    registrations: Sequence[bool],
    kinds: Sequence[str],
    is_forced: bool,
) -> int:
    """Evaluate what is not complete, then write the summary of all that is there; the number of failures.

    Args:
        categories: names; None: all of the dataset. checkpoints: epochs or `last`; None: all kept ones.
        maskings: of MASKINGS; None: all, but without regions only `no`. registrations: without and with.
        kinds: types of thresholds. is_forced: evaluate again what is complete.

    Raises:
        UserError: what was asked for and is not there, before anything runs.
    """
    results = Path(config.data.results_path) / config.data.run_name
    kinds = [kind for kind in KINDS if kind in kinds]
    items, failed = _plan(config, categories, checkpoints, maskings, registrations)
    todo = items if is_forced else [item for item in items if not _is_complete(item, kinds)]
    _announce(items, todo, failed, len(kinds))

    loaded = None
    for item in (bar := tqdm(todo, "evaluation", unit="pass")):
        bar.set_postfix_str(f"{item.config.data.category}, checkpoint {item.epoch}")
        try:
            if loaded is None or loaded.path != item.path:
                loaded = checkpoint.load(item.config, str(item.path))
            _evaluate(item, loaded, kinds)
        except Exception as error:  # one item's failure is recorded and costs no other
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            for technique in item.techniques:
                failed[item.config.data.category, str(item.epoch), technique.name] = " ".join(text.split())
    there = _current_results(results, config, failed)
    planned = {(item.config.data.category, str(item.epoch), one.name) for item in items for one in item.techniques}
    planned |= {(category, "", "") for category, _, _ in planned}
    errors = summary.write_summary(results, there, failed, planned)
    summary.write_times(results / "inference_times.txt", there)
    undrawn = summary.draw_batch(results, there)
    for key, error in [*failed.items(), *undrawn.items()]:
        print(f"failed: {', '.join(part for part in key if part)}: {error}")
    print(
        f"{sum(len(one.kinds) for one in there)} combinations in the summary"
        + (f", {errors} failures" if errors else "")
    )
    print(f"results: {results / 'summary.csv'}")
    return len(failed) + len(undrawn)


def _plan(
    config: Config,
    categories: Sequence[str] | None,
    checkpoints: Sequence[str] | None,
    maskings: Sequence[str] | None,
    registrations: Sequence[bool],
) -> tuple[list[Item], dict[tuple[str, str, str], str]]:
    """All passes, and what cannot be evaluated; UserError for what the user asked for and is not there."""
    items, failed = [], {}
    for name in data_loader.chosen_categories(Path(config.data.data_path), categories):
        own = config.model_copy(update={"data": config.data.model_copy(update={"category": name})})
        epochs = checkpoint.saved_epochs(own.run_folder)
        if not epochs and not (own.run_folder / "last.pt").is_file():
            failed[name, "", ""] = f"never trained: no checkpoint in {own.run_folder}; run train_all.py"
            continue
        chosen = checkpoints or epochs or ["last"]
        paths = [checkpoint.find(own, "last" if epoch == "last" else int(epoch)) for epoch in chosen]
        techniques = _techniques(own, maskings, registrations)
        preparation = Preparation(own, techniques)
        try:
            pictures = data_loader.list_test(Path(own.data.data_path) / name)
            # last.pt first: a kept checkpoint of the same epoch takes its place
            by_epoch = {
                checkpoint.epoch_of(path): path for path in sorted(paths, key=lambda path: path.name != "last.pt")
            }
        except (UserError, OSError) as error:
            failed[name, "", ""] = " ".join(str(error).split())
            continue
        preparation.check(pictures, techniques)
        for epoch, path in sorted(by_epoch.items()):
            for variant in dict.fromkeys(technique.variant for technique in techniques):
                group = [technique for technique in techniques if technique.variant == variant]
                items.append(Item(own, path, epoch, pictures, preparation, group))
    return items, failed


def _techniques(config: Config, maskings: Sequence[str] | None, registrations: Sequence[bool]) -> list[Technique]:

    if maskings is None:
        maskings = MASKINGS
        if config.data.category not in config.masking.regions and not config.metrics.masking:
            maskings = ("no",)
            print(f"{config.data.category}: masking left out, masking.regions names no region for it")
    return [one for one in TECHNIQUES if one.masking in maskings and one.registered in registrations]


def _is_complete(item: Item, thresholds: list[str]) -> bool:
    """Whether results are there for all techniques and thresholds, made from these weights, pictures and settings."""
    for technique in item.techniques:
        folder = result_folder(item.config, str(item.epoch), technique)
        there = read_made_with(folder)
        if not there:
            return False
        try:
            fingerprint = _fingerprint(item.path, there)
            wanted = identity(item.config, fingerprint, item.preparation, technique, item.pictures)
        except (UserError, OSError):
            return False  # to be told when it is its turn
        if not is_made_with(there, wanted) or not (folder / CURVES).is_file():
            return False
        if there["settings"]["metrics"] != item.config.metrics.model_dump(mode="json"):
            return False
        if not all(summary.read_metrics(folder / kind / "metrics.json") for kind in thresholds):
            return False
    return True


def _fingerprint(path: Path, made_with: dict[str, Any]) -> str:
    """Of a checkpoint's weights; without reading them where the file is the one that results were made with."""
    if all(made_with.get(key) == value for key, value in checkpoint_file(path).items()):
        return made_with["fingerprint"]
    return checkpoint.fingerprint(checkpoint.read(path)["model"])


def _announce(items: list[Item], todo: list[Item], failed: dict, count: int) -> None:
    """How much there is to do, and about how much storage it takes."""
    combinations = count * sum(len(item.techniques) for item in items)
    waiting = count * sum(len(item.techniques) for item in todo)
    size = 0.0
    for item in todo:
        wanted = item.config.metrics.visualisation
        pictures = {"all": len(item.pictures), "errors": len(item.pictures) // 5, "none": 0}.get(wanted, wanted)
        height, width = (side * -(-192 // side) for side in item.config.data.img_size)  # of a tile in a panel
        size += len(item.techniques) * (0.3e6 + min(pictures, len(item.pictures)) * 3 * height * width)
    print(
        f"{combinations} combinations of category, checkpoint, technique and threshold; "
        f"{combinations - waiting} complete already, {waiting} to do in {len(todo)} passes, "
        f"about {size / 1e6:.0f} MB of results" + (f"; {len(failed)} cannot be evaluated" if failed else "")
    )


def _evaluate(item: Item, ckpt: Any, thresholds: list[str]) -> None:
    """One pass: results of its techniques at all thresholds."""
    nominal = dict.fromkeys(item.techniques)
    if set(thresholds) != {OPTIMAL}:
        missing = []
        for technique in item.techniques:
            try:
                nominal[technique] = load_thresholds(item.config, ckpt, item.preparation, technique)
            except UserError:  # none yet, or of other weights or settings
                missing.append(technique)
        if missing:
            nominal |= dict(zip(missing, thresholds_of(item.config, ckpt, item.preparation, missing), strict=True))
    evaluate_pass(item.config, ckpt, item.preparation, item.pictures, nominal, thresholds)


def _current_results(results: Path, config: Config, failed: dict) -> list[Found]:
    """Results on disk, in a natural order: not those of failed items, of other weights or of other settings."""
    order = [technique.name for technique in TECHNIQUES]
    found = []
    for folder in results.glob("*/checkpoint_*/*"):
        key = (folder.parent.parent.name, folder.parent.name.removeprefix("checkpoint_"), folder.name)
        made_with = read_made_with(folder)
        if folder.name not in order or not made_with or failed.keys() & {key, (key[0], "", ""), (*key[:2], "")}:
            continue
        try:
            fingerprint = _fingerprint(Path(made_with["checkpoint_file"]), made_with)
            settings = made_with["settings"]
            regions = settings["masking"]["regions"].get(key[0])
            pairs = [
                (made_with["fingerprint"], fingerprint),
                (made_with["img_size"], list(config.data.img_size)),
                (made_with["p"], config.metrics.p),
                (made_with["k"], config.metrics.k),
            ]
        except (UserError, OSError, KeyError, TypeError, AttributeError):
            continue
        if made_with["regions"] is not None:
            pairs.append((regions, config.model_dump(mode="json")["masking"]["regions"].get(key[0])))
        if made_with["reference"] is not None:
            pairs.append((settings["data"]["registration_reference"], config.data.registration_reference))
        kinds = {kind: values for kind in KINDS if (values := summary.read_metrics(folder / kind / "metrics.json"))}
        if kinds and all(old == new for old, new in pairs):
            found.append(Found(key, folder, made_with, kinds))
    return sorted(
        found,
        key=lambda one: (one.key[0], not one.key[1].isdecimal(), one.key[1].zfill(9), order.index(one.key[2])),
    )
