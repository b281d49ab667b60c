"""engine/best_model.py, check_best_model.py: from the metrics of a batch to the best models."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from conftest import copy_of, image_key, model_key, noisy_maps, rows_of
from in_process import run_here
from messages import assert_line, assert_user_error
from sklearn.metrics import average_precision_score, roc_auc_score

from data.mvtec import TestSample, list_test
from data_loader import DRAEMTestDataset
from evaluation import comparison, metrics
from inference import checkpoint

PLAIN = ("--maskings", "no", "--registrations", "False")


def test_the_best_models_follow_from_the_anomaly_maps(two, call, plant, batch_sizes):
    """Checkpoint 1 is made to localize anomalies well and checkpoint 2 badly; every value follows from planted maps."""
    epochs, kept = {}, {}  # both categories have the same images and weights, and get different maps
    for epoch in (1, 2):
        epochs[model_key(checkpoint.read(two / f"checkpoints/tile/tiny/epoch_000{epoch}.pt")["model"])] = epoch
    planted = plant(noisy_maps(2, lambda model: 0.4 if epochs[model_key(model.state_dict())] == 1 else 0.02))

    def maps_of(name, epoch, images):
        [key] = [key for key, value in epochs.items() if value == epoch]
        samples = DRAEMTestDataset(images, (32, 32))
        return [(kept[name][key, image_key(sample["image"])], sample["mask"][0].numpy()) for sample in samples]

    for name in ("tile", "wood"):
        assert call("evaluate_checkpoints", *PLAIN, "--categories", name)[0] == 0
        kept[name] = dict(planted)
        planted.clear()

    status, out, _ = call("evaluate_checkpoints", *PLAIN)
    results = two / "results/tiny"
    assert status == 0 and out.splitlines()[-1] == f"results: {results}/summary.csv"
    summary = rows_of(results / "summary.csv")
    assert list(summary[0]) == ["category", "checkpoint", "technique", "threshold", *metrics.METRIC_KEYS, "error"]
    assert len(summary) == 2 * 2 * 4 and not any(row["error"] for row in summary)
    labels = np.array([0, 0, 0, 1, 1, 1])
    expected = {}
    for category in ("tile", "wood"):
        for epoch in (1, 2):
            test = maps_of(category, epoch, list_test(two / "mvtec" / category))
            held_out = checkpoint.read(two / f"checkpoints/{category}/tiny/last.pt")["images"]["held_out"]
            files = [two / "mvtec" / category / "train" / file for file in held_out]
            nominal = maps_of(category, epoch, [TestSample(file, False, file.name) for file in files])
            scores = np.array([metrics.image_score(anomaly_map) for anomaly_map, _ in test])
            maps, truth = (np.concatenate([pair[i].ravel() for pair in test]) for i in (0, 1))
            expected[category, str(epoch)] = (roc_auc_score(labels, scores), average_precision_score(truth, maps))
            for row in summary:
                if (row["category"], row["checkpoint"]) == (category, str(epoch)):
                    assert float(row["image_auroc"]) == pytest.approx(expected[category, str(epoch)][0])
                    assert float(row["pixel_ap"]) == pytest.approx(expected[category, str(epoch)][1], abs=1e-4)
                    if row["threshold"] == "max":
                        threshold = max(metrics.image_score(anomaly_map) for anomaly_map, _ in nominal)
                        assert float(row["image_threshold"]) == pytest.approx(threshold)
                        assert float(row["accuracy"]) == pytest.approx(((scores > threshold) == labels).mean())

    batch_sizes.clear()
    status, out, _ = call("check_best_model")
    best = json.loads((results / "best_models.json").read_text())
    assert status == 0 and out.splitlines()[-1] == f"report: {results}/best_models.md" and not batch_sizes
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
    assert_line(text, re.compile(r"(?i)\bcheckpoint 1\b"), f"{mean:.4f}")
    assert (results / "best_models.png").is_file()


def test_categories_without_nominal_test_images_or_without_held_out_images(two, call):
    """Undefined metrics are null in the report; without val_ap there is no choice without test labels."""
    shutil.rmtree(two / "mvtec/tile/test/good")
    assert call("evaluate_checkpoints", *PLAIN)[0] == 0
    assert call("check_best_model")[0] == 0
    best = json.loads((two / "results/tiny/best_models.json").read_text())
    assert best["headline"]["categories"] == ["wood"]
    assert best["categories"]["tile"]["image_auroc"] == {"value": None, "reached_by": []}
    assert best["label_free"]["categories"]["tile"]["image_auroc"] is None
    assert best["label_free"]["overall"]["checkpoint"] in ("1", "2")
    notes = json.loads((two / "results/tiny/tile/checkpoint_1/no_masking/optimal/metrics.json").read_text())["notes"]
    assert notes["image_auroc"]
    for category in ("tile", "wood"):
        again = ("--set", f"data.category={category}", "--set", "data.val_split=0", "--set", "train.resume=never")
        assert call("main", "--train", *again)[0] == 0
    assert call("evaluate_checkpoints", *PLAIN)[0] == 0
    assert call("check_best_model")[0] == 0
    best = json.loads((two / "results/tiny/best_models.json").read_text())
    assert not (best["label_free"] or {}).get("overall")
    assert_line((two / "results/tiny/best_models.md").read_text(), "val_ap", "data.val_split", 0)
    content = json.loads((two / "results/tiny/wood/checkpoint_1/no_masking/max/metrics.json").read_text())
    assert "nominal" in content["notes"]  # thresholds come from training images


def test_the_choice_without_labels_is_compared_over_equal_categories(two, call):
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
    assert_user_error(call("check_best_model"), log)


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
    root = copy_of(trained_two, tmp_path_factory.mktemp("evaluated"))
    run_here("evaluate_checkpoints", "--config", root / "config.yaml", *PLAIN)
    return root


@pytest.mark.parametrize(
    ("spoil", "arguments", "names"),
    [
        (lambda root: shutil.rmtree(root / "results"), [], ["results/tiny", "evaluate_checkpoints.py"]),
        (lambda root: (root / SUMMARY).unlink(), [], ["summary.csv", "evaluate_checkpoints.py"]),
        (lambda root: (root / SUMMARY).write_text(""), [], ["summary.csv", "line 1"]),
        (_drop_row, [], ["summary.csv", "tile, 1, no_masking, p_quantile"]),
        (_edit("tile,1,no_masking,max,", "tile,1,no_masking,max,x"), [], ["summary.csv", "line 2"]),
        (_edit("tile,1,no_masking,max,", "tile,1,no_masking,"), [], ["summary.csv", "line 2"]),
        (_edit("tile,1,no_masking,max,", "tile,1,no_masking,max,nan"), [], ["summary.csv", "line 2"]),
        (None, ["--categories", "oak"], ["--categories oak", "tile, wood"]),
    ],
)
def test_damaged_and_missing_results_are_user_errors(workplace, call, evaluated, spoil, arguments, names):
    shutil.copytree(evaluated / "results", workplace / "results")
    if spoil:
        spoil(workplace)
    assert_user_error(call("check_best_model", *arguments), *names)


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
    assert found["headline"]["checkpoint"] == "10"  # pixel AP: 10 has rank 1.25, 20 2.5, 9 2.25
    assert found["headline"]["image_auroc"] == pytest.approx(0.8)
    assert found["not_in_every_category"] == ["30"]
    without = [one | {"pixel_ap": None} if one["checkpoint"] == "20" else one for one in rows]
    assert comparison.overall(without)["headline"]["checkpoint"] == "10"  # nothing known is no better than something
    best = comparison.best_of_categories(rows)
    assert best["a"]["image_auroc"] == {"value": 1.0, "reached_by": [{"checkpoint": "9", "technique": "post_masking"}]}
    assert best["b"]["image_auroc"]["reached_by"] == [{"checkpoint": "9", "technique": "no_masking"}]
    assert best["b"]["accuracy"]["reached_by"][0]["threshold"] == "max"
    assert best["a"]["pro"] == {"value": None, "reached_by": []}
