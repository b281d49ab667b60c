"""evaluation/regions.py: regions of an anomaly map above a threshold, and scores relative to one."""

import numpy as np

from evaluation.metrics import Region, regions
from evaluation.thresholds import relative


def test_regions_and_relative_scores():
    mask = np.zeros((20, 30), bool)
    mask[2:5, 3:7] = mask[10:18, 20:29] = True
    assert regions(mask) == [Region(20, 10, 29, 18, 72), Region(3, 2, 7, 5, 12)] and regions(mask[:1]) == []
    assert [relative(score, 0.2) for score in (0, 0.1, 0.2, 0.6, 1)] == [0, 0.25, 0.5, 0.75, 1]
    assert [relative(score, 1.5) for score in (0, 0.75)] == [0, 0.25] and relative(0.5, float("inf")) == 0
    assert relative(0, 0) == 0.5 and relative(1, 0) == 1
    scores = np.linspace(0, 1, 101)
    assert all(np.diff([relative(score, 0.37) for score in scores]) > 0)
