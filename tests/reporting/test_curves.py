"""What stands in the curves."""

import json

import matplotlib.axes
import numpy as np
import pytest

from reporting import curves


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
    assert cli("--train", "--detection", "--set", "metrics.threshold=false", "--set", "train.epochs=1")[0] == 0
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
    curves.curves(tmp_path / "a.png", "roc", "title", "fpr", "tpr", {"image": curve}, {"image": None}, {})
    assert legends == [["image", "chance"]] and (tmp_path / "a.png").stat().st_size > 1000
