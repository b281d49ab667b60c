"""Evaluate categories x checkpoints x techniques x thresholds, and summarize them in one table."""

import csv
import json
import re
from collections.abc import Iterator
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

TIMES_HEAD = ("category", "checkpoint", "technique", "images", "seconds", "images_per_second")


@dataclass
class Item:
    """Techniques of one checkpoint that share an input variant: one pass over the images."""

    config: "Config"
    path: Path
    epoch: int
    pictures: list
    preparation: "Preparation"
    techniques: "list[Technique]"

    def __str__(self) -> str:
        names = ", ".join(technique.name for technique in self.techniques)
        return f"{self.config.data.category}, checkpoint {self.epoch}, {names}"


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

    times, done, loaded = {}, [], None
    for item in (bar := tqdm(todo, "evaluation", unit="pass")):
        bar.set_postfix_str(f"{item.config.data.category}, checkpoint {item.epoch}")
        try:
            if loaded is None or loaded.path != item.path:
                loaded = checkpoint.load(item.config, str(item.path))
            seconds = _evaluate(item, loaded, arguments.thresholds)
        except Exception as error:  # one item's failure is recorded and costs no other
            text = str(error) if type(error).__name__ == "UserError" else f"{type(error).__name__}: {error}"
            for technique in item.techniques:
                failed[item.config.data.category, str(item.epoch), technique.name] = " ".join(text.split())
            continue
        done.append(item)
        count = len(item.pictures)
        for technique in item.techniques:
            key = (item.config.data.category, str(item.epoch), technique.name)
            times[key] = (count, f"{seconds:.3f}", f"{count / seconds:.2f}")
    _write_times(results / "inference_times.txt", times)
    planned = {(item.config.data.category, str(item.epoch), one.name) for item in items for one in item.techniques}
    rows = _write_summary(results, failed, planned | {(category, "", "") for category, _, _ in planned})
    _draw_batch(results, done)
    for key, error in failed.items():
        print(f"failed: {', '.join(part for part in key if part)}: {error}")
    errors = sum(bool(row.get("error")) for row in rows)
    print(f"{len(rows) - errors} combinations in the summary" + (f", {errors} failures" if errors else ""))
    print(f"results: {results / 'summary.csv'}")
    return 1 if failed else 0


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
    kinds = ("max", "p_quantile", "k_sigma", "optimal")
    add_flag("--thresholds", nargs="+", choices=kinds, default=THRESHOLDS, help="types to judge at (default: all)")
    add_flag("--force", type=boolean, nargs="?", const=True, default=FORCE, metavar="True|False", help="repeat all")
    add_config_flags(parser)
    arguments = parser.parse_args()
    for epoch in map(str, arguments.checkpoints or ()):
        if epoch != "last" and not (epoch.isdecimal() and int(epoch)):
            parser.error(f"--checkpoints {epoch}: must be last or an epoch from 1")
    arguments.thresholds = [kind for kind in kinds if kind in arguments.thresholds]
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
        except UserError as error:
            failed[name, "", ""] = str(error)
            continue
        preparation.check(pictures[0].path, techniques)
        for path in dict.fromkeys(paths):
            epoch = checkpoint.read(path)["epoch"] if path.name == "last.pt" else int(path.stem.split("_")[1])
            for variant in dict.fromkeys(technique.variant for technique in techniques):
                group = [technique for technique in techniques if technique.variant == variant]
                items.append(Item(own, path, epoch, pictures, preparation, group))
    return items, failed


def _techniques(config: "Config", arguments: Any) -> "list[Technique]":
    from engine.techniques import TECHNIQUES

    maskings = arguments.maskings
    if maskings is None:
        maskings = ("no", "pre", "post")
        if config.data.category not in config.masking.regions:
            maskings = ("no",)
            print(f"{config.data.category}: masking left out, masking.regions names no region for it")
    return [one for one in TECHNIQUES if one.masking in maskings and one.registered in arguments.registrations]


def _kinds(thresholds: list[str]) -> list[str]:
    return [kind for kind in thresholds if kind != "optimal"]


def _is_complete(item: Item, thresholds: list[str]) -> bool:
    """Whether results are there for all techniques and thresholds, made from this very checkpoint and settings."""
    from engine.detection import made_with, result_folder
    from engine.result import read_made_with

    for technique in item.techniques:
        folder = result_folder(item.config, str(item.epoch), technique)
        wanted = made_with(item.config, item.path, item.preparation, technique, item.pictures, thresholds)
        there = read_made_with(folder)
        if any(there.get(key) != value for key, value in wanted.items() if key != "thresholds"):
            return False
        if not all((folder / kind / "metrics.json").is_file() for kind in thresholds):
            return False
    return True


def _announce(items: list[Item], todo: list[Item], failed: dict, count: int) -> None:
    """How much there is to do, and about how much storage it takes."""
    combinations = count * sum(len(item.techniques) for item in items)
    waiting = count * sum(len(item.techniques) for item in todo)
    size = 0.0
    for item in todo:
        wanted = item.config.metrics.visualisation
        pictures = {"all": len(item.pictures), "errors": len(item.pictures) // 5, "none": 0}.get(wanted, wanted)
        side = 6 * max(192, item.config.data.img_size[0]) * max(192, item.config.data.img_size[1])
        size += len(item.techniques) * (0.4e6 + min(pictures, len(item.pictures)) * side)  # about a byte a pixel
    print(
        f"{combinations} combinations of category, checkpoint, technique and threshold; "
        f"{combinations - waiting} complete already, {waiting} to do in {len(todo)} passes, "
        f"about {size / 1e6:.0f} MB of results" + (f"; {len(failed)} cannot be evaluated" if failed else "")
    )


def _evaluate(item: Item, ckpt: Any, thresholds: list[str]) -> float:
    """One pass: results of its techniques at all thresholds; the seconds of inference."""
    from engine.detection import evaluate
    from engine.threshold import load_thresholds, thresholds_of
    from errors import UserError

    nominal = dict.fromkeys(item.techniques)
    if _kinds(thresholds):
        missing = []
        for technique in item.techniques:
            try:
                nominal[technique] = load_thresholds(item.config, ckpt, item.preparation, technique)
            except UserError:  # none yet, or of other weights or settings
                missing.append(technique)
        if missing:
            nominal |= dict(zip(missing, thresholds_of(item.config, ckpt, item.preparation, missing), strict=True))
    _, seconds = evaluate(item.config, ckpt, item.preparation, item.pictures, nominal, thresholds)
    return seconds


def _write_times(path: Path, times: dict[tuple[str, str, str], tuple]) -> None:
    """Update the table; techniques that share a pass have its time. Lines of other runs stay."""
    from engine import runtime

    lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
    kept = [re.split(r"\s{2,}", line.strip()) for line in lines]
    table = {tuple(cells[:3]): tuple(cells[3:]) for cells in kept if len(cells) == len(TIMES_HEAD)} | times
    rows = [TIMES_HEAD, *((*key, *map(str, values)) for key, values in table.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )
    runtime.write_text(path, text)


def _results(results: Path) -> Iterator[tuple[tuple[str, str, str], Path]]:
    """(category, checkpoint, technique) and folder of all results, in a natural order."""
    from engine.techniques import TECHNIQUES

    order = [technique.name for technique in TECHNIQUES]
    found = []
    for folder in results.glob("*/checkpoint_*/*"):
        if folder.name in order and any(folder.glob("*/metrics.json")):
            name = folder.parent.name.removeprefix("checkpoint_")
            rank = (folder.parent.parent.name, not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
            found.append(((*rank, order.index(folder.name)), (rank[0], name, folder.name), folder))
    yield from ((key, folder) for _, key, folder in sorted(found))


def _write_summary(
    results: Path, failed: dict[tuple[str, str, str], str], planned: set[tuple[str, str, str]]
) -> list[dict[str, Any]]:
    """Write summary.csv: all results that are there, and what failed, now or in earlier calls for other things."""
    from engine import runtime
    from engine.result import METRIC_KEYS

    rows, path = [], results / "summary.csv"
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                key = tuple(row.get(column) or "" for column in ("category", "checkpoint", "technique"))
                if row.get("error") and key not in planned:
                    failed = {key: row["error"]} | failed
    for (category, name, technique), folder in _results(results):
        if (category, name, technique) in failed:
            continue  # what is there is of an earlier state
        for kind in ("max", "p_quantile", "k_sigma", "optimal"):
            path = folder / kind / "metrics.json"
            if path.is_file():
                head = {"category": category, "checkpoint": name, "technique": technique, "threshold": kind}
                rows.append(head | _metrics(path))
    rows += [
        {"category": category, "checkpoint": name, "technique": technique, "error": error}
        for (category, name, technique), error in failed.items()
    ]
    columns = ("category", "checkpoint", "technique", "threshold", *METRIC_KEYS, "error")
    cells = [["" if row.get(column) is None else row[column] for column in columns] for row in rows]
    runtime.write_csv(results / "summary.csv", [columns, *cells])
    return rows


def _metrics(path: Path) -> dict[str, Any]:
    from engine.result import METRIC_KEYS

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: content[key] for key in METRIC_KEYS}
    except (ValueError, KeyError, TypeError):
        return {"error": f"{path}: damaged; evaluate again with --force"}


def _draw_batch(results: Path, done: list[Item]) -> None:
    """Curves of several categories at a checkpoint, and of several checkpoints of a category, where any is new."""
    import numpy as np

    from engine import runtime
    from engine.result import CURVES
    from evaluation import plots

    new = {(item.config.data.category, str(item.epoch), one.name) for item in done for one in item.techniques}
    figures: dict[tuple[str, str, bool], dict[str, tuple]] = {}
    for (category, name, technique), folder in _results(results):
        line = ((category, name, technique), folder / CURVES)
        title = f"checkpoint {name}, {technique}: categories compared"
        figures.setdefault((f"checkpoint_{name}_{technique}", title, False), {})[category] = line
        title = f"{category}, {technique}: what changes with training time"
        figures.setdefault((f"category_{category}_{technique}", title, True), {})[f"epoch {name}"] = line
    for (figure, title, is_rising), lines in figures.items():
        if len(lines) < 2 or not new & {key for key, _ in lines.values()}:
            continue
        curves = {}
        for label, (_, path) in lines.items():
            with np.load(path) as arrays:
                curves[label] = dict(arrays)
        with runtime.replacing(results / "curves" / f"{figure}.png") as beside:
            plots.batch_curves(beside, title, curves, is_rising)


if __name__ == "__main__":
    run(main)
