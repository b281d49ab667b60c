"""Error handling: a user error is exit status 2, a message with a fix, and no file lost; a fault has a traceback."""

import errno
import os
import pickle
import re
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import SETTINGS, config_of, make_dataset, start_fork, write
from messages import assert_user_error

from engine import threshold, train
from inference import checkpoint
from runtime.device import MOST_LISTED, map_in_threads
from runtime.errors import UserError
from training.state import write_checkpoint

# What is done to the workplace, the arguments, and names in the message.


def _broken_image(w):
    (w / "mvtec/tile/train/good/003.png").write_bytes(b"no image")


def _broken_textures(w):
    for path in (w / "textures/kind").iterdir():
        path.write_bytes(b"x")


def _truncated_checkpoint(w):
    for name in ("last.pt", "last_before.pt"):  # training can go on from either
        path = w / "checkpoints/tile/tiny" / name
        path.write_bytes(path.read_bytes()[:1000])


class _Evil:
    def __reduce__(self):
        return print, ("code ran",)


def _pickled_checkpoint(w):
    torch.save({"model": _Evil(), "epoch": 1}, w / "checkpoints/tile/tiny/last.pt")


def _pickle_file(w):
    (w / "checkpoints/tile/tiny/last.pt").write_bytes(pickle.dumps({"model": _Evil()}))


def _mask_size(w):
    write(w / "mvtec/tile/ground_truth/spot/001_mask.png", np.zeros((4, 4), np.uint8))


def _file_for_folder(w):
    shutil.rmtree(w / "mvtec/tile/train/good")
    (w / "mvtec/tile/train/good").write_text("x")


def _checkpoints_is_a_file(w):
    (w / "checkpoints").write_text("x")


def _other_checkpoint(w):
    path = w / "checkpoints/tile/tiny/epoch_0002.pt"
    content = checkpoint.read(path)
    content["model"]["reconstructive.decoder.fin_out.0.bias"] += 1
    write_checkpoint(path, content)


def _no_threshold(*arguments):
    return [*arguments, "--set", "metrics.threshold=false"]


UNTRAINED = [
    (lambda w: shutil.rmtree(w / "mvtec"), ["--train"], ["data.data_path", "tile/train/good", "make_sample.py"]),
    (None, ["--train", "--set", "data.category=tyle"], ["data.category", "tyle", "tile"]),
    (lambda w: [p.unlink() for p in (w / "mvtec/tile/train/good").iterdir()], ["--train"], ["tile/train/good"]),
    (lambda w: shutil.rmtree(w / "textures"), ["--train"], ["data.anomaly_source_path", "textures", "fetch_dtd"]),
    (_broken_image, ["--train"], ["train/good/003.png"]),
    (_broken_textures, ["--train"], [re.compile(r"textures/kind/\d\.jpg\b")]),
    (_broken_textures, ["--train", "--set", "data.num_workers=1"], [re.compile(r"textures/kind/\d\.jpg\b")]),
    (_file_for_folder, ["--train"], ["data.data_path", "tile/train/good"]),
    (_checkpoints_is_a_file, ["--train"], ["checkpoints"]),
    (None, ["--train", "--set", "data.val_split=0.01"], ["data.val_split = 0.01", 6]),
    (None, ["--train", "--set", "data.val_split=0.99"], ["data.val_split = 0.99", 6]),
    (None, ["--train", "--set", "data.img_size=50"], ["data.img_size = 50", 32]),
    (None, ["--train", "--set", "train.batch_size=-2"], ["train.batch_size = -2", 1]),
    (None, ["--train", "--set", "train.resume=must"], ["train.resume = must", "last.pt"]),
    (None, ["--train", "--set", "train.batch_size=3"], ["train.batch_size = 3", "img_size"]),
    # Told before the training, which can take hours:
    (lambda w: shutil.rmtree(w / "mvtec/tile/test"), ["--train", "--detection"], ["tile/test", "test/good"]),
    (None, ["--train", "--threshold", "--nominal", "station2"], ["station2"]),
    (None, ["--train", "--predict", "photos"], ["photos"]),
    (None, ["--train", "--watch", "camera"], ["--watch camera"]),
    (None, ["--train", "--feedback", "feedback.csv"], ["--feedback feedback.csv"]),
    (None, ["--train", "--export", "openvino-int8", "--set", "data.val_split=0"], ["openvino-int8", "data.val_split"]),
    (None, ["--threshold"], ["data.load_epoch", "last.pt", "--train True"]),
    (None, ["--detection"], ["data.load_epoch", "last.pt", "--train True"]),
    (None, [], ["--train True"]),
    (None, ["--train", "False"], ["--train True"]),
    (None, ["--train", "maybe"], ["--train", "maybe", "True", "False"]),
    (None, ["--trane"], ["--trane", "--help"]),
    (lambda w: (w / "config.yaml").write_text("data:\n  a: ]"), ["--train"], ["config.yaml", "line 2", "column"]),
    (lambda w: (w / "config.yaml").unlink(), ["--train"], ["config.yaml", "--config"]),
]
TRAINED = [
    (lambda w: (w / "checkpoints/tile/tiny/last.pt").unlink(), ["--threshold"], ["data.load_epoch", "last.pt", "1, 2"]),
    (None, ["--threshold", "--set", "data.load_epoch=7"], ["data.load_epoch", "epoch_0007.pt", "1, 2"]),
    (_truncated_checkpoint, ["--detection"], ["tiny/last.pt"]),
    (_truncated_checkpoint, ["--train"], ["tiny/last.pt", "train.resume=never"]),
    (_pickled_checkpoint, ["--detection"], ["tiny/last.pt"]),
    (_pickle_file, ["--detection"], ["tiny/last.pt"]),
    (None, ["--detection", "--set", "model.base_channels=5"], ["tiny/last.pt", "model.base_channels=4", 5]),
    (None, ["--train", "--set", "model.base_width=5"], ["tiny/last.pt", "model.base_width=4", 5]),
    (None, ["--train", "--set", "data.img_size=64"], ["tiny/last.pt", "data.img_size = [32, 32]", "[64, 64]"]),
    (
        None,
        ["--train", "--set", "train.seed=3", "--set", "data.val_split=0"],
        ["tiny/last.pt", re.compile(r"train\.seed = 0\b.*\b3\b")],
    ),
    (
        None,
        ["--train", "--set", "data.val_split=0.6"],
        ["tiny/last.pt", re.compile(r"data\.val_split = 0\.34.*\b0\.6")],
    ),
    (None, ["--detection"], ["checkpoint_2/no_masking.json", "--threshold True", "metrics.threshold=false"]),
    (lambda w: shutil.rmtree(w / "mvtec/tile/test"), ["--detection"], ["tile/test", "test/good"]),
    (_mask_size, _no_threshold("--detection"), ["spot/001_mask.png", "4 x 4", "48 x 40"]),
    (
        lambda w: (w / "mvtec/tile/ground_truth/spot/001_mask.png").unlink(),
        _no_threshold("--detection"),
        ["test/spot/001.png", "001_mask.png"],
    ),
    (
        lambda w: (w / "mvtec/tile/test/good/001.png").write_bytes(b"x"),
        _no_threshold("--detection"),
        ["test/good/001.png"],
    ),
]
THRESHOLDED = [
    (
        None,
        ["--detection", "--set", "data.img_size=64"],
        ["no_masking.json", "img_size = [32, 32]", "--threshold True"],
    ),
    (
        None,
        ["--detection", "--set", "metrics.p=90"],
        ["no_masking.json", re.compile(r"\bp = 99\.0\b.*\b90\.0\b"), "--threshold True"],
    ),
    (
        _other_checkpoint,
        ["--detection", "--set", "data.load_epoch=2"],
        ["no_masking.json", "fingerprint", "--threshold True"],
    ),
    (
        lambda w: (w / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking.json").write_text("{"),
        ["--detection"],
        ["checkpoint_2/no_masking.json", "--threshold True"],
    ),
]


@pytest.mark.parametrize(("spoil", "arguments", "names"), UNTRAINED)
def test_user_errors_before_training(workplace, cli, spoil, arguments, names):
    if spoil:
        spoil(workplace)
    assert_user_error(cli(*arguments), *names)
    assert not list(workplace.rglob("*.pt"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workplace with a trained model and thresholds; copied for each test."""
    root = tmp_path_factory.mktemp("trained")
    make_dataset(root)
    (root / "config.yaml").write_text(SETTINGS.format(root=root.as_posix()))
    train.run(config_of(root), "")
    threshold.run(config_of(root))
    return root


@pytest.mark.parametrize(("spoil", "arguments", "names"), TRAINED + THRESHOLDED)
def test_user_errors_after_training_change_no_file(workplace, cli, trained, spoil, arguments, names):
    shutil.copytree(trained / "checkpoints", workplace / "checkpoints")
    if (spoil, arguments, names) in TRAINED:
        shutil.rmtree(workplace / "checkpoints/tile/tiny/thresholds")
    if spoil:
        spoil(workplace)
    files = {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()}
    assert_user_error(cli(*arguments), *names)
    assert all(path.read_bytes() == content for path, content in files.items())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_refused_write_is_a_user_error_that_keeps_the_old_state(workplace, cli, monkeypatch, code):
    assert cli("--train", "--set", "train.epochs=1", "--set", "train.visualize=false")[0] == 0
    last = workplace / "checkpoints/tile/tiny/last.pt"
    before = last.read_bytes()

    replace = os.replace

    def refuse(source, target):
        if target == last:
            raise OSError(code, "refused by the system", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    assert_user_error(cli("--train", "--set", "train.visualize=false"), "refused by the system", last)
    assert last.read_bytes() == before and not list(workplace.rglob(".last*"))


def test_a_full_disk_while_panels_are_written_leaves_no_result(workplace, cli, monkeypatch):
    assert cli("--train", "--set", "train.epochs=1", "--set", "train.visualize=false")[0] == 0
    write_bytes = Path.write_bytes

    def refuse(path, data):
        if "panels" in path.parts:
            raise OSError(errno.ENOSPC, "no space left", str(path))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert_user_error(cli(*_no_threshold("--detection")), "no space left", "panels")
    assert not list(workplace.rglob("panels/*/*.png")) and not list(workplace.rglob("made_with.json"))


def test_an_interrupted_training_has_exit_status_130(workplace, cli, on_forward):
    def interrupt(*_):
        raise KeyboardInterrupt

    on_forward(interrupt)
    status, _, error = cli("--train")
    assert status == 130 and "Traceback" not in error and error.strip()
    assert not list(workplace.rglob("*.pt"))


# Faults as of a library that the program calls: in the step, in a loader process, while the dataset is read.
FAULTS = {"step": (torch.optim.Adam, "step"), "loader": (cv2, "warpAffine"), "dataset": (cv2, "imdecode")}


@pytest.mark.parametrize("place", FAULTS)
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_fault_is_not_reported_as_a_user_error(workplace, cli, monkeypatch, place, workers):
    def fault(*_, **__):
        raise ValueError("of the program")

    monkeypatch.setattr(*FAULTS[place], fault)
    with pytest.raises(ValueError, match="of the program"):
        cli("--train", "--set", f"data.num_workers={workers}")


FAULT = """\
import main, torch
def fault(*_): raise ValueError("of the program")
torch.optim.Adam.step = fault
main.run(main.main, is_shared=True)
"""


def test_a_fault_is_exit_status_1_with_a_traceback(workplace):
    (workplace / "fault.py").write_text(FAULT)
    arguments = ["--config", "config.yaml", "--train", "--set", "data.num_workers=1"]
    process = start_fork(workplace / "fault.py", arguments, workplace)
    _, error = process.communicate()
    assert process.returncode == 1 and "Traceback" in error and "of the program" in error


def test_a_user_error_in_a_loader_process_is_one(workplace, cli):
    """More than 16 batches are read by processes of their own."""
    make_dataset(workplace, n_nominal=40)
    assert cli("--train", "--set", "train.epochs=1")[0] == 0
    (workplace / "mvtec/tile/test/good/035.png").write_bytes(b"no image")
    sets = ("--set", "metrics.threshold=false", "--set", "data.num_workers=1")
    assert_user_error(cli("--detection", *sets), workplace / "mvtec/tile/test/good/035.png")


@pytest.mark.skipif(os.name == "nt", reason="signals are other ones there")
def test_a_signal_during_thresholds_and_detection_leaves_no_file(two, cli, on_forward):
    def interrupt(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    on_forward(interrupt)
    before = {path for path in two.rglob("*") if "checkpoints" in path.parts or "results" in path.parts}
    for mode in (["--threshold"], ["--detection", "--set", "metrics.threshold=false"]):
        status, _, error = cli(*mode)
        assert status == 143 and "Traceback" not in error and error.strip()
    left = {path for path in two.rglob("*") if "checkpoints" in path.parts or "results" in path.parts}
    assert not [path for path in left - before if path.is_file()]


def test_every_image_that_fails_is_named(two, cli):
    """Detection, thresholds, masks, training: all can be fixed at once."""
    assert cli("--threshold")[0] == 0
    test = two / "mvtec/tile/test/spot"
    for name in ("000.png", "002.png"):
        shutil.copy(test / name, two / name)
        (test / name).write_bytes(name.encode())
    for workers in (0, 1):
        status, _, error = cli("--detection", "--set", f"data.num_workers={workers}")
        assert status == 2 and [f"spot/{name}" in error for name in ("000.png", "001.png", "002.png")] == [1, 0, 1]
    status, _, error = cli("--threshold", "--nominal", str(test))
    assert status == 2 and "spot/000.png" in error and "spot/002.png" in error
    for name in ("000.png", "002.png"):
        shutil.copy(two / name, test / name)
        (two / f"mvtec/tile/ground_truth/spot/{name[:3]}_mask.png").write_bytes(b"no image")
    status, _, error = cli("--detection")
    assert status == 2 and "000_mask.png" in error and "002_mask.png" in error
    for name in ("000.png", "001.png"):
        (two / "mvtec/tile/train/good" / name).write_bytes(b"no image")
    status, _, error = cli("--train", "--set", "data.run_name=new")
    assert status == 2 and "good/000.png" in error and "good/001.png" in error


def test_of_many_errors_the_first_are_listed():
    def fail(item):
        raise UserError(item, "broken", "fix it")

    with pytest.raises(UserError) as caught:
        map_in_threads(fail, range(150))
    first, second = str(caught.value).splitlines()
    assert first == "0: broken; fix it"
    assert second == f"149 more fail: {', '.join(str(i) for i in range(1, MOST_LISTED + 1))}, ..."
