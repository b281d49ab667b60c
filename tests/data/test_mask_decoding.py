"""data/mask_decoding.py: ground-truth masks in every common form mark the same pixels, or are an error."""

import cv2
import numpy as np
import pytest

from data.mask_decoding import BACKGROUND, EMPTY, LEVELS, MOST, WHOLE, MaskError, decode_mask

TRUTH = np.zeros((60, 80), bool)
TRUTH[20:35, 30:50] = True
PART = np.zeros_like(TRUTH)  # one class of two
PART[20:35, 30:40] = True


def gray(low, high, dtype=np.uint8):
    return np.where(TRUTH, high, low).astype(dtype)


def colored(ground, color, dtype=np.uint8):
    return np.where(TRUTH[..., None], color, ground).astype(dtype)


def with_alpha(color, alpha):
    return np.dstack([np.broadcast_to(np.array(color, np.uint8), (*TRUTH.shape, 3)), alpha.astype(np.uint8)])


WRITTEN = {
    "0 and 255": gray(0, 255),
    "0 and 1": gray(0, 1),
    "0 and 128": gray(0, 128),
    "0 and 236": gray(0, 236),
    "0 and 254": gray(0, 254),
    "bool": TRUTH,
    "class numbers 1 and 2": gray(0, 2) - PART,
    "instances to 40": np.where(TRUTH, np.add.outer(np.arange(60), np.arange(80)) // 5 * 2 + 3, 0).astype(np.uint8),
    "uint16 of 255": gray(0, 255, np.uint16),
    "uint16 of 65535": gray(0, 65535, np.uint16),
    "int32 of 1": gray(0, 1, np.int32),
    "float of 1": gray(0, 1, np.float32),
    "float of 0.5": gray(0, 0.5, np.float32),
    "video range": gray(16, 235),
    "numbered from 1": gray(1, 2),
    "equal channels": colored((0, 0, 0), (255, 255, 255)),
    "red on black": colored((0, 0, 0), (0, 0, 255)),
    "dark red on black": colored((0, 0, 0), (0, 0, 128)),
    "red on white": colored((255, 255, 255), (0, 0, 255)),
    "two colors on black": np.where(PART[..., None], (0, 128, 0), colored((0, 0, 0), (0, 0, 128))).astype(np.uint8),
    "class numbers as colors": colored((0, 0, 0), (0, 1, 0)),
    "only blue": colored((0, 0, 0), (255, 0, 0)),
    "uint16 red": colored((0, 0, 0), (0, 0, 65535), np.uint16),
    "alpha on white": with_alpha((255, 255, 255), TRUTH * 255),
    "alpha on black": with_alpha((0, 0, 0), TRUTH * 255),
    "opaque alpha": np.dstack([colored((0, 0, 0), (255, 255, 255)), np.full(TRUTH.shape, 255, np.uint8)]),
    "gray and alpha": np.dstack([gray(0, 255), np.full(TRUTH.shape, 255, np.uint8)]),
}  # fmt: skip


@pytest.mark.parametrize("stored", WRITTEN.values(), ids=WRITTEN)
def test_every_form_of_a_mask_marks_the_same_pixels(stored):
    np.testing.assert_array_equal(decode_mask(stored).mask, TRUTH)


@pytest.mark.parametrize("quality", [95, 75, 40])
def test_thin_scratches_survive_jpeg(quality):
    mask = cv2.line(np.zeros((512, 512), np.uint8), (30, 40), (470, 400), 255, 6)
    for stored in (mask, cv2.merge([mask * 0, mask * 0, mask])):
        data = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        found = decode_mask(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), is_lossy=True).mask
        assert (found & (mask > 0)).sum() >= 0.97 * (mask > 0).sum()
        assert (found & (mask == 0)).sum() <= 0.05 * (mask > 0).sum()


def test_soft_edges_count_from_half_on():
    soft = cv2.GaussianBlur(gray(0, 255), (0, 0), 1.5)
    np.testing.assert_array_equal(decode_mask(soft).mask, soft > 127)
    np.testing.assert_array_equal(decode_mask(soft.astype(np.float32) / 255).mask, soft > 127)


def test_a_class_of_a_low_gray_level_is_marked_entirely():
    stored = np.where(PART, 85, gray(0, 255)).astype(np.uint8)
    found = decode_mask(stored)
    assert (found.mask == TRUTH).all() and found.warning == LEVELS


@pytest.mark.parametrize(
    ("stored", "warning"),
    [
        (gray(255, 0), MOST),
        (gray(1, 0), MOST),
        (np.full((5, 5), 255, np.uint8), WHOLE),
        (np.zeros((5, 5), np.uint8), EMPTY),
        (gray(1, 2), BACKGROUND),
        (gray(0, 255), None),
        (with_alpha((255, 255, 255), 255 - TRUTH * 255), MOST),
    ],
)
def test_doubtful_masks_are_reported(stored, warning):
    assert decode_mask(stored).warning == warning


NATURAL = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8), (0, 0), 2)
NATURAL = cv2.normalize(NATURAL, None, 0, 255, cv2.NORM_MINMAX)


@pytest.mark.parametrize(
    "stored",
    [
        np.full((5, 5), 128, np.uint8),  # all of one class, or none
        NATURAL,
        NATURAL[..., 0],
        np.where(PART, 255, gray(0, 1)).astype(np.uint8),  # class numbers and perhaps 'ignore'
        colored((0, 255, 0), (0, 0, 255)),  # which of the two colors is anomalous is not known
        np.where(PART[..., None], (0, 0, 0), colored((255, 255, 255), (0, 0, 255))).astype(np.uint8),
        np.dstack([np.where(PART[..., None], (255, 255, 255), np.zeros(3)), TRUTH * 255]).astype(np.uint8),
        gray(0, 1).astype(np.float32) * np.nan,
        -gray(0, 1).astype(np.int32),
        np.zeros((4, 4, 5), np.uint8),
    ],
)
def test_an_ambiguous_mask_is_an_error(stored):
    with pytest.raises(MaskError):
        decode_mask(stored)


def test_class_numbers_in_a_lossy_format_are_an_error():
    with pytest.raises(MaskError):
        decode_mask(gray(0, 2), is_lossy=True)
