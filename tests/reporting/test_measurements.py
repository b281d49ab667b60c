"""reporting/measurements.py: metrics of a pass with their confidence intervals."""

from pathlib import Path

import numpy as np
import pytest

from data.mvtec import TestSample
from evaluation import metrics
from evaluation.thresholds import Thresholds
from inference.detect import NetworkOutput
from reporting.measurements import Measurements


@pytest.mark.parametrize("count", [1, 4])
def test_perfect_results_of_few_images_have_wide_intervals(count):
    """Separation without any error of 4 and 4 images had intervals of no width."""
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    samples = [TestSample(Path(f"{i}.png"), i >= count, f"test/{i}.png") for i in range(2 * count)]
    samples = [TestSample(one.path, one.has_anomaly, one.name, (one.path,) * one.has_anomaly) for one in samples]
    measured = Measurements(samples)
    for idx, sample in enumerate(samples):
        truth = mask & sample.has_anomaly
        image = np.zeros((32, 32, 3), np.float32)
        measured.update(NetworkOutput(idx, image, image, np.where(truth, 0.9, 0.1).astype(np.float32), truth))
    values = measured.metrics_at(Thresholds("manual", 0.5, 0.5))
    found = measured.with_intervals({"manual": values})["manual"]
    for key in metrics.MEASURED_KEYS:
        low, high = found[f"{key}_low"], found[f"{key}_high"]
        highest = count if isinstance(found[key], int) else 1
        assert 0 <= low <= found[key] <= high <= highest, key
        assert high - low > (0.3 if count == 4 else 0.7) * highest, key
    assert (found["image_auroc"], found["pixel_ap"], found["accuracy"], found["true_positives"]) == (1, 1, 1, count)
    assert found["accuracy_low"] == pytest.approx(0.025 ** (1 / (2 * count)))  # Clopper-Pearson at the end
