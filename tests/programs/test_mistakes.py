"""Every mistake that a user can make: exit status 2, one or two lines, and nothing written is lost."""

import errno
import pickle
import shutil

import numpy as np
import pytest
import torch
from conftest import SETTINGS, checked, main_py, make_dataset, write

from inference import checkpoint
from runtime import files as runtime_files
from training.state import write_checkpoint

# What is done to the workplace, the arguments, and words of the message.


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


UNTRAINED = [
    (lambda w: shutil.rmtree(w / "mvtec"), ["--train"], ["no dataset in", "tile/train/good", "make_sample.py"]),
    (None, ["--train", "--set", "data.category=tyle"], ["no category 'tyle'", "there are: tile"]),
    (lambda w: [p.unlink() for p in (w / "mvtec/tile/train/good").iterdir()], ["--train"], ["no images", "train/good"]),
    (lambda w: shutil.rmtree(w / "textures"), ["--train"], ["data.anomaly_source_path", "textures", "fetch_dtd"]),
    (_broken_image, ["--train"], ["003.png", "cannot be decoded"]),
    (_broken_textures, ["--train"], [".jpg: cannot be decoded"]),
    (
        _broken_textures,
        ["--train", "--set", "data.num_workers=1"],
        [".jpg: cannot be decoded as an image; mend or remove the file"],
    ),
    (_file_for_folder, ["--train"], ["good is a file; a folder is needed"]),
    (_checkpoints_is_a_file, ["--train"], ["checkpoints"]),
    (None, ["--train", "--set", "data.val_split=0.01"], ["data.val_split = 0.01 leaves none"]),
    (None, ["--train", "--set", "data.val_split=0.99"], ["data.val_split = 0.99 leaves none"]),
    (None, ["--train", "--set", "data.img_size=50"], ["data.img_size = 50", "multiple of 32"]),
    (None, ["--train", "--set", "train.batch_size=-2"], ["train.batch_size = -2", "from 1"]),
    (None, ["--train", "--set", "train.resume=must"], ["train.resume = must", "last.pt"]),
    (None, ["--train", "--set", "train.batch_size=3"], ["train.batch_size = 3", "batch norm"]),
    (None, ["--threshold"], ["no checkpoint", "--train True"]),
    (None, ["--detection"], ["no checkpoint", "--train True"]),
    (None, [], ["no mode asked for", "--train True"]),
    (None, ["--train", "False"], ["no mode asked for"]),
    (None, ["--train", "maybe"], ["'maybe' is neither True nor False"]),
    (None, ["--trane"], ["--trane", "--help"]),
    (lambda w: (w / "config.yaml").write_text("data:\n  a: ]"), ["--train"], ["config.yaml, line 2, column"]),
    (lambda w: (w / "config.yaml").unlink(), ["--train"], ["config.yaml", "no such file"]),
]
TRAINED = [
    (
        lambda w: (w / "checkpoints/tile/tiny/last.pt").unlink(),
        ["--threshold"],
        ["no checkpoint", "epochs: 1, 2"],
    ),
    (None, ["--threshold", "--set", "data.load_epoch=7"], ["epoch_0007.pt", "saved epochs: 1, 2"]),
    (_truncated_checkpoint, ["--detection"], ["last.pt", "truncated"]),
    (_truncated_checkpoint, ["--train"], ["last.pt", "truncated"]),
    (_pickled_checkpoint, ["--detection"], ["last.pt", "pickled code"]),
    (_pickle_file, ["--detection"], ["last.pt", "pickled code"]),
    (None, ["--detection", "--set", "model.base_channels=5"], ["set model.base_channels=4"]),
    (None, ["--train", "--set", "model.base_width=5"], ["set model.base_width=4"]),
    (None, ["--train", "--set", "data.img_size=64"], ["data.img_size = [32, 32]", "[64, 64]"]),
    (None, ["--train", "--set", "train.seed=3", "--set", "data.val_split=0"], ["train.seed = 0, now 3"]),
    (None, ["--train", "--set", "data.val_split=0.6"], ["data.val_split = 0.34, now 0.6"]),
    (None, ["--detection"], ["no thresholds yet", "--threshold True"]),
    (lambda w: shutil.rmtree(w / "mvtec/tile/test"), ["--detection"], ["no test images", "test/good"]),
    (_mask_size, ["--detection", "--set", "metrics.threshold=false"], ["001_mask.png", "4 x 4", "48 x 40"]),
    (
        lambda w: (w / "mvtec/tile/ground_truth/spot/001_mask.png").unlink(),
        ["--detection", "--set", "metrics.threshold=false"],
        ["001_mask.png is missing"],
    ),
    (
        lambda w: (w / "mvtec/tile/test/good/001.png").write_bytes(b"x"),
        ["--detection", "--set", "metrics.threshold=false"],
        ["001.png", "cannot be decoded"],
    ),
]
THRESHOLDED = [
    (None, ["--detection", "--set", "data.img_size=64"], ["img_size = [32, 32]", "--threshold True"]),
    (None, ["--detection", "--set", "metrics.p=90"], ["p = 99.0", "90.0", "--threshold True"]),
    (_other_checkpoint, ["--detection", "--set", "data.load_epoch=2"], ["fingerprint", "--threshold True"]),
    (
        lambda w: (w / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking.json").write_text("{"),
        ["--detection"],
        ["no_masking.json: damaged", "--threshold True"],
    ),
]


@pytest.mark.parametrize(("spoil", "arguments", "words"), UNTRAINED)
def test_mistakes_before_training(workplace, cli, spoil, arguments, words):
    if spoil:
        spoil(workplace)
    checked(cli(*arguments), words)
    assert not list(workplace.rglob("*.pt"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workplace whose dataset is trained on and thresholded; copied for each test."""
    root = tmp_path_factory.mktemp("trained")
    make_dataset(root)
    (root / "config.yaml").write_text(SETTINGS.format(root=root.as_posix()))
    assert main_py("--train", "--threshold", "--config", root / "config.yaml", cwd=root).returncode == 0
    return root


@pytest.mark.parametrize(("spoil", "arguments", "words"), TRAINED + THRESHOLDED)
def test_mistakes_after_training(workplace, cli, trained, spoil, arguments, words):
    shutil.copytree(trained / "checkpoints", workplace / "checkpoints")
    if (spoil, arguments, words) in TRAINED:
        shutil.rmtree(workplace / "checkpoints/tile/tiny/thresholds")
    if spoil:
        spoil(workplace)
    files = {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()}
    checked(cli(*arguments), words)
    assert all(path.read_bytes() == content for path, content in files.items())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_disk_full_and_no_permission(workplace, cli, monkeypatch, code):
    assert cli("--train", "--set", "train.epochs=1", "--set", "train.visualize=false")[0] == 0
    last = workplace / "checkpoints/tile/tiny/last.pt"
    before = last.read_bytes()

    replace = runtime_files.os.replace

    def refuse(source, target):
        if target == last:
            raise OSError(code, "refused by the system")
        replace(source, target)

    monkeypatch.setattr(runtime_files.os, "replace", refuse)
    checked(cli("--train", "--set", "train.visualize=false"), ["refused by the system", str(last)])
    assert last.read_bytes() == before and not list(workplace.rglob(".last*"))


def test_disk_full_while_panels_are_written(workplace, cli, monkeypatch):
    assert cli("--train", "--set", "train.epochs=1", "--set", "train.visualize=false")[0] == 0

    def refuse(path, image):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("data.image_io.write_image", refuse)
    checked(cli("--detection", "--set", "metrics.threshold=false"), ["no space left", "panels"])
    assert not list(workplace.rglob("panels/*/*.png")) and not list(workplace.rglob("made_with.json"))


def test_interrupted(workplace, cli, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.loop.train_epoch", interrupt)
    status, _, error = cli("--train")
    assert status == 130 and "interrupted" in error and "Traceback" not in error
