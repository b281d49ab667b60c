"""Name the best checkpoint and technique of what evaluate_checkpoints.py has measured."""

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from main import Parser, add_config_flags, run

if TYPE_CHECKING:
    from config import Config

# Predefined parameters. Each can be given as a flag of the same name.
CATEGORIES = None  # names of categories to compare; None: all in summary.csv

MEND = "run evaluate_checkpoints.py again"


def main() -> int:
    """Parse the command line, compare and report."""
    parser = Parser(
        prog="check_best_model.py",
        description="Name the best checkpoint and technique of what evaluate_checkpoints.py has measured. "
        "Reads summary.csv; no network is run.",
        epilog="example: python check_best_model.py --config configs/sample.yaml",
    )
    parser.add_argument("--categories", nargs="+", default=CATEGORIES, metavar="NAME", help="which (default: all)")
    add_config_flags(parser)
    arguments = parser.parse_args()

    from config import load_config
    from engine import runtime
    from evaluation import plots
    from evaluation.comparison import HEADLINE, TIE, best_of_categories, overall, plain_results, training_order

    config = load_config(arguments.config, arguments.set)
    results = Path(config.data.results_path) / config.data.run_name
    rows, failed = _read_summary(results, arguments.categories)
    best = {
        "run": config.data.run_name,
        "categories": best_of_categories(rows),
        **overall(rows),
        "failed": failed,
    }
    best["label_free"] = _label_free(config, rows, best["headline"])
    runtime.write_text(results / "best_models.json", json.dumps(best, indent=2, allow_nan=False) + "\n")
    text = _report(best)
    runtime.write_text(results / "best_models.md", text)
    with runtime.replacing(results / "best_models.png") as beside:
        curves = {
            label: plain_results(rows, metric) for label, metric in (("image AUROC", HEADLINE), ("pixel AP", TIE))
        }
        names = sorted(
            {name for curve in curves.values() for values in curve.values() for name in values}, key=training_order
        )
        marks = {"best on the test set": best["headline"]["checkpoint"]} if best["headline"] else {}
        if best["label_free"]["overall"]:
            marks["chosen without labels"] = best["label_free"]["overall"]["checkpoint"]
        plots.metric_over_checkpoints(beside, f"Run {config.data.run_name}, no masking", curves, names, marks)
    print(text.partition("\n## ")[0])
    print(f"report: {results / 'best_models.md'}")
    return 0


def _read_summary(results: Path, categories: list[str] | None) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Rows of summary.csv with numbers or None for metrics, and its failures; UserError where it is damaged."""
    from engine.result import METRIC_KEYS
    from errors import UserError

    path = results / "summary.csv"
    if not path.is_file():
        what = "is missing" if results.is_dir() else f"is missing (there is no folder {results})"
        raise UserError(f"{path}: {what}; run evaluate_checkpoints.py first, with the same --config and --set")
    rows, failed, seen = [], [], set()
    head = ("category", "checkpoint", "technique", "threshold")
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            table = list(csv.reader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: damaged ({error}); {MEND}") from error
    if not table or not set((*head, *METRIC_KEYS, "error")) <= set(table[0]):
        raise UserError(f"{path}: line 1 is damaged: columns are missing; {MEND}")
    for number, cells in enumerate(table[1:], 2):
        row = dict(zip(table[0], cells, strict=False))
        key = tuple(row.get(column, "") for column in head)
        if len(cells) != len(table[0]) or not key[0] or key in seen:
            raise UserError(f"{path}: line {number} is damaged or there twice; {MEND}")
        seen.add(key)
        if categories and key[0] not in categories:
            continue
        if row["error"]:
            failed.append({column: row[column] for column in (*head, "error")})
            continue
        try:
            values = {name: float(row[name]) if row[name] else None for name in METRIC_KEYS}
        except ValueError as error:
            raise UserError(f"{path}: line {number} is damaged ({error}); {MEND}") from error
        if not all(key) or not all(value is None or math.isfinite(value) for value in values.values()):
            raise UserError(f"{path}: line {number} is damaged; {MEND}")
        rows.append(dict(zip(head, key, strict=True)) | values)
    for measured in results.glob("*/checkpoint_*/*/*/metrics.json"):
        category, checkpoint, technique, threshold = measured.parts[-5:-1]
        key = (category, checkpoint.removeprefix("checkpoint_"), technique, threshold)
        if key not in seen and not any(key[:3] == other[:3] for other in seen if not other[3]):
            raise UserError(f"{path}: the row of {', '.join(key)} is missing, its metrics.json is there; {MEND}")
    there = {key[0] for key in seen}
    for name in categories or ():
        if name not in there:
            raise UserError(
                f"--categories {name}: no results in {path}; there are: {', '.join(sorted(there)) or 'none'}"
            )
    if not rows:
        raise UserError(f"{path}: holds no results" + (", only failures" if failed else "") + f"; {MEND}")
    return rows, failed


def _label_free(config: "Config", rows: list[dict[str, Any]], headline: dict[str, Any] | None) -> dict[str, Any]:
    """The choice by val_ap of train_log.csv: pixel AP on synthetic anomalies on held-out nominal images.

    Beside it what the choice on the test set reaches. No test label takes part in the choice.
    """
    from evaluation.comparison import HEADLINE, mean, mean_ranks, plain_results, training_order

    measured, table = plain_results(rows, HEADLINE), {}
    evaluated = {(row["category"], row["checkpoint"]) for row in rows}
    names = list(dict.fromkeys(row["category"] for row in rows))
    for category in names:
        values = _read_val_ap(Path(config.data.checkpoint_path) / category / config.data.run_name / "train_log.csv")
        if own := {name: value for name, value in values.items() if (category, name) in evaluated}:
            table[category] = own
    categories = {}
    for category, values in table.items():
        chosen, there = min(values, key=lambda name: (-values[name], training_order(name))), measured.get(category, {})
        top = min(there, key=lambda name: (-there[name], training_order(name)), default=None)
        categories[category] = {
            "checkpoint": chosen,
            "val_ap": values[chosen],
            HEADLINE: there.get(chosen),
            "best_checkpoint": top,
            f"best_{HEADLINE}": there.get(top),
            "difference": there[top] - there[chosen] if chosen in there else None,
        }
    overall, ranks = None, mean_ranks(table)
    if ranks:
        chosen = min(ranks, key=lambda name: (ranks[name], training_order(name)))
        overall = {
            "checkpoint": chosen,
            "mean_rank": ranks[chosen],
            HEADLINE: mean(measured, chosen),
            "difference": None,
        }
        if headline:  # over the categories that have both
            both = {c: v for c, v in measured.items() if c in table and {chosen, headline["checkpoint"]} <= v.keys()}
            if both:
                overall[HEADLINE] = mean(both, chosen)
                overall["difference"] = mean(both, headline["checkpoint"]) - overall[HEADLINE]
    reason = None if ranks else "no checkpoint compared has a val_ap in every category"
    if not table:
        reason = "no val_ap in the training logs of the checkpoints compared (data.val_split was 0, or no log is there)"
    without = [name for name in names if name not in table]
    return {"overall": overall, "reason": reason, "categories": categories, "without_val_ap": without}


def _read_val_ap(log: Path) -> dict[str, float]:
    """Checkpoint -> val_ap, as far as the log has them."""
    from errors import UserError

    if not log.is_file():
        return {}
    try:
        with log.open(newline="", encoding="utf-8") as stream:
            values = {row["epoch"]: float(row["val_ap"]) for row in csv.DictReader(stream) if row["val_ap"]}
        if not all(map(math.isfinite, values.values())):
            raise ValueError("val_ap is not a number")
        return values
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{log}: damaged ({error}); restore it, or move it away to do without val_ap") from error


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return [*lines, ""]


def _report(best: dict[str, Any]) -> str:
    """best_models.md."""
    from evaluation.comparison import HEADLINE, TIE

    names = list(best["categories"])
    lines = [f"# Best models of run {best['run']}", ""]
    headline, free = best["headline"], best["label_free"]
    if headline:
        ranked = headline["categories"]
        count = f"{len(ranked)} {'category' if len(ranked) == 1 else 'categories'}"
        if len(ranked) < len(names):
            count += f" (not defined for {', '.join(name for name in names if name not in ranked)})"
        lines += [
            f"**Checkpoint {headline['checkpoint']}** has the best mean rank in image AUROC over {count} "
            f"({headline['mean_rank']:.2f}): mean image AUROC {_cell(headline[HEADLINE])}, mean pixel AP "
            f"{_cell(headline[TIE])}, without masking and registration.",
            "",
        ]
    else:
        lines += ["No checkpoint can be named best: image AUROC is nowhere defined for a checkpoint of all.", ""]
    lines += [
        "This choice, like every best value below, is made on the test set and therefore optimistic: on new pictures "
        "expect less.",
        "",
    ]
    if free["overall"]:
        overall = free["overall"]
        same = headline and overall["checkpoint"] == headline["checkpoint"]
        apart = ""
        if not same and overall["difference"] is not None:
            side = "below" if overall["difference"] >= 0 else "above"
            apart = f", {abs(overall['difference']):.4f} {side} that of checkpoint {headline['checkpoint']}"
        lines.append(
            f"Without any test label **checkpoint {overall['checkpoint']}** is chosen{' as well' if same else ''}: it "
            "has the best mean rank in pixel AP on synthetic anomalies put on held-out nominal images (`val_ap`). Its "
            f"mean image AUROC is {_cell(overall[HEADLINE])}{apart}."
        )
    else:
        lines.append(f"No choice without test labels exists: {free['reason']}.")
    lines.append("")
    if best["failed"]:
        lines += ["Not evaluated, and missing in all of this:", ""]
        for item in best["failed"]:
            what = ", ".join(item[key] for key in ("category", "checkpoint", "technique") if item[key])
            lines.append(f"- {what}: {item['error']}")
        lines.append("")
    if best["not_in_every_category"]:
        left_out = ", ".join(best["not_in_every_category"])
        lines += [f"Not compared, since not every category has them: checkpoints {left_out}.", ""]

    lines += ["## Checkpoints over all categories", "", "By mean rank, without masking and registration.", ""]
    lines += _table(
        ["metric", "best checkpoint", "mean rank", "mean value", "equal in rank"],
        [
            [
                _label(metric),
                entry["checkpoint"],
                f"{entry['mean_rank']:.2f}",
                _cell(entry["mean"]),
                ", ".join(name for name in entry["tied"] if name != entry["checkpoint"]) or "-",
            ]
            for metric, entry in best["overall"].items()
        ],
    )
    lines += ["![image AUROC and pixel AP over checkpoints](best_models.png)", ""]
    if free["categories"]:
        lines += ["## Chosen without labels", ""]
        lines += _table(
            ["category", "by val_ap", "val_ap", "image AUROC", "best on the test set", "image AUROC", "difference"],
            [
                [
                    category,
                    choice["checkpoint"],
                    _cell(choice["val_ap"]),
                    _cell(choice[HEADLINE]),
                    choice["best_checkpoint"] or "-",
                    _cell(choice[f"best_{HEADLINE}"]),
                    _cell(choice["difference"]),
                ]
                for category, choice in free["categories"].items()
            ],
        )
        if free["without_val_ap"]:
            lines += [f"Without `val_ap`: {', '.join(free['without_val_ap'])}.", ""]
    for category in names:
        lines += [f"## {category}", ""]
        table = []
        for metric, entry in best["categories"][category].items():
            reached = [", ".join(one.values()) for one in entry["reached_by"]]
            shown = "; ".join(reached[:3]) + (f"; and {len(reached) - 3} more" if len(reached) > 3 else "")
            table.append([_label(metric), _cell(entry["value"]), shown or "undefined"])
        lines += _table(["metric", "best value", "reached by: checkpoint, technique, threshold"], table)
    return "\n".join(lines)


def _label(metric: str) -> str:
    from engine.result import ROWS

    name, _, kind = metric.partition(" ")
    return ROWS[name].strip() + (f" at {kind.strip('()')}" if kind else "")


if __name__ == "__main__":
    run(main)
