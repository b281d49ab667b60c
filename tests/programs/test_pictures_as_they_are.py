"""Pictures, masks and folders as people have them, through the programs: the right numbers, or a word about it."""

import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import checked, rows_of, write

from inference import checkpoint

RESULT = "results/tiny/tile/checkpoint_2/no_masking"
CHANGES = ("image_threshold", "pixel_threshold", "notes")


def metrics_of(workplace, kind="p_quantile"):
    return json.loads((workplace / RESULT / kind / "metrics.json").read_text())


def detect(cli, *arguments):
    status, out, error = cli("--threshold", "--detection", *arguments)
    assert status == 0, error
    return out


def rewrite(mask, how):
    return {
        "class numbers": lambda: (mask > 0).astype(np.uint8) * 2,
        "128": lambda: (mask > 0).astype(np.uint8) * 128,
        "uint16": lambda: mask.astype(np.uint16),
        "int32": lambda: mask.astype(np.int32),
        "red on white": lambda: np.where(mask[..., None] > 0, (0, 0, 255), (255, 255, 255)).astype(np.uint8),
        "alpha": lambda: np.dstack([np.full((*mask.shape, 3), 255, np.uint8), mask]),
    }[how]()


@pytest.mark.parametrize("how", ["class numbers", "128", "uint16", "int32", "red on white", "alpha"])
def test_masks_of_any_kind_give_the_same_metrics(two, cli, how):
    detect(cli)
    expected = metrics_of(two)
    for path in (two / "mvtec/tile/ground_truth/spot").iterdir():
        stored = rewrite(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), how)
        path.unlink()
        write(path.with_suffix(".tif" if how == "int32" else ".png"), stored)
    detect(cli)
    assert metrics_of(two) == expected


def test_a_region_file_is_read_like_a_mask(two, cli):
    region = np.zeros((40, 48), np.uint8)
    region[:, :20] = 1
    write(two / "ones.png", region)
    rectangles = "masking.regions.tile=[[0, 40, 0, 20]]"
    detect(cli, "--set", "metrics.masking=true", "--set", rectangles)
    path = two / "results/tiny/tile/checkpoint_2/post_masking/p_quantile/metrics.json"
    expected = json.loads(path.read_text())
    detect(cli, "--set", "metrics.masking=true", "--set", f"masking.regions.tile={two / 'ones.png'}")
    assert json.loads(path.read_text()) == expected and expected["notes"]["left_out"]


def test_what_cannot_be_read_as_a_mask_stops_detection_and_what_is_odd_is_told(two, cli):
    detect(cli)
    photo = np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8)
    write(two / "mvtec/tile/ground_truth/spot/001_mask.png", photo)
    checked(cli("--detection"), ["001_mask.png", "gray levels like a photograph", "255 where the defect is"])
    mask = cv2.imread(str(two / "mvtec/tile/ground_truth/spot/000_mask.png"), cv2.IMREAD_GRAYSCALE)
    write(two / "mvtec/tile/ground_truth/spot/001_mask.png", 255 - mask)
    out = detect(cli)
    assert "more than half of the picture is marked" in out
    assert "001_mask.png" in metrics_of(two)["notes"]["mask_files"]


def test_only_masks_that_had_pixels_can_vanish(two, cli):
    masks = [np.zeros((40, 48), np.uint8) for _ in range(2)]
    masks[1][20, 21] = 255
    for i, mask in enumerate(masks):
        write(two / f"mvtec/tile/ground_truth/spot/00{i}_mask.png", mask)
    detect(cli)
    assert metrics_of(two)["notes"]["masks"].endswith(": test/spot/001.png")


def test_12_bits_in_16_are_seen_in_full_and_the_checkpoint_keeps_it(workplace, cli):
    for path in (workplace / "mvtec/tile").rglob("*.png"):
        if "ground_truth" not in path.parts:
            image = cv2.imread(str(path)).astype(np.uint16)
            write(path, np.where(image == 240, 4095, image * 16).astype(np.uint16))
    status, out, error = cli("--train", "--threshold", "--detection")
    assert status == 0, error
    assert "pictures have more than 8 bits: 4095 is taken for white (data.white_level)" in out
    last = workplace / "checkpoints/tile/tiny/last.pt"
    assert checkpoint.read(last)["white_level"] == 4095
    decoded = [np.load(path) for path in (workplace / "checkpoints/.decoded").glob("nominal*.npy")]
    assert len(decoded) == 1 and decoded[0].mean() > 90  # divided by 256 it would be 6
    checked(cli("--detection", "--set", "data.white_level=1023"), ["data.white_level", "4095", "auto"])
    write(workplace / "mvtec/tile/test/good/000.png", np.full((40, 48), 60_000, np.uint16))
    checked(cli("--detection"), ["000.png", "60000", "above white (4095)"])


def test_validation_pictures_are_held_out(workplace, cli):
    for i in range(4):
        image = np.random.default_rng(100 + i).integers(90, 110, (40, 48, 3), dtype=np.uint8)
        write(workplace / f"mvtec/tile/validation/good/{i}.png", image)
    status, out, _ = cli("--train", "--threshold")
    assert status == 0 and "on 6 images (4 held out)" in out and "thresholds from 4 held-out nominal images" in out
    kept = checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")
    assert set(kept["images"]["held_out"]) == {f"validation/good/{i}.png" for i in range(4)}
    write(workplace / "mvtec/tile/validation/good/9.png", np.full((40, 48, 3), 7, np.uint8))
    assert cli("--train", "--set", "train.epochs=3")[0] == 0
    kept = checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")
    assert len(kept["images"]["held_out"]) == 5 and len(kept["images"]["training"]) == 6


def test_groups_are_held_out_together(workplace, cli):
    good = workplace / "mvtec/tile/train/good"
    for path in sorted(good.iterdir()):
        path.rename(good / f"part{int(path.stem) // 2}_{path.name}")
    assert cli("--train", "--set", "data.split_by=(part\\d)_")[0] == 0
    kept = checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")["images"]
    parts = [{name[:5] for name in kept[part]} for part in ("training", "held_out")]
    assert [len(names) for names in parts] == [2, 1] and not parts[0] & parts[1]
    anew = ("--set", "data.run_name=other", "--set", "data.split_by=(shift)")
    checked(cli("--train", *anew), ["data.split_by", "does not match"])


def test_held_out_pictures_that_are_trained_on_as_well_set_no_threshold(workplace, cli):
    assert cli("--train")[0] == 0
    category = workplace / "mvtec/tile"
    held_out = list(checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")["images"]["held_out"])
    shutil.rmtree(workplace / "checkpoints/tile/tiny")
    (category / "validation/good").mkdir(parents=True)
    for path in (category / "train/good").iterdir():
        if path.name in held_out:
            shutil.copy(path, category / "validation/good" / path.name)
    image = cv2.imread(str(category / "test/good/000.png"))
    write(category / "validation/good/new.png", image)
    assert cli("--train")[0] == 0
    status, out, _ = cli("--threshold")
    assert status == 0 and f"as well: {len(held_out)}; left out of thresholds" in out
    assert "thresholds from 1 held-out nominal image" in out


def test_subfolders_and_remarks_reach_results(two, cli):
    image = cv2.imread(str(two / "mvtec/tile/test/good/000.png"))
    write(two / "mvtec/tile/test/ok/000.png", image)
    write(two / "mvtec/tile/test/spot/.ipynb_checkpoints/000.png", image)
    out = detect(cli)
    assert "test/ok is taken as nominal (good)" in out and "passed over: 1 hidden folders" in out
    rows = {row["path"]: row["label"] for row in rows_of(two / RESULT / "scores.csv")}
    assert rows["test/ok/000.png"] == "0" and len(rows) == 7
    assert (two / RESULT / "panels/ok/000.png").is_file() and (two / RESULT / "panels/good/000.png").is_file()


def test_thresholds_say_what_they_promise(two, cli):
    status, out, _ = cli("--threshold")
    assert status == 0
    assert "p_quantile: about 34 % false alarms (90 % interval 2.6 % to 78 %)" in out  # of two pictures
    assert (
        "conformal: never alarms: 2 pictures are too few to promise at most 0.05 of false alarms, 19 are needed" in out
    )
    assert "at least 99 are needed for 1 %" in out
    assert cli("--detection", "--set", "metrics.threshold_type=conformal")[0] == 0
    found = metrics_of(two, "conformal")
    assert found["image_threshold"] is None and found["pixel_threshold"] is None
    assert "too few held-out images" in found["notes"]["image_threshold"]
    assert (found["true_positives"], found["false_positives"], found["iou"]) == (0, 0, 0.0)
    detect(cli, "--set", "metrics.threshold_type=conformal", "--set", "metrics.max_false_alarms=0.5")
    kept = json.loads((two / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking.json").read_text())
    assert kept["conformal"]["image"] == sorted(kept["image_scores"])[1]
    assert metrics_of(two, "conformal")["image_threshold"] == kept["conformal"]["image"]


def test_thresholds_by_hand(two, cli):
    manual = ("--detection", "--set", "metrics.threshold_type=manual")
    checked(cli(*manual), ["metrics.image_threshold", "manual"])
    both = ("--set", "metrics.image_threshold=0.25", "--set", "metrics.pixel_threshold=0.75")
    assert cli(*manual, *both)[0] == 0
    found, rows = metrics_of(two, "manual"), rows_of(two / RESULT / "scores.csv")
    assert (found["image_threshold"], found["pixel_threshold"]) == (0.25, 0.75)
    called = [float(row["score"]) > 0.25 for row in rows]
    assert found["accuracy"] == np.mean([call == (row["label"] == "1") for call, row in zip(called, rows, strict=True)])


def planted(monkeypatch, maps):
    """Detection whose maps are `maps(title, index, mask)`."""
    from inference.detect import NetworkOutput

    def found(model, dataset, config, title, ranks=None):
        for idx in range(len(dataset)):
            sample = dataset[idx]
            mask, image = sample["mask"][0].numpy() > 0, sample["image"].permute(1, 2, 0).numpy()
            yield NetworkOutput(idx, image, image, maps(title, idx, mask).astype(np.float32), mask)

    monkeypatch.setattr("engine.threshold.detect", found)
    monkeypatch.setattr("engine.detection.detect", found)


def test_images_told_apart_by_lighting_alone_are_doubted(two, cli, monkeypatch):
    """Defective pictures score higher, but at a corner where no mask is."""

    def corner(title, idx, mask):
        anomaly_map = np.full(mask.shape, 0.1)
        anomaly_map[-20:, -20:] = 0.9 if mask.any() else 0.2
        return anomaly_map

    planted(monkeypatch, corner)
    large = ("--set", "data.img_size=128")
    out = detect(cli, *large)
    found = metrics_of(two)
    assert found["image_auroc"] == 1 and found["hit_rate"] == 0 and found["pixel_ap"] < 0.3
    assert "0 % of the detected defects are hit" in found["notes"]["masks_not_found"] and "background" in out
    planted(monkeypatch, lambda title, idx, mask: 0.1 + 0.8 * mask)
    detect(cli, *large)
    found = metrics_of(two)
    assert found["hit_rate"] == 1 and "masks_not_found" not in found["notes"]


def test_nominal_test_pictures_unlike_the_held_out_ones_are_told(workplace, cli, monkeypatch):
    for folder, count in (("train/good", 30), ("test/good", 20)):
        for i in range(count):
            write(
                workplace / f"mvtec/tile/{folder}/{i:03}.png", np.random.default_rng(i).integers(90, 110, (40, 48, 3))
            )
    assert cli("--train", "--set", "train.epochs=1")[0] == 0
    rng = np.random.default_rng(0)
    planted(monkeypatch, lambda title, idx, mask: rng.random(mask.shape) / (2 if title == "nominal images" else 1))
    out = detect(cli, "--set", "train.epochs=1")
    assert "the 20 nominal test pictures score clearly otherwise than the 10 that thresholds come from" in out


def test_intervals_hold_the_values(two, cli):
    detect(cli)
    found = metrics_of(two)
    for key in ("image_auroc", "pixel_ap", "pro", "accuracy", "iou", "true_positives"):
        assert found[f"{key}_low"] <= found[key] <= found[f"{key}_high"], key
    again = metrics_of(two)
    detect(cli)
    assert metrics_of(two) == again


def test_a_fifth_of_the_textures_is_held_out(workplace, cli):
    from config import load_config
    from training.data import datasets, find_files, split

    for i in range(3, 10):
        write(workplace / f"textures/kind/{i}.png", np.random.default_rng(i).integers(0, 256, (50, 60, 3)))
    config = load_config(workplace / "config.yaml")
    train, samples = datasets(config, split(config, find_files(config)))
    used = [{texture.tobytes() for texture in one.synthesizer.textures} for one in (train, samples.nominal)]
    assert [len(some) for some in used] == [8, 2] and not used[0] & used[1]
    config = load_config(workplace / "config.yaml", ["data.val_split=0"])
    train, samples = datasets(config, split(config, find_files(config)))
    assert len(train.synthesizer.textures) == 10 and samples is None


def test_check_says_what_is_there_and_what_is_odd(workplace, cli, monkeypatch):
    category = workplace / "mvtec/tile"
    shutil.copy(category / "train/good/000.png", category / "test/good/copy.png")
    write(category / "train/good/.thumbs/0.png", np.zeros((8, 8), np.uint8))
    before = sorted(workplace.rglob("*"))
    status, out, _ = cli("--check", "True")
    assert status == 0 and sorted(workplace.rglob("*")) == before
    for line in (
        "4 pictures to train on, 2 held out (of train/good)",
        "test pictures: 4 good, 3 spot",
        "training: 4 of 48 x 40 (width x height)",
        "passed over: 1 hidden folders (good/.thumbs)",
        "masks: 3 of 0 and 255",
        "p_quantile from 2 held-out pictures: about 34 % false alarms",
        "training: 2 steps an epoch, 4 in 2 epochs, about ",
        "nothing found that would stop training or detection",
    ):
        assert line in out, out
    copies = "test pictures that are training pictures as well (metrics will look better than they are): 1 (good/copy"
    held_out = "held out"
    assert copies in out or held_out in out


def test_check_names_all_that_would_stop(workplace, cli):
    category = workplace / "mvtec/tile"
    (category / "train/good/003.png").write_bytes(b"no picture")
    write(category / "ground_truth/spot/002_mask.png", np.full((40, 48), 128, np.uint8))
    write(category / "ground_truth/spot/001_mask.png", np.zeros((10, 10), np.uint8))
    status, out, error = cli("--check", "True")
    assert status == 2 and "Traceback" not in error
    stops = [line for line in out.splitlines() if line.startswith("would stop: ")]
    assert len(stops) == 3 and all(any(name in line for line in stops) for name in ("003.png", "002_mask", "001_mask"))
    (category / "ground_truth/spot/000_mask.png").unlink()
    checked(cli("--check", "True"), ["000_mask.png", "missing"])
