"""The export mode: a file that takes images and gives anomaly maps and scores, as ONNX or in OpenVINO's form."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from config import Config
from data import image_io
from engine.threshold import nominal_images, of_held_out
from evaluation.thresholds import MANUAL
from inference import checkpoint, exported, quantization, threshold_file
from inference.detector import Detector
from inference.exported import Graph, Run, compiled, openvino_model, pixels_of, saved, write_onnx
from inference.quantization import Quality, Samples
from runtime.errors import UserError
from runtime.files import atomic_write, remove_leftovers, shared_lock, write_text
from runtime.version import program_version
from training.data import datasets, find_files, split

# Format -> packages that writing it needs.
FORMATS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "openvino-int8": ("openvino", "nncf"),
}
EXAMPLES = 32  # nominal images that the check compares verdicts on
TOLERANCE = 1e-4  # largest difference between maps of the file and of PyTorch
# Settings with which detection does what the file does.
AS_THE_FILE = {"train.precision": "fp32", "train.device": "cpu", "inference.engine": "torch"}
CALIBRATION = 100  # training samples that the ranges of 8 bits come from; 300 gave the same
COMPARED = 8  # samples that show which convolutions lose the most in 8 bits
TIMED = 15  # images that the times of a file come from
ROUNDING = 2e-6  # a score this close to the threshold may fall on either side


def check_format(kind: str) -> None:
    """UserError for an unknown format, or where its packages are missing."""
    if kind not in FORMATS:
        raise UserError(f"--export {kind}", "unknown format", f"choose one of: {', '.join(FORMATS)}")
    if missing := [name for name in FORMATS[kind] if find_spec(name) is None]:
        raise UserError(
            f"--export {kind}", f"{', '.join(missing)} not installed", "run: pip install -r requirements-export.txt"
        )


def run(config: Config, kind: str) -> Path:
    """Write a file into `<run>/export/`, and a JSON with the metadata that programs need.

    Raises:
        UserError: no checkpoint, an unknown format, missing packages; with 8 bits no held-out images.
        FloatingPointError: the maps of the file differ from those of the networks, or 8 bits lose too much or save too
            little; nothing is written.
    """
    check_format(kind)
    tempfile.gettempdir()  # without one, torch prints a hundred lines before it fails
    if config.metrics.nominal is not None:  # checked before the export, which takes minutes
        Detector.for_new_images(config, AS_THE_FILE)
    detector = Detector.for_new_images(config, AS_THE_FILE | {"metrics.threshold": False})
    for line in [*detector.notes, *_left_to_programs(detector)]:
        print(line)
    remove_leftovers(detector.run_folder / "export")
    graph = Graph(detector.ckpt.model, reconstructs=kind != "onnx").eval()
    if kind == "onnx":
        return _export_onnx(_with_thresholds(detector, config), graph)
    samples = calibration_samples(detector) if kind == "openvino-int8" else None  # before what takes minutes
    model = openvino_model(graph)
    return _export_openvino(detector, config, graph, model, samples)


def _export_onnx(detector: Detector, graph: Graph) -> Path:
    path = detector.run_folder / "export" / f"{_stem(detector)}.onnx"
    metadata = _metadata(detector)
    with atomic_write(path) as beside:
        write_onnx(graph, beside, metadata)
        difference = _check(graph, _onnx_run(beside), detector, TOLERANCE)
        print(f"largest difference between maps of the file and of the networks: {difference:.1e}")
    return _with_files_beside(path, metadata, detector)


def _onnx_run(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"image": images})


def _left_to_programs(detector: Detector) -> list[str]:
    """What programs must do before or after the file, a sentence each."""
    data, technique, lines = detector.config.data, detector.technique, []
    if technique.registered and data.registration_method == "part":
        lines.append("images must be registered before the file gets them, which no program of deploy/ does with parts")
    elif technique.registered:
        lines.append("images must be registered before the file gets them, as deploy/detect.py does")
    if technique.masking != "no":
        lines.append("the masking region must be applied to images and maps, as the programs of deploy/ do")
    if data.tile_size:
        lines.append("the file takes tiles, whose maps are blended as the programs of deploy/ do")
    return lines


def _stem(detector: Detector) -> str:
    return f"{detector.config.data.category}_{detector.name}"


def _images_beside(detector: Detector) -> dict[str, np.ndarray]:
    """Images, uint8, that programs need besides the model, by their key in the metadata: region, gray reference."""
    preprocessor, found = detector.preprocessor, {}
    if preprocessor.region_of_mask is not None:
        found["region"] = preprocessor.region_of_mask.astype(np.uint8) * 255
    if detector.technique.registered:
        found["reference"] = cv2.cvtColor(preprocessor.registration.reference, cv2.COLOR_BGR2GRAY)
    return found


def _name_beside(detector: Detector, key: str) -> str:
    return f"{_stem(detector)}_{key}.png"


def _with_thresholds(detector: Detector, config: Config) -> Detector:
    """A detector with thresholds: of its own scores of the held-out images, else those that are kept or set by hand."""
    metrics = checkpoint.for_new_images(config)[0].metrics
    # What is kept may be of another precision.
    is_measured = metrics.threshold and metrics.threshold_type != MANUAL and metrics.nominal is None
    if is_measured and (found := of_held_out(detector)):
        detector.use(found)
        if detector.engine != "torch":  # for inference.engine; those of --threshold are of the networks
            own = threshold_file.path_of(detector.run_folder, detector.name, detector.technique, engine=detector.engine)
            threshold_file.write(own, detector.config, detector.ckpt, found)
        what = {True: "held-out", None: "nominal", False: "TRAINING"}[found.held_out]
        print(f"thresholds of the file: from its scores of {len(found.image_scores)} {what} images")
    else:
        if is_measured:
            print("the held-out images are not at hand: the thresholds are those of --threshold")
        if detector.engine != "torch" and metrics.threshold and metrics.threshold_type != MANUAL:
            print("these thresholds are of the networks in PyTorch, not of the file's own scores")
        detector = Detector.for_new_images(config, AS_THE_FILE)
    if detector.thresholds is None:
        print("no thresholds: programs that run the file need one of their own, such as detect.py --threshold")
    return detector


def _metadata(detector: Detector) -> dict[str, Any]:
    """What a program that runs the file needs to know."""
    data, thresholds = detector.config.data, detector.thresholds
    height, width = data.img_size
    own = {} if data.tile_size is None else {"tile_size": list(data.tile_size), "tile_overlap": data.tile_overlap}
    technique = detector.technique
    region = None if technique.masking == "no" else detector.config.masking.regions[data.category]
    own |= {"region": region} | {key: _name_beside(detector, key) for key in _images_beside(detector)}
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
        "masking": technique.masking,
        "registration": data.registration_method if technique.registered else None,
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


def _example_images(detector: Detector) -> list[np.ndarray]:
    """Some of the images that thresholds come from; none where the dataset is not available."""
    config = detector.config
    with suppress(UserError, OSError):
        samples, _ = nominal_images(config, detector.ckpt)
        white_level = config.data.known_white_level
        return [image_io.read_image(sample.path, white_level=white_level) for sample in samples[:EXAMPLES]]
    return []


def _check(graph: Graph, run: Run, detector: Detector, tolerance: float) -> float:
    """The largest difference between the outputs of the file and of the networks.

    Compared on noise and smooth structure, in two sizes and three batch sizes, and on nominal images.

    Args:
        run: the file.

    Raises:
        FloatingPointError: maps or scores differ by more than the tolerance, or a verdict differs.
    """
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
            maps, scores, *_ = (tensor.numpy() for tensor in graph(torch.from_numpy(images)))
        own_maps, own_scores, *_ = run(images)
        difference = max(float(np.abs(own_maps - maps).max()), float(np.abs(own_scores - scores).max()))
        # A score equal to the threshold, as that of the image that set it, can round to either side.
        is_clear = np.abs(scores - threshold) > max(ROUNDING, tolerance / 50)
        if difference > tolerance or ((own_scores > threshold) != (scores > threshold))[is_clear].any():
            raise FloatingPointError(f"--export: maps of the file differ by {difference:.1e}; the file is deleted")
        largest = max(largest, difference)
    return largest


def calibration_samples(detector: Detector) -> Samples:
    """Training samples, and held-out images with synthetic anomalies; UserError without."""
    config, ckpt = detector.config, detector.ckpt
    if ckpt.images is None or not ckpt.images.held_out:
        raise UserError(
            "--export openvino-int8",
            "the training held out no images, which show what 8 bits lose",
            "train with data.val_split above 0, or use --export openvino",
        )
    files = split(config, find_files(config), ckpt.images)
    training, synthetic = datasets(config, files, ckpt.embedded_assets.get("reference"))
    assert synthetic is not None  # there are held-out images
    places = np.linspace(0, len(training), min(len(training), CALIBRATION), endpoint=False).astype(int)
    held_out: list[dict[str, Any]] = [synthetic[place] for place in range(len(synthetic))]

    def pixels(sample: dict[str, Any], key: str) -> np.ndarray:
        return pixels_of(sample[key][None])

    return Samples(
        [pixels(training[place], "augmented_image") for place in places],
        [pixels(sample, "image") for sample in held_out],
        [sample["mask"][0].numpy() > 0 for sample in held_out],
    )


def quantized_in_bounds(detector: Detector, graph: Graph, model: Any, samples: Samples) -> tuple[Any, dict[str, Any]]:
    """A model with as many convolutions in 8 bits as keep the quality, and a report for the metadata.

    Raises:
        FloatingPointError: it loses too much, or it saves too little time.
    """
    settings, size = detector.config.export, detector.config.data.input_size
    plain = compiled(model, size)
    exact, names = quantization.quality_of(plain, samples), quantization.convolutions(model)
    costs = quantization.sensitivities(graph, torch.from_numpy(np.concatenate(samples.held_out[:COMPARED])))
    bounds = Quality(settings.max_loss_pixel_ap, settings.max_loss_image_auroc)

    def attempt(in_float: Sequence[str]) -> tuple[Any, Quality]:
        tried = quantization.quantized(model, samples.calibration, in_float)
        # Measured as it is saved: other weights are in 16 bits. Windows does not remove files that are mapped.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            quality = quantization.quality_of(compiled(saved(tried, Path(folder) / "tried.xml"), size), samples)
        print(f"{len(names) - len(in_float)} of {len(names)} convolutions in 8 bits: {_said(quality)}")
        return tried, quality

    print(f"{len(samples.masks)} synthetic samples, in float32: {_said(exact)}")
    attempts = quantization.search([names[place] for place in np.argsort(costs)[::-1]], attempt, exact, bounds)
    found, count = attempts[-1], len(samples.masks)
    if not exact.loss(found.quality).is_within(bounds):
        raise FloatingPointError(
            f"--export openvino-int8: 8 bits lose too much on {count} synthetic samples: {_said(found.quality)} with "
            f"{len(found.in_float)} of {len(names)} convolutions in float32, {_said(exact)} with all; nothing is "
            "written. Raise export.max_loss_pixel_ap or export.max_loss_image_auroc, or use --export openvino"
        )
    before, after, fastest = quantization.milliseconds(
        [plain, *(compiled(one.model, size) for one in (found, attempts[0]))], samples.held_out[:TIMED]
    )
    print(
        f"an image takes {after:.1f} ms; in float32 {before:.1f} ms, with all convolutions in 8 bits {fastest:.1f} ms"
    )
    kept = [name.removeprefix("__module.model.").partition("/")[0] for name in found.in_float]
    print(f"{len(names) - len(kept)} of {len(names)} convolutions in 8 bits; in float32: {', '.join(kept) or 'none'}")
    if before / after < settings.min_speedup:
        raise FloatingPointError(
            f"--export openvino-int8: {before / after:.2f} x as fast as float32 on this machine, below "
            f"export.min_speedup = {settings.min_speedup:g}; nothing is written"
        )
    figures = {"float32": exact, "int8": found.quality}
    report: dict[str, Any] = {key: one._asdict() for key, one in figures.items()}
    times = zip(("float32", "int8", "all_in_8_bits"), (before, after, fastest), strict=True)
    report |= {"in_float32": kept, "samples": count, "milliseconds": {key: round(one, 2) for key, one in times}}
    return found.model, {"quantization": report}


def _said(quality: Quality) -> str:
    return f"pixel AP {quality.pixel_ap:.4f}, image AUROC {quality.image_auroc:.4f}"


def _export_openvino(detector: Detector, config: Config, graph: Graph, model: Any, samples: Samples | None) -> Path:
    """Write the two files of OpenVINO's form, and the JSON. samples: for 8 bits."""
    report: dict[str, Any] = {}
    engine = "openvino-int8" if samples else "openvino"
    path = exported.path_of(detector.run_folder, detector.config.data.category, detector.name, engine)
    if samples:
        model, report = quantized_in_bounds(detector, graph, model, samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".", suffix=".part", ignore_cleanup_errors=True) as folder,
        shared_lock(Path(folder)),
    ):
        beside = Path(folder) / path.name
        run = compiled(saved(model, beside))
        if not samples:
            _check(graph, compiled(model), detector, TOLERANCE)
            difference = _check(graph, run, detector, math.inf)
            print(f"largest difference between maps of the file and of the networks: {difference:.1e}, in 16 bits")
        detector.use_exported(run, engine)
        detector = _with_thresholds(detector, config)
        metadata = _metadata(detector) | report
        for key, value in metadata.items():
            model.set_rt_info(value if isinstance(value, str) else json.dumps(value), ["draem", key])
        saved(model, beside)
        for file in (beside.with_suffix(".bin"), beside):
            os.replace(file, path.parent / file.name)
    return _with_files_beside(path, metadata, detector)


def _with_files_beside(path: Path, metadata: dict[str, Any], detector: Detector) -> Path:
    """Write the images and the JSON that belong to a model's file; its path."""
    images = {_name_beside(detector, key): image for key, image in _images_beside(detector).items()}
    for name, image in images.items():
        image_io.write_image(path.parent / name, image)
    beside = [*images, *([path.with_suffix(".bin").name] if path.suffix == ".xml" else [])]
    digests = {name: hashlib.sha256((path.parent / name).read_bytes()).hexdigest() for name in (path.name, *beside)}
    metadata |= {"sha256": digests.pop(path.name), "files": digests}
    write_text(path.with_suffix(".json"), json.dumps(metadata, indent=2, allow_nan=False) + "\n")
    return path
