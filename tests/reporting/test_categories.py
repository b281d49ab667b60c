"""reporting/paper/categories.py: the table over categories in Markdown and LaTeX."""

from evaluation.metrics import METRIC_KEYS
from reporting.paper import categories


def row(category, checkpoint="700", technique="no_masking", threshold="max", **values):
    head = {"category": category, "checkpoint": checkpoint, "technique": technique, "threshold": threshold}
    return head | dict.fromkeys(METRIC_KEYS) | values


def rows():
    """Three thresholds each; another checkpoint and technique that must not show."""
    metal = {"image_auroc": 0.99951, "pixel_auroc": 0.97, "pixel_ap": 0.7, "pro": 0.9, "pro_05": 0.6, "aupimo": 0.5}
    bolt = {"image_auroc": 0.8, "pixel_auroc": 0.9}
    kinds = {"max": 0.1, "k_sigma": 0.25, "optimal": 0.7}
    found = [
        row(name, threshold=kind, **own, **({"pixel_f1_at_threshold": value} if own is metal else {}))
        for name, own in (("metal_nut", metal), ("bolt", bolt))
        for kind, value in kinds.items()
    ]
    return [*found, row("bolt", "300", image_auroc=0.1), row("bolt", technique="post_masking", image_auroc=0.2)]


def test_the_table_is_in_percent_with_the_mean_last(tmp_path):
    lines = categories.write_tables(tmp_path, rows(), "700")
    assert lines[:5] == [
        "| category | image AUROC | pixel AUROC | pixel AP | PRO | PRO to 5 % | pixel F1 at k_sigma | AUPIMO |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| bolt | 80.0 | 90.0 | - | - | - | - | - |",
        "| metal_nut | 100.0 | 97.0 | 70.0 | 90.0 | 60.0 | 25.0 | 50.0 |",
        "| mean | 90.0 | 93.5 | 70.0 | 90.0 | 60.0 | 25.0 | 50.0 |",
    ]
    written = (tmp_path / "categories.md").read_text()
    assert "700" in written.splitlines()[0] and "\n".join(lines) in written
    latex = (tmp_path / "categories.tex").read_text().splitlines()
    assert latex[1:3] == [r"\begin{tabular}{lrrrrrrr}", r"\toprule"] and latex[-2:] == [
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert (
        r"metal\_nut & 100.0 & 97.0 & 70.0 & 90.0 & 60.0 & 25.0 & 50.0 \\" in latex
        and r"bolt & 80.0 & 90.0 & -- & -- & -- & -- & -- \\" in latex
    )
    assert latex[-3] == r"mean & 90.0 & 93.5 & 70.0 & 90.0 & 60.0 & 25.0 & 50.0 \\" and latex[-4] == r"\midrule"


def test_columns_without_any_value_are_left_out_and_no_checkpoint_leaves_no_table(tmp_path):
    assert categories.table([row("bolt", image_auroc=0.5)], "700")[0] == [
        "category", "image AUROC", "pixel AUROC", "pixel AP", "PRO", "PRO to 5 %"
    ]  # fmt: skip
    categories.write_tables(tmp_path, rows(), "700")
    assert categories.write_tables(tmp_path, rows(), None) == [] and not list(tmp_path.iterdir())
