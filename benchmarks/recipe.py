"""Training recipes against each other: candidates x categories x seeds x budgets of samples.

Results are kept in recipe.csv beside this file, those of a run's last epochs in stability.csv; what these have is not
trained again.
"""

import contextlib
import csv
import io
import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from config import Config
from config_file import load_config
from engine import detection, train
from inference.quantization import milliseconds_by_form
from runtime.device import select_device, select_precision
from training.data import find_files, split

TABLE = Path(__file__).with_name("recipe.csv")
STABILITY = Path(__file__).with_name("stability.csv")
CATEGORIES = ("bottle", "brick", "magnetic_tile", "welding_cropped", "ballscrew")  # chosen on; pcb only at the end
METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "pro")
KEYS = ("candidate", "category", "seed", "samples")
COLUMNS = (*KEYS, *METRICS, "val_ap", "seconds", "precision", "processor")
Job = tuple[str, str, int, int]  # values of KEYS
FULL = 12_500  # samples of a budget of 100 %
LAST = 10  # epochs at the end of a run that stability.csv has
RECIPES = ("published", "fast")  # fast: configs/fast.yaml

COMMON = ["data.img_size=128", "model.base_width=16", "model.base_channels=8", "train.cut=false", "data.val_split=0.2"]
PUBLISHED = ["train.learning_rate=0.001", "train.batch_size=4"]
ONE_CYCLE = ["train.lr_schedule=one_cycle", "train.batch_size=2", "train.learning_rate=0.002"]
EMA = ["train.ema_decay=0.998"]
GRAY, OWN = ["synthesis.gray_textures=auto"], ["synthesis.own_images=0.5"]
MIX = [*ONE_CYCLE, *GRAY, "synthesis.own_images=0.33", "synthesis.adjusted_images=0.5"]  # a third of each kind
CANDIDATES = {
    "published": PUBLISHED,
    "published, averaged": PUBLISHED + EMA,
    "published, gray": PUBLISHED + GRAY,
    "one-cycle 1e-3, batch 4": ["train.lr_schedule=one_cycle", *PUBLISHED],
    "one-cycle 3e-3, batch 4": ["train.lr_schedule=one_cycle", "train.batch_size=4", "train.learning_rate=0.003"],
    "one-cycle": ONE_CYCLE,
    "one-cycle, averaged": ONE_CYCLE + EMA,
    "one-cycle, gray": ONE_CYCLE + GRAY,
    "one-cycle, own": ONE_CYCLE + OWN,
    "one-cycle, gray, own": ONE_CYCLE + GRAY + OWN,
    "one-cycle, gray, averaged": ONE_CYCLE + GRAY + EMA,
    "one-cycle, gray, own, faint": [*ONE_CYCLE, *GRAY, *OWN, "synthesis.max_transparency=0.95"],
    "one-cycle, gray, 20 % clean": [*ONE_CYCLE, *GRAY, "synthesis.clean_share=0.2"],
    "one-cycle, clipped": [*ONE_CYCLE, "train.gradient_clip=1.0"],
    "one-cycle, AdamW": [*ONE_CYCLE, "train.weight_decay=0.01"],
    "one-cycle, 20 % clean": [*ONE_CYCLE, "synthesis.clean_share=0.2"],
    "one-cycle, light": [*ONE_CYCLE, "synthesis.light=0.5"],
    "one-cycle, faint": [*ONE_CYCLE, "synthesis.max_transparency=0.95"],
    "one-cycle, focal x 10": [*ONE_CYCLE, "train.loss_weights=[1, 1, 10]"],
    "one-cycle, focal / 10": [*ONE_CYCLE, "train.loss_weights=[1, 1, 0.1]"],
    "mix": MIX,
    "mix, focal x 10": [*MIX, "train.loss_weights=[1, 1, 10]"],
    "mix, 20 % clean": [*MIX, "synthesis.clean_share=0.2"],
    "mix, averaged": MIX + EMA,
    "mix, averaged, no own": [*ONE_CYCLE, *GRAY, "synthesis.adjusted_images=0.5", *EMA],
    "mix, averaged, no adjusted": [*ONE_CYCLE, *GRAY, "synthesis.own_images=0.33", *EMA],
    # Has the rows of one of two others, with the same anomalies: above this alignment all of `mix, averaged`.
    "fast": [*MIX, *EMA, "synthesis.min_alignment=0.25"],
    "mix, light": [*MIX, "synthesis.light=0.3"],
    "mix, AdamW": [*MIX, "train.weight_decay=0.01"],
    "mix, clipped": [*MIX, "train.gradient_clip=1.0"],
    "mix, opaque": [*MIX, "synthesis.max_transparency=0.5"],
    "mix, unrotated": [*MIX, "synthesis.max_rotation=0"],
    "mix, batch 4": [*MIX, "train.batch_size=4", "train.learning_rate=0.003"],
}

# The fast recipe with networks of other widths, on images of other sizes: base_width, side in pixels.
WIDTHS = {f"fast, {width}/{width // 2}, {size}": (width, size) for size in (128, 256) for width in (8, 16, 32, 64, 128)}
for _name, (_width, _size) in WIDTHS.items():
    if (_width, _size) == (16, 128):
        continue  # that is `fast` itself
    _networks = [f"model.base_width={_width}", f"model.base_channels={_width // 2}", f"data.img_size={_size}"]
    CANDIDATES[_name] = [*CANDIDATES["fast"], *_networks]


def rows(table: Path = TABLE) -> list[dict[str, Any]]:
    """A table; numbers as float."""
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    texts = ("candidate", "category", "precision", "processor")
    return [{key: value if key in texts else float(value or "nan") for key, value in row.items()} for row in found]


def config_of(root: Path, job: Job, work: Path) -> Config:
    """Settings of a job: as many epochs as come nearest to its samples."""
    name, category, seed, samples = job
    sets = [*COMMON, *CANDIDATES[name], f"data.category={category}", f"train.seed={seed}"]
    sets += [f"data.data_path={root / 'mvtec_layout'}", f"data.anomaly_source_path={root / 'dtd/images'}"]
    sets += [f"data.checkpoint_path={work / 'checkpoints'}", f"data.results_path={work / 'results'}"]
    sets += ["metrics.threshold=false", "metrics.visualisation=none", "train.visualize=false", "data.num_workers=0"]
    config = load_config(common.ROOT / "config.yaml", [*sets, f"data.run_name={abs(hash(job))}"])
    epochs = max(round(samples / len(split(config, find_files(config)).training)), 1)
    return config.with_values({"train.epochs": epochs})


def train_and_detect(task: tuple[Path, Job, Path]) -> list[dict[str, Any]]:
    """A row of recipe.csv. task: folder of the data, what to train, folder to write to."""
    torch.set_num_threads(1)
    root, job, work = task
    config, start = config_of(root, job, work), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train.run(config, "")
        seconds = time.perf_counter() - start
        result = detection.run(config)
    with (config.run_folder / "train_log.csv").open(encoding="utf-8", newline="") as file:
        val_ap = list(csv.DictReader(file))[-1]["val_ap"]
    metrics = json.loads((result / "optimal/metrics.json").read_text(encoding="utf-8"))
    precision = str(select_precision("auto", select_device("auto"))).removeprefix("torch.")
    found = {key: f"{metrics[key]:.4f}" if metrics[key] is not None else "" for key in METRICS}
    row = dict(zip(KEYS, job, strict=True)) | found
    row |= {"val_ap": val_ap, "seconds": round(seconds), "precision": precision, "processor": common.machine()}
    return [row]


def train_and_detect_often(task: tuple[Path, Job, Path]) -> list[dict[str, Any]]:
    """Rows of stability.csv: a training, and detection with each of its last epochs."""
    torch.set_num_threads(1)
    root, job, work = task
    config = config_of(root, job, work)
    epochs, found = config.train.epochs, []
    config = config.with_values({"train.save_from": epochs - LAST + 1, "train.save_every": 1})
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train.run(config, "")
        for epoch in range(epochs - LAST + 1, epochs + 1):
            result = detection.run(config.with_values({"data.load_epoch": epoch}))
            metrics = json.loads((result / "optimal/metrics.json").read_text(encoding="utf-8"))
            values = {key: f"{metrics[key]:.4f}" for key in METRICS}
            found.append(dict(zip(KEYS, job, strict=True)) | {"epoch": epoch} | values)
    return found


def _train(asked: Namespace, table: Path, columns: Sequence[str], worker: Callable) -> None:
    """Train what a table lacks, and add its rows."""
    there = {tuple(row[key] for key in KEYS) for row in rows(table)}
    jobs = itertools.product(asked.budgets, asked.seeds, asked.candidates, asked.categories)
    todo = [job for budget, seed, name, category in jobs if (job := (name, category, seed, budget)) not in there]
    print(f"{len(todo)} trainings")
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
        arguments = [(asked.data.resolve(), job, Path(folder)) for job in todo]
        for found in pool.imap_unordered(worker, arguments):
            is_new = not table.is_file()
            with table.open("a", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                if is_new:
                    writer.writeheader()
                writer.writerows(found)
            print("  ".join(str(found[-1][key]) for key in columns if key != "processor"), flush=True)


def _flags(candidates: Sequence[str]) -> ArgumentParser:
    flags = common.parser()
    flags.add_argument("--data", type=Path, required=True, help="folder with mvtec_layout/ and dtd/images/")
    flags.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=candidates, metavar="NAME")
    flags.add_argument("--categories", nargs="+", default=CATEGORIES, metavar="NAME")
    flags.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    flags.add_argument("--budgets", nargs="+", type=int, default=[FULL // 5], metavar="SAMPLES")
    flags.add_argument("--processes", type=int, default=2, help="at once, each on one core; default: %(default)s")
    return flags


def bench_run() -> None:
    """Train what recipe.csv lacks, and add a row for each."""
    _train(_flags(list(CANDIDATES)).parse_args(), TABLE, COLUMNS, train_and_detect)


def bench_stability() -> None:
    """Train what stability.csv lacks, and add a row for each of the last epochs."""
    flags = _flags(RECIPES)
    flags.set_defaults(categories=CATEGORIES[:1], seeds=list(range(5)), budgets=[2 * FULL // 5])
    _train(flags.parse_args(), STABILITY, (*KEYS, "epoch", *METRICS), train_and_detect_often)


def paired(found: list[dict[str, Any]], name: str, other: str, metric: str) -> tuple[float, float, float]:
    """Mean difference of two candidates over the category x seed that both have, with a 95 % bootstrap interval."""
    values = {
        one: {(row["category"], row["seed"]): row[metric] for row in found if row["candidate"] == one}
        for one in (name, other)
    }
    both = sorted(values[name].keys() & values[other].keys())
    differences = np.array([values[name][key] - values[other][key] for key in both])
    drawn = np.random.default_rng(0).choice(differences, (10_000, len(differences))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(differences.mean()), float(low), float(high)


def bench_table() -> None:
    """Print, for each budget, means over category x seed, mean ranks, and differences from the published recipe."""
    for samples, group in itertools.groupby(sorted(rows(), key=lambda row: row["samples"]), lambda row: row["samples"]):
        found = list(group)
        names = [name for name in CANDIDATES if any(row["candidate"] == name for row in found)]
        print(f"{samples:,.0f} samples")
        for name in names:
            own = [row for row in found if row["candidate"] == name]
            ranks = []
            for row, metric in itertools.product(own, ("image_auroc", "pixel_ap")):
                same = [one for one in found if (one["category"], one["seed"]) == (row["category"], row["seed"])]
                ranks.append(1 + sum(one[metric] > row[metric] for one in same))
            means = "  ".join(f"{key} {statistics.fmean(row[key] for row in own):.3f}" for key in METRICS)
            line = f"  {name:26} {len(own):3} trainings  mean rank {statistics.fmean(ranks):4.1f}  {means}"
            if name != "published" and "published" in names:
                for metric in ("image_auroc", "pixel_ap"):
                    line += "  {} {:+.3f} ({:+.3f} to {:+.3f})".format(
                        metric, *paired(found, name, "published", metric)
                    )
            print(line)
            for row in own:
                figures = "  ".join(f"{row[key]:.3f}" for key in METRICS)
                print(f"      {row['category']:16} seed {row['seed']:.0f}  {figures}  val_ap {row['val_ap']:.3f}")


def bench_figure() -> None:
    """Draw quality over samples of the published and the fast recipe, means over what all their budgets have."""
    flags = common.parser()
    flags.add_argument("--out", type=Path, default=common.ROOT / "images/recipe.png", help="default: %(default)s")
    from matplotlib.figure import Figure

    found, figure = by_budget(rows()), Figure(figsize=(10, 4), layout="constrained")
    common_to_all = set.intersection(*(set(values) for values in found.values()))
    budgets = sorted({budget for _, budget in found})
    labels = {"image_auroc": "image AUROC", "pixel_ap": "pixel AP"}
    for axes, (metric, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for name in RECIPES:
            means = [statistics.fmean(found[name, one][key][metric] for key in common_to_all) for one in budgets]
            axes.plot([100 * one / FULL for one in budgets], means, "o-", label=name)
        axes.set(xlabel=f"training samples, % of {FULL:,}", ylabel=label, xscale="log")
        axes.set_xticks([100 * one / FULL for one in budgets], [f"{100 * one / FULL:.0f}" for one in budgets])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"Means over {len(common_to_all)} trainings of each recipe and budget")
    path = flags.parse_args().out
    figure.savefig(path, dpi=120)
    print(f"means over {', '.join(sorted(f'{category} {seed:.0f}' for category, seed in common_to_all))}\n{path}")


def by_budget(found: list[dict[str, Any]]) -> dict[tuple[str, float], dict[tuple[str, float], dict[str, Any]]]:
    """Rows of the published and the fast recipe: (candidate, samples) -> (category, seed) -> row."""
    groups: dict[tuple[str, float], dict[tuple[str, float], dict[str, Any]]] = {}
    for row in found:
        if row["candidate"] in RECIPES:
            groups.setdefault((row["candidate"], row["samples"]), {})[row["category"], row["seed"]] = row
    return groups


def bench_widths() -> None:
    """Draw the fast recipe's pixel AP over the time of an image on one core, for networks of several widths."""
    flags = common.parser()
    flags.add_argument("--out", type=Path, default=common.ROOT / "images/widths.png", help="default: %(default)s")
    from matplotlib.figure import Figure

    path = flags.parse_args().out
    torch.set_num_threads(1)
    at_once = [row for row in rows() if (row["samples"], row["seed"]) == (FULL // 5, 0)]
    found = {
        name: [row for row in at_once if row["candidate"] == (name if name in CANDIDATES else "fast")]
        for name in WIDTHS
    }
    compared = {row["category"] for name, own in found.items() if name in CANDIDATES for row in own}
    found = {name: [row for row in own if row["category"] in compared] for name, own in found.items()}
    times = {
        name: milliseconds_by_form(width, width // 2, (size, size), torch.device("cpu"))
        for name, (width, size) in WIDTHS.items()
        if found[name]
    }
    categories = sorted({row["category"] for own in found.values() for row in own})
    figure, ticks = Figure(figsize=(4 * len(categories) + 1, 4), layout="constrained"), (2, 5, 10, 20, 50, 100)
    columns = figure.subplots(1, len(categories), squeeze=False, sharey=True)[0]
    for axes, category in zip(columns, categories, strict=True):
        for size, form in itertools.product((128, 256), ("float32", "openvino-int8")):
            points = [
                (times[name][form], statistics.fmean(values), width)
                for name, (width, side) in WIDTHS.items()
                if side == size and (values := [row["pixel_ap"] for row in found[name] if row["category"] == category])
            ]
            style = {"color": "C0" if size == 128 else "C1", "linestyle": "-" if form == "float32" else "--"}
            if points:
                axes.plot(*np.array(points).T[:2], marker="o", label=f"{size} x {size}, {form}", **style)
            for time_, value, width in points:
                axes.annotate(f"{width}/{width // 2}", (time_, value), xytext=(3, 4), textcoords="offset points")
        axes.set(title=category, xlabel="ms an image, one core", xscale="log", xlim=(2, 200), ylim=(0, 0.8))
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    columns[0].set(ylabel="pixel AP")
    columns[0].legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=120)
    for name, forms in times.items():
        quality = "; ".join(
            f"{row['category']} {row['image_auroc']:.3f} / {row['pixel_ap']:.3f}"
            for row in sorted(found[name], key=lambda row: (row["category"], row["seed"]))
        )
        print(f"{name}: {', '.join(f'{form} {value:.1f} ms' for form, value in forms.items())}; {quality}")
    print(path)


def bench_stability_figure() -> None:
    """Draw pixel AP of the last epochs of each run; print that of the last, and the standard deviation of five."""
    flags = common.parser()
    flags.add_argument("--out", type=Path, default=common.ROOT / "images/stability.png", help="default: %(default)s")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="epochs before the last", ylabel="pixel AP")
    runs: dict[tuple[str, float], list[float]] = {}
    for row in rows(STABILITY):
        runs.setdefault((row["candidate"], row["seed"]), []).append(row["pixel_ap"])
    for (name, seed), values in runs.items():
        color, label = f"C{RECIPES.index(name)}", f"{name}, seed {seed:.0f}"
        axes.plot(range(len(values) - 1, -1, -1), values, f"{'os^Dv'[int(seed) % 5]}-", color=color, label=label)
        print(
            f"{name}, seed {seed:.0f}: pixel AP {values[-1]:.3f}, last 5 epochs +- {statistics.stdev(values[-5:]):.4f}"
        )
    axes.set(ylim=(0, 1), xlim=(LAST - 0.5, -0.5))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(flags.parse_args().out, dpi=120)


if __name__ == "__main__":
    common.run(
        {
            "run": bench_run,
            "table": bench_table,
            "figure": bench_figure,
            "widths": bench_widths,
            "stability": bench_stability,
            "stability_figure": bench_stability_figure,
        }
    )
