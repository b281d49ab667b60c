"""engine/evaluate_all.py and reporting/summary.py: passes, completeness, failures and user errors of a batch."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
from conftest import make_dataset, rows_of, write
from messages import assert_line, assert_names, assert_user_error

from inference import checkpoint
from training.state import write_checkpoint

REGIONS = ("--set", "masking.regions.tile=[[0, 10, 0, 48]]")

PLAIN = ("--maskings", "no", "--registrations", "False")
TWO_KINDS = (*PLAIN, "--thresholds", "max", "optimal")  # one of nominal images, one of test images


def test_thresholds_and_post_masking_add_no_forward_pass(two, call, batch_sizes):
    one = ("--categories", "tile", "--checkpoints", "2", *REGIONS, "--registrations", "False", "--force")

    def passes(*arguments):
        batch_sizes.clear()
        assert call("evaluate_checkpoints", *one, *arguments)[0] == 0
        return sum(batch_sizes)

    n_test, n_nominal = 6, 2
    assert passes("--maskings", "no", "--thresholds", "optimal") == n_test
    assert passes("--maskings", "no", "post") == n_test + n_nominal  # all four thresholds, both techniques
    assert passes("--maskings", "no", "post") == n_test  # nominal images are not run again
    assert passes() == n_test + n_test + n_nominal  # pre-masking is an input of its own


def test_only_missing_and_changed_results_are_evaluated(two, call):
    arguments = ("--categories", "tile", "wood", *TWO_KINDS)
    assert call("evaluate_checkpoints", *arguments)[0] == 0
    folder = two / "results/tiny"
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*/checkpoint_*/*/*/metrics.json")}
    assert len(files) == 2 * 2 * 2
    status, out, _ = call("evaluate_checkpoints", *arguments)
    assert status == 0
    assert_line(out, 8, 0)  # complete, to do
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    shutil.rmtree(folder / "wood/checkpoint_1")
    tile_2 = two / "checkpoints/tile/tiny/epoch_0002.pt"
    tile_2.touch()  # the same weights still
    content = checkpoint.read(two / "checkpoints/tile/tiny/epoch_0001.pt")
    write_checkpoint(tile_2, content | {"epoch": 2})
    status, out, _ = call("evaluate_checkpoints", *arguments)
    assert status == 0
    assert_line(out, 8, 4, 2)  # combinations, to do, passes
    changed = {path for path, time in files.items() if path.stat().st_mtime_ns != time}
    assert {path.parts[-5:-2] for path in changed} == {
        ("tile", "checkpoint_2", "no_masking"),
        ("wood", "checkpoint_1", "no_masking"),
    }
    assert call("evaluate_checkpoints", *arguments, "--set", "metrics.p=90")[0] == 0
    assert all(path.stat().st_mtime_ns != time for path, time in files.items())
    lines = (folder / "inference_times.txt").read_text().splitlines()
    assert len(lines) == 5 and lines[0].split() == list(
        ("category", "checkpoint", "technique", "images", "seconds", "images_per_second")
    )
    _, _, _, images, seconds, speed = lines[1].split()
    assert images == "6" and float(speed) == pytest.approx(6 / float(seconds), rel=0.2)


def test_outdated_results_are_evaluated_again_or_left_out(two, call):
    arguments, summary = TWO_KINDS, two / "results/tiny/summary.csv"
    assert call("evaluate_checkpoints", *arguments)[0] == 0

    def written():
        return {
            path: path.stat().st_mtime_ns for path in (two / "results/tiny").glob("*/checkpoint_*/*/*/metrics.json")
        }

    def done_again(*more):
        """The number of combinations whose metrics are written."""
        before = written()
        assert call("evaluate_checkpoints", *arguments, *more)[0] == 0
        return sum(before.get(path) != time for path, time in written().items())

    assert done_again() == 0 and done_again("--checkpoints", "last", "2") == 0  # last.pt holds the same weights
    assert done_again("--set", "metrics.visualisation=none") == 8
    assert done_again() == 8
    (two / "results/tiny/tile/checkpoint_1/no_masking/max/metrics.json").write_text("{")
    assert done_again() == 2
    mask = two / "mvtec/tile/ground_truth/spot/001_mask.png"
    write(mask, np.zeros((40, 48), np.uint8))
    assert done_again() == 4
    summary.write_bytes(b"\xff\x00nonsense")
    (two / "results/tiny/inference_times.txt").unlink()
    assert done_again() == 0 and len(rows_of(summary)) == 8
    assert len((two / "results/tiny/inference_times.txt").read_text().splitlines()) == 5
    (two / "checkpoints/wood/tiny/epoch_0002.pt").unlink()
    assert done_again() == 0
    assert {(row["category"], row["checkpoint"]) for row in rows_of(summary)} == {
        ("tile", "1"),
        ("tile", "2"),
        ("wood", "1"),
    }
    assert done_again("--categories", "wood", "--set", "metrics.p=50") == 2
    assert {row["category"] for row in rows_of(summary)} == {"wood"}  # the others are of another p
    shutil.rmtree(two / "mvtec/wood/test")
    status, out, _ = call("evaluate_checkpoints", *arguments)
    assert status == 1
    assert_line(out, "failed: wood", "wood/test")
    assert {row["category"] for row in rows_of(summary) if not row["error"]} == {"tile"}


def test_only_the_thresholds_asked_for_are_written(two, call):
    assert call("evaluate_checkpoints", *PLAIN, "--thresholds", "max")[0] == 0
    assert {row["threshold"] for row in rows_of(two / "results/tiny/summary.csv")} == {"max"}


def test_registered_techniques_are_evaluated_and_unregistered_images_listed(two, call, batch_sizes):
    status, out, _ = call("evaluate_checkpoints", "--categories", "tile", "--checkpoints", "1", *REGIONS)
    assert status == 0
    assert_line(out, 24)
    assert len(rows_of(two / "results/tiny/summary.csv")) == 24
    assert sum(batch_sizes) == 4 * (6 + 2)  # four inputs for six techniques: test and held-out images once each
    folder = two / "results/tiny/tile/checkpoint_1/no_masking_registered"
    notes = json.loads((folder / "max/metrics.json").read_text())["notes"]
    assert len(notes["unregistered"]) == 6
    assert_names(notes["registration"], "6 of 6")
    kept = json.loads((two / "checkpoints/tile/tiny/thresholds/checkpoint_1/no_masking_registered.json").read_text())
    assert len(kept["unregistered"]) == 2 and all(name.startswith("train/good/") for name in kept["unregistered"])


def test_masking_by_settings_needs_regions_everywhere(two, call):
    outcome = call("evaluate_checkpoints", *REGIONS, "--set", "metrics.masking=true")
    assert_user_error(outcome, "masking.regions.wood", "metrics.masking=false")


def test_a_failed_item_does_not_end_the_others(two, call):
    make_dataset(two, "untrained")
    content = (two / "checkpoints/tile/tiny/epoch_0001.pt").read_bytes()
    (two / "checkpoints/tile/tiny/epoch_0001.pt").write_bytes(content[:1000])
    status, out, error = call("evaluate_checkpoints", *PLAIN)
    assert status == 1 and "Traceback" not in error
    failures = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 2
    assert_names(failures[0], "failed: tile, 1, no_masking", "epoch_0001.pt")
    assert_names(failures[1], "failed: untrained", two / "checkpoints/untrained/tiny")
    summary = rows_of(two / "results/tiny/summary.csv")
    assert sum(not row["error"] for row in summary) == 12
    assert {(row["category"], row["checkpoint"]) for row in summary if row["error"]} == {
        ("untrained", ""),
        ("tile", "1"),
    }
    status, out, _ = call("check_best_model")
    report = (two / "results/tiny/best_models.md").read_text()
    assert status == 0
    assert_line(report, "untrained", two / "checkpoints/untrained/tiny")
    assert_line(report, re.compile(r"checkpoints\W+1\b"))  # which not every category has
    # A later call for something else keeps the failures; one that succeeds removes them.
    assert call("evaluate_checkpoints", *PLAIN, "--categories", "wood")[0] == 0
    assert sum(bool(row["error"]) for row in rows_of(two / "results/tiny/summary.csv")) == 2
    (two / "checkpoints/tile/tiny/epoch_0001.pt").write_bytes(content)
    shutil.rmtree(two / "mvtec/untrained")
    call("evaluate_checkpoints", *PLAIN)
    errors = [row["category"] for row in rows_of(two / "results/tiny/summary.csv") if row["error"]]
    assert errors == ["untrained"]  # gone from the dataset, not from the record


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("masking.regions.wood={root}/small.png", ["9 x 9"]),
        ("masking.regions.wood=[[0, 99, 0, 3]]", ["[0, 99, 0, 3]", "48 x 40"]),
        ("masking.regions.wood=nowhere.png", ["nowhere.png"]),
        ("metrics.p=98", ["train/good/000.png"]),
    ],
)
def test_a_region_or_reference_that_cannot_be_used_fails_alone(two, call, setting, names):
    """In its category, and there only the techniques that need it."""
    write(two / "small.png", np.zeros((9, 9), np.uint8))
    (two / "mvtec/wood/train/good/000.png").write_bytes(b"no image")
    arguments = ("--checkpoints", "2", "--set", "metrics.threshold=false")
    status, out, error = call("evaluate_checkpoints", *arguments, "--set", setting.replace("{root}", two.as_posix()))
    assert status == 1 and "Traceback" not in error
    rows = rows_of(two / "results/tiny/summary.csv")
    failed = [row for row in rows if row["error"]]
    assert failed and {row["category"] for row in failed} == {"wood"}
    assert not [row for row in failed if row["technique"] == "no_masking"]
    assert_names(next(line for line in out.splitlines() if line.startswith("failed: wood")), *names)
    assert {row["category"] for row in rows if row["technique"] == "no_masking"} == {"tile", "wood"}


def test_batch_curves_compare_checkpoints_and_categories(two, call):
    assert call("evaluate_checkpoints", *PLAIN)[0] == 0
    curves = two / "results/tiny/curves"
    assert not curves.exists()  # no kind of curve is wanted
    for _ in range(2):
        assert call("evaluate_checkpoints", *PLAIN, "--set", "metrics.iou=true")[0] == 0
        assert {path.name for path in curves.iterdir()} == {
            *(f"checkpoint_{epoch}_no_masking.png" for epoch in (1, 2)),
            *(f"category_{name}_no_masking.png" for name in ("tile", "wood")),
        }
        assert cv2.imread(str(curves / "category_tile_no_masking.png")).shape == (451, 715, 3)  # one of six axes
        shutil.rmtree(curves)


@pytest.mark.parametrize(
    ("program", "arguments", "names"),
    [
        ("evaluate_checkpoints", ["--checkpoints", "7"], ["epoch_0007.pt", "1, 2"]),
        ("evaluate_checkpoints", ["--checkpoints", "first"], ["--checkpoints first"]),
        ("evaluate_checkpoints", ["--categories", "tile", "oak"], ["oak", "tile, wood"]),
        ("train_all", ["--categories", "oak"], ["oak", "tile, wood"]),
        ("train_all", ["--categories", "tile/"], ["--categories tile/", "tile, wood"]),
        ("evaluate_checkpoints", ["--maskings", "pre"], ["masking.regions.tile"]),
        ("evaluate_checkpoints", ["--maskings", "all"], ["--maskings", "all", "pre"]),
        (
            "evaluate_checkpoints",
            ["--set", "data.registration_reference=none.png"],
            ["data.registration_reference", "none.png"],
        ),
        ("evaluate_checkpoints", ["--set", "data.data_path={root}/textures"], ["data.data_path", "make_sample.py"]),
        ("train_all", ["--set", "data.data_path={root}/textures"], ["data.data_path", "make_sample.py"]),
    ],
)
def test_user_errors_of_a_batch_are_found_before_anything_runs(two, call, program, arguments, names):
    arguments = [argument.replace("{root}", two.as_posix()) for argument in arguments]
    assert_user_error(call(program, *arguments), *names)
    assert not (two / "results").exists()
