"""Registration of parts in any pose: the transform from a segmented part to the part in a reference.

For images of one part on a plain background; `registration.homography` is for images of the same scene.
Points are pixels (x, y) with integers at pixel centers.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from registration.part_segmentation import LIMITS, NoPartError, Part, find

# Search of the pose
MAX_SCALE = 2.0  # largest ratio of the sizes of part and reference; the smallest is its inverse
ELONGATED = 0.85  # ratio of axes below which the moments determine the direction of the part
TURN = 6  # degrees between the rotations that are tried otherwise
RANKING_SIZE = 128  # pixels, longer side of the image that the rotations are ranked at
CANDIDATES = 3  # number of rotations that are refined
ROUND = 0.8  # a part that correlates this much with all of its rotations is round
# Acceptance of the pose
MIN_OVERLAP = 0.9  # intersection over union of silhouettes
EDGE = np.ones((3, 3), np.uint8)  # around a silhouette's edge, which threads and teeth move when a part is turned
DECISIVE, MARGIN = 0.95, 0.05  # overlap of the best rotation, and how much more than any other, if that alone decides
FITS_LESS = 0.005  # loss of overlap by which a pose that gray values have refined is worse
KEPT = 0.8  # share of pixels inside that must correlate; the others may be a defect
MIN_CORRELATION = 0.85  # measured: 0.87 to 1 for correct poses, with light from the opposite side included
MIN_CORRELATION_ROUND = 0.7  # for a round part: its rotation cannot be wrong, but its details may lie elsewhere
FLAT = 4.0  # gray levels; with a smaller deviation inside there is no texture to correlate


@dataclass(frozen=True)
class Reference:
    """The part that others are registered to.

    Attributes:
        parts: segmentation by each of LIMITS that finds the part; at least one.
        is_round: whether all of its rotations look alike, so that only its center is registered.
    """

    parts: dict[str, Part]
    is_round: bool


def reference_of(image: np.ndarray) -> Reference:
    """The part of a reference image, uint8 (H, W, 3) BGR or (H, W). NoPartError if there is none."""
    parts = {}
    for limit in LIMITS:
        try:
            parts[limit] = find(image, limit)
        except NoPartError as error:
            problem = error
    if not parts:
        raise problem
    part = next(iter(parts.values()))
    turns = np.arange(0, 2 * np.pi, np.pi / 12).tolist() if part.ratio >= ELONGATED else []
    alike = (_similarity(part, part, _pose(part, part, turn, False)) for turn in turns)
    return Reference(parts, min(alike, default=0) >= ROUND)


def register(image: np.ndarray, reference: Reference, mirror: bool = False) -> np.ndarray | None:
    """Affine transform from the part in `image` to the reference part, or None if it is not reliable.

    Center, direction and scale come from the moments of the silhouettes. Rotations that the moments cannot distinguish
    are tried. ECC (G. Evangelidis and E. Psarakis, PAMI 2008) refines the best ones. The result is reliable if the
    silhouettes fit at one of the rotations only, or if they overlap and the gray values inside correlate.

    Args:
        image: uint8, (H, W, 3) BGR or (H, W), of any size. mirror: whether parts may lie upside down.

    Returns:
        float64 (3, 3), from pixels of the image to pixels of the reference, last row (0, 0, 1); or None.
    """
    for limit, target in reference.parts.items():
        try:
            part = find(image, limit)
        except NoPartError:
            continue
        pose = _best_pose(part, target, reference.is_round, mirror)
        if pose is not None:
            return np.linalg.inv(_scaling(target)) @ pose @ _scaling(part)
    return None


def _best_pose(part: Part, target: Part, is_round: bool, mirror: bool) -> np.ndarray | None:
    """Transform (3, 3) from the part to the reference at working size; None if it is not reliable."""
    if not 1 / MAX_SCALE <= _size_ratio(part, target) <= MAX_SCALE:
        return None
    flips, turns = (False, True) if mirror else (False,), _turns(part, target, is_round)
    choices, small = [(turn, flip) for flip in flips for turn in turns], (_smaller(part), _smaller(target))
    if len(choices) > CANDIDATES:
        choices.sort(key=lambda choice: _similarity(*small, _pose(*small, *choice)), reverse=True)
    poses = [_refined_on_shape(part, target, is_round, _pose(part, target, *choice)) for choice in choices[:CANDIDATES]]
    overlaps = [_overlap(part, target, pose) for pose in poses]
    *others, (most, best) = sorted(zip(overlaps, poses, strict=True), key=lambda pair: pair[0])
    if others and most >= DECISIVE and most - others[-1][0] >= MARGIN:
        # Whatever the gray values are: threads may be turned, and light may come from the other side.
        return _refined_on_gray(part, target, is_round, best)
    poses = [_refined_on_gray(part, target, is_round, pose) for pose in poses]
    best = max(poses, key=lambda pose: _similarity(part, target, pose))
    return best if _is_trusted(part, target, is_round, best) else None


def _smaller(part: Part) -> Part:
    """The part resized to RANKING_SIZE."""
    scale = min(RANKING_SIZE / max(part.gray.shape), 1.0)
    gray = cv2.resize(part.gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    silhouette = cv2.resize(part.silhouette * np.uint8(255), gray.shape[::-1], interpolation=cv2.INTER_AREA) > 127
    center = (part.center + 0.5) * scale - 0.5
    return replace(part, gray=gray, silhouette=silhouette, center=center, area=part.area * scale**2)


def _size_ratio(part: Part, target: Part) -> float:
    """Scale from the part to the reference, in pixels at working size."""
    return float(np.sqrt(target.area / part.area))


def _turns(part: Part, target: Part, is_round: bool) -> list[float]:
    """Rotations to try, in radians, in addition to that between the axes; all around where the axes are ambiguous."""
    if is_round:
        return [0.0]
    if max(part.ratio, target.ratio) < ELONGATED:
        return [0.0, np.pi]
    return np.arange(0, 2 * np.pi, np.radians(TURN)).tolist()


def _pose(part: Part, target: Part, turn: float, flip: bool) -> np.ndarray:
    """Similarity transform (3, 3) from the part to the reference at working size.

    Args:
        turn: rotation in radians, in addition to that between the axes. flip: whether the part is mirrored.
    """
    is_elongated = max(part.ratio, target.ratio) < ELONGATED
    own, other = (part.angle, target.angle) if is_elongated else (0.0, 0.0)
    scale, mirror = _size_ratio(part, target), np.diag([1.0, -1.0 if flip else 1.0])
    linear = scale * _rotation(other + turn) @ mirror @ _rotation(-own)
    pose = np.eye(3)
    pose[:2, :2], pose[:2, 2] = linear, target.center - linear @ part.center
    return pose


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _warp_to_reference(plane: np.ndarray, pose: np.ndarray, target: Part) -> np.ndarray:
    return cv2.warpAffine(
        plane, pose[:2], target.gray.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _overlap(part: Part, target: Part, pose: np.ndarray) -> float:
    """Intersection over union of the warped silhouette and the reference's, apart from pixels at the latter's edge."""
    size = target.gray.shape[::-1]
    warped = cv2.warpAffine(part.silhouette.astype(np.uint8), pose[:2], size, flags=cv2.INTER_NEAREST) > 0
    grown, shrunk = (change(target.silhouette.astype(np.uint8), EDGE) > 0 for change in (cv2.dilate, cv2.erode))
    both = (warped & target.silhouette).sum()
    return float(both / max(both + (warped & ~grown).sum() + (shrunk & ~warped).sum(), 1))


def _smooth(part: Part, target: Part, pose: np.ndarray, where: np.ndarray) -> list[np.ndarray]:
    """Smoothed gray values of the warped part and of the reference in the pixels `where`; float64 (n,) each."""
    images = (_warp_to_reference(part.gray, pose, target), target.gray)
    return [cv2.GaussianBlur(image, (0, 0), 1.5)[where].astype(np.float64) for image in images]


def _agreement(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    """Correlation of gray values over the most similar pixels (share KEPT), after subtracting a plane from each.

    The plane removes the effect of illumination from different sides.
    """
    y, x = np.nonzero(where)
    terms = np.column_stack([np.ones(len(x)), x, y])
    one, other = (_standardized(values - terms @ np.linalg.lstsq(terms, values)[0]) for values in (one, other))
    difference = np.abs(one - other)
    alike = difference <= np.quantile(difference, KEPT)
    return float((_standardized(one[alike]) * _standardized(other[alike])).mean())


def _standardized(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / max(values.std(), 1e-9)


def _similarity(part: Part, target: Part, pose: np.ndarray) -> float:
    """Correlation of gray values in and around the part, times the overlap of silhouettes."""
    around = cv2.dilate(target.silhouette.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    one, other = map(_standardized, _smooth(part, target, pose, around))
    return float((one * other).mean()) * _overlap(part, target, pose)


def _refined_on_shape(part: Part, target: Part, is_round: bool, pose: np.ndarray) -> np.ndarray:
    shape, other = (cv2.GaussianBlur(one.silhouette * np.uint8(255), (0, 0), 2.0) for one in (part, target))
    return _refine(shape, other, target, is_round, pose)


def _refined_on_gray(part: Part, target: Part, is_round: bool, pose: np.ndarray) -> np.ndarray:
    """Refined on the gray values, unless the silhouettes then fit less."""
    refined = _refine(part.gray, target.gray, target, is_round, pose)
    is_worse = _overlap(part, target, refined) < _overlap(part, target, pose) - FITS_LESS
    return pose if is_worse else refined


def _refine(plane: np.ndarray, other: np.ndarray, target: Part, is_round: bool, pose: np.ndarray) -> np.ndarray:
    """Refine a pose with ECC: by a translation for a round part, else by an affine transform."""
    motion = cv2.MOTION_TRANSLATION if is_round else cv2.MOTION_AFFINE
    # The part is warped by the pose first, so that ECC searches for a small correction only.
    warped = _warp_to_reference(plane, pose, target)
    around = cv2.dilate(target.silhouette.astype(np.uint8), np.ones((15, 15), np.uint8))
    left, top, width, height = cv2.boundingRect(around)
    window = np.s_[top : top + height, left : left + width]
    correction, stop = np.eye(2, 3, dtype=np.float32), (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-5)
    try:
        _, correction = cv2.findTransformECC(other[window], warped[window], correction, motion, stop, around[window], 5)
    except cv2.error:  # ECC does not converge
        return pose
    # ECC returns the transform from the reference to the image.
    corner = np.array([[1, 0, left], [0, 1, top], [0, 0, 1.0]])
    correction = corner @ np.vstack([correction, [0, 0, 1]]).astype(np.float64) @ np.linalg.inv(corner)
    refined = np.linalg.inv(correction) @ pose
    return refined if np.isfinite(refined).all() else pose


def _is_trusted(part: Part, target: Part, is_round: bool, pose: np.ndarray) -> bool:
    if _overlap(part, target, pose) < MIN_OVERLAP:
        return False
    inside = cv2.erode(target.silhouette.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    if not inside.any():
        return False
    one, other = _smooth(part, target, pose, inside)
    if max(one.std(), other.std()) < FLAT:
        return True
    return _agreement(one, other, inside) >= (MIN_CORRELATION_ROUND if is_round else MIN_CORRELATION)


def _scaling(part: Part) -> np.ndarray:
    """Matrix (3, 3) from pixels of the image to pixels at working size."""
    scales = [small / whole for small, whole in zip(part.gray.shape[::-1], part.shape[::-1], strict=True)]
    return np.array([[scales[0], 0, (scales[0] - 1) / 2], [0, scales[1], (scales[1] - 1) / 2], [0, 0, 1]])
