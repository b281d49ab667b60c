"""data/layouts: the forms of datasets: recognised, listed, refused."""

import json
import re
import shutil
from collections import Counter

import layout_fixtures
import numpy as np
import pytest
from conftest import make_dataset, write
from messages import assert_names, raises_user_error

from config import Config
from data import image_io
from data.folders import DatasetNotes
from data.layouts.registry import chosen_categories, list_categories, list_textures, nominal_if_there, open_category
from data.mvtec import split_nominal, with_masks_read


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


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_give_splits_labels_masks_and_groups(tmp_path, delimiter):
    layout_fixtures.tables(tmp_path, delimiter)
    category = open_category(settings(tmp_path, "gear"))
    assert counts_of(category) == (4, 2, 2, 3, 3) and kinds_of(category) == {"good": 2, "scratch": 2, "dent": 1}
    assert set(category.groups.values()) == {"part0", "part1", "part2", "part3"}
    assert [category.name(path) for path in category.nominal()] == [f"images/gear/{i}.png" for i in range(4, 8)]


def table_of(root, *rows, images=()):
    out = layout_fixtures.Writer(root)
    out.nominal(*images)
    out.rows("parts.csv", list(rows))
    return settings(root, "parts")


def test_a_table_of_paths_and_masks_says_what_is_anomalous_by_its_masks(tmp_path):
    names = [f"{i}.png" for i in range(5)]
    config = table_of(tmp_path, ("path", "mask"), *((name, "") for name in names), ("x.png", "m.png"), images=names)
    layout_fixtures.Writer(tmp_path).defect("x.png", "m.png")
    assert counts_of(open_category(config)) == (4, 0, 1, 1, 1)


def test_images_of_one_group_are_not_split(tmp_path):
    names = [f"{i}.png" for i in range(12)]
    rows = [(name, f"p{i // 3}") for i, name in enumerate(names)]
    category = open_category(table_of(tmp_path, ("path", "group"), *rows, images=names))
    trained, tested = (
        {category.groups[path] for path in paths}
        for paths in (category.nominal(), [one.path for one in category.test()])
    )
    assert not trained & tested and len(trained) == 3 and len(tested) == 1
    _, held_out = split_nominal(category.nominal(), 0.34, 0, None, None, category)
    assert len({category.groups[path] for path in held_out}) == 1 and len(held_out) == 3
    with raises_user_error("data.split_by"):
        split_nominal(category.nominal(), 0.34, 0, "(p)", None, category)


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([("file", "split", "label"), ("0.png", "train", "ok")], ["path"]),
        ([("path", "split"), ("0.png", "train"), ("1.png", "later")], ["1.png", "later"]),
        ([("path", "split"), ("0.png", "train"), ("1.png", "test")], ["1.png"]),
        ([("path", "label"), ("0.png", "ok"), ("1.png", "")], ["1.png"]),
        ([("path", "label"), ("0.png", "ok"), ("5.png", "ok")], ["5.png"]),
        ([("path", "label"), ("0.png", "ok"), ("0.png", "ok")], ["0.png"]),
        ([("path", "label", "mask"), ("0.png", "dent", "none.png")], ["none.png"]),
        (
            [("path", "split", "label", "group"), ("0.png", "train", "ok", "a"), ("1.png", "test", "ok", "a")],
            ["a", "train", "test"],
        ),
        ([("path", "label"), ("0.png", "ok", "more")], [2, 3]),
        ([("path", "label")], []),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, rows, names):
    config = table_of(tmp_path, *rows, images=["0.png", "1.png"])
    with raises_user_error(tmp_path / "parts.csv", *names):
        open_category(config)


def test_a_mask_that_marks_a_nominal_image_of_a_table_is_refused(tmp_path):
    config = table_of(tmp_path, ("path", "label", "mask"), ("0.png", "ok", "m.png"), images=["0.png"])
    layout_fixtures.Writer(tmp_path).defect("x.png", "m.png")
    with raises_user_error(tmp_path / "m.png", "0.png"):
        open_category(config)


@pytest.mark.parametrize(
    ("name", "category", "missing", "names"),
    [
        ("visa", "candle", "Data/Images/Normal/0003.JPG", ["1cls.csv", "0003.JPG"]),
        ("visa", "candle", "Data/Masks/Anomaly/001.png", ["1cls.csv", "001.png"]),
        ("kolektor_sdd", "KolektorSDD", "kos07/Part1_label.bmp", ["kos07/Part1.jpg", "Part1_label.bmp"]),
        ("kolektor_sdd2", "KolektorSDD2", "test/20001_GT.png", ["test/20001.png", "20001_GT.png"]),
        ("kolektor_sdd2", "KolektorSDD2", "train", ["kolektor", "train"]),
        ("dagm", "Class1", "Test", ["dagm", "Test", "Test/Label"]),
        ("dagm", "Class1", "Train/Label", ["dagm", "Train/Label"]),
        ("real_iad", "realiad_1024", "usb", ["usb.json"]),
        ("real_iad", "realiad_1024", "usb/OK/S0002", ["usb.json", re.compile("OK/S0002/.*4 more")]),
    ],
)
def test_other_forms_that_are_incomplete_are_refused(tmp_path, name, category, missing, names):
    getattr(layout_fixtures, name)(tmp_path)
    path = tmp_path / category / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with raises_user_error(*names):
        open_category(settings(tmp_path, "usb" if name == "real_iad" else category))


@pytest.mark.parametrize("missing", ["Data/Images/Normal", "Data/Images/Anomaly", "Data/Masks/Anomaly"])
def test_visa_without_a_split_needs_all_of_its_folders(tmp_path, missing):
    layout_fixtures.visa(tmp_path, has_table=False)
    shutil.rmtree(tmp_path / "candle" / missing)
    with raises_user_error(tmp_path / "candle", "visa", missing):
        open_category(settings(tmp_path, "candle"))


def test_a_table_beside_a_folder_of_its_name_is_refused(tmp_path):
    layout_fixtures.tables(tmp_path)
    make_dataset(tmp_path, "gear")
    (tmp_path / "mvtec/gear").rename(tmp_path / "gear")
    with raises_user_error("data.layout", "gear", "mvtec", "table"):
        open_category(settings(tmp_path, "gear"))
    assert list_categories(settings(tmp_path)) == ["gear"]
    assert list_categories(settings(tmp_path, layout="table")) == ["gear", "shaft"]
    assert chosen_categories(settings(tmp_path), None) == ["gear"]
    assert chosen_categories(settings(tmp_path), ["shaft"]) == ["shaft"]


def test_views_of_a_real_iad_sample_are_a_group_and_those_without_a_defect_nominal(tmp_path):
    layout_fixtures.real_iad(tmp_path)
    category = open_category(settings(tmp_path, "usb"))
    assert kinds_of(category) == {"good": 7, "HS": 3}
    assert Counter(category.groups[path] for path in category.nominal()) == {"OK/S0001": 5, "OK/S0002": 5}
    _, held_out = split_nominal(category.nominal(), 0.2, 0, None, None, category)
    assert len(held_out) == 5 and len({path.parent for path in held_out}) == 1


def test_of_several_sizes_of_real_iad_one_has_to_be_named(tmp_path):
    layout_fixtures.real_iad(tmp_path)
    shutil.copytree(tmp_path / "realiad_1024", tmp_path / "realiad_512")
    with raises_user_error("data.data_path", "realiad_1024", "realiad_512"):
        open_category(settings(tmp_path, "usb"))
    category = open_category(settings(tmp_path / "realiad_512", "usb"))
    assert category.folder == tmp_path / "realiad_512/usb" and len(category.nominal()) == 10


def test_a_real_iad_file_of_another_form_is_refused(tmp_path):
    layout_fixtures.real_iad(tmp_path)
    file = tmp_path / "realiad_jsons/realiad_jsons/usb.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: content[key] for key in ("meta", "train")}))
    with raises_user_error(file, "test"):
        open_category(settings(tmp_path, "usb"))


def own_folders(root, **values) -> Config:
    folders = {"nominal_folder": f"{root}/passed", "anomalous_folder": f"{root}/rejected"}
    return settings(root, "lid", **folders | values)


def test_two_folders_are_a_category(tmp_path):
    layout_fixtures.two_folders(tmp_path)
    category = open_category(own_folders(tmp_path))
    assert category.layout == "folders" and counts_of(category) == (8, 0, 2, 3, 3)
    assert kinds_of(category) == {"good": 2, "scratch": 3}
    assert category.test()[-1].name == "rejected/scratch/2.png"
    assert list_categories(own_folders(tmp_path)) == chosen_categories(own_folders(tmp_path), None) == ["lid"]
    alone = open_category(own_folders(tmp_path, anomalous_folder=None))
    assert len(alone.nominal()) == 10 and not alone.has_test


def test_two_folders_are_checked(tmp_path):
    layout_fixtures.two_folders(tmp_path)
    with raises_user_error("data.nominal_folder"):
        open_category(own_folders(tmp_path, nominal_folder=None))
    with raises_user_error("data.anomalous_folder", tmp_path / "none"):
        open_category(own_folders(tmp_path, anomalous_folder=f"{tmp_path}/none"))
    with raises_user_error("data.anomalous_folder", "data.nominal_folder"):
        open_category(own_folders(tmp_path, nominal_folder=f"{tmp_path}"))
    with raises_user_error("data.layout = visa", "data.nominal_folder"):
        open_category(own_folders(tmp_path, layout="visa"))
    with raises_user_error("data.layout = folders", "data.nominal_folder"):
        open_category(settings(tmp_path, layout="folders"))
    with raises_user_error("data.table", "data.nominal_folder"):
        open_category(own_folders(tmp_path, table="x.csv"))
    (tmp_path / "rejected/scratch/1_mask.png").unlink()
    with raises_user_error(tmp_path / "rejected/scratch/1.png"):
        open_category(own_folders(tmp_path))


def test_a_table_can_be_a_file_of_its_own_with_categories(tmp_path):
    layout_fixtures.tables(tmp_path)
    file = (tmp_path / "gear.csv").rename(tmp_path / "all.csv")
    lines = file.read_text().splitlines()
    alone = settings(tmp_path / "elsewhere", "all", table=file.as_posix())
    assert list_categories(alone) == ["all"] and counts_of(open_category(alone)) == (4, 2, 2, 3, 3)
    half = [f"{line},{'category' if i == 0 else 'a' if i % 2 else 'b'}" for i, line in enumerate(lines)]
    file.write_text("\n".join(half))
    several = settings(tmp_path / "elsewhere", "a", table=file.as_posix())
    assert chosen_categories(several, None) == ["a", "b"] and counts_of(open_category(several)) == (2, 1, 1, 2, 2)
    with raises_user_error("data.category = c", "a, b"):
        open_category(settings(tmp_path, "c", table=file.as_posix()))
    with raises_user_error("c", "a, b"):
        chosen_categories(several, ["c"])


def lids(root, **values) -> Config:
    return settings(root / "elsewhere", "lids", coco=f"{root}/annotations/lids.json", **values)


@pytest.mark.parametrize("has_split", [False, True])
def test_annotations_of_coco_are_masks(tmp_path, has_split):
    layout_fixtures.coco(tmp_path, has_split)
    category = open_category(lids(tmp_path))
    assert (category.layout, category.has_split) == ("coco", has_split)
    assert counts_of(category) == (8, 0, 2, 3, 3) and kinds_of(category) == {"good": 2, "crack": 2, "hole": 1}
    masks = {one.path.name: image_io.read_mask(one.masks[0], (40, 48)) > 0 for one in category.test() if one.masks}
    expected = {name: np.zeros((40, 48), bool) for name in masks}
    expected["10.png"][6:11, 4:14] = True
    expected["11.png"][20:23, 10:16] = True
    expected["12.png"].T.flat[45:55] = True  # column by column
    assert all((masks[name] == expected[name]).all() for name in masks) and len(masks) == 3


def test_a_wrong_file_of_annotations_is_refused(tmp_path):
    layout_fixtures.coco(tmp_path)
    file = tmp_path / "annotations/lids.json"
    content = json.loads(file.read_text())

    def refused(*names, **changes):
        file.write_text(json.dumps(content | changes))
        with raises_user_error(*names):
            open_category(lids(tmp_path))

    file.write_text(json.dumps({"images": []}))
    with raises_user_error(file, "annotations"):
        open_category(lids(tmp_path))
    file.write_text("{")
    with raises_user_error("data.coco"):
        open_category(lids(tmp_path))
    refused(file, 999, annotations=[{"image_id": 999, "bbox": [0, 0, 1, 1]}])
    refused(file, "10.png", annotations=[{"image_id": 110, "segmentation": [[1, 2, 3]]}])
    refused(file, "10.png", annotations=[{"image_id": 110, "segmentation": {"size": [40, 48], "counts": [5]}}])
    refused(file, "bbox", annotations=[{"image_id": 110}])
    refused(file, "1.png", images=[content["images"][0] | {"split": "train"}, *content["images"][1:]])
    refused(file, "0.png", images=[*content["images"], content["images"][0] | {"id": 7}])
    (tmp_path / "images/5.png").unlink()
    refused(file, "5.png")
    shutil.rmtree(tmp_path / "images")
    refused(file, "data.data_path")


def test_textures_among_the_images_of_a_dataset_are_refused(tmp_path):
    layout_fixtures.two_folders(tmp_path)
    config = own_folders(tmp_path, anomaly_source_path=f"{tmp_path}")
    with raises_user_error("data.anomaly_source_path", tmp_path / "passed"):
        list_textures(config, open_category(config))
