"""reporting/best_models.py and reporting/significance.py: what the report of the best models adds to its tables."""

import json

from conftest import noisy_maps, rows_of
from messages import assert_line, lines_with


def test_the_report_has_significance_and_warnings(two, call, plant):
    plant(noisy_maps(0))
    assert call("evaluate_checkpoints", "--maskings", "no", "--registrations", "False")[0] == 0
    defects = rows_of(two / "results/tiny/defects.csv")
    summary = [tuple(row.values())[:4] for row in rows_of(two / "results/tiny/summary.csv")]
    assert [tuple(row.values())[:4] for row in defects] == summary and {row["defect"] for row in defects} == {"spot"}
    folder = two / "results/tiny/tile/checkpoint_1/no_masking/optimal"
    assert rows_of(folder / "defects.csv") == [dict(list(defects[3].items())[4:])]
    row = next(row for row in rows_of(two / "results/tiny/summary.csv") if row["threshold"] == "optimal")
    assert abs(float(defects[3]["pro"]) - float(row["pro"])) < 1e-6 and defects[3]["image_auroc"] == row["image_auroc"]
    assert abs(float(defects[3]["recall"]) - float(row["true_positives"]) / 3) < 1e-9
    assert "spot" in (folder / "metrics.txt").read_text().splitlines()[-1]
    status, out, _ = call("check_best_model")
    assert status == 0 and out.splitlines()[-1].startswith("report: ")
    report = (two / "results/tiny/best_models.md").read_text()
    table = (two / "results/tiny/categories.md").read_text().splitlines()[2:]
    assert [line.split(" | ")[0] for line in table if line] == ["| category", "| ---", "| tile", "| wood", "| mean"]
    assert "\n".join(table) in report and (two / "results/tiny/categories.tex").is_file()
    best = json.loads((two / "results/tiny/best_models.json").read_text())
    next_best = best["next"]
    assert next_best["checkpoint"] in ("1", "2") and next_best["low"] <= next_best["difference"] <= next_best["high"]
    assert_line(report, *(f"{next_best[key]:.4f}" for key in ("difference", "low", "high")))
    for category in ("tile", "wood"):
        for metrics in (two / f"results/tiny/{category}").glob("checkpoint_*/no_masking/optimal/metrics.json"):
            content = json.loads(metrics.read_text())
            content["notes"]["masks_not_found"] = f"a warning about {category}"
            metrics.write_text(json.dumps(content))
    before = report
    assert call("check_best_model")[0] == 0
    report = (two / "results/tiny/best_models.md").read_text()
    for category in ("tile", "wood"):
        assert lines_with(report, f"**{category}**", f"a warning about {category}")
        assert not lines_with(before, f"a warning about {category}")
