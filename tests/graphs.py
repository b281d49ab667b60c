"""Graphs for ONNX and OpenVINO, each written once in a session: writing them takes seconds."""

import hashlib
from types import SimpleNamespace

import onnx
import pytest
import torch
from filelock import FileLock

from inference import exported


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that the processes of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


@pytest.fixture(scope="session")
def exporter(shared_folder):
    """In place of torch.onnx.export: the graph that its first call has written, with the weights of the one at hand.

    It is the same for all weights; where names or shapes are others, it is written anew. --export compares each file
    with its networks.
    """
    export = torch.onnx.export

    def export_once(graph, *arguments, **keywords):
        path, weights = shared_folder / f"{'_'.join(keywords['output_names'])}.onnx", graph.state_dict()
        with FileLock(f"{path}.lock"):
            if not path.is_file():
                onnx.save(export(graph, *arguments, **keywords).model_proto, path)
        model = onnx.load(path)
        kept = {one.name: one for one in model.graph.initializer}
        if any(name not in kept or tuple(kept[name].dims) != value.shape for name, value in weights.items()):
            return export(graph, *arguments, **keywords)
        for name, value in weights.items():
            kept[name].CopyFrom(onnx.numpy_helper.from_array(value.numpy(), name))
        return SimpleNamespace(model_proto=model)

    return export_once


@pytest.fixture(scope="session")
def converter():
    """In place of openvino_model: a copy of what it has given for the same weights."""
    convert, made = exported.openvino_model, {}

    def convert_once(graph):
        weights = b"".join(value.numpy().tobytes() for value in graph.state_dict().values())
        key = graph.reconstructs, hashlib.sha256(weights).digest()
        if key not in made:
            made[key] = convert(graph)
        return made[key].clone()

    return convert_once
