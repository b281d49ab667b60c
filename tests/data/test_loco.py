"""data/layouts/loco.py: defects_config.json of MVTec LOCO."""

import json

import layout_fixtures
import numpy as np
import pytest
from conftest import write

from data.layouts import loco
from data.layouts.tree import open_tree
from data.mvtec import with_masks_read
from runtime.errors import UserError

ENTRY = {"defect_name": "missing", "pixel_value": 254, "saturation_threshold": 10, "relative_saturation": False}


def test_each_mask_has_the_saturation_of_its_value(tmp_path):
    """Masks of 12 x 14 pixels: 254 saturates at 10 of them, 255 where all are found."""
    layout_fixtures.loco(tmp_path)
    category = open_tree("mvtec", tmp_path / "pushpins")
    samples, _ = with_masks_read(category.test(), (40, 48))
    found = {one.name: one.saturation for one in samples}
    assert found["test/logical_anomalies/000.png"] == (1, 10 / 168)
    assert found["test/logical_anomalies/001.png"] == (10 / 168,)
    assert found["test/structural_anomalies/000.png"] == (1,) and found["test/good/000.png"] == ()
    (tmp_path / "pushpins/defects_config.json").unlink()
    samples, _ = with_masks_read(category.test(), (40, 48))
    assert {one.saturation for one in samples} == {()} and {one.defects_config for one in samples} == {None}


@pytest.mark.parametrize(
    ("threshold", "is_relative", "share"),
    [(0.5, True, 0.5), (0.33, True, 3 / 10), (0.01, True, 1 / 10), (4, False, 0.4), (400, False, 1.0)],
)
def test_saturation_is_in_whole_pixels_of_the_mask(tmp_path, threshold, is_relative, share):
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4, :5] = 7
    path = write(tmp_path / "000.png", mask)
    config = {7: loco.Saturation(threshold, is_relative)}
    assert loco.saturation(path, config, tmp_path / loco.CONFIG) == pytest.approx(share)
    assert loco.saturation(write(path, 0 * mask), config, tmp_path / loco.CONFIG) == 1


@pytest.mark.parametrize(
    "entries",
    [
        [{}],
        [ENTRY, ENTRY],
        [ENTRY | {"pixel_value": 0}],
        [ENTRY | {"pixel_value": "254"}],
        [ENTRY | {"saturation_threshold": 0}],
        [ENTRY | {"relative_saturation": True}],
        [ENTRY | {"relative_saturation": 1}],
        {"a": 1},
        None,
    ],
    ids=str,
)
def test_a_malformed_configuration_is_named(tmp_path, entries):
    path = tmp_path / loco.CONFIG
    path.write_text(json.dumps(entries) if entries else "[")
    with pytest.raises(UserError) as error:
        loco.read_config(path)
    assert error.value.subject == str(path) and "remove" in error.value.fix


def test_masks_that_fit_no_entry_are_named_and_a_malformed_configuration_by_the_check(tmp_path, call):
    layout_fixtures.loco(tmp_path)
    config = tmp_path / "pushpins/defects_config.json"
    config.write_text(json.dumps([ENTRY]))
    mask = tmp_path / "pushpins/ground_truth/logical_anomalies/000/000.png"
    samples = open_tree("mvtec", tmp_path / "pushpins").test()
    with pytest.raises(UserError) as error:
        with_masks_read(samples, (40, 48))
    assert error.value.subject == str(mask) and "255" in error.value.problem
    stored = np.zeros((40, 48), np.uint8)
    stored[10:20, 10:15], stored[10:20, 15:20] = 254, 253
    with pytest.raises(UserError):
        loco.saturation(write(mask, stored), loco.read_config(config), config)
    config.write_text("{")
    data = [f"data.data_path={tmp_path}", "data.category=pushpins", "data.layout=mvtec"]
    flags = [word for one in data for word in ("--set", one)]
    status, out, error = call("main", "--check", *flags)
    assert status == 2 and str(config) in out + error
