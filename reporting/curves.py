"""Curves and histograms drawn with matplotlib; each function is given the path to write to."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from config import Metrics
from evaluation.thresholds import Thresholds
from reporting.colors import ANOMALOUS, CHANCE, LEVELS, NOMINAL, OPERATING_POINT
from runtime.files import atomic_write


def _figure(width: float, height: float):
    # Not pyplot: it keeps global state, and windows where there is a screen.
    return Figure(figsize=(width, height), dpi=110)


def _finish(figure, path: Path, title: str, columns: int) -> None:
    """Write a figure of several axes with one legend for all."""
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    (width, height), rows = figure.get_size_inches(), -(-len(handles) // columns)
    left, bottom, right, top = 0.75, 0.75 + 0.23 * rows, 0.25, 0.78
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, wspace=0.25, hspace=0.36)
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=columns, fontsize=9)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, format="png")


def _axes(width: float, height: float):
    """Axes alone in a figure, with room for a title of two lines."""
    figure = _figure(width, height)
    left, bottom, right, top = 0.8, 0.52, 0.3, 0.55  # inches
    return figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))


def score_histogram(
    path: Path, title: str, nominal: np.ndarray, anomalous: np.ndarray, thresholds: dict[str, float]
) -> None:
    """Write the histogram of image scores (N,) of nominal and of anomalous images with thresholds by name, as PNG."""
    axes = _axes(7.2, 4.4)
    everything = np.concatenate([nominal, anomalous, list(thresholds.values())])
    low, high = everything.min(), everything.max()
    edges = np.linspace(low, high if high > low else low + 1e-3, 41)
    for scores, color, label in ((nominal, NOMINAL, "nominal"), (anomalous, ANOMALOUS, "anomalous")):
        label = f"{label} ({len(scores)} images)"
        # One outline of all bins: separate bars take longer to draw than the rest of the figure.
        axes.hist(scores, edges, histtype="stepfilled", facecolor=color, alpha=0.55, label=label, edgecolor=color)
    for (name, value), style in zip(thresholds.items(), ("-", "--", "-.", ":"), strict=False):
        axes.axvline(value, color=OPERATING_POINT, linestyle=style, linewidth=1.5, label=f"{name} {value:.3f}")
    axes.set(xlabel="image score (largest smoothed probability of 'anomalous')", ylabel="images")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_title(f"Image scores and thresholds\n{title}", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", framealpha=0.9, fontsize=9)
    axes.figure.savefig(path, format="png")


CURVE_TITLES = {
    "roc": ("Receiver operating characteristic", "false-positive rate", "true-positive rate"),
    "precision_recall": ("Precision and recall", "recall", "precision"),
    "pro": ("Per-region overlap (PRO)", "false-positive rate of pixels", "mean overlap with anomalous regions"),
    "iou": ("Intersection over union of all pixels", "threshold on the anomaly map", "IoU"),
}
CURVE_KEYS = {"roc": ("fpr", "tpr"), "precision_recall": ("tpr", "precision"), "pro": ("fpr", "pro")}
CURVE_KEYS["iou"] = ("threshold", "iou")  # of the values on both axes


def curves(
    path: Path,
    name: str,
    title: str,
    levels: dict[str, dict[str, np.ndarray]],
    values: dict[str, float | None],
    operating_points: dict[str, tuple[float, str]],
) -> None:
    """Write a figure with a curve for each level, its value in the legend, and the line of chance, as PNG.

    Args:
        name: one of CURVE_TITLES. title: what was measured.
        levels: `image` or `pixel` -> curves of evaluation's metrics, each with `threshold` falling.
        values: level -> the metric that the curve stands for: an area, of `iou` the largest value.
        operating_points: level -> threshold and its name.
    """
    heading, x_label, y_label = CURVE_TITLES[name]
    x, y = CURVE_KEYS[name]
    axes = _axes(6.4, 5.2)
    for level, curve in levels.items():
        label = level if values[level] is None else f"{level}, {VALUE_NAMES[name]} {values[level]:.3f}"
        axes.plot(curve[x], curve[y], color=LEVELS[level], label=label, linewidth=2)
        _draw_chance(axes, name, level, curve)
        if level in operating_points:
            threshold, kind = operating_points[level]
            at = max(int(np.sum(curve["threshold"] > threshold)) - 1, 0)
            place = (threshold if x == "threshold" else curve[x][at], curve[y][at])
            label = f"{level} threshold {threshold:.3f} ({kind})"
            style = {"color": LEVELS[level], "markeredgecolor": OPERATING_POINT, "markersize": 9, "zorder": 3}
            axes.plot(*place, "o", label=label, **style)
    right = 0.3 if name == "pro" else 1.0
    axes.set(xlabel=x_label, ylabel=y_label, xlim=(-0.015 * right, 1.015 * right), ylim=(-0.02, 1.02))
    axes.set_title(f"{heading}\n{title}", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", framealpha=0.9, fontsize=9)
    axes.figure.savefig(path, format="png")


# Figure -> of each level that it shows, the metric that its curve stands for.
LINES = {
    "roc": {"image": "image_auroc", "pixel": "pixel_auroc"},
    "precision_recall": {"image": "image_ap", "pixel": "pixel_ap"},
    "pro": {"pixel": "pro"},
    "iou": {"pixel": "iou_max"},
}


def draw_all(
    folder: Path,
    title: str,
    levels: dict[str, dict[str, np.ndarray]],
    values: dict[str, float | None],
    thresholds: Thresholds,
    wanted: dict[str, bool],
) -> None:
    """Write the figures of LINES that are wanted and defined.

    Args:
        levels: as far as defined, see `curves`. values: metric -> value. thresholds: to mark.
    """
    limits = {"image": thresholds.image, "pixel": thresholds.pixel}
    marked = {level: (limit, thresholds.kind) for level, limit in limits.items() if limit is not None}
    for name, drawn in LINES.items():
        lines = {level: levels[level] for level in drawn if level in levels}
        if not wanted[name] or not lines:
            continue
        finite = {level: marked[level] for level in lines if level in marked and marked[level][0] < math.inf}
        with atomic_write(folder / f"{name}.png") as beside:
            curves(beside, name, title, lines, {level: values[key] for level, key in drawn.items()}, finite)


# What a curve's value is called.
VALUE_NAMES = {"roc": "area", "precision_recall": "area", "pro": "area (to 30 %)", "iou": "largest"}


def _draw_chance(axes: Axes, name: str, level: str, curve: dict[str, np.ndarray]) -> None:
    """Draw what random scores give: the diagonal; for precision and recall the share of anomalous images or pixels."""
    if name in ("roc", "pro"):
        if not any(line.get_label() == "chance" for line in axes.lines):
            axes.plot([0, 1], [0, 1], color=CHANCE, linestyle="--", linewidth=1, label="chance", zorder=1)
    elif name == "precision_recall":  # the share of the anomalous, which is the precision where all are called so
        share = float(curve["precision"][-1])
        label = f"{level}, chance {share:.3f}"
        axes.axhline(share, label=label, color=LEVELS[level], linestyle="--", linewidth=1, zorder=1)


# What a batch's figure shows: level, name of CURVE_TITLES, keys of the curves.
BATCH_CURVES = (
    ("image", "roc", "fpr", "tpr"),
    ("image", "precision_recall", "tpr", "precision"),
    ("pixel", "pro", "fpr", "pro"),
    ("pixel", "roc", "fpr", "tpr"),
    ("pixel", "precision_recall", "tpr", "precision"),
    ("pixel", "iou", "threshold", "iou"),
)
# Lines of a batch: Okabe and Ito's colors but black and yellow; beyond six the line style changes.
BATCH_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
BATCH_STYLES = ("-", "--", ":", "-.")


def batch_colors(count: int, rising: bool) -> list[dict[str, Any]]:
    """Line properties for `count` lines; `rising`: along a color scale, dark to bright."""
    if rising:
        return [{"color": colormaps["viridis"](0.9 * i / max(count - 1, 1))} for i in range(count)]
    styles = [(style, color) for style in BATCH_STYLES for color in BATCH_COLORS]
    return [{"color": color, "linestyle": style} for style, color in (styles[i % len(styles)] for i in range(count))]


def wanted_kinds(metrics: Metrics) -> dict[str, bool]:
    """Kind of curve, as in CURVE_TITLES -> whether the settings ask for it."""
    return {"roc": metrics.auroc, "precision_recall": metrics.pr, "pro": metrics.pro, "iou": metrics.iou}


def batch_curves(
    path: Path, title: str, lines: dict[str, dict[str, np.ndarray]], rising: bool, kinds: Collection[str]
) -> None:
    """Write curves of several results over each other, as PNG.

    Args:
        lines: label -> arrays named `<level>_<key>` with the keys of evaluation.metrics' curves; any may be missing.
        rising: the labels are in an order, such as training time.
        kinds: of CURVE_TITLES, at least one: which curves to draw.
    """
    shown = [curve for curve in BATCH_CURVES if curve[1] in kinds]
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = _figure(max(4.2 * columns, 6.5), 4.1 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    for axes, (level, name, x, y) in zip(grid, shown, strict=False):
        heading, x_label, y_label = CURVE_TITLES[name]
        for (label, arrays), style in zip(lines.items(), batch_colors(len(lines), rising), strict=True):
            if f"{level}_{x}" in arrays:
                axes.plot(arrays[f"{level}_{x}"], arrays[f"{level}_{y}"], label=label, linewidth=1.6, **style)
        if name in ("roc", "pro"):
            axes.plot([0, 1], [0, 1], color=CHANCE, linestyle="--", linewidth=1, label="chance", zorder=1)
        right = 0.3 if name == "pro" else 1.0
        axes.set(xlabel=x_label, ylabel=y_label, xlim=(-0.015 * right, 1.015 * right), ylim=(-0.02, 1.02))
        axes.set_title(f"{level}s: {heading}" if name != "pro" and name != "iou" else heading, fontsize=10)
        axes.grid(alpha=0.3)
    _finish(figure, path, title, 6)


def metric_over_checkpoints(
    path: Path,
    title: str,
    metrics: dict[str, dict[str, dict[str, float]]],
    checkpoints: list[str],
    marks: dict[str, str],
) -> None:
    """Write how metrics change with training, a line per category, as PNG.

    Args:
        metrics: label of a metric -> category -> checkpoint -> value. checkpoints: names in order.
        marks: label -> checkpoint to mark with a vertical line.
    """
    figure = _figure(6.2 * len(metrics), 4.6)
    names = list(dict.fromkeys(name for categories in metrics.values() for name in categories))
    styles = dict(zip(names, batch_colors(len(names), False), strict=True))
    place = {name: i for i, name in enumerate(checkpoints)}
    for axes, (label, categories) in zip(np.atleast_1d(figure.subplots(1, len(metrics))), metrics.items(), strict=True):
        for category, values in categories.items():
            style = styles[category]
            known = [name for name in checkpoints if name in values]
            axes.plot([place[n] for n in known], [values[n] for n in known], "o", markersize=5, color=style["color"])
            axes.plot([place[n] for n in known], [values[n] for n in known], label=category, **style)
        for (mark, name), look in zip(marks.items(), ("-", ":"), strict=False):
            axes.axvline(place[name], color=OPERATING_POINT, linestyle=look, linewidth=1.2, label=f"{mark}: {name}")
        axes.set(xlabel="checkpoint (epoch)", ylabel=label)
        axes.set_xticks(range(len(checkpoints)), checkpoints, rotation=45 if len(checkpoints) > 8 else 0)
        axes.grid(alpha=0.3)
    _finish(figure, path, title, 4)
