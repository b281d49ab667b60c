"""What stands in the curves, and in the panels of large pictures."""

import json

import cv2
import matplotlib.axes
import numpy as np
import pytest
from conftest import DRAWN

from reporting import curves, panels


@pytest.fixture
def legends(monkeypatch):
    """Texts of all legends that are drawn."""
    texts, legend = [], matplotlib.axes.Axes.legend

    def record(self, *arguments, **options):
        drawn = legend(self, *arguments, **options)
        texts.append([text.get_text() for text in drawn.get_texts()])
        return drawn

    monkeypatch.setattr(matplotlib.axes.Axes, "legend", record)
    return texts


def test_legends_show_areas_and_chance(workplace, cli, legends):
    sets = ("--set", "metrics.threshold=false", "--set", "train.epochs=1", *DRAWN)
    assert cli("--train", "--detection", *sets)[0] == 0
    values = json.loads((workplace / "results/tiny/tile/checkpoint_1/no_masking/optimal/metrics.json").read_text())
    said = [text for texts in legends for text in texts]
    names = {"image_auroc": "image, area", "pixel_auroc": "pixel, area", "image_ap": "image, area"}
    names |= {"pixel_ap": "pixel, area", "pro": "pixel, area (to 30 %)", "iou_max": "pixel, largest"}
    for key, name in names.items():
        assert f"{name} {values[key]:.3f}" in said
    assert said.count("chance") == 2 and "image, chance 0.500" in said
    [pixel] = [text for text in said if text.startswith("pixel, chance")]
    assert 0 < float(pixel.split()[-1]) < 0.3


def test_an_undefined_value_is_not_shown(tmp_path, legends):
    curve = {"fpr": np.array([0.0, 1]), "tpr": np.array([0.0, 1]), "threshold": np.array([np.inf, 0.1])}
    curves.curves(tmp_path / "a.png", "roc", "title", {"image": curve}, {"image": None}, {})
    assert legends == [["image", "chance"]] and (tmp_path / "a.png").stat().st_size > 1000


def test_panels_of_large_pictures_are_reduced_and_lose_no_defect():
    """Six planes of 3000 pixels side by side would be of no use; a defect of three pixels is still outlined."""
    image, truth = np.full((1500, 3000, 3), 90, np.uint8), np.zeros((1500, 3000), bool)
    truth[700:703, 1500:1503] = True
    scores = np.zeros((1500, 3000), np.float32)
    sheet = panels.panel(panels.PanelContent("one", "nominal", True, image, image, scores, truth, ~truth & False))
    assert sheet.shape[0] < 620 and sheet.shape[1] < 6 * 1032
    blue = (sheet[..., 0] > sheet[..., 2].astype(int) + 60).sum()
    assert 4 <= blue < 3000  # the outline and its word
    assert (sheet[100:560, 3 * 1030 : 4 * 1030] == 255).all(axis=2).any()  # the ground truth's plane
    for k in range(8):
        truth[60 + 97 * k, 200 + 331 * k] = True  # single pixels: nearest neighbours would lose most of them
    sheet = panels.panel(panels.PanelContent("one", "nominal", True, image, image, scores, truth, ~truth & False))
    plane = (sheet[55:550, 3 * 1030 + 2 : 4 * 1030 - 10] == 255).all(axis=2)
    assert cv2.connectedComponents(plane.astype(np.uint8))[0] - 1 == 9
