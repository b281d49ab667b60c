"""What thresholds from few nominal images promise, and whether images are like those. Importing this takes a second."""

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import beta, ks_2samp, norm

from evaluation.thresholds import conformal_rank

APART = 0.01  # probability below which two sets of scores count as drawn from different images


class Promise(NamedTuple):
    """Share of new nominal images that a threshold will call anomalous: expected, and a 90 % interval over draws."""

    expected: float
    low: float
    high: float


def promise(kind: str, count: int, p: float, k: float, max_false_alarms: float) -> Promise:
    """What a threshold from `count` held-out image scores promises.

    The r-th smallest score is exceeded by a share that is distributed as Beta(n + 1 - r, r), whatever the scores'
    distribution (S. Wilks, 'Determination of sample sizes for setting tolerance limits', 1941); between two scores r is
    taken as a fraction. Of k_sigma only where scores are normal: simulated from the distribution of mean and deviation.
    """
    if kind == "k_sigma":
        return _promise_of_sigma(count, k)
    rank = {"max": count, "p_quantile": (count - 1) * p / 100 + 1}.get(kind)
    if rank is None:
        rank = conformal_rank(count, max_false_alarms)
    if rank > count:
        return Promise(0.0, 0.0, 0.0)  # the threshold is infinite
    low, high = beta.ppf([0.05, 0.95], count + 1 - rank, rank)
    return Promise((count + 1 - rank) / (count + 1), float(low), float(high))


def _promise_of_sigma(count: int, k: float) -> Promise:
    if count < 2:
        return Promise(0.5, 0.0, 1.0)  # there is no deviation: as good as any score
    rng, draws = np.random.default_rng(0), 20_000
    mean = rng.standard_normal(draws) / math.sqrt(count)
    deviation = np.sqrt(rng.chisquare(count - 1, draws) / count)
    rates = norm.sf(mean + k * deviation)
    low, high = np.quantile(rates, [0.05, 0.95])
    return Promise(float(rates.mean()), float(low), float(high))


def distance(scores: np.ndarray, others: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two sets of scores: 0 for alike, 1 where one lies wholly above the other."""
    return float(ks_2samp(scores, others).statistic)


def lie_apart(scores: np.ndarray, others: np.ndarray) -> bool:
    """Whether two sets of scores are clearly not drawn alike: Kolmogorov-Smirnov, at 1 %."""
    return bool(min(len(scores), len(others)) > 0 and ks_2samp(scores, others).pvalue < APART)
