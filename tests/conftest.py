"""A tiny dataset in MVTec AD form, and ways to call the program on it."""

import csv
import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from in_process import Fork

from config_file import load_config
from data.mvtec import list_test
from engine import detection, threshold, train
from engine.feedback import comparison
from inference import checkpoint
from model import DRAEM
from runtime import cli as command_line
from runtime.device import setup
from training import validation

setup()
validation.SAMPLES = 20  # of val_ap: with a tenth of the real number the suite takes half the time
comparison.SAMPLES = 20  # of --learn, likewise
pytest_plugins = ["brackets", "cpp_programs", "graphs"]
GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)
    return path


def make_dataset(
    root: Path, category: str = "tile", n_train: int = 6, n_nominal: int = 3, n_anomalous: int = 3
) -> Path:
    """Noisy gray images of 48 x 40 pixels; the anomalous ones of `spot` have a bright square and its mask."""
    rng = np.random.default_rng(0)
    folder = root / "mvtec" / category

    def nominal() -> np.ndarray:
        return rng.integers(90, 110, (40, 48, 3), dtype=np.uint8)

    for i in range(n_train):
        write(folder / f"train/good/{i:03}.png", nominal())
    for i in range(n_nominal):
        write(folder / f"test/good/{i:03}.png", nominal())
    for i in range(n_anomalous):
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
metrics: {{auroc: false, pr: false, pro: false, iou: false}}  # drawing takes seconds; DRAWN switches it on
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
    """Call a program with these arguments, in this process: exit status, standard output, standard error.

    With the settings file of `workplace`, unless the arguments name another.
    """

    def call_program(name: str, *arguments: str) -> tuple[int, str, str]:
        settings = [] if "--config" in arguments else ["--config", str(workplace / "config.yaml")]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *settings, *arguments])
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
def on_forward():
    """Have a function called after each forward pass of DRAEM networks, or of another kind of module.

    f(model, batch, output) -> None, or another output in place of it. By a hook of torch: no code is replaced.
    """
    handles = []

    def register(function, kind=DRAEM):
        def hook(module, inputs, output):
            return function(module, inputs[0], output) if isinstance(module, kind) else None

        handles.append(torch.nn.modules.module.register_module_forward_hook(hook))

    yield register
    for handle in handles:
        handle.remove()


@pytest.fixture
def batch_sizes(on_forward) -> list[int]:
    """Sizes of the batches that go through DRAEM networks."""
    sizes: list[int] = []
    on_forward(lambda model, batch, output: sizes.append(len(batch)))
    return sizes


def image_key(image) -> bytes:
    """A key for an image as networks are given it; image: uint8 or float32 in [0, 1], (3, H, W)."""
    image = torch.as_tensor(image)
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    return (image * 255).round().to(torch.uint8).numpy().tobytes()


def model_key(weights: dict[str, torch.Tensor]) -> float:
    """A key for weights that inference prepares no further: those of the last convolution."""
    return sum(float(value.double().sum()) for key, value in weights.items() if ".decoder_segment.fin_out" in key)


@pytest.fixture
def plant(on_forward):
    """Have networks give anomaly maps of the test's choice: plant(f) with f(model, image float32 (3, H, W)) -> (H, W).

    Returns a dict: (model_key, image_key) -> the map as the program gets it.
    """

    def plant_maps(function) -> dict[tuple[float, bytes], np.ndarray]:
        planted = {}

        def replace_maps(model, batch, output):
            maps = [torch.as_tensor(np.asarray(function(model, image.numpy()), np.float64)) for image in batch]
            logits = torch.stack([1 - torch.stack(maps), torch.stack(maps)], dim=1).clamp(1e-9).log().float()
            for image, found in zip(batch, torch.softmax(logits, dim=1)[:, 1].numpy(), strict=True):
                planted[model_key(model.state_dict()), image_key(image)] = found
            return output[0], logits

        on_forward(replace_maps)
        return planted

    return plant_maps


def noisy_maps(seed: int, separation=lambda model: 0.3):
    """For `plant`: random maps, higher by `separation` where the image is bright, as anomalies of make_dataset are."""
    rng = np.random.default_rng(seed)
    return lambda model, image: np.clip(rng.normal(0.4 + separation(model) * (image[0] > 0.75), 0.15), 0, 1)


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    """Until a condition holds while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.01)


STARTED: list[subprocess.Popen | Fork] = []


def start_process(command, folder: Path, stderr=subprocess.PIPE, **variables: str) -> subprocess.Popen:
    """A process in a session of its own, with one thread; ended after the test where it still runs.

    variables: of its environment.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    process = subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, start_new_session=True, **pipes)
    STARTED.append(process)
    return process


def start_fork(script, arguments, folder: Path, **variables: str) -> Fork:
    """The same of a Python script, in a fork of this process: for what does not depend on how a process starts."""
    process = Fork(script, arguments, folder, **variables)
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def end_processes():
    """Ends processes that a failed test has left running."""
    yield
    for process in STARTED:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    STARTED.clear()


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="session")
def trained_two(tmp_path_factory):
    """Categories tile and wood, trained for two epochs; not to be written to."""
    root = tmp_path_factory.mktemp("two")
    (root / "config.yaml").write_text(SETTINGS.format(root=root.as_posix()))
    for category in ("tile", "wood"):
        make_dataset(root, category)
        train.run(config_of(root, f"data.category={category}"), "")
    return root


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
    shutil.copytree(trained_two / "checkpoints", workplace / "checkpoints")
    return workplace


@pytest.fixture(scope="session")
def detected(trained_two, tmp_path_factory):
    """A workplace with both categories trained, and thresholds and results of tile; not to be written to."""
    root = tmp_path_factory.mktemp("detected")
    config = config_of(copy_of(trained_two, root))
    threshold.run(config)
    detection.run(config)
    return root


@pytest.fixture
def ready(workplace, detected):
    """The same of one's own, and a copy of the run's folder in another place."""
    make_dataset(workplace, "wood")
    for name in ("checkpoints", "results"):
        shutil.copytree(detected / name, workplace / name)
    for path in (one for one in (workplace / "results").rglob("*") if one.suffix in (".json", ".html")):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(detected.as_posix(), workplace.as_posix()), encoding="utf-8")
    shutil.copytree(workplace / "checkpoints/tile/tiny", workplace / "elsewhere/run")
    return workplace


@pytest.fixture
def camera(ready):
    """The same with a folder that images are written to."""
    shutil.copytree(ready / "mvtec/tile/test/good", ready / "camera")
    return ready


RESULT = "results/tiny/tile/checkpoint_2/no_masking"


def metrics_of(workplace, kind="p_quantile"):
    return json.loads((workplace / RESULT / kind / "metrics.json").read_text())


def detect(cli, *arguments):
    status, out, error = cli("--threshold", "--detection", *arguments)
    assert status == 0, error
    return out


def spots(category, notes=None):
    """Masks of the images of test/spot, as their names within the category."""
    found = [image for image in list_test(category, notes) if image.name.startswith("test/spot")]
    return {
        image.name.removeprefix("test/spot/"): [mask.relative_to(category).as_posix() for mask in image.masks]
        for image in found
    }


def config_of(workplace, *overrides):
    return load_config(workplace / "config.yaml", overrides)


def weights(path):
    return checkpoint.read(path)["model"]


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
