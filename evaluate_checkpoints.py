"""Evaluate categories x checkpoints x techniques x thresholds, and summarize them in one table."""

import csv
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from main import Parser, add_config_flags, boolean, run

if TYPE_CHECKING:
    from config import Config
    from engine.techniques import Preparation, Technique

# Predefined parameters. Each can be given as a flag of the same name, e.g. --checkpoints 600 700
CATEGORIES = None  # names of categories; None: every folder of data.data_path that has train/good
CHECKPOINTS = None  # epochs, or last; None: every kept epoch of each category
MASKINGS = None  # of no, pre, post; None: all, but pre and post only for categories that masking.regions names
REGISTRATIONS = (False, True)  # without, with image registration
THRESHOLDS = ("max", "p_quantile", "k_sigma", "optimal")
FORCE = False  # True: evaluate again what is complete

KINDS = ("max", "p_quantile", "k_sigma", "optimal")


@dataclass
class Item:
    """Techniques of one checkpoint that share an input variant: one pass over the images."""

    config: "Config"
    path: Path
    epoch: int
    pictures: list
    preparation: "Preparation"
    techniques: "list[Technique]"


@dataclass
class Found:
    """Results of a technique that are up to date."""

    key: tuple[str, str, str]  # category, checkpoint, technique
    folder: Path
    made_with: dict[str, Any]
    kinds: dict[str, dict[str, Any]]  # threshold -> content of metrics.json


def main() -> int:
    """Parse the command line and evaluate; 1 where something failed."""
    arguments = _arguments()

    from tqdm import tqdm

    from config import load_config
    from engine import checkpoint

    config = load_config(arguments.config, arguments.set)
    results = Path(config.data.results_path) / config.data.run_name
    items, failed = _plan(config, arguments)
    todo = items if arguments.force else [item for item in items if not _is_complete(item, arguments.thresholds)]
    _announce(items, todo, failed, len(arguments.thresholds))

    loaded = None
    for item in (bar := tqdm(todo, "evaluation", unit="pass")):
        bar.set_postfix_str(f"{item.config.data.category}, checkpoint {item.epoch}")
        try:
            if loaded is None or loaded.path != item.path:
                loaded = checkpoint.load(item.config, str(item.path))
            _evaluate(item, loaded, arguments.thresholds)
        except Exception as error:  # one item's failure is recorded and costs no other
            text = str(error) if type(error).__name__ == "UserError" else f"{type(error).__name__}: {error}"
            for technique in item.techniques:
                failed[item.config.data.category, str(item.epoch), technique.name] = " ".join(text.split())
    there = _current_results(results, config, failed)
    planned = {(item.config.data.category, str(item.epoch), one.name) for item in items for one in item.techniques}
    planned |= {(category, "", "") for category, _, _ in planned}
    errors = _write_summary(results, there, failed, planned)
    _write_times(results / "inference_times.txt", there)
    undrawn = _draw_batch(results, there)
    for key, error in [*failed.items(), *undrawn.items()]:
        print(f"failed: {', '.join(part for part in key if part)}: {error}")
    print(
        f"{sum(len(one.kinds) for one in there)} combinations in the summary"
        + (f", {errors} failures" if errors else "")
    )
    print(f"results: {results / 'summary.csv'}")
    return 1 if failed or undrawn else 0


def _arguments() -> Any:
    parser = Parser(
        prog="evaluate_checkpoints.py",
        description="Evaluate categories x checkpoints x techniques x thresholds. Complete results are skipped.",
        epilog="example: python evaluate_checkpoints.py --checkpoints 600 700 --maskings no post --registrations False",
    )
    add_flag = parser.add_argument
    add_flag("--categories", nargs="+", default=CATEGORIES, metavar="NAME", help="which (default: all that are there)")
    add_flag(
        "--checkpoints", nargs="+", default=CHECKPOINTS, metavar="EPOCH", help="epochs, or last (default: all kept)"
    )
    add_flag("--maskings", nargs="+", choices=("no", "pre", "post"), default=MASKINGS, help="(default: all that apply)")
    add_flag(
        "--registrations", nargs="+", type=boolean, default=REGISTRATIONS, metavar="True|False", help="(default: both)"
    )
    add_flag("--thresholds", nargs="+", choices=KINDS, default=THRESHOLDS, help="types to judge at (default: all)")
    add_flag("--force", type=boolean, nargs="?", const=True, default=FORCE, metavar="True|False", help="repeat all")
    add_config_flags(parser)
    arguments = parser.parse_args()
    for epoch in map(str, arguments.checkpoints or ()):
        if epoch != "last" and not (epoch.isdecimal() and int(epoch)):
            parser.error(f"--checkpoints {epoch}: must be last or an epoch from 1")
    arguments.thresholds = [kind for kind in KINDS if kind in arguments.thresholds]
    return arguments


def _plan(config: "Config", arguments: Any) -> tuple[list[Item], dict[tuple[str, str, str], str]]:
    """All passes, and what cannot be evaluated; UserError for what the user asked for and is not there."""
    import data_loader
    from engine import checkpoint
    from engine.techniques import Preparation
    from errors import UserError

    items, failed = [], {}
    for name in data_loader.chosen_categories(Path(config.data.data_path), arguments.categories):
        own = config.model_copy(update={"data": config.data.model_copy(update={"category": name})})
        epochs = checkpoint.saved_epochs(own.run_folder)
        if not epochs and not (own.run_folder / "last.pt").is_file():
            failed[name, "", ""] = f"never trained: no checkpoint in {own.run_folder}; run train_all.py"
            continue
        chosen = arguments.checkpoints or epochs or ["last"]
        paths = [checkpoint.find(own, "last" if epoch == "last" else int(epoch)) for epoch in chosen]
        techniques = _techniques(own, arguments)
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


def _techniques(config: "Config", arguments: Any) -> "list[Technique]":
    from engine.techniques import TECHNIQUES

    maskings = arguments.maskings
    if maskings is None:
        maskings = ("no", "pre", "post")
        if config.data.category not in config.masking.regions and not config.metrics.masking:
            maskings = ("no",)
            print(f"{config.data.category}: masking left out, masking.regions names no region for it")
    return [one for one in TECHNIQUES if one.masking in maskings and one.registered in arguments.registrations]


def _is_complete(item: Item, thresholds: list[str]) -> bool:
    """Whether results are there for all techniques and thresholds, made from these weights, pictures and settings."""
    from engine.detection import identity, result_folder
    from engine.result import CURVES, is_made_with, read_made_with
    from errors import UserError

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
        if not all(_metrics(folder / kind / "metrics.json") for kind in thresholds):
            return False
    return True


def _fingerprint(path: Path, made_with: dict[str, Any]) -> str:
    """Of a checkpoint's weights; without reading them where the file is the one that results were made with."""
    from engine import checkpoint
    from engine.detection import checkpoint_file

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
    from engine.detection import evaluate
    from engine.threshold import load_thresholds, thresholds_of
    from errors import UserError

    nominal = dict.fromkeys(item.techniques)
    if set(thresholds) != {"optimal"}:
        missing = []
        for technique in item.techniques:
            try:
                nominal[technique] = load_thresholds(item.config, ckpt, item.preparation, technique)
            except UserError:  # none yet, or of other weights or settings
                missing.append(technique)
        if missing:
            nominal |= dict(zip(missing, thresholds_of(item.config, ckpt, item.preparation, missing), strict=True))
    evaluate(item.config, ckpt, item.preparation, item.pictures, nominal, thresholds)


def _metrics(path: Path) -> dict[str, Any] | None:
    """Content of a metrics.json, None where it is missing or damaged."""
    from engine.result import METRIC_KEYS

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: content[key] for key in METRIC_KEYS}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _current_results(results: Path, config: "Config", failed: dict) -> list[Found]:
    """Results on disk, in a natural order: not those of failed items, of other weights or of other settings."""
    from engine.result import read_made_with
    from engine.techniques import TECHNIQUES
    from errors import UserError

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
        kinds = {kind: values for kind in KINDS if (values := _metrics(folder / kind / "metrics.json"))}
        if kinds and all(old == new for old, new in pairs):
            found.append(Found(key, folder, made_with, kinds))
    return sorted(
        found,
        key=lambda one: (one.key[0], not one.key[1].isdecimal(), one.key[1].zfill(9), order.index(one.key[2])),
    )


def _write_summary(results: Path, there: list[Found], failed: dict, planned: set[tuple[str, str, str]]) -> int:
    """Write summary.csv: all results, and what failed, now or in earlier calls for other things; how many of these."""
    from engine import runtime
    from engine.result import METRIC_KEYS

    path, columns = results / "summary.csv", ("category", "checkpoint", "technique", "threshold", *METRIC_KEYS, "error")
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="replace") as stream, suppress(csv.Error):
            for row in csv.DictReader(stream):
                key = tuple(row.get(column) or "" for column in columns[:3])
                if row.get("error") and key not in planned:
                    failed = {key: row["error"]} | failed
    rows = [dict(zip(columns, (*one.key, kind), strict=False)) | one.kinds[kind] for one in there for kind in one.kinds]
    rows += [dict(zip(columns, key, strict=False)) | {"error": error} for key, error in failed.items()]
    cells = [["" if row.get(column) is None else row[column] for column in columns] for row in rows]
    runtime.write_csv(path, [columns, *cells])
    return len(failed)


def _write_times(path: Path, there: list[Found]) -> None:
    """Write how long inference took; techniques that share a pass have its time."""
    from engine import runtime

    rows = [("category", "checkpoint", "technique", "images", "seconds", "images_per_second")]
    for one in there:
        images, seconds = one.made_with.get("images", 0), one.made_with.get("seconds", 0.0)
        rows.append((*one.key, str(images), f"{seconds:.3f}", f"{images / max(seconds, 1e-3):.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    runtime.write_text(path, "\n".join(lines) + "\n")


def _draw_batch(results: Path, there: list[Found]) -> dict[tuple[str], str]:
    """Curves of several categories or checkpoints, where missing or older than the results; what could not be drawn."""
    import numpy as np

    from engine import runtime
    from engine.result import CURVES
    from evaluation import plots

    figures: dict[tuple[str, str, bool], dict[str, Path]] = {}
    for one in there:
        category, name, technique = one.key
        title = f"checkpoint {name}, {technique}: categories compared"
        figures.setdefault((f"checkpoint_{name}_{technique}", title, False), {})[category] = one.folder / CURVES
        title = f"{category}, {technique}: what changes with training time"
        figures.setdefault((f"category_{category}_{technique}", title, True), {})[f"epoch {name}"] = one.folder / CURVES
    failed = {}
    for (figure, title, is_rising), lines in figures.items():
        path = results / "curves" / f"{figure}.png"
        try:
            newest = max(line.stat().st_mtime_ns for line in lines.values())
            if len(lines) < 2 or (path.is_file() and path.stat().st_mtime_ns >= newest):
                continue
            curves = {}
            for label, line in lines.items():
                with np.load(line) as arrays:
                    curves[label] = dict(arrays)
            with runtime.replacing(path) as beside:
                plots.batch_curves(beside, title, curves, is_rising)
        except Exception as error:  # damaged archives fail in several ways
            failed[(f"figure {path}",)] = f"{error}; evaluate again with --force"
    return failed


if __name__ == "__main__":
    run(main)
