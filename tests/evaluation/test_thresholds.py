"""evaluation/thresholds.py: thresholds of nominal scores, and the false-positive rates expected of them."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.thresholds import (
    FEWEST,
    NominalScores,
    conformal,
    differ_significantly,
    false_positive_estimate,
    images_needed,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 100), st.integers(1, 3000))
def test_nominal_thresholds_are_numpys(seed, p, count):
    scores = np.random.default_rng(seed).random(count)
    summary = NominalScores(p, 3, count + seed % 100)
    for part in np.array_split(scores, 1 + seed % 7):
        summary.update(part)
    result = summary.compute()
    assert result["max"] == scores.max()
    assert result["p_quantile"] == pytest.approx(np.percentile(scores, p), abs=1e-12)
    assert result["k_sigma"] == pytest.approx(scores.mean() + 3 * scores.std(), abs=1e-12)


def test_nominal_thresholds_keep_only_the_tail():
    rng, summary = np.random.default_rng(0), NominalScores(99, 3, 200 * 65536)
    tracemalloc.start()
    for _ in range(200):
        summary.update(rng.random(65536, np.float32))
    assert tracemalloc.get_traced_memory()[0] < 5e6  # all of them would be 105 MB
    tracemalloc.stop()
    assert summary.compute()["p_quantile"] == pytest.approx(0.99, abs=1e-3)
    with pytest.raises(ValueError, match="scores"):
        NominalScores(99, 3, 0).compute()


def test_false_positive_rates_are_as_estimated():
    """Scores far from a normal distribution: the estimate holds on average, and 90 % of rates lie in its interval."""
    rng, count = np.random.default_rng(0), 40
    rates = {"max": [], "p_quantile": [], "conformal": []}
    for _ in range(4000):
        held_out = np.sort(rng.random(count))  # of uniform scores the false-positive rate is 1 - threshold
        rates["max"].append(1 - held_out[-1])
        rates["p_quantile"].append(1 - np.percentile(held_out, 99))
        rates["conformal"].append(1 - conformal(held_out**3, 0.05) ** (1 / 3))
    for kind, found in rates.items():
        said = false_positive_estimate(kind, count, 99, 3, 0.05)
        assert np.mean(found) == pytest.approx(said.expected, abs=1.5e-3), kind
        inside = np.mean((np.array(found) >= said.low) & (np.array(found) <= said.high))
        assert 0.88 <= inside <= 0.95, kind  # p_quantile lies between two scores: there slightly more
    assert np.mean(rates["conformal"]) <= 0.05
    assert false_positive_estimate("p_quantile", count, 99, 3, 0.05).expected == pytest.approx(0.034, abs=1e-3)


def test_the_false_positive_rate_of_k_sigma_for_normally_distributed_scores():
    rng = np.random.default_rng(1)
    held_out = rng.standard_normal((20_000, 20))
    limits = held_out.mean(axis=1) + 2 * held_out.std(axis=1)
    said = false_positive_estimate("k_sigma", 20, 99, 2, 0.05)
    assert np.mean(rng.standard_normal(20_000) > limits) == pytest.approx(said.expected, abs=5e-3)


def test_the_conformal_threshold_is_the_score_of_the_right_rank():
    scores = np.arange(1.0, 41.0)
    assert conformal(scores, 0.05) == 39 and conformal(scores, 0.1) == 37 and conformal(scores[:19], 0.05) == 19
    assert conformal(scores[:18], 0.05) == np.inf
    assert images_needed(0.05) == 19 and images_needed(0.01) == 99


def test_significant_differences_of_score_samples():
    rng = np.random.default_rng(0)
    assert sum(differ_significantly(rng.random(30), rng.random(40)) for _ in range(200)) <= 6  # 2 are expected

    assert differ_significantly(rng.random(30) + 0.6, rng.random(40)) and not differ_significantly(
        rng.random(30), np.array([])
    )


def test_too_few_scores_say_nothing_about_a_difference():
    many = np.linspace(0, 1, 40)
    for few in (1, 3, FEWEST - 1):
        assert differ_significantly(many[:few] + 5, many) is None and differ_significantly(many, many[:few]) is None
    assert differ_significantly(many[:FEWEST] + 5, many) is True and differ_significantly(many[::4], many) is False
