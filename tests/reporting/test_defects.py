"""reporting/paper/defects.py: metrics of each kind of defect."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from data.mvtec import TestSample
from evaluation.thresholds import Thresholds
from inference.detect import NetworkOutput
from reporting.measurements import Measurements
from reporting.paper import defects

SHAPE = (40, 40)


def measured(share: float | None = None) -> Measurements:
    """Eight nominal images, four scratches that are found, six spots that are not, two stains without a mask.

    share: of a mask's pixels from which on its overlap is complete; None: masks do not saturate.
    """
    kinds = ["good"] * 8 + ["scratch"] * 4 + ["spot"] * 6 + ["stain"] * 2
    samples = []
    for i, kind in enumerate(kinds):
        masks = (Path("m.png"),) if kind in ("scratch", "spot") else ()
        saturation = (share,) if masks and share else ()
        samples.append(
            TestSample(Path(f"{i}.png"), kind != "good", f"test/{kind}/{i}.png", masks, saturation=saturation)
        )
    found, rng, image = Measurements(samples), np.random.default_rng(0), np.zeros((*SHAPE, 3), np.float32)
    for idx, kind in enumerate(kinds):
        mask = np.zeros(SHAPE, bool)
        if samples[idx].masks:
            mask[10:20, 10:20] = mask[30:34, 5:30] = True
        height = {"good": 0.0, "scratch": 0.5, "spot": 0.02, "stain": 0.5}[kind]
        scores = (0.2 + 0.2 * rng.random(SHAPE) + height * (mask | (kind == "stain"))).astype(np.float32)
        found.update(NetworkOutput(idx, image, image, scores, mask, defects=[mask] if samples[idx].saturation else []))
    return found


def test_each_kind_is_measured_against_all_nominal_images():
    found = measured()
    rows = defects.over_all_thresholds(found)
    assert [(row["defect"], row["images"]) for row in rows] == [("scratch", 4), ("spot", 6), ("stain", 2)]
    scratch, spot, stain = rows
    nominal, scores = found.scores[:8], found.scores[12:18]
    assert scratch["image_auroc"] == stain["image_auroc"] == 1 and scratch["pro"] == pytest.approx(1)
    assert spot["image_auroc"] == pytest.approx((scores[:, None] > nominal).mean())
    assert stain["pro"] is None and stain["pro_low"] is None
    for row, key in ((scratch, "image_auroc"), (scratch, "pro"), (spot, "image_auroc"), (spot, "pro")):
        low, high = row[f"{key}_low"], row[f"{key}_high"]
        assert 0 <= low <= row[key] <= high <= 1 and high - low > 0.1
    # Kinds weighted by their regions (two in each image) give the PRO of all.
    values = found.metrics_at(Thresholds("manual", None, None))
    assert (8 * scratch["pro"] + 12 * spot["pro"]) / 20 == pytest.approx(values["pro"], abs=1e-6)


def test_spro_is_of_the_masks_of_a_kind_and_shown_only_where_overlaps_saturate():
    found = measured(share=0.4)
    scratch, spot, stain = rows = defects.over_all_thresholds(found)
    value = found.metrics_at(Thresholds("manual", None, None))["spro_05"]
    assert (4 * scratch["spro_05"] + 6 * spot["spro_05"]) / 10 == pytest.approx(value, abs=1e-6)
    assert scratch["spro_05"] == pytest.approx(1) and spot["spro_05"] < 0.9 and stain["spro_05"] is None
    assert 0 <= spot["spro_05_low"] < spot["spro_05"] < spot["spro_05_high"] <= 1
    assert "sPRO" in defects.text(defects.at_threshold(rows, found, 0.5)) and defects.for_page(rows)[0]["spro_05"]
    without = defects.over_all_thresholds(measured())
    assert {row["spro_05"] for row in without} == {None}
    assert "sPRO" not in defects.text(defects.at_threshold(without, found, 0.5))
    assert "spro_05" not in defects.for_page(without)[0]


def test_recall_is_of_the_images_above_the_threshold():
    found = measured()
    threshold = float(np.sort(found.scores[12:18])[3])  # two of the six spots are above it, it itself is not
    rows = defects.at_threshold(defects.over_all_thresholds(found), found, threshold)
    assert [row["recall"] for row in rows] == pytest.approx([1, 2 / 6, 1])
    exact = binomtest(2, 6).proportion_ci(method="exact")
    assert (rows[1]["recall_low"], rows[1]["recall_high"]) == pytest.approx((exact.low, exact.high))
    written = defects.cells(rows)
    assert written[0] == list(defects.COLUMNS) and written[3][5:8] == ["", "", ""]
    lines = defects.text(rows).splitlines()
    assert len(lines) == 4 and "0.3333 [0.04, 0.78]" in lines[2] and lines[3].split()[:3] == ["stain", "2", "1.0000"]
    without = defects.at_threshold(rows, found, None)
    assert {row["recall"] for row in without} == {None}
    shown = defects.for_page(rows)
    assert shown[1]["recalls"][2] == [0.0433, 0.7772] and len(shown[1]["recalls"]) == 7 and shown[2]["pro"] == "–"


def test_without_nominal_images_or_anomalies_nothing_is_made_up():
    image = np.zeros((*SHAPE, 3), np.float32)
    for has_anomaly in (True, False):
        samples = [TestSample(Path("a.png"), has_anomaly, "test/kind/a.png")]
        found = Measurements(samples)
        found.update(NetworkOutput(0, image, image, image[..., 0] + np.float32(0.3), np.zeros(SHAPE, bool)))
        rows = defects.at_threshold(defects.over_all_thresholds(found), found, 0.1)
        if has_anomaly:
            assert rows[0]["image_auroc"] is rows[0]["pro"] is None and rows[0]["recall"] == 1
        else:
            assert rows == [] and defects.text(rows) == ""
