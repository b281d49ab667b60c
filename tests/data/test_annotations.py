"""data/annotations.py: shapes of COCO to masks."""

import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write
from skimage.draw import polygon2mask

from data import image_io
from data.annotations import DrawnMask, decode_counts, draw_shape, fill_polygon
from data.layouts import coco
from runtime import provenance

SIZE = (30, 40)


def encode_counts(runs: list[int]) -> str:
    """COCO's text of run lengths, written from its description: the inverse of `decode_counts`."""
    text = ""
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            is_last = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if is_last else 32))
            if is_last:
                break
    return text


def runs_of(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def test_run_lengths_are_decoded_plain_and_compressed():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.98):
        mask = rng.random(SIZE) < share
        runs = runs_of(mask)
        assert decode_counts(encode_counts(runs)) == runs
        for counts in (runs, encode_counts(runs)):
            assert (draw_shape({"size": list(SIZE), "counts": counts}, SIZE) == mask).all()
    long = [100_000, 3, 70_000, 12, 5]
    assert decode_counts(encode_counts(long)) == long


def test_a_text_that_is_known_is_decoded():
    """Worked by hand: 6, 1, 40 is 6 -> '6'; 1 -> '1'; 40 = 8 + 32 * 1 -> 'X' and '1'; then 3 - 1 = 2 -> '2'."""
    assert decode_counts("61X12") == [6, 1, 40, 3]


@pytest.mark.parametrize("text", ["6X", "é", "!"])
def test_a_damaged_text_is_an_error(text):
    with pytest.raises(ValueError, match="run lengths"):
        decode_counts(text)


def test_polygons_mark_the_pixels_whose_center_is_inside():
    rng = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
        corners = np.stack([20 + 25 * np.cos(angles), 15 + 12 * np.sin(angles)], axis=1)  # partly outside
        expected = polygon2mask(SIZE, corners[:, ::-1] - 0.5)
        assert (fill_polygon(corners, SIZE) == expected).all()


def test_boxes_and_several_polygons():
    box = draw_shape({"bbox": [2, 3, 4, 5]}, SIZE)
    assert box.sum() == 20 and box[3:8, 2:6].all()
    both = draw_shape([[0, 0, 2, 0, 2, 2, 0, 2], [10, 10, 13, 10, 13, 12, 10, 12]], SIZE)
    assert both.sum() == 4 + 6
    with pytest.raises(ValueError, match="5 numbers"):
        draw_shape([[1, 2, 3, 4, 5]], SIZE)
    with pytest.raises(ValueError, match="size"):
        draw_shape({"size": [1, 1], "counts": [1]}, SIZE)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 1e308, -1e308, 10**400])
def test_coordinates_that_are_no_pixels_are_an_error(odd):
    for shape in ([[odd, 0, 9, 0, 9, 9]], [[0, odd, 9, 0, 9, 9]], {"bbox": [0, 0, odd, 9]}):
        with pytest.raises((ValueError, OverflowError)):
            draw_shape(shape, SIZE)


def test_a_drawn_mask_stands_in_for_a_file():
    mask = DrawnMask(Path("lids.json"), "3.png", SIZE, '[{"bbox": [2, 3, 4, 5]}]')
    assert image_io.decode_mask_file(mask).mask.sum() == 20
    other = DrawnMask(Path("lids.json"), "3.png", SIZE, '[{"bbox": [2, 3, 4, 6]}]')
    assert provenance.file_digests([mask, other]) == [mask.digest, other.digest] and mask.digest != other.digest
    assert pickle.loads(pickle.dumps(mask)) == mask and len({mask, other, mask}) == 2
    assert "lids.json" in str(mask) and "3.png" in str(mask)


@pytest.mark.parametrize(("turns", "is_marked"), [(1, True), (2, False), (256, False), (301, True)])
def test_an_outline_that_is_drawn_several_times_follows_the_even_odd_rule(turns, is_marked):
    """Counts of edges are kept in a byte: one of 9,000 x 9,000 pixels would take 0.3 GB otherwise."""
    square = np.array([[1, 1], [5, 1], [5, 5], [1, 5]] * turns, float)
    assert fill_polygon(square, (8, 8))[3, 3] == is_marked


def test_annotations_of_very_large_images_are_read_in_a_second(tmp_path):
    write(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    image = {"id": 1, "file_name": "a.png", "height": 30_000, "width": 30_000}
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 29_000, 29_000]} for _ in range(3)]
    content = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "dent"}]}
    (tmp_path / "lids.json").write_text(json.dumps(content))
    start = time.process_time()
    assert len(coco.read(tmp_path / "lids.json", tmp_path).test) == 1
    assert time.process_time() - start < 1
