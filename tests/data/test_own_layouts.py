"""data/layouts: tables, two folders and annotations of one's own, and forms that are incomplete."""

import json
import re
import shutil
from collections import Counter

import layout_fixtures
import numpy as np
import pytest
from conftest import make_dataset
from layout_fixtures import counts_of, kinds_of, lids, own_folders, settings
from messages import assert_names, raises_user_error

from data import image_io
from data.folders import DatasetNotes
from data.layouts.registry import chosen_categories, list_categories, list_textures, open_category
from data.mvtec import split_nominal


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


def test_another_split_of_real_iad_is_used_where_it_is_named(tmp_path):
    layout_fixtures.real_iad(tmp_path)
    jsons, notes = tmp_path / "realiad_jsons", DatasetNotes()
    content = json.loads((jsons / "realiad_jsons/usb.json").read_text())
    content["train"] = content["train"][::5] + [one for one in content["test"] if one["anomaly_class"] == "HS"][:1]
    content["test"] = content["test"][::5]
    for folder in ("realiad_jsons_sv", "realiad_jsons_fuiad_0.1"):
        (jsons / folder).mkdir()
        (jsons / folder / "usb.json").write_text(json.dumps(content))
    category = open_category(settings(tmp_path, "usb"))
    assert counts_of(category) == (10, 0, 7, 3, 3)
    category.nominal(notes)
    assert_names(" ".join(notes.lines()), "realiad_jsons_sv", "realiad_jsons_fuiad_0.1", "data.data_path")
    for place in (jsons, tmp_path):  # twice nested, or beside the images
        named = settings(place / "realiad_jsons_sv", "usb")
        category, notes = open_category(named), DatasetNotes()
        assert category.layout == "real-iad" and counts_of(category) == (2, 0, 1, 1, 1)
        assert category.folder == tmp_path / "realiad_1024/usb" and list_categories(named) == ["usb"]
        category.nominal(notes)
        [left] = notes.skipped["anomalous images of train"]
        assert left == "NG/HS/S0009/usb_0009_NG_HS_C1_20230101000000.jpg" and len(notes.skipped) == 1
        if place == jsons:
            for folder in ("realiad_jsons_sv", "realiad_jsons_fuiad_0.1"):
                shutil.move(jsons / folder, tmp_path / folder)
    shutil.copytree(tmp_path / "realiad_1024", tmp_path / "realiad_512")
    with raises_user_error("data.data_path", "realiad_1024", "realiad_512"):
        open_category(named)
    shutil.rmtree(jsons)
    for path in (tmp_path, tmp_path / "realiad_512"):
        with raises_user_error(path, "realiad_jsons_sv", "data.data_path"):
            open_category(settings(path, "usb"))


def test_a_real_iad_file_of_another_form_is_refused(tmp_path):
    layout_fixtures.real_iad(tmp_path)
    file = tmp_path / "realiad_jsons/realiad_jsons/usb.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: content[key] for key in ("meta", "train")}))
    with raises_user_error(file, "test"):
        open_category(settings(tmp_path, "usb"))


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


@pytest.mark.parametrize("name", ["../../elsewhere", "..", ".", "/elsewhere", "a/b"])
def test_a_category_of_a_table_that_is_no_name_of_a_folder_is_refused(tmp_path, cli, workplace, name):
    """Its run and its results would be written outside of the folders of the settings."""
    table = workplace / "mvtec/parts.csv"
    rows = "".join(f"tile/train/good/{number:03}.png,good,{name}\n" for number in range(6))
    table.write_text(f"path,label,category\n{rows}")
    before = set(tmp_path.parent.rglob("*"))
    with raises_user_error("parts.csv", repr(name)):
        chosen_categories(settings(workplace, table=table), None)
    assert set(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("size", [(0, 48), (40, -1), (2**30, 2**30), (2**16, 48)])
def test_annotations_of_a_size_that_no_image_has_are_refused(workplace, size):
    """Their masks were drawn, at any size, before anything was compared with the image."""
    image = {"id": 1, "file_name": "tile/train/good/000.png", "height": size[0], "width": size[1]}
    content = {"images": [image], "annotations": [{"image_id": 1, "bbox": [1, 1, 2, 2]}]}
    path = workplace / "mvtec/lids.json"
    path.write_text(json.dumps(content))
    with raises_user_error("lids.json", "000.png"):
        open_category(settings(workplace, coco=path, category="lids"))
