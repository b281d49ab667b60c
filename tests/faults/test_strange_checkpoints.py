"""Checkpoints that a stranger has changed: refused or read, and no pickled code runs, wherever a file is loaded.

50; 10,000 with `make faults`.
"""

import io
import itertools
import os
import pickle
import shutil
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.places import IS_WHOLE
from faults.strangers import SETTING_FILES, make_place, mutated, problems_of
from torch.utils._pytree import tree_map

from config import Config
from config_file import load_config
from inference import checkpoint
from inference.fingerprint import CHECKSUM, checksum
from runtime import cli
from runtime.errors import UserError
from training import progress
from training import state as training_state

FILES = 10_000 if IS_WHOLE else 50
PROCESSES = 4
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("strangers") / "place")


RUN = "checkpoints/tile/tiny"
ODD: list[Callable[[], object]] = [
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 2**70,
    lambda: 10**5000,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: "",
    lambda: "../../../out of it",
    lambda: "\0\ud800",
    lambda: b"x",
    lambda: [],
    lambda: {},
    lambda: {1: {2: [3]}},
    lambda: [["a"], ["b"]],
    lambda: (),
    lambda: {"a", "b"},
    lambda: torch.zeros(()),
    lambda: torch.zeros(0),
    lambda: torch.full((3, 3), float("nan")),
    lambda: torch.zeros(3, dtype=torch.complex64),
    lambda: torch.zeros(3, dtype=torch.bool),
    lambda: torch.eye(3).to_sparse(),
    lambda: torch.eye(3).to_sparse_csr(),
    lambda: torch.zeros(3, device="meta"),
    lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.quint8),
    lambda: torch.zeros(1).expand(2**36),
    lambda: torch.zeros(1, dtype=torch.uint8).expand(2**20, 2**20),
    lambda: torch.zeros(4, 1, 3, 3, requires_grad=True),
    lambda: torch.nn.Parameter(torch.zeros(2)),
]


def _changed(content: object, rng: np.random.Generator) -> object:
    """A checkpoint's content with an entry, at any depth, replaced, removed or added."""
    path = [content]
    while isinstance(path[-1], (dict, list)) and len(path[-1]) and (len(path) == 1 or rng.random() < 0.8):
        inside = path[-1]
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        key = keys[int(rng.integers(len(keys)))]
        if not isinstance(inside[key], (dict, list)) or rng.random() < 0.3:
            break
        path.append(inside[key])
    inside, odd = path[-1], ODD[int(rng.integers(len(ODD)))]()
    if isinstance(inside, dict) and inside:
        key = list(inside)[int(rng.integers(len(inside)))]
        kind = rng.integers(4)
        if kind == 0:
            del inside[key]
        elif kind == 1:
            inside["odd" if rng.random() < 0.5 else 7] = odd
        else:
            inside[key] = odd
    elif isinstance(inside, list):
        inside.append(odd)
    return content


def _with_other_pickle(data: bytes, rng: np.random.Generator) -> bytes:
    """A checkpoint's archive with changes in its pickle alone."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, mutated(content, rng) if name.endswith("data.pkl") else content)
    return stream.getvalue()


@cache
def _content(data: bytes) -> dict:
    content = torch.load(io.BytesIO(data), weights_only=True)
    del content["checksum"]
    return content


def file_of(real: list[bytes], number: int) -> bytes:
    rng = np.random.default_rng(number)
    data = real[number % len(real)]
    kind = number // len(real) % 4
    if kind == 0:
        return mutated(data, rng)
    if kind == 1:
        return _with_other_pickle(data, rng)
    content = tree_map(lambda one: one, _content(data))  # other containers
    if rng.random() < 0.5:
        content["checksum"] = f"{CHECKSUM} 0"
    for _ in range(int(rng.integers(1, 3))):
        _changed(content, rng)
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=kind == 2)
    return stream.getvalue()


def as_metadata(config: Config, path: Path) -> None:
    checkpoint.for_new_images(config)
    checkpoint.load_metadata(path).assets_for(config)


def as_weights(config: Config, path: Path) -> None:
    checkpoint.load(config).assets_for(config)


def as_state(config: Config, path: Path) -> None:
    saved = training_state.SavedState.read(path)
    training_state.TrainingState(config, "", saved.source).resume(saved)


READERS = (as_metadata, as_weights, as_state)  # a second for one of them; torch takes 0.1 s for a sound file


def read(config: Config, path: Path, data: bytes) -> None:
    """What the program does with a checkpoint, or a state to resume from; which of them follows from the data."""
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        READERS[zlib.crc32(data) % len(READERS)](config, path)


def _within_epoch(data: bytes) -> bytes:
    """A state with averaged weights, interrupted within an epoch."""
    sample = {name: np.zeros((2, count, 4, 4), np.float32) for name, count in progress.CHANNELS.items()}
    content = _content(data)
    content = content | {"raw_model": content["model"], "averaged_steps": 3}
    content |= {"progress": progress.Progress(step=1, seconds=1.0, count=2, sample=sample).to_stored()}
    stream = io.BytesIO()
    torch.save(content | {"checksum": checksum(content)}, stream)
    return stream.getvalue()


@pytest.mark.parametrize("part", range(PROCESSES))
def test_changed_checkpoints_are_read_or_refused(trained, tmp_path, part):
    path = tmp_path / "last.pt"
    real = [(trained / RUN / name).read_bytes() for name in ("last.pt", "epoch_0001.pt")]
    real.append(_within_epoch(real[0]))
    sets = [f"data.load_epoch={path}"]
    config = load_config([trained / "config.yaml", trained / "tiny.yaml"], sets)
    for reader, data in itertools.product(READERS, real):  # what they import takes seconds
        path.write_bytes(data)
        with suppress(UserError):  # not a state
            reader(config, path)
    numbers = range(part * FILES // PROCESSES, (part + 1) * FILES // PROCESSES)
    assert problems_of(partial(read, config, path), partial(file_of, real), numbers) == []


def _endless() -> dict:
    found: dict = {}
    found["itself"] = found
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"data": torch.zeros(1).expand(2**36)}},
        {"settings": {"data": torch.zeros(2, 2)}},
        {"odd": 10**5000, "checksum": f"{CHECKSUM} 0"},
        {"odd": torch.eye(3).to_sparse(), "checksum": f"{CHECKSUM} 0"},
        {"odd": torch.zeros(3, device="meta"), "checksum": f"{CHECKSUM} 0"},
        {"odd": _endless()},
        {"provenance": torch.zeros(2)},
        {"progress": torch.zeros(2)},
        {"optimizer": torch.zeros(2)},
        {"averaged_steps": float("inf")},
    ],
    ids=[
        "large_view",
        "as_settings",
        "large_integer",
        "sparse",
        "meta",
        "endless",
        "provenance",
        "progress",
        "optimizer",
        "steps",
    ],
)
def test_values_that_no_checkpoint_has_are_refused(trained, tmp_path, change):
    path = tmp_path / "last.pt"
    torch.save(_content((trained / RUN / "last.pt").read_bytes()) | change, path)
    config = load_config([trained / "config.yaml", trained / "tiny.yaml"], [f"data.load_epoch={path}"])
    for reader in READERS:
        with pytest.raises(UserError, match=r"last\.pt"):
            reader(config, path)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "1"},
        {"count": -1},
        {"losses": {"l2": 0.0}},
        {"losses": None},
        {"sample": {"image": torch.zeros(2, 3, 4, 4)}},
        {"sample": {"image": torch.zeros(1, requires_grad=True)}},
        {"odd": 1},
    ],
    ids=str,
)
def test_a_state_with_another_progress_is_refused(trained, tmp_path, change):
    path = tmp_path / "last.pt"
    data = (trained / RUN / "last.pt").read_bytes()
    path.write_bytes(_within_epoch(data))
    assert training_state.SavedState.read(path).progress.step == 1
    content = torch.load(path, weights_only=True)
    del content["checksum"]
    content["progress"] |= change
    torch.save(content, path)
    with pytest.raises(UserError, match="not a state to resume from"):
        training_state.SavedState.read(path)


class Planted:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker: Path):
        self._marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self._marker,)


def _array_file(planted: Planted, archive: bool) -> bytes:
    stream, array = io.BytesIO(), np.array([planted], dtype=object)
    np.savez(stream, recall=array) if archive else np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def _saved(planted: Planted, is_zip: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"model": {"a": planted}, "epoch": 1}, stream, _use_new_zipfile_serialization=is_zip)
    return stream.getvalue()


PLANTED: dict[str, Callable[[Planted], bytes]] = {
    "pickle": pickle.dumps,
    "old pickle": lambda planted: pickle.dumps(planted, protocol=0),
    "archive of torch": lambda planted: _saved(planted, True),
    "old file of torch": lambda planted: _saved(planted, False),
    "array of objects": lambda planted: _array_file(planted, False),
    "archive of arrays": lambda planted: _array_file(planted, True),
}
COMMANDS = [
    ("main", "--threshold"),
    ("main", "--detection"),
    ("main", "--train", "--set", "train.epochs=2"),
    ("main", "--train", "--set", "data.run_name=new", "--set", f"train.start_from={RUN}/epoch_0001.pt"),
    ("main", "--predict", "mvtec/tile/test", "--output", "new"),
    ("main", "--predict", "mvtec/tile/test", "--output", "out", "--resume"),
    ("main", "--threshold", "--nominal", "mvtec/tile/test/good", "--set", f"data.load_epoch={RUN}/epoch_0001.pt"),
    ("main", "--detection", "--set", "data.load_epoch=weights.pckl"),
    ("main", "--detection", "--set", "data.load_epoch=weights_REC_MODEL_1.pth"),
    ("main", "--feedback", "feedback.csv", "--recalibrate", "--learn"),
    ("main", "--export", "onnx"),
    ("evaluate_checkpoints", "--force", "--registrations", "False"),
    ("check_best_model",),
]
PAIR = ("weights.pckl", "weights_seg.pckl", "weights_REC_MODEL_1.pth", "weights_SEG_MODEL_1.pth")


@pytest.mark.parametrize("kind", PLANTED if IS_WHOLE else ("archive of torch", "array of objects"))
def test_no_planted_code_runs(trained, tmp_path, monkeypatch, capsys, kind):
    """In place of every file that is not text; the programs end with a message, or go on without the file."""
    shutil.copytree(trained, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    settings = Path("config.yaml")
    settings.write_text(settings.read_text().replace(trained.as_posix(), "."), encoding="utf-8")
    Path("feedback.csv").write_text("path,mark,verdict\nmvtec/tile/test/good/000.png,nominal,anomalous\n")
    marker = tmp_path / "code ran"
    data = PLANTED[kind](Planted(marker))
    places = [path for path in Path().rglob("*") if path.suffix in (".pt", ".npy", ".npz")] + list(map(Path, PAIR))
    assert {path.suffix for path in places} == {".pt", ".npy", ".npz", ".pckl", ".pth"}
    for command in COMMANDS:
        for path in places:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        monkeypatch.setattr(sys, "argv", [f"{command[0]}.py", *SETTING_FILES, *command[1:]])
        with pytest.raises(SystemExit) as exit_:
            cli.run(__import__(command[0]).main)
        assert not marker.exists(), command
        error = capsys.readouterr().err
        assert exit_.value.code in (0, 1, 2) and "Traceback" not in error, (command, error)


def test_planted_code_would_run_in_a_plain_unpickler(tmp_path):
    """The files of the test above do what they are to do."""
    for kind, make in PLANTED.items():
        marker = tmp_path / kind
        data = io.BytesIO(make(Planted(marker)))
        if "torch" in kind:
            torch.load(data, weights_only=False)
        elif "array" in kind:
            found = np.load(data, allow_pickle=True)
            found["recall"] if "archive" in kind else None
        else:
            pickle.load(data)
        assert marker.is_dir(), kind
