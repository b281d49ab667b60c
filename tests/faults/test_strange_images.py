"""Images and masks with random changes: decoded or refused, in bounded time and memory, without an end of the process.

800; 100,000 with `make faults`.
"""

import io
import math
import os
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from faults.places import IS_WHOLE
from faults.strangers import SECONDS, mutated, problems_of
from PIL import Image

from data import file_end, image_io
from runtime.errors import UserError

FILES = 100_000 if IS_WHOLE else 800
DECODED = 4  # times that a file is read by `read`
PROCESSES = 10  # that share them: one that ends early loses the rest of its files
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def _image(channels: int = 3, kind: type = np.uint8) -> np.ndarray:
    rows, columns = np.mgrid[0:24, 0:32]
    values = np.stack([rows * 7 + columns * 3, rows * columns, 255 - rows * 9, 200 + rows], axis=2) % 256
    values = values[..., :channels].squeeze()
    return values.astype(kind) * (257 if kind == np.uint16 else 1) / (255 if kind == np.float32 else 1)


def _opencv(suffix: str, image: np.ndarray, *options: int) -> bytes:
    is_done, data = cv2.imencode(suffix, image, options)
    assert is_done
    return data.tobytes()


def _pillow(kind: str, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(_image().astype(np.uint8)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def _tiff(image: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, image, **options)
    return stream.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


@cache
def real_files() -> dict[str, bytes]:
    """A file of each format that is read, and of its forms."""
    color, gray = _image().astype(np.uint8), _image(1).astype(np.uint8)
    deep, alpha = _image(kind=np.uint16).astype(np.uint16), _image(4).astype(np.uint8)
    mask = ((gray > 99) * 255).astype(np.uint8)
    found = {
        "png": _opencv(".png", color),
        "png of 16 bits": _opencv(".png", deep),
        "png with alpha": _opencv(".png", alpha),
        "png mask": _opencv(".png", mask),
        "png palette": _pillow("PNG", "P"),
        "png turned": _pillow("PNG", exif=_turned()),
        "png of 1 bit": _pillow("PNG", "1"),
        "jpeg": _opencv(".jpg", color),
        "jpeg turned": _pillow("JPEG", exif=_turned()),
        "jpeg progressive": _pillow("JPEG", progressive=True),
        "jpeg cmyk": _pillow("JPEG", "CMYK"),
        "jpeg gray": _opencv(".jpg", gray),
        "bmp": _opencv(".bmp", color),
        "bmp palette": _pillow("BMP", "P"),
        "webp": _opencv(".webp", color),
        "webp lossless": _pillow("WEBP", "RGBA", lossless=True, exif=_turned()),
        "ppm": _opencv(".ppm", color),
        "pgm of 16 bits": _opencv(".pgm", deep[..., 0]),
        "pbm": _opencv(".pbm", mask),
        "gif": _pillow("GIF", "P"),
        "jpeg 2000": _pillow("JPEG2000"),
        "avif": _pillow("AVIF"),
        "tiff": _opencv(".tiff", color),
        "tiff raw": _tiff(color),
        "tiff float": _tiff(_image(kind=np.float32).astype(np.float32)),
        "tiff of 16 bits": _tiff(deep, compression="deflate"),
        "tiff lzw": _pillow("TIFF", compression="tiff_lzw"),
        "tiff tiles": _tiff(color, tile=(32, 32)),
        "tiff planes": _tiff(color.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
        "tiff with alpha": _tiff(alpha, photometric="rgb", extrasamples=["unassalpha"]),
        "tiff big": _tiff(color, bigtiff=True),
        "tiff of two pages": _tiff(np.stack([gray, gray])),
        "mpo": _pillow("MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
    }
    for number in (1, 2, 3):
        found[f"pnm {number}"] = f"P{number}\n32 24\n{'255' if number > 1 else ''}\n".encode() + b"1 " * 32 * 24 * 3
    return found


def test_all_real_files_are_read(tmp_path):
    for name, data in real_files().items():
        path = tmp_path / "image"
        path.write_bytes(data)
        if "two pages" not in name:
            assert sorted(image_io.read_image(path).shape) == [3, 24, 32], name


def file_of(number: int) -> bytes:
    real = list(real_files().values())
    return mutated(real[number % len(real)], np.random.default_rng(number))


def read(path: Path, data: bytes) -> None:
    """What the program does with an image, a mask and a file that arrives in a watched folder."""
    path.write_bytes(data)
    file_end.has_end(path)
    with suppress(UserError):
        image_io.has_high_bit_depth(path)
    with suppress(UserError):
        if math.prod(image_io.read_size(path)) < 2**21:  # of a larger one a mask takes longer than SECONDS
            image_io.decode_mask_file(path)
    image = image_io.read_image(path, None, "own")
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size


@pytest.mark.parametrize("part", range(PROCESSES))
def test_changed_images_are_decoded_or_refused(tmp_path, part):
    path = tmp_path / ("image", "image.png", "image.jpg", "image.tif")[part % 4]
    numbers = range(part * FILES // PROCESSES, (part + 1) * FILES // PROCESSES)
    assert problems_of(partial(read, path), file_of, numbers, DECODED * SECONDS) == []
