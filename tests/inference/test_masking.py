"""inference/masking.py: masking regions at the size of images and of networks."""

import re

import cv2
import numpy as np
import pytest

from inference import masking


def test_regions_are_rectangles_with_ends_excluded():
    region = masking.region_mask([[0, 2, 0, 3], [1, 4, 4, 6]], (4, 6))
    assert region.sum() == 6 + 6 and region[1, 2] and not region[2, 2] and region[3, 5]
    for outside in ([0, 5, 0, 1], [0, 1, 0, 7], [2, 2, 0, 1], [-1, 1, 0, 1]):
        with pytest.raises(ValueError, match=re.escape(str(outside)) + r".*\b6 x 4\b"):
            masking.region_mask([outside], (4, 6))


@pytest.mark.parametrize("size", [(8, 8), (24, 40), (64, 96), (96, 64)])
def test_a_resized_image_outside_the_region_holds_no_pixel_of_it(size):
    """The region is bright, the rest dark: pixels that are bright after the resize must be in the resized region."""
    region = masking.region_mask([[7, 12, 30, 31], [40, 47, 3, 9]], (48, 64))
    lit = cv2.resize(region.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0
    resized = masking.resize_region(region, size)
    assert not (lit & ~resized).any()
    assert resized.sum() < 3 * np.prod(size) * region.mean() + 40  # and not everything
