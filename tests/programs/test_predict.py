"""--predict and the Detector: pictures from anywhere, judged as detection would judge them."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import checked, rows_of, write
from PIL import Image

from evaluation.metrics import Region, regions
from evaluation.thresholds import relative
from inference import checkpoint
from inference import detector as detector_module
from inference.detector import Detector
from reporting import predictions

REGION = ("--set", "masking.regions={tile: [[0, 20, 0, 24]]}", "--set", "metrics.masking=true")


@pytest.fixture
def judged(two, cli):
    """A workplace whose model has thresholds, and the run's folder copied away from all else."""
    assert cli("--threshold", "--detection")[0] == 0
    shutil.copytree(two / "checkpoints/tile/tiny", two / "elsewhere/run")
    return two


def predict(cli, *arguments):
    status, out, error = cli("--predict", *map(str, arguments))
    assert status == 0, error
    return out


def predicted_in(out):
    return Path(out.splitlines()[-1].removeprefix("predictions: "))


def test_scores_are_those_of_detection(judged, cli):
    out = predict(cli, judged / "mvtec/tile/test", "--output", judged / "out")
    assert predicted_in(out) == judged / "out"
    rows = {row["path"].partition("tile/")[2]: row for row in rows_of(judged / "out/predictions.csv")}
    expected = rows_of(judged / "results/tiny/tile/checkpoint_2/no_masking/scores.csv")
    assert len(expected) == len(rows) == 6
    detector = Detector.load(judged / "checkpoints/tile/tiny")
    for row in expected:
        found = rows[row["path"]]
        assert float(found["score"]) == pytest.approx(float(row["score"]), abs=1e-6)
        assert found["verdict"] == ("anomalous" if row["prediction"] == "1" else "nominal") and not found["error"]
        assert (float(found["relative"]) > 0.5) == (found["verdict"] == "anomalous")
        label = row["path"].removeprefix("test/")
        levels = cv2.imread(str(judged / "out/maps" / label), cv2.IMREAD_UNCHANGED)
        assert levels.shape == (40, 48) and levels.dtype == np.uint16
        seen = detector(cv2.imread(str(judged / "mvtec/tile" / row["path"])))
        np.testing.assert_allclose(levels / 65535, seen.anomaly_map, atol=1e-5)
        assert float(found["area"]) == pytest.approx(seen.mask.mean(), abs=1e-6)
        assert int(found["regions"]) == len(seen.regions)
        assert found["box"] == (" ".join(map(str, seen.regions[0][:4])) if seen.regions else "")
        assert (judged / "out/panels" / label).is_file()


def test_the_runs_folder_is_enough(judged, call, monkeypatch, tmp_path_factory):
    away = tmp_path_factory.mktemp("away")
    shutil.move(judged / "elsewhere/run", away / "run")
    shutil.copytree(judged / "mvtec/tile/test", away / "photos")
    shutil.rmtree(judged / "mvtec")
    (away / "empty.yaml").write_text("")
    monkeypatch.chdir(away)
    weights = ("--set", "data.load_epoch=run/epoch_0002.pt")
    status, out, error = call("main", "--config", "empty.yaml", *weights, "--predict", "photos")
    assert status == 0, error
    folder = away / predicted_in(out)
    assert folder.parts[-2:] == ("predictions", "photos") and folder.is_relative_to(away / "results/tiny/tile")
    assert {row["verdict"] for row in rows_of(folder / "predictions.csv")} <= {"anomalous", "nominal"}
    found = Detector.load("run")(cv2.imread("photos/spot/000.png"))
    [row] = [row for row in rows_of(folder / "predictions.csv") if row["path"] == "photos/spot/000.png"]
    assert found.score == pytest.approx(float(row["score"]), abs=1e-6) and found.verdict == row["verdict"]


def test_settings_that_contradict_the_checkpoint_are_named(judged, call):
    (judged / "own.yaml").write_text(f"data: {{img_size: 64, load_epoch: {judged / 'elsewhere/run/epoch_0002.pt'}}}")
    photos = ("--predict", str(judged / "mvtec/tile/test/good"))
    outcome = call("main", "--config", str(judged / "own.yaml"), *photos)
    checked(outcome, ["data.img_size = (64, 64)", "epoch_0002.pt was trained with (32, 32)"])
    outcome = call("main", "--set", "data.white_level=4095", *photos)
    checked(outcome, ["data.white_level = 4095", "was trained with 8 bits or all 16"])


def test_without_thresholds_there_are_scores_and_no_verdict(two, cli):
    out = predict(cli, two / "mvtec/tile/test/good", "--output", two / "out")
    assert out.count("no thresholds") == 1 and "python main.py --threshold True" in out
    rows = rows_of(two / "out/predictions.csv")
    assert len(rows) == 3 and all(row["score"] and not row["verdict"] and not row["threshold"] for row in rows)
    assert len(list((two / "out/maps").iterdir())) == 3


def test_a_threshold_that_never_alarms_calls_everything_nominal(judged, cli):
    """Conformal, of fewer held-out pictures than its promise needs."""
    never = ("--set", "metrics.threshold_type=conformal")
    predict(cli, judged / "mvtec/tile/test/spot", "--output", judged / "out", *never)
    rows = rows_of(judged / "out/predictions.csv")
    assert {(row["verdict"], row["threshold"], row["regions"]) for row in rows} == {("nominal", "inf", "0")}
    assert json.loads((judged / "out/made_with.json").read_text())["thresholds"] == ["conformal", "inf", "inf"]
    predict(cli, judged / "mvtec/tile/test/spot", "--output", judged / "out", "--resume", *never)
    assert '"conformal": {"image": null, "pixel": null}' in (judged / "out/report.html").read_text()


def test_pictures_that_cannot_be_judged_are_rows_and_the_rest_goes_on(judged, cli):
    photos, good = judged / "photos", cv2.imread(str(judged / "mvtec/tile/test/good/000.png"))
    whole = write(photos / "whole.png", good).read_bytes()
    (photos / "zero.png").write_bytes(b"")
    (photos / "cut.png").write_bytes(whole[:200])
    (photos / "text.png").write_text("no picture")
    header = bytearray(whole)
    header[16:24] = (20000).to_bytes(4, "big") * 2
    (photos / "header.png").write_bytes(header)
    write(photos / "one.png", good[:1, :1])
    write(photos / "deep.png", good.astype(np.uint16) * 257)
    Image.fromarray(good[..., ::-1]).convert("CMYK").save(photos / "cmyk.jpg")
    Image.fromarray(good[..., ::-1]).convert("P").save(photos / "palette.png")
    Image.fromarray(good[..., ::-1]).convert("RGBA").save(photos / "alpha.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(good[..., ::-1]).save(photos / "turned.jpg", exif=turned)
    status, out, _ = cli("--predict", str(photos), "--output", str(judged / "out"))
    assert status == 1 and "4 of 11 pictures could not be judged" in out
    rows = {row["path"].rpartition("/")[2]: row for row in rows_of(judged / "out/predictions.csv")}
    assert {name for name, row in rows.items() if row["error"]} == {"zero.png", "cut.png", "text.png", "header.png"}
    assert all(name in row["error"] for name, row in rows.items() if row["error"])
    assert cv2.imread(str(judged / "out/maps/turned.jpg.png"), cv2.IMREAD_UNCHANGED).shape == (48, 40)
    same = [float(rows[name]["score"]) for name in ("whole.png", "deep.png", "alpha.png")]
    assert same == pytest.approx([same[0]] * 3, abs=1e-6)


def test_a_call_that_ended_early_is_gone_on_with(judged, cli, monkeypatch):
    photos, output = judged / "mvtec/tile/test", judged / "out"
    pairs = ("--set", "data.test_batch_size=2")
    run, passes = Detector.run, []

    def interrupted(self, prepared):
        if len(passes) == 2:
            raise KeyboardInterrupt
        passes.append(len(prepared))
        return run(self, prepared)

    monkeypatch.setattr(Detector, "run", interrupted)
    assert cli("--predict", str(photos), "--output", str(output), *pairs)[0] == 130
    first = rows_of(output / "predictions.csv")
    assert 2 <= len(first) < 6
    with (output / "predictions.csv").open("a") as stream:
        stream.write("half/a/row.png,0.12")
    passes.clear()
    monkeypatch.setattr(Detector, "run", lambda self, prepared: passes.append(len(prepared)) or run(self, prepared))
    out = predict(cli, photos, "--output", output, "--resume", *pairs)
    assert f"{len(first)} of 6 pictures are done already" in out and sum(passes) == 6 - len(first)
    rows = rows_of(output / "predictions.csv")
    assert rows[: len(first)] == first and len({row["path"] for row in rows}) == len(rows) == 6
    checked(
        cli("--predict", str(photos), "--output", str(output), "--resume", "--set", "metrics.threshold_type=max"),
        ["made with another checkpoint, other settings or thresholds", "--resume"],
    )


def test_pictures_of_the_same_name_stay_apart(judged, cli):
    test = judged / "mvtec/tile/test"
    predict(cli, test / "good", test / "spot", test / "good/000.png", test / "spot/000.png", "--output", judged / "out")
    found = {path.relative_to(judged / "out/maps").as_posix() for path in (judged / "out/maps").rglob("*.png")}
    names = {f"{folder}/00{i}.png" for folder in ("good", "spot") for i in range(3)}
    assert found == names | {"000.png", "000~2.png"}
    assert len(rows_of(judged / "out/predictions.csv")) == 8


def test_masking_and_registration_travel_with_the_checkpoint(workplace, cli):
    region = np.zeros((40, 48), np.uint8)
    region[:20] = 255
    write(workplace / "region.png", region)
    settings = ("--set", f"masking.regions={{tile: {workplace / 'region.png'}}}", "--set", "metrics.masking=true")
    settings += ("--set", "data.image_registration=true")
    assert cli("--train", "--threshold", "--detection", *settings)[0] == 0
    expected = rows_of(workplace / "results/tiny/tile/checkpoint_2/post_masking_registered/scores.csv")
    shutil.move(workplace / "mvtec", workplace / "photos")
    (workplace / "region.png").unlink()
    detector = Detector.load(workplace / "checkpoints/tile/tiny")
    assert detector.technique.name == "post_masking_registered" and detector.thresholds
    for row in expected:
        found = detector(cv2.imread(str(workplace / "photos/tile" / row["path"])))
        assert found.score == pytest.approx(float(row["score"]), abs=1e-6)
        assert not found.anomaly_map[:18].any()


def test_a_picture_that_a_region_does_not_fit_is_an_error_of_that_picture(judged, cli):
    write(judged / "photos/small.png", np.full((16, 20, 3), 100, np.uint8))
    shutil.copy(judged / "mvtec/tile/test/good/000.png", judged / "photos/fits.png")
    assert cli("--threshold", *REGION)[0] == 0
    status, _, _ = cli("--predict", str(judged / "photos"), "--output", str(judged / "out"), *REGION)
    rows = {row["path"].rpartition("/")[2]: row for row in rows_of(judged / "out/predictions.csv")}
    assert status == 1 and "masking.regions.tile" in rows["small.png"]["error"] and rows["fits.png"]["verdict"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--predict", "nowhere"), ["nowhere: not there"]),
        (("--predict", "{root}/empty"), ["no picture in this folder"]),
        (("--predict", "{root}/mvtec", "--set", "data.load_epoch=7"), ["no checkpoint", "saved epochs: 1, 2"]),
        (("--predict", "{root}/mvtec", "--set", "data.category=none"), ["no checkpoint", "train first"]),
        (("--predict", "{root}/mvtec/tile/test", "--output", "{root}/config.yaml"), ["is a file", "--output"]),
        (("--predict", "{root}/mvtec/tile/test", "--output", "{root}/mvtec"), ["other files", "--output"]),
        (("--output", "{root}/x", "--train"), ["--output goes with --predict"]),
        (("--resume",), ["no mode asked for"]),
        (("--nominal", "{root}/mvtec", "--train"), ["--nominal FOLDER goes with --threshold"]),
        (("--threshold", "--nominal", "{root}/empty"), ["--nominal", "no pictures there"]),
        (("--threshold", "--nominal", "{root}/mvtec/tile/train/good", "--set", "data.load_epoch=9"), ["no checkpoint"]),
        (("--resume", "--check"), ["--resume goes with --predict"]),
        (("--watch", "{root}/config.yaml"), ["config.yaml: not a folder"]),
        (("--watch", "{root}/mvtec", "--output", "{root}/mvtec/out"), ["lies in the folder that is watched"]),
    ],
)
def test_bad_input_is_told(two, cli, arguments, words):
    (two / "empty").mkdir()
    checked(cli(*(argument.format(root=two) for argument in arguments)), words)


def test_the_detector_takes_arrays_of_any_size(judged):
    detector = Detector.load(judged / "elsewhere/run/epoch_0002.pt", device="cpu")
    pictures = [np.full((70, 33, 3), 100, np.uint8), cv2.imread(str(judged / "mvtec/tile/test/spot/002.png"))]
    both = detector(pictures)
    assert [one.anomaly_map.shape for one in both] == [(70, 33), (40, 48)]
    assert both[0].anomaly_map.dtype == np.float32 and both[0].mask.dtype == bool
    assert detector(pictures[1]).score == pytest.approx(both[1].score, abs=1e-6)
    for wrong in (pictures[0].astype(np.float32), pictures[0][..., 0], [[1, 2]]):
        with pytest.raises(ValueError, match=r"must be BGR, uint8 \(H, W, 3\)"):
            detector(wrong if isinstance(wrong, np.ndarray) else wrong[0])
    with pytest.raises(detector_module.UserError, match="no checkpoint there"):
        Detector.load(judged / "elsewhere")


def test_thresholds_from_other_good_pictures_stand_beside_the_old_ones(judged, cli):
    station, rng = judged / "station 2", np.random.default_rng(1)
    for i in range(5):
        write(station / f"{i}.png", rng.integers(150, 200, (40, 48, 3), dtype=np.uint8))
    shutil.copy(judged / "mvtec/tile/train/good/000.png", station / "copy.png")
    shutil.copy(judged / "mvtec/tile/train/good/003.png", station / "copy2.png")
    old = (judged / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking.json").read_text()
    arguments = ("--threshold", "--nominal", str(station), "--predict", str(station), "--output", str(judged / "out"))
    status, out, error = cli(*arguments)
    assert status == 0, error
    path = judged / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking_from_station 2.json"
    assert f"thresholds: {path}" in out.splitlines() and path.with_name("no_masking.json").read_text() == old
    content, rows = json.loads(path.read_text()), rows_of(judged / "out/predictions.csv")
    held_out = list(checkpoint.read(judged / "checkpoints/tile/tiny/last.pt")["images"]["held_out"])
    trained = sum(name not in held_out for name in ("000.png", "003.png"))
    assert trained and f"{trained} pictures were trained on" in out and content["pictures"] == 7 - trained
    scores = {float(row["score"]) for row in rows}
    assert set(content["image_scores"]) <= scores and content["image"]["max"] == max(content["image_scores"])
    assert {float(row["threshold"]) for row in rows} == {content["image"]["p_quantile"]}
    summary = (judged / "out/summary.txt").read_text()
    assert "Kolmogorov-Smirnov distance" in summary and "alike, as if" in summary
    chosen = ("--output", judged / "again", "--set", "metrics.nominal=station 2")
    assert "alike, as if" in predict(cli, station, *chosen)
    assert Detector.load(judged / "checkpoints/tile/tiny", nominal="station 2").thresholds.image == rows_limit(rows)
    missing = ("--predict", str(station), "--set", "metrics.nominal=other")
    assert "no_masking_from_other.json is missing" in cli(*missing)[1]


def rows_limit(rows):
    return float(rows[0]["threshold"])


def test_scores_unlike_those_of_the_thresholds_are_told(judged, cli, monkeypatch):
    monkeypatch.setattr("engine.predict.differ_significantly", lambda scores, others: True)
    out = predict(cli, judged / "mvtec/tile/test", "--output", judged / "out")
    assert "not alike: many of these pictures are defective" in out and "--threshold True --nominal FOLDER" in out


def test_regions_and_relative_scores():
    mask = np.zeros((20, 30), bool)
    mask[2:5, 3:7] = mask[10:18, 20:29] = True
    assert regions(mask) == [Region(20, 10, 29, 18, 72), Region(3, 2, 7, 5, 12)] and regions(mask[:1]) == []
    assert [relative(score, 0.2) for score in (0, 0.1, 0.2, 0.6, 1)] == [0, 0.25, 0.5, 0.75, 1]
    assert [relative(score, 1.5) for score in (0, 0.75)] == [0, 0.25] and relative(0.5, float("inf")) == 0
    assert relative(0, 0) == 0.5 and relative(1, 0) == 1
    scores = np.linspace(0, 1, 101)
    assert all(np.diff([relative(score, 0.37) for score in scores]) > 0)


def test_of_very_many_pictures_the_page_shows_the_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "MOST_SHOWN", 3)
    written = predictions.Predictions(tmp_path, None, {}, "none", keep=False)
    written.write([predictions.row_of_error(f"{i}.png", "broken") for i in (0, 1, 2, 3, 2)])
    written.write_report("many", lambda path: path, {})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The newest 3 of 4 pictures, 3 of them failed." in page and '"0.png"' not in page and '"3.png"' in page
