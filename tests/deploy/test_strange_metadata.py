"""deploy/detect.py refuses metadata and checksums that no export writes, with a ValueError."""

import json

import cv2
import numpy as np
import pytest

from deploy import detect

RIGHT = {
    "img_size": [32, 64],
    "tile_size": [32, 32],
    "tile_overlap": 0.25,
    "image_threshold": 0.5,
    "pixel_threshold": 0.5,
    "threshold_type": "max",
    "white_level": None,
    "masking": "post",
    "region": [[0, 9, 0, 9]],
    "registration": None,
}
ODD = ["x", "", -1, 0, 10**400, 1e308, True, [], {}, [1], ["a", "b"], [0, 0], [10**9, 10**9], [[1]], [[-1, 2, 0, 2]]]


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Load a model with these metadata, which gives maps of zeros."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")

    def loaded(metadata):
        texts = {key: json.dumps(value) for key, value in metadata.items()}
        run = (lambda images: np.zeros(images.shape[:3], np.float32), texts)
        monkeypatch.setattr(detect, "_opened", lambda path: run)
        return detect.Detector(path)

    return loaded


def test_right_metadata_are_taken(load):
    assert load(RIGHT)(np.zeros((40, 48, 3), np.uint8)).verdict == "nominal"


@pytest.mark.parametrize("key", RIGHT)
def test_metadata_of_another_type_are_a_value_error(load, key):
    refused = 0
    for odd in ODD:
        try:
            load(RIGHT | {key: odd})(np.zeros((40, 48, 3), np.uint8))
        except ValueError:
            refused += 1
    assert refused or key in ("masking", "threshold_type", "registration")


@pytest.mark.parametrize("text", ["[]", "{", "3", '{"files": 3}', "[" * 100_000, '{"files": {"../../x": "1"}}', "null"])
def test_malformed_checksums_are_an_error_of_the_file(load, tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError):
        load(RIGHT)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_graph_without_the_outputs_of_an_export_is_an_error_of_the_file(tmp_path, capsys, monkeypatch, suffix):
    import onnx

    path, value = tmp_path / "other.onnx", onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["other"], ["found"])],
        "other",
        [value("other", onnx.TensorProto.UINT8, [1, 32, 64, 3])],
        [value("found", onnx.TensorProto.UINT8, [1, 32, 64, 3])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, {"img_size": "[32, 64]", "image_threshold": "0.5"})
    onnx.save(model, path)
    if suffix == ".xml":
        import openvino

        graph = openvino.Core().read_model(path)
        for key, text in (("img_size", "[32, 64]"), ("image_threshold", "0.5")):
            graph.set_rt_info(text, ["draem", key])
        path = path.with_suffix(suffix)
        openvino.save_model(graph, path)
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.zeros((32, 64, 3), np.uint8))
    monkeypatch.setattr("sys.argv", ["detect.py", str(path), str(image)])
    assert detect.main() == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"failed    -        {image}: {path}: not an exported model (") and len(lines) <= 3
