"""engine/ray_jobs.py, --ray: concurrent jobs, a node that fails, interrupts, and user errors."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace

import pytest
from conftest import ROOT, SETTINGS, make_dataset, rows_of, start_process
from messages import assert_fix, assert_line, assert_names, assert_user_error, lines_with
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from engine import ray_jobs
from inference import checkpoint
from runtime.files import run_lock

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are other ones there")
NAMES = ("tile", "wood", "felt")
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


def test_jobs_of_a_failed_node_resume_from_their_saved_states(tmp_path, ray_cluster, call):
    root = make_place(tmp_path, NAMES)
    node = ray_cluster.add_node(num_cpus=1)
    process, end = start("train_all", root, "--ray", ray_cluster.address), time.monotonic() + 150
    while not saved_on(node, root):
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.2)  # looking starts processes, which take from the trainings' time
    ray_cluster.remove_node(node, allow_graceful=False)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    host = re.escape(socket.gethostname())
    said = [len(lines_with(out, re.compile(rf"^{name}: .*\b{host}\b"))) for name in NAMES]
    assert sorted(said) == [2, 2, 3]  # started and done; once also started again
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
    assert status == 0 and rows_of(root / "results/tiny/summary.csv") == on_ray and len(on_ray) == len(NAMES), error


def test_interrupted_jobs_save_their_state(tmp_path):
    root = make_place(tmp_path, NAMES[:2])
    process = start("train_all", root, "--ray", "local", "--set", "train.epochs=100000")
    end = time.monotonic() + 120
    while not list(root.glob("checkpoints/*/tiny/last.pt")):
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 130 and "Traceback" not in out, out
    first = max(root.glob("checkpoints/*/tiny/last.pt"), key=lambda path: checkpoint.read(path)["epoch"])
    log = (first.parent / "train_log.csv").read_text().splitlines()
    assert checkpoint.read(first)["epoch"] == len(log) - 1  # all that was done
    assert not list(root.glob("checkpoints/*/tiny/.owner.json"))


def test_a_folder_that_a_node_does_not_have_is_named_with_the_node(tmp_path, monkeypatch):
    """Through the function of a job: all nodes of a test have the same disk."""
    events = []
    queue = SimpleNamespace(put=events.append)
    monkeypatch.chdir(tmp_path)
    outcome = ray_jobs._task(queue, "tile", [str(tmp_path), str(tmp_path / "mvtec")], print, ())
    assert_names(outcome.error, tmp_path / "mvtec", socket.gethostname())
    assert_fix(outcome.error)
    assert events == [("tile", socket.gethostname())]


def test_a_second_batch_of_the_same_run_is_a_user_error(two, call):
    with run_lock(two / "checkpoints/.batch_tiny"):
        assert_user_error(call("train_all", "--ray", "local"), ".batch_tiny", "data.run_name")


def test_user_errors_of_a_job_are_reported_and_not_tried_again(tmp_path, ray_cluster):
    root = make_place(tmp_path, NAMES[:1])
    for path in (root / "mvtec/tile/train/good").iterdir():
        path.write_bytes(b"no image")
    status, out = run("train_all", root, "--ray", ray_cluster.address)
    assert status == 1
    assert_line(out, "failed: tile", re.compile(r"tile/train/good/\d+\.png"))
    host = re.escape(socket.gethostname())
    assert len(lines_with(out, re.compile(rf"^tile: .*\b{host}\b"))) == 2  # started once, and failed


def test_addresses_and_resources_that_do_not_exist_are_user_errors(two, call, monkeypatch, ray_cluster):
    assert_user_error(call("train_all", "--ray", "127.0.0.1:1"), "--ray 127.0.0.1:1", "--ray local")
    large = ("train_all", "--ray", ray_cluster.address, "--gpus_per_job", "4")
    assert_user_error(call(*large), "--gpus_per_job 4")
    for flags, names in (
        (["--ray", "local", "--gpus_per_job", "1.5"], ["--gpus_per_job 1.5"]),
        (["--ray", "local", "--cpus_per_job", "-1"], ["--cpus_per_job -1"]),
        (["--ray", "local", "--max_retries", "-2"], ["--max_retries -2"]),
        (["--ray", "ray://10.0.0.1:10001"], ["--ray ray://10.0.0.1:10001", "--ray auto"]),
        (["--seeds", "-1"], ["--seeds -1"]),
        (["--set", "train.device=cuda:7"], ["train.device = cuda:7", "cpu"]),
    ):
        assert_user_error(call("train_all", *flags), *names)
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    assert_user_error(call("train_all", "--ray", "local"), "--ray", "requirements-cluster.txt")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for program in ("train_all", "evaluate_checkpoints", "check_best_model"):
        assert_user_error(call(program), "torchrun", "main.py")
