"""The programs themselves: --help, and flags for the settings file."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT, main_py
from messages import assert_names, assert_user_error

MODES = ("--train", "--threshold", "--detection")


def test_help_explains_the_modes_and_imports_nothing_heavy(tmp_path):
    command = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"torch", "cv2", "numpy", "pydantic", "yaml", "matplotlib"}
    assert_names(result.stdout, *MODES, "--config", "--set", "python main.py --train True")


@pytest.mark.parametrize("flag", ["-cfg", "--config"])
def test_both_flags_for_the_settings_file(workplace, flag):
    (workplace / "other.yaml").write_text("data: {category: '12'}")
    done = main_py("--train", flag, workplace / "other.yaml", cwd=workplace)
    assert_user_error((done.returncode, done.stdout, done.stderr), "12/train/good")


@pytest.mark.parametrize("program", ["train_all", "evaluate_checkpoints", "check_best_model"])
def test_help_of_the_batch_programs_has_an_example(call, program):
    status, out, _ = call(program, "--help")
    assert status == 0
    assert_names(out, "--config", "--set", f"python {program}.py")


@pytest.mark.parametrize("name", ["main", "train_all", "evaluate_checkpoints", "check_best_model", "make_sample"])
def test_the_version_is_that_of_pyproject(call, name):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(\d+\.\d+\.\d+)"$', text, re.MULTILINE)[1]
    status, out, _ = call(name, "--version")
    assert status == 0 and out.split()[-1] == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["main", "train_all", "evaluate_checkpoints", "check_best_model", "make_sample"])
def test_programs_find_the_project_where_python_leaves_out_their_folder(tmp_path, name):
    """As python -P, -I and PYTHONSAFEPATH=1 do."""
    command = [sys.executable, "-I", ROOT / f"{name}.py", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
