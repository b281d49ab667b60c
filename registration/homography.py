"""Registration: the homography that lays an image over a reference picture of the same object or pattern.

Points are pixels (x, y), whole numbers at pixel centres; a homography H takes a point p of the image to H p in the
reference. The same pair always gives the same result: RANSAC here (OpenCV's USAC) starts each call from a fixed state.
"""

import cv2
import numpy as np

FEATURES = 3000  # ORB features of a picture
CORNERS = 1000  # corners of the reference that are followed into the image
MIN_INLIERS = 15  # matches that agree; among unrelated pictures' about 10 do by chance
MIN_AGREEMENT = 0.5  # of the corners: the share that confirms the homography to within a pixel
MIN_SPREAD = 0.15  # of the reference's area: the hull of those corners; a cluster says little about the picture's rim
MAX_AREA_SCALE = 2.0  # and its inverse
_WINDOW = 21  # pixels, of a corner's neighbourhood
_TOLERANCE = 1e-3  # pixels, of rounding in source coordinates


def register(image: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    """Homography from `image` to `reference`, or None where it cannot be trusted.

    ORB features, brute-force matches by Hamming distance with cross-check, and MAGSAC (D. Barath et al., CVPR 2020)
    give it to some pixels. Corners of the reference, followed from there into the image (B. Lucas and T. Kanade, IJCAI
    1981), and MAGSAC over them bring it to about a tenth of a pixel, as defects are but outliers among them.

    None for few matches or corners in agreement, corners in agreement that cover little of the reference, and an
    implausible homography (see `plausible`). Strictly periodic pictures can agree when shifted by a period.

    Args:
        image, reference: uint8, BGR (H, W, 3) or gray (H, W); sizes may differ.

    Returns:
        float64 (3, 3) with a last element of 1, or None.

    Raises:
        ValueError: another dtype or shape.
    """
    gray, reference_gray = _gray(image, "image"), _gray(reference, "reference")
    if min(gray.shape + reference_gray.shape) < _WINDOW:
        return None
    homography = _match(gray, reference_gray)
    for _ in range(2):  # the second time the neighbourhoods compared are hardly distorted any more
        if homography is None or not plausible(homography, gray.shape, reference_gray.shape):
            return None
        homography = _refine(homography, gray, reference_gray)
    if homography is None or not plausible(homography, gray.shape, reference_gray.shape):
        return None
    return homography


def plausible(homography: np.ndarray, shape: tuple[int, ...], reference_shape: tuple[int, ...]) -> bool:
    """Whether a picture of `shape` (H, W, ...) stays a convex, unmirrored quadrilateral of about the reference's size.

    The mapped picture's area must lie between half and twice the reference's: for pictures of one size that is the
    homography's area scale. Sizes that differ are thus allowed for: both pictures are resized to one size later on.
    """
    if not np.isfinite(homography).all():
        return False
    (height, width), reference_area = shape[:2], reference_shape[0] * reference_shape[1]
    x, y, w = homography @ (np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) - [0.5, 0.5, 0]).T
    if not (w > 0).all():
        return False
    x, y = (
        x / w,
        y / w,
    )  # all in front of the horizon: convex still, and turning the same way where the area is positive
    area = (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    return bool(reference_area / MAX_AREA_SCALE <= area <= reference_area * MAX_AREA_SCALE)


def warp(
    image: np.ndarray, homography: np.ndarray, size: tuple[int, int], interpolation: int = cv2.INTER_LINEAR
) -> tuple[np.ndarray, np.ndarray]:
    """Lay `image` into the frame that `homography` maps to.

    Args:
        image: uint8 or float32, (H, W) or (H, W, 3). homography: (3, 3), from `image` to the new frame.
        size: (height, width) of the new frame.
        interpolation: cv2.INTER_LINEAR, or cv2.INTER_NEAREST for masks.

    Returns:
        The warped array, 0 outside the source, and a bool mask (height, width): False where linear interpolation
        needs a pixel from outside the source, whichever interpolation is chosen, so an image and its mask agree.

    Raises:
        ValueError: another dtype, shape or interpolation, or a homography without an inverse.
    """
    if image.dtype not in (np.uint8, np.float32) or not _is_image(image):
        raise ValueError(f"can warp uint8 or float32 of (H, W) or (H, W, 3), not {image.dtype} {image.shape}")
    if interpolation not in (cv2.INTER_LINEAR, cv2.INTER_NEAREST):
        raise ValueError("interpolation must be cv2.INTER_LINEAR or cv2.INTER_NEAREST")
    homography = np.asarray(homography, np.float64)
    if homography.shape != (3, 3) or not np.isfinite(homography).all() or np.linalg.matrix_rank(homography) < 3:
        raise ValueError("a homography must be a finite 3 x 3 matrix that has an inverse")
    valid = _has_source(image.shape[:2], homography, size)
    border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": 0}
    warped = cv2.warpPerspective(image, homography, size[::-1], flags=interpolation, **border)
    warped[~valid] = 0  # at the rim it is mixed with what lies outside
    return warped, valid


def _has_source(shape: tuple[int, int], homography: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where a frame of `size` shows a picture of `shape`, both (height, width), laid into it: bool (height, width).

    A column of a row is valid between bounds: a point's source (x / w, y / w) lies inside where w is positive and four
    sums of x, y and w are not negative, and each of these is linear along the row.
    """
    x, y, w = np.linalg.inv(homography) * np.sign(homography[2, 2])  # w > 0: not beyond the horizon
    right, bottom, slack = shape[1] - 1 + _TOLERANCE, shape[0] - 1 + _TOLERANCE, _TOLERANCE
    rows, low, high = np.arange(size[0]), np.zeros(size[0]), np.full(size[0], size[1] - 1.0)
    for a, b, c in (x + slack * w, right * w - x, y + slack * w, bottom * w - y, w):
        rest = b * rows + c  # a * column + rest >= 0
        if a == 0:
            high[rest < 0] = -1
        elif a > 0:
            low = np.maximum(low, -rest / a)
        else:
            high = np.minimum(high, -rest / a)
    columns = np.arange(size[1], dtype=np.int32)
    low, high = (bounds.clip(-1, size[1]).astype(np.int32)[:, None] for bounds in (np.ceil(low), np.floor(high)))
    return (columns >= low) & (columns <= high)


def _is_image(image: np.ndarray) -> bool:
    return image.size > 0 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))


def _gray(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype != np.uint8 or not _is_image(image):
        raise ValueError(f"{name} must be uint8 of (H, W) or (H, W, 3), not {image.dtype} {image.shape}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image


def _match(gray: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    # A low threshold, since surfaces have little contrast; a narrow border, for the sake of small pictures.
    orb = cv2.ORB_create(FEATURES, edgeThreshold=15, fastThreshold=7)
    (keypoints, descriptors), (reference_keypoints, reference_descriptors) = (
        orb.detectAndCompute(picture, None) for picture in (gray, reference)
    )
    if descriptors is None or reference_descriptors is None:
        return None
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(descriptors, reference_descriptors)
    source = np.array([keypoints[match.queryIdx].pt for match in matches])
    target = np.array([reference_keypoints[match.trainIdx].pt for match in matches])
    return _ransac(source, target, threshold=3.0)[0]


def _refine(homography: np.ndarray, gray: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    warped, valid = warp(gray, homography, reference.shape)
    (mean, std), (reference_mean, reference_std) = (
        (picture[valid].mean(), picture[valid].std()) if valid.any() else (0, 0) for picture in (warped, reference)
    )
    if not std > 0:
        return None
    # Following compares grey values as they are: bring brightness and contrast to the reference's.
    levels = (np.arange(256) - mean) * (reference_std / std) + reference_mean
    warped = cv2.LUT(warped, levels.round().clip(0, 255).astype(np.uint8))
    inside = cv2.erode(valid.astype(np.uint8), np.ones((_WINDOW, _WINDOW), np.uint8))
    corners = cv2.goodFeaturesToTrack(reference, CORNERS, qualityLevel=0.01, minDistance=5, mask=inside)
    if corners is None:
        return None
    found, status, _ = cv2.calcOpticalFlowPyrLK(reference, warped, corners, None, winSize=(_WINDOW,) * 2, maxLevel=2)
    followed = status.ravel() > 0
    correction, inliers = _ransac(found[followed, 0], corners[followed, 0], threshold=1.0)
    if correction is None or len(inliers) < MIN_AGREEMENT * len(corners):
        return None
    if cv2.contourArea(cv2.convexHull(inliers.astype(np.float32))) < MIN_SPREAD * reference.size:
        return None
    refined = correction @ homography
    return refined / refined[2, 2]


def _ransac(source: np.ndarray, target: np.ndarray, threshold: float) -> tuple[np.ndarray | None, np.ndarray]:
    """Homography between points (N, 2) and the target points within `threshold` pixels; None with few of them."""
    if len(source) < MIN_INLIERS:
        return None, target[:0]
    homography, inliers = cv2.findHomography(
        source, target, cv2.USAC_MAGSAC, threshold, maxIters=5000, confidence=0.999
    )
    if homography is None or inliers.sum() < MIN_INLIERS:
        return None, target[:0]
    return homography, target[inliers.ravel() > 0]
