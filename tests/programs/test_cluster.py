"""--ray and --seeds: many jobs at once, and what is left when a node goes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, SETTINGS, checked, make_dataset, rows_of, start_process
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from engine import ray_jobs
from inference import checkpoint
from runtime.files import run_lock

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are other ones there")
NAMES = ("tile", "wood", "felt", "tin")
EPOCHS = 24
SHORT = ["data.val_split=0", "train.visualize=false", f"train.epochs={EPOCHS}", f"train.save_from={EPOCHS}"]
SHORT = [word for one in [*SHORT, "train.save_every=10"] for word in ("--set", one)]


def make_place(root, names):
    for name in names:
        make_dataset(root, name)
    (root / "config.yaml").write_text(SETTINGS.format(root=root.as_posix()))
    return root


def start(program, root, *arguments):
    command = [sys.executable, ROOT / f"{program}.py", "--config", root / "config.yaml", *SHORT]
    return start_process([*command, *arguments], root, stderr=subprocess.STDOUT)


def run(*arguments):
    process = start(*arguments)
    out, _ = process.communicate(timeout=200)
    return process.returncode, out


def epochs_of(folder):
    """Of each start of a training: the epochs in its events."""
    found = []
    for path in sorted(folder.glob("logs/events*")):
        events = [event for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]
        found.append(sorted({event.step for event in events}))
    return found


@pytest.fixture(scope="module")
def ray_cluster():
    """A cluster of one node, for the tests to add to."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield started
    started.shutdown()


def children(pids):
    found = subprocess.run(["pgrep", "-P", ",".join(map(str, pids))], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def saved_on(node, root):
    """Whether a training that runs on this node has saved its state."""
    workers = children([node.all_processes["raylet"][0].process.pid])
    trainings = children(workers)
    for owner in root.glob("checkpoints/*/tiny/.owner.json"):
        with suppress(OSError, ValueError):  # it has ended meanwhile
            if json.loads(owner.read_text())["process"] in trainings and owner.with_name("last.pt").is_file():
                return True
    return False


def test_a_node_that_goes_costs_nothing_but_what_was_not_saved(tmp_path, ray_cluster, call):
    root = make_place(tmp_path, NAMES)
    node = ray_cluster.add_node(num_cpus=1)
    process, end = start("train_all", root, "--ray", ray_cluster.address), time.monotonic() + 150
    while not saved_on(node, root):
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    ray_cluster.remove_node(node, allow_graceful=False)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert out.count("starts again on") == 1
    again = 0
    for name in NAMES:
        folder = root / f"checkpoints/{name}/tiny"
        assert checkpoint.saved_epochs(folder) == [EPOCHS]
        lines = (folder / "train_log.csv").read_text().splitlines()[1:]
        assert [int(line.split(",")[0]) for line in lines] == list(range(1, EPOCHS + 1))
        starts = epochs_of(folder)
        for before, after in pairwise(starts):
            again += 1
            saved = (2, *range(1, EPOCHS, 10))
            assert after[0] == before[-1] + 1 or (after[0] in saved and after[0] > before[-1] - 10)
    assert again == 1
    times = (root / "checkpoints/training_times.txt").read_text().splitlines()
    assert sorted(line.split()[0] for line in times[1:]) == sorted(NAMES)
    for line in times[1:]:
        _, _, _, epochs, device, node_name = line.split()
        assert (int(epochs), device) == (EPOCHS, "cpu") and node_name  # also of the one that ran again

    plain = ("--registrations", "False", "--thresholds", "max")
    status, out = run("evaluate_checkpoints", root, "--ray", ray_cluster.address, *plain)
    assert status == 0, out
    on_ray = rows_of(root / "results/tiny/summary.csv")
    status, out, error = call("evaluate_checkpoints", *SHORT, "--force", *plain)
    assert {(row.pop("node"), row.pop("device")) for row in on_ray} == {(socket.gethostname(), "cpu")}
    assert status == 0 and rows_of(root / "results/tiny/summary.csv") == on_ray and len(on_ray) == 4, error


def test_told_to_stop_tasks_save_what_they_have_done(tmp_path):
    root = make_place(tmp_path, NAMES[:2])
    process = start("train_all", root, "--ray", "local", "--set", "train.epochs=100000")
    end = time.monotonic() + 120
    while not list(root.glob("checkpoints/*/tiny/last.pt")):
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 130 and "goes on from there" in out, out
    first = max(root.glob("checkpoints/*/tiny/last.pt"), key=lambda path: checkpoint.read(path)["epoch"])
    log = (first.parent / "train_log.csv").read_text().splitlines()
    assert checkpoint.read(first)["epoch"] == len(log) - 1  # all that was done
    assert not list(root.glob("checkpoints/*/tiny/.owner.json"))


def test_folders_that_a_node_does_not_see_are_told_with_its_name(tmp_path, monkeypatch):
    events = []
    queue = SimpleNamespace(put=events.append)
    monkeypatch.chdir(tmp_path)
    outcome = ray_jobs._task(queue, "tile", [str(tmp_path), str(tmp_path / "mvtec")], print, ())
    assert (
        outcome.error == f"{tmp_path / 'mvtec'}: not there on node {socket.gethostname()}; put it on storage that "
        "all nodes see"
    )
    assert events == [("tile", socket.gethostname())]


def test_a_second_driver_is_refused(two, call):
    with run_lock(two / "checkpoints/.batch_tiny"):
        checked(call("train_all", "--ray", "local"), [".batch_tiny", "data.run_name"])


def test_failures_are_told(tmp_path, ray_cluster):
    root = make_place(tmp_path, NAMES[:1])
    for path in (root / "mvtec/tile/train/good").iterdir():
        path.write_bytes(b"no picture")
    status, out = run("train_all", root, "--ray", ray_cluster.address)
    assert status == 1 and "failed: tile" in out and "cannot be decoded" in out and "starts again" not in out


def test_seeds_are_runs_of_their_own_and_their_means_are_reported(two, call):
    seeds = ("--seeds", "0", "1", "--categories", "tile", "--set", "train.visualize=false")
    status, out, error = call("train_all", *seeds)
    assert status == 0 and "trained: tile, seed 0, tile, seed 1" in out, error
    weights = [
        checkpoint.fingerprint(checkpoint.read(two / f"checkpoints/tile/{run}/epoch_0002.pt")["model"])
        for run in ("tiny", "tiny_seed0", "tiny_seed1")
    ]
    assert weights[0] == weights[1] != weights[2]  # the settings' own seed is 0
    few = ("--categories", "tile", "--checkpoints", "2", "--registrations", "False")
    rows = []
    for seed in range(2):
        assert call("evaluate_checkpoints", *few, "--set", f"data.run_name=tiny_seed{seed}")[0] == 0
        rows += rows_of(two / f"results/tiny_seed{seed}/summary.csv")
    status, out, error = call("check_best_model")
    assert status == 0, error
    assert out.splitlines()[-1] == f"report: {two / 'results/tiny/seeds.md'}"
    values = [float(row["pixel_ap"]) for row in rows if row["threshold"] == "max"]
    assert len(values) == 2 and f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" in out
    assert "mean and standard deviation over seeds 0, 1" in out


def test_mistakes(two, call, monkeypatch):
    checked(call("train_all", "--ray", "127.0.0.1:1"), ["--ray 127.0.0.1:1: no Ray there"])
    wanted = ["--gpus_per_job 4", "no node of the cluster has more than"]
    checked(call("train_all", "--ray", "local", "--gpus_per_job", "4"), wanted)
    for flags, words in (
        (["--ray", "local", "--gpus_per_job", "1.5"], ["--gpus_per_job 1.5"]),
        (["--ray", "local", "--cpus_per_job", "-1"], ["--cpus_per_job -1"]),
        (["--ray", "local", "--max_retries", "-2"], ["--max_retries -2"]),
        (["--ray", "ray://10.0.0.1:10001"], ["--ray auto"]),
        (["--seeds", "-1"], ["--seeds -1"]),
        (["--set", "train.device=cuda:7"], ["train.device = cuda:7"]),
    ):
        checked(call("train_all", *flags), words)
    monkeypatch.setitem(sys.modules, "ray", None)
    checked(call("train_all", "--ray", "local"), ["Ray is not installed", "requirements-cluster.txt"])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for program in ("train_all", "evaluate_checkpoints", "check_best_model"):
        checked(call(program), ["torchrun", "main.py"])
