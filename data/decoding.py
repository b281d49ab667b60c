"""Decode image files of all formats. This file imports nothing of the project: deploy/ has a copy of it."""

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
from PIL import Image

FIX_FILE = "fix or delete the file"
ORIENTATION, BITS, SUBFILE, EXTRA_SAMPLES = 274, 258, 254, 338  # tag numbers of EXIF and TIFF
PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # of them one is in a PNG with an orientation
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
PNG = b"\x89PNG\r\n\x1a\n"
BOUNDED = ("JPEG", "MPO", "GIF", "BMP", "PPM")  # with PNG the formats that need a byte for at most MOST_PIXELS
MOST_PIXELS = 2**14  # an image of one color has 8256 pixels a byte as PNG, 512 as JPEG
OPENING = Lock()
BLOCK = 2**22  # values that are scaled at a time
TOO_BRIGHT = 0.01  # largest share of values above white that is clipped without an error
NEARLY_BLACK = 16  # of 255


class DecodeError(ValueError):
    """A file that cannot be read as an image.

    Attributes:
        problem: what is wrong with it. fix: what to do about it.
    """

    def __init__(self, problem: str, fix: str = FIX_FILE):
        super().__init__(f"{problem}; {fix}")
        self.problem, self.fix = problem, fix


def read(source: Path | str | bytes, white_level: float | None = None, refuses_dark: bool = False) -> np.ndarray:
    """Read an image file: uint8 (H, W, 3), BGR, upright (see `decode`), without alpha; gray in three equal channels.

    Args:
        source: the file's path, or its content.
        white_level: value of white in files with more than 8 bits per channel, scaled to 255. None: 65535 for 16-bit
            images, 1.0 for float images.
        refuses_dark: whether an image of more than 8 bits is an error where all of it is below 1/16 of white.

    Raises:
        DecodeError: the file cannot be decoded, or more than 1 % of its values are above white.
    """
    stored = without_alpha(decode(source))
    image = _to_eight_bits(stored, white_level)
    if refuses_dark and stored.dtype != np.uint8 and image.max() <= NEARLY_BLACK:
        problem = f"has more than 8 bits, but values up to {stored.max():g} only, where white is "
        problem += f"{_white(stored, white_level):g} as in training: nearly black"
        raise DecodeError(problem, "write it with the value range of the training images")
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else np.ascontiguousarray(image)


def decode(source: Path | str | bytes) -> np.ndarray:
    """Decode an image file: (H, W) or (H, W, C) with its own data type and channels, BGR, turned upright.

    The orientation is that of EXIF, in a PNG also of its raw profile, or else of XMP. Colors are not multiplied by
    alpha. All images, masks and textures are read by this function.

    Raises:
        DecodeError: the file cannot be decoded, has several pages or too many pixels.
    """
    data = source if isinstance(source, bytes) else bytes_of(source)
    with open_header(data) as header:
        if header is not None:
            check_pages(header)
            _check_pixels(header)
        _check_length(header, data)
        if header is not None and _is_multiplied_by_opencv(header):
            return _decode_with_pillow(header)
        # Unchanged: with all bits and alpha, but not upright. AVIF is scaled to 8 bits by OpenCV.
        is_avif = header is not None and header.format == "AVIF"
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if is_avif else cv2.IMREAD_UNCHANGED
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
        except cv2.error as error:
            raise DecodeError(f"cannot be read ({error})") from error
        if image is None:
            raise DecodeError("cannot be decoded as an image")
        return UPRIGHT[orientation_of(header, data)](image)


def without_alpha(image: np.ndarray) -> np.ndarray:
    """Decoded image (H, W) or (H, W, C) -> (H, W) or (H, W, 3)."""
    if image.ndim == 2:
        return image
    return image[..., 0] if image.shape[2] <= 2 else image[..., :3]


def _to_eight_bits(image: np.ndarray, white_level: float | None) -> np.ndarray:
    """Scale an image without alpha to uint8 so that `white_level` becomes 255."""
    if image.dtype == np.uint8:
        return image
    takes_high_byte = image.dtype == np.uint16 and white_level in (None, 65535)  # as OpenCV's own conversion
    white = _white(image, white_level)
    scaled, above, rows = np.empty(image.shape, np.uint8), 0, max(BLOCK // max(image[0].size, 1), 1)
    for start in range(0, len(image), rows):  # in blocks: as float64 the image would take eight times as much memory
        block = image[start : start + rows]
        if takes_high_byte:
            scaled[start : start + rows] = block >> 8
            continue
        if not np.isfinite(block).all() or block.min() < 0:
            raise DecodeError("has negative, infinite or NaN values")
        above += np.count_nonzero(block > white)
        scaled[start : start + rows] = np.minimum(np.rint(block * (255.0 / white)), 255)
    if above > TOO_BRIGHT * image.size:
        raise DecodeError(
            f"has values up to {image.max():g}, above white ({white:g})",
            "set data.white_level to the value of white in these images, and train with it",
        )
    return scaled


def _white(image: np.ndarray, white_level: float | None) -> float:
    return white_level or (1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max))


def bytes_of(path: Path | str) -> bytes:
    if Path(path).exists() and not Path(path).is_file():
        raise DecodeError("is not a file")  # a pipe or a device may never end
    try:
        return Path(path).read_bytes()  # cv2.imread fails on non-ASCII paths on Windows
    except OSError as error:
        raise DecodeError(f"cannot be read ({error})") from error


def _check_pixels(header: Image.Image) -> None:
    """DecodeError if an image is larger than OpenCV's limits."""
    sizes = {"WIDTH": (header.width, 2**20), "HEIGHT": (header.height, 2**20)}
    for what, (size, default) in (sizes | {"PIXELS": (header.width * header.height, 2**30)}).items():
        variable = f"OPENCV_IO_MAX_IMAGE_{what}"
        limit = os.environ.get(variable, str(default))
        if limit.isdecimal() and size > int(limit):
            raise DecodeError(
                f"has {size:,} pixels{'' if what == 'PIXELS' else f' of {what.lower()}'}, OpenCV reads at most "
                f"{int(limit):,}",
                f"set the environment variable {variable}={size} or more, or make the image smaller",
            )


def _check_length(header: Image.Image | None, data: bytes) -> None:
    """DecodeError if a file is too short for what it declares: OpenCV would take memory for what is not there."""
    pixels = 0
    if data[:8] == PNG:  # also where Pillow cannot read it
        pixels, start = int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big"), 8
        kind = b""
        while kind != b"IEND":  # chunks: length, type, content, check sum
            length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
            if start + 8 + length > len(data):
                raise DecodeError("is cut off")
            start += 12 + length
    elif header is not None and header.format in BOUNDED:
        pixels = header.width * header.height
    if pixels > MOST_PIXELS * len(data):
        raise DecodeError(f"is cut off: {pixels:,} pixels in {len(data):,} bytes")


@contextmanager
def open_header(source: bytes | Path) -> Iterator[Image.Image | None]:
    """An image file opened with Pillow, which reads the header only; None if the format is unknown or damaged."""
    with ExitStack() as stack:
        header = None
        # For damaged files Pillow raises many types of errors, also SyntaxError and RuntimeError.
        with suppress(Exception):
            header = stack.enter_context(_open(io.BytesIO(source) if isinstance(source, bytes) else source))
        yield header


def _open(source: io.BytesIO | Path) -> Image.Image:
    with OPENING:  # Pillow's own limit is lower than OpenCV's, and large images would be without a header
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def orientation_of(header: Image.Image | None, data: bytes) -> int:
    """The orientation, 1 to 8, that neither OpenCV nor Pillow's size of the image follows; 1 (upright) if unknown."""
    if header is None or (header.format == "TIFF" and ORIENTATION in header.tag_v2):
        return 1
    if header.format == "PNG" and not any(name in data for name in PNG_ORIENTATION):
        return 1  # else Pillow would decode the whole image
    number = 1
    with suppress(Exception):  # see open_header
        number = header.getexif().get(ORIENTATION, 1)
    return number if number in UPRIGHT else 1


def _is_multiplied_by_opencv(header: Image.Image) -> bool:
    """Whether OpenCV would multiply the colors by alpha: in color TIFFs of 8 bits whose colors are stored without."""
    if header.format != "TIFF" or header.mode != "RGBA":
        return False
    return 2 in header.tag_v2.get(EXTRA_SAMPLES, ()) and max(header.tag_v2[BITS]) == 8


def _decode_with_pillow(header: Image.Image) -> np.ndarray:
    """A color image with alpha, uint8 (H, W, 4), BGR; Pillow turns TIFFs upright."""
    with _damage():
        return np.asarray(header)[..., [2, 1, 0, 3]]


def check_pages(header: Image.Image) -> None:
    """DecodeError if a file has several pages or frames.

    The reduced-size copies of a page that a TIFF can hold do not count, nor previews beside a photo (MPO).
    """
    with _damage():
        count = 1 if header.format == "MPO" else getattr(header, "n_frames", 1)
        if count > 1 and header.format == "TIFF":
            reduced = []
            for page in range(count):
                header.seek(page)
                reduced.append(header.tag_v2.get(SUBFILE, 0) & 1)
            header.seek(0)
            count = len(reduced) - sum(reduced)
    if count > 1:
        raise DecodeError(f"has {count} pages", "write each page to its own file")


@contextmanager
def _damage() -> Iterator[None]:
    """DecodeError for whatever Pillow raises within the block: for damaged files that can be many types."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise DecodeError(f"cannot be read ({error})") from error
