"""reporting/best_models.py and reporting/significance.py: what the report of the best models adds to its tables."""

import json

from conftest import noisy_maps
from messages import assert_line, lines_with


def test_the_report_has_significance_and_warnings(two, call, plant):
    plant(noisy_maps(0))
    assert call("evaluate_checkpoints", "--maskings", "no", "--registrations", "False")[0] == 0
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
