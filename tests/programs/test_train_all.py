"""train_all.py, and val_ap."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from conftest import ROOT, make_dataset, rows_of, write
from sklearn.metrics import average_precision_score

from engine import train_all
from inference import detect as inference
from training import validation


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


def test_a_process_that_is_killed_costs_one_category(two, call, monkeypatch):
    killer = two / "killer.py"
    killer.write_text(
        "import os, runpy, sys\n"
        "if 'wood' in sys.argv[-1]: os.kill(os.getpid(), 9)\n"
        f"sys.path.insert(0, {str(ROOT)!r})\nsys.argv[0] = 'main.py'\n"
        f"runpy.run_path({str(ROOT / 'main.py')!r}, run_name='__main__')\n"
    )
    monkeypatch.setattr("engine.train_all.MAIN", killer)
    status, out, _ = call("train_all", "--set", "train.epochs=3")
    assert status == 1 and "trained: tile" in out and "failed: wood: its process was ended by signal 9" in out


def test_times_of_several_batches_are_all_there(tmp_path):
    """Each of an array job writes its own line."""
    path, start = tmp_path / "training_times.txt", Barrier(8)

    def batch(name):
        start.wait()
        for number in range(50):
            train_all._append(path, f"{name}{number}\n")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(batch, "abcdefgh"))
    lines = path.read_text().splitlines()
    assert lines.count(train_all.TIMES_HEAD.rstrip()) == 1 and len(set(lines)) == 1 + 8 * 50


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
    from training.data import datasets, find_files, split

    monkeypatch.setattr(validation, "SAMPLES", 200)
    config = load_config(two / "config.yaml")
    _, samples = datasets(config, split(config, find_files(config)))
    assert len(samples) == 200 and {samples.name(i) for i in range(200)} == set(map(str, samples.files))
    again = datasets(config, split(config, find_files(config)))[1]
    clean = 0
    for idx in range(200):
        np.testing.assert_array_equal(samples[idx]["image"], again[idx]["image"])
        clean += not samples[idx]["mask"].any()
    assert 70 <= clean <= 130
    maps = [np.random.default_rng(idx).random((32, 32), np.float32) for idx in range(200)]
    found = (inference.NetworkOutput(i, None, None, maps[i], samples[i]["mask"][0].numpy() > 0) for i in range(200))
    monkeypatch.setattr(validation, "detect", lambda *_: found)
    truth = np.concatenate([samples[idx]["mask"].numpy().ravel() for idx in range(200)])
    expected = average_precision_score(truth, np.concatenate([one.ravel() for one in maps]))
    value, error = validation.synthetic_pixel_ap(None, samples, config)
    assert value == pytest.approx(expected, abs=1e-5) and 0 < error < 0.2
