"""Thresholds from the scores of nominal images."""

import numpy as np

NOMINAL_KINDS = ("max", "p_quantile", "k_sigma")  # from scores of nominal images
OPTIMAL = "optimal"  # from the test set itself
KINDS = (*NOMINAL_KINDS, OPTIMAL)


class NoScoresError(ValueError):
    """Thresholds were asked for, but no score came."""


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
