"""Whether scores have changed since a day, and which."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evaluation.thresholds import SIGNIFICANCE


class Drift(NamedTuple):
    """A change of scores.

    Attributes:
        day: the first one with changed scores. p: of the test, corrected for the days that were tried.
        before, after: medians of the scores before that day and from it on.
    """

    day: int
    p: float
    before: float
    after: float

    @property
    def is_significant(self) -> bool:
        """Whether such a change is rare among scores that have not changed."""
        return self.p < SIGNIFICANCE


def drift(reference: np.ndarray, scores: np.ndarray, days: Sequence[int]) -> Drift | None:
    """The most likely day of a change of scores: of all days, that whose rank test is the most significant.

    Scores from a day on are compared with those before it, the reference among them (Mann-Whitney, two-sided, after
    A. Pettitt, 'A non-parametric approach to the change-point problem', 1979). Its p is multiplied by the number of
    days that were tried (Bonferroni).

    Args:
        reference: scores before all days, (N,). scores: (M,). days: of each score, whole numbers that count days.

    Returns:
        None without scores or reference.
    """
    if not len(reference) or not len(scores):
        return None
    from scipy.stats import mannwhitneyu

    of_day, tried = np.asarray(days), sorted(set(days))
    found = []
    for day in tried:
        before = np.concatenate([reference, scores[of_day < day]])
        after = scores[of_day >= day]
        p = float(mannwhitneyu(before, after).pvalue)
        found.append(Drift(day, min(1.0, p * len(tried)), float(np.median(before)), float(np.median(after))))
    return min(found, key=lambda one: one.p)
