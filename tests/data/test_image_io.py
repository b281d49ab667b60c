"""data/image_io.py: formats, orientation, bit depth, white level, pages."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, write
from messages import assert_names, raises_user_error
from PIL import Image

from data import decoding, folders, image_io
from data.cache import DecodedImages
from data.image_io import find_white_level, read_image, read_mask, read_size
from synthesis import AnomalySynthesizer

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "WEBP": ".webp"}


UPRIGHT = {  # EXIF's definition: where the first row and the first column of what is stored belong
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).T,
    8: np.rot90,
}


def turned(path, image, number):
    """An image with an EXIF orientation, written by Pillow."""
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = number
    kind = next(name for name, suffix in FORMATS.items() if suffix == path.suffix)
    options = {"tiffinfo": {decoding.ORIENTATION: number}} if kind == "TIFF" else {"exif": exif.tobytes()}
    Image.fromarray(image).save(path, kind, **options, **({"lossless": True} if kind == "WEBP" else {}))
    return path


@pytest.mark.parametrize("suffix", FORMATS.values())
@pytest.mark.parametrize("number", range(1, 9))
def test_images_and_masks_follow_the_exif_orientation(tmp_path, suffix, number):
    mask = np.zeros((48, 64), np.uint8)
    mask[8:16, 8:40] = 255
    path = turned(tmp_path / f"a{suffix}", mask, number)
    upright = UPRIGHT[number](mask) > 0
    assert read_size(path) == upright.shape
    np.testing.assert_array_equal(read_image(path)[..., 0] > 127, upright)
    np.testing.assert_array_equal(read_mask(path, upright.shape) > 0, upright)


def ramp(top):
    return np.linspace(0, top, 64 * 64).reshape(64, 64).astype(np.uint16)


@pytest.mark.parametrize(("bits", "white"), [(8, 255), (10, 1023), (12, 4095), (14, 16383), (16, None)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_the_white_level_is_found_and_all_gray_levels_are_kept(tmp_path, bits, white, suffix):
    path = write(tmp_path / f"a{suffix}", ramp(2**bits - 1))
    assert find_white_level([path]) == white
    image = read_image(path, white_level=white)
    assert image.dtype == np.uint8 and image.shape == (64, 64, 3) and len(np.unique(image)) == 256
    assert image.max() == 255


def test_8_bit_images_have_no_white_level_and_16_bit_ones_keep_the_high_byte(tmp_path):
    eight = write(tmp_path / "a.png", np.full((8, 8, 3), 7, np.uint8))
    assert find_white_level([eight]) is None and (read_image(eight, white_level=1023) == 7).all()
    wide = write(tmp_path / "b.png", np.full((8, 8), 77 * 256 + 200, np.uint16))
    assert (read_image(wide) == 77).all()


def test_float_images_are_scaled_from_0_to_1_or_by_the_white_level(tmp_path):
    unit = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    path = write(tmp_path / "a.tif", unit)
    assert find_white_level([path]) == 1.0
    np.testing.assert_array_equal(read_image(path, white_level=1.0)[..., 0].ravel(), np.arange(256))
    large = write(tmp_path / "b.tif", unit * 4000)
    assert find_white_level([large]) == 4095 and read_image(large, white_level=4000).max() == 255
    with raises_user_error("b.tif", 4000, 1, "data.white_level"):
        read_image(large)
    with raises_user_error(tmp_path, "data.white_level"):
        find_white_level([write(tmp_path / "c.tif", unit * 7)])


def test_values_above_the_white_level_are_a_user_error(tmp_path):
    path = write(tmp_path / "a.png", ramp(4095))
    with raises_user_error("a.png", 4095, 1023, "data.white_level"):
        read_image(path, white_level=1023)


@pytest.mark.parametrize(
    "stored", [ramp(4095), ramp(65535), ramp(4095) / np.float32(4095), ramp(4095).astype(np.float32), ramp(255)]
)
def test_the_white_level_of_a_texture_is_its_own(tmp_path, stored):
    """12 bits were black, and float ones above 1 refused with advice about another setting."""
    path = write(tmp_path / "a.tif", stored)
    texture = read_image(path, (32, 32), "own")
    assert texture.max() > 250 and len(np.unique(texture)) > 100
    np.testing.assert_array_equal(AnomalySynthesizer([path], (32, 32)).textures[0], texture)
    np.testing.assert_array_equal(DecodedImages(tmp_path, "textures", [path], (32, 32), "own")[0], texture)


def test_several_pages_are_a_user_error(tmp_path):
    pages = [Image.fromarray(np.full((32, 32), value, np.uint8)) for value in (10, 20)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for read in (read_image, image_io.decode_mask_file):
        with raises_user_error("a.tif", 2):
            read(tmp_path / "a.tif")
    pages[0].save(tmp_path / "b.gif", save_all=True, append_images=[Image.fromarray(np.eye(32, dtype=np.uint8) * 9)])
    with raises_user_error("b.gif", 2):
        read_image(tmp_path / "b.gif")


@pytest.mark.parametrize("suffix", [".webp", ".jp2", ".exr", ".ppm", ".gif"])
def test_formats_that_opencv_decodes(tmp_path, suffix):
    image = np.full((64, 96, 3), (40, 90, 200), np.uint8)
    stored = image.astype(np.float32) / 255 if suffix == ".exr" else image
    done, data = cv2.imencode(suffix, stored)
    if not done:
        pytest.skip(f"this OpenCV writes no {suffix}")
    (tmp_path / f"a{suffix}").write_bytes(data.tobytes())
    tolerance = 50 if suffix == ".gif" else 12  # GIF: a palette
    read = read_image(tmp_path / f"a{suffix}").astype(int)
    np.testing.assert_allclose(read, image, atol=tolerance)
    assert read_size(tmp_path / f"a{suffix}") == (64, 96)


def test_more_pixels_than_opencv_decodes_are_a_user_error(tmp_path):
    path = write(tmp_path / "a.png", np.zeros((64, 64), np.uint8))
    code = "import pathlib; from data.image_io import read_image; from runtime.device import setup; setup(); "
    code += f"read_image(pathlib.Path({str(path)!r}))"
    environment = {**os.environ, "OPENCV_IO_MAX_IMAGE_PIXELS": "4000"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert_names(done.stderr, "UserError", "a.png", "4,096", "4,000", "OPENCV_IO_MAX_IMAGE_PIXELS=4096")


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "tif", "TIFF"])
def test_common_formats_are_decoded_to_bgr(tmp_path, suffix):
    image = np.full((20, 30, 3), (10, 100, 200), np.uint8)
    path = tmp_path / f"ünï.{suffix}"
    path.write_bytes(cv2.imencode(f".{suffix.lower()}", image)[1].tobytes())
    read = read_image(path)
    assert read.dtype == np.uint8 and read.shape == (20, 30, 3)
    np.testing.assert_allclose(read, image, atol=3)
    assert folders.list_textures(tmp_path) == [path]


def test_depths_and_channels_are_read_as_8_bit_bgr(tmp_path):
    gray, alpha = np.full((8, 8), 77, np.uint8), np.full((8, 8, 4), (1, 2, 3, 128), np.uint8)
    np.testing.assert_array_equal(read_image(write(tmp_path / "gray.png", gray)), np.full((8, 8, 3), 77))
    np.testing.assert_array_equal(read_image(write(tmp_path / "rgba.png", alpha)), np.full((8, 8, 3), (1, 2, 3)))
    wide = read_image(write(tmp_path / "wide.png", np.full((8, 8), 77 * 256 + 5, np.uint16)))
    assert wide.dtype == np.uint8 and (wide == 77).all()


def test_the_white_level_of_wide_integers_is_that_of_their_values(tmp_path):
    values = np.linspace(0, 60_000, 40 * 48).reshape(40, 48)
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "a.tif")
    assert find_white_level([tmp_path / "a.tif"]) == 65535
    assert read_image(tmp_path / "a.tif", white_level=65535).max() == 233
    write(tmp_path / "b.png", values.astype(np.uint16))
    assert find_white_level([tmp_path / "b.png"]) is None
