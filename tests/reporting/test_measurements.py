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
    assert f"{count * 1024:,}" in measured.reasons("manual", found)["aupimo"]  # of nominal pixels: too few
    assert found["aupimo"] is found["aupimo_low"] is None
    for key in (one for one in metrics.MEASURED_KEYS if one not in metrics.OVERLAP_KEYS):
        low, high = found[f"{key}_low"], found[f"{key}_high"]
        highest = count if isinstance(found[key], int) else 1
        assert 0 <= low <= found[key] <= high <= highest, key
        assert high - low > (0.3 if count == 4 else 0.7) * highest, key
    assert (found["image_auroc"], found["pixel_ap"], found["accuracy"], found["true_positives"]) == (1, 1, 1, count)
    assert found["accuracy_low"] == pytest.approx(0.025 ** (1 / (2 * count)))  # Clopper-Pearson at the end


def test_aupimo_has_an_interval_where_there_are_enough_pixels():
    rng, shape = np.random.default_rng(0), (200, 200)
    mask = np.zeros(shape, bool)
    mask[50:90, 50:90] = True
    samples = [TestSample(Path(f"{i}.png"), i > 3, f"test/spot/{i}.png", (Path("m.png"),) * (i > 3)) for i in range(12)]
    samples.append(TestSample(Path("12.png"), True, "test/other/12.png"))  # without a mask: in no pixel metric
    measured, image = Measurements(samples), np.zeros((*shape, 3), np.float32)
    for idx, sample in enumerate(samples):
        truth = mask & bool(sample.masks)
        z = rng.normal(0, 1, shape) + truth * (idx - 2)
        measured.update(NetworkOutput(idx, image, image, (1 / (1 + np.exp(3 - z))).astype(np.float32), truth))
    values = measured.with_intervals({"manual": measured.metrics_at(Thresholds("manual", 0.5, 0.5))})["manual"]
    of_images = measured.aupimo
    assert np.isnan(of_images[[0, 1, 2, 3, 12]]).all() and (np.diff(of_images[4:12]) > 0).sum() >= 6
    assert values["aupimo"] == pytest.approx(of_images[4:12].mean())
    assert 0 < values["aupimo_low"] < values["aupimo"] - 0.1 and values["aupimo"] + 0.1 < values["aupimo_high"] < 1
    ends = ("aupimo_low", "aupimo_high", "spro_05_low", "spro_05_high")
    assert list(values)[-6:] == ["aupimo", "spro_05", *ends] and values["spro_05"] is None
