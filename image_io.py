"""Picture and mask files <-> arrays: read, resize, rotate, write."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from errors import UserError

ORIENTATION = 0x0112  # EXIF's tag
# Where there is a choice one filter: trying them all on every line takes twice as long and saves 3 %.
PNG_FILTER = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP] if hasattr(cv2, "IMWRITE_PNG_FILTER") else []


def read_image(path: Path, size: tuple[int, int] | None = None, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Image file -> uint8 (H, W, 3) BGR, resized (linear) to `size` (height, width) if given.

    Gray images get three equal channels, alpha is dropped, 16 bits become 8. Raises UserError where it does not decode.
    """
    try:
        data = np.fromfile(path, np.uint8)  # not imread: that fails on non-ASCII paths on Windows
        image = cv2.imdecode(data, flags) if data.size else None
    except (OSError, cv2.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); mend or remove the file") from error
    if image is None:
        raise UserError(f"{path}: cannot be decoded as an image; mend or remove the file")
    return image if size is None else resize(image, size)


def read_all(images: Sequence[Path | np.ndarray], size: tuple[int, int]) -> Sequence[np.ndarray]:
    """Images, uint8 (H, W, 3), of `size` (height, width): files read, decoded images as they are."""
    return images if isinstance(images[0], np.ndarray) else [read_image(file, size) for file in images]


def read_mask(path: Path, original_size: tuple[int, int]) -> np.ndarray:
    """Ground-truth mask, uint8 (H, W), 255 where anomalous; UserError where it is not of its picture's size."""
    mask = read_image(path, flags=cv2.IMREAD_UNCHANGED)
    mask = mask if mask.ndim == 2 else mask[..., 0]
    if mask.shape != tuple(original_size):
        found, wanted = ("{1} x {0}".format(*shape) for shape in (mask.shape, original_size))
        raise UserError(f"{path}: mask of {found} pixels, but its image has {wanted} (width x height); replace it")
    if mask.max() == 1:
        return mask.astype(np.uint8) * np.uint8(255)
    return (mask >> 8).astype(np.uint8) if mask.dtype == np.uint16 else mask


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Linear resize of (H, W) or (H, W, C) to `size` (height, width), as the original does it."""
    return image if image.shape[:2] == tuple(size) else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate clockwise about the center, linear, zeros outside: what imgaug's `Affine(rotate=degrees)` gives."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), -degrees, 1.0)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a uint8 BGR picture as PNG; OSError where that fails."""
    done, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1, *PNG_FILTER])
    if not done:
        raise OSError(f"{path}: picture could not be encoded")
    Path(path).write_bytes(data)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as `read_image` gives it; where it can be, from the file's head alone."""
    try:
        with Image.open(path) as head:
            width, height = head.size
            is_turned = head.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        return (width, height) if is_turned else (height, width)
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ):  # one that only OpenCV knows, or broken
        return read_image(path).shape[:2]
