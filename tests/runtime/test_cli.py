"""runtime/cli.py: output, paths, garbage collector; engine/test_error_handling.py has the exit statuses."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT
from messages import raises_user_error

from config_file import load_config
from runtime import cli as command_line
from runtime import device

PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[1])
from runtime.cli import run
def program():
    print("größe 日本")
    print("größe 日本", file=sys.stderr)
    with open("written", "w") as stream:
        os.write(2, b"of a library")  # must not get into the file
        stream.write("content")
    if sys.argv[2:]:
        while True:
            print("x" * 4096, flush=True)
    return 0
run(program)
"""
posix = pytest.mark.skipif(os.name == "nt", reason="of POSIX shells")


def shell(folder, rest, *arguments, **variables):
    """PROGRAM in a shell, followed by `rest`, such as a redirection."""
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    words = " ".join(map(str, (sys.executable, "program.py", ROOT, *arguments)))
    environment = os.environ | variables
    return subprocess.run(["bash", "-c", f"{words} {rest}"], cwd=folder, env=environment, capture_output=True)


@posix
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_characters_that_a_console_lacks_are_escaped(tmp_path, encoding):
    done = shell(tmp_path, "", PYTHONIOENCODING=encoding)
    name = "größe" if encoding == "cp1252" else "gr\\xf6\\xdfe"
    assert done.returncode == 0 and done.stdout.decode(encoding).split() == [name, "\\u65e5\\u672c"]


@posix
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_program_runs_without_standard_streams(tmp_path, closed):
    done = shell(tmp_path, closed)
    assert done.returncode == 0 and (tmp_path / "written").read_text() == "content"
    assert "Traceback" not in done.stderr.decode()


@posix
def test_a_closed_pipe_ends_a_program_quietly(tmp_path):
    done = shell(tmp_path, "endless | head -c 1 >&2; exit ${PIPESTATUS[0]}")
    error = done.stderr.decode().replace("of a library", "").replace("größe 日本", "").split()
    assert done.returncode == 141 and error == ["g"]


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_under_standard_output_is_a_user_error(tmp_path):
    done = shell(tmp_path, "> /dev/full")
    error = done.stderr.decode()
    assert done.returncode == 2 and "error: " in error and "Traceback" not in error and "Exception ignored" not in error


@posix
def test_a_deleted_working_folder_is_a_user_error(tmp_path):
    (tmp_path / "gone").mkdir()
    line = f"cd {tmp_path}/gone && rmdir ../gone && {sys.executable} {ROOT / 'main.py'} --check"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 2 and "error: working folder: it was deleted" in done.stderr, done.stderr


def test_home_and_variables_in_paths_are_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("PARTS", str(tmp_path / "parts"))
    home, parts = tmp_path.as_posix(), (tmp_path / "parts").as_posix()
    assert command_line.path("~/a").as_posix() == f"{home}/a" and command_line.path("${PARTS}/b") == Path(parts, "b")
    values = {"data.data_path": "$PARTS", "data.results_path": "~/results", "data.registration_reference": "~/a.png"}
    values |= {"data.load_epoch": "~/run/epoch_0001.pt", "masking.regions.tile": "$PARTS/region.png"}
    (tmp_path / "c.yaml").write_text("data: {checkpoint_path: ~/checkpoints, anomaly_source_path: $HOME/dtd}")
    config = load_config(tmp_path / "c.yaml", [f"{key}={value}" for key, value in values.items()])
    data = config.data
    assert (data.checkpoint_path, data.anomaly_source_path) == (f"{home}/checkpoints", f"{home}/dtd")
    assert (data.data_path, data.results_path, data.registration_reference) == (
        parts,
        f"{home}/results",
        f"{home}/a.png",
    )
    assert data.load_epoch == f"{home}/run/epoch_0001.pt" and config.masking.regions == {"tile": f"{parts}/region.png"}
    monkeypatch.delenv("PARTS")
    with raises_user_error("data.data_path", "$PARTS"):
        load_config(tmp_path / "c.yaml", ["data.data_path=$PARTS/x"])
    with pytest.raises(argparse.ArgumentTypeError, match="empty path"):
        command_line.path("")
    with pytest.raises(argparse.ArgumentTypeError, match=r"\$PARTS"):
        command_line.path("$PARTS/x")
    (tmp_path / "$PARTS").mkdir()
    assert command_line.path(str(tmp_path / "$PARTS")) == tmp_path / "$PARTS"


def test_patterns_that_the_shell_has_left_are_replaced_by_the_files(tmp_path):
    for name in ("b.png", "a.png", "c.jpg", "[x].png"):
        (tmp_path / name).touch()
    found = command_line.matching([tmp_path / "?.png", tmp_path / "none*.png", tmp_path / "[x].png"])
    assert [path.name for path in found] == ["a.png", "b.png", "none*.png", "[x].png"]


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no shared memory folder")
def test_shared_memory_takes_temporary_files_where_nothing_else_can_be_written(monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    device.setup()
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == "/dev/shm"


def test_the_garbage_collector_runs_rarely_and_not_at_exit(tmp_path):
    code = f"""
import atexit, gc, runpy, sys
atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 1000))  # called last of all
sys.path.insert(0, {str(ROOT)!r})
sys.argv = ["main.py", "--config", "none.yaml", "--check"]
runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.splitlines()[-1] == "10000 True"


def test_a_second_value_of_set_is_told_how_to_be_given(cli):
    status, _, error = cli("--check", "--set", "train.epochs=2", "train.seed=1")
    assert status == 2 and "train.seed=1" in error and "repeat" in error and "--set KEY=VALUE" in error


def test_an_unknown_backend_of_matplotlib_is_not_used(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    backends = []
    with pytest.raises(SystemExit) as exit_:
        command_line.run(lambda: backends.append(os.environ["MPLBACKEND"]) or 0)
    assert exit_.value.code == 0 and backends == ["agg"]


@pytest.mark.parametrize("name", ["TQDM_MININTERVAL", "OPENCV_IO_MAX_IMAGE_PIXELS"])
def test_a_variable_that_a_library_cannot_read_when_it_is_imported_is_named(name):
    command = [sys.executable, str(ROOT / "main.py"), "--check", "--set", "data.data_path=/nowhere"]
    others = {key: value for key, value in os.environ.items() if not key.startswith("TQDM_")}
    done = subprocess.run(command, env=others | {name: "pow(2,40)"}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {name}") and "pow(2,40)" in done.stderr
