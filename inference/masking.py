"""Regions of a picture that are left out: what is known to mislead, such as moving machinery, reflections, print."""

from collections.abc import Sequence

import cv2
import numpy as np


class RegionError(ValueError):
    """A region that does not fit the picture."""


def region_mask(rectangles: Sequence[Sequence[int]], shape: tuple[int, int]) -> np.ndarray:
    """Union of rectangles [y0, y1, x0, x1] (pixels, ends excluded): bool (H, W) of `shape`.

    Raises:
        RegionError: a rectangle that does not lie inside.
    """
    height, width = shape
    region = np.zeros((height, width), bool)
    for y0, y1, x0, x1 in rectangles:
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise RegionError(
                f"rectangle [{y0}, {y1}, {x0}, {x1}] ([y0, y1, x0, x1]) is not inside a picture of {width} x {height} "
                "pixels (width x height)"
            )
        region[y0:y1, x0:x1] = True
    return region


def resize_region(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Region bool (H, W) -> bool of `size` (height, width): every pixel that the region has any part in.

    A pixel of the resized picture is left out, too, where linear interpolation reads the region.
    """
    if region.shape == tuple(size):
        return region
    weights = region.astype(np.float32)
    parts = (cv2.resize(weights, size[::-1], interpolation=how) for how in (cv2.INTER_AREA, cv2.INTER_LINEAR))
    return np.logical_or(*(part > 0 for part in parts))
