"""Picture and mask files <-> arrays: read, resize, rotate, write."""

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data import mask_decoding
from data.mask_decoding import DecodedMask
from runtime.device import core_count
from runtime.errors import FIX_FILE, UserError

ORIENTATION, BITS, SUBFILE = 0x0112, 258, 254  # tags of EXIF and TIFF
TURNED = {  # how a picture is turned upright, by its orientation
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image.swapaxes(0, 1)[:, ::-1],
    7: lambda image: image.swapaxes(0, 1)[::-1, ::-1],
    8: lambda image: image.swapaxes(0, 1)[::-1],
}
EIGHT_BIT = ("WEBP", "GIF", "AVIF")  # formats that Pillow knows; JPEG and BMP are told by their first bytes
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")
TOO_BRIGHT = 0.01  # share of values above white that may be clipped
# Where there is a choice one filter: trying them all on every line takes twice as long and saves 3 %.
PNG_FILTER = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP] if hasattr(cv2, "IMWRITE_PNG_FILTER") else []


def read_image(path: Path, size: tuple[int, int] | None = None, white_level: float | None = None) -> np.ndarray:
    """Image file -> uint8 (H, W, 3) BGR, turned upright, resized (linear) to `size` (height, width) if given.

    Gray images get three equal channels, alpha is dropped.

    Args:
        white_level: the value of white where a file has more than 8 bits. None: 65535 of 16 bits, 1.0 of floats.

    Raises:
        UserError: a file that does not decode, has several pages, or holds values above white.
    """
    data = _bytes_of(path)
    if not _has_high_bit_depth(path, data):
        image = _decode(path, data, cv2.IMREAD_COLOR)
    else:
        image = _to_bgr(_to_eight_bits(path, _decode_as_stored(path, data), white_level))
    return image if size is None else resize(image, size)


def _bytes_of(path: Path) -> np.ndarray:
    try:
        return np.fromfile(path, np.uint8)  # not imread: that fails on non-ASCII paths on Windows
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
    """(H, W) or (H, W, C) in the file's own type and channels, turned upright."""
    image = _decode(path, data, cv2.IMREAD_UNCHANGED)
    if _is_tiff(data):  # these OpenCV turns itself
        return image
    with _head(data) as head:
        return TURNED[_orientation(head)](image)


def _refuse_large(path: Path, data: np.ndarray) -> None:
    limit = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**30))
    with _head(data) as head:
        pixels = head.width * head.height if head else 0
    if limit.isdecimal() and pixels > int(limit):
        raise UserError(
            path,
            f"has {pixels:,} pixels, OpenCV reads at most {int(limit):,}",
            f"set the environment variable OPENCV_IO_MAX_IMAGE_PIXELS={pixels} or more, or make the image smaller",
        )


@contextmanager
def _head(source: np.ndarray | Path) -> Iterator[Image.Image | None]:
    """What Pillow reads of a file's head; None where it does not know the format, or the file is damaged."""
    with ExitStack() as stack:
        head = None
        # SyntaxError: that is how Pillow tells damage
        with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            head = stack.enter_context(Image.open(source if isinstance(source, Path) else io.BytesIO(source)))
        yield head


def _orientation(head: Image.Image | None) -> int:
    """EXIF's number, 1 to 8."""
    number = 1
    with suppress(OSError, ValueError, SyntaxError):
        number = head.getexif().get(ORIENTATION, 1) if head else 1
    return number if number in TURNED else 1


def _is_tiff(data: np.ndarray) -> bool:
    return data[:2].tobytes() in (b"II", b"MM")


def _has_high_bit_depth(path: Path, data: np.ndarray) -> bool:
    """Whether a file may have more than 8 bits a channel. UserError where it has several pages."""
    if data[:2].tobytes() in (b"\xff\xd8", b"BM"):
        return False
    with _head(data) as head:
        if head is None:
            return True
        if (pages := _page_count(head)) > 1:
            raise UserError(path, f"has {pages} pages", "write each to a file of its own")
        if head.format == "PNG":
            return data[24] == 16
        if head.format == "TIFF":
            bits = head.tag_v2.get(BITS, 1)
            return max(bits if isinstance(bits, tuple) else (bits,)) > 8
        return head.format not in EIGHT_BIT


def _page_count(head: Image.Image) -> int:
    """Pages or frames; a TIFF's smaller copies of a page do not count."""
    count = getattr(head, "n_frames", 1)
    if count > 1 and head.format == "TIFF":
        kinds = []
        for page in range(count):
            head.seek(page)
            kinds.append(head.tag_v2.get(SUBFILE, 0) & 1)
        head.seek(0)
        count = len(kinds) - sum(kinds)
    return count


def _to_bgr(image: np.ndarray) -> np.ndarray:
    """uint8 of any channels to three."""
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels <= 2:  # gray, perhaps with alpha
        gray = image if image.ndim == 2 else image[..., 0]
        return np.ascontiguousarray(np.repeat(gray[..., None], 3, axis=2))
    return np.ascontiguousarray(image[..., :3])


def _to_eight_bits(path: Path, image: np.ndarray, white_level: float | None) -> np.ndarray:
    """uint8, with `white_level` as 255."""
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16 and white_level in (None, 65535):
        return (image >> 8).astype(np.uint8)  # as OpenCV does it
    white = white_level or (1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max))
    if not np.isfinite(image).all() or image.min() < 0:
        raise UserError(path, "holds values that are negative or not numbers", FIX_FILE)
    if (image > white).mean() > TOO_BRIGHT:
        raise UserError(
            path,
            f"holds values up to {image.max():g}, above white ({white:g})",
            "set data.white_level to the value of white in these images, and train with it",
        )
    return np.minimum(np.rint(image * (255.0 / white)), 255).astype(np.uint8)


def has_high_bit_depth(path: Path) -> bool:
    """Whether a picture has more than 8 bits a channel. It is decoded only where its head does not say so."""
    data = _bytes_of(path)
    if not _has_high_bit_depth(path, data):
        return False
    with _head(data) as head:
        return (head is not None and head.format in ("PNG", "TIFF")) or _decode_as_stored(path, data).dtype != np.uint8


def find_white_level(paths: Sequence[Path]) -> float | None:
    """The value of white in these pictures: 1.0, or the largest one of the fewest bits that hold all of their values.

    None where none has more than 8 bits, or they use all 16. UserError where it cannot be told.
    """
    with ThreadPoolExecutor(core_count()) as pool:
        deep = [path for path, is_one in zip(paths, pool.map(has_high_bit_depth, paths), strict=True) if is_one]

        def brightest(path: Path) -> tuple[bool, float]:
            image = _decode_as_stored(path, _bytes_of(path))
            return image.dtype.kind == "f", float(image.max())

        found = list(pool.map(brightest, deep))
    if not found:
        return None
    kinds, highest = {is_float for is_float, _ in found}, max(value for _, value in found)
    if kinds == {True} and highest <= 1:
        return 1.0
    if len(kinds) > 1 or not 64 <= highest < 2**16:
        what = "whole numbers in some files and floats in others" if len(kinds) > 1 else f"values up to {highest:g}"
        raise UserError(deep[0].parent, f"{what}: which value is white is ambiguous", "set data.white_level")
    bits = next(bits for bits in (8, 10, 12, 14, 16) if highest < 2**bits)
    return None if kinds == {False} and bits == 16 else float(2**bits - 1)


def read_all(images: Sequence[Path | np.ndarray], size: tuple[int, int]) -> Sequence[np.ndarray]:
    """Images, uint8 (H, W, 3), of `size` (height, width): files read, decoded images as they are."""
    return images if isinstance(images[0], np.ndarray) else [read_image(file, size) for file in images]


def decode_mask_file(path: Path) -> DecodedMask:
    """What a mask file marks, upright, at its own size; UserError where that cannot be told."""
    data = _bytes_of(path)
    with _head(data) as head:
        is_lossy = head is not None and head.format in LOSSY
        if head is not None and head.format not in LOSSY and (pages := _page_count(head)) > 1:
            raise UserError(path, f"has {pages} pages", "write each to a file of its own")
    try:
        return mask_decoding.decode_mask(_decode_as_stored(path, data), is_lossy)
    except mask_decoding.MaskError as error:
        raise UserError(path, error, "write a mask of 0 and 255, 255 where the defect is") from error


def read_mask(path: Path, original_size: tuple[int, int]) -> np.ndarray:
    """Ground-truth mask, uint8 (H, W), 255 where anomalous, else 0; UserError where it is not of its picture's size."""
    mask = decode_mask_file(path).mask
    if mask.shape != tuple(original_size):
        found, wanted = ("{1} x {0}".format(*shape) for shape in (mask.shape, original_size))
        raise UserError(path, f"mask of {found} pixels, but its image has {wanted} (width x height)", "replace it")
    return mask.view(np.uint8) * np.uint8(255)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Linear resize of (H, W) or (H, W, C) to `size` (height, width), as the original does it."""
    return image if image.shape[:2] == tuple(size) else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Ground-truth mask uint8 (H, W), 0 or 255 -> bool of `size`: resized linearly, where 255 counts (original)."""
    return resize(mask, size) == 255


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate clockwise about the center, linear, zeros outside: what imgaug's `Affine(rotate=degrees)` gives."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2 - 0.5, height / 2 - 0.5), -degrees, 1.0)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)


def to_png(image: np.ndarray) -> np.ndarray:
    """A uint8 or uint16 picture, gray or BGR, as the bytes of a PNG: uint8 (N,). OSError where that fails."""
    # Maps of 16 bits differ in their last bits from pixel to pixel: looking for what repeats costs twice the time.
    strategy = cv2.IMWRITE_PNG_STRATEGY_RLE if image.dtype == np.uint16 else cv2.IMWRITE_PNG_STRATEGY_DEFAULT
    how = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, strategy, *PNG_FILTER]
    done, data = cv2.imencode(".png", image, how)
    if not done:
        raise OSError("a picture could not be encoded")
    return data.ravel()


def from_png(data: np.ndarray) -> np.ndarray:
    """The picture of `to_png`."""
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a uint8 or uint16 picture, gray or BGR, as PNG; OSError where that fails."""
    Path(path).write_bytes(to_png(image))


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as `read_image` gives it; where it can be, from the file's head alone."""
    with _head(path) as head:
        if head is not None:
            width, height = head.size
            # Pillow turns a TIFF's size itself.
            return (width, height) if _orientation(head) >= 5 and head.format != "TIFF" else (height, width)
    return read_image(path).shape[:2]  # one that only OpenCV knows, or broken
