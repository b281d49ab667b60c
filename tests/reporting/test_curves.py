"""reporting/curves.py: legends of the curves."""

import json

import matplotlib.axes
import numpy as np
import pytest
from conftest import DRAWN
from messages import assert_line, lines_with

from reporting import curves


@pytest.fixture
def legends(monkeypatch):
    """Texts of all legends, recorded at matplotlib: of the files only pixels are left."""
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
    text = "\n".join(said)
    for key in ("image_auroc", "pixel_auroc", "image_ap", "pixel_ap", "iou_max"):
        assert_line(text, key.partition("_")[0].replace("iou", "pixel"), f"{values[key]:.3f}")
    assert_line(text, "pixel", "30 %", f"{values['pro']:.3f}")
    assert said.count("chance") == 2
    assert_line(text, "image", "chance", "0.500")
    [pixel] = lines_with(text, "pixel", "chance")
    assert 0 < float(pixel.split()[-1]) < 0.3


def test_an_undefined_value_is_not_in_the_legend(tmp_path, legends):
    curve = {"fpr": np.array([0.0, 1]), "tpr": np.array([0.0, 1]), "threshold": np.array([np.inf, 0.1])}
    curves.curves(tmp_path / "a.png", "roc", "title", {"image": curve}, {"image": None}, {})
    assert legends == [["image", "chance"]] and (tmp_path / "a.png").stat().st_size > 1000
