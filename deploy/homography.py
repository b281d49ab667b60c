"""Registration of scenes: the homography from an image to a reference image of the same object or pattern.

Points are pixels (x, y) with integers at pixel centers. A homography H maps a point p of the image to H p in the
reference. Results are deterministic: OpenCV's USAC, used for RANSAC, seeds its generator anew in each call.
"""

import cv2
import numpy as np

FEATURES = 3000  # maximum number of ORB features per image
CORNERS = 1000  # maximum number of corners of the reference that are tracked into the image
MIN_INLIERS = 15  # matches that agree; between unrelated images about 10 agree by chance
MIN_AGREEMENT = 0.5  # smallest share of corners that must agree with the homography to within a pixel
MIN_SPREAD = 0.15  # smallest hull of these corners, as a share of the reference: a cluster fits badly far away from it
MAX_AREA_SCALE = 2.0  # largest ratio of the mapped image's area to the reference's; the smallest is its inverse
_WINDOW = 21  # pixels, side of a corner's neighborhood
_TOLERANCE = 1e-3  # pixels, rounding error of source coordinates


def register(image: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    """Homography from `image` to `reference`, or None if it is not reliable.

    1. Coarse, to a few pixels: ORB features, brute-force matching by Hamming distance with cross-check, and MAGSAC
       (D. Barath et al., CVPR 2020).
    2. Fine, to about a tenth of a pixel: corners of the reference are tracked into the warped image (B. Lucas and
       T. Kanade, IJCAI 1981), and MAGSAC fits a correction. Defects are outliers and do not matter.

    It is not reliable if too few matches or corners agree, if the corners that agree cover too little of the reference,
    or if it is implausible (see `plausible`). A strictly periodic pattern can be registered with a shift by a period.

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
    for _ in range(2):  # in the second pass the neighborhoods that are compared are hardly distorted any more
        if homography is None or not plausible(homography, gray.shape, reference_gray.shape):
            return None
        homography = _refine(homography, gray, reference_gray)
    if homography is None or not plausible(homography, gray.shape, reference_gray.shape):
        return None
    return homography


def plausible(homography: np.ndarray, shape: tuple[int, ...], reference_shape: tuple[int, ...]) -> bool:
    """Whether a homography maps an image to a convex, unmirrored quadrilateral of about the reference's size.

    The area of the quadrilateral must be between half and twice that of the reference. The size of the image itself
    does not matter: image and reference may have different resolutions.

    Args:
        homography: (3, 3). shape, reference_shape: shapes (H, W, ...) of the image and of the reference.
    """
    if not np.isfinite(homography).all():
        return False
    (height, width), reference_area = shape[:2], reference_shape[0] * reference_shape[1]
    x, y, w = homography @ (np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) - [0.5, 0.5, 0]).T
    if not (w > 0).all():
        return False
    # All corners have w > 0, so the quadrilateral is convex; a positive area means that it is not mirrored.
    x, y = x / w, y / w
    area = (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    return bool(reference_area / MAX_AREA_SCALE <= area <= reference_area * MAX_AREA_SCALE)


def warp(
    image: np.ndarray, homography: np.ndarray, size: tuple[int, int], interpolation: int = cv2.INTER_LINEAR
) -> tuple[np.ndarray, np.ndarray]:
    """Warp `image` into the coordinate frame that `homography` maps to.

    Args:
        image: uint8 or float32, (H, W) or (H, W, 3). homography: (3, 3), from `image` to the new frame.
        size: (height, width) of the new frame.
        interpolation: cv2.INTER_LINEAR, or cv2.INTER_NEAREST for masks.

    Returns:
        The warped array, 0 where it has no source, and has_source, bool (height, width): False where linear
        interpolation would need a pixel outside of `image`. It does not depend on `interpolation`, so that it is the
        same for an image and its mask.

    Raises:
        ValueError: another dtype, shape or interpolation, or a homography without an inverse.
    """
    if image.dtype not in (np.uint8, np.float32) or not _is_image(image):
        raise ValueError(
            f"image must be uint8 or float32 of shape (H, W) or (H, W, 3), not {image.dtype} {image.shape}"
        )
    if interpolation not in (cv2.INTER_LINEAR, cv2.INTER_NEAREST):
        raise ValueError("interpolation must be cv2.INTER_LINEAR or cv2.INTER_NEAREST")
    homography = np.asarray(homography, np.float64)
    if homography.shape != (3, 3) or not np.isfinite(homography).all() or np.linalg.matrix_rank(homography) < 3:
        raise ValueError("homography must be a finite, invertible 3 x 3 matrix")
    valid = _has_source(image.shape[:2], homography, size)
    border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": 0}
    warped = cv2.warpPerspective(image, homography, size[::-1], flags=interpolation, **border)
    warped[~valid] = 0  # at the border, pixels are interpolated with zeros from outside
    return warped, valid


def _has_source(shape: tuple[int, int], homography: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels of a frame of `size` whose source lies inside an image of `shape`: bool (height, width).

    The source of a pixel is (x / w, y / w). It lies inside the image where w > 0 and four linear combinations of x, y
    and w are not negative. All five are linear along a row, so the valid columns of a row form one interval.
    """
    x, y, w = np.linalg.inv(homography) * np.sign(homography[2, 2])  # sign: w > 0 in front of the camera
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
    first, last = (bounds.clip(-1, size[1]).astype(np.int32)[:, None] for bounds in (np.ceil(low), np.floor(high)))
    return (columns >= first) & (columns <= last)


def _is_image(image: np.ndarray) -> bool:
    return image.size > 0 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))


def _gray(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype != np.uint8 or not _is_image(image):
        raise ValueError(f"{name} must be uint8 of shape (H, W) or (H, W, 3), not {image.dtype} {image.shape}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image


def _match(gray: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    # A low threshold because surfaces have little contrast; a narrow border because images can be small.
    orb = cv2.ORB.create(FEATURES, edgeThreshold=15, fastThreshold=7)
    (keypoints, descriptors), (reference_keypoints, reference_descriptors) = (
        orb.detectAndCompute(image, None) for image in (gray, reference)
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
        (image[valid].mean(), image[valid].std()) if valid.any() else (0, 0) for image in (warped, reference)
    )
    if not std > 0:
        return None
    # Optical flow compares gray values directly: match brightness and contrast to the reference first.
    levels = (np.arange(256) - mean) * (reference_std / std) + reference_mean
    warped = cv2.LUT(warped, levels.round().clip(0, 255).astype(np.uint8))
    inside = cv2.erode(valid.astype(np.uint8), np.ones((_WINDOW, _WINDOW), np.uint8))
    corners = cv2.goodFeaturesToTrack(reference, CORNERS, qualityLevel=0.01, minDistance=5, mask=inside)
    if corners is None:
        return None
    tracked, status, _ = cv2.calcOpticalFlowPyrLK(reference, warped, corners, None, winSize=(_WINDOW,) * 2, maxLevel=2)
    is_tracked = status.ravel() > 0
    correction, inliers = _ransac(tracked[is_tracked, 0], corners[is_tracked, 0], threshold=1.0)
    if correction is None or len(inliers) < MIN_AGREEMENT * len(corners):
        return None
    if cv2.contourArea(cv2.convexHull(inliers.astype(np.float32))) < MIN_SPREAD * reference.size:
        return None
    refined = correction @ homography
    return refined / refined[2, 2]


def _ransac(source: np.ndarray, target: np.ndarray, threshold: float) -> tuple[np.ndarray | None, np.ndarray]:
    """Homography from source to target points (N, 2), and its inliers: the target points within `threshold` pixels.

    None, and no points, with fewer than MIN_INLIERS.
    """
    if len(source) < MIN_INLIERS:
        return None, target[:0]
    homography, inliers = cv2.findHomography(
        source, target, cv2.USAC_MAGSAC, threshold, maxIters=5000, confidence=0.999
    )
    if homography is None or inliers.sum() < MIN_INLIERS:
        return None, target[:0]
    return homography, target[inliers.ravel() > 0]
