"""Detect anomalies in images with an exported model, in a program of your own or on the command line.

    from detect import Detector
    found = Detector("bottle_60_int8.xml")(cv2.imread("photo.png"))  # found.verdict, found.score, found.anomaly_map

    python detect.py bottle_60_int8.xml images/*.png

The command prints a line for each image: result, score, path. Exit status: 0 all nominal, 1 at least one anomalous,
2 an error. Needs NumPy, OpenCV, and OpenVINO or, for .onnx, ONNX Runtime. With decoding.py beside this file, and
Pillow, the command also reads images of more than 8 bits; models that register images need homography.py beside it.
"""

import argparse
import ctypes
import glob
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

try:
    import cv2
    import numpy as np
except ImportError as error:
    if __name__ != "__main__":
        raise
    print(f"error: {error}; run: pip install numpy opencv-python-headless", file=sys.stderr)
    sys.exit(2)  # Python's status for it would be 1, which means anomalous

os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # as in training


class Region(NamedTuple):
    """A connected region: its bounding box in pixels, ends excluded, and its area in pixels."""

    x0: int
    y0: int
    x1: int
    y1: int
    area: int


class Detection(NamedTuple):
    """What is found in an image.

    Attributes:
        score: image score in [0, 1]. verdict: anomalous or nominal; None without a threshold.
        anomaly_map: float32 (H, W) in [0, 1], at the image's own size.
        regions: where the map is above the pixel threshold, the largest first; none without a threshold.
    """

    score: float
    verdict: str | None
    anomaly_map: np.ndarray
    regions: list[Region]


class Detector:
    """An exported model, ready for images. One object serves one thread at a time.

    Args:
        path: the .onnx or .xml file. What --export has written beside it must be there too.
        threshold, pixel_threshold: in place of those of the file, which are in `metadata`.

    Raises:
        ValueError: not such a file, damaged, one that needs what this program cannot do, or no such threshold.
    """

    def __init__(self, path: str | Path, threshold: float | None = None, pixel_threshold: float | None = None):
        self._path = path = Path(path)
        self._run, texts = _opened(path)
        self.metadata: dict[str, Any] = {key: _value(text) for key, text in texts.items()}
        if "img_size" not in self.metadata:
            raise ValueError(f"{path}: not a model that --export has written")
        if not _is_sound(self.metadata):
            raise ValueError(f"{path}: its metadata are malformed; export it again")
        if self.metadata.get("registration") == "part":
            raise ValueError(f"{path}: this program does not register parts (data.registration_method: part)")
        if "registration" not in self.metadata and "registered" in str(self.metadata.get("masking_and_registration")):
            raise ValueError(f"{path}: an earlier version has written it without its reference image; export it again")
        self._check_files(path)
        files = {key: self.metadata.get(key) for key in ("region", "reference")}
        images = {key: _gray(path.parent / name) for key, name in files.items() if isinstance(name, str)}
        self._region: Any = images.get("region", files["region"])  # rectangles, or an image
        self._reference: Any = images.get("reference")
        self._homography: Any = None if self._reference is None else _module_beside("homography")
        self.threshold = self._threshold("image_threshold", threshold)
        self.pixel_threshold = self._threshold("pixel_threshold", pixel_threshold)

    def __call__(self, image: np.ndarray) -> Detection:
        """What is found in an image, BGR uint8 (H, W, 3) of any size; ValueError for anything else."""
        _check_image(image)
        size, own = self.metadata["img_size"], image.shape[:2]
        frame, valid, homography = image, np.ones(size, bool), None
        if self._homography and max(own) <= 32766:  # more pixels a side cannot be warped
            homography = self._homography.register(image, self._reference)
        if homography is not None:
            frame, has_source = self._homography.warp(image, homography, self._reference.shape)
            valid = ~_resized_region(~has_source, size)
        resized = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR)
        if self._region is not None:
            region = self._region_of(own if self._reference is None else self._reference.shape)
            if self.metadata.get("masking") == "pre":
                resized = np.where(region[..., None], np.uint8(0), resized)
            valid &= ~region
        anomaly_map = np.where(valid, self._map_of(resized), np.float32(0))
        score = float(cv2.blur(anomaly_map, (21, 21), borderType=cv2.BORDER_CONSTANT).max())
        target = own if homography is None else self._reference.shape
        anomaly_map = cv2.resize(anomaly_map, target[::-1], interpolation=cv2.INTER_LINEAR)
        if homography is not None:
            anomaly_map = self._homography.warp(anomaly_map, np.linalg.inv(homography), own)[0]
        verdict = None if self.threshold is None else "anomalous" if score > self.threshold else "nominal"
        limit = math.inf if self.pixel_threshold is None else self.pixel_threshold
        return Detection(score, verdict, anomaly_map, _regions(anomaly_map > limit))

    def _threshold(self, key: str, given: float | None) -> float | None:
        if isinstance(given, bool) or not isinstance(given, (int, float, np.floating, type(None))) or given != given:
            raise ValueError(f"{key.removeprefix('image_')}: {given!r} is not a number")
        if given is None and self.metadata.get("threshold_type") is not None and self.metadata.get(key) is None:
            return math.inf  # JSON has no infinity: the threshold that no score exceeds
        return self.metadata.get(key) if given is None else given

    def _check_files(self, path: Path) -> None:
        """Compare the files with the checksums in the JSON that --export has written, where that is there."""
        facts = path.with_suffix(".json")
        if not facts.is_file():
            return
        try:
            written = json.loads(facts.read_text(encoding="utf-8"))
            digests = {path.name: written.get("sha256")} | written.get("files", {})
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise ValueError(f"{facts}: damaged") from error
        for file, digest in ((path.parent / Path(name).name, digest) for name, digest in digests.items()):
            if digest and (not file.is_file() or digest != sha256(file.read_bytes()).hexdigest()):
                raise ValueError(f"{file}: missing, or damaged: its checksum is not that of {facts}")

    def _region_of(self, shape: tuple[int, int]) -> np.ndarray:
        """The masking region at the size of the networks' images, bool, for images of `shape`."""
        region = self._region
        if isinstance(region, list):
            region = np.zeros(shape, np.uint8)
            for y0, y1, x0, x1 in self._region:
                region[y0:y1, x0:x1] = 255
                if y1 > shape[0] or x1 > shape[1]:
                    raise ValueError(f"the masking region {[y0, y1, x0, x1]} is not inside {shape[1]} x {shape[0]}")
        if region.shape != tuple(shape):
            raise ValueError(f"width and height: the masking region has {region.shape[::-1]}, the image {shape[::-1]}")
        return _resized_region(region > 0, self.metadata["img_size"])

    def _map_of(self, resized: np.ndarray) -> np.ndarray:
        """Anomaly map, float32; of tiles their average, with weights that decrease towards the border of a tile."""
        height, width = self.metadata.get("tile_size", self.metadata["img_size"])
        window = np.outer(*(np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 for side in (height, width)))
        total, weights = np.zeros((2, *resized.shape[:2]))
        for top in self._starts(resized.shape[0], height):
            for left in self._starts(resized.shape[1], width):
                tile = slice(top, top + height), slice(left, left + width)
                with _refusing(self._path):
                    total[tile] += self._run(np.ascontiguousarray(resized[tile][None]))[0] * window
                weights[tile] += window
        return (total / weights).astype(np.float32)

    def _starts(self, size: int, tile: int) -> list[int]:
        """First pixels of the tiles along a side: evenly spaced, overlapping by at least `tile_overlap` of a tile."""
        count = int(np.ceil((size - tile) / (tile * (1 - self.metadata.get("tile_overlap", 0))) - 1e-9)) + 1
        return np.linspace(0, size - tile, count).round().astype(int).tolist()


def _opened(path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, str]]:
    """A function from images, uint8 (1, H, W, 3), to anomaly maps, and the metadata of the file."""
    if path.suffix not in (".onnx", ".xml"):
        raise ValueError(f"{path}: neither .onnx nor .xml")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    has_onnxruntime = path.suffix == ".onnx" and find_spec("onnxruntime")
    if not has_onnxruntime and not find_spec("openvino"):
        raise ValueError(f"{path}: OpenVINO is not installed; run: pip install openvino")
    with _refusing(path):
        if has_onnxruntime:
            import onnxruntime

            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            texts = session.get_modelmeta().custom_metadata_map
            return lambda images: session.run(["anomaly_map"], {"image": images})[0], texts
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        section = "framework" if path.suffix == ".onnx" else "draem"
        stored = model.rt_info[section] if section in model.rt_info else {}  # noqa: SIM401  # it has no `get`
        texts = {key: str(getattr(text, "value", text)) for key, text in getattr(stored, "value", stored).items()}
        size = _value(texts.get("tile_size", texts.get("img_size", "null")))
        model.reshape({0: [1, *size, 3]} if size else {})  # a fixed size is faster
        with _own_signal_stack():
            options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}  # bfloat16 changes scores
            network = core.compile_model(model, "CPU", options)
        return lambda images: network(images)["anomaly_map"], texts


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """ValueError where a runtime cannot use the model; the runtimes have errors without a common base."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: not an exported model ({error})") from error


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Keep the stack for signal handlers: OpenVINO sets one where there is AMX, and frees it with the model."""
    if sys.platform != "linux":
        yield
        return
    library, before = ctypes.CDLL(None), ctypes.create_string_buffer(64)  # stack_t, see sigaltstack(2), has 24 bytes
    library.sigaltstack(None, before)
    try:
        yield
    finally:
        library.sigaltstack(before, None)


def _value(text: str) -> Any:
    with suppress(ValueError, RecursionError):  # a text
        return json.loads(text)
    return text


def _is_sound(metadata: dict[str, Any]) -> bool:
    """Whether the values that are used have the types and ranges that --export writes."""

    def is_number(value: Any, low: float, high: float) -> bool:
        return isinstance(value, (int, float)) and low <= value <= high

    def is_rectangle(values: Any) -> bool:
        return isinstance(values, list) and len(values) == 4 and all(type(side) is int and side >= 0 for side in values)

    sizes = [metadata[key] for key in ("tile_size", "img_size") if key in metadata]
    limits = [metadata.get(key) for key in ("image_threshold", "pixel_threshold", "white_level")]
    region = metadata.get("region")
    return (
        all(isinstance(s, list) and len(s) == 2 and all(type(n) is int and not n % 32 for n in s) for s in sizes)
        and all(32 <= least <= most <= 8192 for least, most in zip(sizes[0], sizes[-1], strict=True))
        and is_number(metadata.get("tile_overlap", 0), 0, 0.75)
        and all(limit is None or is_number(limit, -math.inf, 2**32) for limit in limits)
        and (region is None or isinstance(region, str) or (isinstance(region, list) and all(map(is_rectangle, region))))
    )


def _gray(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{path} is missing: --export has written it beside the model")
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ValueError(f"{path}: damaged")
    return image


def _module_beside(name: str) -> Any:
    """A module whose file lies beside this one."""
    path = Path(__file__).resolve().with_name(f"{name}.py")
    if not path.is_file():
        raise ValueError(f"{path} is missing: copy it from deploy/")
    spec = spec_from_file_location(f"{__name__}_{name}", path)
    assert spec and spec.loader  # of a .py file
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _read(path: str, white_level: float | None, refuses_dark: bool) -> np.ndarray:
    """An image of 8 bits, BGR, upright as its EXIF says; decoding.py has a function that reads all others."""
    image = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise ValueError("cannot be read as an image")
    if image.dtype != np.uint8 or Path(path).read_bytes()[:2] in (b"II", b"MM") or cv2.imcount(path) > 1:
        raise ValueError("not of 8 bits and one page, or a TIFF: needs decoding.py beside this file, and Pillow")
    return image


def _resized_region(region: np.ndarray, size: list[int]) -> np.ndarray:
    """Resize a region, bool (H, W), to `size` (height, width), without losing any pixel."""
    if list(region.shape) == list(size):
        return region
    methods, weights = (cv2.INTER_AREA, cv2.INTER_LINEAR), region.astype(np.float32)
    return np.logical_or(*(cv2.resize(weights, size[::-1], interpolation=method) > 0 for method in methods))


def _regions(mask: np.ndarray) -> list[Region]:
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = [Region(x, y, x + width, y + height, area) for x, y, width, height, area in stats.tolist()]
    return sorted(found[1:], key=lambda region: (-region.area, region))  # the first is the background


def _check_image(image: Any) -> None:
    given = "None, as cv2.imread gives for a file that it cannot read" if image is None else type(image).__name__
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return
        given = f"{image.dtype}, {image.shape}"
    raise ValueError(f"given: {given}; wanted: BGR, uint8, (height, width, 3), as cv2.imread gives")


def main() -> int:
    """Print the result for each image, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="the .onnx or .xml file")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--threshold", type=float, help="image threshold (default: that of the model's file)")
    arguments = parser.parse_args()
    try:
        detector, status, read = Detector(arguments.model, arguments.threshold), 0, _read
        with suppress(ValueError, ImportError):  # no such file, or no Pillow
            read = _module_beside("decoding").read
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if detector.threshold is None:
        parser.error(f"{arguments.model}: has no threshold; set --threshold")
    found = ([one] if os.path.exists(one) else sorted(glob.glob(one)) or [one] for one in arguments.images)  # patterns
    for path in (path for paths in found for path in paths):
        try:
            result = detector(read(path, detector.metadata.get("white_level"), refuses_dark=True))
            print(f"{result.verdict:9} {result.score:.6f} {path}")
            status = max(status, int(result.verdict == "anomalous"))
        except (ValueError, OSError, MemoryError, cv2.error) as error:
            print(f"failed    -        {path}: {error}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # a closed pipe ends the program quietly
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # where a console lacks characters
    try:
        sys.exit(main())
    except Exception:  # Python's status for it would be 1, which means anomalous
        traceback.print_exc()
        sys.exit(2)
