"""runtime/files.py: files and folders that are replaced, locks, leftovers, writing in the background."""

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, start_process

from runtime import files
from runtime import files as runtime_files
from runtime.csv_file import append_csv, read_csv, write_csv
from runtime.errors import UserError
from runtime.files import (
    Background,
    atomic_folder,
    atomic_write,
    fitting,
    remove_leftovers,
    remove_unused,
    run_lock,
    shared_lock,
    write_text,
)


def write_many(path, letter, count):
    for _ in range(count):
        write_text(path, letter * 200_000)


WRITES = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from runtime.files import write_text
for _ in range(150):
    write_text(pathlib.Path(sys.argv[2]), sys.argv[3] * 200_000)
"""


def test_a_file_of_two_writers_is_always_one_of_theirs(tmp_path):
    """Each has a temporary file of its own; a reader sees one text or the other."""
    path = tmp_path / "a.txt"
    writers = [start_process([sys.executable, "-c", WRITES, ROOT, path, letter], tmp_path) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.is_file():
            seen.add(path.read_text())
        time.sleep(0.001)
    assert all(writer.returncode == 0 for writer in writers)
    assert seen <= {"a" * 200_000, "b" * 200_000} and path.read_text() in ("a" * 200_000, "b" * 200_000)
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_completely_or_not_at_all(tmp_path):
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
    """One puts its folder in place between the two steps of the other: the last one stays, complete."""
    folder, replace, tried = tmp_path / "results", os.replace, []

    def replace_late(source, target):
        if target == folder and not tried:
            tried.append(1)
            folder.mkdir()
            (folder / "theirs").write_text("x")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_late)
    with atomic_folder(folder) as beside:
        (beside / "ours").write_text("x")
    assert tried and [path.name for path in folder.iterdir()] == ["ours"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_that_cannot_be_replaced_keeps_the_old_one(tmp_path, monkeypatch, is_there):
    folder, replace = tmp_path / "results", os.replace
    monkeypatch.setattr(files, "_exchange", lambda *_: False)  # as on systems that cannot exchange folders
    if is_there:
        write_many(folder / "old", "a", 1)

    def refuse(source, target):
        if target == folder and (Path(source) / "new").exists():
            raise PermissionError(13, "refused")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match="refused"), atomic_folder(folder) as beside:
        (beside / "new").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == (["results"] if is_there else [])


ENDS = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[1])
from runtime import files
folder, replace, exchanges = pathlib.Path(sys.argv[2]), os.replace, sys.argv[3] == "True"
def end(source, target):
    if target == folder:
        os._exit(9)  # as if killed with one of the two renames done
    replace(source, target)
os.replace = end
if not exchanges:
    files._exchange = lambda *_: False
with files.atomic_folder(folder) as beside:
    (beside / "new").write_text("x")
"""


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_not_lost_where_its_replacement_is_interrupted(tmp_path, exchanges):
    """Where two folders can be exchanged there is no moment without one; elsewhere the old one is found again."""
    folder = tmp_path / "results"
    write_many(folder / "old", "a", 1)
    command = [sys.executable, "-c", ENDS, str(ROOT), str(folder), str(exchanges)]
    status = subprocess.run(command, timeout=60).returncode
    if exchanges and sys.platform == "linux":
        assert status == 0 and [path.name for path in folder.iterdir()] == ["new"]
        return
    assert status == 9 and not folder.exists()
    with pytest.raises(RuntimeError), files.atomic_folder(folder):
        raise RuntimeError
    assert [path.name for path in folder.iterdir()] == ["old"]
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


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


def test_leftovers_of_killed_processes_are_removed_and_files_in_use_are_not(tmp_path):
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


def test_background_work_is_bounded_by_bytes(monkeypatch):
    monkeypatch.setattr(runtime_files, "PENDING", 10_000)  # the real number of bytes would fill the memory
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


def test_an_empty_run_folder_is_removed_after_an_error(tmp_path):
    with pytest.raises(UserError), run_lock(tmp_path / "run"):
        raise UserError("subject", "problem", "fix")
    assert not (tmp_path / "run").exists()
    with run_lock(tmp_path / "run"):
        (tmp_path / "run/a").write_text("x")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "a"]


def test_a_lock_left_by_a_container_ends_with_it(tmp_path, monkeypatch):
    """Its host name differs after each start. On another machine its owner touches a file while it runs."""
    folder = tmp_path / "run"
    owner = folder / ".owner.json"
    folder.mkdir()
    with run_lock(folder):
        content = json.loads(owner.read_text())
        left = json.dumps(content | {"host": "container-1"})
    owner.write_text(left)
    with run_lock(folder):  # the same machine
        pass
    owner.write_text(json.dumps(json.loads(left) | {"boot": "of another machine"}))
    with pytest.raises(UserError, match="container-1") as caught, run_lock(folder):
        pass
    assert str(owner) in caught.value.fix
    os.utime(owner, (time.time() - 1000,) * 2)
    with run_lock(folder):
        assert json.loads(owner.read_text()) == content
    monkeypatch.setattr(files, "TOUCH_SECONDS", 0.05)
    with run_lock(folder):
        os.utime(owner, (0, 0))
        time.sleep(0.3)
        assert owner.stat().st_mtime > 1000


def test_a_shared_lock_ends_with_its_process(tmp_path):
    (tmp_path / "a").write_text("x")
    process = multiprocessing.get_context("fork").Process(target=lambda: [shared_lock(tmp_path / "a"), time.sleep(60)])
    with shared_lock(tmp_path / "a"):
        assert not remove_unused(tmp_path / "a")
        process.start()
    process.kill()
    process.join()
    assert remove_unused(tmp_path / "a") and not (tmp_path / "a").exists()


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_spreadsheets_run_no_cell_and_readers_get_the_names_as_they_were(tmp_path):
    names = ["=1+1.png", "+a", "-a", "@a", "\ta", "'a", "'=a", "''", "a=b", "-0.5", "ä", ""]
    write_csv(tmp_path / "a.csv", [("path", "score"), *((name, -0.5) for name in names[:6])])
    append_csv(tmp_path / "a.csv", [(name, -0.5) for name in names[6:]])
    lines = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert not [line for line in lines if line.startswith(("=", "+", "@", "-a", "\t"))] and "-0.5,-0.5" in lines
    assert [row["path"] for row in read_csv(tmp_path / "a.csv")] == names


def test_a_row_that_is_written_in_part_is_taken_back(tmp_path):
    path = tmp_path / "a.csv"
    write_csv(path, [("path", "score")])

    def rows():
        yield "a" * 100_000, 1  # more than a buffer
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        append_csv(path, rows())
    append_csv(path, [("b", 2)])
    assert list(read_csv(path)) == [{"path": "b", "score": "2"}]


def test_long_names_are_shortened_and_stay_different(tmp_path):
    names = ["x" * 255, "x" * 254 + "y", "ä" * 127, "short"]
    short = list(map(fitting, [f"folder/{name}" for name in names]))
    assert len(set(short)) == 4 and short[3] == "folder/short"
    for name in short:
        write_text(tmp_path / f"{name}.jpg.png", "written")
        assert (tmp_path / f"{name}.jpg.png").read_text() == "written"


def test_durable_files_are_on_the_drive_before_they_take_their_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda one: (calls.append(Path(os.readlink(f"/proc/self/fd/{one}")).name), fsync(one))
    )
    monkeypatch.setattr(os, "replace", lambda one, other: (calls.append("replace"), replace(one, other)))
    write_text(tmp_path / "plain.txt", "one")
    assert calls == ["replace"]
    calls.clear()
    write_text(tmp_path / "durable.txt", "one", durable=True)
    assert calls[1:] == ["replace", tmp_path.name]
    assert calls[0].startswith(".durable.")


def test_durable_rows_that_do_not_reach_the_drive_are_taken_back(tmp_path, monkeypatch):
    write_csv(tmp_path / "rows.csv", [["a"], [1]])

    def fails(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match=r"rows\.csv"):
        append_csv(tmp_path / "rows.csv", [[2]], durable=True)
    assert (tmp_path / "rows.csv").read_text().split() == ["a", "1"]
