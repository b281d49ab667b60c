"""The export mode: an ONNX file that takes images and gives anomaly maps and scores."""

import hashlib
import json
import math
import tempfile
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
from engine.threshold import nominal_images, of_held_out
from evaluation.metrics import SCORE_WINDOW
from evaluation.thresholds import MANUAL
from inference import checkpoint, networks
from inference.detector import Detector
from inference.preprocessing import Technique, configured
from model import DRAEM
from runtime.errors import UserError
from runtime.files import atomic_write, write_text
from runtime.version import program_version

FORMATS = ("onnx",)
NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
EXAMPLES = 32  # nominal images that the check compares verdicts on
TOLERANCE = 1e-4  # largest difference between maps of the file and of PyTorch
ROUNDING = 2e-6  # a score this close to the threshold may fall on either side


class Graph(nn.Module):
    """Images uint8 (N, H, W, 3), BGR -> anomaly maps (N, H, W) in [0, 1] and image scores (N,), float32.

    H and W are multiples of 32; with data.tile_size those of a tile. A score is the maximum of its map after average
    pooling with zero padding, as in detection.
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
    """Write `<run>/export/<category>_<checkpoint>.onnx`, and a JSON with the metadata that programs need.

    Raises:
        UserError: no checkpoint, an unknown format, missing packages.
        FloatingPointError: the maps of the file differ from those of the networks; the file is deleted.
    """
    if kind not in FORMATS:
        raise UserError(f"--export {kind}", "unknown format", f"choose one of: {', '.join(FORMATS)}")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(
            f"--export {kind}", f"{', '.join(missing)} not installed", "run: pip install -r requirements-export.txt"
        )
    tempfile.gettempdir()  # without one, torch prints a hundred lines before it fails
    detector = _detector(config)
    for line in detector.notes:
        print(line)
    if detector.config.data.tile_size:
        print("the file takes tiles: deploy/ shows how to blend their maps")
    graph = Graph(detector.ckpt.model).eval()
    path = detector.run_folder / "export" / f"{detector.config.data.category}_{detector.name}.onnx"
    metadata = _metadata(detector)
    with atomic_write(path) as beside:
        _write(graph, beside, metadata)
        print(f"largest difference between maps of the file and of the networks: {_check(graph, beside, detector):.1e}")
    metadata["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_text(path.with_suffix(".json"), json.dumps(metadata, indent=2, allow_nan=False) + "\n")
    return path


def _detector(config: Config) -> Detector:
    """A detector that does what the file does: no masking, no registration, float32; thresholds are of its scores."""
    settings, _ = checkpoint.for_new_images(config)
    is_of_registered = settings.data.registration_training
    plain = {"metrics.masking": False, "data.image_registration": is_of_registered}
    asked, own = configured(settings), Technique(registered=is_of_registered)
    if asked != own:
        print(f"{asked.name} is not part of the file: its thresholds are those of {own.name}")
    if is_of_registered:
        print("trained on registered images: register images before the file gets them")
    metrics = settings.metrics
    is_measured = metrics.threshold and metrics.threshold_type != MANUAL and metrics.nominal is None
    changes = plain | {"train.precision": "fp32", "train.device": "cpu"}
    if is_measured:  # what is kept may be of another precision
        changes["metrics.threshold"] = False
    detector = Detector.for_new_images(config, changes)
    if is_measured and (found := of_held_out(detector)):
        detector.use(found)
        what = {True: "held-out", None: "nominal", False: "TRAINING"}[found.held_out]
        print(f"thresholds of the file: from {len(found.image_scores)} {what} images, in float32")
    elif is_measured:
        detector = Detector.for_new_images(config, changes | {"metrics.threshold": True})
        print("the held-out images are not at hand: the thresholds are those of --threshold")
    if detector.thresholds is None:
        print("no thresholds: programs that run the file need one of their own, such as detect.py --threshold")
    return detector


def _metadata(detector: Detector) -> dict[str, Any]:
    """What a program that runs the file needs to know."""
    data, thresholds = detector.config.data, detector.thresholds
    height, width = data.img_size
    own = {} if data.tile_size is None else {"tile_size": list(data.tile_size), "tile_overlap": data.tile_overlap}
    return {
        "category": data.category,
        "checkpoint": detector.name,
        "epoch": int(detector.name) if detector.name.isdecimal() else None,
        "fingerprint": detector.ckpt.fingerprint,
        "program_version": program_version(),
        "img_size": [height, width],
        **own,
        "channels": "BGR",
        "resize": f"bilinear to {width} x {height} (width x height), without antialiasing, as cv2.resize does",
        "white_level": data.known_white_level,
        "masking_and_registration": detector.technique.name,
        "threshold_type": thresholds and thresholds.kind,
        "image_threshold": thresholds and _finite(thresholds.image),
        "pixel_threshold": thresholds and _finite(thresholds.pixel),
        "thresholds": {
            kind: {"image": _finite(found.image), "pixel": _finite(found.pixel)}
            for kind, found in detector.all_thresholds.items()
        },
    }


def _finite(threshold: float | None) -> float | None:
    return threshold if threshold is not None and math.isfinite(threshold) else None  # JSON has no infinity


def _write(graph: Graph, path: Path, metadata: dict[str, Any]) -> None:
    import onnx

    count, height, width = (torch.export.Dim(name) for name in ("count", "height32", "width32"))
    # A size of 1 in the example, of the batch or of the smallest feature maps, would become a fixed size.
    example = torch.zeros((2, 64, 96, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
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
    assert program is not None  # dynamo=True
    content = program.model_proto
    for key, value in metadata.items():
        content.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.save(content, path)


def _example_images(detector: Detector) -> list[np.ndarray]:
    """Some of the images that thresholds come from; none where the dataset is not available."""
    config = detector.config
    with suppress(UserError, OSError):
        samples, _ = nominal_images(config, detector.ckpt)
        white_level = config.data.known_white_level
        return [image_io.read_image(sample.path, white_level=white_level) for sample in samples[:EXAMPLES]]
    return []


def _check(graph: Graph, path: Path, detector: Detector) -> float:
    """The largest difference between the outputs of the file and of the networks.

    Compared on noise and smooth structure, in two sizes and three batch sizes, and on nominal images.

    Raises:
        FloatingPointError: maps or scores differ by more than TOLERANCE, or a verdict differs.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng, largest = np.random.default_rng(0), 0.0
    height, width = detector.config.data.input_size
    threshold = detector.thresholds.image if detector.thresholds else np.inf
    real = _example_images(detector)
    batches = [np.stack([image_io.resize(one, (height, width))]) for one in real]
    for count, size in ((1, (height, width)), (3, (height, width)), (2, (height + 32, width + 64))):
        noise = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
        smooth = np.stack([image_io.resize(one[: size[0] // 8, : size[1] // 8], size) for one in noise])
        batches += [noise, smooth]
    for images in batches:
        with torch.inference_mode():
            maps, scores = (tensor.numpy() for tensor in graph(torch.from_numpy(images)))
        own_maps, own_scores = session.run(None, {"image": images})
        difference = max(float(np.abs(own_maps - maps).max()), float(np.abs(own_scores - scores).max()))
        # A score equal to the threshold, as that of the image that set it, can round to either side.
        is_clear = np.abs(scores - threshold) > ROUNDING
        if difference > TOLERANCE or ((own_scores > threshold) != (scores > threshold))[is_clear].any():
            raise FloatingPointError(f"--export: maps of the file differ by {difference:.1e}; the file is deleted")
        largest = max(largest, difference)
    return largest
