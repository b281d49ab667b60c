"""data.registration_method = part, from training to predictions."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import cv2
import numpy as np
import pytest
from conftest import SETTINGS, checked, rows_of, write

from config import load_config
from data.cache import ArrayCache
from data.image_io import read_image
from data.mvtec import list_nominal, list_test
from inference import checkpoint
from registration import part_pose
from registration.register import RegisteredImages, Registration
from training.state import write_checkpoint

SIZE = 96
REGISTERED = ("data.image_registration=true", "data.registration_method=part", "data.registration_training=true")


def sets(*settings):
    return [word for one in settings for word in ("--set", one)]


def bracket(rng, angle=None, defect=False):
    """A bright angle with a dark stripe, in a random pose, BGR, and the mask of its defect."""
    image, mask = np.full((SIZE, SIZE, 3), 40.0), np.zeros((SIZE, SIZE), np.uint8)
    corners = np.array([[20, 30], [76, 30], [76, 48], [44, 48], [44, 72], [20, 72]])
    cv2.fillPoly(image, [corners], (150, 170, 190))
    cv2.rectangle(image, (26, 36), (60, 40), (60, 90, 120), -1)
    if defect:
        cv2.circle(mask, (32, 60), 5, 255, -1)
        image[mask > 0] = 240
    angle = rng.uniform(0, 360) if angle is None else angle
    turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), angle, 1.0)
    turn[:, 2] += rng.uniform(-6, 6, 2)
    image = cv2.warpAffine(image, turn, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderValue=(40, 40, 40))
    mask = cv2.warpAffine(mask, turn, (SIZE, SIZE), flags=cv2.INTER_NEAREST)
    return (image + rng.normal(0, 2, image.shape)).clip(0, 255).astype(np.uint8), mask


@pytest.fixture
def parts_place(tmp_path, workplace):
    """A workplace whose pictures show a bracket in any pose; the first of train/good lies straight."""
    rng, folder = np.random.default_rng(0), tmp_path / "mvtec/bracket"
    for i in range(6):
        write(folder / f"train/good/{i:03}.png", bracket(rng, 0 if i == 0 else None)[0])
    for i in range(2):
        write(folder / f"test/good/{i:03}.png", bracket(rng)[0])
        image, mask = bracket(rng, defect=True)
        write(folder / f"test/blob/{i:03}.png", image)
        write(folder / f"ground_truth/blob/{i:03}_mask.png", mask)
    text = SETTINGS.format(root=tmp_path.as_posix()).replace("category: tile", "category: bracket")
    (tmp_path / "config.yaml").write_text(text.replace("img_size: 32", "img_size: 96"))
    return tmp_path


def test_training_pictures_lie_as_the_reference_does(parts_place):
    config = load_config(parts_place / "config.yaml", REGISTERED)
    files = list_nominal(parts_place / "mvtec/bracket")
    images = RegisteredImages(parts_place / "kept", files, Registration(config))
    assert isinstance(images, ArrayCache) and len(images) == 6
    reference = read_image(files[0]).astype(int)
    for image, file in zip(images, files, strict=True):
        assert np.abs(image - reference).mean() < 4, file  # black corners would be 40 away
    assert np.abs(read_image(files[1]).astype(int) - reference).mean() > 10


def test_all_modes_with_registered_parts(parts_place, cli):
    out_folder, photos = parts_place / "out", parts_place / "mvtec/bracket/test"
    arguments = ["--train", "--threshold", "--detection", "--predict", str(photos), "--output", str(out_folder)]
    status, out, error = cli(*arguments, *sets(*REGISTERED))
    assert status == 0, error
    assert "could not be registered" not in out
    scores = rows_of(parts_place / "results/tiny/bracket/checkpoint_2/no_masking_registered/scores.csv")
    predicted = {row["path"].partition("bracket/")[2]: row for row in rows_of(out_folder / "predictions.csv")}
    for row in scores:
        assert float(predicted[row["path"]]["score"]) == pytest.approx(float(row["score"]), abs=1e-6)
    unregistered = ["--predict", str(photos), *sets("data.image_registration=false")]
    checked(cli(*unregistered), ["data.image_registration = false", "trained on registered pictures"])
    scene = sets("data.image_registration=true", "data.registration_method=scene")
    checked(cli("--detection", *scene), ["data.registration_method = scene", "registered as part"])
    status, _, error = cli("--detection", *sets("metrics.threshold=false", REGISTERED[1]))
    assert status == 0, error
    metrics = (parts_place / "results/tiny/bracket/checkpoint_2/no_masking/optimal/metrics.json").read_text()
    assert "trained on registered pictures; these are as they are" in metrics
    wanted = ["last.pt: trained with", "data.registration_training = True, now False"]
    checked(cli("--train", *sets(*REGISTERED[:2])), wanted)


def test_the_reference_of_a_training_stays(parts_place, cli):
    """A picture that comes first in train/good later lies otherwise; the weights know the old one."""
    assert cli("--train", *sets(*REGISTERED, "train.epochs=1"))[0] == 0
    write(parts_place / "mvtec/bracket/train/good/0.png", bracket(np.random.default_rng(9), 120)[0])
    status, out, error = cli("--train", "--threshold", "--detection", *sets(*REGISTERED))
    assert status == 0 and "1 added" in out, error
    run = parts_place / "checkpoints/bracket/tiny"
    carried = [checkpoint.read(run / f"epoch_{epoch:04}.pt")["embedded_assets"]["reference"] for epoch in (1, 2)]
    assert carried[0]["path"].endswith("000.png") and carried[0]["digest"] == carried[1]["digest"]
    result = parts_place / "results/tiny/bracket/checkpoint_2/no_masking_registered"
    assert f'"{carried[0]["digest"]} part"' in (result / "made_with.json").read_text()


def test_registered_pictures_are_registered_once(parts_place, cli, monkeypatch):
    register, count = part_pose.register, []
    monkeypatch.setattr(part_pose, "register", lambda *arguments: count.append(1) or register(*arguments))
    for epochs, expected in ((1, 6), (2, 6)):
        assert cli("--train", *sets(*REGISTERED, f"train.epochs={epochs}"))[0] == 0
        assert len(count) == expected
    for path in (parts_place / "checkpoints/.decoded").glob("registered_images*"):
        path.unlink()
    assert cli("--train", *sets(*REGISTERED, "train.epochs=3"))[0] == 0 and len(count) == 12


def test_processes_share_out_what_is_to_be_registered(parts_place, monkeypatch):
    """Each registers some, and all know all."""
    register, count, meet, said = part_pose.register, [], Barrier(2), [None, None]
    monkeypatch.setattr(part_pose, "register", lambda *arguments: count.append(1) or register(*arguments))

    class ProcessGroup:
        count = 2

        def __init__(self, rank):
            self.rank = rank

        def gather(self, content):
            said[self.rank] = content
            meet.wait()
            return list(said)

    config = load_config(parts_place / "config.yaml", REGISTERED)
    pictures, alone = list_test(parts_place / "mvtec/bracket"), Registration(config)
    alone.register(pictures)
    both = [Registration(config), Registration(config)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda rank: both[rank].register(pictures, ProcessGroup(rank)), range(2)))
    assert len(count) == 4 + 4 and [len(own) for own in said] == [2, 2]
    for one in both:
        for path in (picture.path for picture in pictures):
            np.testing.assert_array_equal(one._homographies[path], alone._homographies[path])


def test_a_category_without_a_reference_part_costs_no_other(parts_place, call):
    settings = sets("data.registration_method=part", "train.epochs=1")
    assert call("train_all", "--categories", "bracket", "tile", *settings)[0] == 0
    status, out, _ = call("evaluate_checkpoints", "--categories", "bracket", "tile", "--thresholds", "max", *settings)
    assert status == 1 and "tile, 1, no_masking_registered: data.registration_method = part: no part found" in out
    assert "registration_reference.png shows it" in out
    rows = rows_of(parts_place / "results/tiny/summary.csv")
    assert [(row["category"], row["technique"]) for row in rows if not row["error"]] == [
        ("bracket", "no_masking"),
        ("bracket", "no_masking_registered"),
        ("tile", "no_masking"),
    ]


def test_a_test_picture_without_the_part_is_kept_and_listed(parts_place, cli):
    write(parts_place / "mvtec/bracket/test/good/empty.png", np.full((SIZE, SIZE, 3), 40, np.uint8))
    status, _, error = cli("--train", "--detection", *sets(*REGISTERED, "metrics.threshold=false", "train.epochs=1"))
    assert status == 0, error
    status, out, error = cli("--check", *sets(*REGISTERED))
    assert status == 0, error
    for said in ("all 2 held-out pictures registered", "all 6 nominal pictures registered"):
        assert f"registration: {said}" in out
    assert "registration: 1 of 5 test pictures could not be registered: test/good/empty.png" in out
    folder = parts_place / "results/tiny/bracket/checkpoint_1/no_masking_registered"
    assert "1 of 5 pictures could not be registered" in (folder / "optimal/metrics.json").read_text()


def test_check_tells_what_has_no_effect_or_is_hardly_meant(parts_place, cli):
    lost = ("data.registration_method=part", "train.tiles_per_image=4", "data.img_size=[32, 96]")
    status, out, _ = cli("--check", *sets(*lost))
    assert status == 0
    for said in ("data.registration_method = part: main.py registers with", "train.tiles_per_image: counts with"):
        assert said in out
    assert "resized to 96 x 32 (width x height; data.img_size is [height, width])" in out
    assert "of 10 pictures that changes the ratio of width to height by more than 2" in out
    status, out, _ = cli("--check", *sets("data.image_registration=true", "data.registration_mirror=true"))
    assert status == 0 and "data.registration_mirror: counts with data.registration_method=part only" in out
    assert "try data.registration_method=part (one part on a plain background)" in out


def test_mistakes(parts_place, cli):
    gone = sets(*REGISTERED, "data.registration_reference=gone.png")
    checked(cli("--train", *gone), ["data.registration_reference: gone.png cannot be read, it is not there"])
    checked(cli("--train", *sets(*REGISTERED[2:])), ["data.registration_training", "data.image_registration=true"])
    empty = write(parts_place / "empty.png", np.full((SIZE, SIZE, 3), 40, np.uint8))
    named = sets(*REGISTERED, f"data.registration_reference={empty.as_posix()}")
    shown = parts_place / "checkpoints/bracket/tiny/registration_reference.png"
    checked(cli("--check", *named), ["no part found in", "empty.png"])
    assert not shown.parent.exists()
    for some in (named, [*named, *sets("data.registration_training=false")]):
        checked(cli("--train", *some), ["no part found in", "empty.png", "covers 0.0 %", str(shown)])
        assert cv2.imread(str(shown)).shape == (SIZE, SIZE, 3)
        shown.unlink()
    for file in list_nominal(parts_place / "mvtec/bracket")[1:5]:
        write(file, np.random.default_rng(1).integers(30, 50, (SIZE, SIZE, 3), dtype=np.uint8))
    wanted = ["data.registration_training: 4 of 6 nominal pictures could not be registered"]
    checked(cli("--train", *sets(*REGISTERED)), wanted)
    checked(cli("--check", *sets(*REGISTERED)), wanted)


def test_a_training_carries_its_reference_whatever_else_is_missing(parts_place, cli):
    """Masking without a region is for detection to tell; a reference that is nowhere is told, too."""
    assert cli("--train", *sets(*REGISTERED, "metrics.masking=true"))[0] == 0
    run = parts_place / "checkpoints/bracket/tiny"
    assert "reference" in checkpoint.read(run / "epoch_0002.pt")["embedded_assets"]
    status, _, error = cli("--threshold", "--detection", *sets(*REGISTERED))
    assert status == 0, error
    for path in (run / "last.pt", run / "epoch_0002.pt"):
        content = checkpoint.read(path)
        del content["embedded_assets"]["reference"]
        content.pop("checksum", None)
        write_checkpoint(path, content)
    checked(cli("--detection", *sets(*REGISTERED)), ["last.pt", "reference is not in it"])


def test_a_new_first_picture_without_a_part_changes_nothing(parts_place, cli):
    """Training goes on, and --check and --predict with the same settings use the reference of the training."""
    text = (parts_place / "config.yaml").read_text()
    named = text.replace("img_size: 96", "img_size: 96\n  registration_reference: null")
    (parts_place / "config.yaml").write_text(named)
    assert cli("--train", "--threshold", *sets(*REGISTERED, "train.epochs=1"))[0] == 0
    good, test = parts_place / "mvtec/bracket/train/good", parts_place / "mvtec/bracket/test"
    write(good / "0.png", np.full((SIZE, SIZE, 3), 40, np.uint8))
    for arguments in (["--check"], ["--train", "--threshold", "--detection"], ["--predict", str(test)]):
        status, _, error = cli(*arguments, *sets(*REGISTERED))
        assert status == 0, error


def test_what_was_not_registered_is_said_by_every_training(parts_place, cli):
    write(parts_place / "mvtec/bracket/train/good/9.png", np.full((SIZE, SIZE, 3), 40, np.uint8))
    for name in ("one", "two"):
        status, out, error = cli("--train", *sets(*REGISTERED, "data.val_split=0", f"data.run_name={name}"))
        assert status == 0, error
        assert out.count("1 of 7 nominal pictures could not be registered: 9.png; they are trained on as they are") == 1


def test_predictions_of_other_settings_are_not_mixed(parts_place, cli):
    photos, tiled = parts_place / "mvtec/bracket/test", ("data.tile_size=32", "metrics.threshold=false")
    assert cli("--train", *sets(*tiled))[0] == 0
    arguments = ["--predict", str(photos), "--output", str(parts_place / "out")]
    assert cli(*arguments, *sets(*tiled))[0] == 0
    assert cli(*arguments, "--resume", *sets(*tiled))[0] == 0
    other = cli(*arguments, "--resume", *sets(*tiled, "data.tile_overlap=0.5"))
    checked(other, ["made with another checkpoint, other settings"])


def test_a_scene_without_a_reference_is_told_once(parts_place, cli):
    assert cli("--train", *sets("metrics.threshold=false"))[0] == 0
    photos = (parts_place / "mvtec/bracket/test").rename(parts_place / "photos")
    (parts_place / "mvtec").rename(parts_place / "gone")
    scene = sets("metrics.threshold=false", "data.image_registration=true")
    checked(cli("--predict", str(photos), *scene), ["mvtec"])


def test_check_reads_pictures_at_their_white_level(parts_place, cli):
    for path in sorted((parts_place / "mvtec/bracket").rglob("*.png")):
        if "ground_truth" not in path.parts:
            write(path.with_suffix(".tif"), cv2.imread(str(path)).astype(np.float32) / 2)
            path.unlink()
    status, out, error = cli("--check")
    assert status == 0 and "training: " in out, error
