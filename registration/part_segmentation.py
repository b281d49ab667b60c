"""Segmentation of one part on a plain background.

Points are pixels (x, y) with integers at pixel centers.
"""

from dataclasses import dataclass

import cv2
import numpy as np

WORKING_SIZE = 320  # pixels, longer side of the image that poses are computed at
RIM = 0.03  # width of the image's rim, as a share of its shorter side; the background color is fitted to the rim
MIN_AREA, MAX_AREA = 0.01, 0.9  # share of the image that a part may cover: a smaller region is dirt
MAX_ON_RIM = 0.25  # largest share of the rim that a part may cover
LIMITS = ("rim", "otsu")  # thresholds between part and background, in the order in which they are tried
MIN_CONTRAST = 6.0  # smallest contrast of the part, in deviations of the background
CROP_MARGIN = 0.08  # around a part, as a share of its length
MIN_LEVELS = 12.0  # smallest contrast of the part, in gray levels


class NoPartError(ValueError):
    """No part is found in an image.

    Attributes:
        silhouette: the largest region that was found instead, bool (h, w) at working size.
    """

    def __init__(self, text: str, silhouette: np.ndarray):
        super().__init__(text)
        self.silhouette = silhouette


@dataclass(frozen=True)
class Part:
    """A part in an image, segmented at working size (h, w).

    Attributes:
        gray: the image, uint8 (h, w). scale: w / W.
        silhouette: bool (h, w), True on the part, holes filled.
        center: centroid (x, y). angle: direction of the longer axis in radians. ratio: shorter to longer axis.
        area: pixels of the silhouette. shape: (H, W) of the image at its own size.
    """

    gray: np.ndarray
    scale: float
    silhouette: np.ndarray
    center: np.ndarray
    angle: float
    ratio: float
    area: float
    shape: tuple[int, int]


def find(image: np.ndarray, limit: str) -> Part:
    """Segment the part in an image: the largest connected region that differs from the background.

    The color of the background is a second-order surface fitted to the rim of the image, so illumination may vary.

    Args:
        image: uint8, (H, W, 3) BGR or (H, W).
        limit: threshold, one of LIMITS. `rim`: a multiple of the deviation of the rim itself, so shadows belong to the
            part. `otsu`: Otsu's threshold (N. Otsu, IEEE Transactions on Systems, Man, and Cybernetics 1979).

    Raises:
        NoPartError: the region is too small, too large, or covers too much of the rim.
    """
    scale = min(WORKING_SIZE / max(image.shape[:2]), 1.0)
    size = tuple(max(round(side * scale), 1) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    small = small if small.ndim == 3 else cv2.cvtColor(small, cv2.COLOR_GRAY2BGR)
    distance, deviation = _from_background(small)
    threshold = max(MIN_CONTRAST * deviation, MIN_LEVELS)
    if limit == "otsu":
        levels = np.minimum(distance, 255).astype(np.uint8)
        threshold = max(threshold, cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)[0])
    above = cv2.morphologyEx((distance > threshold).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    silhouette = _largest(above)
    share = silhouette.mean()
    rim = _rim(silhouette.shape, 1)
    if not MIN_AREA <= share <= MAX_AREA:
        raise NoPartError(
            f"the largest region that differs from the background covers {100 * share:.1f} % of the image", silhouette
        )
    if (on_rim := silhouette[rim].mean()) > MAX_ON_RIM:
        raise NoPartError(
            f"the largest region that differs from the background covers {100 * on_rim:.0f} % of the image's rim",
            silhouette,
        )
    moments = cv2.moments(silhouette.astype(np.uint8), binaryImage=True)
    center = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
    across = moments["mu20"] - moments["mu02"]
    angle = 0.5 * np.arctan2(2 * moments["mu11"], across)
    root = np.hypot(2 * moments["mu11"], across)
    total = moments["mu20"] + moments["mu02"]
    ratio = float(np.sqrt((total - root) / (total + root)))
    gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
    return Part(gray, size[0] / image.shape[1], silhouette, center, angle, ratio, moments["m00"], image.shape[:2])


def cropped(image: np.ndarray) -> np.ndarray:
    """An image cropped to its part, with a margin, whose longer axis then lies along the rows; NoPartError without."""
    try:
        part = find(image, LIMITS[0])
    except NoPartError:
        part = find(image, LIMITS[1])
    turn = np.array([[np.cos(part.angle), np.sin(part.angle)], [-np.sin(part.angle), np.cos(part.angle)]])
    points = (np.argwhere(part.silhouette)[:, ::-1] / part.scale) @ turn.T
    low, high = points.min(axis=0), points.max(axis=0)
    margin = CROP_MARGIN * (high - low).max()
    size = np.ceil(high - low + 2 * margin).astype(int)
    color = [float(value) for value in np.atleast_1d(background_color(image))]
    transform = np.column_stack([turn, margin - low])
    return cv2.warpAffine(image, transform, size.tolist(), flags=cv2.INTER_CUBIC, borderValue=color)


def background_color(image: np.ndarray) -> np.ndarray:
    """Median color of the rim of an image, uint8: (3,) for (H, W, 3), () for (H, W)."""
    return np.median(image[_rim(image.shape[:2])], axis=0).astype(np.uint8)


def _rim(shape: tuple[int, int], width: int = 0) -> np.ndarray:
    """The rim of an image, bool (H, W). width: in pixels; 0: from RIM."""
    width = width or max(round(RIM * min(shape)), 2)
    rim = np.ones(shape, bool)
    rim[width:-width, width:-width] = False
    return rim


def _from_background(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Color distance of each pixel to the background, float32 (h, w), and its median on the rim."""
    smooth = cv2.GaussianBlur(image, (0, 0), 1.0).astype(np.float32)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x / width - 0.5, y / height - 0.5
    terms = np.dstack([np.ones_like(x), x, y, x * x, x * y, y * y])
    rim = _rim((height, width))
    known, colors = terms[rim], smooth[rim]
    keep = np.ones(len(known), bool)
    for _ in range(4):  # robust fit: pixels of a part that touches the rim are left out
        surface, *_ = np.linalg.lstsq(known[keep], colors[keep], rcond=None)
        error = np.linalg.norm(colors - known @ surface, axis=1)
        keep = error <= 2.5 * np.median(error) + 1e-3
    return np.linalg.norm(smooth - terms @ surface, axis=2), float(np.median(error))


def _largest(above: np.ndarray) -> np.ndarray:
    """The largest connected region with its holes filled, bool (h, w); empty if there is none."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above)
    if count < 2:
        return np.zeros(above.shape, bool)
    piece = (labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    contours, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(piece, contours, -1, 1, cv2.FILLED) > 0
