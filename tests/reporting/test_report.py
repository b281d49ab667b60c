"""check_best_model.py, and the chain that ends in it."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, checked, copy_of, planted_detections, rows_of
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation import comparison, metrics
from inference.preprocessing import Variant

PLAIN = ("--maskings", "no", "--registrations", "False")


def test_planted_scores_arrive_in_the_report(two, call, monkeypatch):
    """Checkpoint 1 is made to see defects well and checkpoint 2 badly; every figure follows from the planted maps."""
    planted = {}

    def separation(model):
        return 0.4 if epochs[model_key(model)] == 1 else 0.02

    def model_key(model):
        return float(next(model.parameters()).double().sum())

    epochs = {}
    for name in ("tile", "wood"):
        for epoch in (1, 2):
            state = torch.load(two / f"checkpoints/{name}/tiny/epoch_000{epoch}.pt", weights_only=True)["model"]
            epochs[float(next(iter(state.values())).double().sum())] = epoch
    kept = {}

    def detect(model, dataset, config, title, ranks=None):
        planted.clear()
        yield from planted_detections(planted, np.random.default_rng(2), separation)(model, dataset, config, title)
        kept[config.data.category, epochs[model_key(model)], title] = dict(planted)

    monkeypatch.setattr("engine.threshold.detect", detect)
    monkeypatch.setattr("engine.detection.detect", detect)
    status, out, _ = call("evaluate_checkpoints", *PLAIN)
    results = two / "results/tiny"
    assert status == 0 and out.splitlines()[-1] == f"results: {results}/summary.csv"
    assert "16 combinations" in out
    summary = rows_of(results / "summary.csv")
    assert list(summary[0]) == ["category", "checkpoint", "technique", "threshold", *metrics.METRIC_KEYS, "error"]
    assert len(summary) == 2 * 2 * 4 and not any(row["error"] for row in summary)
    labels = np.array([0, 0, 0, 1, 1, 1])
    expected = {}
    for category in ("tile", "wood"):
        for epoch in (1, 2):
            test = [kept[category, epoch, "test images"]["test images", Variant(False, False), i] for i in range(6)]
            nominal = [
                kept[category, epoch, "nominal images"]["nominal images", Variant(False, False), i] for i in (0, 1)
            ]
            scores = np.array([metrics.image_score(one.anomaly_map) for one in test])
            maps, truth = (
                np.concatenate([getattr(one, key).ravel() for one in test]) for key in ("anomaly_map", "mask")
            )
            expected[category, str(epoch)] = (roc_auc_score(labels, scores), average_precision_score(truth, maps))
            for row in summary:
                if (row["category"], row["checkpoint"]) == (category, str(epoch)):
                    assert float(row["image_auroc"]) == pytest.approx(expected[category, str(epoch)][0])
                    assert float(row["pixel_ap"]) == pytest.approx(expected[category, str(epoch)][1], abs=1e-4)
                    if row["threshold"] == "max":
                        threshold = max(metrics.image_score(one.anomaly_map) for one in nominal)
                        assert float(row["image_threshold"]) == pytest.approx(threshold)
                        assert float(row["accuracy"]) == pytest.approx(((scores > threshold) == labels).mean())

    monkeypatch.setattr("inference.detect.detect", None)  # no network is run from here on
    status, out, _ = call("check_best_model")
    best = json.loads((results / "best_models.json").read_text())
    assert status == 0 and out.splitlines()[-1] == f"report: {results}/best_models.md"
    assert best["headline"]["checkpoint"] == "1" and best["overall"]["pixel_ap"]["checkpoint"] == "1"
    assert best["overall"]["pixel_ap"]["mean_ranks"] == {"1": 1.0, "2": 2.0}
    mean = np.mean([expected[category, "1"][0] for category in ("tile", "wood")])
    assert best["headline"]["image_auroc"] == pytest.approx(mean)
    for category in ("tile", "wood"):
        entry = best["categories"][category]["pixel_ap"]
        assert entry["value"] == pytest.approx(expected[category, "1"][1], abs=1e-4)
        assert entry["reached_by"] == [{"checkpoint": "1", "technique": "no_masking"}]
        log = {
            row["epoch"]: float(row["val_ap"]) for row in rows_of(two / f"checkpoints/{category}/tiny/train_log.csv")
        }
        chosen = max(log, key=log.get)
        free = best["label_free"]["categories"][category]
        assert free["checkpoint"] == chosen and free["val_ap"] == log[chosen]
        top = max(expected[category, name][0] for name in ("1", "2"))
        assert free["difference"] == pytest.approx(top - expected[category, chosen][0])
    text = (results / "best_models.md").read_text()
    assert "**Checkpoint 1**" in text and "optimistic" in text and "Without any test label" in text
    assert (results / "best_models.png").is_file()


def test_one_class_and_nothing_held_out(two, call):
    """Undefined metrics are empty in the summary, null in the report, and it says why there is no label-free choice."""
    shutil.rmtree(two / "mvtec/tile/test/good")
    assert call("evaluate_checkpoints", *PLAIN)[0] == 0
    assert call("check_best_model")[0] == 0
    best = json.loads((two / "results/tiny/best_models.json").read_text())
    assert best["headline"]["categories"] == ["wood"]
    assert best["categories"]["tile"]["image_auroc"] == {"value": None, "reached_by": []}
    assert best["label_free"]["categories"]["tile"]["image_auroc"] is None
    assert best["label_free"]["overall"]["checkpoint"] in ("1", "2")
    assert "not defined for tile" in (two / "results/tiny/best_models.md").read_text()
    assert call("train_all", "--force", "--set", "data.val_split=0")[0] == 0
    assert call("evaluate_checkpoints", *PLAIN)[0] == 0
    assert call("check_best_model")[0] == 0
    report = (two / "results/tiny/best_models.md").read_text()
    assert "No choice without test labels exists: no val_ap" in report and "data.val_split was 0" in report
    text = (two / "results/tiny/wood/checkpoint_1/no_masking/max/metrics.txt").read_text()
    assert "TRAINING images" in text


def test_the_label_free_choice_is_compared_over_equal_categories(two, call):
    """Category a: checkpoints 1 and 2 with val_ap; b: checkpoint 1 only, without. The best of both is not compared with
    a choice that was made in one."""
    rows = [("a", 1, 0.6), ("a", 2, 0.9), ("b", 1, 0.5)]
    columns = ("category", "checkpoint", "technique", "threshold", *metrics.METRIC_KEYS, "error")
    path = two / "results/tiny/summary.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        for category, name, auroc in rows:
            head = {"category": category, "checkpoint": name, "technique": "no_masking", "threshold": "optimal"}
            writer.writerow(head | {"image_auroc": auroc})
    log = two / "checkpoints/a/tiny/train_log.csv"
    log.parent.mkdir(parents=True)
    log.write_text("epoch,val_ap\n1,0.2\n2,0.3\n")
    assert call("check_best_model")[0] == 0
    best = json.loads((two / "results/tiny/best_models.json").read_text())
    assert best["headline"]["checkpoint"] == "1"
    free = best["label_free"]
    assert free["overall"]["checkpoint"] == "2" and free["without_val_ap"] == ["b"]
    assert free["overall"]["difference"] == pytest.approx(0.6 - 0.9)  # both in category a
    log.write_text("epoch,val_ap\n1,nan\n")
    checked(call("check_best_model"), ["train_log.csv", "damaged"])


SUMMARY = "results/tiny/summary.csv"


def _edit(old: str, new: str):
    def edit(root):
        text = (root / SUMMARY).read_text()
        assert old in text
        (root / SUMMARY).write_text(text.replace(old, new, 1))

    return edit


def _drop_row(root):
    lines = (root / SUMMARY).read_text().splitlines(keepends=True)
    (root / SUMMARY).write_text("".join(lines[:2] + lines[3:]))


@pytest.fixture(scope="module")
def evaluated(trained_two, tmp_path_factory):
    root = copy_of(trained_two[0], tmp_path_factory.mktemp("evaluated"))
    command = [sys.executable, str(ROOT / "evaluate_checkpoints.py"), "--config", str(root / "config.yaml"), *PLAIN]
    assert subprocess.run(command, capture_output=True, timeout=240).returncode == 0
    return root


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (lambda root: shutil.rmtree(root / "results"), [], ["no folder", "results/tiny", "evaluate_checkpoints.py"]),
        (lambda root: (root / SUMMARY).unlink(), [], ["summary.csv: is missing"]),
        (lambda root: (root / SUMMARY).write_text(""), [], ["summary.csv: line 1"]),
        (_drop_row, [], ["the row of tile, 1, no_masking, p_quantile is missing"]),
        (_edit("tile,1,no_masking,max,", "tile,1,no_masking,max,x"), [], ["line 2 is damaged"]),
        (_edit("tile,1,no_masking,max,", "tile,1,no_masking,"), [], ["line 2 is damaged"]),
        (_edit("tile,1,no_masking,max,", "tile,1,no_masking,max,nan"), [], ["line 2 is damaged"]),
        (None, ["--categories", "oak"], ["--categories oak", "tile, wood"]),
    ],
)
def test_mistakes_of_the_report(workplace, call, evaluated, spoil, arguments, words):
    shutil.copytree(evaluated / "results", workplace / "results")
    if spoil:
        spoil(workplace)
    checked(call("check_best_model", *arguments), words)


def test_ranks_are_averaged_and_ties_go_to_pixel_ap():
    def row(category, name, auroc, pixel_ap, technique="no_masking"):
        values = dict.fromkeys((*comparison.METRICS, *comparison.METRICS_AT_THRESHOLD))
        values |= {"image_auroc": auroc, "pixel_ap": pixel_ap, "accuracy": auroc}
        return {"category": category, "checkpoint": name, "technique": technique, "threshold": "max"} | values

    rows = [
        row("a", "9", 0.7, 0.1), row("a", "10", 0.9, 0.3), row("a", "20", 0.9, 0.2), row("a", "30", 0.6, 0.9),
        row("b", "9", 0.9, 0.5), row("b", "10", 0.7, 0.5), row("b", "20", 0.7, 0.4),
        row("a", "9", 1.0, 1.0, "post_masking"),
    ]  # fmt: skip
    found = comparison.overall(rows)
    # a: 10 and 20 share ranks 1 and 2, 9 is third; b: 9 is first, 10 and 20 share 2 and 3
    assert found["overall"]["image_auroc"]["mean_ranks"] == {"9": 2.0, "10": 2.0, "20": 2.0}
    assert found["overall"]["image_auroc"]["tied"] == ["9", "10", "20"]
    assert found["headline"]["checkpoint"] == "10"  # pixel AP: 10 ranks 1.25, 20 2.5, 9 2.25
    assert found["headline"]["image_auroc"] == pytest.approx(0.8)
    assert found["not_in_every_category"] == ["30"]
    without = [one | {"pixel_ap": None} if one["checkpoint"] == "20" else one for one in rows]
    assert comparison.overall(without)["headline"]["checkpoint"] == "10"  # nothing known is no better than something
    best = comparison.best_of_categories(rows)
    assert best["a"]["image_auroc"] == {"value": 1.0, "reached_by": [{"checkpoint": "9", "technique": "post_masking"}]}
    assert best["b"]["image_auroc"]["reached_by"] == [{"checkpoint": "9", "technique": "no_masking"}]
    assert best["b"]["accuracy"]["reached_by"][0]["threshold"] == "max"
    assert best["a"]["pro"] == {"value": None, "reached_by": []}


def test_the_chain_on_the_sample(tmp_path):
    """Three commands after make_sample.py, as the README gives them, at tiny sizes."""
    sets = ["model.base_width=2", "model.base_channels=2", "train.epochs=2", "data.img_size=32", "data.num_workers=0"]
    sets += ["train.save_from=1", "train.save_every=1", "metrics.visualisation=2"]
    settings = ["--config", str(ROOT / "configs/sample.yaml"), *(word for value in sets for word in ("--set", value))]
    for command in (
        ["make_sample.py"],
        ["train_all.py", *settings],
        ["evaluate_checkpoints.py", *settings, "--registrations", "False"],
        ["check_best_model.py", *settings],
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / command[0]), *command[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
    results = tmp_path / "results/sample"
    summary = rows_of(results / "summary.csv")
    assert [(row["category"], row["checkpoint"], row["threshold"]) for row in summary] == [
        (category, name, kind)
        for category in ("board", "flange")
        for name in "12"
        for kind in ("max", "p_quantile", "k_sigma", "optimal")
    ]
    for row in summary:
        folder = results / row["category"] / f"checkpoint_{row['checkpoint']}" / row["technique"]
        kept = json.loads((folder / row["threshold"] / "metrics.json").read_text())
        assert all(kept[key] == (float(row[key]) if row[key] else None) for key in metrics.METRIC_KEYS)
        scores = rows_of(folder / "scores.csv")
        labels, values = ([float(one[key]) for one in scores] for key in ("label", "score"))
        assert float(row["image_auroc"]) == pytest.approx(roc_auc_score(labels, values))
    best = json.loads((results / "best_models.json").read_text())
    means = {name: np.mean([float(r["image_auroc"]) for r in summary if r["checkpoint"] == name]) for name in "12"}
    assert best["headline"]["image_auroc"] == pytest.approx(means[best["headline"]["checkpoint"]])
    assert set(best["label_free"]["categories"]) == {"flange", "board"}
