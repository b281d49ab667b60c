"""data/layouts: datasets that are nearly in a form are refused, or what is left out is named."""

import json
import re
import shutil

import layout_fixtures
import pytest
from conftest import write
from layout_fixtures import counts_of, lids, own_folders, settings
from messages import assert_names, raises_user_error

from data.folders import DatasetNotes
from data.layouts.registry import open_category


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("name", "category", "layout", "folder"),
    [
        ("mvtec_ad_2", "can", "mvtec-ad-2", "validation/good"),
        ("mvtec_ad_2", "can", "mvtec-ad-2", "test_public/good"),
        ("mvtec_ad_2", "can", "mvtec-ad-2", "test_public/bad"),
        ("btad", "01", "btad", "test/ko"),
        ("dagm", "Class1", "dagm", "Test"),
    ],
)
def test_empty_folders_are_missing_ones(tmp_path, name, category, layout, folder):
    getattr(layout_fixtures, name)(tmp_path)
    shutil.rmtree(tmp_path / category / folder)
    (tmp_path / category / folder).mkdir()
    with raises_user_error(tmp_path / category, layout, folder):
        open_category(settings(tmp_path, category))


def test_private_test_sets_alone_are_those_of_mvtec_ad_2(tmp_path):
    layout_fixtures.mvtec_ad_2(tmp_path)
    shutil.rmtree(tmp_path / "can/test_public")
    with raises_user_error(tmp_path / "can", "mvtec-ad-2", "test_public/good"):
        open_category(settings(tmp_path, "can"))


def test_other_folders_of_the_public_test_set_are_left_out_and_named(tmp_path):
    layout_fixtures.mvtec_ad_2(tmp_path)
    out, notes = layout_fixtures.Writer(tmp_path), DatasetNotes()
    out.defect("can/test_public/scratch/000.png")
    category = open_category(settings(tmp_path, "can"))
    assert counts_of(category) == (6, 2, 2, 3, 3)
    category.test(notes)
    assert_names("\n".join(notes.lines()), 1, "test_public/scratch/000.png")


@pytest.mark.parametrize("folder", ["ground_truth", "test/ok", "test/ko"])
def test_what_btad_lacks_is_named(tmp_path, folder):
    layout_fixtures.btad(tmp_path)
    shutil.rmtree(tmp_path / "01" / folder)
    with raises_user_error(tmp_path / "01", "btad", folder):
        open_category(settings(tmp_path, "01"))


def test_an_image_that_dagm_lists_as_defective_needs_its_mask(tmp_path):
    layout_fixtures.dagm(tmp_path)
    folder = tmp_path / "Class1/Test/Label"
    masks = sorted(folder.glob("*.PNG"))
    lines = (f"{i}\t1\t{mask.name.replace('_label', '')}\t0\t{mask.name}" for i, mask in enumerate(masks))
    (folder / "Labels.txt").write_text("\n".join(["1", *lines, "9\t0\t0009.PNG\t0\t0"]))
    open_category(settings(tmp_path, "Class1"))
    masks[0].unlink()
    with raises_user_error(folder / "Labels.txt", masks[0].stem.replace("_label", "")):
        open_category(settings(tmp_path, "Class1"))


@pytest.mark.parametrize(("wrong", "right"), [("maske", "mask"), ("lable", "label"), ("groups", "group")])
def test_a_misspelt_column_is_named(tmp_path, wrong, right):
    layout_fixtures.tables(tmp_path)
    table = tmp_path / "gear.csv"
    head, _, rows = table.read_text().partition("\n")
    columns = [wrong if name == right else name for name in head.split(",")]
    columns += [] if wrong in columns else [wrong]
    table.write_text(",".join(columns) + "\n" + rows)
    with raises_user_error(table, wrong, right):
        open_category(settings(tmp_path, "gear"))


@pytest.mark.parametrize("key", ["table", "coco"])
def test_a_file_that_is_not_there_is_named(tmp_path, key):
    with raises_user_error(f"data.{key}", "none.file", "no such file"):
        open_category(settings(tmp_path, "none", **{key: str(tmp_path / "none.file")}))


@pytest.mark.parametrize(
    ("name", "category", "mask"),
    [
        ("mvtec_3d", "bagel", "test/crack/gt/000.png"),
        ("btad", "01", "ground_truth/ko/0000.png"),
        ("loco", "pushpins", "ground_truth/logical_anomalies/000/000.png"),
    ],
)
def test_a_missing_mask_is_named_as_its_form_has_it(tmp_path, name, category, mask):
    getattr(layout_fixtures, name)(tmp_path)
    path = tmp_path / category / mask
    assert path.is_file(), sorted(path.parent.rglob("*"))
    for one in path.parent.glob("*") if name == "loco" else [path]:
        one.unlink()
    with raises_user_error(path):
        open_category(settings(tmp_path, category)).test()


@pytest.mark.parametrize("part", ["Train", "Test"])
def test_defective_images_of_dagm_are_not_taken_for_nominal_ones(tmp_path, part):
    """Where their masks have other names, or none is left."""
    layout_fixtures.dagm(tmp_path)
    masks = sorted((tmp_path / "Class1" / part / "Label").glob("*.PNG"))
    other = masks[0].rename(masks[0].with_name(masks[0].name.replace("_label", "_mask")))
    with raises_user_error(other):
        open_category(settings(tmp_path, "Class1"))
    for mask in (other, *masks[1:]):
        mask.unlink()
    with raises_user_error(masks[0].parent):
        open_category(settings(tmp_path, "Class1"))


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        (
            "test,normal,candle/Data/Images/Normal/0008",
            "test,norml,candle/Data/Images/Normal/0008",
            ["0008.JPG", "norml"],
        ),
        ("candle/Data/Masks/Anomaly/001.png", "", ["Anomaly/001.JPG", "anomaly"]),
        ("Normal/0008.JPG,", "Normal/0008.JPG,candle/Data/Masks/Anomaly/001.png", ["Normal/0008.JPG", "001.png"]),
    ],
)
def test_a_row_of_visa_that_contradicts_itself_is_refused(tmp_path, old, new, names):
    layout_fixtures.visa(tmp_path)
    table = tmp_path / "split_csv/1cls.csv"
    table.write_text(table.read_text().replace(old, new))
    with raises_user_error(table, *names):
        open_category(settings(tmp_path, "candle"))


def test_an_image_that_is_listed_twice_is_refused(tmp_path):
    layout_fixtures.visa(tmp_path / "visa")
    table = tmp_path / "visa/split_csv/1cls.csv"
    table.write_text(table.read_text().replace("Normal/0009.JPG", "Normal/0001.JPG"))  # to train on, and for the test
    with raises_user_error(tmp_path / "visa/candle/Data/Images/Normal/0001.JPG"):
        open_category(settings(tmp_path / "visa", "candle"))
    layout_fixtures.real_iad(tmp_path)
    file = tmp_path / "realiad_jsons/realiad_jsons/usb.json"
    content = json.loads(file.read_text())
    content["test"].append(content["train"][0])
    file.write_text(json.dumps(content))
    with raises_user_error(tmp_path / "realiad_1024/usb" / content["train"][0]["image_path"]):
        open_category(settings(tmp_path, "usb"))


def test_two_datasets_of_kolektor_in_one_folder_are_refused(tmp_path):
    layout_fixtures.kolektor_sdd(tmp_path)
    layout_fixtures.kolektor_sdd2(tmp_path / "other")
    shutil.copytree(tmp_path / "other/KolektorSDD2", tmp_path / "KolektorSDD", dirs_exist_ok=True)
    with raises_user_error(tmp_path / "KolektorSDD", "kos01"):
        open_category(settings(tmp_path, "KolektorSDD"))


def test_what_kolektor_leaves_out_is_named(tmp_path):
    layout_fixtures.kolektor_sdd(tmp_path)
    (tmp_path / "KolektorSDD/kos07/Part1.jpg").unlink()
    (tmp_path / "KolektorSDD/kos08").rename(tmp_path / "KolektorSDD/item08")
    layout_fixtures.kolektor_sdd2(tmp_path)
    shutil.copytree(tmp_path / "KolektorSDD2/test", tmp_path / "KolektorSDD2/val")
    (tmp_path / "KolektorSDD2/train/10001.png").unlink()
    for name, names in (
        ("KolektorSDD", ("kos07/Part1_label.bmp", 6, "item08/Part0.jpg")),
        ("KolektorSDD2", ("train/10001_GT.png", 10, "val/20000.png")),
    ):
        notes = DatasetNotes()
        open_category(settings(tmp_path, name)).nominal(notes)
        assert_names("\n".join(notes.lines()), *names)


def test_images_of_real_iad_without_its_files_are_refused(tmp_path):
    layout_fixtures.real_iad(tmp_path)
    shutil.rmtree(tmp_path / "realiad_jsons")
    with raises_user_error(tmp_path, "real-iad", "realiad_1024", "realiad_jsons"):
        open_category(settings(tmp_path, "usb"))


def test_columns_and_ids_that_stand_twice_are_refused(tmp_path):
    layout_fixtures.tables(tmp_path)
    table = tmp_path / "gear.csv"
    table.write_text(table.read_text().replace("label,mask", "label,label"))
    with raises_user_error(table, "label"):
        open_category(settings(tmp_path, "gear"))
    layout_fixtures.coco(tmp_path)
    file = tmp_path / "annotations/lids.json"
    content = json.loads(file.read_text())
    content["images"][1]["id"] = content["images"][0]["id"]
    file.write_text(json.dumps(content))
    with raises_user_error(file, 13, 12):
        open_category(lids(tmp_path))


def test_a_folder_that_no_layout_fits_is_not_said_to_be_missing(tmp_path):
    layout_fixtures.dagm(tmp_path)
    image = layout_fixtures.nominal(layout_fixtures.Writer(tmp_path).rng)
    write(tmp_path / "photos/0.png", image)
    for name, is_there in (("photos", True), ("absent", False)):
        with raises_user_error(f"data.category = {name}", "Class1", "Class10") as error:
            open_category(settings(tmp_path, name))
        assert ("form" in error.value.problem) == is_there


def test_names_in_other_upper_or_lower_case_are_named_as_they_are(tmp_path):
    layout_fixtures.kolektor_sdd2(tmp_path)
    (tmp_path / "KolektorSDD2/test").rename(tmp_path / "KolektorSDD2/Test")
    with raises_user_error(tmp_path / "KolektorSDD2", "no test", "but Test"):
        open_category(settings(tmp_path, "KolektorSDD2"))
    layout_fixtures.two_folders(tmp_path)
    with raises_user_error("data.nominal_folder", "but passed"):
        open_category(own_folders(tmp_path, nominal_folder=f"{tmp_path}/Passed"))
    layout_fixtures.tables(tmp_path)
    table = tmp_path / "gear.csv"
    table.write_text(table.read_text().replace(".png", ".PNG"))
    with raises_user_error(table, ".PNG", re.compile(r"but \S+\.png in")):
        open_category(settings(tmp_path, "gear"))


def test_a_folder_in_place_of_an_image_is_not_said_to_differ_in_case(tmp_path):
    layout_fixtures.tables(tmp_path)
    table = tmp_path / "gear.csv"
    first = table.read_text().splitlines()[1].split(",")[0]
    (tmp_path / first).unlink()
    (tmp_path / first).mkdir()
    with raises_user_error(table, first) as error:
        open_category(settings(tmp_path, "gear"))
    assert "case" not in error.value.problem


def test_a_folder_of_nominal_images_among_the_anomalous_ones_is_refused(tmp_path):
    layout_fixtures.two_folders(tmp_path)
    (tmp_path / "rejected/scratch").rename(tmp_path / "rejected/good")
    with raises_user_error(tmp_path / "rejected/good", "data.anomalous_folder", "move"):
        open_category(own_folders(tmp_path))


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    layout_fixtures.tables(tmp_path)
    table = tmp_path / "gear.csv"
    table.write_text(table.read_text().replace("path", "file", 1))
    with raises_user_error(table, "no column path", "it has file"):
        open_category(settings(tmp_path, "gear", table=table.as_posix()))
