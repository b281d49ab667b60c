"""Detect anomalies in images with an exported model. Needs decoding.py beside it and the packages in README.md.

    python detect.py flange_60.onnx images/*.png

prints a line for each image: result, score, path. Exit status: 0 all nominal, 1 at least one anomalous, 2 an error.
"""

import argparse
import glob
import json
import os
import signal
import sys
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P does not add it
read = import_module("decoding").read  # decoding.py, beside this file wherever that is copied to
os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # as in training


class Model:
    """An exported model. `metadata`: entries of the .onnx file, such as img_size [height, width], white_level."""

    def __init__(self, path: str):
        facts = Path(path).with_suffix(".json")  # written beside it by --export
        digest = json.loads(facts.read_text(encoding="utf-8")).get("sha256") if facts.is_file() else None
        if digest not in (None, sha256(Path(path).read_bytes()).hexdigest()):
            raise ValueError(f"its checksum is not that of {facts}: damaged")
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.metadata: dict[str, Any] = dict(self._session.get_modelmeta().custom_metadata_map)
        for key, text in self.metadata.items():
            with suppress(ValueError):  # a text
                self.metadata[key] = json.loads(text)

    def __call__(self, image: np.ndarray) -> tuple[float, np.ndarray]:
        """Image score and anomaly map, float32 (H, W), of an image, uint8 (H, W, 3), BGR, at its own size.

        With tiles, the map is their weighted average, with weights that decrease towards the border of a tile.
        """
        resized = cv2.resize(image, self.metadata["img_size"][::-1], interpolation=cv2.INTER_LINEAR)
        height, width = self.metadata.get("tile_size", self.metadata["img_size"])
        window = np.outer(*(np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 for side in (height, width)))
        total, weights = np.zeros((2, *resized.shape[:2]))
        for top in self._starts(resized.shape[0], height):
            for left in self._starts(resized.shape[1], width):
                tile = slice(top, top + height), slice(left, left + width)
                [[tile_map], _] = self._session.run(None, {"image": np.ascontiguousarray(resized[tile][None])})
                total[tile] += tile_map * window
                weights[tile] += window
        anomaly_map = (total / weights).astype(np.float32)
        score = float(cv2.blur(anomaly_map, (21, 21), borderType=cv2.BORDER_CONSTANT).max())
        return score, cv2.resize(anomaly_map, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    def _starts(self, size: int, tile: int) -> list[int]:
        """First pixels of the tiles along a side: evenly spaced, overlapping by at least `tile_overlap` of a tile."""
        count = int(np.ceil((size - tile) / (tile * (1 - self.metadata.get("tile_overlap", 0))) - 1e-9)) + 1
        return np.linspace(0, size - tile, count).round().astype(int).tolist()


def main() -> int:
    """Print the result for each image, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the .onnx file")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--threshold", type=float, help="image threshold (default: that of the .onnx file)")
    arguments = parser.parse_args()
    try:
        model, status = Model(arguments.model), 0
        threshold = model.metadata["image_threshold"] if arguments.threshold is None else arguments.threshold
    except Exception as error:  # ONNX Runtime has a class for each; KeyError: of another program
        parser.error(f"{arguments.model}: not an exported model ({error})")
    if threshold is None:
        parser.error(f"{arguments.model}: has no threshold; set --threshold")
    found = ([one] if os.path.exists(one) else sorted(glob.glob(one)) or [one] for one in arguments.images)  # patterns
    for path in (path for paths in found for path in paths):
        try:
            score, _ = model(read(path, model.metadata["white_level"], refuses_dark=True))
            print(f"{'anomalous' if score > threshold else 'nominal':9} {score:.6f} {path}")
            status = max(status, int(score > threshold))
        except (ValueError, OSError, MemoryError, cv2.error) as error:
            print(f"failed    -        {path}: {error}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # a closed pipe ends the program quietly
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # where a console lacks characters
    sys.exit(main())
