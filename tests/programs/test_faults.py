"""What is a user's mistake and what a fault of the program; regions, registration and panels under odd conditions."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import skimage
from conftest import ROOT, checked, make_dataset, write

import make_sample
from data import image_io
from inference import checkpoint
from registration import homography

PATCHED = """
import runpy, sys
sys.path.insert(0, {root!r})
{patch}
sys.argv[0] = "main.py"
runpy.run_path({main!r}, run_name="__main__")
"""


def main_with(patch, *arguments, cwd):
    code = PATCHED.format(root=str(ROOT), patch=patch, main=str(ROOT / "main.py"))
    command = [sys.executable, "-c", code, "--config", "config.yaml", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    "patch",
    [
        "import training.loop\ndef fault(*_): raise ValueError('of the program')\ntraining.loop.train_step = fault",
        "import synthesis\ndef fault(*_): raise ValueError('of the program')\nsynthesis.rotate = fault",
        "import training.data\ndef fault(*_): raise KeyError('of the program')\ntraining.data.list_nominal = fault",
    ],
)
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_fault_of_the_program_is_not_told_as_a_mistake(workplace, patch, workers):
    done = main_with(patch, "--train", "--set", f"data.num_workers={workers}", cwd=workplace)
    assert done.returncode == 1 and "Traceback" in done.stderr and "of the program" in done.stderr


def test_a_mistake_that_a_loader_process_meets_is_one(workplace, cli):
    """More than 16 batches are read by processes of their own."""
    make_dataset(workplace, n_good=40)
    assert cli("--train", "--set", "train.epochs=1")[0] == 0
    (workplace / "mvtec/tile/test/good/035.png").write_bytes(b"no image")
    sets = ("--set", "metrics.threshold=false", "--set", "data.num_workers=1")
    checked(cli("--detection", *sets), ["035.png: cannot be decoded as an image; mend or remove the file"])


@pytest.fixture
def scene(workplace):
    """Pictures of one scene from slightly other places, one of them of something else and of another size."""
    photo = cv2.imread(f"{skimage.data_dir}/camera.png", cv2.IMREAD_COLOR)
    photo = cv2.resize(photo, (300, 260), interpolation=cv2.INTER_AREA)
    rng, folder = np.random.default_rng(5), workplace / "mvtec/tile"
    write(workplace / "reference.png", photo[20:240, 20:280])
    for path in sorted(folder.rglob("*.png")):
        dy, dx = rng.integers(-12, 13, 2)
        if "ground_truth" in path.parts:
            mask = np.zeros((220, 260), np.uint8)
            mask[50:80, 60:90] = 255
            write(path, mask)
        else:
            write(path, photo[20 + dy : 240 + dy, 20 + dx : 280 + dx])
    write(folder / "test/good/001.png", np.full((90, 120, 3), 90, np.uint8))
    return ("--set", "data.image_registration=true", "--set", f"data.registration_reference={workplace}/reference.png",
            "--set", "masking.regions.tile=[[200, 220, 0, 260]]", "--set", "metrics.masking=true")  # fmt: skip


def test_regions_are_the_references_where_pictures_are_registered(workplace, cli, scene):
    """A picture of another size that cannot be registered is kept, counted and listed."""
    status, out, error = cli("--train", "--threshold", "--detection", *scene)
    assert status == 0, error
    path = workplace / "results/tiny/tile/checkpoint_2/post_masking_registered/p_quantile/metrics.json"
    notes = json.loads(path.read_text())["notes"]
    assert notes["unregistered"] == ["test/good/001.png"] and "1 of 6 pictures could not be registered" in out


def test_regions_are_checked_without_decoding_a_picture(workplace, call, scene, monkeypatch):
    assert call("main", "--train")[0] == 0
    read, seen = image_io.read_image, []

    def record(path, *arguments, **options):
        seen.append(path)
        return read(path, *arguments, **options)

    monkeypatch.setattr("registration.register.read_image", record)
    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda *arguments: seen.append("a pass begins") or load(*arguments))
    assert call("evaluate_checkpoints", *scene, "--registrations", "True")[0] == 0
    before = seen[: seen.index("a pass begins")]
    assert [path.name for path in before] == ["reference.png"]
    outside = ("--set", "masking.regions.tile=[[200, 230, 0, 260]]", "--registrations", "True")
    checked(call("evaluate_checkpoints", *scene, *outside), ["masking.regions.tile", "260 x 220", "reference.png"])
    # as they are, the pictures themselves count: one of them is smaller
    checked(call("evaluate_checkpoints", *scene, "--registrations", "False"), ["masking.regions.tile", "120 x 90"])


def test_registered_pictures_are_warped_once_for_all_checkpoints(workplace, call, scene, monkeypatch):
    assert call("main", "--train")[0] == 0
    warp, count = homography.warp, []

    def record(*arguments):
        if arguments[3:] == (cv2.INTER_NEAREST,):  # a mask: registering itself warps as well
            count.append(1)
        return warp(*arguments)

    monkeypatch.setattr("registration.register.warp", record)
    arguments = ("--registrations", "True", "--maskings", "no", "pre", "post", "--set", "metrics.visualisation=none")
    once = []
    for checkpoints in (("2",), ("1", "2")):
        count.clear()
        assert call("evaluate_checkpoints", *scene, *arguments, "--force", "--checkpoints", *checkpoints)[0] == 0
        once.append(len(count))
    # One checkpoint: each picture for each of two inputs, held-out ones too. Two: once, whatever is asked.
    assert once == [2 * (5 + 2), 5 + 2]
    maps = [
        (workplace / f"results/tiny/tile/checkpoint_2/{name}_masking_registered/scores.csv").read_text()
        for name in ("no", "pre", "post")
    ]
    count.clear()
    assert call("evaluate_checkpoints", *scene, *arguments, "--force", "--checkpoints", "2")[0] == 0
    assert count and maps == [
        (workplace / f"results/tiny/tile/checkpoint_2/{name}_masking_registered/scores.csv").read_text()
        for name in ("no", "pre", "post")
    ]  # read from the file or warped anew: the same


@pytest.mark.parametrize(("wanted", "pictures"), [("all", 6), ("2", 2), ("errors", 6)])
def test_only_what_may_be_drawn_waits_for_the_threshold(workplace, cli, monkeypatch, wanted, pictures):
    """Without nominal thresholds panels wait for the test set's own: 10 bytes a pixel and a little, not 29."""
    assert cli("--train", "--set", "train.epochs=1", "--set", "train.visualize=false")[0] == 0
    waiting, save = [], np.save
    monkeypatch.setattr(np, "save", lambda file, array: waiting.append(np.asarray(array).nbytes) or save(file, array))
    assert cli("--detection", "--set", "metrics.threshold=false", "--set", f"metrics.visualisation={wanted}")[0] == 0
    per_pixel = 3 + 3 + 4 + 1  # picture and reconstruction in 8 bits, map, mask
    assert sum(waiting) == pictures * (per_pixel * 32 * 32 + 8)


def test_the_sample_is_read_where_paths_are_not_ascii(tmp_path, monkeypatch):
    """OpenCV's own reader fails on such paths on Windows."""
    monkeypatch.setattr(cv2, "imread", None)
    make_sample.make_sample(tmp_path / "übung")
    assert make_sample.trivial_auroc(tmp_path / "übung/mvtec/flange", 64) < 0.8
