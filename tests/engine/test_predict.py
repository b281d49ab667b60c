"""engine/predict.py, --predict: inference on new images gives what detection gives; also thresholds for a new place."""

import errno
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import rows_of, write
from messages import assert_line, assert_names, assert_user_error, lines_with
from PIL import Image

from config_file import load_config
from engine import predict as engine_predict
from inference.detector import Detector
from reporting.predictions import Predictions
from runtime.files import run_lock

REGION = ("--set", "masking.regions={tile: [[0, 20, 0, 24]]}", "--set", "metrics.masking=true")


def predict(cli, *arguments):
    status, out, error = cli("--predict", *map(str, arguments))
    assert status == 0, error
    return out


def predicted_in(out):
    return Path(out.splitlines()[-1].removeprefix("predictions: "))


def test_scores_and_maps_equal_those_of_detection(ready, cli):
    out = predict(cli, ready / "mvtec/tile/test", "--output", ready / "out")
    assert predicted_in(out) == ready / "out"
    rows = {row["path"].partition("tile/")[2]: row for row in rows_of(ready / "out/predictions.csv")}
    expected = rows_of(ready / "results/tiny/tile/checkpoint_2/no_masking/scores.csv")
    assert len(expected) == len(rows) == 6
    detector = Detector.load(ready / "checkpoints/tile/tiny")
    for row in expected:
        found = rows[row["path"]]
        assert float(found["score"]) == pytest.approx(float(row["score"]), abs=1e-6)
        assert found["verdict"] == ("anomalous" if row["prediction"] == "1" else "nominal") and not found["error"]
        assert (float(found["relative"]) > 0.5) == (found["verdict"] == "anomalous")
        label = row["path"].removeprefix("test/")
        levels = cv2.imread(str(ready / "out/maps" / label), cv2.IMREAD_UNCHANGED)
        assert levels.shape == (40, 48) and levels.dtype == np.uint16
        seen = detector(cv2.imread(str(ready / "mvtec/tile" / row["path"])))
        np.testing.assert_allclose(levels / 65535, seen.anomaly_map, atol=1e-5)
        assert float(found["area"]) == pytest.approx(seen.mask.mean(), abs=1e-6)
        assert int(found["regions"]) == len(seen.regions)
        assert found["box"] == (" ".join(map(str, seen.regions[0][:4])) if seen.regions else "")
        assert (ready / "out/panels" / label).is_file()


def test_prediction_needs_only_the_folder_of_a_run(ready, call, monkeypatch, tmp_path_factory):
    away = tmp_path_factory.mktemp("away")
    shutil.move(ready / "elsewhere/run", away / "run")
    shutil.copytree(ready / "mvtec/tile/test", away / "images")
    shutil.rmtree(ready / "mvtec")
    (away / "empty.yaml").write_text("")
    monkeypatch.chdir(away)
    weights = ("--set", "data.load_epoch=run/epoch_0002.pt")
    status, out, error = call("main", "--config", "empty.yaml", *weights, "--predict", "images")
    assert status == 0, error
    folder = away / predicted_in(out)
    assert (
        folder.parts[-2] == "predictions"
        and folder.name.startswith("images-")
        and folder.is_relative_to(away / "results/tiny/tile")
    )
    assert {row["verdict"] for row in rows_of(folder / "predictions.csv")} <= {"anomalous", "nominal"}
    found = Detector.load("run")(cv2.imread("images/spot/000.png"))
    [row] = [row for row in rows_of(folder / "predictions.csv") if row["path"] == "images/spot/000.png"]
    assert found.score == pytest.approx(float(row["score"]), abs=1e-6) and found.verdict == row["verdict"]


def test_settings_that_contradict_the_checkpoint_are_user_errors(ready, call):
    weights = ready / "elsewhere/run/epoch_0002.pt"
    (ready / "own.yaml").write_text(f"data: {{img_size: 64, load_epoch: {weights}}}")
    images = ("--predict", str(ready / "mvtec/tile/test/good"))
    outcome = call("main", "--config", str(ready / "own.yaml"), *images)
    assert_user_error(outcome, "data.img_size = (64, 64)", weights, "(32, 32)")
    outcome = call("main", "--set", "data.white_level=4095", *images)
    assert_user_error(outcome, "data.white_level = 4095", "last.pt")


def test_without_thresholds_there_are_scores_and_no_verdict(two, cli):
    out = predict(cli, two / "mvtec/tile/test/good", "--output", two / "out")
    assert len(lines_with(out, "python main.py --threshold True")) == 1
    rows = rows_of(two / "out/predictions.csv")
    assert len(rows) == 3 and all(row["score"] and not row["verdict"] and not row["threshold"] for row in rows)
    assert len(list((two / "out/maps").iterdir())) == 3
    about = re.search(r'"about": ?"([^"]*)"', (two / "out/report.html").read_text())[1]
    assert_names(about, "3 images", "0.5")  # the page says that its line is no threshold


def test_an_infinite_conformal_threshold_makes_every_image_nominal(ready, cli):
    """As of fewer held-out images than its false-positive rate needs."""
    never = ("--set", "metrics.threshold_type=conformal")
    out = predict(cli, ready / "mvtec/tile/test/spot", "--output", ready / "out", *never)
    assert_line(out, "conformal", 2, "metrics.threshold_type")  # from two held-out images
    rows = rows_of(ready / "out/predictions.csv")
    assert {(row["verdict"], row["threshold"], row["regions"]) for row in rows} == {("nominal", "inf", "0")}
    assert json.loads((ready / "out/made_with.json").read_text())["thresholds"] == ["conformal", "inf", "inf"]
    predict(cli, ready / "mvtec/tile/test/spot", "--output", ready / "out", "--resume", *never)
    page = (ready / "out/report.html").read_text()
    assert '"conformal": {"image": null, "pixel": null}' in page and re.search(r'"start": ?1\.0', page)
    assert_names(re.search(r'"about": ?"([^"]*)"', page)[1], "conformal", "infinite")


def test_images_that_cannot_be_decoded_are_rows_with_an_error(ready, cli):
    images, good = ready / "images", cv2.imread(str(ready / "mvtec/tile/test/good/000.png"))
    whole = write(images / "whole.png", good).read_bytes()
    (images / "zero.png").write_bytes(b"")
    (images / "cut.png").write_bytes(whole[:200])
    (images / "text.png").write_text("no image")
    header = bytearray(whole)
    header[16:24] = (20000).to_bytes(4, "big") * 2
    (images / "header.png").write_bytes(header)
    shutil.copy(images / "whole.png", images / ("long" * 62 + ".png"))
    shutil.copy(images / "whole.png", images / "cmyk.jpg.png")  # its map is not that of cmyk.jpg
    write(images / "one.png", good[:1, :1])
    write(images / "deep.png", good.astype(np.uint16) * 257)
    Image.fromarray(good[..., ::-1]).convert("CMYK").save(images / "cmyk.jpg")
    Image.fromarray(good[..., ::-1]).convert("P").save(images / "palette.png")
    Image.fromarray(good[..., ::-1]).convert("RGBA").save(images / "alpha.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(good[..., ::-1]).save(images / "turned.jpg", exif=turned)
    status, out, _ = cli("--predict", str(images), "--output", str(ready / "out"))
    assert status == 1
    assert_line(out, "4 of 13", "predictions.csv")
    rows = {row["path"].rpartition("/")[2]: row for row in rows_of(ready / "out/predictions.csv")}
    assert {name for name, row in rows.items() if row["error"]} == {"zero.png", "cut.png", "text.png", "header.png"}
    assert all(name in row["error"] for name, row in rows.items() if row["error"])
    assert cv2.imread(str(ready / "out/maps/turned.jpg.png"), cv2.IMREAD_UNCHANGED).shape == (48, 40)
    assert len(list((ready / "out/maps").iterdir())) == len(list((ready / "out/panels").iterdir())) == 9
    same = [float(rows[name]["score"]) for name in ("whole.png", "deep.png", "alpha.png")]
    assert same == pytest.approx([same[0]] * 3, abs=1e-6)


def test_settings_of_thresholds_that_are_set_must_be_those_of_the_file(ready, cli):
    folder = ready / "mvtec/tile/test/good"
    other = cli("--predict", str(folder), "--set", "metrics.p=10")
    assert_user_error(other, "no_masking.json", "p = 99.0", "10.0", "--threshold True")
    assert cli("--threshold", "--set", "metrics.p=95", "--predict", str(folder), "--set", "metrics.k=2")[0] == 0
    out = predict(cli, folder, "--output", ready / "out")
    assert_line(out, "metrics.p = 95.0")


def test_an_image_that_fails_anywhere_is_a_row_with_an_error(ready, cli, plant, monkeypatch):
    """While it is read, in the networks, and while its files are written; the others of its batch are not lost."""
    images = ready / "images"
    for name, value in (("a", 10), ("b", 60), ("c", 110), ("d", 160), ("e", 210)):
        write(images / f"{name}.png", np.full((40, 48, 3), value, np.uint8))
    prepare, draw = Detector.prepare, Predictions.draw

    def fails(error, name):
        def method(self, *arguments):
            if name in str(arguments):
                raise error
            return (prepare if name == "a.png" else draw)(self, *arguments)

        return method

    def networks(model, image):
        if abs(float(image.mean()) - 110 / 255) < 0.01:
            raise RuntimeError("no convolution for it")
        return np.zeros(image.shape[1:])

    plant(networks)
    monkeypatch.setattr(Detector, "prepare", fails(cv2.error("imgwarp.cpp: too wide"), "a.png"))
    monkeypatch.setattr(Predictions, "draw", fails(MemoryError(), "e.png"))
    status, out, _ = cli("--predict", str(images), "--output", str(ready / "out"))
    rows = {row["path"].rpartition("/")[2]: row["error"] for row in rows_of(ready / "out/predictions.csv")}
    assert status == 1 and sorted(rows) == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert {name for name, error in rows.items() if error} == {"a.png", "c.png", "e.png"}
    assert all(name in error for name, error in rows.items() if error)
    assert_line(out, "3 of 5", "predictions.csv")


def test_a_fault_of_the_gpu_is_no_image_s(ready, monkeypatch):
    """It ends the prediction, and --resume does the images again."""

    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Detector, "run", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        engine_predict.run(load_config(ready / "config.yaml"), [ready / "mvtec/tile/test"], ready / "out")
    assert not rows_of(ready / "out/predictions.csv")


def test_on_a_full_disk_finished_images_keep_their_rows(ready, cli, monkeypatch):
    draw, images = Predictions.draw, ready / "mvtec/tile/test"

    def full(self, label, *arguments):
        if label.endswith("good/002.png"):
            raise OSError(errno.ENOSPC, "No space left on device", label)
        return draw(self, label, *arguments)

    monkeypatch.setattr(Predictions, "draw", full)
    outcome = cli("--predict", str(images), "--output", str(ready / "out"))
    assert_user_error(outcome, "good/002.png", "No space left on device")
    rows = [row["path"] for row in rows_of(ready / "out/predictions.csv")]
    assert len(rows) == 3 and not any(path.endswith("good/002.png") for path in rows)
    monkeypatch.setattr(Predictions, "draw", draw)
    out = predict(cli, images, "--output", ready / "out", "--resume")
    assert_line(out, "3 of 6")


def test_files_that_come_later_are_added_to_predictions_of_files(ready, cli):
    images = sorted((ready / "mvtec/tile/test/good").iterdir())
    predict(cli, *images[:2], "--output", ready / "out")
    assert_line(predict(cli, *images, "--output", ready / "out", "--resume"), "2 of 3")
    assert len(rows_of(ready / "out/predictions.csv")) == 3


def test_a_place_that_is_taken_fails_one_image_only(ready, cli):
    (ready / "images/a.png.png").mkdir(parents=True)
    for name in ("a.png.png/b.png", "a.jpg", "c.png"):
        shutil.copy(ready / "mvtec/tile/test/good/000.png", ready / "images" / name)
    (ready / "out").mkdir()
    for flags in ((), ("--resume",)):
        (ready / "out/maps/c.png").mkdir(parents=True, exist_ok=True)
        status, _, _ = cli("--predict", str(ready / "images"), "--output", str(ready / "out"), *flags)
        rows = {row["path"].rpartition("/")[2]: row["error"] for row in rows_of(ready / "out/predictions.csv")}
        assert status == 1 and {name for name, error in rows.items() if error} == {"c.png"} and len(rows) == 3


def test_nothing_of_earlier_predictions_is_lost(ready, cli):
    """Folders of the same name do not share results; a second call continues them or names another folder."""
    for place in ("one", "two"):
        shutil.copytree(ready / "mvtec/tile/test/spot", ready / place / "good")
    first, second = (predicted_in(predict(cli, ready / place / "good")) for place in ("one", "two"))
    assert first != second and first.name.startswith("good-") and second.name.startswith("good-")
    before = (first / "predictions.csv").read_bytes()
    assert_user_error(cli("--predict", str(ready / "one/good")), first, "--resume", "--output")
    for flags in ((), ("--resume",)):
        assert_user_error(cli("--predict", str(ready / "two/good"), "--output", str(first), *flags), first, "--output")
    assert (first / "predictions.csv").read_bytes() == before
    inside = cli("--predict", str(ready / "one/good"), "--output", str(ready / "one/good/out"))
    assert_user_error(inside, ready / "one/good/out", "--output")
    with run_lock(first):
        assert_user_error(cli("--predict", str(ready / "one/good"), "--resume"), first, "--output")
    shutil.copy(ready / "mvtec/tile/test/good/000.png", ready / "one/good/new.png")
    assert_line(predict(cli, ready / "one/good", "--resume"), "3 of 4")
    verdicts = [row["verdict"] for row in rows_of(first / "predictions.csv")]
    summary = (first / "summary.txt").read_text()
    assert_line(summary, f"{verdicts.count('anomalous')} anomalous", f"{verdicts.count('nominal')} nominal")
    assert sum(map(int, re.findall(r"(\d+) (?:anomalous|nominal)", summary))) == 4


def test_an_interrupted_prediction_is_resumed(ready, cli, on_forward, batch_sizes):
    images, output = ready / "mvtec/tile/test", ready / "out"
    pairs = ("--set", "data.test_batch_size=2")
    is_interrupted = True

    def interrupt(*_):
        if is_interrupted and len(batch_sizes) == 3:
            raise KeyboardInterrupt

    on_forward(interrupt)
    assert cli("--predict", str(images), "--output", str(output), *pairs)[0] == 130
    first = rows_of(output / "predictions.csv")
    assert 2 <= len(first) < 6
    with (output / "predictions.csv").open("a") as stream:
        stream.write("half/a/row.png,0.12")
    is_interrupted = False
    batch_sizes.clear()
    out = predict(cli, images, "--output", output, "--resume", *pairs)
    assert_line(out, f"{len(first)} of 6")
    assert sum(batch_sizes) == 6 - len(first)
    rows = rows_of(output / "predictions.csv")
    assert rows[: len(first)] == first and len({row["path"] for row in rows}) == len(rows) == 6
    other = cli("--predict", str(images), "--output", str(output), "--resume", "--set", "metrics.threshold_type=max")
    assert_user_error(other, output, "--resume", "--output")


def test_images_of_the_same_name_have_separate_maps(ready, cli):
    test = ready / "mvtec/tile/test"
    predict(cli, test / "good", test / "spot", test / "good/000.png", test / "spot/000.png", "--output", ready / "out")
    found = {path.relative_to(ready / "out/maps").as_posix() for path in (ready / "out/maps").rglob("*.png")}
    names = {f"{folder}/00{i}.png" for folder in ("good", "spot") for i in range(3)}
    single = found - names
    assert len(found) == 8 and len(single) == 2 and all(re.fullmatch(r"000~[0-9a-f]{8}\.png", name) for name in single)
    assert len(rows_of(ready / "out/predictions.csv")) == 8


@pytest.mark.parametrize("bits", [12, 14])
def test_images_of_other_bits_than_in_training_are_reported(ready, cli, bits):
    """12 bits in a 16-bit file are nearly black: an error of the image. 14 bits are dark: a note."""
    image = cv2.imread(str(ready / "mvtec/tile/test/good/000.png")).astype(np.uint16) << (bits - 8)
    image[0, 0] = 2**bits - 1
    write(ready / "deep/a.png", image)
    status, out, _ = cli("--predict", str(ready / "deep"), "--output", str(ready / "out"))
    [row] = rows_of(ready / "out/predictions.csv")
    assert_line(out, 2**bits - 1, 65535)
    assert status == (1 if bits == 12 else 0) and bool(row["verdict"]) == (bits == 14)
    assert bits == 14 or "4095" in row["error"]


def test_an_image_that_a_region_does_not_fit_is_a_row_with_an_error(ready, cli):
    write(ready / "images/small.png", np.full((16, 20, 3), 100, np.uint8))
    shutil.copy(ready / "mvtec/tile/test/good/000.png", ready / "images/fits.png")
    assert cli("--threshold", *REGION)[0] == 0
    status, _, _ = cli("--predict", str(ready / "images"), "--output", str(ready / "out"), *REGION)
    rows = {row["path"].rpartition("/")[2]: row for row in rows_of(ready / "out/predictions.csv")}
    assert status == 1 and "masking.regions.tile" in rows["small.png"]["error"] and rows["fits.png"]["verdict"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--predict", "nowhere"), ["nowhere"]),
        (("--predict", "{root}/empty"), ["{root}/empty"]),
        (("--predict", "{root}/mvtec", "--set", "data.load_epoch=7"), ["data.load_epoch", "epoch_0007.pt", "1, 2"]),
        (("--predict", "{root}/mvtec", "--set", "data.category=none"), ["data.load_epoch", "none/tiny/last.pt"]),
        (("--predict", "{root}/mvtec", "--set", "data.run_name=other"), ["data.load_epoch", "other/last.pt", "tiny"]),
        (
            ("--predict", "{root}/mvtec/tile/test", "--output", "{root}/config.yaml"),
            ["{root}/config.yaml", "--output"],
        ),
        (("--predict", "{root}/mvtec/tile/test", "--output", "{root}/mvtec"), ["{root}/mvtec", "--output"]),
        (("--output", "{root}/x", "--train"), ["--output", "--predict"]),
        (("--resume",), ["--train True"]),
        (("--nominal", "{root}/mvtec", "--train"), ["--nominal", "--threshold"]),
        (("--threshold", "--nominal", "{root}/empty"), ["--nominal {root}/empty"]),
        (
            ("--threshold", "--nominal", "{root}/mvtec/tile/train/good", "--set", "data.load_epoch=9"),
            ["data.load_epoch", "epoch_0009.pt"],
        ),
        (("--resume", "--check"), ["--resume", "--predict"]),
        (("--watch", "{root}/config.yaml"), ["--watch {root}/config.yaml"]),
        (("--watch", "{root}/mvtec", "--output", "{root}/mvtec/out"), ["{root}/mvtec/out", "--output"]),
    ],
)
def test_paths_and_flags_that_do_not_fit_are_user_errors(two, cli, arguments, names):
    (two / "empty").mkdir()
    outcome = cli(*(argument.format(root=two) for argument in arguments))
    assert_user_error(outcome, *(name.format(root=two) for name in names))
