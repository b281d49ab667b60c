"""Masking regions: parts of an image that inference ignores, such as moving machinery, reflections or print."""

from collections.abc import Sequence

import cv2
import numpy as np


class RegionError(ValueError):
    """A rectangle that does not lie inside the image."""


def region_mask(rectangles: Sequence[Sequence[int]], shape: tuple[int, int]) -> np.ndarray:
    """Union of rectangles as a mask, bool (H, W).

    Args:
        rectangles: [y0, y1, x0, x1] in pixels; y1 and x1 are excluded. shape: (H, W).

    Raises:
        RegionError: a rectangle does not lie inside the image.
    """
    height, width = shape
    region = np.zeros((height, width), bool)
    for y0, y1, x0, x1 in rectangles:
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise RegionError(
                f"rectangle [{y0}, {y1}, {x0}, {x1}] ([y0, y1, x0, x1]) is not inside an image of {width} x {height} "
                "pixels (width x height)"
            )
        region[y0:y1, x0:x1] = True
    return region


def resize_region(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a region, bool (H, W), to `size` (height, width), without losing any pixel.

    A pixel of the result is True if it overlaps the region, or if linear interpolation of an image reads a pixel of the
    region there.
    """
    if region.shape == tuple(size):
        return region
    weights = region.astype(np.float32)
    methods = (cv2.INTER_AREA, cv2.INTER_LINEAR)
    return np.logical_or(*(cv2.resize(weights, size[::-1], interpolation=method) > 0 for method in methods))
