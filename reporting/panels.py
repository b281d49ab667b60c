"""Images composed of others: panels of results, grids of training samples, contact sheets. Each returns an array."""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reporting.colors import ANOMALOUS, NOMINAL, PREDICTION, TRUTH

TILE = 192  # pixels a small image is enlarged to
LARGEST = 1024  # pixels of the longer side that a large image is reduced to
GAP, BACKGROUND = 6, 255


def _bgr(color: str) -> tuple[int, int, int]:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return blue, green, red


@lru_cache(maxsize=256)
def _text(text: str, width: int, size: int = 14, color: str = "#000000") -> np.ndarray:
    """A strip with a line of text, uint8 (size + 8, width, 3) BGR; a text that is too long loses its beginning."""
    font = ImageFont.load_default(size)
    while font.getlength(text) > width - 4 and len(text) > 4:
        text = "…" + text.lstrip("…")[1:]
    strip = Image.new("RGB", (width, size + 8), "white")
    ImageDraw.Draw(strip).text((2, 2), text, fill=color, font=font)
    return np.asarray(strip)[..., ::-1]


def eight_bit(array: np.ndarray) -> np.ndarray:
    """Float in [0, 1] or bool -> uint8; uint8 stays. Contiguous."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    return (np.clip(array.astype(np.float32), 0, 1) * 255 + 0.5).astype(np.uint8, order="C")  # OpenCV draws on it


def _tile(array: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3), float in [0, 1] or bool or uint8 -> uint8 BGR, of TILE to LARGEST pixels."""
    if max(array.shape[:2]) > LARGEST:
        array = _reduced(array)
    array = eight_bit(array)
    if array.ndim == 2:
        array = cv2.cvtColor(array, cv2.COLOR_GRAY2BGR)
    factor = -(-TILE // min(array.shape[:2]))
    return cv2.resize(array, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST) if factor > 1 else array


def _reduced(array: np.ndarray) -> np.ndarray:
    """Reduced to LARGEST pixels; a mask's pixel is True where any pixel that it covers is."""
    factor = LARGEST / max(array.shape[:2])
    size = [max(round(side * factor), 1) for side in array.shape[1::-1]]
    if array.dtype == bool:
        return cv2.resize(array.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
    return cv2.resize(array, size, interpolation=cv2.INTER_AREA)


def _pad(image: np.ndarray, below: int, right: int) -> np.ndarray:
    """Add rows and columns of background."""
    return cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(BACKGROUND,) * 3)


def _row(tiles: list[np.ndarray]) -> np.ndarray:
    """Tiles side by side with gaps."""
    height = max(tile.shape[0] for tile in tiles)
    return np.hstack([_pad(tile, height - tile.shape[0], GAP) for tile in tiles])


def _heat(scores: np.ndarray) -> np.ndarray:
    """Anomaly map (H, W), float in [0, 1] or its eight bits -> colors, dark for 0 and bright for the largest."""
    return cv2.applyColorMap(eight_bit(scores), cv2.COLORMAP_INFERNO)


def sample_grid(
    image: np.ndarray,
    augmented: np.ndarray,
    reconstruction: np.ndarray,
    mask: np.ndarray,
    prediction: np.ndarray,
    rows: int = 4,
) -> np.ndarray:
    """Training samples and the networks' outputs.

    Args:
        image, augmented, reconstruction: float (N, 3, H, W) in [0, 1], BGR. mask, prediction: float (N, 1, H, W).

    Returns:
        uint8 (h, w, 3), BGR; samples with an anomaly first.
    """
    order = np.argsort(-mask.reshape(len(mask), -1).max(axis=1), kind="stable")[:rows]
    columns = {
        "input": image,
        "corrupted": augmented,
        "reconstruction": reconstruction,
        "mask": mask,
        "predicted mask": prediction,
    }
    lines = []
    for i in order:
        planes = [values[i].transpose(1, 2, 0) for values in columns.values()]
        lines.append(_row([_tile(plane if plane.shape[2] == 3 else plane[..., 0]) for plane in planes]))
        lines.append(np.full((GAP, lines[-1].shape[1], 3), BACKGROUND, np.uint8))
    width = lines[0].shape[1] // len(columns)
    return np.vstack([np.hstack([_text(name, width) for name in columns]), *lines])


class PanelContent(NamedTuple):
    """What a panel shows of one image.

    Attributes:
        title: the image's name. verdict: a sentence. is_correct: whether the verdict is; None where that is unknown.
        image, reconstruction: (H, W, 3), BGR, and anomaly_map (H, W): float in [0, 1], or uint8.
        truth: ground-truth mask, bool (H, W); None for none. prediction: map above the threshold, bool (H, W).
        shows_truth: False where images have no masks at all: the panel has no tile for them.
    """

    title: str
    verdict: str
    is_correct: bool | None
    image: np.ndarray
    reconstruction: np.ndarray
    anomaly_map: np.ndarray
    truth: np.ndarray | None
    prediction: np.ndarray
    shows_truth: bool = True


def panel(content: PanelContent) -> np.ndarray:
    """One result, its images side by side: uint8 (h, w, 3), BGR."""
    title, verdict, is_correct, image, reconstruction, anomaly_map, truth, prediction, shows_truth = content
    overlay = _tile(image).copy()
    outline(overlay, prediction, PREDICTION)
    if truth is not None:
        outline(overlay, truth, TRUTH)
    tiles = {
        "input": _tile(image),
        "reconstruction": _tile(reconstruction),
        "anomaly map (0 dark, 1 bright)": _tile(_heat(anomaly_map)),
        "ground truth" if truth is not None else "no ground truth": _tile(
            truth if truth is not None else np.full(prediction.shape, 0.5, np.float32)
        ),
        "map above threshold": _tile(prediction),
        "predicted / true outline" if shows_truth else "predicted outline": overlay,
    }
    if not shows_truth:
        del tiles["no ground truth"]
    row = _row(list(tiles.values()))
    width = row.shape[1] // len(tiles)
    names = np.hstack([_text(name, width) for name in tiles])
    color = "#000000" if is_correct is None else NOMINAL if is_correct else ANOMALOUS
    head = np.hstack([_text(title, row.shape[1] // 2, 16), _text(verdict, row.shape[1] - row.shape[1] // 2, 16, color)])
    legend = "orange: predicted" + (", light blue: ground truth" if shows_truth else "")
    key = _text(legend, width + GAP + 64, 12)  # as wide as the text needs
    foot = np.full((key.shape[0], row.shape[1], 3), BACKGROUND, np.uint8)
    foot[:, -key.shape[1] :] = key
    return np.vstack([head, names, row, foot])


def outline(image: np.ndarray, mask: np.ndarray, color: str) -> None:
    """Draw the outline of a mask (H, W) onto a uint8 image of a multiple of its size, or as `_reduced` makes it."""
    size = (image.shape[1], image.shape[0])
    if size < mask.shape[::-1]:
        mask = _reduced(mask > 0)
    enlarged = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, _bgr(color), 2 if min(size) >= TILE else 1)


def contact_sheet(
    title: str, sections: dict[str, list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]], columns: int = 4
) -> np.ndarray:
    """Small images with outlines, under headings.

    Args:
        sections: heading -> captions, images uint8 (H, W, 3) BGR, ground truth and prediction bool (H, W).

    Returns:
        uint8 (h, w, 3), BGR.
    """
    rows = []
    for heading, items in sections.items():
        tiles = []
        for caption, image, truth, prediction in items:
            tile = _tile(image).copy()
            outline(tile, prediction, PREDICTION)
            outline(tile, truth, TRUTH)
            tiles.append(np.vstack([tile, _text(caption, tile.shape[1], 12)]))
        tiles += [np.full_like(tiles[0], BACKGROUND)] * (-len(tiles) % columns)
        lines = [_row(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
        rows += [_text(heading, lines[0].shape[1], 14), *lines]
    width = max(row.shape[1] for row in rows)
    rows = [_text(title, width, 16), *rows, _text("orange: predicted, light blue: ground truth", width, 12)]
    return np.vstack([_pad(row, 0, width - row.shape[1]) for row in rows])
