"""Is what lies on disk still valid? Weights, pictures and settings that change between calls of the programs."""

import json
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, checked, make_dataset, rows_of, write

from config import load_config
from inference import checkpoint
from training.data import datasets, find_files, split

pytestmark = pytest.mark.usefixtures("undrawn")

PLAIN = ("--maskings", "no", "--registrations", "False")
RESULTS = "results/tiny/tile/checkpoint_2/no_masking"
QUICK = ("--set", "train.visualize=false")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def other_pictures(folder, value=60):
    """Pictures of the same names, sizes and times with another content."""
    for path in sorted(folder.glob("*.png")):
        stat, length = path.stat(), path.stat().st_size
        for seed in range(1000):
            rng = np.random.default_rng([value, seed, int(path.stem)])
            data = cv2.imencode(".png", rng.integers(value, value + 20, (40, 48, 3), dtype=np.uint8))[1].tobytes()
            if len(data) <= length:
                path.write_bytes(data + b"\0" * (length - len(data)))  # readers pass over it
                break
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == length and path.stat().st_mtime_ns == stat.st_mtime_ns


def test_a_detection_that_fails_leaves_the_results_that_were_there(workplace, cli):
    assert cli("--train", "--threshold", "--detection")[0] == 0
    before = contents(workplace / RESULTS)
    picture = workplace / "mvtec/tile/test/spot/002.png"
    kept = picture.read_bytes()
    picture.write_bytes(kept[:200])
    checked(cli("--detection"), ["002.png", "cannot be decoded"])
    assert contents(workplace / RESULTS) == before
    picture.write_bytes(kept)


def test_a_detection_that_is_interrupted_leaves_the_results_that_were_there(workplace, cli, monkeypatch):
    assert cli("--train", "--threshold", "--detection")[0] == 0
    before = contents(workplace / RESULTS)

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupt)  # when the metrics are written already
    assert cli("--detection", "--set", "metrics.k=2", "--threshold")[0] == 130
    assert contents(workplace / RESULTS) == before
    assert [path.name for path in (workplace / RESULTS).parent.iterdir()] == ["no_masking"]


def test_the_summary_holds_results_of_the_same_pictures_only(two, call):
    assert call("evaluate_checkpoints", *PLAIN, "--categories", "tile")[0] == 0
    for i in range(5):
        write(two / f"mvtec/tile/test/good/9{i}.png", np.full((40, 48, 3), 100 + i, np.uint8))
    status, out, _ = call("evaluate_checkpoints", *PLAIN, "--categories", "tile", "--checkpoints", "2")
    assert status == 0 and {row["checkpoint"] for row in rows_of(two / "results/tiny/summary.csv")} == {"2"}
    assert "1 results are out of date and left out of the summary" in out
    assert "the pictures have changed (6 then, 11 now)" in out
    assert "python evaluate_checkpoints.py --categories tile" in out
    status, out, _ = call("check_best_model")
    assert status == 0 and "out of date and not compared" in out
    assert call("evaluate_checkpoints", *PLAIN, "--categories", "tile")[0] == 0
    assert {row["checkpoint"] for row in rows_of(two / "results/tiny/summary.csv")} == {"1", "2"}


def test_the_summary_holds_results_of_one_precision_only(two, call):
    assert call("evaluate_checkpoints", *PLAIN)[0] == 0
    arguments = ("--categories", "tile", "--checkpoints", "2", "--set", "train.precision=bf16")
    status, out, _ = call("evaluate_checkpoints", *PLAIN, *arguments)
    rows = rows_of(two / "results/tiny/summary.csv")
    assert status == 0 and {(row["category"], row["checkpoint"]) for row in rows} == {("tile", "2")}
    assert "precision = float32, now bfloat16" in out and "3 results are out of date" in out


def test_a_deleted_checkpoint_does_not_ask_for_ever(two, call):
    assert call("evaluate_checkpoints", *PLAIN)[0] == 0
    (two / "checkpoints/wood/tiny/epoch_0001.pt").unlink()
    assert call("check_best_model")[0] == 0  # its rows are there still
    status, out, _ = call("evaluate_checkpoints", *PLAIN)
    assert status == 0 and "epoch_0001.pt is gone" in out
    status, out, _ = call("check_best_model")
    assert status == 0 and "results are out of date and not compared" in out


def test_a_row_that_was_lost_is_still_missed(two, call):
    assert call("evaluate_checkpoints", *PLAIN)[0] == 0
    path = two / "results/tiny/summary.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))
    checked(call("check_best_model"), ["the row of tile, 1, no_masking, k_sigma is missing"])


def test_foreign_weights_have_a_place_of_their_own(two, call):
    assert call("main", "--threshold", "--detection")[0] == 0
    kept = [two / "results", two / "checkpoints/tile/tiny"]
    before = [contents(folder) for folder in kept]
    assert call("main", "--train", "--set", "data.category=wood", "--set", "train.seed=5", "--set",
                "train.resume=never", *QUICK)[0] == 0  # fmt: skip
    other_pictures(two / "mvtec/wood/train/good")  # its names are those of tile, its pictures are not
    assert call("main", "--train", "--set", "data.category=wood", "--set", "train.resume=never", *QUICK)[0] == 0
    foreign = ("--set", f"data.load_epoch={two}/checkpoints/wood/tiny/epoch_0002.pt")
    status, out, _ = call("main", "--threshold", "--detection", *foreign)
    assert status == 0
    for folder, files in zip(kept, before, strict=True):
        now = contents(folder)
        assert {name: now[name] for name in files} == files
    said = out.splitlines()[-1].removeprefix("results: ")
    assert re.fullmatch(r"checkpoint_2_[0-9a-f]{8}", said.split("/")[-2])
    # none of tile's pictures were trained on: all six nominal ones set the thresholds
    assert "thresholds from 6 held-out nominal images" in out
    shutil.copy(two / "checkpoints/tile/tiny/epoch_0002.pt", two / "copy.pt")
    out = call("main", "--detection", "--set", f"data.load_epoch={two}/copy.pt")[1]
    assert out.splitlines()[-1] == f"results: {two / RESULTS}"  # a copy is this run's


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.batch_size=4", ["train.batch_size = 2, now 4"]),
        ("train.cut=false", ["train.cut = True, now False"]),
        ("train.seed=3", ["train.seed = 0, now 3"]),
        ("data.val_split=0.5", ["data.val_split = 0.34, now 0.5"]),
        ("data.img_size=64", ["data.img_size = [32, 32], now [64, 64]"]),
        ("data.data_path={root}/copied", ["data.data_path", "/mvtec", "/copied"]),
        ("data.anomaly_source_path={root}/more", ["data.anomaly_source_path", "/textures", "/more"]),
    ],
)
def test_a_training_does_not_go_on_with_other_settings(workplace, cli, override, words):
    assert cli("--train", *QUICK)[0] == 0
    shutil.copytree(workplace / "mvtec", workplace / "copied")
    shutil.copytree(workplace / "textures", workplace / "more")
    for folder in ("copied/tile/train/good", "more/kind"):
        write(workplace / folder / "another.png", np.zeros((40, 48, 3), np.uint8))
    before = contents(workplace / "checkpoints/tile/tiny")
    override = override.replace("{root}", workplace.as_posix())
    checked(cli("--train", "--set", "train.epochs=3", "--set", override, *QUICK), [*words, "last.pt", "train.resume"])
    assert contents(workplace / "checkpoints/tile/tiny") == before


@pytest.mark.parametrize(
    "override",
    [
        *("train.learning_rate=0.5", "train.lr_milestones=[0.5]", "train.lr_gamma=0.5", "data.num_workers=1"),
        *("train.device=auto", "train.precision=bf16", "train.compile=off", "train.visualize_every=3"),
        *("train.save_from=2", "train.save_every=7", "data.test_batch_size=3", "metrics.p=90"),
    ],
)
def test_a_training_goes_on_with_settings_that_may_change(workplace, cli, override):
    assert cli("--train", *QUICK, "--set", "train.epochs=1")[0] == 0
    status, out, _ = cli("--train", *QUICK, "--set", override)
    assert status == 0 and "going on after epoch 1" in out


def test_a_dataset_that_has_moved_is_the_same(workplace, cli):
    """Told by content: training goes on, thresholds and results stay valid, and no digest is shown to anybody."""
    assert cli("--train", "--threshold", *QUICK)[0] == 0
    shutil.copytree(workplace / "mvtec", workplace / "elsewhere")
    for path in (workplace / "elsewhere").rglob("*.png"):
        os.utime(path, ns=(1, 1))
    moved = ("--set", f"data.data_path={workplace}/elsewhere")
    assert cli("--detection", *moved)[0] == 0
    shutil.rmtree(workplace / "mvtec")
    status, out, _ = cli("--train", "--detection", *moved, *QUICK, "--set", "train.epochs=3")
    assert status == 2  # thresholds of epoch 3 are missing, but it has been trained
    assert "going on after epoch 2" in out and "have changed" not in out
    assert f"data.data_path was {workplace}/mvtec, is now {workplace}/elsewhere: the same pictures" in out
    write(workplace / "elsewhere/tile/train/good/000.png", np.full((40, 48, 3), 99, np.uint8))
    status, out, error = cli("--detection", *moved, "--set", "data.load_epoch=2")
    assert not re.search(r"[0-9a-f]{12}", out.split("results:")[0] + error)


def test_changed_pictures_are_said_when_a_training_goes_on(workplace, cli):
    larger = ("--set", "data.img_size=64", *QUICK)  # at 32 batch norm needs two pictures a batch
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
    assert status == 0 and "have changed since" in out and "2 added, 1 removed, 1 replaced" in out
    assert "the textures have changed (3 then, 4 now)" in out and not leftover.exists()
    status, out, _ = cli("--train", *larger, "--set", "train.epochs=4")
    assert status == 0 and "have changed" not in out


def test_exchanged_pictures_of_the_same_name_size_and_time_are_trained_on(workplace, cli):
    never = ("--set", "train.resume=never", "--set", "train.epochs=1", *QUICK)
    assert cli("--train", *never)[0] == 0
    other_pictures(workplace / "mvtec/tile/train/good")
    config = load_config(workplace / "config.yaml")
    dataset, _ = datasets(config, split(config, find_files(config)))
    assert max(int(dataset.images[i].max()) for i in range(len(dataset))) < 90  # the old ones have 90 and more


def test_renumbered_pictures_stay_trained_or_held_out(workplace, cli):
    """Pictures change places: those that set the thresholds are the held-out ones, whatever they are called now."""
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


def test_a_held_out_picture_that_is_gone_is_named(workplace, cli):
    assert cli("--train", *QUICK)[0] == 0
    held_out = list(checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")["images"]["held_out"])
    (workplace / "mvtec/tile/train/good" / held_out[0]).unlink()
    checked(cli("--threshold"), [held_out[0], "held out when", "restore it"])


def test_weights_of_unknown_training_say_so(workplace, cli):
    """The original's, and those of the earlier code, whose pair has other names."""
    folder = ROOT / "tests/data/official_format"
    stem = "DRAEM_seg_large_ae_large_0.0001_800_bs8_bottle_"
    (workplace / "old").mkdir()
    shutil.copy(folder / f"{stem}.pckl", workplace / "old/bottle_run_REC_MODEL_700.pth")
    shutil.copy(folder / f"{stem}_seg.pckl", workplace / "old/bottle_run_SEG_MODEL_700.pth")
    sets = ("--set", "model.base_width=8", "--set")
    results = workplace / "results/tiny/tile"
    for pair in (folder / f"{stem}.pckl", workplace / "old/bottle_run_REC_MODEL_700.pth"):
        assert cli("--threshold", "--detection", *sets, f"data.load_epoch={pair}")[0] == 0
        kept = workplace / f"checkpoints/tile/tiny/thresholds/checkpoint_{pair.stem}/no_masking.json"
        assert json.loads(kept.read_text())["held_out"] is None
        metrics = results / f"checkpoint_{pair.stem}/no_masking/p_quantile/metrics.json"
        assert "not known" in json.loads(metrics.read_text())["notes"]["nominal"]
    first, second = (
        (results / f"checkpoint_{name}/no_masking/scores.csv").read_text()
        for name in (stem, "bottle_run_REC_MODEL_700")
    )
    assert first == second
    second_file = workplace / "old/bottle_run_SEG_MODEL_700.pth"
    checked(cli("--detection", *sets, f"data.load_epoch={second_file}"), ["_SEG_MODEL_700.pth", "_REC_MODEL_"])
    second_file.unlink()
    checked(cli("--detection", *sets, f"data.load_epoch={workplace}/old/bottle_run_REC_MODEL_700.pth"),
            ["bottle_run_SEG_MODEL_700.pth: missing"])  # fmt: skip


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


def test_a_run_that_another_process_trains_is_left_to_it(workplace, cli, holder):
    before = contents(workplace / "checkpoints")
    checked(cli("--train"), [f"process {holder.pid} on host", "is training there", "data.run_name"])
    assert contents(workplace / "checkpoints") == before
    holder.kill()  # outright: the lock goes with the process
    holder.wait()
    assert cli("--train", *QUICK)[0] == 0
    assert not (workplace / "checkpoints/tile/tiny/.owner.json").exists()


def test_a_lock_of_another_host_is_told_with_how_to_remove_it(workplace, cli):
    note = workplace / "checkpoints/tile/tiny/.owner.json"
    note.parent.mkdir(parents=True)
    note.write_text('{"host": "somewhere-else", "process": 12}')
    checked(cli("--train"), ["process 12 on host somewhere-else", f"delete {note}"])
    note.unlink()
    assert cli("--train", *QUICK)[0] == 0


def test_decoded_files_of_several_runs_lie_side_by_side(workplace, cli):
    make_dataset(workplace / "b")
    write(workplace / "b/textures/kind/0.jpg", np.zeros((50, 60, 3), np.uint8))
    assert cli("--train", *QUICK)[0] == 0
    first = contents(workplace / "checkpoints/.decoded")
    other = ("--set", "data.run_name=other", "--set", f"data.anomaly_source_path={workplace}/b/textures")
    assert cli("--train", *QUICK, *other, "--set", "train.seed=1")[0] == 0
    second = contents(workplace / "checkpoints/.decoded")
    assert first.items() <= second.items() and len(second) == len(first) + 1  # the nominal images are the same
