"""registration/part_segmentation.py: the part against its background."""

import cv2
import numpy as np
import pytest

from registration import part_pose, part_segmentation


def test_a_reference_without_a_part_is_an_error():
    with pytest.raises(part_segmentation.NoPartError, match=r"\b0\.0 %") as caught:
        part_pose.reference_of(np.full((60, 80, 3), 90, np.uint8))
    assert caught.value.silhouette.shape == (60, 80) and not caught.value.silhouette.any()


def test_the_background_color_is_that_of_the_border():
    image = np.full((40, 60, 3), (10, 20, 30), np.uint8)
    image[10:30, 10:40] = 200
    assert part_segmentation.background_color(image).tolist() == [10, 20, 30]


@pytest.mark.parametrize("degrees", [0, 30, 85, 120])
def test_a_cropped_image_shows_the_whole_part_straight(degrees):
    image = np.full((200, 220), 40, np.uint8)
    box = cv2.boxPoints(((110, 100), (120, 30), degrees))
    cv2.fillPoly(image, [np.rint(box).astype(np.int32)], 200)
    found = part_segmentation.cropped(image)
    margin = 0.08 * 120
    larger = np.array(found.shape) - (30 + 2 * margin, 120 + 2 * margin)
    assert (larger > 0).all() and (larger < 8).all()  # the silhouette has the blurred edge too
    inside = found > 120
    assert abs(inside.sum() - 3600) < 250 and inside[found.shape[0] // 2, 14:-14].all()


def test_an_image_without_a_part_is_not_cropped():
    with pytest.raises(part_segmentation.NoPartError):
        part_segmentation.cropped(np.full((60, 80, 3), 90, np.uint8))
