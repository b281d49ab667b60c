"""evaluation/image_metrics.py: metrics of image scores against scikit-learn and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from evaluation import image_metrics, metrics


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=40), st.sampled_from([bool, np.int8]))
def test_image_metrics_with_ties_are_those_of_scikit_learn(images, dtype):
    labels, scores = np.array([label for label, _ in images], dtype), np.array([score / 7 for _, score in images])
    found, curves = image_metrics.image_metrics(labels, scores), image_metrics.image_curves(labels, scores)
    if len(set(labels.tolist())) < 2:
        assert set(found.values()) == {None} and curves is None
        return
    assert found["image_auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["image_ap"] == pytest.approx(average_precision_score(labels, scores))
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert found["image_f1"] == pytest.approx((2 * precision * recall / np.maximum(precision + recall, 1e-9)).max())
    fpr, tpr, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    for key, expected in (("fpr", fpr), ("tpr", tpr), ("threshold", thresholds)):
        np.testing.assert_allclose(curves[key], expected, rtol=1e-12)
    np.testing.assert_allclose(curves["precision"][1:], precision[:-1][::-1], rtol=1e-12)


def test_the_optimal_threshold_lies_below_the_score_it_lets_pass():
    lower, upper = 1 + 2.0**-52, 1 + 2.0**-51  # no number between them; half of their sum is the upper one
    threshold = image_metrics.optimal_image_threshold(np.array([0, 1]), np.array([lower, upper]))
    assert lower <= threshold < upper


def test_image_metrics_at_a_threshold():
    labels, scores = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.5, 0.7, 0.6, 0.9])
    result = image_metrics.image_metrics_at(labels, scores, 0.5)  # 0.5 itself is not above it
    assert result == {
        "accuracy": 0.8, "image_f1_at_threshold": 0.8, "true_positives": 2, "false_positives": 1,
        "true_negatives": 2, "false_negatives": 0,
    }  # fmt: skip
    assert image_metrics.image_metrics(labels, scores)["image_auroc"] == pytest.approx(5 / 6)
    assert image_metrics.image_metrics(labels, scores)["image_f1"] == pytest.approx(0.8)
    assert set(image_metrics.image_metrics(np.ones(3), np.ones(3)).values()) == {None}


def test_optimal_image_threshold():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.6, 0.8])
    assert image_metrics.optimal_image_threshold(labels, scores) == pytest.approx(0.45)
    # The lowest score reaches the largest F1: nothing lies below it, and it must still be above the threshold.
    lowest = image_metrics.optimal_image_threshold(np.array([1, 1, 0]), np.array([0.2, 0.2, 0.2]))
    at_lowest = image_metrics.image_metrics_at(np.array([1, 1, 0]), np.full(3, 0.2), lowest)
    assert lowest < 0.2 and at_lowest["true_positives"] == 2
    neighbours = np.float32([0.3, np.nextafter(np.float32(0.3), 1)])
    between = image_metrics.optimal_image_threshold(np.array([0, 1]), neighbours)
    assert image_metrics.image_metrics_at(np.array([0, 1]), neighbours, between)["accuracy"] == 1
    assert image_metrics.optimal_image_threshold(np.zeros(2), np.ones(2)) is None


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
