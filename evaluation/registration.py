"""Registration: the homography that lays an image over a reference picture of the same object or pattern.

Points are pixels (x, y), whole numbers at pixel centres; a homography H takes a point p of the image to H p in the
reference. Nothing here draws random numbers but OpenCV's RANSAC, which starts each call from the same fixed state.
"""

import cv2
import numpy as np

FEATURES = 3000  # per picture
MIN_INLIERS = 20  # matches that agree; unrelated pictures reach about half of it
MIN_INLIER_RATIO = 0.05  # of the matches
MIN_CORRELATION = 0.5  # of the grey values, once registered
MAX_AREA_SCALE = 2.0  # and its inverse
MAX_REPROJECTION = 3.0  # pixels, of RANSAC's inliers
REFINEMENT_SIDE = 512  # pixels, the longer side at which grey values are compared

_ORB_SCALE = 1.2  # between levels of ORB's pyramid
_TOLERANCE = 1e-3  # pixels, of rounding in source coordinates


def register(image: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    """Homography from `image` to `reference`, or None where it cannot be trusted.

    ORB features, brute-force matches by Hamming distance with cross-check, MAGSAC; then the enhanced correlation
    coefficient (G. Evangelidis and E. Psarakis, 'Parametric image alignment using enhanced correlation coefficient
    maximization', PAMI 2008) brings the homography from pixels to tenths of a pixel, whatever brightness and contrast.

    None for few features or inliers, an implausible homography (see `plausible`), or little correlation between the
    registered grey values. The same pair always gives the same result.

    Args:
        image, reference: uint8, BGR (H, W, 3) or gray (H, W); sizes may differ.

    Returns:
        float64 (3, 3) with a last element of 1, or None.

    Raises:
        ValueError: another dtype or shape.
    """
    gray, reference_gray = _gray(image, "image"), _gray(reference, "reference")
    homography = _from_features(gray, reference_gray)
    if homography is None or not plausible(homography, gray.shape, reference_gray.shape):
        return None
    homography = _refine(homography, gray, reference_gray)
    if homography is None or not plausible(homography, gray.shape, reference_gray.shape):
        return None
    return homography


def plausible(homography: np.ndarray, shape: tuple[int, ...], reference_shape: tuple[int, ...]) -> bool:
    """Whether a picture of `shape` (H, W, ...) stays a convex, unmirrored quadrilateral of about the reference's size.

    The mapped picture's area must lie between half and twice the reference's. For pictures of one size that bounds the
    homography's area scale; a reference of twice the side may scale the area by 2 to 8, for what counts is how the two
    fit once both are resized to one size.
    """
    if not np.isfinite(homography).all():
        return False
    height, width = shape[:2]
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) - [0.5, 0.5, 0]
    x, y, w = homography @ corners.T
    if not (w > 0).all():
        return False
    corners = np.stack((x / w, y / w), axis=1)
    side, before = np.roll(corners, -1, axis=0) - corners, corners - np.roll(corners, 1, axis=0)
    if not (before[:, 0] * side[:, 1] - before[:, 1] * side[:, 0] > 0).all():
        return False
    scale = cv2.contourArea(corners.astype(np.float32)) / (reference_shape[0] * reference_shape[1])
    return 1 / MAX_AREA_SCALE <= scale <= MAX_AREA_SCALE


def _gray(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype != np.uint8 or not image.size or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ValueError(f"{name} must be uint8 (H, W) or (H, W, 3), not {image.dtype} {image.shape}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image


def _features(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    # A low threshold, since surfaces have little contrast; a narrow border, for the sake of small pictures.
    orb = cv2.ORB_create(FEATURES, scaleFactor=_ORB_SCALE, edgeThreshold=15, fastThreshold=7)
    keypoints, descriptors = orb.detectAndCompute(gray, None)
    points = np.array([keypoint.pt for keypoint in keypoints], np.float64).reshape(-1, 2)
    return points, descriptors


def _from_features(gray: np.ndarray, reference_gray: np.ndarray) -> np.ndarray | None:
    (points, descriptors), (reference_points, reference_descriptors) = _features(gray), _features(reference_gray)
    if descriptors is None or reference_descriptors is None:
        return None
    matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(descriptors, reference_descriptors)
    if len(matches) < MIN_INLIERS:
        return None
    source = points[[match.queryIdx for match in matches]]
    target = reference_points[[match.trainIdx for match in matches]]
    homography, inliers = cv2.findHomography(
        source, target, cv2.USAC_MAGSAC, MAX_REPROJECTION, maxIters=5000, confidence=0.999
    )
    if homography is None or inliers.sum() < max(MIN_INLIERS, MIN_INLIER_RATIO * len(matches)):
        return None
    return homography


def _shrink(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture with its longer side at most REFINEMENT_SIDE, and the matrix that takes its points there."""
    factor = min(1.0, REFINEMENT_SIDE / max(gray.shape))
    height, width = (max(1, round(side * factor)) for side in gray.shape)
    x, y = width / gray.shape[1], height / gray.shape[0]
    matrix = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])  # pixel edges coincide, not centres
    return cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA), matrix


def _refine(homography: np.ndarray, gray: np.ndarray, reference_gray: np.ndarray) -> np.ndarray | None:
    """The homography near the given one of largest correlation, or None where there is none."""
    (small, to_small), (reference_small, reference_to_small) = _shrink(gray), _shrink(reference_gray)
    start = reference_to_small @ homography @ np.linalg.inv(to_small)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-5)
    try:
        correlation, refined = cv2.findTransformECC(
            small, reference_small, (start / start[2, 2]).astype(np.float32), cv2.MOTION_HOMOGRAPHY, criteria, None, 5
        )
    except cv2.error:  # no overlap, nothing but one grey value, or it diverged
        return None
    if not correlation >= MIN_CORRELATION:
        return None
    refined = np.linalg.inv(reference_to_small) @ refined.astype(np.float64) @ to_small
    return refined / refined[2, 2]
