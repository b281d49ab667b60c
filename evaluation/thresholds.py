"""Thresholds from the scores of nominal images, and the false-positive rates to expect of them."""

import math
from typing import NamedTuple

import numpy as np

NOMINAL_KINDS = ("max", "p_quantile", "k_sigma", "conformal")  # from scores of nominal images
MANUAL = "manual"  # from the settings
OPTIMAL = "optimal"  # from the test set itself
KINDS = (*NOMINAL_KINDS, OPTIMAL, MANUAL)
COMPARED_KINDS = ("max", "p_quantile", "k_sigma", "optimal")  # that evaluate_checkpoints.py uses by default
KIND_SETTINGS = {"p_quantile": "p", "k_sigma": "k", "conformal": "max_false_alarms"}  # kind -> its setting in `metrics`
FEWEST = 10  # scores of each set, below which not even a shift of half of them shows in a test at that level
SIGNIFICANCE = 0.01  # probability below which two sets of scores count as different


class Thresholds(NamedTuple):
    """Thresholds of one kind: what lies above them is anomalous.

    Attributes:
        kind: one of KINDS.
        image: of image scores. pixel: of anomaly maps. Infinite where nothing is to be called anomalous, None where
            undefined.
    """

    kind: str
    image: float | None
    pixel: float | None


class NoScoresError(ValueError):
    """Thresholds were asked for, but there is no score."""


class NominalScores:
    """Maximum, percentile, and mean + k sigma of many scores, of which only the highest are kept.

    Args:
        p: percentile, 0 to 100, linear between neighbours as numpy's default.
        k: population standard deviations above the mean.
        expected: the most scores that will come; the tail that the percentile can lie in follows from it.

    `count` is the number of scores so far.
    """

    def __init__(self, p: float, k: float, expected: int):
        self.p, self.k = p, k
        self._tail_size = expected - int((expected - 1) * p / 100) if expected else 0
        self._tail = [np.empty(0)]
        self.count, self._mean, self._squares = 0, 0.0, 0.0

    def update(self, scores: np.ndarray) -> None:
        """Add scores of any shape."""
        scores = np.asarray(scores, np.float64).ravel()
        if not scores.size:
            return
        # Mean and sum of squared deviations merged pairwise (Chan, Golub and LeVeque 1979): no cancellation.
        mean, count = scores.mean(), self.count + scores.size
        delta = mean - self._mean
        self._squares += float(((scores - mean) ** 2).sum()) + delta**2 * self.count * scores.size / count
        self._mean += delta * scores.size / count
        self.count = count
        if scores.size > self._tail_size:
            scores = np.partition(scores, -self._tail_size)[-self._tail_size :]
        self._tail.append(scores)
        if sum(part.size for part in self._tail) > 2 * self._tail_size + 2**16:
            self._merge()

    def _merge(self) -> np.ndarray:
        tail = np.sort(np.concatenate(self._tail))[-self._tail_size :]
        self._tail = [tail]
        return tail

    def compute(self) -> dict[str, float]:
        """Thresholds `max`, `p_quantile` and `k_sigma`. NoScoresError without scores, ValueError with too many."""
        if not self.count:
            raise NoScoresError("no scores to take thresholds from: everything is left out by the masking regions")
        tail = self._merge()
        rank = (self.count - 1) * self.p / 100
        below = int(rank)
        first = self.count - tail.size  # rank of the lowest score kept
        if below < first:
            raise ValueError(f"{self.count} scores came, more than expected")
        lower, upper = tail[below - first], tail[min(below - first + 1, tail.size - 1)]
        return {
            "max": float(tail[-1]),
            "p_quantile": float(lower + (upper - lower) * (rank - below)),
            "k_sigma": float(self._mean + self.k * np.sqrt(self._squares / self.count)),
        }


def conformal(scores: np.ndarray, max_false_alarms: float) -> float:
    """The smallest threshold that new nominal images exceed in at most the share a; infinity where scores are too few.

    Split conformal: the ceil((n + 1) (1 - a))-th smallest of n held-out scores. The guarantee holds on average over
    draws of held-out images, whatever the scores' distribution, if new ones are drawn as they were (V. Vovk,
    A. Gammerman and G. Shafer, 'Algorithmic learning in a random world', 2005).

    Args:
        scores: of held-out nominal images, (N,). max_false_alarms: a, above 0, below 1.
    """
    rank = conformal_rank(len(scores), max_false_alarms)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def conformal_rank(count: int, max_false_alarms: float) -> int:
    """Rank of the conformal threshold among `count` scores, from 1 for the smallest; above `count` where too few."""
    return math.ceil(round((count + 1) * (1 - max_false_alarms), 9))  # rounded: 0.95 x 20 is 19


def images_needed(rate: float) -> int:
    """The fewest nominal images with which a conformal threshold can have a false-positive rate of at most `rate`."""
    return math.ceil(round(1 / rate, 9)) - 1


class FalsePositiveEstimate(NamedTuple):
    """False-positive rate of a threshold on new nominal images: expected, and a 90 % interval over draws."""

    expected: float
    low: float
    high: float


def false_positive_estimate(
    kind: str, count: int, p: float, k: float, max_false_alarms: float
) -> FalsePositiveEstimate:
    """The false-positive rate to expect of a threshold from `count` held-out image scores.

    The r-th smallest score is exceeded by a share that is distributed as Beta(n + 1 - r, r), whatever the scores'
    distribution (S. Wilks, 'Determination of sample sizes for setting tolerance limits', 1941); between two scores r is
    taken as a fraction. Of k_sigma only where scores are normal: simulated from the distribution of mean and deviation.
    """
    if kind == "k_sigma":
        return _estimate_of_sigma(count, k)
    ranks = {
        "max": count,
        "p_quantile": (count - 1) * p / 100 + 1,
        "conformal": conformal_rank(count, max_false_alarms),
    }
    rank = ranks[kind]
    if rank > count:
        return FalsePositiveEstimate(0.0, 0.0, 0.0)  # the threshold is infinite
    from scipy.stats import beta  # takes most of a second, which not every program should pay at its start

    low, high = beta.ppf([0.05, 0.95], count + 1 - rank, rank)
    return FalsePositiveEstimate((count + 1 - rank) / (count + 1), float(low), float(high))


def _estimate_of_sigma(count: int, k: float) -> FalsePositiveEstimate:
    if count < 2:
        return FalsePositiveEstimate(0.5, 0.0, 1.0)  # there is no deviation: as good as any score
    from scipy.stats import norm

    rng, draws = np.random.default_rng(0), 20_000
    mean = rng.standard_normal(draws) / math.sqrt(count)
    deviation = np.sqrt(rng.chisquare(count - 1, draws) / count)
    rates = norm.sf(mean + k * deviation)
    low, high = np.quantile(rates, [0.05, 0.95])
    return FalsePositiveEstimate(float(rates.mean()), float(low), float(high))


def distance(scores: np.ndarray, others: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two sets of scores (N,), (M,): 0 for equal, 1 for disjoint distributions."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(scores, others).statistic)


def differ_significantly(scores: np.ndarray, others: np.ndarray) -> bool | None:
    """Whether two sets of scores (N,), (M,) come from different distributions: Kolmogorov-Smirnov test at 1 %.

    None where one of them has fewer than FEWEST: too few to say.
    """
    if min(len(scores), len(others)) < FEWEST:
        return None
    from scipy.stats import ks_2samp

    return bool(ks_2samp(scores, others).pvalue < SIGNIFICANCE)


def relative(score: float, threshold: float) -> float:
    """An image score in [0, 1] with 0.5 at the threshold: linear below it and above it.

    Where no score can lie above the threshold (1 or more, infinite) all lie between 0 and 0.5.
    """
    if score <= threshold:
        return 0.5 * score / threshold if threshold > 0 else 0.5
    return 0.5 + 0.5 * (score - threshold) / (1 - threshold)
