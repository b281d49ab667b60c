"""The export mode: one ONNX file that takes pictures and gives anomaly maps and scores."""

import json
import math
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from data import image_io
from data.mvtec import list_nominal
from evaluation.metrics import SCORE_WINDOW
from inference import checkpoint, networks
from inference.detector import Detector
from inference.preprocessing import Technique
from model import DRAEM
from runtime.errors import UserError
from runtime.files import atomic_write, write_text

FORMATS = ("onnx",)
NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
TOLERANCE = 1e-4  # of maps, between the file and the networks here
ROUNDING = 2e-6  # of scores


class Graph(nn.Module):
    """Pictures uint8 (N, H, W, 3), BGR -> anomaly maps (N, H, W) in [0, 1] and image scores (N,), float32.

    H and W: multiples of 32; with data.tile_size those of a tile. A score is the maximum of its map after averaging;
    zeros outside count, as for detection.
    """

    def __init__(self, model: DRAEM):
        super().__init__()
        self.model = networks.optimized(model, torch.device("cpu"), torch.float32)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        _, logits = self.model(image.permute(0, 3, 1, 2).float() / 255)
        anomaly_map = torch.softmax(logits, dim=1)[:, 1]
        smooth = nn.functional.avg_pool2d(anomaly_map[:, None], SCORE_WINDOW, stride=1, padding=SCORE_WINDOW // 2)
        return anomaly_map, smooth.amax(dim=(1, 2, 3))


def run(config: Config, kind: str) -> Path:
    """Write `<run>/export/<category>_<checkpoint>.onnx` and a JSON with what a program beside it needs to know.

    Raises:
        UserError: no checkpoint, an unknown format, packages that are missing.
        FloatingPointError: the file does not give the maps that the networks give; it is not kept.
    """
    if kind not in FORMATS:
        raise UserError(f"--export {kind}", "unknown format", f"choose one of: {', '.join(FORMATS)}")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(
            f"--export {kind}", f"{', '.join(missing)} not installed", "run: pip install -r requirements-export.txt"
        )
    config, weights = checkpoint.for_new_images(config)
    config = config.with_values({"train.precision": "fp32"})  # as the file computes
    detector = Detector.of(config, weights, device="cpu")
    for line in detector.notes:
        print(line)
    if detector.technique != Technique():
        print(f"{detector.technique.name} is not part of the file: it gives the maps of pictures as they are")
    if config.data.tile_size:
        print("the file takes tiles: deploy/ shows how their maps are put together")
    graph = Graph(detector.ckpt.model).eval()
    path = detector.run_folder / "export" / f"{config.data.category}_{detector.name}.onnx"
    facts = _facts(detector)
    with atomic_write(path) as beside:
        _write(graph, beside, facts)
        print(f"largest difference of a map from the networks here: {_check(graph, beside, detector):.1e}")
    write_text(path.with_suffix(".json"), json.dumps(facts, indent=2, allow_nan=False) + "\n")
    return path


def _facts(detector: Detector) -> dict[str, Any]:
    """What a program that runs the file needs to know."""
    data, limits = detector.config.data, detector.limits
    height, width = data.img_size
    own = {} if data.tile_size is None else {"tile_size": list(data.tile_size), "tile_overlap": data.tile_overlap}
    return {
        "category": data.category,
        "checkpoint": detector.name,
        "epoch": int(detector.name) if detector.name.isdecimal() else None,
        "fingerprint": detector.ckpt.fingerprint,
        "img_size": [height, width],
        **own,
        "channels": "BGR",
        "resize": f"bilinear to {width} x {height} (width x height), without antialiasing, as cv2.resize does",
        "white_level": None if data.white_level == "auto" else data.white_level,
        "masking_and_registration": detector.technique.name,
        "threshold_type": limits and limits.kind,
        "image_threshold": limits and _finite(limits.image),
        "pixel_threshold": limits and _finite(limits.pixel),
        "thresholds": {
            kind: {"image": _finite(image), "pixel": _finite(pixel)}
            for kind, (image, pixel) in detector.thresholds.items()
        },
    }


def _finite(limit: float) -> float | None:
    return limit if math.isfinite(limit) else None  # none that could alarm


def _write(graph: Graph, path: Path, facts: dict[str, Any]) -> None:
    import onnx

    count, height, width = (torch.export.Dim(name) for name in ("count", "height32", "width32"))
    # Sizes of 1, of the batch or of the smallest planes inside, would be taken as fixed.
    example = torch.zeros((2, 64, 96, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own insides
        program = torch.onnx.export(
            graph,
            (example,),
            input_names=["image"],
            output_names=["anomaly_map", "score"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"image": {0: count, 1: 32 * height, 2: 32 * width}},
            external_data=False,
            verbose=False,
        )
    content = program.model_proto
    for key, value in facts.items():
        content.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(content, path)


def _pictures(detector: Detector) -> list[np.ndarray]:
    """A few pictures that the model was made for; none where the dataset is not here."""
    config = detector.config
    with suppress(UserError, OSError):
        files = list_nominal(Path(config.data.data_path) / config.data.category)[:3]
        white_level = None if config.data.white_level == "auto" else config.data.white_level
        return [image_io.read_image(file, white_level=white_level) for file in files]
    return []


def _check(graph: Graph, path: Path, detector: Detector) -> float:
    """The largest difference of maps between the file and the networks: noise, structure, real pictures; two sizes,
    three sizes of batches.

    FloatingPointError where maps or scores differ by more than TOLERANCE, or a verdict does.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng, largest = np.random.default_rng(0), 0.0
    height, width = detector.config.data.input_size
    limit = detector.limits.image if detector.limits else np.inf
    real = _pictures(detector)
    for count, size in ((1, (height, width)), (3, (height, width)), (2, (height + 32, width + 64))):
        noise = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
        smooth = np.stack([image_io.resize(one[: size[0] // 8, : size[1] // 8], size) for one in noise])
        batches = [noise, smooth, *([np.stack([image_io.resize(one, size) for one in real[:count]])] if real else [])]
        for images in batches:
            with torch.inference_mode():
                maps, scores = (tensor.numpy() for tensor in graph(torch.from_numpy(images)))
            own_maps, own_scores = session.run(None, {"image": images})
            difference = max(float(np.abs(own_maps - maps).max()), float(np.abs(own_scores - scores).max()))
            # A score of the very threshold, as of the picture that it is from, can fall to either side by rounding.
            is_clear = np.abs(scores - limit) > ROUNDING
            if difference > TOLERANCE or ((own_scores > limit) != (scores > limit))[is_clear].any():
                raise FloatingPointError(f"--export: the file's maps differ by {difference:.1e}; it is not kept")
            largest = max(largest, difference)
    return largest
