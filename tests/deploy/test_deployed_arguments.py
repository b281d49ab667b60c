"""deploy/: what the programs need and are given, without a model."""

import importlib.util
import json
import math
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT


def module_of(name):
    spec = importlib.util.spec_from_file_location(f"deployed_{name}", ROOT / f"deploy/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("missing", ["cv2", "numpy"])
def test_a_missing_package_is_not_taken_for_an_anomalous_image(tmp_path, missing):
    shutil.copy(ROOT / "deploy/detect.py", tmp_path)
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('No module named {missing}')")
    done = subprocess.run([sys.executable, "detect.py", "a.xml", "b.png"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "pip install" in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("wrong", [math.nan, "0.5", True, np.float32("nan"), [0.5]], ids=repr)
def test_a_threshold_must_be_a_number(wrong):
    detector = object.__new__(module_of("detect").Detector)
    detector.metadata = {"threshold_type": "max", "image_threshold": 0.2, "pixel_threshold": None}
    for key, word in (("image_threshold", "threshold"), ("pixel_threshold", "pixel_threshold")):
        with pytest.raises(ValueError, match=f"^{word}: .* is not a number"):
            detector._threshold(key, wrong)
    assert detector._threshold("image_threshold", None) == 0.2
    assert detector._threshold("pixel_threshold", None) == math.inf
    assert [detector._threshold("image_threshold", one) for one in (0, np.float32(0.5))] == [0, 0.5]


def test_a_threshold_that_no_score_exceeds_is_null_in_the_servers_answer():
    service = object.__new__(module_of("serve").Service)
    found = SimpleNamespace(score=0.5, verdict="nominal", regions=[])
    service._read, service._white = (lambda *_, **__: None), None
    service._detector = type("Model", (), {"threshold": math.inf, "__call__": lambda *_: found})()
    answer = json.dumps(service._answer(b""), allow_nan=False)
    assert json.loads(answer) == {"score": 0.5, "verdict": "nominal", "threshold": None, "regions": []}


@pytest.mark.parametrize("name", ["model.json", "model.bin", "photo.png"])
def test_another_file_is_not_given_to_the_runtimes(tmp_path, name):
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match=rf"{name}: neither \.onnx nor \.xml$"):
        module_of("detect").Detector(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--port", "99999999"], "port"),
        (["--replicas", "0"], "--replicas"),
        (["--queue", "-1"], "--queue"),
        (["--port", "PORT"], "address already in use"),
        (["--host", "no-such.invalid"], "error"),
    ],
)
def test_a_server_that_cannot_start_says_why(monkeypatch, capsys, arguments, names):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = [port if word == "PORT" else word for word in arguments]
        monkeypatch.setattr(sys, "argv", ["serve.py", "none.xml", *words])
        with pytest.raises(SystemExit) as exit_:
            module_of("serve").main()
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and names in error.lower() and "none.xml" not in error
