"""train_all.py, evaluate_checkpoints.py and check_best_model.py: the chain, its numbers, its mistakes."""

import csv
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SETTINGS, checked, make_dataset, planted_detections, write
from sklearn.metrics import average_precision_score, roc_auc_score

from engine import checkpoint, inference, result
from engine.techniques import Variant
from evaluation import comparison, metrics

REGIONS = ("--set", "masking.regions.tile=[[0, 10, 0, 48]]")
PLAIN = ("--maskings", "no", "--registrations", "False")


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def trained_two(tmp_path_factory):
    """Categories tile and wood, trained by train_all.py for two epochs."""
    root = tmp_path_factory.mktemp("two")
    make_dataset(root)
    make_dataset(root, "wood")
    (root / "config.yaml").write_text(SETTINGS.format(root=root.as_posix()))
    command = [sys.executable, str(ROOT / "train_all.py"), "--config", str(root / "config.yaml")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return root, done.stdout


@pytest.fixture
def two(workplace, trained_two):
    """A workplace of one's own with both categories trained."""
    make_dataset(workplace, "wood")
    shutil.copytree(trained_two[0] / "checkpoints", workplace / "checkpoints")
    return workplace


def test_train_all_trains_each_and_says_how_long(trained_two):
    root, out = trained_two
    assert (
        "trained: tile, wood" in out
        and out.splitlines()[-1] == f"training times: {root}/checkpoints/training_times.txt"
    )
    lines = (root / "checkpoints/training_times.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["category", "tile", "wood"]
    for line in lines[1:]:
        _, seconds, clock, epochs, device = line.split()
        assert int(epochs) == 2 and device == "cpu" and clock == f"0:00:{int(seconds):02}"
    for name in ("tile", "wood"):
        text = (root / f"checkpoints/{name}/tiny/train_all.yaml").read_text()
        assert f"category: {name}" in text and "# a comment to keep" in text and "# which one" in text
        assert (root / f"checkpoints/{name}/tiny/config.yaml").read_text() == text
    assert "category: tile" in (root / "config.yaml").read_text()


def test_train_all_skips_what_is_complete_and_goes_on_after_failures(two, call):
    before = {path: path.read_bytes() for path in two.rglob("*.pt")}
    (two / "checkpoints/wall").write_text("a file where a run's folder should be")
    make_dataset(two, "wall")
    write(two / "mvtec/broken/train/good/0.png", np.zeros((40, 48), np.uint8))
    (two / "mvtec/broken/train/good/1.png").write_bytes(b"x")
    (two / "mvtec/broken/train/good/2.png").write_bytes(b"x")
    status, out, error = call("train_all", "--update_config", "--set", "train.epochs=2")
    assert status == 1 and "complete already: tile, wood" in out and "Traceback" not in error
    broken, wall = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert broken.startswith("failed: broken: ") and "cannot be decoded" in broken
    assert wall.startswith("failed: wall: ") and "checkpoints/wall" in wall
    assert all(path.read_bytes() == content for path, content in before.items())
    text = (two / "config.yaml").read_text()
    assert "category: broken " in text and "# which one" in text and "# a comment to keep" in text
    status, out, _ = call("train_all", "--categories", "wood", "--set", "train.learning_rate=0.5")
    assert status == 1 and "train.learning_rate = 0.001, now 0.5" in out and "--force" in out
    assert call("train_all", "--categories", "wood", "--force")[0] == 0
    assert (two / "checkpoints/wood/tiny/epoch_0002.pt").stat().st_mtime > (
        two / "checkpoints/tile/tiny/epoch_0002.pt"
    ).stat().st_mtime
    assert len((two / "checkpoints/training_times.txt").read_text().splitlines()) == 4


def test_val_ap_stands_at_kept_epochs_only(two, call):
    sets = ("--set", "train.save_from=3", "--set", "train.epochs=4", "--set", "train.save_every=5")
    assert call("main", "--train", *sets)[0] == 0
    log = rows_of(two / "checkpoints/tile/tiny/train_log.csv")
    assert [bool(row["val_ap"]) for row in log] == [True, True, False, True]  # two of the run before, the last always
    assert all(0 < float(row["val_ap"]) <= 1 for row in log if row["val_ap"])
    assert call("main", "--train", "--set", "data.val_split=0", "--set", "train.resume=never")[0] == 0
    assert not any(row["val_ap"] for row in rows_of(two / "checkpoints/tile/tiny/train_log.csv"))


def test_val_ap_is_that_of_the_maps(two, monkeypatch):
    """Half of the samples stay clean, none is of the training stream, and the same come each time."""
    from config import load_config
    from engine.train import _datasets

    config = load_config(two / "config.yaml")
    _, samples = _datasets(config)
    assert len(samples) == 64 and {samples.name(i) for i in range(64)} == set(map(str, samples.nominal.files))
    again = _datasets(config)[1]
    clean = 0
    for idx in range(64):
        np.testing.assert_array_equal(samples[idx]["image"], again[idx]["image"])
        clean += not samples[idx]["mask"].any()
    assert 18 <= clean <= 50
    maps = [np.random.default_rng(idx).random((32, 32), np.float32) for idx in range(64)]
    found = (inference.Detection(i, None, None, maps[i], samples[i]["mask"][0].numpy() > 0) for i in range(64))
    monkeypatch.setattr(inference, "detect", lambda *_: found)
    truth = np.concatenate([samples[idx]["mask"].numpy().ravel() for idx in range(64)])
    expected = average_precision_score(truth, np.concatenate([one.ravel() for one in maps]))
    assert inference.synthetic_pixel_ap(None, samples, config) == pytest.approx(expected, abs=1e-5)


def test_thresholds_and_post_masking_add_no_forward_pass(two, call, monkeypatch):
    seen = []
    forward = inference.DRAEM.forward
    monkeypatch.setattr(inference.DRAEM, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    one = ("--categories", "tile", "--checkpoints", "2", *REGIONS, "--registrations", "False", "--force")

    def passes(*arguments):
        seen.clear()
        assert call("evaluate_checkpoints", *one, *arguments)[0] == 0
        return sum(seen)

    n_test, n_nominal = 6, 2
    assert passes("--maskings", "no", "--thresholds", "optimal") == n_test
    assert passes("--maskings", "no", "post") == n_test + n_nominal  # all four thresholds, both techniques
    assert passes("--maskings", "no", "post") == n_test  # nominal images are not run again
    assert passes() == n_test + n_test + n_nominal  # pre-masking is an input of its own


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

    def detect(model, dataset, config, title):
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
    assert list(summary[0]) == ["category", "checkpoint", "technique", "threshold", *result.METRIC_KEYS, "error"]
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

    monkeypatch.setattr("engine.inference.detect", None)  # no network is run from here on
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


def test_complete_results_are_skipped_and_changed_ones_are_not(two, call):
    arguments = ("--categories", "tile", "wood", *PLAIN)
    assert call("evaluate_checkpoints", *arguments)[0] == 0
    folder = two / "results/tiny"
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoint_*/*/*/metrics.json")}
    assert len(files) == 2 * 2 * 4
    status, out, _ = call("evaluate_checkpoints", *arguments)
    assert status == 0 and "16 complete already, 0 to do" in out
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    shutil.rmtree(folder / "wood/checkpoint_1")
    tile_2 = two / "checkpoints/tile/tiny/epoch_0002.pt"
    tile_2.touch()  # the same weights still
    content = checkpoint.read(two / "checkpoints/tile/tiny/epoch_0001.pt")
    checkpoint.save(tile_2, content | {"epoch": 2})
    status, out, _ = call("evaluate_checkpoints", *arguments)
    assert status == 0 and "8 complete already, 8 to do" in out
    changed = {path for path, time in files.items() if path.stat().st_mtime_ns != time}
    assert {path.parts[-5:-2] for path in changed} == {
        ("tile", "checkpoint_2", "no_masking"),
        ("wood", "checkpoint_1", "no_masking"),
    }
    assert "0 complete already, 16 to do" in call("evaluate_checkpoints", *arguments, "--set", "metrics.p=90")[1]
    lines = (folder / "inference_times.txt").read_text().splitlines()
    assert len(lines) == 5 and lines[0].split() == list(
        ("category", "checkpoint", "technique", "images", "seconds", "images_per_second")
    )
    _, _, _, images, seconds, speed = lines[1].split()
    assert images == "6" and float(speed) == pytest.approx(6 / float(seconds), rel=0.2)


def test_what_is_out_of_date_is_done_again_or_left_out(two, call):
    arguments, summary = PLAIN, two / "results/tiny/summary.csv"
    assert call("evaluate_checkpoints", *arguments)[0] == 0

    def done_again(*more):
        status, out, _ = call("evaluate_checkpoints", *arguments, *more)
        assert status == 0
        return int(re.search(r"(\d+) to do", out)[1])

    assert done_again() == 0 and done_again("--checkpoints", "last", "2") == 0  # last.pt holds the same weights
    assert done_again("--set", "metrics.visualisation=none") == 16
    assert done_again() == 16
    (two / "results/tiny/tile/checkpoint_1/no_masking/max/metrics.json").write_text("{")
    assert done_again() == 4
    mask = two / "mvtec/tile/ground_truth/spot/001_mask.png"
    write(mask, np.zeros((40, 48), np.uint8))
    assert done_again() == 8
    summary.write_bytes(b"\xff\x00nonsense")
    shutil.rmtree(two / "results/tiny/curves")
    (two / "results/tiny/inference_times.txt").unlink()
    assert done_again() == 0 and len(rows_of(summary)) == 16
    assert len(list((two / "results/tiny/curves").iterdir())) == 4
    assert len((two / "results/tiny/inference_times.txt").read_text().splitlines()) == 5
    (two / "checkpoints/wood/tiny/epoch_0002.pt").unlink()
    assert done_again() == 0
    assert {(row["category"], row["checkpoint"]) for row in rows_of(summary)} == {
        ("tile", "1"),
        ("tile", "2"),
        ("wood", "1"),
    }
    assert done_again("--categories", "wood", "--set", "metrics.p=50") == 4
    assert {row["category"] for row in rows_of(summary)} == {"wood"}  # the others are of another p
    shutil.rmtree(two / "mvtec/wood/test")
    status, out, _ = call("evaluate_checkpoints", *arguments)
    assert status == 1 and "wood: " in out
    assert {row["category"] for row in rows_of(summary) if not row["error"]} == {"tile"}


def test_only_the_asked_for_thresholds_are_written(two, call):
    assert call("evaluate_checkpoints", *PLAIN, "--thresholds", "max")[0] == 0
    assert {row["threshold"] for row in rows_of(two / "results/tiny/summary.csv")} == {"max"}


def test_registered_techniques_run_and_are_told(two, call, monkeypatch):
    seen = []
    forward = inference.DRAEM.forward
    monkeypatch.setattr(inference.DRAEM, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    status, out, _ = call("evaluate_checkpoints", "--categories", "tile", "--checkpoints", "1", *REGIONS)
    assert status == 0 and "24 combinations" in out
    assert sum(seen) == 4 * (6 + 2)  # four inputs for six techniques: test and held-out images once each
    folder = two / "results/tiny/tile/checkpoint_1/no_masking_registered"
    notes = json.loads((folder / "max/metrics.json").read_text())["notes"]
    assert len(notes["unregistered"]) == 6 and notes["registration"].startswith(
        "6 of 6 pictures could not be registered"
    )
    kept = json.loads((two / "checkpoints/tile/tiny/thresholds/checkpoint_1/no_masking_registered.json").read_text())
    assert len(kept["unregistered"]) == 2 and all(name.startswith("train/good/") for name in kept["unregistered"])


def test_masking_by_settings_needs_regions_everywhere(two, call):
    outcome = call("evaluate_checkpoints", *REGIONS, "--set", "metrics.masking=true")
    checked(outcome, ["masking.regions.wood", "no region"])


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


def test_a_process_that_is_killed_costs_one_category(two, call, monkeypatch):
    killer = two / "killer.py"
    killer.write_text(
        "import os, runpy, sys\n"
        "if 'wood' in sys.argv[-1]: os.kill(os.getpid(), 9)\n"
        f"sys.path.insert(0, {str(ROOT)!r})\nsys.argv[0] = 'main.py'\n"
        f"runpy.run_path({str(ROOT / 'main.py')!r}, run_name='__main__')\n"
    )
    monkeypatch.setattr("train_all.MAIN", killer)
    status, out, _ = call("train_all", "--set", "train.epochs=3")
    assert status == 1 and "trained: tile" in out and "failed: wood: its process was ended by signal 9" in out


def test_the_label_free_choice_is_compared_over_equal_categories(two, call):
    """Category a: checkpoints 1 and 2 with val_ap; b: checkpoint 1 only, without. The best of both is not compared with
    a choice that was made in one."""
    rows = [("a", 1, 0.6), ("a", 2, 0.9), ("b", 1, 0.5)]
    columns = ("category", "checkpoint", "technique", "threshold", *result.METRIC_KEYS, "error")
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


def test_a_failing_item_costs_no_other(two, call):
    make_dataset(two, "untrained")
    content = (two / "checkpoints/tile/tiny/epoch_0001.pt").read_bytes()
    (two / "checkpoints/tile/tiny/epoch_0001.pt").write_bytes(content[:1000])
    status, out, error = call("evaluate_checkpoints", *PLAIN)
    assert status == 1 and "Traceback" not in error
    failures = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 2 and "untrained: never trained" in failures[0] and "tile, 1, no_masking" in failures[1]
    summary = rows_of(two / "results/tiny/summary.csv")
    assert sum(not row["error"] for row in summary) == 12
    assert {(row["category"], row["checkpoint"]) for row in summary if row["error"]} == {
        ("untrained", ""),
        ("tile", "1"),
    }
    status, out, _ = call("check_best_model")
    report = (two / "results/tiny/best_models.md").read_text()
    assert (
        status == 0 and "untrained: never trained" in report and "not every category has them: checkpoints 1" in report
    )
    # a later call for something else keeps the failures; one that mends them drops them
    assert call("evaluate_checkpoints", *PLAIN, "--categories", "wood")[0] == 0
    assert sum(bool(row["error"]) for row in rows_of(two / "results/tiny/summary.csv")) == 2
    (two / "checkpoints/tile/tiny/epoch_0001.pt").write_bytes(content)
    shutil.rmtree(two / "mvtec/untrained")
    call("evaluate_checkpoints", *PLAIN)
    errors = [row["category"] for row in rows_of(two / "results/tiny/summary.csv") if row["error"]]
    assert errors == ["untrained"]  # gone from the dataset, not from the record


def test_batch_pictures_compare_what_there_is_more_than_one_of(two, call):
    assert call("evaluate_checkpoints", *PLAIN)[0] == 0
    curves = two / "results/tiny/curves"
    assert {path.name for path in curves.iterdir()} == {
        *(f"checkpoint_{epoch}_no_masking.png" for epoch in (1, 2)),
        *(f"category_{name}_no_masking.png" for name in ("tile", "wood")),
    }


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
def evaluated(trained_two):
    root, _ = trained_two
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


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("evaluate_checkpoints", ["--checkpoints", "7"], ["epoch_0007.pt", "saved epochs: 1, 2"]),
        ("evaluate_checkpoints", ["--checkpoints", "first"], ["--checkpoints first", "last or an epoch"]),
        ("evaluate_checkpoints", ["--categories", "tile", "oak"], ["no category 'oak'", "there are: tile, wood"]),
        ("train_all", ["--categories", "oak"], ["no category 'oak'", "there are: tile, wood"]),
        ("train_all", ["--categories", "tile/"], ["'tile/'", "plain folder name"]),
        ("evaluate_checkpoints", ["--maskings", "pre"], ["masking.regions.tile", "no region"]),
        ("evaluate_checkpoints", ["--maskings", "all"], ["--maskings"]),
        ("evaluate_checkpoints", ["--set", "masking.regions.wood={root}/small.png"], ["masking.regions.wood", "9 x 9"]),
        (
            "evaluate_checkpoints",
            ["--set", "masking.regions.wood=[[0, 99, 0, 3]]"],
            ["masking.regions.wood", "48 x 40"],
        ),
        ("evaluate_checkpoints", ["--set", "data.registration_reference=none.png"], ["none.png", "cannot be read"]),
        ("evaluate_checkpoints", ["--set", "data.data_path={root}/textures"], ["no dataset in", "make_sample.py"]),
        ("train_all", ["--set", "data.data_path={root}/textures"], ["no dataset in", "make_sample.py"]),
    ],
)
def test_mistakes_before_anything_runs(two, call, program, arguments, words):
    write(two / "small.png", np.zeros((9, 9), np.uint8))
    arguments = [argument.replace("{root}", two.as_posix()) for argument in arguments]
    checked(call(program, *arguments), words)
    assert not (two / "results").exists()


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
    best = comparison.best_of_categories(rows)
    assert best["a"]["image_auroc"] == {"value": 1.0, "reached_by": [{"checkpoint": "9", "technique": "post_masking"}]}
    assert best["b"]["image_auroc"]["reached_by"] == [{"checkpoint": "9", "technique": "no_masking"}]
    assert best["b"]["accuracy"]["reached_by"][0]["threshold"] == "max"
    assert best["a"]["pro"] == {"value": None, "reached_by": []}


def test_the_chain_on_the_sample(tmp_path):
    """Three commands after make_sample.py, as the README gives them, at tiny sizes."""
    sets = ["model.base_width=2", "model.base_channels=2", "train.epochs=3", "data.img_size=32", "data.num_workers=0"]
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
        for category in ("brick", "gravel")
        for name in "123"
        for kind in ("max", "p_quantile", "k_sigma", "optimal")
    ]
    for row in summary:
        folder = results / row["category"] / f"checkpoint_{row['checkpoint']}" / row["technique"]
        kept = json.loads((folder / row["threshold"] / "metrics.json").read_text())
        assert all(kept[key] == (float(row[key]) if row[key] else None) for key in result.METRIC_KEYS)
        scores = rows_of(folder / "scores.csv")
        labels, values = ([float(one[key]) for one in scores] for key in ("label", "score"))
        assert float(row["image_auroc"]) == pytest.approx(roc_auc_score(labels, values))
    best = json.loads((results / "best_models.json").read_text())
    means = {name: np.mean([float(r["image_auroc"]) for r in summary if r["checkpoint"] == name]) for name in "123"}
    assert best["headline"]["image_auroc"] == pytest.approx(means[best["headline"]["checkpoint"]])
    assert set(best["label_free"]["categories"]) == {"brick", "gravel"}


@pytest.mark.parametrize("program", ["train_all", "evaluate_checkpoints", "check_best_model"])
def test_help(call, program):
    status, out, _ = call(program, "--help")
    assert status == 0 and "--config" in out and "--set" in out and "example:" in out
