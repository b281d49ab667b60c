"""engine/train_all.py: categories one after another, what is complete, failures, interrupts and times."""

import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
from conftest import ROOT, make_dataset, write
from in_process import train_here
from messages import assert_line, assert_names

from engine import train_all
from inference import checkpoint


def test_categories_are_trained_once_and_failures_do_not_end_the_others(workplace, call, monkeypatch):
    """What fails, fails in a process of its own; what is trained, here: each process takes seconds."""
    root = workplace
    settings = (
        (root / "config.yaml").read_text().replace("val_split: 0.34", "val_split: 0")
    )  # no val_ap: it takes seconds
    (root / "config.yaml").write_text(settings)
    make_dataset(root, "wood")
    with monkeypatch.context() as patch:
        patch.setattr(train_all, "_train", train_here)
        status, out, error = call("train_all")
    assert status == 0, error
    assert out.splitlines()[-1] == f"training times: {root}/checkpoints/training_times.txt"
    assert_line(out, "tile, wood")
    lines = (root / "checkpoints/training_times.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["category", "tile", "wood"]
    for line in lines[1:]:
        _, seconds, clock, epochs, device = line.split()
        minutes, rest = divmod(int(seconds), 60)
        assert int(epochs) == 2 and device == "cpu" and clock == f"0:{minutes:02}:{rest:02}"
    for name in ("tile", "wood"):
        text = (root / f"checkpoints/{name}/tiny/train_all.yaml").read_text()
        assert f"category: {name}" in text and "# a comment to keep" in text and "# which one" in text
        assert (root / f"checkpoints/{name}/tiny/config.yaml").read_text() == text
    assert "category: tile" in (root / "config.yaml").read_text()

    # Again: what is complete is skipped, and failures do not end the others.
    before = {path: path.read_bytes() for path in root.rglob("*.pt")}
    (root / "checkpoints/wall").write_text("a file where a run's folder should be")
    make_dataset(root, "wall")
    write(root / "mvtec/broken/train/good/0.png", np.zeros((40, 48), np.uint8))
    for name in ("1.png", "2.png", "3.png"):
        (root / "mvtec/broken/train/good" / name).write_bytes(b"x")
    status, out, error = call("train_all", "--update_config", "--set", "train.epochs=2")
    assert status == 1 and "Traceback" not in error
    assert_line(out, "tile, wood")
    broken, wall = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert_names(broken, "failed: broken", re.compile(r"broken/train/good/\d\.png"))
    assert_names(wall, "failed: wall", root / "checkpoints/wall")
    assert all(path.read_bytes() == content for path, content in before.items())
    text = (root / "config.yaml").read_text()
    assert "category: broken " in text and "# which one" in text and "# a comment to keep" in text
    status, out, _ = call("train_all", "--categories", "wood", "--set", "train.learning_rate=0.5")
    assert status == 1
    assert_line(out, "failed: wood", re.compile(r"train\.learning_rate = 0\.001\b.*\b0\.5\b"), "--force")
    monkeypatch.setattr(train_all, "_train", train_here)
    assert call("train_all", "--categories", "wood", "--force")[0] == 0
    assert (root / "checkpoints/wood/tiny/epoch_0002.pt").stat().st_mtime > (
        root / "checkpoints/tile/tiny/epoch_0002.pt"
    ).stat().st_mtime
    assert len((root / "checkpoints/training_times.txt").read_text().splitlines()) == 4


def test_a_killed_process_fails_one_category(two, call, monkeypatch):
    killer = two / "killer.py"
    killer.write_text(
        "import os, runpy, sys\n"
        "if 'wood' in sys.argv[-1]: os.kill(os.getpid(), 9)\n"
        f"sys.path.insert(0, {str(ROOT)!r})\nsys.argv[0] = 'main.py'\n"
        f"runpy.run_path({str(ROOT / 'main.py')!r}, run_name='__main__')\n"
    )
    # In place of main.py, as no other program can be timed to kill the process of one category.
    monkeypatch.setattr("engine.train_all.MAIN", killer)
    status, out, _ = call("train_all", "--set", "train.epochs=3")
    assert status == 1
    assert_line(out, "failed: wood", 9)
    assert checkpoint.saved_epochs(two / "checkpoints/tile/tiny") == [1, 2, 3]
    assert checkpoint.saved_epochs(two / "checkpoints/wood/tiny") == [1, 2]


def test_times_of_concurrent_batches_are_all_written(tmp_path):
    """As of an array job. Through private functions: eight real batches would take minutes."""
    path, start = tmp_path / "training_times.txt", Barrier(8)

    def batch(name):
        start.wait()
        for number in range(50):
            train_all._append(path, f"{name}{number}\n")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(batch, "abcdefgh"))
    lines = path.read_text().splitlines()
    assert lines.count(train_all.TIMES_HEAD.rstrip()) == 1 and len(set(lines)) == 1 + 8 * 50


def test_a_signal_reaches_the_training_process(workplace):
    command = [
        sys.executable,
        ROOT / "train_all.py",
        "--config",
        workplace / "config.yaml",
        "--set",
        "train.epochs=2000",
        "--set",
        "data.val_split=0",
    ]
    process = subprocess.Popen(command, cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = workplace / "checkpoints/tile/tiny/last.pt"
    end, error = time.monotonic() + 60, []
    threading.Thread(target=lambda: error.append(process.stderr.read()), daemon=True).start()
    while not log.is_file():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    time.sleep(0.2)
    assert_line(error[0], re.compile(re.escape(str(log)) + r"(?!.*\|)"))
    assert checkpoint.read(log)["epoch"] >= 1
    assert not (workplace / "checkpoints/tile/tiny/.owner.json").exists()


def test_of_a_failed_training_the_message_is_kept():
    bar = "epoch 3:  50%|#####     | 1/2 [00:01<00:01,  1.23s/batch, loss=0.2]"
    for message in ("a|b.png: cannot be decoded; fix or delete the file", "50% of x: [0:1]; second"):
        assert (
            train_all._message_in(f"\r{bar}\r{bar}\rerror: {message}\nand this | line\n")
            == f"{message} and this | line"
        )
    assert train_all._message_in(f"Traceback\n  x\nKeyError: 'a | b'\n\r{bar}\n") == "KeyError: 'a | b'"
    assert train_all._message_in("") == train_all._message_in(f"\r{bar}") == ""
