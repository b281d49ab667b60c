"""evaluation/metrics.py: sPRO, by hand and by brute force."""

import numpy as np
import pytest
from sklearn.metrics import auc

from evaluation import bootstrap
from evaluation.metrics import PixelMetrics, saturated_overlap


def brute_force(maps, masks, defects):
    """Every score a threshold; the overlap of each defect is cut off where it is complete."""
    thresholds = np.unique(np.concatenate([one.ravel() for one in maps]))[::-1][:3000]  # to rates above 0.05
    nominal = np.concatenate([scores[~mask] for scores, mask in zip(maps, masks, strict=True)])
    fpr, spro = [0.0], [0.0]
    for threshold in thresholds:
        fpr.append((nominal >= threshold).mean())
        overlaps = [
            min((scores[defect] >= threshold).sum() / (share * defect.sum()), 1)
            for scores, own in zip(maps, defects, strict=True)
            for defect, share in own
        ]
        spro.append(np.mean(overlaps))
    inside = np.searchsorted(fpr, 0.05, side="right")
    return auc([*fpr[:inside], 0.05], [*spro[:inside], np.interp(0.05, fpr, spro)]) / 0.05


def made_up(seed):
    rng, maps, masks, defects = np.random.default_rng(seed), [], [], []
    for i in range(8):
        own = []
        for _ in range(i % 3):
            y, x = rng.integers(0, 30, 2)
            defect = np.zeros((48, 48), bool)
            defect[y : y + rng.integers(3, 18), x : x + rng.integers(3, 18)] = True  # they can overlap
            own.append((defect, float(rng.uniform(0.05, 1))))
        mask = np.any([np.zeros((48, 48), bool), *(defect for defect, _ in own)], axis=0)
        maps.append((1 / (1 + np.exp(2 - rng.normal(size=mask.shape) - 1.5 * mask))).astype(np.float32))
        masks.append(mask)
        defects.append(own)
    return maps, masks, defects


def measured(maps, masks, defects):
    pixels = PixelMetrics(keeps_images=True)
    for scores, mask, own in zip(maps, masks, defects, strict=True):
        pixels.update(scores, mask, defects=own)
    return pixels


def test_the_highest_pixels_of_a_defect_fill_its_overlap():
    """Five pixels that saturate at half of them: 2.5 pixels, so 1 / 2.5 each, and half of that for the third."""
    bins, weights = saturated_overlap(np.array([3, 9, 1, 7, 5]), 0.5)
    assert bins.tolist() == [9, 7, 5] and weights == pytest.approx([0.4, 0.4, 0.2])
    assert saturated_overlap(np.array([3, 9]), 1)[1].tolist() == [0.5, 0.5]


def test_spro_by_hand():
    """Forty nominal pixels: one at 0.8 (a rate of 0.025), one at 0.6 (0.05). A defect of four pixels, of which two do.

    One is above 0.8, one between: 1/2 up to the rate of 0.025, then complete. PRO has 1/4, then 1/2.
    """
    scores = np.full((4, 11), 0.1, np.float32)
    scores[0, 0], scores[0, 1] = 0.8, 0.6
    mask = np.zeros((4, 11), bool)
    mask[3, :4] = True
    scores[3, :4] = 0.9, 0.7, 0.2, 0.2
    pixels = PixelMetrics()
    pixels.update(scores, mask, defects=[(mask, 0.5)])
    values = pixels.compute()
    assert values["spro_05"] == pytest.approx((0.5 + 1) / 2) and values["pro_05"] == pytest.approx((0.25 + 0.5) / 2)


@pytest.mark.parametrize("seed", range(2))
def test_spro_agrees_with_brute_force(seed):
    maps, masks, defects = made_up(seed)
    assert measured(maps, masks, defects).compute()["spro_05"] == pytest.approx(
        brute_force(maps, masks, defects), abs=1e-4
    )


def test_without_saturation_it_is_pro_with_a_region_for_each_defect():
    maps, masks, defects = made_up(1)
    whole = [[(defect, 1.0) for defect, _ in own[:1]] for own in defects]
    masks = [
        np.any([mask & False, *(defect for defect, _ in own)], axis=0) for mask, own in zip(masks, whole, strict=True)
    ]
    values = measured(maps, masks, whole).compute()
    assert values["spro_05"] == pytest.approx(values["pro_05"], abs=1e-12)


def test_pixels_that_are_left_out_do_not_count():
    maps, masks, defects = made_up(2)
    valid = np.ones((48, 48), bool)
    valid[:, 24:] = False
    pixels = PixelMetrics()
    for scores, mask, own in zip(maps, masks, defects, strict=True):
        pixels.update(scores, mask, valid, defects=own)
    halves = [[(one[:, :24], share) for one, share in own if one[:, :24].any()] for own in defects]
    expected = brute_force([one[:, :24] for one in maps], [one[:, :24] for one in masks], halves)
    assert pixels.compute()["spro_05"] == pytest.approx(expected, abs=1e-4)


def test_it_is_undefined_without_defects_that_saturate():
    maps, masks, defects = made_up(0)
    assert measured(maps, masks, [[] for _ in defects]).compute()["spro_05"] is None
    assert PixelMetrics().compute()["spro_05"] is None


def test_resampled_values_are_nearly_those_of_the_images():
    maps, masks, defects = made_up(3)
    pixels = measured(maps, masks, defects)
    weights = np.array([[1.0] * 8, [2, 0, 1, 1, 1, 2, 0, 1]])
    drawn = bootstrap.resampled_pixel_metrics(pixels.images, weights, {"": 0})[""]["spro_05"]
    for row, value in zip(weights, drawn, strict=True):
        places = np.repeat(np.arange(8), row.astype(int))
        repeated = measured(*([one[i] for i in places] for one in (maps, masks, defects)))
        assert value == pytest.approx(repeated.compute()["spro_05"], abs=5e-3)


def test_what_single_images_add_is_together_spro():
    maps, masks, defects = made_up(4)
    pixels = measured([np.round(one, 2) for one in maps], masks, defects)  # nominal and anomalous pixels share bins
    counts, found = pixels.saturated_overlaps()
    assert counts.tolist() == [len(own) for own in defects]
    assert found.sum() / counts.sum() == pytest.approx(pixels.compute()["spro_05"], abs=1e-7)
    assert (found[counts == 0] == 0).all() and (found <= counts).all()
