"""Several seeds of a run: mean and standard deviation over them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reporting.best_models import read_summary
from reporting.tables import LABELS, markdown_table
from runtime.files import write_text

SHOWN = ("image_auroc", "pixel_ap", "pro", "accuracy", "image_f1_at_threshold")


def folders_of(results_path: Path, run_name: str) -> dict[int, Path]:
    """Seed -> folder of results of a run that `train_all.py --seeds` has trained and that was evaluated."""
    found = {}
    for path in results_path.glob(f"{run_name}_seed*"):
        seed = re.fullmatch(re.escape(run_name) + r"_seed(-?\d+)", path.name)
        if seed and (path / "summary.csv").is_file():
            found[int(seed[1])] = path
    return dict(sorted(found.items()))


def over_seeds(rows_of: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of every category, checkpoint, technique and threshold that several seeds have: `seeds`, and of each metric shown
    `<metric>` and `<metric>_std`, the sample's standard deviation; None where a seed has no value."""
    heads = ("category", "checkpoint", "technique", "threshold")
    together: dict[tuple, list[dict[str, Any]]] = {}
    for rows in rows_of.values():
        for row in rows:
            together.setdefault(tuple(row[head] for head in heads), []).append(row)
    found = []
    for key, rows in together.items():
        if len(rows) < 2:
            continue
        one: dict[str, Any] = dict(zip(heads, key, strict=True)) | {"seeds": len(rows)}
        for metric in SHOWN:
            values = [row[metric] for row in rows]
            known = None not in values
            one[metric] = float(np.mean(values)) if known else None
            one[f"{metric}_std"] = float(np.std(values, ddof=1)) if known else None
        found.append(one)
    return found


def write_report(path: Path, run_name: str, folders: dict[int, Path], categories: Sequence[str] | None) -> str:
    """Write the table; its text."""
    found = over_seeds({seed: read_summary(folder, categories)[0] for seed, folder in folders.items()})
    heads = ["category", "checkpoint", "technique", "threshold", "seeds"]
    rows = [
        [*(str(one[head]) for head in heads), *(_spread(one[metric], one[f"{metric}_std"]) for metric in SHOWN)]
        for one in found
    ]
    lines = [f"# Run {run_name}: mean and standard deviation over seeds {', '.join(map(str, folders))}", ""]
    lines += markdown_table([*heads, *(LABELS[metric].strip() for metric in SHOWN)], rows)
    text = "\n".join(lines)
    write_text(path, text)
    return text


def _spread(mean: float | None, deviation: float | None) -> str:
    return "-" if mean is None or deviation is None else f"{mean:.4f} ± {deviation:.4f}"
