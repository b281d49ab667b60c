"""deploy/: the programs that run an exported file, in Python and in C++, against one table of cases.

The table is made by inference.detector, which --predict uses too.
"""

import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import openvino
import pytest
from conftest import ROOT, SETTINGS, config_of, make_dataset
from PIL import Image

from engine import export, train
from inference.detector import Detector
from inference.exported import Graph, compiled, openvino_model, saved

RECTANGLES = ["metrics.masking=true", "masking.regions={tile: [[0, 20, 0, 30], [30, 40, 40, 48]]}"]
MASK = ["metrics.masking=true", "data.pre_masking=true", "masking.regions={tile: ROOT/region.png}"]
REGISTERED = ["data.image_registration=true", "data.registration_reference=ROOT/reference.png"]
MODELS = {"plain": [], "rectangles": RECTANGLES, "mask": MASK, "registered": REGISTERED}
IN_C = ["plain", "rectangles", "mask"]


def scene(rng) -> np.ndarray:
    """A picture with enough corners to be registered, (120, 160)."""
    image = np.full((120, 160, 3), 120, np.uint8)
    for _ in range(120):
        corner, size = rng.integers(0, (150, 110)), rng.integers(4, 16, 2)
        cv2.rectangle(image, corner, corner + size, rng.integers(0, 256, 3).tolist(), -1)
    return image


def save(path: Path, image: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A folder with a model of each kind, images, and the table of what should be found: cases.json and maps.npz."""
    root, rng = make_dataset(tmp_path_factory.mktemp("deployed")), np.random.default_rng(0)
    (root / "config.yaml").write_text(SETTINGS.format(root=root.as_posix()))
    learns = ["train.epochs=30", "train.save_from=30", "train.learning_rate=1e-2"]
    train.run(config_of(root, *learns), "")
    reference = scene(rng)
    save(root / "reference.png", reference)
    region = np.zeros((40, 48), np.uint8)
    cv2.circle(region, (20, 18), 9, 255, -1)
    save(root / "region.png", region)
    test = sorted((root / "mvtec/tile/test").rglob("*.png"))[:5]
    images = dict.fromkeys(MODELS, test)
    save(root / "large.png", cv2.resize(cv2.imread(str(test[0])), (200, 130)))
    images["plain"] = [*test, root / "large.png"]
    for place, angle in enumerate((2.0, -4.0)):  # the third cannot be registered
        matrix = np.vstack([cv2.getRotationMatrix2D((80, 60), angle, 1.05), [0, 0, 1]])
        save(root / f"turned{place}.png", cv2.warpPerspective(reference, matrix, (160, 120)))
    images["registered"] = [root / "turned0.png", root / "turned1.png", test[0]]
    ckpt = Detector.for_new_images(config_of(root, *learns), {"metrics.threshold": False}).ckpt
    convert = cache(lambda: openvino_model(Graph(ckpt.model, reconstructs=True).eval()))
    cases, maps = [], {}
    for name, sets in MODELS.items():
        sets = [one.replace("ROOT", root.as_posix()) for one in sets]
        config = config_of(root, *learns, *sets)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "openvino_model", lambda graph: convert().clone())  # the weights are the same
            file = export.run(config, "openvino")
        folder = root / name
        shutil.move(file.parent, folder)
        (folder / f"{file.stem}.json").unlink()  # its checksum; thresholds are changed
        detector = Detector.for_new_images(config, export.AS_THE_FILE | {"metrics.threshold": False})
        detector.use_exported(compiled(folder / file.name), "openvino")
        prepared = [detector.read(path) for path in images[name]]
        results = [detector.run([one])[0] for one in prepared]
        ranked = sorted(one.score for one in results)
        middle = (ranked[len(ranked) // 2] + ranked[len(ranked) // 2 - 1]) / 2
        model = openvino.Core().read_model(folder / file.name)
        for kind in ("image", "pixel"):
            model.set_rt_info(str(middle), ["draem", f"{kind}_threshold"])
        os.replace(saved(model, root / file.name), folder / file.name)  # the weights are the same
        for path, one, found in zip(images[name], prepared, results, strict=True):
            key = f"{name} {path.relative_to(root)}"
            maps[key] = found.anomaly_map
            cases.append(
                {
                    "model": f"{name}/{file.name}",
                    "image": path.relative_to(root).as_posix(),
                    "score": found.score,
                    "verdict": "anomalous" if found.score > middle else "nominal",
                    "outlined": int((found.anomaly_map > middle).sum()),
                    "is_registered": one.homography is not None,
                    "map": key,
                }
            )
    (root / "cases.json").write_text(json.dumps(cases))
    np.savez(root / "maps.npz", **maps)
    return root


def cases_of(table: Path, name: str) -> list[tuple[dict, np.ndarray]]:
    maps = np.load(table / "maps.npz")
    return [
        (one, maps[one["map"]])
        for one in json.loads((table / "cases.json").read_text())
        if one["model"].startswith(name)
    ]


def program(folder: Path = ROOT / "deploy"):
    """The module detect.py of a folder."""
    spec = importlib.util.spec_from_file_location("deployed_detect", folder / "detect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_all_kinds_of_cases(table):
    cases = json.loads((table / "cases.json").read_text())
    assert {one["verdict"] for one in cases} == {"anomalous", "nominal"} and any(one["outlined"] for one in cases)
    assert [one["is_registered"] for one, _ in cases_of(table, "registered")] == [True, True, False]
    scores = {name: [one["score"] for one, _ in cases_of(table, name)][:5] for name in IN_C}
    assert all(scores["plain"] != scores[name] for name in ("rectangles", "mask"))


@pytest.mark.parametrize("name", MODELS)
def test_the_detector_in_python_finds_what_prediction_finds(table, name):
    detect, cases = program(), cases_of(table, name)
    detector = detect.Detector(table / cases[0][0]["model"])
    for expected, anomaly_map in cases:
        found = detector(cv2.imread(str(table / expected["image"])))
        assert found.score == pytest.approx(expected["score"], abs=2e-6) and found.verdict == expected["verdict"]
        assert found.anomaly_map.dtype == np.float32
        np.testing.assert_allclose(found.anomaly_map, anomaly_map, atol=1e-5)
        assert sum(region.area for region in found.regions) == pytest.approx(expected["outlined"], abs=3)
        assert [one.area for one in found.regions] == sorted((one.area for one in found.regions), reverse=True)


@pytest.mark.parametrize("name", IN_C)
def test_the_detector_in_c_plus_plus_finds_what_prediction_finds(table, built, tmp_path, name):
    cases = cases_of(table, name)
    images = [table / one["image"] for one, _ in cases]
    model = table / cases[0][0]["model"]
    done = subprocess.run([built / "cases", model, tmp_path / "maps", *images], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values, place = np.fromfile(tmp_path / "maps", np.float32), 0
    in_python = program().Detector(model)
    for (expected, anomaly_map), line in zip(cases, done.stdout.splitlines(), strict=True):
        verdict, score, *regions = line.split()
        assert verdict == expected["verdict"] and float(score) == pytest.approx(expected["score"], abs=2e-6)
        own = values[place : place + anomaly_map.size].reshape(anomaly_map.shape)
        np.testing.assert_allclose(own, anomaly_map, atol=1e-5)
        place += anomaly_map.size
        found = in_python(cv2.imread(str(table / expected["image"]))).regions
        assert [tuple(map(int, one.split(","))) for one in regions] == found
    assert place == len(values)


def test_tiles_in_both_languages(table, built, tmp_path):
    """A file that says that it takes tiles; test_tiles.py compares those of detect.py with prediction."""
    file = next((table / "plain").glob("*.xml"))
    model = openvino.Core().read_model(file)
    for key, value in {"tile_size": "[32, 32]", "tile_overlap": "0.25", "img_size": "[64, 96]"}.items():
        model.set_rt_info(value, ["draem", key])
    path, image = saved(model, tmp_path / "tiled.xml"), table / "large.png"
    found = program().Detector(path)(cv2.imread(str(image)))
    done = subprocess.run([built / "cases", path, tmp_path / "maps", image], capture_output=True, text=True)
    assert float(done.stdout.split()[1]) == pytest.approx(found.score, abs=2e-6), done.stderr
    np.testing.assert_allclose(np.fromfile(tmp_path / "maps", np.float32), found.anomaly_map.ravel(), atol=1e-5)


def test_what_the_programs_cannot_do_is_refused(table, built, tmp_path):
    detect, image = program(), next((table / "mvtec/tile/test").rglob("*.png"))
    registered = next((table / "registered").glob("*.xml"))
    done = subprocess.run([built / "detect", registered, image], capture_output=True, text=True)
    assert done.returncode == 2 and "detect.py" in done.stderr and not done.stdout
    done = subprocess.run([built / "detect", "--threshold", "nan", registered, image], capture_output=True, text=True)
    assert done.returncode == 2 and "--threshold: not a number" in done.stderr
    model = openvino.Core().read_model(registered)
    model.set_rt_info("part", ["draem", "registration"])
    with pytest.raises(ValueError, match="part"):
        detect.Detector(saved(model, tmp_path / "part.xml"))
    earlier = openvino.Core().read_model(next((table / "plain").glob("*.xml")))  # of a version without these keys
    stored = {key: earlier.get_rt_info(["draem", key]).astype(str) for key in ("img_size", "white_level")}
    del earlier.rt_info["draem"]
    for key, value in (stored | {"masking_and_registration": "no_masking_registered"}).items():
        earlier.set_rt_info(value, ["draem", key])
    with pytest.raises(ValueError, match="export it again"):
        detect.Detector(saved(earlier, tmp_path / "earlier.xml"))
    rectangles = detect.Detector(next((table / "rectangles").glob("*.xml")))
    with pytest.raises(ValueError, match="30 x 30"):
        rectangles(np.zeros((30, 30, 3), np.uint8))
    masked = next((table / "mask").glob("*.xml"))
    for file in masked.parent.glob("*"):
        if not file.name.endswith("_region.png"):
            shutil.copy(file, tmp_path)
    for program_, line in ((detect.Detector, None), (None, [built / "detect"])):
        if program_:
            with pytest.raises(ValueError, match=r"_region\.png"):
                program_(tmp_path / masked.name)
        else:
            done = subprocess.run([*line, tmp_path / masked.name, image], capture_output=True, text=True)
            assert done.returncode == 2 and "_region.png" in done.stderr


WRONG = {
    "none": (None, "None"),
    "pillow": (Image.new("RGB", (8, 8)), "Image"),
    "gray": (np.zeros((8, 8), np.uint8), r"\(8, 8\)"),
    "alpha": (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\)"),
    "float": (np.zeros((8, 8, 3)), "float64"),
    "16 bits": (np.zeros((8, 8, 3), np.uint16), "uint16"),
    "empty": (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
    "list": ([[1]], "list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_are_checked(table, name):
    image, given = WRONG[name]
    detector = program().Detector(next((table / "plain").glob("*.xml")))
    with pytest.raises(ValueError, match=rf"given: .*{given}.*wanted: BGR, uint8"):
        detector(image)


def test_a_single_file_suffices_in_a_program_of_ones_own(table, tmp_path):
    shutil.copy(ROOT / "deploy/detect.py", tmp_path)
    [[expected, _], *_] = cases_of(table, "plain")
    code = "import sys, cv2; from detect import Detector; found = Detector(sys.argv[1])(cv2.imread(sys.argv[2]));"
    code += "print(found.verdict, found.score); print({'torch', 'PIL', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, table / expected["model"], table / expected["image"]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    verdict, score = done.stdout.splitlines()[0].split()
    assert verdict == expected["verdict"] and float(score) == pytest.approx(expected["score"], abs=2e-6)
    assert done.stdout.splitlines()[1] == "set()"
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((9, 9), np.uint16))
    command = [sys.executable, "detect.py", table / expected["model"], table / expected["image"], "deep.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout.split()[:2] == [verdict, f"{expected['score']:.6f}"]
    assert "deep.png" in done.stderr and "decoding.py" in done.stderr


def post(port: int, content: bytes, method: str = "POST") -> tuple[int, dict]:
    """Status and answer of the server for a file."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, "/", content)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.fixture(scope="module")
def served(table, tmp_path_factory):
    """A server with a queue of one image, its port, and a case."""
    folder = tmp_path_factory.mktemp("served")
    for name in ("serve.py", "detect.py", "decoding.py"):
        shutil.copy(ROOT / "deploy" / name, folder)
    [[case, _], *_] = cases_of(table, "plain")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "serve.py", table / case["model"], "--port", str(port), "--queue", "1"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    deadline = time.monotonic() + 300  # 20 s where nothing else runs
    try:
        while "serving: http" not in (folder / "log").read_text():
            assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield server, port, case
    finally:
        server.terminate()  # Ray's processes end with it; those of a killed one stay for a while
        try:
            server.wait(30)
        finally:
            server.kill()


def test_the_server_answers_with_what_the_detector_finds_and_refuses_the_rest(table, served):
    server, port, expected = served
    started = subprocess.run(["pgrep", "-P", str(server.pid)], capture_output=True, text=True).stdout.split()
    for process in started:  # of Ray, which would report that it is used
        assert "RAY_USAGE_STATS_ENABLED=0" in Path(f"/proc/{process}/environ").read_text()
    assert started
    status, answer = post(port, (table / expected["image"]).read_bytes())
    assert status == 200 and answer["verdict"] == expected["verdict"]
    assert answer["score"] == pytest.approx(expected["score"], abs=2e-6)
    assert sum(region["area"] for region in answer["regions"]) == pytest.approx(expected["outlined"], abs=3)
    bomb = cv2.imencode(".png", np.zeros((9000, 9000), np.uint8))[1].tobytes()  # of 0.1 MB, more than 2**26 pixels
    for content, method, status, words in (
        (b"no image", "POST", 400, "decoded"),
        (bomb, "POST", 400, "81,000,000 pixels"),
        (b"", "GET", 405, "POST"),
        (b"", "POST", 413, "Content-Length"),
    ):
        found = post(port, content, method)
        assert found[0] == status and words in found[1]["error"], found


def test_the_servers_queue_is_bounded_and_emptied_before_the_end(served):
    server, port, _ = served
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8)
    large = cv2.imencode(".png", noise)[1].tobytes()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: post(port, large), range(6)))
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503} and statuses.count(200) >= 2
    with ThreadPoolExecutor(2) as pool:
        accepted = [pool.submit(post, port, large) for _ in range(2)]
        time.sleep(0.3)
        assert not any(one.done() for one in accepted)
        server.send_signal(signal.SIGTERM)
        assert [one.result()[0] for one in accepted] == [200, 200]
    assert server.wait(60) == 0
    with pytest.raises(OSError):
        post(port, large)


def test_a_server_without_a_model_does_not_start(tmp_path):
    command = [sys.executable, ROOT / "deploy/serve.py", tmp_path / "none.xml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith("none.xml: no such file\n") and not done.stdout


def test_a_crash_is_not_taken_for_an_anomalous_image(table, tmp_path):
    for name in ("detect.py", "decoding.py"):
        shutil.copy(ROOT / "deploy" / name, tmp_path)
    with (tmp_path / "decoding.py").open("a") as file:
        file.write("\n\ndef read(*_, **__):\n    raise RuntimeError\n")
    [[expected, _], *_] = cases_of(table, "plain")
    command = [sys.executable, "detect.py", table / expected["model"], table / expected["image"]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "RuntimeError" in done.stderr
