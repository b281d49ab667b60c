"""Every command of README and docs runs, is checked in another way, or is an exception with a reason.

Programs run as they are written, on a tiny dataset in a folder that has the places which the pages name; only sizes are
appended with --set.
"""

import glob
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import layout_fixtures
import pytest
import torch
from conftest import make_dataset
from in_process import train_here
from pages import DOCS, PAGES, ROOT, Block, blocks, fenced

from engine import train_all
from runtime import cli

pytestmark = pytest.mark.skipif(os.name == "nt", reason="commands are those of Linux and macOS")

# What cannot run here: pattern -> why. Patterns are searched for in order, at the command's beginning.
EXCEPTIONS = {
    r"python3? -m venv|source ": "makes the environment that the tests themselves run in",
    r"pip install": "needs a package index",
    r"pip-audit ": "needs a package index and its list of vulnerabilities",
    r"apt install": "needs a package index and its rights",
    r'python -c "from data_loader import fetch_dtd': "downloads 600 MB",
    r"tensorboard ": "a server that runs until it is interrupted",
    r"torchrun ": "several processes, each of which takes seconds to start; tests/training runs them",
    r"python (train_all|evaluate_checkpoints)\.py --ray local": "takes half a minute; test_ray_jobs.py runs it",
    r"python (train_all|evaluate_checkpoints)\.py --ray ": "needs a cluster",
    r"ray start ": "needs a cluster",
    r"srun ": "needs SLURM",
    r"python train_all\.py --seeds": "a process for each seed; tests/reporting/test_seeds.py runs it",
    r"cmake |\./build/detect ": "needs OpenCV's headers and a minute to build; tests/engine/test_export.py does it",
    r"docker ": "needs its daemon and images from a registry",
    r"python deploy/serve\.py |curl ": "a server that runs until it is interrupted; tests/deploy starts one",
    r"trtexec ": "needs TensorRT and a GPU",
    r"python main\.py --feedback \S+ --learn": "its status depends on the weights; tests/engine/test_learn.py runs it",
    r"python make_sample\.py$": "draws for ten seconds; tests/programs/test_sample.py runs it",
    r"python -m images\.screenshots": "needs the trained sample and Chromium, and writes to images/",
    r"python -m docs\.settings_table": "writes docs/settings.md; test_settings.py compares that file with its text",
}
SIZES = {
    "data.img_size": "32",
    "data.num_workers": "0",
    "model.base_width": "4",
    "model.base_channels": "4",
    "train.epochs": "1",
    "train.batch_size": "2",
    "train.precision": "fp32",
    "train.device": "cpu",
    "train.save_from": "1",
    "metrics.visualisation": "2",
}
SIZES_OF = {  # instead, for such a command
    "data.tile_size=256": {"data.img_size": "[64,96]", "data.tile_size": "32"},
    "datasets/Real-IAD": {"data.img_size": "64"},  # an odd number of images is left to train on
}
NAMES = {"<run_name>_seed0": "draem"}  # for what the reader is to fill in
PROGRAMS = ("main", "train_all", "evaluate_checkpoints", "check_best_model")
WRITES = {"train": "checkpoint", "threshold": "thresholds", "detection": "results", "predict": "predictions"}
WRITES |= {"export": "export", "watch": "predictions", "feedback": "feedback", "recalibrate": "thresholds"}


def reason_of(command: str) -> str | None:
    """Why a command is not run; None where it is."""
    return next((reason for pattern, reason in EXCEPTIONS.items() if re.match(pattern, command)), None)


def to_run() -> list[Block]:
    """Blocks with a command that no earlier block runs."""
    found, seen = [], set()
    for block in blocks():
        commands = tuple(command for command in block.commands if not reason_of(command))
        if set(commands) - seen:
            found.append(Block(block.page, commands))
            seen |= set(commands)
    return found


# Datasets that pages name, made where a command names them.
DATASETS = {
    "datasets/mvtec_loco": layout_fixtures.loco,
    "datasets/MPDD": layout_fixtures.mpdd,
    "datasets/mvtec_ad_2": layout_fixtures.mvtec_ad_2,
    "datasets/mvtec_3d": layout_fixtures.mvtec_3d,
    "datasets/VisA": layout_fixtures.visa,
    "datasets/BTech_Dataset_transformed": layout_fixtures.btad,
    "datasets/DAGM": layout_fixtures.dagm,
    "datasets/Real-IAD": layout_fixtures.real_iad,
    "datasets/parts": layout_fixtures.tables,
    "datasets/line": layout_fixtures.two_folders,
    "datasets/lids": layout_fixtures.coco,
}

# ---- where commands run


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    """A folder like the project's, with datasets, textures and new images."""
    root = tmp_path_factory.mktemp("untrained")
    make_dataset(root / "datasets", "bottle", n_train=10)
    (root / "dtd").mkdir()
    (root / "datasets/textures").rename(root / "dtd/images")
    make_dataset(root / "sample", "flange", n_train=10)
    test_images = root / "datasets/mvtec/bottle/test"
    for name in ("photos", "camera"):
        shutil.copytree(test_images / "spot", root / name)
    shutil.copytree(test_images / "good", root / "station2")
    shutil.copyfile(test_images / "spot/000.png", root / "photo.png")
    marks = [f"{path.relative_to(root)},,nominal," for path in sorted((root / "station2").iterdir())]
    (root / "feedback.csv").write_text("\n".join(["path,verdict,mark,sample", *marks]), encoding="utf-8")
    for name in ("configs", "deploy"):
        shutil.copytree(ROOT / name, root / name)
    return root


@pytest.fixture(scope="module")
def trained(untrained, tmp_path_factory) -> Path:
    """The same with a trained network and its thresholds."""
    root = tmp_path_factory.mktemp("trained") / "place"
    shutil.copytree(untrained, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        call(patch, "python main.py --train True --threshold True")
    return root


def call(patch: pytest.MonkeyPatch, command: str) -> None:
    """Run one of the programs in this process; it must end with 0."""
    words = [file for word in shlex.split(command) for file in (sorted(glob.glob(word)) if "*" in word else [word])]
    program = words[1].removesuffix(".py")
    sizes = SIZES | next((own for text, own in SIZES_OF.items() if text in command), {})
    if "--help" not in words:
        words += [word for key, value in sizes.items() for word in ("--set", f"{key}={value}")]
    patch.setattr(sys, "argv", words[1:])
    patch.setattr(train_all, "_train", train_here)
    with pytest.raises(SystemExit) as exit_:
        cli.run(importlib.import_module(program).main)
    assert exit_.value.code == 0, command


@contextmanager
def interrupted(place: Path) -> Iterator[None]:
    """Interrupts --watch when it has processed what is there."""
    expected, is_over = len(list((place / "camera").iterdir())), threading.Event()

    def interrupt() -> None:
        for _ in range(1200):
            tables = place.glob("results/*/*/*/predictions/camera-*/predictions.csv")
            if any(len(table.read_text(encoding="utf-8").splitlines()) > expected for table in tables):
                break
            if is_over.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        is_over.set()  # a command that has failed is not there to be interrupted
        thread.join()


@contextmanager
def prepared(command: str, place: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command finds in its folder, and what happens while it runs."""
    for name, make in DATASETS.items():
        if f"{name} " in f"{command} " or f"{name}/" in command:
            make(place / name)
    if "KolektorSDD" in command:
        (layout_fixtures.kolektor_sdd2 if "SDD2" in command else layout_fixtures.kolektor_sdd)(place / "datasets")
    if command.startswith("python detect.py"):
        call(patch, "python main.py --export onnx")
        exported, *_ = place.glob("checkpoints/*/*/export/*.onnx")
        shutil.copyfile(exported, place / "bottle_700.onnx")
    with interrupted(place) if "--watch" in command else nullcontext():
        yield


# ---- how they are checked


def check_benchmark(command: str) -> None:
    """A measurement of minutes to hours: its module and its name must exist, and the module must know the flags."""
    words = shlex.split(command)
    folder = ROOT / "benchmarks"
    module = folder / f"{words[words.index('-m') + 1].removeprefix('benchmarks.')}.py"
    assert module.is_file(), command
    source = module.read_text(encoding="utf-8")
    if "common.run(" in source:
        name = words[words.index("-m") + 2]
        assert f'"{name}": bench_{name}' in source, command
    known = source + (folder / "common.py").read_text(encoding="utf-8")
    known += (ROOT / "runtime/cli.py").read_text(encoding="utf-8")
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert f'"{flag}"' in known or f"{flag.removeprefix('--')}=" in known, command


def check_detect(command: str) -> None:
    arguments = [file for word in shlex.split(command)[2:] for file in sorted(glob.glob(word))]
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/detect.py", *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (0, 1) and len(done.stdout.splitlines()) == len(arguments) - 1, done.stderr


def check(command: str, place: Path, patch: pytest.MonkeyPatch, capsys) -> None:
    """Run a command, or what of it can be checked. An unknown kind of command fails."""
    for name, value in NAMES.items():
        command = command.replace(name, value)
    if match := re.fullmatch(r'python -c "(.*)"', command):
        exec(match[1], {})
    elif command.startswith("make "):
        subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, check=True, capture_output=True)
    elif " -m benchmarks." in command:
        check_benchmark(command)
    elif command.startswith("python detect.py "):
        check_detect(command)
    elif command.startswith(tuple(f"python {program}.py" for program in PROGRAMS)):
        capsys.readouterr()
        call(patch, command)
        lines = capsys.readouterr().out.splitlines()
        modes = [word[2:] for word in command.split() if word[2:] in WRITES and word.startswith("--")]
        if command.startswith("python main.py") and modes:
            what, _, path = lines[-1].partition(": ")
            assert what == WRITES[modes[-1]] and (place / path).exists(), lines[-1]
    else:
        pytest.fail(f"neither run nor an exception: {command}")


@pytest.mark.parametrize("block", to_run(), ids=lambda block: f"{block.page}-{block.commands[0][:60]}")
def test_commands(block: Block, untrained, trained, exporter, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.onnx, "export", exporter)
    trains = any("--train" in command or "train_all.py" in command for command in block.commands)
    place = tmp_path / "place"
    shutil.copytree(untrained if trains else trained, place)
    monkeypatch.chdir(place)
    for command in block.commands:
        with prepared(command, place, monkeypatch):
            check(command, place, monkeypatch, capsys)


@pytest.mark.parametrize("page", [page for page in PAGES if fenced(page, "python")], ids=lambda page: page.name)
def test_python(page: Path, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    if page.parent.name == "deploy":
        call(monkeypatch, "python main.py --export openvino")  # in 8 bits it takes a minute
        for file in trained.glob("checkpoints/*/*/export/*_openvino.*"):
            shutil.copyfile(file, trained / f"bottle_60_int8{file.suffix}")
        (trained / "bottle_60_int8.json").unlink()  # of another name
        monkeypatch.syspath_prepend(trained / "deploy")
        capsys.readouterr()
    for text in fenced(page, "python"):
        exec(compile(text, page.name, "exec"), {})
        assert capsys.readouterr().out.strip()


def test_shell_scripts_can_be_parsed():
    for page in DOCS:
        for text in fenced(page, "bash"):
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_no_exception_is_left_over():
    commands = [command for block in blocks() for command in block.commands]
    for pattern in EXCEPTIONS:
        assert any(re.match(pattern, command) for command in commands), pattern
    for command in commands:
        if match := re.match(r"pip install -r (\S+)", command):
            assert (ROOT / match[1]).is_file(), command
