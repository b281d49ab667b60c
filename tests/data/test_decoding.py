"""data/decoding.py: a table of files that training, masks, --predict and the deployed program read in the same way."""

import importlib.util
import resource
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from messages import raises_user_error
from PIL import Image, PngImagePlugin

from data import decoding
from data.image_io import decode_mask_file, find_white_level, read_image, read_size

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF>'
    "</x:xmpmeta>"
)
COLOR = np.zeros((20, 40, 3), np.uint8)  # BGR
COLOR[:5, :8] = (50, 100, 200)
TURNED = np.rot90(COLOR, -1)  # upright with orientation 6
GRAY = np.linspace(0, 255, 800).astype(np.uint8).reshape(20, 40)
ALPHA = np.full((20, 40), 64, np.uint8)


def deployed():
    """The module that deploy/detect.py reads images with."""
    spec = importlib.util.spec_from_file_location("deployed_decoding", ROOT / "deploy/decoding.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def saved(image: np.ndarray, path: Path, suffix: str = ".png", **options) -> Path:
    """A file written by Pillow, from BGR with or without alpha, or gray."""
    path = path / f"a{suffix}"
    if image.ndim == 3 and image.shape[2] > 2:
        image = image[..., [2, 1, 0, 3][: image.shape[2]]]
    Image.fromarray(image).save(path, **options)
    return path


def encoded(image: np.ndarray, path: Path, suffix: str) -> Path:
    """A file written by OpenCV."""
    (path / f"a{suffix}").write_bytes(cv2.imencode(suffix, image)[1].tobytes())
    return path / f"a{suffix}"


def exif() -> Image.Exif:
    found = Image.Exif()
    found[274] = 6
    return found


def png_texts(**texts: str) -> dict:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_itxt("XML:com.adobe.xmp", text) if name == "xmp" else info.add_text("Raw profile type exif", text)
    return {"pnginfo": info}


def raw_profile() -> str:
    data = exif().tobytes()
    return f"\nexif\n{len(data):8}\n{data.hex()}\n"


def late(path: Path) -> Path:
    """The PNG with its EXIF after the pixels, as some tools write it."""
    saved(COLOR, path)
    data, body = (path / "a.png").read_bytes(), b"eXIf" + exif().tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    return path / "a.png"


def pages(path: Path, suffix: str, **options) -> Path:
    first, second = Image.fromarray(COLOR), Image.fromarray(255 - COLOR)
    first.save(path / f"a{suffix}", save_all=True, append_images=[second], **options)
    return path / f"a{suffix}"


def pyramid(path: Path) -> Path:
    """A TIFF with a smaller copy of its page."""
    small = Image.fromarray(COLOR[::2, ::2, ::-1])
    small.encoderinfo = {"tiffinfo": {254: 1}}
    return saved(COLOR, path, ".tif", save_all=True, append_images=[small])


def with_alpha(image: np.ndarray, top: int = 255) -> np.ndarray:
    return np.dstack([image, np.full(image.shape[:2], top, image.dtype)])


# Name -> the file, the value of white, and the image as BGR; None where it is refused.
CASES = {
    "plain": (lambda p: saved(COLOR, p), None, COLOR),
    "png exif": (lambda p: saved(COLOR, p, exif=exif()), None, TURNED),
    "png late exif": (late, None, TURNED),
    "png raw profile": (lambda p: saved(COLOR, p, **png_texts(raw=raw_profile())), None, TURNED),
    "png xmp": (lambda p: saved(COLOR, p, **png_texts(xmp=XMP)), None, TURNED),
    "webp exif": (lambda p: saved(COLOR, p, ".webp", lossless=True, exif=exif().tobytes()), None, TURNED),
    "webp xmp": (lambda p: saved(COLOR, p, ".webp", lossless=True, xmp=XMP.encode()), None, TURNED),
    "tiff orientation": (lambda p: saved(COLOR, p, ".tif", tiffinfo={274: 6}), None, TURNED),
    "tiff xmp": (lambda p: saved(COLOR, p, ".tif", tiffinfo={700: XMP.encode()}), None, TURNED),
    "png alpha": (lambda p: saved(np.dstack([COLOR, ALPHA]), p), None, COLOR),
    "tiff alpha": (lambda p: saved(np.dstack([COLOR, ALPHA]), p, ".tif"), None, COLOR),
    "tiff alpha, packed": (
        lambda p: saved(np.dstack([COLOR, ALPHA]), p, ".tif", compression="tiff_lzw"),
        None,
        COLOR,
    ),
    "tiff alpha, turned": (
        lambda p: saved(np.dstack([COLOR, ALPHA]), p, ".tif", tiffinfo={274: 6}),
        None,
        TURNED,
    ),
    "tiff alpha, xmp": (
        lambda p: saved(np.dstack([COLOR, ALPHA]), p, ".tif", tiffinfo={700: XMP.encode()}),
        None,
        TURNED,
    ),
    "tiff gray alpha": (lambda p: saved(np.dstack([GRAY, ALPHA]), p, ".tif"), None, GRAY),
    "16 bits": (lambda p: encoded(GRAY.astype(np.uint16) * 257, p, ".png"), None, GRAY),
    "16 bits alpha": (lambda p: encoded(with_alpha(COLOR.astype(np.uint16) * 257, 65535), p, ".png"), None, COLOR),
    "12 bits": (lambda p: encoded(GRAY.astype(np.uint16) * 16, p, ".png"), 4080, GRAY),
    "12 bits alpha": (lambda p: encoded(with_alpha(COLOR.astype(np.uint16) * 16, 65535), p, ".png"), 4080, COLOR),
    "12 bits alpha tiff": (lambda p: encoded(with_alpha(COLOR.astype(np.uint16) * 16, 65535), p, ".tif"), 4080, COLOR),
    "gray float": (lambda p: encoded(GRAY.astype(np.float32) / 255, p, ".tif"), None, GRAY),
    "float alpha": (lambda p: encoded(with_alpha(COLOR.astype(np.float32) / 255, 9), p, ".tif"), 1.0, COLOR),
    "tiff pyramid": (pyramid, None, COLOR),
    "tiff pages": (lambda p: pages(p, ".tif"), None, None),
    "gif pages": (lambda p: pages(p, ".gif"), None, None),
    "webp pages": (lambda p: pages(p, ".webp", lossless=True), None, None),
    "apng pages": (lambda p: pages(p, ".png"), None, None),
    "above white": (lambda p: encoded(GRAY.astype(np.uint16) * 257, p, ".png"), 4095, None),
    "not a number": (lambda p: encoded(np.full((20, 40), np.nan, np.float32), p, ".tif"), None, None),
    "empty": (lambda p: saved(COLOR, p).write_bytes(b"") or p / "a.png", None, None),
}


@pytest.mark.parametrize("name", CASES)
def test_all_programs_read_the_same_image(tmp_path, name):
    write, white, expected = CASES[name]
    path, detect = write(tmp_path), deployed()
    if expected is None:
        with raises_user_error(path):
            read_image(path, white_level=white)
        with pytest.raises(ValueError, match=r"\w+"):
            detect.read(str(path), white)
        return
    expected = np.dstack([expected] * 3) if expected.ndim == 2 else expected
    np.testing.assert_array_equal(read_image(path, white_level=white), expected)
    np.testing.assert_array_equal(detect.read(str(path), white), expected)
    assert read_size(path) == expected.shape[:2]
    assert find_white_level([path]) in (None, 1.0, 4095)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2] is TURNED])
def test_masks_are_turned_as_images_are(tmp_path, name):
    path = CASES[name][0](tmp_path)
    mask = decode_mask_file(path).mask
    np.testing.assert_array_equal(mask, read_image(path).max(axis=2) > 0)


def test_avif_is_turned_as_masks_are(tmp_path):
    try:
        path = saved(np.repeat(COLOR[..., 2:], 3, axis=2), tmp_path, ".avif", exif=exif().tobytes())
    except (KeyError, OSError, ValueError):
        pytest.skip("this Pillow writes no AVIF")
    if not cv2.haveImageReader(str(path)):
        pytest.skip("this OpenCV reads no AVIF")
    assert read_image(path).shape == (40, 20, 3) and decode_mask_file(path).mask.shape == (40, 20)
    np.testing.assert_array_equal(deployed().read(str(path), None), read_image(path))


@pytest.mark.parametrize("name", ["data/decoding.py", "registration/homography.py"])
def test_the_deployed_program_has_copies(name):
    path = ROOT / name
    assert (ROOT / "deploy" / path.name).read_bytes() == path.read_bytes()


def png_of_size(path: Path, width: int, height: int) -> Path:
    """The beginning of a PNG whose header says this size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = b"".join(
        struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in (body, pixels, b"IEND")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def test_images_above_the_decoders_limits_are_named_with_the_variable_that_raises_them(tmp_path):
    variable = "OPENCV_IO_MAX_IMAGE_PIXELS=1600000000"
    with raises_user_error("a.png", "1,600,000,000", "1,073,741,824", variable):
        read_image(png_of_size(tmp_path / "a.png", 40_000, 40_000))
    with raises_user_error("b.png", "2,000,000", "1,048,576", "OPENCV_IO_MAX_IMAGE_WIDTH=2000000"):
        read_image(png_of_size(tmp_path / "b.png", 2_000_000, 10))


def test_scaling_takes_little_memory_beside_the_image(tmp_path):
    path = encoded(np.full((3000, 4000), 4000, np.uint16), tmp_path, ".tif")
    tracemalloc.start()
    read_image(path, white_level=4095)
    peak = tracemalloc.get_traced_memory()[1] / 12e6
    tracemalloc.stop()
    assert peak < 12  # bytes a pixel: file 2, decoded 2, scaled 1, three channels 3


@pytest.mark.parametrize(("top", "white"), [(4095, None), (255, 4095), (1023, 65535)])
def test_an_image_of_more_bits_that_is_nearly_black_gets_no_verdict(tmp_path, top, white):
    path = encoded((GRAY.astype(np.float64) * top / 255).astype(np.uint16), tmp_path, ".png")
    with raises_user_error(path, str(top), str(white or 65535)):
        read_image(path, white_level=white, refuses_dark=True)
    assert read_image(path, white_level=white).max() <= 16
    assert read_image(encoded(GRAY // 16, tmp_path, ".bmp"), refuses_dark=True).max() <= 16


def _png_of(length: int, width: int = 32, has_right_sum: bool = True, kind: bytes = b"IDAT") -> bytes:
    """A PNG file whose second chunk says that it has `length` bytes, but has none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, 24, 8, 2, 0, 0, 0)
    check = zlib.crc32(header) if has_right_sum else 0
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", check)
    return start + struct.pack(">I", length) + kind


@pytest.mark.parametrize(
    "data",
    [
        _png_of(2**31 - 1),
        _png_of(2**30, has_right_sum=False),
        _png_of(2**30, kind=b"IEND"),
        _png_of(0, 2**20, kind=b"IEND"),
        _png_of(0)[:36],
    ],
    ids=["chunk", "wrong sum", "end", "pixels", "short"],
)
def test_a_png_that_declares_more_than_it_has_takes_no_memory(data):
    """OpenCV took gigabytes for a file of 50 bytes, before it found that they are not there."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(decoding.DecodeError, match="cut off"):
        decoding.decode(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_jpeg_of_more_pixels_than_its_bytes_can_hold_is_refused():
    data = bytearray(cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes())
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", 16000, 16000)
    with pytest.raises(decoding.DecodeError, match="cut off"):
        decoding.decode(bytes(data))
