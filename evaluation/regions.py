"""What an anomaly map says of a picture in a few numbers: connected regions, and a score that people can compare."""

from typing import NamedTuple

import cv2
import numpy as np


class Region(NamedTuple):
    """A connected part of what is outlined: its box in pixels, ends excluded, and its area in pixels."""

    x0: int
    y0: int
    x1: int
    y1: int
    area: int


def regions(mask: np.ndarray) -> list[Region]:
    """Connected parts (8 neighbors) of a mask, bool (H, W), the largest first."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = [Region(int(x), int(y), int(x + width), int(y + height), int(area)) for x, y, width, height, area in stats]
    return sorted(found[1:], key=lambda region: (-region.area, region))  # the first is the background


def relative(score: float, threshold: float) -> float:
    """An image score as a share of its range: 0.5 at the threshold, 0 and 1 at the ends, a straight line on each side.

    Where no score can lie above the threshold (1 or more, infinite) all lie between 0 and 0.5.
    """
    if score <= threshold:
        return 0.5 * score / threshold if threshold > 0 else 0.5
    return 0.5 + 0.5 * (score - threshold) / (1 - threshold)
