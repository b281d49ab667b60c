"""The table over categories as papers print it, in Markdown and in LaTeX: in percent, the mean last."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.comparison import PLAIN
from runtime.files import write_text

COLUMNS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pro": "PRO",
    "pro_05": "PRO to 5 %",
    "pixel_f1_at_threshold": "pixel F1 at k_sigma",  # with PRO to 5 % what MVTec AD 2 reports
    "spro_05": "sPRO",
    "aupimo": "AUPIMO",
}
WHERE_THERE = ("pixel_f1_at_threshold", "spro_05", "aupimo")  # columns that are left out where no category has a value
MARKDOWN, LATEX = "categories.md", "categories.tex"
SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def write_tables(results: Path, rows: Sequence[dict[str, Any]], checkpoint: str | None) -> list[str]:
    """Write categories.md and categories.tex; the lines of the first below its title.

    Without a checkpoint earlier files are removed: they would show another one.

    Args:
        rows: of the summary. checkpoint: whose results without masking and registration are shown; None: there is none.
    """
    if checkpoint is None:
        for name in (MARKDOWN, LATEX):
            (results / name).unlink(missing_ok=True)
        return []
    head, body = table(rows, checkpoint)
    title = f"Checkpoint {checkpoint} of run {results.name}, without masking and registration"
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in body]
    if any("-" in row[1:] for row in body):
        lines += ["", "A dash: not defined there; the mean is over the other categories."]
    write_text(results / MARKDOWN, "\n".join([f"# {title}, in percent", "", *lines, ""]))
    write_text(results / LATEX, _latex(title, head, body))
    return lines


def table(rows: Sequence[dict[str, Any]], checkpoint: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of text, in percent with one digit behind the point: categories sorted by name, then the mean."""
    own = [row for row in rows if (row["checkpoint"], row["technique"]) == (checkpoint, PLAIN)]
    values = {row["category"]: row | {"pixel_f1_at_threshold": None} for row in own}
    values |= {row["category"]: row for row in own if row["threshold"] == "k_sigma"}
    known = {key: [row[key] for row in values.values() if row[key] is not None] for key in COLUMNS}
    keys = [key for key in COLUMNS if known[key] or key not in WHERE_THERE]
    body = [[name, *(_percent(values[name][key]) for key in keys)] for name in sorted(values)]
    means = [sum(known[key]) / len(known[key]) if known[key] else None for key in keys]
    return ["category", *(COLUMNS[key] for key in keys)], [*body, ["mean", *map(_percent, means)]]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _latex(title: str, head: list[str], body: list[list[str]]) -> str:
    """A table with booktabs' rules."""
    lines = [f"% {title}, in percent. Needs \\usepackage{{booktabs}}."]
    lines += [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule", _latex_row(head), "\\midrule"]
    lines += [*map(_latex_row, body[:-1]), "\\midrule", _latex_row(body[-1]), "\\bottomrule", "\\end{tabular}"]
    return "\n".join(lines) + "\n"


def _latex_row(cells: list[str]) -> str:
    texts = ("--" if cell == "-" else "".join(SPECIAL.get(char, char) for char in cell) for cell in cells)
    return " & ".join(texts) + r" \\"
