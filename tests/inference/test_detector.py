"""inference/detector.py, the Python entrance: images in, verdicts out."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, rows_of, write
from messages import assert_names, raises_user_error
from PIL import Image

from inference.detector import Detector


def test_masking_and_registration_come_from_the_checkpoint(workplace, cli):
    region = np.zeros((40, 48), np.uint8)
    region[:20] = 255
    write(workplace / "region.png", region)
    settings = ("--set", f"masking.regions={{tile: {workplace / 'region.png'}}}", "--set", "metrics.masking=true")
    settings += ("--set", "data.image_registration=true")
    assert cli("--train", "--threshold", "--detection", *settings)[0] == 0
    expected = rows_of(workplace / "results/tiny/tile/checkpoint_2/post_masking_registered/scores.csv")
    shutil.move(workplace / "mvtec", workplace / "images")
    (workplace / "region.png").unlink()
    detector = Detector.load(workplace / "checkpoints/tile/tiny")
    assert detector.technique.name == "post_masking_registered" and detector.thresholds
    for row in expected:
        found = detector(cv2.imread(str(workplace / "images/tile" / row["path"])))
        assert found.score == pytest.approx(float(row["score"]), abs=1e-6)
        assert not found.anomaly_map[:18].any()


def test_the_detector_takes_arrays_of_any_size(ready):
    detector = Detector.load(ready / "elsewhere/run/epoch_0002.pt", device="cpu")
    images = [np.full((70, 33, 3), 100, np.uint8), cv2.imread(str(ready / "mvtec/tile/test/spot/002.png"))]
    both = detector(images)
    assert [one.anomaly_map.shape for one in both] == [(70, 33), (40, 48)]
    assert both[0].anomaly_map.dtype == np.float32 and both[0].mask.dtype == bool
    assert detector(images[1]).score == pytest.approx(both[1].score, abs=1e-6)
    for wrong in (images[0].astype(np.float32), images[0][..., 0], [[1, 2]]):
        with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
            detector(wrong if isinstance(wrong, np.ndarray) else wrong[0])
    with raises_user_error(ready / "elsewhere"):
        Detector.load(ready / "elsewhere")


@pytest.fixture
def detector(two):
    return Detector.load(two / "checkpoints/tile/tiny", device="cpu")


IMAGE = np.full((40, 48, 3), 100, np.uint8)
WRONG = [
    (None, "NoneType", "cv2.imread"),
    (Image.fromarray(IMAGE), "Image", "convert"),
    ("photo.png", "str", "cv2.imread"),
    (7, "int", "cv2.imread"),
    (IMAGE[:0], "(0, 48, 3)", "pixel"),
    (IMAGE[..., 0], "(40, 48)", "COLOR_GRAY2BGR"),
    (IMAGE[None], "(1, 40, 48, 3)", "list"),
    (np.dstack([IMAGE, IMAGE[..., :1]]), "(40, 48, 4)", "alpha"),
    (IMAGE.astype(np.uint16), "uint16", "astype"),
    (IMAGE / 255, "float64", "astype"),
    (torch.from_numpy(IMAGE), "Tensor", "uint8"),
]


def test_what_is_no_image_is_an_error_that_says_what_was_given(detector):
    for wrong, *names in WRONG:
        for given in (wrong, [IMAGE, wrong]):
            with pytest.raises(ValueError, match="uint8") as caught:
                detector(given)
            assert_names(str(caught.value), *names, *(["image 1"] if isinstance(given, list) else []))
    assert detector([]) == [] and len(detector(iter([IMAGE, IMAGE]))) == 2
    assert detector(IMAGE[:, ::-1]).score == detector(np.ascontiguousarray(IMAGE[:, ::-1])).score


def test_a_detector_can_be_pickled(detector, monkeypatch, tmp_path):
    content = pickle.dumps(detector)
    assert len(content) < 100_000  # without the weights
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(content)
    assert again(IMAGE).score == detector(IMAGE).score and again.ckpt.fingerprint == detector.ckpt.fingerprint
    assert again.config == detector.config and again.config.source_of("x") == detector.config.source_of("x")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork there")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_detector_can_be_used_after_a_fork(detector):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.nn.functional.conv2d(torch.ones(8, 16, 64, 64), torch.ones(16, 16, 3, 3))  # starts threads
        score = detector(IMAGE).score
        process = os.fork()
        if process == 0:
            os._exit(0 if detector(IMAGE).score == pytest.approx(score, abs=1e-6) else 1)
    finally:
        torch.set_num_threads(threads)
    end, done = time.monotonic() + 20, (0, 0)
    while not done[0] and time.monotonic() < end:
        done = os.waitpid(process, os.WNOHANG)
        time.sleep(0.01)
    if not done[0]:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert done == (process, 0)


def test_a_program_with_modules_of_the_same_names_gets_an_error_that_names_them(tmp_path):
    (tmp_path / "config.py").write_text("PORT = 1")
    (tmp_path / "errors.py").write_text("")  # no module of the project has this name
    code = f"import sys; sys.path.append({str(ROOT)!r}); import errors, inference.detector"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    message = done.stderr.splitlines()[-1]
    assert message.startswith("ImportError")
    assert_names(message, tmp_path / "config.py", ROOT / "config", ROOT / "deploy/detect.py")
