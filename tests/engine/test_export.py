"""engine/export.py, --export, and the programs of deploy/ that run its file."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from conftest import GOLDEN, ROOT, SETTINGS, config_of, make_dataset, rows_of
from in_process import run_here
from messages import assert_names, assert_user_error, error_of
from PIL import Image

from config_file import load_config
from engine import export
from inference import quantization
from inference.checkpoint import load_metadata
from inference.detector import Detector
from inference.exported import Graph, compiled, saved
from inference.quantization import Quality, quality_of
from training import validation

LEARNS = ("--set", "train.epochs=30", "--set", "train.save_from=30", "--set", "train.learning_rate=1e-2")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, exporter):
    """A run with thresholds and an exported file. Anomalous images score about 0.9, nominal ones 0.16."""
    root = make_dataset(tmp_path_factory.mktemp("exported"))
    (root / "config.yaml").write_text(SETTINGS.format(root=root.as_posix()))
    image = cv2.imread(str(root / "mvtec/tile/test/spot/000.png"))
    for name in ("large.png", "größe 1.png"):
        (root / name).write_bytes(cv2.imencode(".png", cv2.resize(image, (200, 120)))[1].tobytes())
    images = [root / "mvtec/tile/test", root / "large.png", root / "größe 1.png"]
    arguments = ["--config", root / "config.yaml", *LEARNS, "--train", "--threshold"]
    arguments += ["--export", "onnx", "--output", root / "out", "--predict", *images]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", exporter)
        out = run_here("main", *arguments)
    assert out.splitlines()[-1] == f"export: {(root / 'checkpoints/tile/tiny/export/tile_30.onnx').as_posix()}"
    difference = re.findall(r"\b\d\.\de-\d\d\b", out)  # of a map, from the networks here
    assert len(difference) == 1 and float(difference[0]) < 1e-4
    return root


def verdicts(text):
    """Path -> verdict and score, as a deployed program has printed them."""
    lines = (line.split(maxsplit=2) for line in text.splitlines())
    return {path: (verdict, float(score)) for verdict, score, path in lines}


def check_verdicts(exported, text):
    expected = {row["path"]: row for row in rows_of(exported / "out/predictions.csv")}
    found = verdicts(text)
    assert found.keys() == expected.keys() and len(found) == 8
    assert {verdict for verdict, _ in found.values()} == {"anomalous", "nominal"}
    for path, (verdict, score) in found.items():
        assert verdict == expected[path]["verdict"] and score == pytest.approx(float(expected[path]["score"]), abs=2e-6)


def test_the_file_accepts_any_batch_and_image_size(exported):
    file = exported / "checkpoints/tile/tiny/export/tile_30.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    for count, height, width in ((1, 32, 32), (5, 64, 96), (2, 32, 160)):
        images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        maps, scores = session.run(None, {"image": images})
        assert maps.shape == (count, height, width) and scores.shape == (count,) and maps.dtype == np.float32
        smooth = [cv2.blur(one, (21, 21), borderType=cv2.BORDER_CONSTANT).max() for one in maps.astype(np.float64)]
        np.testing.assert_allclose(scores, smooth, atol=1e-6)


def test_the_file_has_its_settings_and_thresholds(exported):
    folder = exported / "checkpoints/tile/tiny"
    facts = json.loads((folder / "export/tile_30.json").read_text())
    limits = json.loads((folder / "thresholds/checkpoint_30/no_masking.json").read_text())
    assert facts["img_size"] == [32, 32] and facts["channels"] == "BGR" and facts["category"] == "tile"
    assert facts["image_threshold"] == limits["image"]["p_quantile"] and facts["checkpoint"] == "30"
    assert facts["epoch"] == 30 and facts["thresholds"]["max"]["image"] == limits["image"]["max"]
    assert facts["thresholds"]["conformal"] == {"image": None, "pixel": None}  # never alarms
    session = onnxruntime.InferenceSession(folder / "export/tile_30.onnx", providers=["CPUExecutionProvider"])
    stored = session.get_modelmeta().custom_metadata_map
    assert {key: stored[key] for key in ("channels", "category", "fingerprint")} == {
        key: facts[key] for key in ("channels", "category", "fingerprint")
    }
    assert json.loads(stored["img_size"]) == [32, 32]
    assert json.loads(stored["pixel_threshold"]) == facts["pixel_threshold"]


def test_thresholds_of_the_file_are_of_its_own_scores(two, cli, capsys):
    """With the masking that is set, and in float32, whatever --threshold computed."""

    def of_file(sets):
        config = load_config(two / "config.yaml", sets)
        return export._with_thresholds(export.Detector.for_new_images(config, export.AS_THE_FILE), config)

    masked = ["metrics.masking=true", "masking.regions={tile: [[0, 30, 0, 48]]}"]
    sets = [part for one in masked for part in ("--set", one)]
    assert cli("--threshold", *sets, "--set", "train.precision=fp32")[0] == 0
    assert cli("--threshold", "--set", "train.precision=bf16")[0] == 0
    folder = two / "checkpoints/tile/tiny/thresholds/checkpoint_2"
    coarse, post = (json.loads((folder / f"{name}.json").read_text()) for name in ("no_masking", "post_masking"))
    plain, exported = of_file([]), of_file(masked)
    for kind in ("max", "p_quantile", "k_sigma"):
        assert exported.all_thresholds[kind].image == pytest.approx(post["image"][kind], abs=1e-7)
        assert 1e-7 < abs(plain.all_thresholds[kind].image - coarse["image"][kind]) < 0.01
        assert abs(plain.all_thresholds[kind].image - post["image"][kind]) > 1e-3
    facts = export._metadata(exported)
    assert (facts["masking_and_registration"], facts["masking"]) == ("post_masking", "post")
    assert facts["region"] == [[0, 30, 0, 48]] and facts["registration"] is None
    assert cli("--threshold", "--set", "train.precision=fp32")[0] == 0
    capsys.readouterr()
    shutil.rmtree(two / "mvtec")  # then what is kept is used
    kept, plain = of_file([]), json.loads((folder / "no_masking.json").read_text())
    assert kept.thresholds.image == plain["image"]["p_quantile"] and "not at hand" in capsys.readouterr().out


def test_the_deployed_program_gives_the_same_verdicts(exported):
    paths = [row["path"] for row in rows_of(exported / "out/predictions.csv")]
    command = [sys.executable, ROOT / "deploy/detect.py", exported / "checkpoints/tile/tiny/export/tile_30.onnx"]
    done = subprocess.run([*command, *paths], capture_output=True, text=True, cwd=exported)
    check_verdicts(exported, done.stdout)
    shutil.copy(paths[0], exported / "日本.png")
    where = {"capture_output": True, "cwd": exported, "env": os.environ | {"PYTHONIOENCODING": "ascii"}}
    done = subprocess.run([*command, "?本.png"], **where)  # a pattern, and a console without these characters
    assert done.returncode in (0, 1) and b"\\u65e5\\u672c.png" in done.stdout, done.stderr
    (exported / "broken.png").write_text("no image")
    cv2.imwrite(str(exported / "deep.png"), cv2.imread(paths[0]).astype(np.uint16) * 16)
    done = subprocess.run([*command, "deep.png"], capture_output=True, text=True, cwd=exported)
    assert done.returncode == 2 and "deep.png" in done.stderr and not done.stdout  # 12 bits: nearly black
    done = subprocess.run([*command, "broken.png", paths[0]], capture_output=True, text=True, cwd=exported)
    assert done.returncode == 2 and "broken.png" in done.stderr and len(verdicts(done.stdout)) == 1
    for model in ("broken.png", "gone.onnx"):  # not 1, the exit status for anomalous images
        done = subprocess.run([*command[:2], model, paths[0]], capture_output=True, text=True, cwd=exported)
        assert done.returncode == 2 and model in done.stderr and "Traceback" not in done.stderr
    model = exported / "checkpoints/tile/tiny/export/tile_30.onnx"
    shutil.copy(model.with_suffix(".json"), exported / "copy.json")
    (exported / "copy.onnx").write_bytes(model.read_bytes()[:-1] + b"x")
    done = subprocess.run([*command[:2], "copy.onnx", paths[0]], capture_output=True, text=True, cwd=exported)
    assert done.returncode == 2 and "copy.json" in done.stderr and "damaged" in done.stderr
    lines = (ROOT / "deploy/detect.py").read_text().splitlines()
    assert not any(line.startswith(("import torch", "from inference")) for line in lines)


def test_the_deployed_program_in_c_plus_plus_gives_the_same_verdicts(exported, built, tmp_path):
    paths = [row["path"] for row in rows_of(exported / "out/predictions.csv")]
    command = [built / "detect", exported / "checkpoints/tile/tiny/export/tile_30.onnx"]
    done = subprocess.run([*command, *paths], capture_output=True, text=True)
    check_verdicts(exported, done.stdout)
    gray = np.full((40, 48), 100, np.uint8)
    wrong = {"deep.png": gray.astype(np.uint16) * 16, "float.tif": gray / np.float32(255)}
    for name, image in wrong.items():
        cv2.imwrite(str(tmp_path / name), image)
    Image.fromarray(np.dstack([gray] * 4)).save(tmp_path / "alpha.tif")
    Image.fromarray(gray).save(tmp_path / "pages.tif", save_all=True, append_images=[Image.fromarray(gray)])
    paths = [str(tmp_path / name) for name in (*wrong, "alpha.tif", "pages.tif")]
    done = subprocess.run([*command, *paths], capture_output=True, text=True)
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed")]  # OpenCV has lines of its own
    assert done.returncode == 2 and not done.stdout
    assert all(path in line for path, line in zip(paths, failed, strict=True)), done.stderr


def test_prediction_and_export_with_the_originals_weights(workplace, cli, monkeypatch):
    """Without the graph, which takes ten seconds to write and is the same for all weights."""
    monkeypatch.setattr(export, "write_onnx", lambda graph, path, metadata: path.write_bytes(b"graph"))
    monkeypatch.setattr(export, "_onnx_run", lambda path: None)
    monkeypatch.setattr(export, "_check", lambda *_: 0.0)
    shutil.copytree(GOLDEN / "official_format", workplace / "official")
    name = "DRAEM_seg_large_ae_large_0.0001_800_bs8_bottle_"
    sets = ("--set", f"data.load_epoch={workplace}/official/{name}.pckl", "--set", "model.base_width=8")
    images = str(workplace / "mvtec/tile/test")
    arguments = (
        "--threshold",
        "--detection",
        "--predict",
        images,
        "--output",
        str(workplace / "out"),
        "--export",
        "onnx",
    )
    status, out, error = cli(*arguments, *sets)
    assert status == 0, error
    file = workplace / f"checkpoints/tile/tiny/export/tile_{name}.onnx"
    assert out.splitlines()[-1] == f"export: {file}" and file.is_file()
    assert json.loads(file.with_suffix(".json").read_text())["epoch"] is None
    rows = {row["path"].partition("tile/")[2]: row for row in rows_of(workplace / "out/predictions.csv")}
    for row in rows_of(workplace / f"results/tiny/tile/checkpoint_{name}/no_masking/scores.csv"):
        assert float(rows[row["path"]]["score"]) == pytest.approx(float(row["score"]), abs=1e-6)
        assert rows[row["path"]]["verdict"] == ("anomalous" if row["prediction"] == "1" else "nominal")


def test_unknown_formats_and_missing_packages_are_user_errors(cli, monkeypatch):
    # Before the modes that take hours.
    assert_user_error(cli("--train", "--export", "tflite", "--set", "data.run_name=new"), "--export tflite", "onnx")
    assert not list(Path("checkpoints").rglob("new"))
    for package in ("openvino", "nncf"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert_user_error(cli("--export", "openvino-int8"), package, "requirements-export.txt")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as where it is not installed
    assert_user_error(cli("--export", "onnx"), "--export", "onnxruntime", "requirements-export.txt")


def scores_of(file, root, name):
    """Image scores of the named nominal images, by the file."""
    run = compiled(file)
    images = [cv2.resize(cv2.imread(str(root / "mvtec/tile/train" / one)), (32, 32)) for one in name]
    return [float(run(image[None])[1][0]) for image in images]


@pytest.mark.parametrize("kind", ["openvino", "int8"])
def test_files_of_openvino(exported, converter, kind, monkeypatch):
    """Metadata as in the JSON, and thresholds of the file's own scores. NNCF, which changes torch, runs elsewhere."""
    arguments = ["--config", exported / "config.yaml", *LEARNS]
    if kind == "openvino":
        monkeypatch.setattr(export, "openvino_model", converter)
        printed = run_here("main", *arguments, "--export", "openvino")
    else:
        bounds = [f"export.max_loss_{metric}=0.05" for metric in ("pixel_ap", "image_auroc")]  # the networks are tiny
        bounds = [part for one in (*bounds, "export.min_speedup=0") for part in ("--set", one)]
        command = [sys.executable, ROOT / "main.py", *arguments, "--export", "openvino-int8", *bounds]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    file = Path(printed.splitlines()[-1].removeprefix("export: "))
    assert file == exported / f"checkpoints/tile/tiny/export/tile_30_{kind}.xml" and not list(file.parent.glob(".*"))
    facts = json.loads(file.with_suffix(".json").read_text())
    digests = {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in (file, file.with_suffix(".bin"))}
    assert facts.pop("files") | {file.name: facts.pop("sha256")} == digests
    model = openvino.Core().read_model(file)
    stored = {key: model.get_rt_info(["draem", key]).astype(str) for key in facts}
    assert json.loads(stored["thresholds"]) == facts["thresholds"]
    assert stored["category"] == "tile" and json.loads(stored["img_size"]) == [32, 32]
    assert {port.any_name for port in model.outputs} == {"anomaly_map", "score", "reconstruction"}
    held_out = load_metadata(exported / "checkpoints/tile/tiny/epoch_0030.pt").images.held_out
    own = scores_of(file, exported, held_out)
    assert facts["thresholds"]["max"]["image"] == pytest.approx(max(own), abs=1e-6)
    plain = json.loads((exported / "checkpoints/tile/tiny/export/tile_30.json").read_text())
    change = abs(facts["thresholds"]["max"]["image"] - plain["thresholds"]["max"]["image"])
    assert change > 1e-6  # of weights in 16 bits, and of 8 bits
    in_8_bits = sum(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
    if kind == "openvino":
        assert not in_8_bits and float(re.findall(r"\b\d\.\de-\d\d\b", printed)[0]) < 0.05
        return
    found = facts["quantization"]
    assert in_8_bits and found["samples"] >= 200
    assert (
        found["milliseconds"].keys() == {"float32", "int8", "all_in_8_bits"} and min(found["milliseconds"].values()) > 0
    )
    assert found["int8"]["pixel_ap"] >= found["float32"]["pixel_ap"] - 0.05
    assert found["int8"]["image_auroc"] >= found["float32"]["image_auroc"] - 0.05
    assert f"{51 - len(found['in_float32'])} of 51 convolutions in 8 bits" in printed.splitlines()[-3]
    detector = Detector.load(exported / "checkpoints/tile/tiny", device="cpu")
    monkeypatch.setattr(validation, "SAMPLES", 200)  # as in the program
    samples = export.calibration_samples(detector)  # measured anew, with the file as it is
    quality = quality_of(compiled(file), samples)
    assert quality.pixel_ap == pytest.approx(found["int8"]["pixel_ap"], abs=0.003)
    assert quality.image_auroc == pytest.approx(found["int8"]["image_auroc"], abs=0.003)
    assert quality_of(
        compiled(converter(Graph(detector.ckpt.model, reconstructs=True).eval())), samples
    ) == pytest.approx(tuple(found["float32"].values()), abs=1e-4)


@pytest.mark.parametrize("reason", ["loss", "speed"])
def test_a_quantized_file_that_loses_too_much_or_saves_too_little_is_not_written(
    two, cli, converter, monkeypatch, reason
):
    qualities = iter([Quality(0.8, 0.9)])  # of the file in float32; then those of quantized ones
    lower = Quality(0.79, 0.9) if reason == "loss" else Quality(0.8, 0.9)
    monkeypatch.setattr(quantization, "quality_of", lambda run, samples: next(qualities, lower))
    monkeypatch.setattr(export, "openvino_model", converter)
    monkeypatch.setattr(quantization, "quantized", lambda model, calibration, in_float: model)
    text = error_of(cli("--export", "openvino-int8", "--set", "export.min_speedup=100"), status=1)
    assert_names(text, *(["0.7900", "32 of 51"] if reason == "loss" else ["export.min_speedup"]), "nothing is written")
    assert not (two / "checkpoints/tile/tiny/export").exists()


def test_quantization_needs_held_out_images(workplace, cli):
    assert cli("--train", "--set", "data.val_split=0")[0] == 0
    assert_user_error(cli("--export", "openvino-int8"), "--export openvino-int8", "data.val_split")


def test_a_file_that_gives_other_maps_is_not_kept(exported, two, cli, monkeypatch):
    """As where ONNX Runtime has a fault. The file is one that was written before: writing takes ten seconds."""
    run, model = onnxruntime.InferenceSession.run, exported / "checkpoints/tile/tiny/export/tile_30.onnx"

    def run_otherwise(self, *arguments):
        maps, scores = run(self, *arguments)
        return [maps + np.float32(0.01), scores]

    monkeypatch.setattr(export, "write_onnx", lambda graph, path, metadata: shutil.copy(model, path))
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", run_otherwise)
    error_of(cli("--export", "onnx"), status=1)
    assert not list((two / "checkpoints/tile/tiny").rglob("*.onnx"))


@pytest.mark.skipif(os.name == "nt", reason="no such limit there")
def test_a_failed_write_of_openvino_says_why(tmp_path):
    """Its own error is of a stream, without a reason; it ended in a traceback."""
    import resource

    model = openvino.Model([openvino.opset8.result(openvino.opset8.constant(np.arange(10_000, dtype=np.float32)))], [])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            saved(model, tmp_path / "tile.xml")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(tmp_path / "tile.xml")


def test_what_a_killed_export_has_left_is_removed(two, monkeypatch, converter):
    """By an export to another format too."""
    folder = two / "checkpoints/tile/tiny/export"
    (folder / ".abcdefgh.part").mkdir(parents=True)
    (folder / ".abcdefgh.part/tile_2_openvino.bin").write_bytes(b"weights")
    (folder / ".tile_2.0123abcd.part.onnx").write_bytes(b"weights")
    monkeypatch.setattr(export, "openvino_model", converter)
    export.run(config_of(two, "metrics.threshold=false"), "openvino")
    assert not list(folder.glob(".*"))
    (folder / ".abcdefgh.part").mkdir()
    monkeypatch.setattr(export, "_export_onnx", lambda *_: folder)
    export.run(config_of(two, "metrics.threshold=false"), "onnx")
    assert not list(folder.glob(".*"))
