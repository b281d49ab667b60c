"""training/distributed.py: several processes train and detect as one does; torchrun with gloo on a CPU."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, SETTINGS, make_dataset, rows_of, start_fork, start_process
from in_process import run_here
from messages import assert_fix, assert_line, lines_with, raises_user_error

from config_file import load_config
from engine import train
from inference import checkpoint
from training import distributed

pytestmark = pytest.mark.skipif(os.name == "nt", reason="gloo and signals are other ones there")
# Trains in float64 and records the losses of every step. Functions are replaced in a real process: in float32, and with
# means of epochs alone, a wrong weighting of shares would hide in rounding.
DOUBLE = """\
import json, os, runpy, sys
import torch
sys.path.insert(0, {root!r})
sys.argv[0] = {main!r}
from training import loop, state
made, scaled, read, losses = state.TrainingState.__init__, loop.scaled, loop._read_losses, []
def double(self, *arguments):
    made(self, *arguments)
    self.model.double()
    self._average and self._average.double()
def record(pending, progress, epoch, group):
    before, count = dict(progress.losses), progress.count
    read(pending, progress, epoch, group)
    losses.append([(progress.losses[term] - before[term]) / (progress.count - count) for term in before])
state.TrainingState.__init__, loop._read_losses, loop.READ_EVERY = double, record, 1
loop.scaled = lambda images, device: scaled(images, device).double()
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    if os.environ.get("RANK", "0") == "0":
        json.dump(losses, open("losses.json", "w"))
"""
ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
SHORT = ["data.img_size=64", "train.batch_size=4", "train.epochs=2", "train.learning_rate=1e-5", "data.val_split=0"]


# Averaged weights are compared. Without decay and clipping: these act on biases whose gradients are rounding alone.
RECIPE = (
    "train.lr_schedule=one_cycle",
    "train.ema_decay=0.9",
    "train.loss_weights=[1, 2, 3]",
)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def torchrun(workplace, settings, *modes):
    """A started torchrun of main.py in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", ROOT / "main.py"]
    return start_process([*command, *arguments_of(workplace, settings, modes)], workplace)


def arguments_of(workplace, settings, modes):
    return ["--config", workplace / "config.yaml", *modes, *(word for one in settings for word in ("--set", one))]


def launch_ranks(count, workplace, settings, *modes, script=ROOT / "main.py"):
    """Started processes of one training, without torchrun, whose start takes seconds; a single one is none's rank."""
    common, arguments = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}, arguments_of(workplace, settings, modes)
    common |= {"MASTER_PORT": free_port()}
    if count == 1:
        return [start_fork(script, arguments, workplace)]
    return [
        start_fork(script, arguments, workplace, RANK=rank, LOCAL_RANK=rank, **common)
        for rank in map(str, range(count))
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workplace with ten nominal images: the last batch of four is one of two."""
    root = make_dataset(tmp_path_factory.mktemp("together"), n_train=10)
    (root / "config.yaml").write_text(SETTINGS.format(root=root.as_posix()))
    (root / "double.py").write_text(DOUBLE.format(root=str(ROOT), main=str(ROOT / "main.py")))
    return root


@pytest.mark.parametrize(("recipe", "together"), [((), 2), (RECIPE, 3)])
def test_losses_and_weights_equal_those_of_one_process(place, recipe, together):
    """Shares of a batch are equal, unequal, and empty: of the last batch a third process has none."""
    found = {}
    for count in (1, together):
        settings = [*SHORT, f"data.run_name=together{count}{len(recipe)}", "train.visualize=false", *recipe]
        for process in launch_ranks(count, place, settings, "--train", script=place / "double.py"):
            _, error = process.communicate(timeout=120)
            assert process.returncode == 0, error
        content = checkpoint.read(place / f"checkpoints/tile/together{count}{len(recipe)}/last.pt")
        weights = {
            (kind, name): value for kind in ("model", "raw_model") for name, value in (content.get(kind) or {}).items()
        }
        found[count] = np.array(json.loads((place / "losses.json").read_text())), weights
    losses, weights = found[1]
    assert losses.shape == (6, 3) and {kind for kind, _ in weights} == ({"model", "raw_model"} if recipe else {"model"})
    np.testing.assert_allclose(found[together][0], losses, rtol=0, atol=1e-9)
    assert found[together][1].keys() == weights.keys()
    for (kind, name), value in weights.items():
        # A bias before batch norm has no effect: its gradient is rounding alone, of which Adam makes steps.
        is_bias = name.endswith((".0.bias", ".3.bias")) and "fin_out" not in name
        torch.testing.assert_close(found[together][1][kind, name], value, rtol=0, atol=1e-8 if is_bias else 1e-9)


def test_processes_share_the_images_and_write_the_same_files(place):
    settings = [*SHORT, "data.val_split=0.4", "data.run_name=modes"]
    train.run(load_config(place / "config.yaml", settings), "")
    written = {}
    for count in (0, 2):
        settings[-1:] = ["data.run_name=modes", f"data.results_path={place}/results{count}"]
        if count:
            ranks = launch_ranks(count, place, settings, "--threshold", "--detection")
            said = [process.communicate(timeout=120) for process in ranks]
            assert [process.returncode for process in ranks] == [0, 0], said
            out, others = said[0][0], said[1][0]
            assert not others
        else:
            sets = [word for one in settings for word in ("--set", one)]
            out = run_here("main", "--config", place / "config.yaml", "--threshold", "--detection", *sets)
        folder = place / f"results{count}/modes/tile/checkpoint_2/no_masking"
        assert out.splitlines()[-1] == f"results: {folder}"
        assert len(lines_with(out, re.compile(r"^results\b"))) == len(lines_with(out, "AUROC", "image")) == 1
        written[count] = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        thresholds = place / "checkpoints/tile/modes/thresholds/checkpoint_2/no_masking.json"
        written[count]["thresholds"] = thresholds.read_text().replace(f"results{count}", "results")
        del settings[-1]
    assert written[0].keys() == written[2].keys()
    other = {path for path in written[0] if written[0][path] != written[2][path]}
    assert {getattr(path, "name", path) for path in other} <= {"made_with.json", "curves.npz"}  # these hold times
    rows = [rows_of(place / f"results{count}/modes/tile/checkpoint_2/no_masking/scores.csv") for count in (0, 2)]
    assert rows[0] == rows[1] and len(rows[0]) == 6


def test_a_process_that_dies_ends_the_others_and_another_number_of_processes_resumes(place, capsys):
    settings = [*SHORT, "train.epochs=3000", "data.run_name=killed", "train.visualize=false"]
    process, run_folder = torchrun(place, settings, "--train"), place / "checkpoints/tile/killed"
    end = time.monotonic() + 120
    while not (run_folder / "last.pt").is_file():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.05)
    before = time.monotonic()
    os.kill(rank_of(process.pid, 1), signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and time.monotonic() - before < 60
    lost = assert_line(error, "error: rank 1 of 2")
    assert_fix(lost)
    done = checkpoint.read(run_folder / "last.pt")["epoch"]
    settings[-3] = f"train.epochs={done + 2}"
    train.run(load_config(place / "config.yaml", settings), "")
    assert_line(capsys.readouterr().out, done, run_folder / "last.pt")
    assert (run_folder / f"epoch_{done + 2:04}.pt").is_file()
    lines = (run_folder / "train_log.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in lines[1:]] == list(range(1, done + 3))


def rank_of(launcher, rank):
    """Process of a rank that a launcher has started."""
    children = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True).stdout.split()
    for pid in children:
        with open(f"/proc/{pid}/environ") as stream:
            if f"RANK={rank}" in stream.read().split("\0"):
                return int(pid)
    raise AssertionError(children)


def test_all_processes_stop_together_where_one_is_signalled(place, capsys):
    """Processes of another launcher than torchrun; the state is that of the same step of both, and resumes."""
    settings = [*SHORT, "train.epochs=3000", "data.run_name=stopped", "train.visualize=false"]
    both = launch_ranks(2, place, settings, "--train")
    last, end = place / "checkpoints/tile/stopped/last.pt", time.monotonic() + 120
    while not last.is_file():
        assert time.monotonic() < end and both[0].poll() is None, both[0].communicate()
        time.sleep(0.05)
    before = time.monotonic()
    both[1].send_signal(signal.SIGUSR1)
    said = [process.communicate(timeout=30) for process in both]
    assert [process.returncode for process in both] == [143, 143] and time.monotonic() - before < 5
    assert_line(said[0][1], re.compile(re.escape(str(last)) + r"(?!.*\|)"))
    assert not said[1][0]
    state = checkpoint.read(last)
    settings[-3] = f"train.epochs={state['epoch'] + 1}"
    train.run(load_config(place / "config.yaml", settings), "")
    assert_line(capsys.readouterr().out, state["epoch"], last)
    log = (last.parent / "train_log.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in log[1:]] == list(range(1, state["epoch"] + 2))


WAITS = """\
import os, sys
sys.path.insert(0, {root!r})
from training import distributed
distributed.SILENT_SECONDS = 1.5
with distributed.ProcessGroup(False) as group:
    if group.rank:
        os._exit(9)
    group.barrier()
"""


def test_a_process_that_dies_while_others_wait_is_noticed(tmp_path):
    """As where one is decoding: no exchange fails, only its signs of life end. SILENT_SECONDS is shortened."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, "-c", WAITS.format(root=str(ROOT))]
    first, second = (start_process(command, tmp_path, RANK=rank, LOCAL_RANK=rank, **common) for rank in "01")
    _, error = first.communicate(timeout=60)
    assert second.wait() == 9
    assert_fix(assert_line(error, "rank 1 of 2"))


ENDS = """\
import atexit, sys, threading
sys.path.insert(0, {root!r})
atexit.register(lambda: print(threading.enumerate()))  # called after all that is registered later
from training import distributed
with distributed.ProcessGroup(False) as group:
    group.barrier()
"""


def test_the_thread_of_signs_of_life_ends_before_the_process(tmp_path):
    """A thread within the store while Python ends would abort it, after all work is done."""
    command = [sys.executable, "-c", ENDS.format(root=str(ROOT))]
    out, _ = start_process(command, tmp_path, **ONE, MASTER_PORT=free_port()).communicate(timeout=60)
    assert out.count("<") == 1 and "MainThread" in out


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({}, ["MASTER_PORT", "torchrun"]),
        ({"MASTER_PORT": "x"}, ["MASTER_PORT = x"]),
        ({"RANK": "a"}, ["RANK = a"]),
    ],
)
def test_missing_and_invalid_variables_of_a_launcher_are_user_errors(monkeypatch, variables, names):
    for name, value in (ONE | variables).items():
        monkeypatch.setenv(name, value)
    with raises_user_error(*names):
        distributed.ProcessGroup(False)


def test_more_processes_than_samples_in_a_batch_are_a_user_error(place):
    process = torchrun(place, [*SHORT, "train.batch_size=1", "data.run_name=few"], "--train")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1  # of torchrun
    [text] = lines_with(error, "error: train.batch_size = 1", 2)
    assert_fix(text)
    assert not (place / "checkpoints/tile/few").exists()
