"""Pictures: panels composed of arrays, curves drawn with matplotlib. A function is given its path or returns an array.

Colors are Okabe and Ito's, which color-blind people can tell apart, and mean the same thing everywhere.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

NOMINAL = "#0072B2"
ANOMALOUS = "#D55E00"
OPERATING_POINT = "#000000"
LEVELS = {"image": "#CC79A7", "pixel": "#009E73"}
TRUTH, PREDICTION = "#56B4E9", "#E69F00"
TILE = 192  # pixels a small image is enlarged to
GAP, BACKGROUND = 6, 255
# Where there is a choice one filter: trying them all on every line takes twice as long and saves 3 %.
PNG_FILTER = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP] if hasattr(cv2, "IMWRITE_PNG_FILTER") else []


def _bgr(color: str) -> tuple[int, int, int]:
    return tuple(int(color[i : i + 2], 16) for i in (5, 3, 1))


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a uint8 BGR picture as PNG; OSError where that fails."""
    done, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1, *PNG_FILTER])
    if not done:
        raise OSError(f"{path}: picture could not be encoded")
    Path(path).write_bytes(data)


@lru_cache(maxsize=256)
def _text(text: str, width: int, size: int = 14, color: str = "#000000") -> np.ndarray:
    """A strip with a line of text, uint8 (size + 8, width, 3) BGR; a text too long is cut at its start."""
    font = ImageFont.load_default(size)
    while font.getlength(text) > width - 4 and len(text) > 4:
        text = "…" + text.lstrip("…")[1:]
    strip = Image.new("RGB", (width, size + 8), "white")
    ImageDraw.Draw(strip).text((2, 2), text, fill=color, font=font)
    return np.asarray(strip)[..., ::-1]


def _tile(array: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3), float in [0, 1] or bool or uint8 -> uint8 BGR, enlarged to at least TILE pixels."""
    if array.dtype != np.uint8:
        array = (np.clip(array.astype(np.float32), 0, 1) * 255 + 0.5).astype(np.uint8, order="C")  # OpenCV draws on it
    if array.ndim == 2:
        array = cv2.cvtColor(array, cv2.COLOR_GRAY2BGR)
    factor = -(-TILE // min(array.shape[:2]))
    return cv2.resize(array, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST) if factor > 1 else array


def _pad(picture: np.ndarray, below: int, right: int) -> np.ndarray:
    """With so many rows and columns of background added."""
    return cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(BACKGROUND,) * 3)


def _row(tiles: list[np.ndarray]) -> np.ndarray:
    """Tiles side by side with gaps."""
    height = max(tile.shape[0] for tile in tiles)
    return np.hstack([_pad(tile, height - tile.shape[0], GAP) for tile in tiles])


def _heat(scores: np.ndarray) -> np.ndarray:
    """Anomaly map (H, W) in [0, 1] -> colors, dark for 0 and bright for 1."""
    return cv2.applyColorMap((np.clip(scores, 0, 1) * 255 + 0.5).astype(np.uint8), cv2.COLORMAP_INFERNO)


def sample_grid(
    image: np.ndarray,
    augmented: np.ndarray,
    reconstruction: np.ndarray,
    mask: np.ndarray,
    prediction: np.ndarray,
    rows: int = 4,
) -> np.ndarray:
    """Training samples and what the networks make of them.

    Args:
        image, augmented, reconstruction: float (N, 3, H, W) in [0, 1], BGR. mask, prediction: float (N, 1, H, W).

    Returns:
        uint8 picture (h, w, 3), BGR; samples with an anomaly first.
    """
    order = np.argsort(-mask.reshape(len(mask), -1).max(axis=1), kind="stable")[:rows]
    columns = {
        "input": image,
        "corrupted": augmented,
        "reconstruction": reconstruction,
        "mask": mask,
        "predicted mask": prediction,
    }
    lines = []
    for i in order:
        planes = [values[i].transpose(1, 2, 0) for values in columns.values()]
        lines.append(_row([_tile(plane if plane.shape[2] == 3 else plane[..., 0]) for plane in planes]))
        lines.append(np.full((GAP, lines[-1].shape[1], 3), BACKGROUND, np.uint8))
    width = lines[0].shape[1] // len(columns)
    return np.vstack([np.hstack([_text(name, width) for name in columns]), *lines])


def panel(
    title: str,
    verdict: str,
    is_correct: bool | None,
    image: np.ndarray,
    reconstruction: np.ndarray,
    anomaly_map: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
) -> np.ndarray:
    """All that belongs to one result, side by side.

    Args:
        title: what the picture is. verdict: what was decided, and why. is_correct: None where it cannot be told.
        image, reconstruction: float (H, W, 3) in [0, 1], BGR. anomaly_map: float (H, W) in [0, 1].
        truth: bool (H, W), None where there is no ground-truth mask. prediction: bool (H, W).

    Returns:
        uint8 picture (h, w, 3), BGR.
    """
    overlay = _tile(image)
    outline(overlay, prediction, PREDICTION)
    if truth is not None:
        outline(overlay, truth, TRUTH)
    tiles = {
        "input": _tile(image),
        "reconstruction": _tile(reconstruction),
        "anomaly map (0 dark, 1 bright)": _tile(_heat(anomaly_map)),
        "ground truth" if truth is not None else "no ground truth": _tile(
            truth if truth is not None else np.full(prediction.shape, 0.5, np.float32)
        ),
        "map above threshold": _tile(prediction),
        "predicted / true outline": overlay,
    }
    row = _row(list(tiles.values()))
    width = row.shape[1] // len(tiles)
    names = np.hstack([_text(name, width) for name in tiles])
    color = "#000000" if is_correct is None else NOMINAL if is_correct else ANOMALOUS
    head = np.hstack([_text(title, row.shape[1] // 2, 16), _text(verdict, row.shape[1] - row.shape[1] // 2, 16, color)])
    key = _text("orange: predicted, light blue: ground truth", width + GAP + 64, 12)  # as wide as the text needs
    foot = np.full((key.shape[0], row.shape[1], 3), BACKGROUND, np.uint8)
    foot[:, -key.shape[1] :] = key
    return np.vstack([head, names, row, foot])


def outline(picture: np.ndarray, mask: np.ndarray, color: str) -> None:
    """Draw the outline of a mask (H, W) onto a uint8 picture a whole number of times as large."""
    size = (picture.shape[1], picture.shape[0])
    enlarged = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, _bgr(color), 2 if min(size) >= TILE else 1)


def contact_sheet(
    title: str, sections: dict[str, list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]], columns: int = 4
) -> np.ndarray:
    """Pictures with their outlines, small, under headings.

    Args:
        sections: heading -> captions, images uint8 (H, W, 3) BGR, ground truth and prediction bool (H, W).

    Returns:
        uint8 picture (h, w, 3), BGR.
    """
    rows = []
    for heading, items in sections.items():
        tiles = []
        for caption, image, truth, prediction in items:
            tile = _tile(image).copy()
            outline(tile, prediction, PREDICTION)
            outline(tile, truth, TRUTH)
            tiles.append(np.vstack([tile, _text(caption, tile.shape[1], 12)]))
        tiles += [np.full_like(tiles[0], BACKGROUND)] * (-len(tiles) % columns)
        lines = [_row(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
        rows += [_text(heading, lines[0].shape[1], 14), *lines]
    width = max(row.shape[1] for row in rows)
    rows = [_text(title, width, 16), *rows, _text("orange: predicted, light blue: ground truth", width, 12)]
    return np.vstack([_pad(row, 0, width - row.shape[1]) for row in rows])


def _figure(width: float, height: float, layout: str | None = "constrained"):
    # Not pyplot: it keeps global state, and windows where there is a screen.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout=layout)


def _finish(figure, path: Path, title: str, columns: int) -> None:
    """Write a figure of several axes with one legend for all."""
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=9)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, format="png")


def _axes(width: float, height: float):
    """Axes alone in a figure, with fixed room for a title of two lines: fitting the layout would double the time."""
    figure = _figure(width, height, layout=None)
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
        axes.hist(scores, edges, color=color, alpha=0.55, label=label, edgecolor=color, linewidth=0.8)
    for (name, value), style in zip(thresholds.items(), ("-", "--", "-.", ":"), strict=False):
        axes.axvline(value, color=OPERATING_POINT, linestyle=style, linewidth=1.5, label=f"{name} {value:.3f}")
    axes.set(xlabel="image score (largest smoothed probability of 'anomalous')", ylabel="images")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_title(f"Image scores and thresholds\n{title}", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", framealpha=0.9, fontsize=9)
    axes.figure.savefig(path, format="png")


CURVE_TITLES = {
    "roc": ("Receiver operating characteristic", "false positive rate", "true positive rate"),
    "precision_recall": ("Precision and recall", "recall", "precision"),
    "pro": ("Per-region overlap (PRO)", "false positive rate of pixels", "mean overlap with anomalous regions"),
    "iou": ("Intersection over union of all pixels", "threshold on the anomaly map", "IoU"),
}


def curves(
    path: Path,
    name: str,
    title: str,
    x: str,
    y: str,
    levels: dict[str, dict[str, np.ndarray]],
    operating_points: dict[str, tuple[float, str]],
) -> None:
    """Write a figure with a curve for each level, as PNG.

    Args:
        name: one of CURVE_TITLES. title: what was measured. x, y: keys of the curves to draw against each other.
        levels: `image` or `pixel` -> curves of evaluation.metrics, each with `threshold` falling.
        operating_points: level -> threshold and its name.
    """
    heading, x_label, y_label = CURVE_TITLES[name]
    axes = _axes(6.4, 5.2)
    for level, curve in levels.items():
        axes.plot(curve[x], curve[y], color=LEVELS[level], label=level, linewidth=2)
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
    axes.legend(loc="best", framealpha=0.9)
    axes.figure.savefig(path, format="png")


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
        from matplotlib import colormaps

        return [{"color": colormaps["viridis"](0.9 * i / max(count - 1, 1))} for i in range(count)]
    styles = [(style, color) for style in BATCH_STYLES for color in BATCH_COLORS]
    return [{"color": color, "linestyle": style} for style, color in (styles[i % len(styles)] for i in range(count))]


def batch_curves(path: Path, title: str, lines: dict[str, dict[str, np.ndarray]], rising: bool) -> None:
    """Write all curves of several results over each other, as PNG.

    Args:
        lines: label -> arrays named `<level>_<key>` with the keys of evaluation.metrics' curves; any may be missing.
        rising: the labels are in an order, such as training time.
    """
    figure = _figure(12.5, 8.2)
    for axes, (level, name, x, y) in zip(figure.subplots(2, 3).ravel(), BATCH_CURVES, strict=True):
        heading, x_label, y_label = CURVE_TITLES[name]
        for (label, arrays), style in zip(lines.items(), batch_colors(len(lines), rising), strict=True):
            if f"{level}_{x}" in arrays:
                axes.plot(arrays[f"{level}_{x}"], arrays[f"{level}_{y}"], label=label, linewidth=1.6, **style)
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
