"""Image and mask files <-> arrays: read, resize, rotate, write."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from PIL import Image

from data import mask_decoding
from data.mask_decoding import DecodedMask
from runtime.device import map_in_threads
from runtime.errors import FIX_FILE, UserError

ORIENTATION, BITS, SUBFILE = 0x0112, 258, 254  # tag numbers of EXIF and TIFF
UPRIGHT = {  # EXIF orientation -> function that turns the image upright
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image.swapaxes(0, 1)[:, ::-1],
    7: lambda image: image.swapaxes(0, 1)[::-1, ::-1],
    8: lambda image: image.swapaxes(0, 1)[::-1],
}
EIGHT_BIT = ("WEBP", "GIF", "AVIF")  # Pillow's names; JPEG and BMP are recognized by their first bytes
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")
BIT_DEPTHS = (8, 10, 12, 14, 16)  # of values in files of more than 8 bits
TOO_BRIGHT = 0.01  # largest share of values above white that is clipped without an error
# One filter for all lines: trying every filter on each line takes twice as long and makes files 3 % smaller.
PNG_FILTER = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP] if hasattr(cv2, "IMWRITE_PNG_FILTER") else []


def read_image(path: Path, size: tuple[int, int] | None = None, white_level: float | str | None = None) -> np.ndarray:
    """Read an image file: uint8 (H, W, 3), BGR, turned upright as its EXIF orientation says.

    A gray image gets three equal channels. An alpha channel is dropped.

    Args:
        size: (height, width) to resize to, with linear interpolation; None: the image keeps its size.
        white_level: value of white in files with more than 8 bits per channel, scaled to 255. None: 65535 for 16-bit
            images, 1.0 for float images. 'own': found in this file alone, for textures.

    Raises:
        UserError: the file cannot be decoded, has several pages, or more than 1 % of its values are above white.
    """
    data = _bytes_of(path)
    if not _has_high_bit_depth(path, data):
        image = _decode(path, data, cv2.IMREAD_COLOR)
    else:
        stored = _to_bgr(_decode_as_stored(path, data))
        white = _own_white_level(stored) if isinstance(white_level, str) else white_level
        image = _to_eight_bits(path, stored, white)
    return image if size is None else resize(image, size)


def _bytes_of(path: Path) -> np.ndarray:
    try:
        return np.fromfile(path, np.uint8)  # cv2.imread fails on non-ASCII paths on Windows
    except OSError as error:
        raise UserError(path, f"cannot be read ({error})", FIX_FILE) from error


def _decode(path: Path, data: np.ndarray, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        _refuse_large(path, data)
        raise UserError(path, f"cannot be read ({error})", FIX_FILE) from error
    if image is None:
        _refuse_large(path, data)
        raise UserError(path, "cannot be decoded as an image", FIX_FILE)
    return image


def _decode_as_stored(path: Path, data: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) with the file's own data type and channels, turned upright."""
    image = _decode(path, data, cv2.IMREAD_UNCHANGED)
    if _is_tiff(data):  # OpenCV has already turned it upright
        return image
    with _header(data) as header:
        return UPRIGHT[_orientation(header)](image)


def _refuse_large(path: Path, data: np.ndarray) -> None:
    """UserError if an image has more pixels than OpenCV's limit."""
    limit = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**30))
    with _header(data) as header:
        pixels = header.width * header.height if header else 0
    if limit.isdecimal() and pixels > int(limit):
        raise UserError(
            path,
            f"has {pixels:,} pixels, OpenCV reads at most {int(limit):,}",
            f"set the environment variable OPENCV_IO_MAX_IMAGE_PIXELS={pixels} or more, or make the image smaller",
        )


@contextmanager
def _header(source: np.ndarray | Path) -> Iterator[Image.Image | None]:
    """An image file opened with Pillow, which reads the header only; None if the format is unknown or damaged."""
    with ExitStack() as stack:
        header = None
        # Pillow raises SyntaxError for some damaged files.
        with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            header = stack.enter_context(Image.open(source if isinstance(source, Path) else io.BytesIO(source.data)))
        yield header


def _orientation(header: Image.Image | None) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) if unknown."""
    number = 1
    with suppress(OSError, ValueError, SyntaxError):
        number = header.getexif().get(ORIENTATION, 1) if header else 1
    return number if number in UPRIGHT else 1


def _is_tiff(data: np.ndarray) -> bool:
    return data[:2].tobytes() in (b"II", b"MM")


def _has_high_bit_depth(path: Path, data: np.ndarray) -> bool:
    """Whether a file may have more than 8 bits per channel. UserError if it has several pages."""
    if data[:2].tobytes() in (b"\xff\xd8", b"BM"):  # JPEG, BMP
        return False
    with _header(data) as header:
        if header is None:
            return True
        if (pages := _page_count(header)) > 1:
            raise UserError(path, f"has {pages} pages", "write each page to its own file")
        if header.format == "PNG":
            return data[24] == 16
        if header.format == "TIFF":
            bits = header.tag_v2.get(BITS, 1)
            return max(bits if isinstance(bits, tuple) else (bits,)) > 8
        return header.format not in EIGHT_BIT


def _page_count(header: Image.Image) -> int:
    """Number of pages or frames; the reduced-size copies of a page that a TIFF can hold do not count."""
    count = getattr(header, "n_frames", 1)
    if count > 1 and header.format == "TIFF":
        reduced = []
        for page in range(count):
            header.seek(page)
            reduced.append(header.tag_v2.get(SUBFILE, 0) & 1)
        header.seek(0)
        count = len(reduced) - sum(reduced)
    return count


def _to_bgr(image: np.ndarray) -> np.ndarray:
    """Image (H, W) or (H, W, C) of any type and number of channels -> contiguous (H, W, 3)."""
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels <= 2:  # gray, perhaps with alpha
        gray = image if image.ndim == 2 else image[..., 0]
        return np.ascontiguousarray(np.repeat(gray[..., None], 3, axis=2))
    return np.ascontiguousarray(image[..., :3])


def _to_eight_bits(path: Path, image: np.ndarray, white_level: float | None) -> np.ndarray:
    """Scale an image to uint8 so that `white_level` becomes 255."""
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16 and white_level in (None, 65535):
        return (image >> 8).astype(np.uint8)  # same result as OpenCV's own conversion
    white = white_level or (1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max))
    if not np.isfinite(image).all() or image.min() < 0:
        raise UserError(path, "has negative, infinite or NaN values", FIX_FILE)
    if (image > white).mean() > TOO_BRIGHT:
        raise UserError(
            path,
            f"has values up to {image.max():g}, above white ({white:g})",
            "set data.white_level to the value of white in these images, and train with it",
        )
    return np.minimum(np.rint(image * (255.0 / white)), 255).astype(np.uint8)


def _own_white_level(image: np.ndarray) -> float:
    """Value of white that at most TOO_BRIGHT of an image is above: 1.0 or a number of bits, else its own brightest."""
    highest = float(np.quantile(image, 1 - TOO_BRIGHT, method="higher"))
    whites = (1.0,) if image.dtype.kind == "f" else (float(2**bits - 1) for bits in BIT_DEPTHS)
    return next((white for white in whites if highest <= white), highest)


def has_high_bit_depth(path: Path) -> bool:
    """Whether an image file has more than 8 bits per channel.

    It is decoded only if its header does not say so. UserError if it cannot be read or has several pages.
    """
    data = _bytes_of(path)
    if not _has_high_bit_depth(path, data):
        return False
    with _header(data) as header:
        is_certain = header is not None and header.format in ("PNG", "TIFF")
        return is_certain or _decode_as_stored(path, data).dtype != np.uint8


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

    def brightest(path: Path) -> tuple[bool, float]:
        image = _decode_as_stored(path, _bytes_of(path))
        return image.dtype.kind == "f", float(image.max())

    maxima = map_in_threads(brightest, files)
    if not maxima:
        return None
    are_floats, highest = {is_float for is_float, _ in maxima}, max(value for _, value in maxima)
    if are_floats == {True} and highest <= 1:
        return 1.0
    if len(are_floats) > 1 or not 64 <= highest < 2**16:
        values = "integers in some files, floats in others" if len(are_floats) > 1 else f"values up to {highest:g}"
        raise UserError(files[0].parent, f"{values}: which value is white is ambiguous", "set data.white_level")
    bits = next(bits for bits in BIT_DEPTHS if highest < 2**bits)
    return None if are_floats == {False} and bits == 16 else float(2**bits - 1)


def read_all(
    images: Sequence[Path | np.ndarray], size: tuple[int, int], white_level: str | None = None
) -> Sequence[np.ndarray]:
    """Images uint8 (H, W, 3): files are read as by `read_image`, arrays are returned unchanged."""
    if isinstance(images[0], np.ndarray):
        return cast(Sequence[np.ndarray], images)
    return [read_image(file, size, white_level) for file in cast(Sequence[Path], images)]


def decode_mask_file(path: Path) -> DecodedMask:
    """Decode a mask file at its own size, turned upright; UserError if it cannot be read or is ambiguous."""
    data = _bytes_of(path)
    with _header(data) as header:
        is_lossy = header is not None and header.format in LOSSY
        if header is not None and not is_lossy and (pages := _page_count(header)) > 1:
            raise UserError(path, f"has {pages} pages", "write each page to its own file")
    try:
        return mask_decoding.decode_mask(_decode_as_stored(path, data), is_lossy)
    except mask_decoding.MaskError as error:
        raise UserError(path, error, "write a mask of 0 and 255, with 255 where the defect is") from error


def read_mask(path: Path, original_size: tuple[int, int]) -> np.ndarray:
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

    def decode(self) -> np.ndarray:
        """The image with its data type and channels."""
        return from_png(self.png)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, uint8 or uint16, gray or BGR, as a PNG file; OSError if that fails."""
    Path(path).write_bytes(to_png(image).data)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of the array that `read_image` would return; if possible from the file's header alone."""
    with _header(path) as header:
        if header is not None:
            width, height = header.size
            # Pillow's size of a TIFF already follows the orientation.
            return (width, height) if _orientation(header) >= 5 and header.format != "TIFF" else (height, width)
    return read_image(path).shape[:2]  # a format that only OpenCV knows, or a damaged file
