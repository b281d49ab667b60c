"""data/layouts: the forms of datasets: recognised, listed, refused."""

import shutil
from collections import Counter

import layout_fixtures
import pytest
from conftest import make_dataset, write
from messages import assert_names, raises_user_error

from config import Config
from data.folders import DatasetNotes
from data.layouts.registry import chosen_categories, list_categories, nominal_if_there, open_category
from data.mvtec import with_masks_read


def settings(root, category="bottle", **values) -> Config:
    own = {"data_path": root.as_posix(), "category": category} | values
    return Config().with_values({f"data.{key}": value for key, value in own.items()})


def kinds_of(category) -> Counter:
    return Counter(one.kind for one in category.test())


def counts_of(category) -> tuple[int, int, int, int, int]:
    """Training, validation, nominal test and anomalous test images, and how many of these have masks."""
    test = category.test()
    anomalous = [one for one in test if one.has_anomaly]
    masked = sum(bool(one.masks) for one in anomalous)
    return len(category.nominal()), len(category.validation()), len(test) - len(anomalous), len(anomalous), masked


TREES = {
    "loco": ("mvtec", ["breakfast_box", "pushpins"], (6, 2, 2, 3, 3)),
    "btad": ("btad", ["01", "03"], (6, 0, 2, 3, 3)),
    "mvtec_ad_2": ("mvtec-ad-2", ["can", "vial"], (6, 2, 2, 3, 3)),
    "mvtec_3d": ("mvtec-3d", ["bagel", "rope"], (6, 2, 2, 3, 3)),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("is_named", [False, True])
def test_relatives_of_mvtec_ad_are_recognised(tmp_path, name, is_named):
    layout, categories, counts = TREES[name]
    getattr(layout_fixtures, name)(tmp_path)
    values = {"layout": layout if is_named else "auto"}
    assert list_categories(settings(tmp_path, **values)) == categories
    assert chosen_categories(settings(tmp_path, **values), [categories[1]]) == categories[1:]
    for category in categories:
        config = settings(tmp_path, category, **values)
        found = open_category(config)
        assert (found.layout, counts_of(found)) == (layout, counts)
        assert nominal_if_there(config) == found.nominal()
        samples, warnings = with_masks_read(found.test(), (40, 48))
        assert not warnings and not any(one.has_empty_mask for one in samples if one.has_anomaly)


def test_all_masks_of_a_loco_image_are_taken(tmp_path):
    layout_fixtures.loco(tmp_path)
    found = open_category(settings(tmp_path, "pushpins"))
    assert kinds_of(found) == {"good": 2, "logical_anomalies": 2, "structural_anomalies": 1}
    masks = {one.name: len(one.masks) for one in found.test() if one.has_anomaly}
    assert masks["test/logical_anomalies/000.png"] == 2 and masks["test/logical_anomalies/001.png"] == 1


def test_private_test_sets_are_left_out_and_named(tmp_path):
    layout_fixtures.mvtec_ad_2(tmp_path)
    notes = DatasetNotes()
    samples = open_category(settings(tmp_path, "can")).test(notes)
    assert {one.name.split("/")[0] for one in samples} == {"test_public"}
    assert_names("\n".join(notes.lines()), "test_private", "test_private_mixed", "--predict")


@pytest.mark.parametrize(
    ("name", "layout", "category", "missing"),
    [
        ("mvtec_ad_2", "mvtec-ad-2", "can", "validation/good"),
        ("mvtec_ad_2", "mvtec-ad-2", "can", "test_public/ground_truth/bad"),
        ("mvtec_ad_2", "mvtec-ad-2", "can", "train/good"),
        ("mvtec_3d", "mvtec-3d", "rope", "test/crack/gt"),
        ("mvtec_3d", "mvtec-3d", "rope", "train/good/rgb"),
    ],
)
def test_a_tree_that_nearly_has_a_form_is_refused_with_what_is_missing(tmp_path, name, layout, category, missing):
    getattr(layout_fixtures, name)(tmp_path)
    shutil.rmtree(tmp_path / category / missing)
    with raises_user_error(tmp_path / category, layout, missing):
        open_category(settings(tmp_path, category))


def test_a_named_form_that_a_category_does_not_have_is_refused(tmp_path):
    layout_fixtures.btad(tmp_path)
    with raises_user_error("data.layout = mvtec-3d", "btad"):
        open_category(settings(tmp_path, "01", layout="mvtec-3d"))
    assert open_category(settings(tmp_path, "01", layout="mvtec")).layout == "mvtec"  # it is that, too


def test_a_category_of_two_forms_is_refused_unless_one_is_named(tmp_path):
    layout_fixtures.mvtec_ad_2(tmp_path)
    shutil.copytree(tmp_path / "can/test_public", tmp_path / "can/test", ignore=lambda *_: ["ground_truth"])
    with raises_user_error("data.layout", "mvtec", "mvtec-ad-2"):
        open_category(settings(tmp_path, "can"))
    assert open_category(settings(tmp_path, "can", layout="mvtec-ad-2")).layout == "mvtec-ad-2"
    assert nominal_if_there(settings(tmp_path, "can")) == []


def test_an_unknown_category_names_those_that_exist(tmp_path):
    layout_fixtures.mvtec_ad_2(tmp_path)
    make_dataset(tmp_path)
    (tmp_path / "mvtec/tile").rename(tmp_path / "tile")
    with raises_user_error("data.category = bottle", "can", "tile", "vial"):
        open_category(settings(tmp_path))
    with raises_user_error("bottle", "can", "tile", "vial"):
        chosen_categories(settings(tmp_path), ["bottle"])
    write(tmp_path / "photos/0.png", layout_fixtures.nominal(layout_fixtures.Writer(tmp_path).rng))
    with raises_user_error(tmp_path / "photos", "train/good"):
        open_category(settings(tmp_path, "photos"))
