"""Image and mask files <-> arrays: read, resize, rotate, write."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np

from data import decoding, mask_decoding
from data.annotations import DrawnMask, MaskSource
from data.decoding import BITS, TOO_BRIGHT, DecodeError, check_pages, open_header, orientation_of, without_alpha
from data.mask_decoding import DecodedMask
from runtime.device import map_in_threads
from runtime.errors import UserError

EIGHT_BIT = ("JPEG", "MPO", "BMP", "WEBP", "GIF", "AVIF")  # Pillow's names
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")
BIT_DEPTHS = (8, 10, 12, 14, 16)  # of values in files of more than 8 bits
# One filter for all lines: trying every filter on each line takes twice as long and makes files 3 % smaller.
PNG_FILTER = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP] if hasattr(cv2, "IMWRITE_PNG_FILTER") else []


def read_image(
    path: Path,
    size: tuple[int, int] | None = None,
    white_level: float | str | None = None,
    refuses_dark: bool = False,
) -> np.ndarray:
    """Read an image file: uint8 (H, W, 3), BGR. size: (height, width) to resize to, with linear interpolation.

    For the other arguments, and what is read, see `decoding.read`. The white level 'own' is found in this file alone,
    for textures. UserError if it cannot be read.
    """
    with _user_errors(path):
        white = _own_white_level(path) if isinstance(white_level, str) else white_level
        image = decoding.read(path, white, refuses_dark)
    return image if size is None else resize(image, size)


@contextmanager
def _user_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except DecodeError as error:
        raise UserError(path, error.problem, error.fix) from error


def _own_white_level(path: Path) -> float | None:
    """Value of white that at most TOO_BRIGHT of an image is above: 1.0 or a number of bits, else its own brightest."""
    if not has_high_bit_depth(path):
        return None
    image = without_alpha(decoding.decode(path))
    if image.dtype == np.uint8:
        return None
    highest = float(np.quantile(image, 1 - TOO_BRIGHT, method="higher"))
    whites = (1.0,) if image.dtype.kind == "f" else (float(2**bits - 1) for bits in BIT_DEPTHS)
    return next((white for white in whites if highest <= white), highest)


def has_high_bit_depth(path: Path) -> bool:
    """Whether an image file has more than 8 bits per channel.

    It is decoded only if its header does not say so. UserError if it cannot be read or has several pages.
    """
    with _user_errors(path):
        data = decoding.bytes_of(path)
        with open_header(data) as header:
            if header is not None:
                check_pages(header)
            if header is not None and header.format in EIGHT_BIT:
                return False
            if header is not None and header.format == "PNG":
                return data[24] == 16
            if header is not None and header.format == "TIFF":
                bits = header.tag_v2.get(BITS, 1)
                return max(bits if isinstance(bits, tuple) else (bits,)) > 8
        return decoding.decode(path).dtype != np.uint8


def find_white_level(paths: Sequence[Path]) -> float | None:
    """Estimate the value of white in a set of image files.

    Float images with all values in [0, 1] have white 1.0. Otherwise white is 2^bits - 1, with the fewest bits of 8, 10,
    12, 14 and 16 that can represent the largest value.

    Returns:
        The value of white; None if no file has more than 8 bits per channel, or integer files use all 16 bits.

    Raises:
        UserError: the value is ambiguous, or a file cannot be read.
    """
    high_bit_depth = map_in_threads(has_high_bit_depth, paths)
    files = [path for path, is_high in zip(paths, high_bit_depth, strict=True) if is_high]

    def brightest(path: Path) -> tuple[np.dtype, float]:
        with _user_errors(path):
            image = without_alpha(decoding.decode(path))
        return image.dtype, float(image.max())

    maxima = map_in_threads(brightest, files)
    if not maxima:
        return None
    are_floats, highest = {kind.kind == "f" for kind, _ in maxima}, max(value for _, value in maxima)
    if are_floats == {True} and highest <= 1:
        return 1.0
    if len(are_floats) > 1 or not 64 <= highest < 2**16:
        values = "integers in some files, floats in others" if len(are_floats) > 1 else f"values up to {highest:g}"
        raise UserError(files[0].parent, f"{values}: which value is white is ambiguous", "set data.white_level")
    bits = next(bits for bits in BIT_DEPTHS if highest < 2**bits)
    uses_its_type = {kind for kind, _ in maxima} == {np.dtype(np.uint16)} and bits == 16
    return None if uses_its_type else float(2**bits - 1)


def read_all(
    images: Sequence[Path | np.ndarray], size: tuple[int, int], white_level: str | None = None
) -> Sequence[np.ndarray]:
    """Images uint8 (H, W, 3): files are read as by `read_image`, arrays are returned unchanged."""
    if isinstance(images[0], np.ndarray):
        return cast(Sequence[np.ndarray], images)
    return [read_image(file, size, white_level) for file in cast(Sequence[Path], images)]


def decode_mask_file(path: MaskSource) -> DecodedMask:
    """Decode (or draw) a mask at its own size, turned upright; UserError if it cannot be read or is ambiguous."""
    if isinstance(path, DrawnMask):
        return DecodedMask(path.draw(), "annotations")
    with _user_errors(path):
        stored = decoding.decode(path)
    with open_header(path) as header:
        is_lossy = header is not None and header.format in LOSSY
    try:
        return mask_decoding.decode_mask(stored, is_lossy)
    except mask_decoding.MaskError as error:
        raise UserError(path, error, "write a mask of 0 and 255, with 255 where the defect is") from error


def read_mask(path: MaskSource, original_size: tuple[int, int]) -> np.ndarray:
    """Ground-truth mask, uint8 (H, W): 255 where anomalous, else 0.

    Args:
        original_size: (height, width) of the image that the mask belongs to, before resizing.

    Raises:
        UserError: the mask has another size, cannot be read or is ambiguous.
    """
    mask = decode_mask_file(path).mask
    if mask.shape != tuple(original_size):
        size, image_size = ("{1} x {0}".format(*shape) for shape in (mask.shape, original_size))
        raise UserError(
            path, f"the mask has {size} pixels, but its image has {image_size} (width x height)", "replace the mask"
        )
    return mask.view(np.uint8) * np.uint8(255)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) or (H, W, C) to `size` (height, width) with linear interpolation, as the original does."""
    return image if image.shape[:2] == tuple(size) else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Ground-truth mask uint8 (H, W), 0 or 255 -> bool of `size`.

    As in the original: linear interpolation, and only pixels that are still 255 are anomalous.
    """
    return resize(mask, size) == 255


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate an image clockwise about its center; linear interpolation, zeros outside.

    The result equals that of imgaug's `Affine(rotate=degrees)`.
    """
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), -degrees, 1.0)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)


def to_png(image: np.ndarray) -> np.ndarray:
    """Encode an image, uint8 or uint16, gray or BGR, as PNG bytes: uint8 (N,). OSError if that fails."""
    # 16-bit maps differ in their last bits from pixel to pixel: searching for repeated strings doubles the time.
    strategy = cv2.IMWRITE_PNG_STRATEGY_RLE if image.dtype == np.uint16 else cv2.IMWRITE_PNG_STRATEGY_DEFAULT
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, strategy, *PNG_FILTER]
    is_encoded, data = cv2.imencode(".png", image, options)
    if not is_encoded:
        raise OSError("an image could not be encoded as PNG")
    return data.ravel()


def from_png(data: np.ndarray) -> np.ndarray:
    """Decode the bytes that `to_png` returned: the image with its data type and channels."""
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED))


@dataclass(frozen=True)
class EmbeddedImage:
    """An image kept in a checkpoint: path and digest of its file, and its content as PNG, uint8 (N,)."""

    path: str
    digest: str
    png: np.ndarray

    @classmethod
    def from_stored(cls, stored: dict[str, Any]) -> "EmbeddedImage":
        """The image of a checkpoint's entry, whose `png` is a tensor; ValueError where it cannot be decoded."""
        image = cls(str(stored["path"]), str(stored["digest"]), stored["png"].numpy().copy())
        try:
            is_sound = image.png.dtype == np.uint8 and image.decode().ndim > 1
        except cv2.error:
            is_sound = False
        if not is_sound:
            raise ValueError("an embedded image cannot be decoded")
        return image

    def decode(self) -> np.ndarray:
        """The image with its data type and channels."""
        return from_png(self.png)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, uint8 or uint16, gray or BGR, as a PNG file; OSError if that fails."""
    Path(path).write_bytes(to_png(image).data)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of the array that `read_image` would return; if possible from the file's header alone."""
    with open_header(path) as header:
        if header is not None:
            width, height = header.size
            is_turned = orientation_of(header, path.read_bytes() if header.format == "PNG" else b"") >= 5
            return (width, height) if is_turned else (height, width)
    return read_image(path).shape[:2]  # a format that only OpenCV knows, or a damaged file
