"""Each mistake of the table: exit status 2, one to three lines that name the thing and a fix; no file is changed.

The programs run in the test's process, with FAULTS=all each in a process of its own: libraries are then imported after
the mistake was made.
"""

import hashlib
import importlib
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SETTINGS, make_dataset
from faults.mistakes import COMMAND_LINE
from faults.mistakes import SETTINGS as IN_SETTINGS
from faults.mistakes_in_data import DATA
from faults.mistakes_in_files import ENVIRONMENT, FILES
from faults.places import IS_WHOLE
from in_process import run_here
from messages import assert_fix, error_of

from runtime import cli

TABLES = {
    "settings": IN_SETTINGS,
    "command line": COMMAND_LINE,
    "data": DATA,
    "files": FILES,
    "environment": ENVIRONMENT,
}
ROWS = {f"{kind}: {name}": one for kind, rows in TABLES.items() for name, one in rows.items()}
FAST = ("--set", "metrics.visualisation=none", "--set", "train.visualize=false")  # draw no panels
SECONDS = 20  # a mistake that is not found would, for example, watch a folder for ever


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workplace in which every mode has run, and which each mistake finds as it was."""
    root = tmp_path_factory.mktemp("finished") / "place"
    make_dataset(root)
    (root / "config.yaml").write_text(SETTINGS.format(root="."), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        settings = ("--config", "config.yaml", *FAST)
        run_here("main", *settings, "--train", "--threshold", "--detection")
        run_here("main", *settings, "--predict", "mvtec/tile/test", "--output", "out")
        run_here("evaluate_checkpoints", *settings, "--registrations", "False")
        run_here("check_best_model", *settings)
    marks = (
        "path,mark,verdict\nmvtec/tile/test/good/000.png,nominal,anomalous\nmvtec/tile/test/spot/000.png,anomalous,\n"
    )
    (root / "feedback.csv").write_text(marks, encoding="utf-8")
    shutil.copytree(root, root.with_name("copy"))
    return root


def state_of(folder: Path) -> dict[str, object]:
    """Path below a folder -> digest of a file, target of a link, None for a folder or a pipe."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        found[path.relative_to(folder).as_posix()] = path.readlink() if path.is_symlink() else content
    return found


def _too_long(*_):
    raise TimeoutError(f"no message within {SECONDS} seconds")


def called(program: str, arguments: list[str], capsys) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a program."""
    if IS_WHOLE:
        command = [sys.executable, ROOT / f"{program}.py", *arguments]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=5 * SECONDS)
        return done.returncode, done.stdout, done.stderr
    capsys.readouterr()
    before_alarm = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        with pytest.raises(SystemExit) as exit_, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"{program}.py", *arguments])
            cli.run(importlib.import_module(program).main, is_shared=program == "main")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before_alarm)
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


@pytest.mark.parametrize("name", ROWS)
def test_a_mistake_is_named_with_a_fix_and_changes_no_file(finished, monkeypatch, capsys, name):
    row, folder = ROWS[name], finished
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("copy"), folder, symlinks=True)
    monkeypatch.chdir(folder)
    if row.make:
        row.make(folder)
    for variable, value in (row.environment or {}).items():
        monkeypatch.delenv(variable, False) if value is None else monkeypatch.setenv(variable, value)
    before = state_of(folder)
    program, *arguments = shlex.split(row.command)
    if "--config" not in arguments and program != "make_sample":
        arguments += ["--config", "config.yaml"]
    text = error_of(called(program, arguments, capsys), status=2)
    assert len(text.splitlines()) <= 3 and len(text) <= 1000, text
    missing = [one for one in row.named if one not in text]
    assert not missing, f"{missing} not named in: {text}"
    assert_fix(text)
    after = state_of(folder)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path, "-") != after.get(path, "-"))
    changed = [path for path in changed if not row.leaves or not path.startswith(row.leaves)]
    assert not changed, f"{changed} after: {text}"


def test_the_table_has_all_programs_and_modes():
    commands = " ".join(row.command for row in ROWS.values())
    for word in (
        "main --check",
        "--train",
        "--threshold",
        "--detection",
        "--predict",
        "--export",
        "--watch",
        "--feedback",
        "--recalibrate",
        "--learn",
        "train_all ",
        "evaluate_checkpoints ",
        "check_best_model",
        "make_sample",
    ):
        assert word in commands, word
    assert len(ROWS) >= 120
