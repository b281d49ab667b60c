"""Exported models: their graph, their files as ONNX and in OpenVINO's form, and how these run on a CPU."""

import ctypes
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.metrics import SCORE_WINDOW
from inference import networks
from model import DRAEM
from runtime.files import naming
from runtime.json_file import read_json

OPSET = 18
OUTPUTS = ("anomaly_map", "score", "reconstruction")
# A size of 1 in the example, of the batch or of the smallest feature maps, would become a fixed size in ONNX.
EXAMPLE = torch.zeros((2, 64, 96, 3), dtype=torch.uint8)
# Images, uint8 (N, H, W, 3), BGR -> what `Graph` gives for them.
Run = Callable[[np.ndarray], Sequence[np.ndarray]]


class Graph(nn.Module):
    """Images uint8 (N, H, W, 3), BGR -> anomaly maps (N, H, W) in [0, 1] and image scores (N,), float32.

    With `reconstructs` also the reconstructions, float32 (N, 3, H, W). H and W are multiples of 32; with data.tile_size
    those of a tile. A score is the maximum of its map after average pooling with zero padding, as in detection.
    """

    def __init__(self, model: DRAEM, reconstructs: bool = False):
        super().__init__()
        self.reconstructs = reconstructs
        self.model = networks.optimized(model, torch.device("cpu"), torch.float32)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        reconstruction, logits = self.model(image.permute(0, 3, 1, 2).float() / 255)
        anomaly_map = torch.softmax(logits, dim=1)[:, 1]
        # A mean over rows, then over columns: over the whole window at once it took a sixth of an 8-bit file's time.
        smooth = anomaly_map[:, None]
        for height, width in ((SCORE_WINDOW, 1), (1, SCORE_WINDOW)):
            smooth = nn.functional.avg_pool2d(smooth, (height, width), stride=1, padding=(height // 2, width // 2))
        found = anomaly_map, smooth.amax(dim=(1, 2, 3))
        return (*found, reconstruction) if self.reconstructs else found


def openvino_model(graph: Graph) -> Any:
    """A graph as a model of OpenVINO, for any number and size of images."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about checks of sizes
        model = openvino.convert_model(
            graph, example_input=EXAMPLE, input=[openvino.PartialShape([-1, -1, -1, EXAMPLE.shape[3]])]
        )
    for port, name in zip((*model.inputs, *model.outputs), ("image", *OUTPUTS), strict=False):
        port.get_tensor().set_names({name})
    return model


def write_onnx(graph: Graph, path: Path, metadata: dict[str, Any]) -> None:
    """Write a graph as an ONNX file with metadata."""
    import onnx

    count, height, width = (torch.export.Dim(name) for name in ("count", "height32", "width32"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            graph,
            (EXAMPLE,),
            input_names=["image"],
            output_names=list(OUTPUTS[: 2 + graph.reconstructs]),
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"image": {0: count, 1: 32 * height, 2: 32 * width}},
            external_data=False,
            verbose=False,
        )
    assert program is not None  # dynamo=True
    content = program.model_proto
    for key, value in metadata.items():
        content.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(content, path)


def pixels_of(images: Tensor) -> np.ndarray:
    """Images (N, 3, H, W), uint8 or float32 in [0, 1], as a file takes them: uint8 (N, H, W, 3)."""
    if images.dtype != torch.uint8:
        images = (images * 255).round().to(torch.uint8)
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())


def saved(model: Any, path: Path) -> Path:
    """Write a model of OpenVINO as .xml and .bin, with weights in 16 bits; the path.

    Raises:
        OSError: no space, no permission.
    """
    import openvino

    try:
        openvino.save_model(model, path)
    except RuntimeError:  # it does not say why; the system does
        with naming(path), path.with_suffix(".bin").open("ab") as stream:
            stream.write(bytes(2**20))
        raise
    return path


def compiled(model: Any, size: tuple[int, int] | None = None, precision: str = "f32", threads: int = 0) -> Run:
    """A function that runs a model on the CPU.

    Args:
        model: of OpenVINO, or the path of its .xml. size: (height, width) of single images, which is faster than free
            sizes; None for any. precision: f32 or bf16, of what is not in 8 bits. threads: 0 for all cores.
    """
    import openvino

    core = openvino.Core()
    if isinstance(model, Path):
        model = core.read_model(model)
    if size:
        model = model.clone()
        model.reshape({0: [1, *size, 3]})
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    with own_signal_stack():
        network = core.compile_model(model, "CPU", options)

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        return list(network(images).values())

    return run


class _SignalStack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Keep the stack for signal handlers of this thread.

    OpenVINO sets another one where the processor has AMX, and frees it with the model: the next signal with a handler
    in Python, such as that of an ended child process, was then a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    library, before = ctypes.CDLL(None), _SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)


def path_of(run_folder: Path, category: str, checkpoint_name: str, engine: str) -> Path:
    """The .xml file that --export writes for an engine."""
    kind = engine.removeprefix("openvino-")
    return run_folder / "export" / f"{category}_{checkpoint_name}_{kind}.xml"


def is_damaged(path: Path) -> bool:
    """Whether the JSON beside a .xml file is malformed, or a checksum in it is not that of its file."""
    facts = path.with_suffix(".json")
    try:
        written = read_json(facts) if facts.is_file() else {}
        digests = {path.name: written.get("sha256")} | written.get("files", {})
    except (OSError, ValueError, AttributeError, TypeError):
        return True
    files = {path.parent / Path(name).name: digest for name, digest in digests.items() if digest}
    return any(
        not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest for file, digest in files.items()
    )


def fingerprint_of(path: Path) -> str:
    """Fingerprint of the weights of a .xml file; empty where it has none, or cannot be read."""
    import openvino

    key = ["draem", "fingerprint"]
    try:
        model = openvino.Core().read_model(path)
        return model.get_rt_info(key).astype(str) if model.has_rt_info(key) else ""
    except RuntimeError:
        return ""
