"""registration/part_segmentation.py: the part against its background."""

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
