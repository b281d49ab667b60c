"""A tiny dataset in MVTec AD form, and ways to call the program on it."""

import csv
import functools
import importlib
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from inference import detect as inference
from runtime import cli as command_line
from runtime.device import setup
from training import validation

setup()
validation.SAMPLES = 20  # of val_ap: a tenth of what users get, whose time would be half of the suite's
DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parent.parent


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return path


def make_dataset(root: Path, category: str = "tile", n_train: int = 6, n_good: int = 3, n_bad: int = 3) -> Path:
    """Noisy gray pictures of 48 x 40 pixels; the defect `spot` is a bright square with its mask."""
    rng = np.random.default_rng(0)
    folder = root / "mvtec" / category

    def nominal() -> np.ndarray:
        return rng.integers(90, 110, (40, 48, 3), dtype=np.uint8)

    for i in range(n_train):
        write(folder / f"train/good/{i:03}.png", nominal())
    for i in range(n_good):
        write(folder / f"test/good/{i:03}.png", nominal())
    for i in range(n_bad):
        image, mask = nominal(), np.zeros((40, 48), np.uint8)
        image[10:24, 12 : 26 + i] = 240
        mask[10:24, 12 : 26 + i] = 255
        write(folder / f"test/spot/{i:03}.png", image)
        write(folder / f"ground_truth/spot/{i:03}_mask.png", mask)
    for i in range(3):
        write(root / f"textures/kind/{i}.jpg", rng.integers(0, 256, (50, 60, 3), dtype=np.uint8))
    return root


def main_py(*arguments, cwd):
    command = [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


SETTINGS = """\
# a comment to keep
data:
  data_path: {root}/mvtec
  category: tile  # which one
  anomaly_source_path: {root}/textures
  checkpoint_path: {root}/checkpoints
  results_path: {root}/results
  run_name: tiny
  img_size: 32
  test_batch_size: 4
  val_split: 0.34
  num_workers: 0
model: {{base_width: 4, base_channels: 4}}
train: {{epochs: 2, batch_size: 2, learning_rate: 1e-3, precision: fp32, device: cpu, visualize_every: 1, save_from: 1,
        save_every: 1}}
metrics: {{auroc: false, pr: false, pro: false, iou: false}}  # drawing takes its time; DRAWN asks for them
"""
DRAWN = [word for kind in ("auroc", "pr", "pro", "iou") for word in ("--set", f"metrics.{kind}=true")]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """Folder with a tiny dataset, and settings for it in config.yaml."""
    make_dataset(tmp_path)
    (tmp_path / "config.yaml").write_text(SETTINGS.format(root=tmp_path.as_posix()))
    return tmp_path


@pytest.fixture
def call(workplace: Path, monkeypatch, capsys):
    """Call a program with these arguments, in this process: exit status, standard output, standard error."""

    def call_program(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--config", str(workplace / "config.yaml"), *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            command_line.run(importlib.import_module(name).main)
        captured = capsys.readouterr()
        return exit_.value.code, captured.out, captured.err

    return call_program


@pytest.fixture
def cli(call):
    """Call main.py likewise."""
    return functools.partial(call, "main")


@pytest.fixture
def undrawn(monkeypatch):
    """Curves of a batch are empty files: each takes half a second to draw."""
    monkeypatch.setattr("reporting.curves.batch_curves", lambda path, *_: path.write_bytes(b""))


STARTED: list[subprocess.Popen] = []


def start_process(command, folder: Path, stderr=subprocess.PIPE, **variables: str) -> subprocess.Popen:
    """A process in a session of its own, with one thread; what a test that fails leaves of it is ended.

    variables: of its environment.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    process = subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, start_new_session=True, **pipes)
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Ends what a test that has failed leaves running."""
    yield
    for process in STARTED:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    STARTED.clear()


def planted_detections(planted: dict, rng: np.random.Generator, separation=lambda model: 0.3):
    """In place of inference.detect.detect: random maps, by `separation` higher inside the masks. Kept in `planted` by
    (title, variant, index)."""

    def detect(model, dataset, config, title, ranks=None):
        shift = separation(model)
        for idx in range(len(dataset)):
            sample = dataset[idx]
            mask, valid, region = (sample[key][0].numpy() > 0 for key in ("mask", "valid", "region"))
            scores = np.clip(rng.normal(0.4 + shift * mask, 0.15), 0, 1).astype(np.float32)
            image = sample["image"].permute(1, 2, 0).numpy()
            found = inference.NetworkOutput(idx, image, image, scores, mask, valid, region)
            planted[title, dataset.variant, idx] = found
            yield found

    return detect


def checked(outcome, words) -> None:
    """A mistake told as it should be: exit status 2, one or two lines, all words in them."""
    status, _, error = outcome
    said = [line for line in error.splitlines() if line.strip() and "|" not in line]  # progress bars aside
    assert status == 2 and "Traceback" not in error, error
    assert said[0].startswith("error: ") and len(said) <= 2, said
    for word in words:
        assert word in "\n".join(said), error


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="session")
def trained_two(tmp_path_factory):
    """Categories tile and wood, trained by train_all.py for two epochs; not to be written to."""
    root = tmp_path_factory.mktemp("two")
    make_dataset(root)
    make_dataset(root, "wood")
    (root / "config.yaml").write_text(SETTINGS.format(root=root.as_posix()))
    command = [sys.executable, str(ROOT / "train_all.py"), "--config", str(root / "config.yaml")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return root, done.stdout


def copy_of(root: Path, to: Path) -> Path:
    """A copy of a workplace, with settings of its own."""
    for name in ("mvtec", "textures", "checkpoints"):
        shutil.copytree(root / name, to / name)
    (to / "config.yaml").write_text((root / "config.yaml").read_text().replace(root.as_posix(), to.as_posix()))
    return to


@pytest.fixture
def two(workplace, trained_two):
    """A workplace of one's own with both categories trained."""
    make_dataset(workplace, "wood")
    shutil.copytree(trained_two[0] / "checkpoints", workplace / "checkpoints")
    return workplace
