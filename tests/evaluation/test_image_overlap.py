"""evaluation/image_overlap.py: AUPIMO by hand and by brute force, PRO of single images."""

import numpy as np
import pytest

from evaluation import bootstrap
from evaluation.image_overlap import log_area
from evaluation.metrics import PixelMetrics


def measured(maps, masks, valid=None) -> PixelMetrics:
    pixels = PixelMetrics(keeps_images=True)
    for i, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        pixels.update(scores, mask, None if valid is None else valid[i])
    return pixels


def brute_force(maps, masks, steps=100_000) -> list[float]:
    """Every score a threshold; the overlap at many rates, evenly on the log axis, between those of thresholds."""
    nominal = [np.sort(scores.ravel()) for scores, mask in zip(maps, masks, strict=True) if not mask.any()]
    values = []
    for scores, mask in zip(maps, masks, strict=True):
        if not mask.any():
            values.append(np.nan)
            continue
        own = np.sort(scores[mask])
        highest = np.concatenate([*(one[-one.size // 100 :] for one in nominal), own])
        thresholds = np.unique(highest)[::-1]
        rates = np.mean([1 - np.searchsorted(one, thresholds) / one.size for one in nominal], axis=0)
        overlaps = 1 - np.searchsorted(own, thresholds) / own.size
        without = overlaps[rates == 0].max(initial=0)
        wanted, is_positive = np.linspace(np.log(1e-5), np.log(1e-4), steps), rates > 0
        found = np.interp(wanted, np.log(rates[is_positive]), overlaps[is_positive])
        values.append(float(np.where(wanted < np.log(rates[is_positive][0]), without, found).mean()))
    return values


def made_up(count=10, size=200, seed=0):
    rng, maps, masks = np.random.default_rng(seed), [], []
    for i in range(count):
        mask = np.zeros((size, size), bool)
        if i % 2:
            mask[20:60, 30:80] = True
        maps.append((1 / (1 + np.exp(3 - rng.normal(size=mask.shape) - 4 * mask * rng.random()))).astype(np.float32))
        masks.append(mask)
    return maps, masks


def test_aupimo_of_a_map_by_hand():
    """Nominal: 100,000 pixels, one at 0.9 (a rate of 1e-5), nine at 0.8 (1e-4). Anomalous: four pixels.

    From 1e-5 to 1e-4 the overlap rises from what is above 0.8 to what reaches it.
    """
    nominal = np.full((250, 400), 0.1, np.float32)
    nominal[0, 0], nominal[1, :9] = 0.9, 0.8
    for anomalous, value in (
        ((0.95, 0.85, 0.3, 0.2), 2 / 4),
        ((0.95, 0.85, 0.8, 0.2), (2 / 4 + 3 / 4) / 2),
        ((0.95, 0.95, 0.95, 0.95), 1),
        ((0.7, 0.7, 0.7, 0.7), 0),
    ):
        scores, mask = np.full((250, 400), 0.1, np.float32), np.zeros((250, 400), bool)
        scores[5, :4], mask[5, :4] = anomalous, True
        values = measured([nominal, scores], [np.zeros_like(mask), mask]).overlaps.aupimo()
        assert np.isnan(values[0]) and values[1] == pytest.approx(value, abs=1e-12)


def test_the_axis_is_logarithmic():
    """A rate of 10^-4.5 is half way; an overlap of 1 from there on is one half, one that rises to 1 there 3/4."""
    half = 10**-4.5
    assert log_area(np.array([0, half, half, 1.0]), np.array([0, 0, 1, 1.0])) == pytest.approx(0.5)
    assert log_area(np.array([0, 1e-5, half, 1.0]), np.array([0, 0, 1, 1.0])) == pytest.approx(0.75)
    assert log_area(np.array([0, 1e-5, 1e-3]), np.array([0, 0, 1.0])) == pytest.approx(0.25)  # 0 to 1/2 in the range
    assert log_area(np.array([0, 0.5]), np.array([0.3, 1.0])) == pytest.approx(0.3)  # without a false positive
    assert log_area(np.array([0, half]), np.array([0.2, 0.6])) == pytest.approx(0.4)  # nothing beyond is known


@pytest.mark.parametrize("seed", range(3))
def test_aupimo_agrees_with_brute_force(seed):
    maps, masks = made_up(seed=seed)
    np.testing.assert_allclose(measured(maps, masks).overlaps.aupimo(), brute_force(maps, masks), atol=1e-4)


def test_false_positives_are_averaged_over_nominal_images():
    """Half of one image's pixels is left out: each of the others weighs twice as much as in the other image."""
    nominal = np.full((400, 500), 0.1, np.float32)
    first, second = nominal.copy(), nominal.copy()
    first[0, :4] = 0.9  # 4 of 200,000 are 2e-5; the mean of both images 1e-5
    second[0, :18] = 0.8  # 18 of 100,000 are 1.8e-4; with the first image 1e-4
    half = np.ones((400, 500), bool)
    half[200:] = False
    scores, mask = nominal.copy(), np.zeros((400, 500), bool)
    mask[0, :8], scores[0, :2], scores[0, 2:6] = True, 0.95, 0.85
    empty = np.zeros_like(mask)
    pixels = measured([first, second, scores], [empty, empty, mask], [None, half, None])
    assert pixels.overlaps.aupimo()[2] == pytest.approx(6 / 8, abs=1e-9)


def test_too_few_nominal_pixels_leave_it_undefined_or_coarse():
    mask = np.zeros((90, 100), bool)
    mask[:5] = True
    scores = [np.full((90, 100), 0.2, np.float32)] * 13
    one = measured(scores[:2], [mask, ~mask & mask])
    assert np.isnan(one.overlaps.aupimo()).all() and "9,000" in one.overlaps.missing and one.overlaps.warning is None
    assert np.isnan(one.overlaps.resampled(np.ones((3, 2)))).all()
    two = measured(scores[:3], [mask, *[~mask & mask] * 2])
    assert two.overlaps.missing is None and two.overlaps.aupimo()[0] == 0 and "18,000" in two.overlaps.warning
    twelve = measured(scores, [mask, *[~mask & mask] * 12])  # 108,000
    assert twelve.overlaps.missing is None and twelve.overlaps.warning is None


def test_an_image_called_anomalous_is_no_nominal_one():
    """Its mask can have vanished: its false positives must not count."""
    pixels = PixelMetrics(keeps_images=True)
    mask = np.zeros((400, 400), bool)
    pixels.update(np.ones((400, 400), np.float32), mask, is_nominal=False)
    pixels.update(np.full((400, 400), 0.2, np.float32), mask)
    found = mask.copy()
    found[:4] = True
    pixels.update(np.where(found, 0.8, 0.2).astype(np.float32), found)
    assert pixels.overlaps.aupimo()[2] == 1


def test_resampled_means_are_nearly_those_of_the_images():
    maps, masks = made_up(20)
    pixels = measured(maps, masks)
    exact = np.nanmean(pixels.overlaps.aupimo())
    assert 0.05 < exact < 0.95
    assert pixels.overlaps.resampled(np.ones((1, 20)))[0] == pytest.approx(exact, abs=5e-3)
    weights = next(bootstrap.bootstrap_weights(np.arange(20) % 2, 3))
    for row in weights:
        places = np.repeat(np.arange(20), row.astype(int))
        repeated = measured([maps[i] for i in places], [masks[i] for i in places])
        drawn = pixels.overlaps.resampled(row[None])[0]
        assert drawn == pytest.approx(np.nanmean(repeated.overlaps.aupimo()), abs=5e-3)


def test_regions_of_all_images_together_give_pro():
    rng = np.random.default_rng(0)
    maps, masks = made_up(12)
    for i in range(12):
        masks[i][rng.integers(100, 190), rng.integers(0, 190) : 195] = i % 2
    maps = [np.round(scores, 2) for scores in maps]  # nominal and anomalous pixels share bins
    pixels = measured(maps, masks)
    regions, found = pixels.region_overlaps()
    assert found.sum() / regions.sum() == pytest.approx(pixels.compute()["pro"], abs=1e-7)
    assert (regions[::2] == 0).all() and (found[::2] == 0).all() and (regions[1::2] > 1).all()


def test_pro_of_single_images_by_hand():
    """Nominal: ten pixels from 0.1 to 1.0 in tenths. A region above all counts from a rate of 0 on, one at 0.9 too.

    A region of one pixel at 0.85 is found from a rate of 0.2 on: 1/3 of the range to 0.3.
    """
    nominal = (np.arange(1, 11, dtype=np.float32) / 10).reshape(1, 10)
    empty, one = np.zeros((1, 10), bool), np.arange(10)[None] == 0
    maps = [nominal, np.full((1, 10), 0.85, np.float32), np.full((1, 10), 1.0, np.float32)]
    pixels = PixelMetrics(keeps_images=True)
    pixels.update(maps[0], empty)
    for scores in maps[1:]:
        pixels.update(scores, one, one)  # nominal pixels of these images are left out
    regions, found = pixels.region_overlaps()
    assert regions.tolist() == [0, 1, 1]
    # 1.0 shares its bin with a nominal pixel: on the way from 0 to 0.1 it is found by half.
    np.testing.assert_allclose(found, [0, 1 / 3, (0.05 + 0.2) / 0.3], atol=1e-6)
