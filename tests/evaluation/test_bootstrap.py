"""evaluation/bootstrap.py: confidence intervals cover the true value as often as they should."""

import time

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, norm

from evaluation import bootstrap, comparison, image_metrics, metrics
from evaluation.metrics import PixelMetrics


def maps(rng, count, size=64, shift=0.3):
    """Anomaly maps, masks (empty for the first half) and labels."""
    labels = np.arange(count) >= count // 2
    masks = np.zeros((count, size, size), bool)
    masks[labels, 10:20, 10:30] = True
    spread = rng.normal(0, 0.1, (count, 1, 1))  # images differ, so that intervals over images are wide
    scores = np.clip(rng.normal(0.3 + shift * masks + spread, 0.1), 0, 1).astype(np.float32)
    return scores, masks, labels.astype(int)


def filled(scores, masks):
    pixels = PixelMetrics(keeps_images=True)
    for one, mask in zip(scores, masks, strict=True):
        pixels.update(one, mask)
    return pixels


def test_metrics_of_the_small_histograms_are_nearly_the_exact_ones():
    scores, masks, labels = maps(np.random.default_rng(0), 40)
    pixels = filled(scores, masks)
    exact = pixels.compute(0.5)
    drawn = bootstrap.resampled_pixel_metrics(pixels.images, np.ones((1, 40)), {"": pixels.coarse_bin(0.5)})[""]
    for key, value in drawn.items():
        assert value[0] == pytest.approx(exact[key], abs=5e-3), key
    images = scores.reshape(40, -1).max(axis=1).astype(np.float64)
    of_images = bootstrap.resampled_image_metrics(labels, images, np.ones((1, 40)))
    for key, value in image_metrics.image_metrics(labels, images).items():
        assert of_images[key][0] == pytest.approx(value, abs=1e-12)
    at = bootstrap.resampled_image_metrics_at(labels, images > 0.7, np.ones((1, 40)))
    for key, value in image_metrics.image_metrics_at(labels, images, 0.7).items():
        assert at[key][0] == pytest.approx(value, abs=1e-12)


def test_draws_are_seeded_and_keep_the_number_of_each_label():
    labels = np.array([0] * 7 + [1] * 5)
    weights = np.concatenate(list(bootstrap.bootstrap_weights(labels)))
    assert weights.shape == (1000, 12)
    assert (weights[:, :7].sum(axis=1) == 7).all() and (weights[:, 7:].sum(axis=1) == 5).all()
    np.testing.assert_array_equal(weights, np.concatenate(list(bootstrap.bootstrap_weights(labels))))


def test_a_weight_counts_an_image_as_often_as_its_value():
    scores, masks, labels = maps(np.random.default_rng(1), 10)
    weights = np.array([[2, 0, 1, 1, 1, 0, 3, 1, 1, 0]])
    repeated = np.repeat(np.arange(10), weights[0])
    pixels = filled(scores, masks)
    drawn = bootstrap.resampled_pixel_metrics(pixels.images, weights, {"": 0})[""]
    exact = filled(scores[repeated], masks[repeated]).compute()
    for key in metrics.PIXEL_KEYS:
        assert drawn[key][0] == pytest.approx(exact[key], abs=5e-3), key
    images = scores.mean(axis=(1, 2)).astype(np.float64)
    expected = image_metrics.image_metrics(labels[repeated], images[repeated])
    resampled = bootstrap.resampled_image_metrics(labels, images, weights)
    assert resampled["image_auroc"][0] == pytest.approx(expected["image_auroc"])


def test_an_interval_of_95_percent_covers_the_truth_about_that_often():
    """Image AUROC of normal scores one deviation apart is 0.760."""
    rng, hits = np.random.default_rng(0), 0
    labels = np.array([0] * 40 + [1] * 40)
    for _ in range(100):
        scores = rng.normal(labels, 1.0)
        exact = image_metrics.image_metrics(labels, scores)["image_auroc"]
        drawn = [
            bootstrap.resampled_image_metrics(labels, scores, weights)["image_auroc"]
            for weights in bootstrap.bootstrap_weights(labels, 400)
        ]
        low, high = bootstrap.interval(np.concatenate(drawn), exact, exact)
        hits += low <= 0.760 <= high
        assert low < exact < high
    assert 88 <= hits <= 99


@pytest.mark.parametrize("share", [0.8, 0.95, 1.0])
def test_intervals_of_shares_cover_the_truth_in_at_least_95_percent(share):
    for count in (*range(4, 21), 30, 50, 75, 100):
        hits = 0.0
        for right in range(count + 1):
            low, high = bootstrap.share_interval(right / count, count)
            assert 0 <= low <= right / count <= high <= 1 and high - low > 0.03
            hits += binom.pmf(right, count, share) * (low <= share <= high)
        assert hits >= 0.95 - 1e-9, (count, share)


def average_precision(shift, prevalence):
    """True AP of normal scores, those of anomalous images higher by `shift`."""
    recall = (np.arange(20_000) + 0.5) / 20_000
    false_positives = norm.sf(norm.isf(recall) + shift)
    return float(np.mean(prevalence * recall / (prevalence * recall + (1 - prevalence) * false_positives)))


@pytest.mark.parametrize("truth", [0.8, 0.95])
@pytest.mark.parametrize("counts", [(4, 4), (4, 30), (30, 4), (10, 10), (20, 20), (100, 100)], ids=str)
@pytest.mark.parametrize("key", ["image_auroc", "image_ap"])
def test_intervals_of_few_images_cover_the_truth(key, counts, truth):
    """Percentiles of the draws covered it in 32 % to 95 % of the cases."""
    prevalence = counts[1] / sum(counts)
    of_shift = {
        "image_auroc": lambda shift: norm.cdf(shift / np.sqrt(2)),
        "image_ap": lambda shift: average_precision(shift, prevalence),
    }[key]
    shift = brentq(lambda shift: of_shift(shift) - truth, -10, 10, xtol=1e-3)
    labels, rng, hits = np.repeat([0, 1], counts), np.random.default_rng(0), 0
    weights = next(bootstrap.bootstrap_weights(labels, 100))
    for _ in range(100):
        scores = rng.normal(labels * shift)
        exact = float(bootstrap.resampled_image_metrics(labels, scores, np.ones((1, len(labels))))[key][0])
        drawn = bootstrap.resampled_image_metrics(labels, scores, weights)[key]
        low, high = bootstrap.interval(drawn, exact, exact, min(counts))
        hits += low <= truth <= high
        assert 0 <= low < high <= 1
    assert hits >= 89


def test_no_interval_of_data_that_could_have_come_out_otherwise_has_no_width():
    """Perfect separation of n and n images, which more images may not keep."""
    for count, width in ((1, 0.9), (4, 0.5), (100, 0.03)):
        low, high = bootstrap.interval(np.ones(100), 1.0, 1.0, count)
        assert high == 1 and low < 1 - width
        low, high = bootstrap.interval(np.zeros(100), 0.0, 0.0, count)
        assert low == 0 and high > width
        labels = np.repeat([0, 1], count)
        found = comparison.difference([(labels, labels / 1, labels / 2)])
        assert found["low"] < found["difference"] == 0 < found["high"] and not found["is_told_apart"]
    assert bootstrap.interval(np.full(100, np.nan), 0.5, 0.5, 4)[1] > 0.8  # undefined in all draws
    labels = np.array([0, 1])
    assert not comparison.difference([(labels, labels / 1, -labels / 1)])["is_told_apart"]  # two images


def test_intervals_of_200_images_take_seconds_and_little_memory():
    scores, masks, labels = maps(np.random.default_rng(0), 200, 256)
    pixels = filled(scores, masks)
    assert sum(array.nbytes for array in (*pixels.images._counts, *pixels.images._bins)) < 50e6
    start = time.perf_counter()
    for weights in bootstrap.bootstrap_weights(labels):
        bootstrap.resampled_pixel_metrics(pixels.images, weights, {"": 0})
    assert time.perf_counter() - start < 5
