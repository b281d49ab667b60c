"""Intervals cover what they should; thresholds keep what they promise."""

import time

import numpy as np
import pytest

from evaluation import bootstrap, image_metrics, metrics
from evaluation.metrics import PixelMetrics
from evaluation.thresholds import conformal, differ_significantly, false_positive_estimate, images_needed


def maps(rng, count, size=64, shift=0.3):
    """Anomaly maps, masks (empty for the first half) and labels."""
    labels = np.arange(count) >= count // 2
    masks = np.zeros((count, size, size), bool)
    masks[labels, 10:20, 10:30] = True
    spread = rng.normal(0, 0.1, (count, 1, 1))  # pictures differ, so that intervals over images are wide
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


def test_weights_count_images_as_often_as_they_say():
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
    assert bootstrap.resampled_image_metrics(labels, images, weights)["image_auroc"][0] == pytest.approx(expected["image_auroc"])


def test_an_interval_of_95_percent_covers_the_truth_about_that_often():
    """Image AUROC of normal scores one deviation apart is 0.760."""
    rng, hits = np.random.default_rng(0), 0
    labels = np.array([0] * 40 + [1] * 40)
    for _ in range(100):
        scores = rng.normal(labels, 1.0)
        exact = image_metrics.image_metrics(labels, scores)["image_auroc"]
        drawn = [
            bootstrap.resampled_image_metrics(labels, scores, weights)["image_auroc"] for weights in bootstrap.bootstrap_weights(labels, 400)
        ]
        low, high = bootstrap.interval(np.concatenate(drawn), exact, exact)
        hits += low <= 0.760 <= high
        assert low < exact < high
    assert 88 <= hits <= 99


def test_intervals_of_200_images_take_seconds_and_little_memory():
    scores, masks, labels = maps(np.random.default_rng(0), 200, 256)
    pixels = filled(scores, masks)
    assert sum(array.nbytes for array in (*pixels.images._counts, *pixels.images._bins)) < 50e6
    start = time.perf_counter()
    for weights in bootstrap.bootstrap_weights(labels):
        bootstrap.resampled_pixel_metrics(pixels.images, weights, {"": 0})
    assert time.perf_counter() - start < 5


def test_conformal_keeps_its_promise_and_others_theirs():
    """Scores far from normal: what is promised holds on average, and nine in ten lie in the interval."""
    rng, count = np.random.default_rng(0), 40
    rates = {"max": [], "p_quantile": [], "conformal": []}
    for _ in range(4000):
        held_out = np.sort(rng.random(count))  # of uniform scores the rate of false alarms is 1 - threshold
        rates["max"].append(1 - held_out[-1])
        rates["p_quantile"].append(1 - np.percentile(held_out, 99))
        rates["conformal"].append(1 - conformal(held_out**3, 0.05) ** (1 / 3))
    for kind, found in rates.items():
        said = false_positive_estimate(kind, count, 99, 3, 0.05)
        assert np.mean(found) == pytest.approx(said.expected, abs=1.5e-3), kind
        inside = np.mean((np.array(found) >= said.low) & (np.array(found) <= said.high))
        assert 0.88 <= inside <= 0.95, kind  # p_quantile lies between two scores: there a little more
    assert np.mean(rates["conformal"]) <= 0.05
    assert false_positive_estimate("p_quantile", count, 99, 3, 0.05).expected == pytest.approx(0.034, abs=1e-3)


def test_k_sigma_of_normal_scores():
    rng = np.random.default_rng(1)
    held_out = rng.standard_normal((20_000, 20))
    limits = held_out.mean(axis=1) + 2 * held_out.std(axis=1)
    said = false_positive_estimate("k_sigma", 20, 99, 2, 0.05)
    assert np.mean(rng.standard_normal(20_000) > limits) == pytest.approx(said.expected, abs=5e-3)


def test_conformal_is_the_right_score():
    scores = np.arange(1.0, 41.0)
    assert conformal(scores, 0.05) == 39 and conformal(scores, 0.1) == 37 and conformal(scores[:19], 0.05) == 19
    assert conformal(scores[:18], 0.05) == np.inf
    assert images_needed(0.05) == 19 and images_needed(0.01) == 99


def test_scores_that_lie_apart():
    rng = np.random.default_rng(0)
    assert sum(differ_significantly(rng.random(30), rng.random(40)) for _ in range(200)) <= 6  # 2 are expected

    assert differ_significantly(rng.random(30) + 0.6, rng.random(40)) and not differ_significantly(
        rng.random(30), np.array([])
    )


def test_youden_and_f1_choose_differently_where_classes_are_uneven():
    labels = np.array([0] * 90 + [1] * 10)
    scores = np.concatenate([np.linspace(0, 0.7, 90), np.linspace(0.5, 1, 10)])
    found = {by: image_metrics.optimal_image_threshold(labels, scores, by) for by in metrics.CRITERIA}
    for by, threshold in found.items():
        at = {t: scores > t for t in np.linspace(-0.01, 1, 500)}
        tp = {t: (called & (labels == 1)).sum() for t, called in at.items()}
        fp = {t: (called & (labels == 0)).sum() for t, called in at.items()}
        worth = {
            "f1": lambda t, fp=fp, tp=tp: 2 * tp[t] / (tp[t] + fp[t] + 10),
            "youden": lambda t, fp=fp, tp=tp: tp[t] / 10 - fp[t] / 90,
        }[by]
        called = scores > threshold
        own = {"x": (called & (labels == 1)).sum()}, {"x": (called & (labels == 0)).sum()}
        reached = worth("x", own[1], own[0])
        assert reached == pytest.approx(max(worth(t) for t in at), abs=1e-12)
    assert found["youden"] < found["f1"]


def test_a_hit_lies_in_the_mask_or_within_half_a_window():
    anomaly_map = np.zeros((100, 100), np.float32)
    anomaly_map[50, 50] = 1
    smoothed = metrics.smooth(anomaly_map)
    assert smoothed.max() == metrics.image_score(anomaly_map)
    for column, is_pointing_game_hit in ((50, True), (70, True), (71, False)):
        mask = np.zeros((100, 100), bool)
        mask[50, column] = True
        assert metrics.is_pointing_game_hit(smoothed, mask) == is_pointing_game_hit


def test_a_map_that_is_the_same_everywhere_hits_nothing():
    """As networks that have learned nothing give it; each of its pixels would be the brightest."""
    mask = np.zeros((64, 64), bool)
    mask[30:34, 30:34] = True
    assert not metrics.is_pointing_game_hit(metrics.smooth(np.full((64, 64), 0.47, np.float32)), mask)
