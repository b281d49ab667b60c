"""Decode ground-truth masks in any common form: 0 and 255, class numbers, soft edges, colors, alpha channel."""

from dataclasses import dataclass

import numpy as np

SMALL = 31  # whole numbers up to this one are class numbers
DARK = 16  # of 255; in a file with bright values, values up to this one are compression noise
FEW = 16  # a mask with at most this number of colors has no soft edges, or hardly any
COLORFUL = 32  # of 255; a pixel whose channels differ by more is colored, otherwise gray
BETWEEN = 0.2  # a file with a larger share of intermediate pixels (neither dark nor bright) is not a mask

# Warnings about a mask: how it was decoded, and what to check.
MOST = "more than half of the image is marked: check that white means anomalous and not nominal"
WHOLE = "every pixel is marked"
EMPTY = "no pixel is marked"
LEVELS = "it has several levels: all except the background count as marked"
BACKGROUND = "the background is not 0: the lowest value is taken as background"


class MaskError(ValueError):
    """A mask that is ambiguous or not a mask at all."""


@dataclass(frozen=True)
class DecodedMask:
    """A decoded mask.

    Attributes:
        mask: bool (H, W), True where the file marks a pixel as anomalous.
        kind: form of the mask, in words.
        warning: what the user should check; None if there is nothing to check.
    """

    mask: np.ndarray
    kind: str
    warning: str | None = None


def decode_mask(stored: np.ndarray, is_lossy: bool = False) -> DecodedMask:
    """Decode a mask.

    Args:
        stored: pixels as in the file, (H, W) or (H, W, C) of any real dtype: gray or color, with or without alpha.
        is_lossy: whether the file format is lossy, such as JPEG.

    Raises:
        MaskError: the mask is ambiguous, or the array is not a mask.
    """
    if stored.ndim == 2 and stored.dtype == np.uint8:
        present = np.flatnonzero(np.bincount(stored.ravel(), minlength=256))
        if present.tolist() in ([0, 255], [0], [255]):  # shortcut for the usual form
            return _decoded(stored == 255, "0 and 255")
    if not np.isfinite(stored).all():
        raise MaskError("has infinite or NaN values")
    if stored.min() < 0:
        raise MaskError("has negative values")
    if stored.ndim == 2 or stored.shape[2] == 1:
        return _of_levels(stored.reshape(stored.shape[:2]), is_lossy)
    if stored.shape[2] > 4:
        raise MaskError(f"has {stored.shape[2]} channels")
    has_alpha = stored.shape[2] in (2, 4)
    colors, alpha = stored[..., : stored.shape[2] - has_alpha], stored[..., -1] if has_alpha else None
    if alpha is not None and alpha.min() != alpha.max():
        return _of_alpha(colors, alpha, is_lossy)
    return _of_colors(colors, is_lossy)


def _decoded(mask: np.ndarray, kind: str, warning: str | None = None) -> DecodedMask:
    share = mask.mean()
    if share in (0, 1):
        warning = WHOLE if share else EMPTY
    return DecodedMask(mask, kind, MOST if 0.5 < share < 1 else warning)


def _of_levels(levels: np.ndarray, is_lossy: bool) -> DecodedMask:
    """Decode one channel: the levels above the background are marked."""
    present, counts = np.unique(levels, return_counts=True)
    low, high = present[0], present[-1]
    if len(present) == 1:
        if high in (0, 1, 255):
            return _decoded(levels > 0, f"{high:g} alone")
        raise MaskError(f"all pixels are {high:g}: whether that means marked is ambiguous")
    is_whole = levels.dtype.kind in "ub" or bool((present == np.floor(present)).all())
    if not is_lossy and is_whole and high <= SMALL:
        if low > 0:  # class numbers start at 1
            _must_be_background(low, counts[0], levels.size)
            return _decoded(levels > low, f"class numbers ({_span(present)})", BACKGROUND)
        return _decoded(levels > 0, f"class numbers ({_span(present)})")
    if is_whole and high <= SMALL:
        raise MaskError(f"has values from {low:g} to {high:g}: class numbers in a lossy format are not reliable")
    noise = low + (high - low) * (DARK / 255)
    if low > _noise_floor(high):
        _must_be_background(low, counts[present <= noise].sum(), levels.size)
    warning = BACKGROUND if low > _noise_floor(high) else None
    if not is_lossy and is_whole and low == 0 and len(present) > FEW and _is_numbered(levels, noise):
        return _decoded(levels > 0, f"class numbers ({_span(present)})")
    if len(present) <= FEW and not is_lossy:
        return _of_few_levels(levels, present, counts, noise, warning)
    middle = low + (high - low) / 2
    between = np.abs(levels.astype(np.float64) - middle) < (high - low) * 0.3
    if between.mean() > BETWEEN:
        raise MaskError(f"has {len(present)} gray levels; a mask has two")
    return _decoded(levels > middle, f"soft edges (anomalous from level {middle:g} on)", warning)


def _noise_floor(high: float) -> float:
    """Lowest values up to this one are a background of 0 with noise."""
    return high * (2 * DARK / 255)


def _of_few_levels(
    levels: np.ndarray, present: np.ndarray, counts: np.ndarray, noise: float, warning: str | None
) -> DecodedMask:
    """Decode a mask with few levels: levels that fill an area are classes, the others belong to soft edges."""
    high = present[-1]
    classes = [level for level in present[1:-1] if _covers_an_area(levels == level)]
    if any(level <= noise for level in classes) and len(present) <= FEW // 2:
        numbers = _span(present[present <= noise])
        raise MaskError(f"has class numbers ({numbers}) and {high:g}: the meaning of {high:g} is not known")
    classes = [level for level in classes if level > noise]
    if len(present) == 2:
        return _decoded(levels == high, _span(present), warning)
    middle = present[0] + (high - present[0]) / 2
    if any(level <= middle for level in classes):
        return _decoded((levels > middle) | np.isin(levels, classes), f"levels {_span(present)}", warning or LEVELS)
    return _decoded(levels > middle, f"soft edges (anomalous from level {middle:g} on)", warning)


def _covers_an_area(mask: np.ndarray) -> bool:
    """Whether the mask contains a block of 3 x 3 marked pixels."""
    if min(mask.shape) < 3:
        return bool(mask.any())
    rows = mask[:-2] & mask[1:-1] & mask[2:]
    return bool((rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]).any())


def _is_numbered(levels: np.ndarray, noise: float) -> bool:
    """Whether intermediate levels fill areas: numbered regions do, soft edges do not."""
    between = (levels > noise) & (levels < 0.9 * levels.max())
    inner = levels[1:-1, 1:-1]
    is_flat = np.ones(inner.shape, bool)
    for y in range(3):
        for x in range(3):
            is_flat &= levels[y : y + inner.shape[0], x : x + inner.shape[1]] == inner
    return bool(is_flat[between[1:-1, 1:-1]].mean() > 0.3) if between[1:-1, 1:-1].any() else False


def _must_be_background(value: float, count: int, size: int) -> None:
    """MaskError unless the lowest value covers more than half of the pixels."""
    if 2 * count <= size:
        raise MaskError(
            f"has no 0, and its lowest value {value:g} covers less than half of it: which value is the background is "
            "ambiguous"
        )


def _of_alpha(colors: np.ndarray, alpha: np.ndarray, is_lossy: bool) -> DecodedMask:
    """Decode a mask with transparency: opaque pixels are marked. MaskError if the colors mark other pixels."""
    by_alpha = _of_levels(alpha, is_lossy)
    visible = colors[alpha > 0]
    if (visible == visible[0]).all() and (colors == colors[0, 0]).all():
        return _decoded(by_alpha.mask, "alpha", by_alpha.warning)
    opaque = colors[by_alpha.mask]
    if (opaque == opaque[0]).all():  # one color on a transparent background
        return _decoded(by_alpha.mask, "alpha", by_alpha.warning)
    by_color = _of_colors(np.where(alpha[..., None] > 0, colors, 0), is_lossy)
    if (by_color.mask == by_alpha.mask).all():
        return _decoded(by_alpha.mask, "alpha", by_alpha.warning)
    raise MaskError("its alpha channel marks other pixels than its colors")


def _of_colors(colors: np.ndarray, is_lossy: bool) -> DecodedMask:
    """Decode three channels. If they are equal, one is decoded; else pixels unlike the gray background are marked."""
    highest, lowest = colors.max(axis=2), colors.min(axis=2)
    if (highest == lowest).all():
        return decode_mask(highest, is_lossy)
    top = float(highest.max())
    if top <= SMALL and lowest.min() == 0 and not is_lossy:
        return _of_levels(highest, is_lossy)  # class numbers as colors
    unit = top / 255
    spread = highest.astype(np.float64) - lowest
    is_gray = spread <= (COLORFUL * unit if is_lossy or top > SMALL else 0)
    if is_gray.all() and is_lossy:
        return _of_levels(highest, is_lossy)
    ground, share = _most_frequent(colors, is_gray)
    if ground is None:
        raise MaskError("has no gray pixel: which color is the background is ambiguous")
    away = np.abs(colors.astype(np.float64) - ground).max(axis=2)
    near = 2 * DARK * unit
    others = is_gray & (away > near)
    if ground.min() > near and others.any() and (is_lossy or _covers_an_area(others)):
        raise MaskError("has gray and colored marks on a light background: which of them count is ambiguous")
    distinct = None if is_lossy or colors.dtype.kind == "f" else _distinct(colors)
    drawn = distinct if distinct is not None and len(distinct) <= FEW else None
    if drawn is None and others.mean() > BETWEEN:
        raise MaskError("has too many grays and colors; a mask has two")
    mask = np.zeros(colors.shape[:2], bool)
    if drawn is not None:
        for color in drawn:
            own = (colors == color).all(axis=2)
            distance = np.abs(color.astype(np.float64) - ground).max()
            if distance > near and (distance > away.max() / 2 or _covers_an_area(own)):
                mask |= own
    else:
        between = (away > 0.2 * away.max()) & (away < 0.8 * away.max())
        if between.mean() > BETWEEN:
            raise MaskError("has too many colors; a mask has two")
        mask = away > away.max() / 2
    if ground.max() > near and share <= 0.5 and mask.mean() > 0.5:
        raise MaskError("is mostly colored: whether the color means anomalous or nominal is ambiguous")
    shade = "black" if ground.max() <= near else "white" if ground.min() >= top - near else "gray"
    return _decoded(mask, f"colors on {shade}")


def _distinct(colors: np.ndarray) -> np.ndarray:
    """The distinct colors, int64 (K, 3)."""
    numbers = colors[..., 0].astype(np.uint64)
    for channel in (1, 2):
        numbers = numbers << np.uint64(16) | colors[..., channel].astype(np.uint64)
    unique = np.unique(numbers)
    return np.stack([unique >> np.uint64(shift) & np.uint64(0xFFFF) for shift in (32, 16, 0)], axis=1).astype(np.int64)


def _most_frequent(colors: np.ndarray, is_gray: np.ndarray) -> tuple[np.ndarray | None, float]:
    """The most frequent gray, float64 (3,), and its share of all pixels; None and 0 if no pixel is gray."""
    grays = colors[is_gray]
    if not len(grays):
        return None, 0.0
    values, counts = np.unique(grays[:, 1], return_counts=True)
    value = values[counts.argmax()]
    return np.full(3, value, np.float64), float(counts.max() / is_gray.size)


def _span(values: np.ndarray) -> str:
    """List up to four values, or the first and the last of more: '0, 1 and 255', '0 to 12'."""
    words = [f"{value:g}" for value in values]
    if len(words) > 4:
        return f"{words[0]} to {words[-1]}"
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
