"""data/layouts: the forms of datasets: recognised, listed, refused."""

import shutil

import layout_fixtures
import pytest
from conftest import make_dataset, write
from layout_fixtures import counts_of, kinds_of, lids, own_folders, settings
from messages import assert_names, raises_user_error

from data.folders import DatasetNotes
from data.layouts.registry import chosen_categories, list_categories, nominal_if_there, open_category
from data.mvtec import with_masks_read

TREES = {
    "loco": ("mvtec", ["breakfast_box", "pushpins"], (6, 2, 2, 3, 3)),
    "mpdd": ("mvtec", ["connector", "tubes"], (7, 0, 2, 3, 3)),
    "btad": ("btad", ["01", "03"], (7, 0, 2, 3, 3)),
    "mvtec_ad_2": ("mvtec-ad-2", ["can", "vial"], (6, 2, 2, 3, 3)),
    "mvtec_3d": ("mvtec-3d", ["bagel", "rope"], (6, 2, 2, 3, 3)),
}
OTHERS = {
    "visa": ("visa", ["candle", "pcb1"], (8, 0, 2, 3, 3)),
    "kolektor_sdd": ("kolektor", ["KolektorSDD"], None),
    "kolektor_sdd2": ("kolektor", ["KolektorSDD2"], (7, 0, 2, 3, 3)),
    "dagm": ("dagm", ["Class1", "Class10"], (7, 0, 2, 3, 3)),
    "real_iad": ("real-iad", ["audiojack", "usb"], (10, 0, 7, 3, 3)),
    "tables": ("table", ["gear", "shaft"], (4, 2, 2, 3, 3)),
}
ALL = TREES | OTHERS


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("is_named", [False, True])
def test_forms_are_recognised(tmp_path, name, is_named):
    layout, categories, counts = ALL[name]
    getattr(layout_fixtures, name)(tmp_path)
    values = {"layout": layout if is_named else "auto"}
    assert list_categories(settings(tmp_path, **values)) == categories
    assert chosen_categories(settings(tmp_path, **values), categories[-1:]) == categories[-1:]
    for category in categories:
        config = settings(tmp_path, category, **values)
        found = open_category(config)
        assert found.layout == layout and counts in (None, counts_of(found))
        assert nominal_if_there(config) == found.nominal()
        samples, warnings = with_masks_read(found.test(), (40, 48))
        assert not warnings and not any(one.has_empty_mask for one in samples if one.has_anomaly)


@pytest.mark.parametrize("name", ["loco", "visa", "kolektor_sdd2", "real_iad", "tables"])
def test_the_folder_above_a_dataset_is_an_error_that_names_the_dataset(tmp_path, name):
    layout_fixtures.__dict__[name](tmp_path / "downloads/set")
    categories = list_categories(settings(tmp_path / "downloads/set"))
    config = settings(tmp_path / "downloads", categories[0])
    with raises_user_error("data.data_path", categories[0], f"data.data_path={tmp_path}/downloads/set"):
        open_category(config)
    with raises_user_error("data.data_path", categories[0], f"data.data_path={tmp_path}/downloads/set"):
        chosen_categories(config, None)


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
    with raises_user_error(tmp_path / "01", "mvtec-3d", "train/good/rgb"):
        open_category(settings(tmp_path, "01", layout="mvtec-3d"))
    assert open_category(settings(tmp_path, "01", layout="mvtec")).layout == "mvtec"  # it is that, too


@pytest.mark.parametrize(
    ("name", "category"), [("kolektor_sdd", "KolektorSDD"), ("dagm", "Class1"), ("visa", "candle")]
)
def test_a_category_given_as_the_dataset_is_refused_with_the_fix(tmp_path, name, category):
    getattr(layout_fixtures, name)(tmp_path)
    with raises_user_error("data.data_path", f"data.data_path={tmp_path}", f"data.category={category}"):
        open_category(settings(tmp_path / category))


@pytest.mark.parametrize("layout", ["mvtec-ad-2", "visa", "kolektor", "dagm", "real-iad", "table"])
def test_a_named_form_without_a_category_of_it_is_refused(tmp_path, layout):
    make_dataset(tmp_path)
    with raises_user_error("tile", layout):
        open_category(settings(tmp_path / "mvtec", "tile", layout=layout))
    with raises_user_error("wood", layout):
        open_category(settings(tmp_path / "mvtec", "wood", layout=layout))
    with raises_user_error("mvtec"):
        chosen_categories(settings(tmp_path / "mvtec", layout=layout), None)


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


def test_the_split_of_visa_is_that_of_its_table(tmp_path):
    layout_fixtures.visa(tmp_path)
    category = open_category(settings(tmp_path, "candle"))
    assert [path.name for path in category.nominal()] == [f"{i:04}.JPG" for i in range(8)]
    test = {one.name: [mask.relative_to(tmp_path).as_posix() for mask in one.masks] for one in category.test()}
    assert list(test)[:2] == ["Data/Images/Normal/0008.JPG", "Data/Images/Normal/0009.JPG"]
    assert test["Data/Images/Anomaly/002.JPG"] == ["candle/Data/Masks/Anomaly/002.png"]


def test_without_a_split_a_share_of_the_nominal_images_is_held_out_for_the_test(tmp_path):
    layout_fixtures.visa(tmp_path, has_table=False)
    config, notes = settings(tmp_path, "candle", test_split=0.3), DatasetNotes()
    category = open_category(config)
    assert counts_of(category) == (7, 0, 3, 3, 3)
    test = {one.path for one in category.test(notes)}
    assert not test & set(category.nominal())
    assert_names("\n".join(notes.lines()), "data.test_split", 3, 10)
    assert {one.path for one in open_category(config).test()} == test
    others = [
        open_category(settings(tmp_path, "candle", test_split=0.3, test_seed=seed)).test() for seed in range(1, 4)
    ]
    assert any({one.path for one in other} != test for other in others)
    assert counts_of(open_category(settings(tmp_path, "candle", test_split=0.0))) == (10, 0, 0, 3, 3)
    with raises_user_error("data.test_split = 0.01", 10):
        open_category(settings(tmp_path, "candle", test_split=0.01))


@pytest.mark.parametrize("name", ["visa", "kolektor_sdd", "coco", "two_folders"])
def test_a_moved_dataset_has_the_same_test_images(tmp_path, name):
    def names(root):
        config = {
            "visa": lambda: settings(root, "candle"),
            "kolektor_sdd": lambda: settings(root, "KolektorSDD"),
            "coco": lambda: lids(root),
            "two_folders": lambda: own_folders(root),
        }[name]()
        category = open_category(config)
        return [one.name for one in category.test()], [category.key(path) for path in category.nominal()]

    getattr(layout_fixtures, name)(tmp_path / "a")
    shutil.rmtree(tmp_path / "a/split_csv", ignore_errors=True)
    before = names(tmp_path / "a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").rename(tmp_path / "elsewhere/b")
    assert names(tmp_path / "elsewhere/b") == before


def test_an_added_image_moves_few_others_between_training_and_test(tmp_path):
    layout_fixtures.visa(tmp_path, has_table=False)
    config = settings(tmp_path, "candle", test_split=0.3)
    before = set(open_category(config).nominal())
    layout_fixtures.Writer(tmp_path).nominal("candle/Data/Images/Normal/0010.JPG")
    assert len(before - set(open_category(config).nominal())) <= 1


def test_whole_items_of_kolektor_sdd_are_held_out_for_the_test(tmp_path):
    layout_fixtures.kolektor_sdd(tmp_path)
    notes = DatasetNotes()
    category = open_category(settings(tmp_path, "KolektorSDD", test_split=0.4))
    test, trained = category.test(notes), {path.parent.name for path in category.nominal()}
    tested = {one.path.parent.name for one in test}
    assert not trained & tested and len(trained | tested) == 10
    defective = {f"kos{item:02}" for item in range(1, 6)}
    assert sum(one.has_anomaly for one in test) == len(tested & defective)
    assert len(notes.skipped["anomalous images of groups that are trained on"]) == len(trained & defective) > 0
    assert not any(one.masks for one in test if not one.has_anomaly)


@pytest.mark.parametrize(
    ("name", "category", "what"),
    [("kolektor_sdd2", "KolektorSDD2", "train/10007.png"), ("dagm", "Class1", "Train/0583.PNG")],
)
def test_defective_training_images_are_left_out_and_counted(tmp_path, name, category, what):
    getattr(layout_fixtures, name)(tmp_path)
    notes = DatasetNotes()
    found = open_category(settings(tmp_path, category))
    assert tmp_path / category / what not in found.nominal(notes)
    assert_names("\n".join(notes.lines()), 1, what)
