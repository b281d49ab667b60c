"""Registration of parts: finds a part against its background and lays it over a reference part, whatever its pose.

For pictures of the same kind of part on a plain background, where `evaluation.registration` needs the same scene.
Points are pixels (x, y), whole numbers at pixel centres.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

WORKING_SIZE = 320  # pixels, of the longer side that poses are found at
RIM = 0.03  # of the shorter side: the frame that tells what the background looks like
MIN_AREA, MAX_AREA = 0.01, 0.9  # of the picture: smaller pieces are dirt, larger ones no part on a background
MAX_ON_RIM = 0.25  # of the picture's rim that a part may cover
LIMITS = ("rim", "otsu")  # what tells a part from the background, in the order tried
MIN_CONTRAST = 6.0  # of the part to the background, in the background's own deviations
MIN_LEVELS = 12.0  # and in gray levels
MAX_SCALE = 2.0  # and its inverse: of a part to the reference
ELONGATED = 0.85  # ratio of axes below which the direction is taken from moments
TURN = 6  # degrees between the turns that are tried where it is not
RANKING_SIZE = 128  # pixels, of the longer side that these are ranked at
CANDIDATES = 3  # of those turns that are refined
ROUND = 0.8  # correlation with all of its turns from which a part is taken as round
MIN_OVERLAP = 0.9  # intersection over union of silhouettes
KEPT = 0.8  # of the pixels inside: the rest may be a defect
MIN_CORRELATION = 0.85  # of those kept. Measured: 0.87 to 1 where right, light from the other side included
MIN_CORRELATION_ROUND = 0.7  # of a round part, whose turn cannot be wrong, but whose details lie elsewhere
FLAT = 4.0  # gray levels of deviation inside below which there is nothing to correlate


class NoPartError(ValueError):
    """No part is found in an image. silhouette: what was found instead, bool (h, w)."""

    def __init__(self, text: str, silhouette: np.ndarray):
        super().__init__(text)
        self.silhouette = silhouette


@dataclass(frozen=True)
class Part:
    """A part in a picture.

    Attributes:
        gray: the picture, uint8 (h, w), at working size. scale: of that to the picture.
        silhouette: bool (h, w), holes filled. center: (x, y). angle: of the longer axis, radians. ratio: of the axes.
        area: pixels of the silhouette. shape: of the picture, (H, W).
    """

    gray: np.ndarray
    scale: float
    silhouette: np.ndarray
    center: np.ndarray
    angle: float
    ratio: float
    area: float
    shape: tuple[int, int]


@dataclass(frozen=True)
class Reference:
    """A part that others are laid over, as each of LIMITS finds it; at least one does.

    is_round: whether its turns look alike, so that only its center counts.
    """

    parts: dict[str, Part]
    is_round: bool


def find(image: np.ndarray, limit: str) -> Part:
    """The part in a picture, uint8 (H, W, 3) BGR or (H, W): the largest piece that differs from the picture's rim.

    Light may fall off over the background: its color is a surface of second order fitted to the rim.

    Args:
        limit: one of LIMITS. `rim`: the part is what differs from the rim more than that does itself, shadows too;
            `otsu`: what differs much (N. Otsu, IEEE Transactions on Systems, Man, and Cybernetics 1979).

    Raises:
        NoPartError: none is found.
    """
    scale = min(WORKING_SIZE / max(image.shape[:2]), 1.0)
    size = tuple(max(round(side * scale), 1) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    small = small if small.ndim == 3 else cv2.cvtColor(small, cv2.COLOR_GRAY2BGR)
    distance, spread = _from_background(small)
    least = max(MIN_CONTRAST * spread, MIN_LEVELS)
    if limit == "otsu":
        least = max(least, cv2.threshold(np.minimum(distance, 255).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)[0])
    above = cv2.morphologyEx((distance > least).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    silhouette = _largest(above)
    share = silhouette.mean()
    rim = _rim(silhouette.shape, 1)
    if not MIN_AREA <= share <= MAX_AREA:
        raise NoPartError(f"what differs from the rim covers {100 * share:.1f} % of the picture", silhouette)
    if (on_rim := silhouette[rim].mean()) > MAX_ON_RIM:
        raise NoPartError(f"what differs from the rim reaches over {100 * on_rim:.0f} % of it", silhouette)
    moments = cv2.moments(silhouette.astype(np.uint8), binaryImage=True)
    center = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
    across = moments["mu20"] - moments["mu02"]
    angle = 0.5 * np.arctan2(2 * moments["mu11"], across)
    root = np.hypot(2 * moments["mu11"], across)
    total = moments["mu20"] + moments["mu02"]
    ratio = float(np.sqrt((total - root) / (total + root)))
    gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
    return Part(gray, size[0] / image.shape[1], silhouette, center, angle, ratio, moments["m00"], image.shape[:2])


def reference_of(image: np.ndarray) -> Reference:
    """A picture's part as a reference. NoPartError where none is found."""
    found = {}
    for limit in LIMITS:
        try:
            found[limit] = find(image, limit)
        except NoPartError as error:
            problem = error
    if not found:
        raise problem
    part = next(iter(found.values()))
    turns = np.arange(0, 2 * np.pi, np.pi / 12) if part.ratio >= ELONGATED else []
    alike = (_similarity(part, part, _pose(part, part, turn, False)) for turn in turns)
    return Reference(found, min(alike, default=0) >= ROUND)


def register(image: np.ndarray, reference: Reference, mirror: bool = False) -> np.ndarray | None:
    """Homography that lays the part in `image` over the reference's, or None where it cannot be trusted.

    Center, direction and scale come from moments, turns that these cannot tell apart are tried, and ECC (G. Evangelidis
    and E. Psarakis, PAMI 2008) refines. Accepted is what overlaps the reference's silhouette and correlates inside.

    Args:
        image: uint8, (H, W, 3) or (H, W), of any size. mirror: parts may lie upside down.

    Returns:
        float64 (3, 3), in pixels of the pictures; its last row is (0, 0, 1).
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
    """From the part to the reference at working size; None where it cannot be trusted."""
    if not 1 / MAX_SCALE <= _size_ratio(part, target) <= MAX_SCALE:
        return None
    flips, turns = (False, True) if mirror else (False,), _turns(part, target, is_round)
    choices, small = [(turn, flip) for flip in flips for turn in turns], (_smaller(part), _smaller(target))
    if len(choices) > CANDIDATES:
        choices.sort(key=lambda choice: _similarity(*small, _pose(*small, *choice)), reverse=True)
    refined = [_refine(part, target, is_round, _pose(part, target, *choice)) for choice in choices[:CANDIDATES]]
    best = max(refined, key=lambda pose: _similarity(part, target, pose))
    return best if _is_trusted(part, target, is_round, best) else None


def background_color(image: np.ndarray) -> np.ndarray:
    """Median of a picture's rim, uint8 (3,) or ()."""
    return np.median(image[_rim(image.shape[:2])], axis=0).astype(np.uint8)


def _rim(shape: tuple[int, int], width: int = 0) -> np.ndarray:
    width = width or max(round(RIM * min(shape)), 2)
    rim = np.ones(shape, bool)
    rim[width:-width, width:-width] = False
    return rim


def _from_background(image: np.ndarray) -> tuple[np.ndarray, float]:
    """How far each pixel is from the background in color, float32 (h, w), and how far the background itself is."""
    smooth = cv2.GaussianBlur(image, (0, 0), 1.0).astype(np.float32)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x / width - 0.5, y / height - 0.5
    terms = np.dstack([np.ones_like(x), x, y, x * x, x * y, y * y])
    rim = _rim((height, width))
    known, colors = terms[rim], smooth[rim]
    keep = np.ones(len(known), bool)
    for _ in range(4):  # parts that reach over the rim are left out
        surface, *_ = np.linalg.lstsq(known[keep], colors[keep], rcond=None)
        error = np.linalg.norm(colors - known @ surface, axis=1)
        keep = error <= 2.5 * np.median(error) + 1e-3
    return np.linalg.norm(smooth - terms @ surface, axis=2), float(np.median(error))


def _largest(above: np.ndarray) -> np.ndarray:
    """The largest connected piece with its holes filled."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above)
    if count < 2:
        return np.zeros(above.shape, bool)
    piece = (labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    contours, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(piece, contours, -1, 1, cv2.FILLED) > 0


def _smaller(part: Part) -> Part:
    """The same at RANKING_SIZE."""
    scale = min(RANKING_SIZE / max(part.gray.shape), 1.0)
    gray = cv2.resize(part.gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    silhouette = cv2.resize(part.silhouette * np.uint8(255), gray.shape[::-1], interpolation=cv2.INTER_AREA) > 127
    center = (part.center + 0.5) * scale - 0.5
    return replace(part, gray=gray, silhouette=silhouette, center=center, area=part.area * scale**2)


def _size_ratio(part: Part, target: Part) -> float:
    """Of the reference to the part, in pixels at working size."""
    return float(np.sqrt(target.area / part.area))


def _turns(part: Part, target: Part, is_round: bool) -> list[float]:
    """Turns to try, besides that of the axes: where these say nothing, all around."""
    if is_round:
        return [0.0]
    if max(part.ratio, target.ratio) < ELONGATED:
        return [0.0, np.pi]
    return np.arange(0, 2 * np.pi, np.radians(TURN)).tolist()


def _pose(part: Part, target: Part, turn: float, flip: bool) -> np.ndarray:
    """Similarity (3, 3) from the part to the reference at working size. turn: in addition to that of the axes."""
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
    laid = (
        cv2.warpAffine(part.silhouette.astype(np.uint8), pose[:2], target.gray.shape[::-1], flags=cv2.INTER_NEAREST) > 0
    )
    return float((laid & target.silhouette).sum() / (laid | target.silhouette).sum())


def _smooth(part: Part, target: Part, pose: np.ndarray, where: np.ndarray) -> list[np.ndarray]:
    """Gray values of the part, laid by a pose, and of the reference there; float64 (n,) each."""
    planes = (_warp_to_reference(part.gray, pose, target), target.gray)
    return [cv2.GaussianBlur(plane, (0, 0), 1.5)[where].astype(np.float64) for plane in planes]


def _agreement(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    """Correlation of gray values less a plane, as light may fall from another side; the most alike of them count."""
    y, x = np.nonzero(where)
    terms = np.column_stack([np.ones(len(x)), x, y])
    one, other = (_standardized(values - terms @ np.linalg.lstsq(terms, values)[0]) for values in (one, other))
    difference = np.abs(one - other)
    alike = difference <= np.quantile(difference, KEPT)
    return float((_standardized(one[alike]) * _standardized(other[alike])).mean())


def _standardized(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / max(values.std(), 1e-9)


def _similarity(part: Part, target: Part, pose: np.ndarray) -> float:
    """Correlation of the part and its surroundings, times the overlap of silhouettes."""
    around = cv2.dilate(target.silhouette.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    one, other = map(_standardized, _smooth(part, target, pose, around))
    return float((one * other).mean()) * _overlap(part, target, pose)


def _refine(part: Part, target: Part, is_round: bool, pose: np.ndarray) -> np.ndarray:
    motion = cv2.MOTION_TRANSLATION if is_round else cv2.MOTION_AFFINE
    # The part is laid by the pose first, so that ECC looks for a small correction, and pixels are alike in scale.
    laid = _warp_to_reference(part.gray, pose, target)
    around = cv2.dilate(target.silhouette.astype(np.uint8), np.ones((15, 15), np.uint8))
    correction, stop = np.eye(2, 3, dtype=np.float32), (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-5)
    try:
        _, correction = cv2.findTransformECC(target.gray, laid, correction, motion, stop, around, 5)
    except cv2.error:  # it does not converge
        return pose
    # ECC maps the reference to the picture.
    found = np.linalg.inv(np.vstack([correction, [0, 0, 1]]).astype(np.float64)) @ pose
    return found if np.isfinite(found).all() else pose


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
    """From pixels of the picture to those at working size."""
    scales = [small / whole for small, whole in zip(part.gray.shape[::-1], part.shape[::-1], strict=True)]
    return np.array([[scales[0], 0, (scales[0] - 1) / 2], [0, scales[1], (scales[1] - 1) / 2], [0, 0, 1]])
