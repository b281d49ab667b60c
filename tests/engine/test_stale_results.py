"""Stale results: weights, images and settings that change between calls of the programs; also runtime/provenance.py."""

import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, make_dataset, rows_of, write
from messages import assert_line, assert_user_error, lines_with

from config_file import load_config
from inference import checkpoint
from training.data import datasets, find_files, split

PLAIN = ("--maskings", "no", "--registrations", "False")
RESULTS = "results/tiny/tile/checkpoint_2/no_masking"
QUICK = ("--set", "train.visualize=false")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def other_images(folder, value=60):
    """Images of the same names, sizes and times with another content."""
    for path in sorted(folder.glob("*.png")):
        stat, length = path.stat(), path.stat().st_size
        for seed in range(1000):
            rng = np.random.default_rng([value, seed, int(path.stem)])
            data = cv2.imencode(".png", rng.integers(value, value + 20, (40, 48, 3), dtype=np.uint8))[1].tobytes()
            if len(data) <= length:
                path.write_bytes(data + b"\0" * (length - len(data)))  # which readers ignore
                break
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == length and path.stat().st_mtime_ns == stat.st_mtime_ns


def test_a_failed_detection_keeps_the_old_results(workplace, cli):
    assert cli("--train", "--threshold", "--detection")[0] == 0
    before = contents(workplace / RESULTS)
    image = workplace / "mvtec/tile/test/spot/002.png"
    kept = image.read_bytes()
    image.write_bytes(kept[:200])
    assert_user_error(cli("--detection"), "test/spot/002.png")
    assert contents(workplace / RESULTS) == before
    image.write_bytes(kept)


def test_an_interrupted_detection_keeps_the_old_results(workplace, cli, monkeypatch):
    assert cli("--train", "--threshold", "--detection")[0] == 0
    before = contents(workplace / RESULTS)

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupt)  # when the metrics are written already
    assert cli("--detection", "--set", "metrics.k=2", "--threshold")[0] == 130
    assert contents(workplace / RESULTS) == before
    assert [path.name for path in (workplace / RESULTS).parent.iterdir()] == ["no_masking"]


def test_the_summary_has_results_of_the_same_images_only(two, call):
    assert call("evaluate_checkpoints", *PLAIN, "--categories", "tile")[0] == 0
    for i in range(5):
        write(two / f"mvtec/tile/test/good/9{i}.png", np.full((40, 48, 3), 100 + i, np.uint8))
    status, out, _ = call("evaluate_checkpoints", *PLAIN, "--categories", "tile", "--checkpoints", "2")
    assert status == 0 and {row["checkpoint"] for row in rows_of(two / "results/tiny/summary.csv")} == {"2"}
    assert_line(out, "tile, 1, no_masking", 6, 11)  # images then and now
    assert_line(out, "python evaluate_checkpoints.py --categories tile")
    status, out, _ = call("check_best_model")
    assert status == 0
    assert_line(out, "tile, 1, no_masking", 6, 11)
    best = json.loads((two / "results/tiny/best_models.json").read_text())
    assert best["headline"]["checkpoint"] == "2"
    assert call("evaluate_checkpoints", *PLAIN, "--categories", "tile")[0] == 0
    assert {row["checkpoint"] for row in rows_of(two / "results/tiny/summary.csv")} == {"1", "2"}


def test_the_summary_has_results_of_one_precision_only(two, call):
    assert call("evaluate_checkpoints", *PLAIN)[0] == 0
    arguments = ("--categories", "tile", "--checkpoints", "2", "--set", "train.precision=bf16")
    status, out, _ = call("evaluate_checkpoints", *PLAIN, *arguments)
    rows = rows_of(two / "results/tiny/summary.csv")
    assert status == 0 and {(row["category"], row["checkpoint"]) for row in rows} == {("tile", "2")}
    assert_line(out, re.compile(r"precision = float32.*\bbfloat16\b"))


def test_results_of_a_deleted_checkpoint_are_left_out(two, call):
    assert call("evaluate_checkpoints", *PLAIN)[0] == 0
    (two / "checkpoints/wood/tiny/epoch_0001.pt").unlink()
    assert call("check_best_model")[0] == 0  # its rows are still there
    status, out, _ = call("evaluate_checkpoints", *PLAIN)
    assert status == 0
    assert_line(out, "wood, 1, no_masking", "epoch_0001.pt")
    rows = rows_of(two / "results/tiny/summary.csv")
    assert ("wood", "1") not in {(row["category"], row["checkpoint"]) for row in rows} and len(rows) == 3 * 4
    status, out, _ = call("check_best_model")
    assert status == 0
    assert_line(out, "wood, 1, no_masking", "epoch_0001.pt")


def test_a_missing_row_of_the_summary_is_a_user_error(two, call):
    assert call("evaluate_checkpoints", *PLAIN)[0] == 0
    path = two / "results/tiny/summary.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))
    assert_user_error(call("check_best_model"), "summary.csv", "tile, 1, no_masking, k_sigma")


def test_results_of_weights_from_another_run_have_a_folder_of_their_own(two, call):
    assert call("main", "--threshold", "--detection")[0] == 0
    kept = [two / "results", two / "checkpoints/tile/tiny"]
    before = [contents(folder) for folder in kept]
    assert call("main", "--train", "--set", "data.category=wood", "--set", "train.seed=5", "--set",
                "train.resume=never", *QUICK)[0] == 0  # fmt: skip
    other_images(two / "mvtec/wood/train/good")  # its file names are those of tile, its images are not
    assert call("main", "--train", "--set", "data.category=wood", "--set", "train.resume=never", *QUICK)[0] == 0
    foreign = ("--set", f"data.load_epoch={two}/checkpoints/wood/tiny/epoch_0002.pt")
    status, out, _ = call("main", "--threshold", "--detection", *foreign)
    assert status == 0
    for folder, files in zip(kept, before, strict=True):
        now = contents(folder)
        assert {name: now[name] for name in files} == files
    name = out.splitlines()[-1].removeprefix("results: ").split("/")[-2]
    assert re.fullmatch(r"checkpoint_2_[0-9a-f]{8}", name)
    # None of tile's images was trained on: all six nominal ones set the thresholds.
    thresholds = json.loads((two / f"checkpoints/tile/tiny/thresholds/{name}/no_masking.json").read_text())
    assert thresholds["pictures"] == 6 and thresholds["held_out"] is True
    shutil.copy(two / "checkpoints/tile/tiny/epoch_0002.pt", two / "copy.pt")
    out = call("main", "--detection", "--set", f"data.load_epoch={two}/copy.pt")[1]
    assert out.splitlines()[-1] == f"results: {two / RESULTS}"  # a copy is this run's


def changed(key, then, now):
    """In one line: a key, its value when something was made, and its value now."""
    return re.compile(rf"\b{re.escape(key)}\b.*{re.escape(then)}(?!\w).*{re.escape(now)}(?!\w)")


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("train.batch_size=4", [changed("train.batch_size", "2", "4")]),
        ("train.cut=false", [changed("train.cut", "True", "False")]),
        ("train.seed=3", [changed("train.seed", "0", "3")]),
        ("data.val_split=0.5", [changed("data.val_split", "0.34", "0.5")]),
        ("data.img_size=64", [changed("data.img_size", "[32, 32]", "[64, 64]")]),
        ("data.data_path={root}/copied", [changed("data.data_path", "/mvtec", "/copied")]),
        ("data.anomaly_source_path={root}/more", [changed("data.anomaly_source_path", "/textures", "/more")]),
    ],
)
def test_a_training_does_not_resume_with_other_settings(two, cli, override, names):
    shutil.copytree(two / "mvtec", two / "copied")
    shutil.copytree(two / "textures", two / "more")
    for folder in ("copied/tile/train/good", "more/kind"):
        write(two / folder / "another.png", np.zeros((40, 48, 3), np.uint8))
    before = contents(two / "checkpoints/tile/tiny")
    override = override.replace("{root}", two.as_posix())
    resumed = cli("--train", "--set", "train.epochs=3", "--set", override, *QUICK)
    assert_user_error(resumed, *names, "tiny/last.pt", re.compile(r"\btrain\.resume\b"))
    assert contents(two / "checkpoints/tile/tiny") == before


@pytest.mark.parametrize(
    "override",
    [
        *("train.learning_rate=0.5", "train.lr_milestones=[0.5]", "train.lr_gamma=0.5", "data.num_workers=1"),
        *("train.device=auto", "train.precision=bf16", "train.compile=off", "train.visualize_every=3"),
        *("train.save_from=2", "train.save_every=7", "data.test_batch_size=3", "metrics.p=90"),
    ],
)
def test_a_training_resumes_with_settings_that_may_change(two, cli, override):
    status, out, _ = cli("--train", *QUICK, "--set", "train.epochs=3", "--set", override)
    assert status == 0
    assert_line(out, "tiny/last.pt", 2)
    log = rows_of(two / "checkpoints/tile/tiny/train_log.csv")
    assert [row["epoch"] for row in log] == ["1", "2", "3"]


def test_a_dataset_in_another_place_is_the_same(workplace, cli):
    """Compared by content: a training resumes, thresholds and results stay valid, and no digest is printed."""
    assert cli("--train", "--threshold", *QUICK)[0] == 0
    shutil.copytree(workplace / "mvtec", workplace / "elsewhere")
    for path in (workplace / "elsewhere").rglob("*.png"):
        os.utime(path, ns=(1, 1))
    moved = ("--set", f"data.data_path={workplace}/elsewhere")
    assert cli("--detection", *moved)[0] == 0
    shutil.rmtree(workplace / "mvtec")
    resumed = cli("--train", "--detection", *moved, *QUICK, "--set", "train.epochs=3")
    assert_user_error(resumed, "checkpoint_3/no_masking.json")  # thresholds of epoch 3, which has been trained
    out = resumed[1]
    assert_line(out, "tiny/last.pt", 2)
    assert_line(out, "data.data_path", workplace / "mvtec", workplace / "elsewhere")
    assert not lines_with(out, "train/good")  # as where images have changed, below
    changed_image = workplace / "elsewhere/tile/train/good/000.png"
    write(changed_image, np.full((40, 48, 3), 99, np.uint8))
    _, out, error = cli("--detection", *moved, "--set", "data.load_epoch=2")
    assert not re.search(r"[0-9a-f]{12}", out.split("results:")[0] + error)
    out = cli("--train", *moved, *QUICK, "--set", "train.epochs=4")[1]
    assert_line(out, "train/good", 1)


def test_changed_images_are_reported_when_a_training_resumes(workplace, cli):
    larger = ("--set", "data.img_size=64", *QUICK)  # at 32 batch norm needs two images a batch
    assert cli("--train", *larger)[0] == 0
    good = workplace / "mvtec/tile/train/good"
    write(workplace / "textures/kind/another.png", np.zeros((40, 48, 3), np.uint8))
    leftover = workplace / "checkpoints/tile/tiny/images/.epoch_0001.0123abcd.part.png"
    leftover.parent.mkdir()
    leftover.write_bytes(b"of a killed process")
    write(good / "100.png", np.full((40, 48, 3), 101, np.uint8))
    write(good / "101.png", np.full((40, 48, 3), 102, np.uint8))
    (good / "000.png").unlink()
    write(good / "001.png", np.full((40, 48, 3), 103, np.uint8))
    status, out, _ = cli("--train", *larger, "--set", "train.epochs=3")
    assert status == 0 and not leftover.exists()
    assert_line(out, "train/good", re.compile(r"\b2\b.*\b1\b.*\b1\b"))  # added, removed, replaced
    assert_line(out, 3, 4, re.compile("texture"))
    status, out, _ = cli("--train", *larger, "--set", "train.epochs=4")
    assert status == 0 and not lines_with(out, "train/good") and not lines_with(out, re.compile("texture"))


def test_replaced_images_of_the_same_name_size_and_time_are_trained_on(workplace, cli):
    never = ("--set", "train.resume=never", "--set", "train.epochs=1", *QUICK)
    assert cli("--train", *never)[0] == 0
    other_images(workplace / "mvtec/tile/train/good")
    config = load_config(workplace / "config.yaml")
    dataset, _ = datasets(config, split(config, find_files(config)))
    assert max(int(dataset.images[i].max()) for i in range(len(dataset))) < 90  # the old ones have 90 and more


def test_renamed_images_stay_trained_or_held_out(workplace, cli):
    """Thresholds come from the held-out images, whatever their names are now."""
    assert cli("--train", "--threshold", *QUICK)[0] == 0
    path = workplace / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking.json"
    expected = json.loads(path.read_text())
    good = workplace / "mvtec/tile/train/good"
    files = sorted(good.iterdir())
    kept = [file.read_bytes() for file in files]
    for file, data in zip(files, kept[3:] + kept[:3], strict=True):
        file.write_bytes(data)
    assert cli("--detection")[0] == 0  # still valid
    assert cli("--threshold")[0] == 0
    found = json.loads(path.read_text())
    assert found["image"] == pytest.approx(expected["image"]) and found["pixel"] == pytest.approx(expected["pixel"])


def test_a_missing_held_out_image_is_a_user_error(workplace, cli):
    assert cli("--train", *QUICK)[0] == 0
    held_out = list(checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")["images"]["held_out"])
    (workplace / "mvtec/tile/train" / held_out[0]).unlink()
    assert_user_error(cli("--threshold"), held_out[0], "last.pt")


HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import pathlib
from runtime.files import run_lock
with run_lock(pathlib.Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(workplace):
    """Another process that trains in the run's folder."""
    run = workplace / "checkpoints/tile/tiny"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(ROOT), str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_run_that_another_process_trains_is_a_user_error(workplace, cli, holder):
    before = contents(workplace / "checkpoints")
    assert_user_error(cli("--train"), workplace / "checkpoints/tile/tiny", holder.pid, "data.run_name")
    assert contents(workplace / "checkpoints") == before
    holder.kill()  # SIGKILL: the lock ends with the process
    holder.wait()
    assert cli("--train", *QUICK)[0] == 0
    assert not (workplace / "checkpoints/tile/tiny/.owner.json").exists()


def test_a_lock_of_another_host_is_a_user_error_that_names_the_file(workplace, cli):
    note = workplace / "checkpoints/tile/tiny/.owner.json"
    note.parent.mkdir(parents=True)
    note.write_text('{"host": "somewhere-else", "process": 12}')
    assert_user_error(cli("--train"), 12, "somewhere-else", note)
    note.unlink()
    assert cli("--train", *QUICK)[0] == 0


def test_decoded_files_of_several_runs_are_kept(workplace, cli):
    make_dataset(workplace / "b")
    write(workplace / "b/textures/kind/0.jpg", np.zeros((50, 60, 3), np.uint8))
    assert cli("--train", *QUICK)[0] == 0
    first = contents(workplace / "checkpoints/.decoded")
    other = ("--set", "data.run_name=other", "--set", f"data.anomaly_source_path={workplace}/b/textures")
    assert cli("--train", *QUICK, *other, "--set", "train.seed=1")[0] == 0
    second = contents(workplace / "checkpoints/.decoded")
    assert first.items() <= second.items() and len(second) == len(first) + 1  # the nominal images are the same
