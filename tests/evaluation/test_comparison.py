"""evaluation/comparison.py: which checkpoint and technique is best, and whether differences are significant."""

import numpy as np
import pytest

from evaluation import comparison
from evaluation.metrics import METRIC_KEYS


def row(checkpoint, technique="no_masking", category="tile", threshold="optimal", **values):
    head = {"category": category, "checkpoint": checkpoint, "technique": technique, "threshold": threshold}
    return head | dict.fromkeys(METRIC_KEYS) | {"image_auroc": 0.9, "pixel_ap": 0.5} | values


def test_the_earliest_checkpoint_within_one_standard_error_is_chosen():
    rows = [row(name) for name in ("100", "200", "300", "1000")]
    val_ap = {"tile": {"100": 0.50, "200": 0.58, "300": 0.57, "1000": 0.60}}
    for error, chosen in ((0.0, "1000"), (0.02, "200"), (0.03, "200"), (0.1, "100")):
        found = comparison.label_free(rows, val_ap, None, {"tile": {"1000": error}})
        assert found["overall"]["checkpoint"] == found["categories"]["tile"]["checkpoint"] == chosen
        assert found["categories"]["tile"]["best_val_ap_checkpoint"] == "1000"
    assert comparison.label_free(rows, val_ap, None)["overall"]["checkpoint"] == "1000"


def test_over_categories_the_chosen_checkpoint_is_within_the_error_in_each_or_has_the_best_rank():
    rows = [row(name, category=category) for name in ("1", "2", "3") for category in ("a", "b")]
    val_ap = {"a": {"1": 0.59, "2": 0.60, "3": 0.61}, "b": {"1": 0.30, "2": 0.50, "3": 0.51}}
    errors = {"a": {"3": 0.05}, "b": {"3": 0.02}}
    found = comparison.label_free(rows, val_ap, None, errors)
    assert found["overall"]["checkpoint"] == "2" and found["overall"]["is_within_error"]
    val_ap["a"] |= {"1": 0.9}
    found = comparison.label_free(rows, val_ap, None, {})
    assert found["overall"]["checkpoint"] == "3" and not found["overall"]["is_within_error"]


def test_pixel_metrics_are_compared_on_the_same_pixels():
    rows = [
        row("1", "no_masking", pixel_ap=0.9, image_auroc=0.95),
        row("1", "post_masking", pixel_ap=0.7, image_auroc=0.9),
        row("1", "pre_masking_registered", pixel_ap=0.8, image_auroc=0.8),
        row("1", "no_masking", category="unmasked", pixel_ap=0.9),
    ]
    best = comparison.best_of_categories(rows)
    assert best["tile"]["pixel_ap"]["value"] == 0.8
    assert best["tile"]["pixel_ap"]["reached_by"] == [{"checkpoint": "1", "technique": "pre_masking_registered"}]
    assert best["tile"]["image_auroc"]["value"] == 0.95
    assert best["unmasked"]["pixel_ap"]["value"] == 0.9


def test_the_paired_bootstrap_finds_small_differences_of_correlated_scores():
    rng = np.random.default_rng(0)
    labels = np.array([0] * 60 + [1] * 60)
    shared = rng.normal(1.5 * labels, 1.0)
    worse = shared + rng.normal(0, 1.0, 120)
    found = comparison.difference([(labels, shared, worse)])
    assert found["low"] < found["difference"] < found["high"] and found["is_told_apart"] and found["difference"] > 0
    same = comparison.difference([(labels, shared, shared + rng.normal(0, 0.05, 120))])
    assert not same["is_told_apart"] and same["low"] <= 0 <= same["high"]
    both = comparison.difference([(labels, shared, worse), (labels, shared, shared)])
    assert both["difference"] == pytest.approx(found["difference"] / 2)
