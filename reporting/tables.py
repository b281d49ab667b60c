"""Tables and cells: the one place that formats them, as text and as Markdown."""

from collections.abc import Sequence
from typing import Any

from evaluation import metrics

# What people read for each key of metrics.json; keys at a threshold are indented below it.
LABELS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1": "image F1, largest",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1": "pixel F1, largest",
    "pro": "PRO to 30 % false positives",
    "pro_05": "PRO to 5 % false positives",
    "spro_05": "sPRO to 5 % false positives",
    "aupimo": "AUPIMO",
    "iou_max": "IoU, largest",
    "image_threshold": "image threshold",
    "accuracy": "  accuracy",
    "image_f1_at_threshold": "  image F1",
    "true_positives": "  true positives",
    "false_positives": "  false positives",
    "true_negatives": "  true negatives",
    "false_negatives": "  false negatives",
    "hit_rate": "  pointing game accuracy",
    "pixel_threshold": "pixel threshold",
    "iou": "  IoU",
    "pixel_f1_at_threshold": "  pixel F1",
}


def cell(value: float | int | str | None) -> str:
    """Text of a value: four digits behind the point, a dash for None."""
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def text_table(rows: Sequence[Sequence[Any]]) -> str:
    """Columns of text, two spaces apart, each as wide as its widest cell."""
    widths = [max(len(cell(value)) for value in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell(value).ljust(width) for value, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def number_table(rows: Sequence[Sequence[Any]], label_width: int, width: int) -> str:
    """A label in each row and numbers flush right in columns of one width; rows may end early."""
    return "\n".join(
        f"{label:{label_width}}" + "".join(f"{cell(value):>{width}}" for value in rest) for label, *rest in rows
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table, an empty one behind it."""
    lines = [f"| {' | '.join(map(cell, cells))} |" for cells in (head, ["---"] * len(head), *rows)]
    return [*lines, ""]


def with_interval(column: dict[str, Any], key: str) -> str | float | int | None:
    """A value with its interval behind it, where it has one. column: key -> value, also of `<key>_low` and `_high`."""
    low, high = column.get(f"{key}_low"), column.get(f"{key}_high")
    if low is None or not isinstance(column[key], float):
        return column[key]
    return f"{column[key]:.4f} [{low:.2f}, {high:.2f}]"


def metrics_table(columns: dict[str, dict[str, Any]], notes: dict[str, Any]) -> str:
    """Metrics as text, a column for each threshold type; values over all thresholds stand once. Notes below."""
    rows: list[list[Any]] = [["", *columns]]
    for key, label in LABELS.items():
        values = [with_interval(column, key) for column in columns.values()]
        if key == metrics.SPRO and None in values:  # of one dataset only
            continue
        if key in (*metrics.IMAGE_KEYS, *metrics.PIXEL_KEYS, *metrics.OVERLAP_KEYS):
            values = values[:1]
        rows.append([label, *values])
    lines = [number_table(rows, 30, 22), "in brackets: 95 % intervals over images"]
    return "\n".join([*lines, *(f"note: {note}" for note in notes.values() if isinstance(note, str))])
