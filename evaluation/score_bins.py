"""Bins of the anomaly score: fine where most scores lie, so that histograms stand for every pixel."""

from functools import lru_cache

import numpy as np

# Bins of the score: leading bits of the float below 0.5 and, mirrored, of 1 - score above, where softmax saturates; 0.5
# has a bin of its own, so a threshold of 0.5 cuts between bins. Each tier: its lower bound, and how many of the 23 bits
# of the mantissa are dropped from there on: few where most scores lie, more towards 0.
_TIERS = ((0.0, 14), (2.0**-32, 12), (2.0**-8, 9), (0.5, 0))


def _tier_bins() -> list[tuple[int, int, int, int]]:
    """Of each tier the float bits it begins and ends at, the bits it drops, and its first bin."""
    bounds = [int(np.float32(bound).view(np.uint32)) for bound, _ in _TIERS]
    tiers, first = [], 0
    for begin, end, (_, drop) in zip(bounds, bounds[1:], _TIERS, strict=False):
        tiers.append((begin, end, drop, first))
        first += (end - begin) >> drop
    return [*tiers, (bounds[-1], bounds[-1], 0, first)]


_HALF = _tier_bins()[-1][3]  # the bin of 0.5
BINS = 2 * _HALF + 1
_TOGETHER = (2**16, 256, 128)  # of each tier: bins that make one coarse bin of an image's own histogram


def bin_of(scores: np.ndarray) -> np.ndarray:
    """Bin numbers, rising with the score: int32, of float32 scores in [0, 1]."""
    # 1 - score is exact from 0.5 on; -0 is 0
    bits = np.minimum(scores, np.float32(1) - scores).view(np.int32) & np.int32(0x7FFFFFFF)
    index = np.full(bits.shape, _HALF, np.int32)
    for begin, end, drop, first in reversed(_tier_bins()[:-1]):
        np.copyto(index, ((bits - begin) >> drop) + first, where=bits < end)
    return np.where(scores < 0.5, index, 2 * _HALF - index)


def threshold_bin(threshold: float) -> int:
    """The bin that a threshold lies in, -1 below all, BINS above all."""
    if not 0 <= threshold <= 1:
        return -1 if threshold < 0 else BINS
    return int(bin_of(np.array([threshold], np.float32))[0])


def bin_scores() -> np.ndarray:
    """Score in the middle of each bin, float64 (BINS,)."""
    bits = np.concatenate([np.arange(begin, end, 1 << drop, np.uint32) for begin, end, drop, _ in _tier_bins()[:-1]])
    edges = np.append(bits.view(np.float32).astype(np.float64), 0.5)
    middle = (edges[:-1] + edges[1:]) / 2
    return np.concatenate((middle, [0.5], 1 - middle[::-1]))


@lru_cache(maxsize=1)
def coarse() -> np.ndarray:
    """The coarse bin (of about 2,000, for histograms of single images) of each bin; int16 (BINS,)."""
    tiers, parts, first = _tier_bins(), [], 0
    for (_, _, _, begin), (_, _, _, end), together in zip(tiers, tiers[1:], _TOGETHER, strict=False):
        parts.append(first + np.arange(end - begin) // together)
        first = int(parts[-1][-1]) + 1
    below = np.concatenate(parts)
    return np.concatenate((below, [first], 2 * first - below[::-1])).astype(np.int16)
