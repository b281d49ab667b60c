"""Files, locks and what is removed; device, precision and layout."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from data.cache import ArrayCache
from runtime import device as runtime_device
from runtime import files as runtime_files
from runtime.device import memory_format, select_precision, worker_count
from runtime.errors import UserError
from runtime.files import (
    Background,
    atomic_folder,
    remove_leftovers,
    remove_unused,
    run_lock,
    shared_lock,
    write_text,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Ramp(ArrayCache):
    """Arrays of 1,000 bytes whose values are their index."""

    def make(self, index):
        return np.full(1000, index, np.uint8)


def write_many(path, letter, count):
    for _ in range(count):
        write_text(path, letter * 200_000)


def test_two_writers_never_mix(tmp_path):
    """Each has a temporary file of its own; a reader sees one text or the other."""
    path, context = tmp_path / "a.txt", multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, letter, 150)) for letter in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.is_file():
            seen.add(path.read_text())
    assert all(writer.exitcode == 0 for writer in writers)
    assert seen <= {"a" * 200_000, "b" * 200_000} and path.read_text() in ("a" * 200_000, "b" * 200_000)
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "results"
    with atomic_folder(folder) as beside:
        (beside / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(folder) as beside:
        (beside / "b").write_text("new")
        raise RuntimeError
    assert [path.name for path in folder.iterdir()] == ["a"]
    with atomic_folder(folder) as beside:
        (beside / "b").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["b"] and [path.name for path in tmp_path.iterdir()] == [
        "results"
    ]


def test_two_processes_can_replace_a_folder_at_once(tmp_path, monkeypatch):
    """One puts its own there between the other's two steps: the last one stays, whole."""
    folder, replace, tried = tmp_path / "results", os.replace, []

    def replace_late(source, target):
        if target == folder and not tried:
            tried.append(1)
            folder.mkdir()
            (folder / "theirs").write_text("x")
        replace(source, target)

    monkeypatch.setattr(runtime_files.os, "replace", replace_late)
    with atomic_folder(folder) as beside:
        (beside / "ours").write_text("x")
    assert tried and [path.name for path in folder.iterdir()] == ["ours"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch, is_there):
    folder, replace = tmp_path / "results", os.replace
    if is_there:
        write_many(folder / "old", "a", 1)

    def refuse(source, target):
        if target == folder and (Path(source) / "new").exists():
            raise PermissionError(13, "refused")
        replace(source, target)

    monkeypatch.setattr(runtime_files.os, "replace", refuse)
    with pytest.raises(PermissionError, match="refused"), atomic_folder(folder) as beside:
        (beside / "new").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == (["results"] if is_there else [])


KILLED = """
import os, signal, sys, pathlib
sys.path.insert(0, sys.argv[1])
from runtime.files import atomic_write, atomic_folder
folder = pathlib.Path(sys.argv[2])
with atomic_write(folder / "a.pt") as beside, atomic_folder(folder / "r"):
    beside.write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def test_what_killed_processes_leave_is_removed_and_what_others_write_is_not(tmp_path):
    command = [sys.executable, "-c", KILLED, str(ROOT), str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert len(parts) == 2 and all(".part" in name for name in parts)
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == parts  # in use
    process.kill()
    process.wait()
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_kept_arrays_have_a_bounded_total_and_stay_while_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr("data.cache.TOTAL", 12_000)
    first = Ramp(tmp_path, "first", "arrays", 4, (1000,))
    Ramp(tmp_path, "second", "arrays", 4, (1000,))  # used by nobody any more
    os.utime(tmp_path / "second.npy", ns=(10**18, 10**18))
    os.utime(tmp_path / "first.npy", ns=(1, 1))  # the longest unused, but in use
    third = Ramp(tmp_path, "third", "arrays", 4, (1000,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.npy", "third.npy"]
    assert [int(one[0]) for one in first] == [int(one[0]) for one in third] == [0, 1, 2, 3]


def test_background_work_is_bounded_by_bytes(monkeypatch):
    monkeypatch.setattr(runtime_files, "PENDING", 10_000)
    go, done = threading.Event(), []
    background = Background()
    background.do(lambda array: go.wait(10), np.zeros(6_000, np.uint8))
    feeder = threading.Thread(
        target=lambda: [background.do(done.append, np.zeros(6_000, np.uint8)), done.append("free")]
    )
    feeder.start()
    feeder.join(0.3)
    assert feeder.is_alive() and "free" not in map(str, done)  # 12,000 bytes would wait
    go.set()
    feeder.join()
    background.wait()
    assert len(done) == 2


def test_owning_removes_a_folder_that_nothing_came_of(tmp_path):
    with pytest.raises(UserError), run_lock(tmp_path / "run"):
        raise UserError("nothing")
    assert not (tmp_path / "run").exists()
    with run_lock(tmp_path / "run"):
        (tmp_path / "run/a").write_text("x")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "a"]


def test_float32_has_all_its_digits(monkeypatch):
    """cuDNN's TF32 is on by default, also where float32 is asked for."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert select_precision("fp32", CUDA) == torch.float32 and not torch.backends.cudnn.allow_tf32
    assert select_precision("auto", CUDA) == torch.bfloat16 and torch.backends.cudnn.allow_tf32


def test_layout_is_what_was_measured_to_be_faster():
    """On CPUs channels_last in both precisions; on CUDA where the tensor cores want it."""
    last, plain = torch.channels_last, torch.contiguous_format
    assert memory_format(CPU, torch.float32) == memory_format(CPU, torch.bfloat16) == last
    assert memory_format(CUDA, torch.bfloat16) == last and memory_format(CUDA, torch.float32) == plain


def test_few_batches_are_read_without_processes_on_a_cpu_only(monkeypatch):
    monkeypatch.setattr(runtime_device, "core_count", lambda: 16)
    assert worker_count("auto", CPU, batches=4) == 0 and worker_count("auto", CPU, batches=400) == 8
    assert worker_count("auto", CUDA, batches=4) == 8 and worker_count(3, CUDA, batches=4) == 3


def test_a_mark_ends_with_its_process(tmp_path):
    (tmp_path / "a").write_text("x")
    process = multiprocessing.get_context("fork").Process(target=lambda: [shared_lock(tmp_path / "a"), time.sleep(60)])
    with shared_lock(tmp_path / "a"):
        assert not remove_unused(tmp_path / "a")
        process.start()
    process.kill()
    process.join()
    assert remove_unused(tmp_path / "a") and not (tmp_path / "a").exists()


def test_a_program_does_not_look_through_all_objects_for_seconds(tmp_path):
    code = f"""
import atexit, gc, runpy, sys
atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 1000))  # called last of all
sys.path.insert(0, {str(ROOT)!r})
sys.argv = ["main.py", "--config", "none.yaml", "--check"]
runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.splitlines()[-1] == "10000 True"
