"""Registration on the command line: data.registration_method = part, from training to predictions."""

import json
import re

import cv2
import numpy as np
import pytest
import torch
from brackets import BRACKET_SIZE, bracket
from conftest import rows_of, write
from messages import assert_line, assert_names, assert_user_error, lines_with

from data.mvtec import list_nominal
from inference import checkpoint
from runtime import provenance
from training.state import write_checkpoint

KEPT = "checkpoints/bracket/tiny/thresholds/checkpoint_2/no_masking_registered.json"
REGISTERED = ("data.image_registration=true", "data.registration_method=part", "data.registration_training=true")


def sets(*settings):
    return [word for one in settings for word in ("--set", one)]


def test_every_mode_with_registered_parts(brackets, cli):
    out_folder, images = brackets / "out", brackets / "mvtec/bracket/test"
    arguments = ["--train", "--threshold", "--detection", "--predict", str(images), "--output", str(out_folder)]
    status, _, error = cli(*arguments, *sets(*REGISTERED))
    assert status == 0, error
    result = brackets / "results/tiny/bracket/checkpoint_2/no_masking_registered"
    notes = json.loads((result / "p_quantile/metrics.json").read_text())["notes"]
    kept = json.loads((brackets / KEPT).read_text())
    assert "registration" not in notes and not notes.get("unregistered") and not kept["unregistered"]
    scores = rows_of(result / "scores.csv")
    predicted = {row["path"].partition("bracket/")[2]: row for row in rows_of(out_folder / "predictions.csv")}
    for row in scores:
        assert float(predicted[row["path"]]["score"]) == pytest.approx(float(row["score"]), abs=1e-6)
    unregistered = ["--predict", str(images), *sets("data.image_registration=false")]
    assert_user_error(cli(*unregistered), "data.image_registration = false", "last.pt")
    scene = sets("data.image_registration=true", "data.registration_method=scene")
    fix = ("data.registration_method=part", "data.image_registration=true")
    assert_user_error(cli("--detection", *scene), "data.registration_method = scene", "last.pt", *fix)
    status, _, error = cli("--detection", *sets("metrics.threshold=false", REGISTERED[1]))
    assert status == 0, error
    plain = json.loads((result.with_name("no_masking") / "optimal/metrics.json").read_text())["notes"]
    assert plain["registration"] and plain["registration"] != notes.get("registration")
    changed = re.compile(r"data\.registration_training = True.*\bFalse\b")
    assert_user_error(cli("--train", *sets(*REGISTERED[:2])), "last.pt", changed)


def test_training_detection_and_prediction_on_cropped_parts(brackets, cli):
    """The setting is the checkpoint's; scores of detection and prediction are the same."""
    cropped = sets(*REGISTERED, "data.registration_crop=true", "data.img_size=[64, 96]", "train.epochs=1")
    images, out_folder = brackets / "mvtec/bracket/test", brackets / "out"
    status, out, error = cli("--check", "--train", "--threshold", "--detection", *cropped)
    assert status == 0, error
    assert_line(out, re.compile(r"^registration: .*\b84 x 63\b"), "data.img_size")
    assert_line(cli("--check", *sets(*REGISTERED))[1], "84 x 63", "data.registration_crop=true")
    status, _, error = cli("--predict", str(images), "--output", str(out_folder), "--set", "data.img_size=[64, 96]")
    assert status == 0, error
    kept = checkpoint.read(brackets / "checkpoints/bracket/tiny/last.pt")["embedded_assets"]["reference"]
    assert cv2.imdecode(kept["png"].numpy(), cv2.IMREAD_COLOR).shape[:2] == (BRACKET_SIZE, BRACKET_SIZE)
    rows = rows_of(brackets / "results/tiny/bracket/checkpoint_1/no_masking_registered/scores.csv")
    predicted = {row["path"].partition("bracket/")[2]: row for row in rows_of(out_folder / "predictions.csv")}
    for row in rows:
        assert float(predicted[row["path"]]["score"]) == pytest.approx(float(row["score"]), abs=1e-6)
    again = sets(*REGISTERED, "data.img_size=[64, 96]", "train.epochs=2")
    assert_user_error(cli("--train", *again), "last.pt", re.compile(r"data\.registration_crop = True.*\bFalse\b"))


def test_the_reference_of_a_training_is_kept(brackets, cli):
    """Where an image in another pose comes first in train/good later; the weights fit the old reference."""
    assert cli("--train", *sets(*REGISTERED, "train.epochs=1"))[0] == 0
    write(brackets / "mvtec/bracket/train/good/0.png", bracket(np.random.default_rng(9), 120)[0])
    status, out, error = cli("--train", "--threshold", "--detection", *sets(*REGISTERED))
    assert status == 0, error
    assert_line(out, "train/good", "last.pt", 1)
    run = brackets / "checkpoints/bracket/tiny"
    embedded = [checkpoint.read(run / f"epoch_{epoch:04}.pt")["embedded_assets"]["reference"] for epoch in (1, 2)]
    assert embedded[0]["path"].endswith("000.png") and embedded[0]["digest"] == embedded[1]["digest"]
    result = brackets / "results/tiny/bracket/checkpoint_2/no_masking_registered"
    assert f'"{embedded[0]["digest"]} part"' in (result / "made_with.json").read_text()


def test_training_images_are_registered_once(brackets, cli, monkeypatch):
    refine, count = cv2.findTransformECC, []
    monkeypatch.setattr(cv2, "findTransformECC", lambda *arguments: count.append(1) or refine(*arguments))
    assert cli("--train", *sets(*REGISTERED, "train.epochs=1"))[0] == 0
    steps = len(count)
    assert steps >= 6
    assert cli("--train", *sets(*REGISTERED, "train.epochs=2"))[0] == 0 and len(count) == steps
    for path in (brackets / "checkpoints/.decoded").glob("registered_images*"):
        path.unlink()
    assert cli("--train", *sets(*REGISTERED, "train.epochs=3"))[0] == 0 and len(count) == 2 * steps


def test_a_category_without_a_part_in_its_reference_fails_alone(brackets, call):
    settings = sets("data.registration_method=part", "train.epochs=1")
    for category in ("bracket", "tile"):
        assert call("main", "--train", *settings, *sets(f"data.category={category}"))[0] == 0
    status, out, _ = call("evaluate_checkpoints", "--categories", "bracket", "tile", "--thresholds", "max", *settings)
    assert status == 1
    shown = brackets / "checkpoints/tile/tiny/registration_reference.png"
    assert_line(out, "tile, 1, no_masking_registered", "data.registration_method = part", shown)
    assert shown.is_file()
    rows = rows_of(brackets / "results/tiny/summary.csv")
    assert [(row["category"], row["technique"]) for row in rows if not row["error"]] == [
        ("bracket", "no_masking"),
        ("bracket", "no_masking_registered"),
        ("tile", "no_masking"),
    ]


def test_a_test_image_without_the_part_is_kept_and_listed(brackets, cli):
    write(brackets / "mvtec/bracket/test/good/empty.png", np.full((BRACKET_SIZE, BRACKET_SIZE, 3), 40, np.uint8))
    status, _, error = cli("--train", "--detection", *sets(*REGISTERED, "metrics.threshold=false", "train.epochs=1"))
    assert status == 0, error
    status, out, error = cli("--check", *sets(*REGISTERED))
    assert status == 0, error
    for count in (2, 6):  # held out, nominal
        assert_line(out, re.compile(r"^registration\b"), count)
    assert_line(out, re.compile(r"^registration\b"), "1 of 5", "test/good/empty.png")
    folder = brackets / "results/tiny/bracket/checkpoint_1/no_masking_registered"
    notes = json.loads((folder / "optimal/metrics.json").read_text())["notes"]
    assert notes["unregistered"] == ["test/good/empty.png"]
    assert_names(notes["registration"], "1 of 5")


def test_check_reports_settings_without_effect_and_changed_aspect_ratios(brackets, cli):
    changed = ("data.registration_method=part", "train.tiles_per_image=4", "data.img_size=[32, 96]")
    status, out, _ = cli("--check", *sets(*changed))
    assert status == 0
    assert_line(out, "data.registration_method = part", "data.image_registration=true")
    assert_line(out, "train.tiles_per_image", "data.tile_size")
    assert_line(out, "96 x 32", "data.img_size")
    assert_line(out, 10, "data.img_size")  # images whose aspect ratio changes much
    status, out, _ = cli("--check", *sets("data.image_registration=true", "data.registration_mirror=true"))
    assert status == 0
    assert_line(out, "data.registration_mirror", "data.registration_method=part")
    assert lines_with(out, re.compile(r"^registration\b.*data\.registration_method=part"))


def test_references_and_settings_that_do_not_fit_are_user_errors(brackets, cli):
    gone = sets(*REGISTERED, "data.registration_reference=gone.png")
    assert_user_error(cli("--train", *gone), "data.registration_reference", "gone.png")
    alone = cli("--train", *sets(*REGISTERED[2:]))
    assert_user_error(alone, "data.registration_training", "data.image_registration=true")
    alone = cli("--train", *sets(*REGISTERED[:2], "data.registration_crop=true"))
    assert_user_error(alone, "data.registration_crop", "data.registration_training=true")
    empty = write(brackets / "empty.png", np.full((BRACKET_SIZE, BRACKET_SIZE, 3), 40, np.uint8))
    named = sets(*REGISTERED, f"data.registration_reference={empty.as_posix()}")
    shown = brackets / "checkpoints/bracket/tiny/registration_reference.png"
    assert_user_error(cli("--check", *named), "data.registration_method = part", empty)
    assert not shown.parent.exists()
    for some in (named, [*named, *sets("data.registration_training=false")]):
        assert_user_error(cli("--train", *some), empty, "0.0 %", "data.registration_reference", shown)
        assert cv2.imread(str(shown)).shape == (BRACKET_SIZE, BRACKET_SIZE, 3)
        shown.unlink()
        assert_user_error(cli("--check", *some), empty, "0.0 %")
        assert not shown.exists()  # a check writes nothing
    for file in list_nominal(brackets / "mvtec/bracket")[1:5]:
        image = np.random.default_rng(1).integers(30, 50, (BRACKET_SIZE, BRACKET_SIZE, 3), dtype=np.uint8)
        write(file, image)
    for mode in ("--train", "--check"):
        assert_user_error(cli(mode, *sets(*REGISTERED)), "data.registration_training", "4 of 6", "001.png")


def test_checkpoints_with_different_references_are_evaluated_with_their_own(brackets, call):
    """As after a run that was resumed with another first image; their results stay valid."""
    assert call("main", "--train", *sets("data.image_registration=true"))[0] == 0
    path = brackets / "checkpoints/bracket/tiny/epoch_0002.pt"
    content = checkpoint.read(path)
    other = write(brackets / "other.png", bracket(np.random.default_rng(9), 120)[0])
    content["embedded_assets"]["reference"] |= {"path": other.as_posix(), "digest": provenance.file_digest(other)}
    content["embedded_assets"]["reference"]["png"] = torch.from_numpy(np.fromfile(other, np.uint8))
    content.pop("checksum", None)
    write_checkpoint(path, content)
    chosen = ("--categories", "bracket", "--maskings", "no", "--registrations", "True")
    for to_evaluate in (8, 0):  # two checkpoints, four thresholds
        status, out, error = call("evaluate_checkpoints", *chosen)
        assert status == 0, error
        assert_line(out, 8, 8 - to_evaluate, to_evaluate)
        assert len(rows_of(brackets / "results/tiny/summary.csv")) == 8


def test_a_training_embeds_its_reference_also_without_masking_regions(brackets, cli):
    """Without a region masking is an error of detection only; a checkpoint without its reference is one, too."""
    assert cli("--train", *sets(*REGISTERED, "metrics.masking=true"))[0] == 0
    run = brackets / "checkpoints/bracket/tiny"
    assert "reference" in checkpoint.read(run / "epoch_0002.pt")["embedded_assets"]
    status, _, error = cli("--threshold", "--detection", *sets(*REGISTERED))
    assert status == 0, error
    for path in (run / "last.pt", run / "epoch_0002.pt"):
        content = checkpoint.read(path)
        del content["embedded_assets"]["reference"]
        content.pop("checksum", None)
        write_checkpoint(path, content)
    assert_user_error(cli("--detection", *sets(*REGISTERED)), brackets / "checkpoints/bracket/tiny/last.pt")


def test_a_new_first_image_without_a_part_is_not_the_reference(brackets, cli):
    """A training resumes, and --check and --predict with the same settings use the reference of the training."""
    text = (brackets / "config.yaml").read_text()
    named = text.replace("img_size: 96", "img_size: 96\n  registration_reference: null")
    (brackets / "config.yaml").write_text(named)
    assert cli("--train", "--threshold", *sets(*REGISTERED, "train.epochs=1"))[0] == 0
    good, test = brackets / "mvtec/bracket/train/good", brackets / "mvtec/bracket/test"
    write(good / "0.png", np.full((BRACKET_SIZE, BRACKET_SIZE, 3), 40, np.uint8))
    for arguments in (["--check"], ["--train", "--threshold", "--detection"], ["--predict", str(test)]):
        status, _, error = cli(*arguments, *sets(*REGISTERED))
        assert status == 0, error


def test_every_training_reports_images_that_are_not_registered(brackets, cli):
    write(brackets / "mvtec/bracket/train/good/9.png", np.full((BRACKET_SIZE, BRACKET_SIZE, 3), 40, np.uint8))
    for name in ("one", "two"):
        status, out, error = cli("--train", *sets(*REGISTERED, "data.val_split=0", f"data.run_name={name}"))
        assert status == 0, error
        assert len(lines_with(out, "1 of 7", "9.png")) == 1


def test_predictions_of_other_settings_are_not_resumed(brackets, cli):
    images, tiled = brackets / "mvtec/bracket/test", ("data.tile_size=32", "metrics.threshold=false")
    assert cli("--train", *sets(*tiled))[0] == 0
    arguments = ["--predict", str(images), "--output", str(brackets / "out")]
    assert cli(*arguments, *sets(*tiled))[0] == 0
    assert cli(*arguments, "--resume", *sets(*tiled))[0] == 0
    other = cli(*arguments, "--resume", *sets(*tiled, "data.tile_overlap=0.5"))
    assert_user_error(other, brackets / "out", "--resume", "--output")


def test_a_missing_reference_of_a_scene_is_a_user_error(brackets, cli):
    assert cli("--train", *sets("metrics.threshold=false"))[0] == 0
    images = (brackets / "mvtec/bracket/test").rename(brackets / "images")
    (brackets / "mvtec").rename(brackets / "gone")
    scene = sets("metrics.threshold=false", "data.image_registration=true")
    assert_user_error(cli("--predict", str(images), *scene), brackets / "mvtec")


def test_check_applies_the_white_level(brackets, cli):
    for path in sorted((brackets / "mvtec/bracket").rglob("*.png")):
        if "ground_truth" not in path.parts:
            write(path.with_suffix(".tif"), cv2.imread(str(path)).astype(np.float32) / 2)
            path.unlink()
    status, out, error = cli("--check")
    assert status == 0, error
    assert_line(out, re.compile(r"^training\b"), "96 x 96")
