"""inference.engine: --predict, --watch and the Detector with the file that --export has written."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, config_of, rows_of
from messages import assert_user_error

from engine import export
from inference.detector import Detector

OPENVINO = ("--set", "inference.engine=openvino")


@pytest.fixture
def exported(two, cli, converter, monkeypatch):
    """A workplace with an exported file."""
    monkeypatch.setattr(export, "openvino_model", converter)
    status, _, error = cli("--export", "openvino")
    assert status == 0, error
    return two


def test_prediction_with_the_exported_file(exported, cli):
    root = exported
    folder = root / "checkpoints/tile/tiny"
    images = [str(path) for path in sorted((root / "mvtec/tile/test").rglob("*.png"))]
    assert cli("--threshold")[0] == 0
    for name, sets in (("torch", ()), ("openvino", OPENVINO)):
        status, _, error = cli("--predict", *images, "--output", str(root / name), *sets)
        assert status == 0, error
    names = ("torch", "openvino")
    found = {name: [float(row["score"]) for row in rows_of(root / name / "predictions.csv")] for name in names}
    assert found["torch"] != found["openvino"]  # weights in 16 bits
    np.testing.assert_allclose(found["torch"], found["openvino"], atol=0.02)
    facts = json.loads((folder / "export/tile_2_openvino.json").read_text())
    kept = json.loads((folder / "thresholds/checkpoint_2/no_masking_openvino.json").read_text())
    assert kept["image"]["max"] == facts["thresholds"]["max"]["image"] and kept["provenance"]["precision"] == "openvino"
    detectors = {name: Detector.for_new_images(config_of(root, f"inference.engine={name}")) for name in names}
    assert detectors["openvino"].thresholds.image == facts["image_threshold"] != detectors["torch"].thresholds.image
    image = cv2.imread(images[0])
    outputs = [detector(image).output for detector in detectors.values()]
    np.testing.assert_allclose(outputs[0].reconstruction, outputs[1].reconstruction, atol=0.02)
    assert outputs[1].reconstruction.std() > 0
    assert json.loads((root / "openvino/made_with.json").read_text())["precision"] == "openvino"


@pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack")
def test_running_a_file_leaves_the_stack_of_signal_handlers(exported):
    """In a process of its own. Where the processor has AMX, OpenVINO set a stack that it freed with the model."""
    code = """if True:
        import ctypes, pathlib, sys
        import numpy as np
        from inference.exported import _SignalStack, compiled
        stack = _SignalStack()
        run = compiled(pathlib.Path(sys.argv[1]), (32, 32))
        run(np.zeros((1, 32, 32, 3), np.uint8))
        ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
        print(stack.flags, stack.size)
        """
    file = exported / "checkpoints/tile/tiny/export/tile_2_openvino.xml"
    done = subprocess.run([sys.executable, "-c", code, file], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "0"], done.stderr  # SS_DISABLE


def test_a_file_that_is_missing_or_of_other_weights_is_refused(exported, cli):
    root = exported
    image = str(next((root / "mvtec/tile/test").rglob("*.png")))
    names = "inference.engine = openvino-int8", "tile_2_int8.xml", "--export openvino-int8"
    assert_user_error(cli("--predict", image, "--set", "inference.engine=openvino-int8"), *names)
    folder = root / "checkpoints/tile/tiny/export"
    for suffix in (".xml", ".bin"):
        shutil.copy(folder / f"tile_2_openvino{suffix}", folder / f"tile_1_openvino{suffix}")
    outcome = cli("--predict", image, *OPENVINO, "--set", "data.load_epoch=1")
    assert_user_error(outcome, "tile_1_openvino.xml", "--export openvino")
    weights = folder / "tile_2_openvino.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    assert_user_error(cli("--predict", image, *OPENVINO), "tile_2_openvino.xml", "--export openvino")
    assert cli("--threshold")[0] == 0
    for mode in ("--threshold", "--detection"):
        assert_user_error(cli(mode, *OPENVINO), "inference.engine = openvino", "--predict")
