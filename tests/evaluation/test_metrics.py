"""evaluation/metrics.py: pixel metrics against golden values and brute force."""

import json
import tracemalloc

import cv2
import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from evaluation import image_metrics, metrics, ranking
from evaluation.metrics import PixelMetrics


def measured(maps, masks, valid=None) -> PixelMetrics:
    pixels = PixelMetrics()
    for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        pixels.update(scores, mask, None if valid is None else valid[i])
    return pixels


def exact(maps, masks) -> dict[str, float]:
    """Every pixel kept, every threshold tried."""
    scores, truth, weights, regions = [], [], [], 0
    for scores_i, mask in zip(maps, masks, strict=True):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions += count - 1
        scores.append(scores_i.ravel())
        truth.append(mask.ravel())
        weights.append(np.where(mask, 1 / np.bincount(labels.ravel())[labels], 0).ravel())
    scores, truth, weights = map(np.concatenate, (scores, truth, weights))
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    fp, tp, pro = (
        np.append(0, np.cumsum(values[order])[ends]) for values in (~truth, truth.astype(int), weights / regions)
    )
    fpr = fp / fp[-1]

    def area(limit):
        n = np.searchsorted(fpr, limit, side="right")
        return auc(np.append(fpr[:n], limit), np.append(pro[:n], np.interp(limit, fpr, pro))) / limit

    return {
        "pixel_auroc": roc_auc_score(truth, scores),
        "pixel_ap": average_precision_score(truth, scores),
        "pixel_f1": (2 * tp / (tp + fp + tp[-1])).max(),
        "iou_max": (tp / (fp + tp[-1])).max(),
        "pro": area(0.3),
        "pro_05": area(0.05),
    }


def made_up(kind: str, count: int = 12) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng, maps, masks = np.random.default_rng(0), [], []
    squash = {
        "spread": lambda z: 1 / (1 + np.exp(0.8 - z)),
        "saturated": lambda z: 1 / (1 + np.exp(6 - 6 * z)),
        "saturated low": lambda z: 1 / (1 + np.exp(16 - 4 * z)),
        "saturated high": lambda z: 1 / (1 + np.exp(-16 - 4 * z)),
        "narrow": lambda z: 0.3 + 0.003 * z,
    }[kind]
    for i in range(count):
        mask = np.zeros((128, 128), bool)
        for _ in range(rng.integers(1, 6) if i % 2 else 0):
            y, x = rng.integers(0, 110, 2)
            mask[y : y + rng.integers(2, 18), x : x + rng.integers(2, 18)] = True
        z = cv2.GaussianBlur(rng.normal(size=(128, 128)), (0, 0), 3) * 5 + 2 * mask
        maps.append(squash(z).astype(np.float32))
        masks.append(mask)
    return maps, masks


def test_metrics_of_the_golden_maps():
    data, golden = np.load(GOLDEN / "metrics.npz"), json.loads((GOLDEN / "metrics.json").read_text())
    pixels = measured(data["maps"], data["masks"] > 0)
    result = pixels.compute(0.5)
    for key, own in {
        "pixel_auroc": "pixel_auroc", "pixel_ap": "pixel_ap", "aupro_30": "pro", "aupro_05": "pro_05",
        "pixel_f1_max": "pixel_f1", "iou_at_0_5": "iou", "iou_max": "iou_max",
    }.items():  # fmt: skip
        assert abs(result[own] - golden[key]) < 1e-6, key
    lower = data["maps"][data["maps"] < golden["pixel_f1_max_threshold"]].max()
    assert abs(pixels.optimal_threshold() - (lower + golden["pixel_f1_max_threshold"]) / 2) < 1e-4
    assert abs(pixels.compute(pixels.optimal_threshold())["pixel_f1_at_threshold"] - golden["pixel_f1_max"]) < 1e-6
    images = image_metrics.image_metrics(data["image_labels"], data["image_scores"])
    assert abs(images["image_auroc"] - golden["image_auroc"]) < 1e-6
    assert abs(images["image_ap"] - golden["image_ap"]) < 1e-6


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("spread", 1e-4), ("saturated", 1e-4), ("saturated low", 1e-4), ("saturated high", 1e-4), ("narrow", 2e-3)],
)
def test_histograms_agree_with_every_pixel(kind, tolerance):
    maps, masks = made_up(kind)
    result = measured(maps, masks).compute()
    for key, value in exact(maps, masks).items():
        assert abs(result[key] - value) < tolerance, key


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_ties_are_counted_together(seed):
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 6, (3, 12, 9)).astype(np.float32) / 5
    masks = rng.random((3, 12, 9)) < 0.3
    result = measured(maps, masks).compute(0.5)
    for key, value in exact(maps, masks).items():
        assert abs(result[key] - value) < 1e-9, key
    predicted = maps > 0.5
    assert abs(result["iou"] - (predicted & masks).sum() / (predicted | masks).sum()) < 1e-12


def test_invalid_pixels_count_nowhere():
    maps, masks = made_up("spread", 6)
    valid = np.ones((6, 128, 128), bool)
    valid[:, :, 64:] = False
    halves = measured([m[:, :64] for m in maps], [m[:, :64] for m in masks]).compute(0.5)
    masked = measured(maps, masks, valid).compute(0.5)
    for key in ("pixel_auroc", "pixel_ap", "pixel_f1", "iou", "iou_max"):
        assert abs(masked[key] - halves[key]) < 1e-12, key
    # Regions are labelled before pixels are left out: two parts of one region stay one.
    bar, scores = np.zeros((9, 9), bool), np.zeros((9, 9), np.float32)
    bar[4] = True
    scores[4, :3] = 0.9
    gap = np.ones((9, 9), bool)
    gap[:, 4] = False
    pixels = PixelMetrics()
    pixels.update(scores, bar, gap)
    assert pixels._regions == 1 and abs(pixels._overlap.sum() - 1) < 1e-12
    curve = pixels.curves()
    assert curve["pro"][0] == 0 and abs(curve["pro"][1] - 3 / 8) < 1e-12  # nothing is above the first threshold


def test_memory_does_not_grow_with_the_number_of_images():
    maps, masks = made_up("spread", 2)
    maps = [cv2.resize(scores, (256, 256)) for scores in maps]
    masks = [cv2.resize(mask.astype(np.uint8), (256, 256)) > 0 for mask in masks]
    tracemalloc.start()
    pixels = PixelMetrics()
    for i in range(1000):
        pixels.update(maps[i % 2], masks[i % 2])
    pixels.compute(0.5)
    pixels.optimal_threshold()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_undefined_pixel_metrics_are_none():
    pixels = PixelMetrics()
    assert pixels.missing
    pixels.update(np.full((4, 4), 0.5, np.float32), np.zeros((4, 4), bool))
    assert (
        set(pixels.compute(0.5).values()) == {None} and pixels.curves() is None and pixels.optimal_threshold() is None
    )
    all_anomalous = PixelMetrics()
    all_anomalous.update(np.full((4, 4), 0.5, np.float32), np.ones((4, 4), bool))
    both = PixelMetrics()
    both.update(np.full((4, 4), 0.5, np.float32), np.eye(4) > 0)
    assert all_anomalous.missing and all_anomalous.missing != PixelMetrics().missing and not both.missing


@pytest.mark.parametrize("scores", [np.full((4, 4), 1.5), np.full((4, 4), np.nan), np.zeros((5, 4))])
def test_an_invalid_anomaly_map_is_an_error(scores):
    with pytest.raises(ValueError, match=r"\(5, 4\).*\(4, 4\)" if scores.shape == (5, 4) else r"\[0, 1\]"):
        PixelMetrics().update(scores.astype(np.float32), np.zeros((4, 4), bool))


def test_counts_of_very_many_pixels_do_not_overflow():
    fp, tp = np.array([0, 10**10, 2 * 10**10]), np.array([0, 10**10, 10**10])
    values = ranking.ranking_metrics(fp, tp)
    assert [values[name] for name in ("auroc", "ap", "f1")] == pytest.approx([0.75, 0.5, 2 / 3])


@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, 0.4725, 0.5, 0.7, 1.0])
def test_scores_equal_to_the_threshold_are_not_above_it(value):
    mask = np.zeros((8, 8), bool)
    mask[:2] = True
    pixels = PixelMetrics()
    pixels.update(np.full((8, 8), value, np.float32), mask)
    at = pixels.compute(float(np.float32(value)))
    assert at["iou"] == 0 and at["pixel_f1_at_threshold"] == 0
    assert pixels.compute(pixels.optimal_threshold())["iou"] == pytest.approx(0.25)


def test_the_optimal_threshold_reaches_the_largest_f1():
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((16, 16)) < 0.3
        scores = np.round(rng.random((16, 16)) * 0.6 + 0.3 * mask, 2).astype(np.float32)  # many ties
        pixels = PixelMetrics()
        pixels.update(scores, mask)
        predicted = scores > pixels.optimal_threshold()
        f1 = 2 * (predicted & mask).sum() / (predicted.sum() + mask.sum())
        assert pixels.compute()["pixel_f1"] == pytest.approx(f1)
        assert pixels.compute(pixels.optimal_threshold())["pixel_f1_at_threshold"] == pytest.approx(f1)


def test_the_pointing_game_tolerates_half_a_window():
    anomaly_map = np.zeros((100, 100), np.float32)
    anomaly_map[50, 50] = 1
    smoothed = metrics.smooth(anomaly_map)
    assert smoothed.max() == metrics.image_score(anomaly_map)
    for column, is_pointing_game_hit in ((50, True), (70, True), (71, False)):
        mask = np.zeros((100, 100), bool)
        mask[50, column] = True
        assert metrics.is_pointing_game_hit(smoothed, mask) == is_pointing_game_hit


def test_a_constant_map_fails_the_pointing_game():
    """As untrained networks give it: each of its pixels is the maximum."""
    mask = np.zeros((64, 64), bool)
    mask[30:34, 30:34] = True
    assert not metrics.is_pointing_game_hit(metrics.smooth(np.full((64, 64), 0.47, np.float32)), mask)
