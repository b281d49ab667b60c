"""The report says whether the best is told apart from the next, and what speaks against it."""

import json

import numpy as np
from conftest import planted_detections


def test_the_report_says_what_its_differences_are_worth(two, call, monkeypatch):
    planted, rng = {}, np.random.default_rng(0)
    monkeypatch.setattr("engine.threshold.detect", planted_detections(planted, rng))
    monkeypatch.setattr("engine.detection.detect", planted_detections(planted, rng))
    assert call("evaluate_checkpoints", "--maskings", "no", "--registrations", "False")[0] == 0
    status, out, _ = call("check_best_model")
    report = (two / "results/tiny/best_models.md").read_text()
    best = json.loads((two / "results/tiny/best_models.json").read_text())
    assert status == 0 and "the next in rank (difference in image AUROC" in out
    assert best["next"]["checkpoint"] in ("1", "2") and best["next"]["low"] <= best["next"]["high"]
    assert "told apart" in report and "The same held-out images set the thresholds" in report
    assert "standard error" in report
    for category in ("tile", "wood"):
        path = next((two / f"results/tiny/{category}").glob("checkpoint_*/no_masking/optimal/metrics.json"))
        content = json.loads(path.read_text())
        content["notes"]["masks_not_found"] = "images are told apart, but their defects are not found"
        for metrics in (two / f"results/tiny/{category}").glob("checkpoint_*/no_masking/optimal/metrics.json"):
            own = json.loads(metrics.read_text())
            metrics.write_text(json.dumps(own | {"notes": content["notes"]}))
    out = call("check_best_model")[1]
    assert "**tile**: images are told apart, but their defects are not found." in out and "**wood**: images" in out
