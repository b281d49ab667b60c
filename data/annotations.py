"""Masks that annotations describe: polygons, boxes and run lengths of COCO, drawn when they are needed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FARTHEST = 1e6  # pixels; images with annotations have at most 2^15 a side
FIX = "export the annotations again, with polygons, boxes or run lengths"


@dataclass(frozen=True)
class DrawnMask:
    """The mask of an image, described by annotations. It stands in for a mask file.

    Attributes:
        source: file of the annotations. image: name of the image in it. size: height and width of the image.
        shapes: JSON list of shapes, whose union is the mask: `segmentation` of COCO (polygons or run lengths), or a box
            {"bbox": [x, y, width, height]}.
    """

    source: Path
    image: str
    size: tuple[int, int]
    shapes: str

    def __str__(self) -> str:
        return f"{self.source} (mask of {self.image})"

    @property
    def parent(self) -> Path:
        """The file of the annotations, in messages."""
        return self.source

    @property
    def name(self) -> str:
        """The image, in messages."""
        return self.image

    @property
    def digest(self) -> str:
        """Digest of the shapes, 16 hexadecimal digits of SHA-256."""
        return hashlib.sha256(f"{self.size} {self.shapes}".encode()).hexdigest()[:16]

    def draw(self) -> np.ndarray:
        """The mask, bool (H, W). ValueError where a shape is malformed."""
        mask = np.zeros(self.size, bool)
        for shape in json.loads(self.shapes):
            mask |= draw_shape(shape, self.size)
        return mask


MaskSource = Path | DrawnMask  # where a mask comes from: a file of its own, or annotations


def draw_shape(shape: Any, size: tuple[int, int]) -> np.ndarray:
    """A shape of `DrawnMask.shapes` as a mask, bool (H, W). ValueError where it is malformed.

    Coordinates are in pixels, (0, 0) is the upper left corner of the first. Pixels whose center is inside are marked.
    """
    if isinstance(shape, dict) and "bbox" in shape:
        left, top, width, height = map(float, shape["bbox"])
        shape = [[left, top, left + width, top, left + width, top + height, left, top + height]]
    if isinstance(shape, dict):
        return _runs(shape, size)
    mask = np.zeros(size, bool)
    for polygon in shape:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon has {len(polygon)} numbers, but needs an even number from 6")
        corners = np.array(polygon, float).reshape(-1, 2)
        if not (np.abs(corners) < FARTHEST).all():  # NaN too
            raise ValueError(f"a corner has a coordinate that is no number below {FARTHEST:g}")
        mask |= fill_polygon(corners, size)
    return mask


def fill_polygon(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose center is inside a polygon (even-odd rule), bool (H, W). corners: x and y, float (N, 2)."""
    # Per row, at the first pixel right of an edge. uint8 wraps around, which keeps counts even or odd.
    crossings = np.zeros((size[0], size[1] + 1), np.uint8)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        first, end = (int(np.clip(np.ceil(y - 0.5), 0, size[0])) for y in sorted((y0, y1)))
        rows = np.arange(first, end)
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            np.add.at(crossings, (rows, np.clip(np.ceil(x - 0.5), 0, size[1]).astype(int)), 1)
    return crossings.cumsum(axis=1, dtype=np.uint8)[:, :-1] % 2 == 1


def _runs(shape: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """A mask of run lengths: numbers of pixels that are unmarked, marked, ... in turn, column by column."""
    if list(shape["size"]) != list(size):
        raise ValueError(f"run lengths are of size {shape['size']}, but the image has {list(size)}")
    counts = shape["counts"]
    runs = decode_counts(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise ValueError(f"run lengths add up to {sum(runs)} pixels, but the image has {size[0] * size[1]}")
    marked = np.arange(len(runs)) % 2 == 1
    return np.repeat(marked, runs).reshape(size[1], size[0]).T


def decode_counts(text: str) -> Sequence[int]:
    """Run lengths from the text that COCO writes them as; ValueError where it ends early or has other characters.

    A character, less 48, has 5 bits of a number, the lowest first, and 32 where another one follows; the highest bit is
    the sign. From the fourth on, a number is the difference to the length two before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"run lengths have the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("run lengths end within a number")
    return runs
