"""Judge pictures with an exported model. Needs this file, the .onnx file, NumPy, OpenCV and ONNX Runtime.

    python detect.py flange_60.onnx photos/*.png

prints a line for each picture: verdict, score, path. Exit status: 0 all nominal, 1 at least one anomalous, 2 a mistake.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


class Model:
    """An exported model.

    Attributes:
        facts: what the file says of itself: img_size [height, width], white_level, image_threshold and more.
    """

    def __init__(self, path: str):
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        stored = self._session.get_modelmeta().custom_metadata_map
        self.facts = {key: _value(text) for key, text in stored.items()}

    def __call__(self, image: np.ndarray) -> tuple[float, np.ndarray]:
        """Score, and anomaly map float32 (H, W) at the picture's own size, of a BGR picture uint8 (H, W, 3).

        The map is put together from those of tiles, which count less towards their rims; without tiles there is one.
        """
        resized = cv2.resize(image, self.facts["img_size"][::-1], interpolation=cv2.INTER_LINEAR)
        height, width = self.facts.get("tile_size", self.facts["img_size"])
        window = np.outer(*(np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 for side in (height, width)))
        total, weights = np.zeros((2, *resized.shape[:2]))
        for top in self._starts(resized.shape[0], height):
            for left in self._starts(resized.shape[1], width):
                where = slice(top, top + height), slice(left, left + width)
                [[tile_map], _] = self._session.run(None, {"image": np.ascontiguousarray(resized[where][None])})
                total[where] += tile_map * window
                weights[where] += window
        anomaly_map = (total / weights).astype(np.float32)
        score = float(cv2.blur(anomaly_map, (21, 21), borderType=cv2.BORDER_CONSTANT).max())
        return score, cv2.resize(anomaly_map, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    def _starts(self, size: int, tile: int) -> list[int]:
        """First pixels of tiles along a side: evenly spaced, with at least `tile_overlap` of a tile in common."""
        count = int(np.ceil((size - tile) / (tile * (1 - self.facts.get("tile_overlap", 0))) - 1e-9)) + 1
        return np.linspace(0, size - tile, count).round().astype(int).tolist()


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def read(path: str, white_level: float | None) -> np.ndarray:
    """A picture as the training read it: BGR, uint8 (H, W, 3), upright; more than 8 bits by their value of white."""
    depth = cv2.IMREAD_COLOR if white_level is None else cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    image = cv2.imdecode(data, depth) if len(data := np.fromfile(path, np.uint8)) else None
    if image is None:
        raise ValueError("not a picture")
    if image.dtype != np.uint8:
        image = np.minimum(np.rint(image * (255.0 / white_level)), 255).astype(np.uint8)
    return image


def main() -> int:
    """Print a verdict for each picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the .onnx file")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--threshold", type=float, help="default: the one that the file brings along")
    arguments = parser.parse_args()
    if not Path(arguments.model).is_file():
        parser.error(f"{arguments.model}: not there")
    model, status = Model(arguments.model), 0
    limit = model.facts["image_threshold"] if arguments.threshold is None else arguments.threshold
    if limit is None:
        parser.error("no threshold in the file; name one with --threshold")
    for path in arguments.pictures:
        try:
            score, _ = model(read(path, model.facts["white_level"]))
        except (ValueError, OSError) as error:
            print(f"failed    -        {path}: {error}", file=sys.stderr)
            status = 2
            continue
        print(f"{'anomalous' if score > limit else 'nominal':9} {score:.6f} {path}")
        status = max(status, int(score > limit))
    return status


if __name__ == "__main__":
    sys.exit(main())
