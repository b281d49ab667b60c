"""config.py, config_types.py and config_file.py: config.yaml, its schema and overrides; also runtime/yaml_file.py."""

import re

import pytest
import yaml
from conftest import ROOT
from messages import assert_fix, assert_line, assert_names, raises_user_error

from config import Config, recipe
from config_file import edit_config, load_config, settings_text
from runtime.errors import UserError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_config_yaml_holds_the_defaults_and_every_key():
    assert load_config(ROOT / "config.yaml") == Config()
    text = (ROOT / "config.yaml").read_text()
    for section, values in Config().model_dump().items():
        for key in values:
            line = next(line for line in text.splitlines() if line.startswith(f"  {key}:"))
            assert "#" in line, f"{section}.{key} has no comment"


def test_the_sample_settings_load():
    assert load_config(ROOT / "configs/sample.yaml").data.data_path == "sample/mvtec"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.learning_rate=1e-4", 1e-4),
        ("data.img_size=96", (96, 96)),
        ("data.img_size=[64, 96]", (64, 96)),
        ("data.category=007", "007"),
        ("data.category=true", "true"),
        ("data.data_path=C:\\parts\\images", "C:/parts/images"),
        ("data.load_epoch=last", "last"),
        ("data.load_epoch=12", 12),
        ("data.load_epoch=runs\\a.pt", "runs/a.pt"),
        ("data.num_workers=0", 0),
        ("metrics.threshold_type=0", "max"),
        ("metrics.threshold_type=1", "p_quantile"),
        ("metrics.threshold_type=2", "k_sigma"),
        ("metrics.visualisation=true", "all"),
        ("metrics.visualisation=false", "none"),
        ("metrics.visualisation=5", 5),
        ("train.lr_milestones=[]", []),
        ("train.cut=False", False),
        ("data.load_epoch=a #b.pt", "a #b.pt"),
    ],
)
def test_overrides(override, value):
    section, key = override.split("=")[0].split(".")
    assert getattr(getattr(load_config(ROOT / "config.yaml", [override]), section), key) == value


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("train.epochs=-1", ["--set", "train.epochs = -1", 1, 1000000]),
        ("train.cut=1", ["train.cut = 1", "true", "false"]),
        ("train.epochs=true", ["train.epochs = True", 1, 1000000]),
        ("train.learning_rate=fast", ["train.learning_rate = 'fast'", 0, 1]),
        ("train.learning_rate=.nan", ["train.learning_rate = nan", 0, 1]),
        ("data.img_size=100", ["data.img_size = 100", 32]),
        ("data.val_split=1", ["data.val_split = 1", 0]),
        ("train.lr_milestones=[0.9, 0.8]", ["train.lr_milestones"]),
        ("train.precision=fp16", ["train.precision = 'fp16'", "auto", "fp32", "bf16"]),
        ("metrics.threshold_type=3", ["metrics.threshold_type = 3"]),
        ("metrics.p=101", ["metrics.p = 101", 0, 100]),
        ("data.category=", ["data.category = ''"]),
        ("data.category=a/b", ["data.category = 'a/b'"]),
        ("train.epoch=3", ["train.epoch", "train.epochs"]),
        ("learning_rate=1", ["learning_rate", "train.learning_rate"]),
        ("data.input_channel=3", ["data.input_channel"]),
        ("train.epochs", ["--set train.epochs", "section.key=value"]),
        ("data.img_size=[64", ["--set data.img_size", "line 1", "column 4"]),
    ],
)
def test_invalid_overrides_are_user_errors(override, names):
    with raises_user_error(*names) as caught:
        load_config(ROOT / "config.yaml", [override])
    assert "\n" not in str(caught.value)


def test_all_invalid_settings_are_named_in_one_error(tmp_path):
    path = write(tmp_path / "c.yaml", "data: {img_size: 33, categry: a}\ntrain: {epochs: 0, save_txt: 1}\nmodle: {}\n")
    with pytest.raises(UserError) as error:
        load_config(path)
    for names in (
        ("data.img_size = 33", 32),
        ("data.categry", "data.category"),
        ("train.epochs = 0", 1, 1000000),
        ("train.save_txt",),
    ):
        assert_line(str(error.value), *names)
    assert_line(str(error.value), "modle", "model")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("data:\n  category: [1", ["line 2", "column"]),
        ("data:\n\tcategory: a", ["line 2", "column 1"]),
        ("- 1", ["data", "train", "metrics"]),
        ("data: 3", ["data = 3"]),
        ("data:\n  category: 007", ["data.category = 7", "'007'"]),
        ("data: {category: a}\ndata: {category: b}", ["data"]),
    ],
)
def test_invalid_settings_files_are_user_errors(tmp_path, text, names):
    with raises_user_error("c.yaml", *names):
        load_config(write(tmp_path / "c.yaml", text))


def test_an_empty_section_can_be_written(tmp_path):
    path = write(tmp_path / "c.yaml", "data:\n  category: a\nmetrics:\n")
    config = load_config(path)
    assert load_config(write(tmp_path / "d.yaml", settings_text(path, config))) == config


def test_a_missing_file_and_a_folder_are_user_errors(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with raises_user_error(path):
            load_config(path)


def test_editing_keeps_comments(tmp_path):
    path = write(tmp_path / "c.yaml", "# head\ndata:\n  category: a  # which\n  # tail\ntrain:\n  epochs: 3\n")
    text = edit_config(path, {"data.category": "b", "data.img_size": [64, 32]})
    assert "# head" in text and "category: b  # which" in text and "# tail" in text and "img_size: [64, 32]" in text
    config = load_config(path, ["train.seed=7"])
    again = load_config(write(tmp_path / "d.yaml", settings_text(path, config)))
    assert again == config and again.train.seed == 7


WRONG = ("5", "1.5", "true", "null", "text", "[1]", "{a: 1}", "[]", "{}")
KEYS = [(section, key) for section, values in Config().model_dump().items() for key in values]


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_a_value_of_a_wrong_type_is_an_error_that_shows_what_is_allowed(tmp_path, section, key):
    """Bounds of a number, true and false, an example of a mapping, or the value as text in quotes."""
    kind = type(getattr(getattr(Config(), section), key))
    refused = 0
    for value in WRONG:
        path = write(tmp_path / "c.yaml", f"{section}:\n  {key}: {value}\n")
        try:
            load_config(path)
        except UserError as error:
            refused += 1
            assert_names(str(error), "c.yaml", re.compile(rf"{section}\.{key}(\.a)?\b"))
            allowed = str(error).partition(f" = {yaml.safe_load(value)!r}")[2]
            if kind is bool:
                assert_names(allowed, "true", "false")
            elif kind in (int, float):
                assert re.search(r"\d", allowed), error
            elif kind is dict and value != "{a: 1}":
                assert_names(allowed, re.compile(r"{\w+: \["))
            elif "'" in allowed:
                assert_names(allowed, re.compile(rf"'{re.escape(value)}'|e\.g\.|'\w+' or"))
            assert_fix(str(error))
    assert refused >= 3


def test_masking_regions_of_a_wrong_type_are_user_errors_with_an_example():
    with raises_user_error("masking.regions = 5", re.compile(r"{\w+: \[\[")):
        load_config(ROOT / "config.yaml", ["masking.regions=5"])
    with raises_user_error("masking.regions.tile = 5"):
        load_config(ROOT / "config.yaml", ["masking.regions.tile=5"])


@pytest.mark.parametrize("value", ["no", "on", "007", "010", "1e5", "12:30", "1_000", "0x10", "~", "2024-01-02"])
def test_text_that_yaml_reads_as_another_type_is_an_error_that_shows_it_in_quotes(tmp_path, value):
    """A folder name that YAML does not read as text: the message shows it as written, and in quotes it is accepted."""
    path = write(tmp_path / "c.yaml", f"data:\n  run_name: {value}\n")
    with raises_user_error("data.run_name", f"'{value}'"):
        load_config(path)
    path = write(tmp_path / "c.yaml", f"data:\n  data_path: '{value}'\n")
    assert load_config(path).data.data_path == value


@pytest.mark.parametrize("value", ["on", "off"])
def test_on_and_off_stay_text_for_compile(tmp_path, value):
    assert load_config(write(tmp_path / "c.yaml", f"train: {{compile: {value}}}\n")).train.compile == value
    assert load_config(write(tmp_path / "c.yaml", f"train: {{compile: '{value}'}}\n")).train.compile == value
    assert load_config(ROOT / "config.yaml", [f"train.compile={value}"]).train.compile == value


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.e-4", "1.0e-4", "+1e-4", "0.0001"])
def test_numbers_with_an_exponent_are_numbers(tmp_path, number):
    assert load_config(write(tmp_path / "c.yaml", f"train: {{learning_rate: {number}}}\n")).train.learning_rate == 1e-4
    assert load_config(ROOT / "config.yaml", [f"train.learning_rate={number}"]).train.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("data.load_epoch", "0010", 10),
        ("data.load_epoch", "0089", 89),
        ("train.epochs", "0100", 100),
        ("train.epochs", "+0_100", 100),
        ("data.img_size", "0256", (256, 256)),
        ("data.img_size", "[064, 096]", (64, 96)),
        ("masking.regions", "{a: [[00, 010, 0, 20]]}", {"a": [[0, 10, 0, 20]]}),
        ("metrics.p", "090", 90),
        ("train.epochs", "0x10", 16),
    ],
)
def test_a_leading_zero_does_not_make_a_number_octal(tmp_path, key, text, value):
    """0010, as in epoch_0010.pt, was epoch 8."""
    section, name = key.split(".")
    path = write(tmp_path / "c.yaml", f"{section}: {{{name}: {text}}}\n")
    assert load_config(path)[key] == load_config([], [f"{key}={text}"])[key] == value
    edited = write(tmp_path / "d.yaml", edit_config(path, {"data.run_name": "other"}))
    assert load_config(edited)[key] == value


@pytest.mark.parametrize(("key", "text"), [("train.epochs", "1:30"), ("metrics.p", "1:30.5"), ("train.seed", "-1:0")])
def test_numbers_to_base_60_are_user_errors(tmp_path, key, text):
    section, name = key.split(".")
    for files, sets in (([write(tmp_path / "c.yaml", f"{section}:\n  {name}: {text}\n")], []), ([], [f"{key}={text}"])):
        with raises_user_error(f"{key} = '{text}'", "number"):
            load_config(files, sets)


def assert_same_for_every_reader(path):
    """A settings file means the same to PyYAML alone."""
    loaded = load_config(path).model_dump(mode="json")
    for section, values in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for key, value in (values or {}).items():
            ours = loaded[section][key]
            value = [value, value] if key == "img_size" and isinstance(value, int) else value
            assert ours == value and isinstance(value, str) == isinstance(ours, str), (key, value)


@pytest.mark.parametrize("path", [ROOT / "config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))], ids=str)
def test_the_settings_files_of_the_project_are_the_same_to_every_yaml_reader(path):
    assert_same_for_every_reader(path)


@pytest.mark.parametrize("name", ["on", "no", "1e5", "1_000", "12:30", "0x10", "2024-01-02", "null", "007", "a b", "ü"])
def test_written_settings_are_the_same_to_every_yaml_reader(tmp_path, name):
    plain = name.replace(":", "-")
    sets = [f"data.run_name={plain}", f"data.data_path={name}", "train.learning_rate=1e-5", "train.compile=on"]
    sets += [f"masking.regions={{'{plain}': [[0, 1, 0, 1]], b: '{name}'}}"]
    config = load_config(ROOT / "config.yaml", sets)
    path = write(tmp_path / "c.yaml", settings_text(ROOT / "config.yaml", config))
    assert load_config(path) == config and "learning_rate: 1.0e-05" in path.read_text(encoding="utf-8")
    assert_same_for_every_reader(path)


def test_of_several_settings_files_the_later_wins(tmp_path):
    own, other = tmp_path / "own.yaml", tmp_path / "recipe.yaml"
    own.write_text("data:\n  category: hazelnut\ntrain:\n  epochs: 5\n  seed: 3\nmodel:\n")
    other.write_text("train:\n  epochs: 9\n  ema_decay: 0.9\n")
    config = load_config([own, other], ["train.seed=4"])
    assert (config.data.category, config.train.epochs, config.train.seed) == ("hazelnut", 9, 4)
    sources = [config.source_of(f"train.{key}") for key in ("epochs", "seed", "ema_decay", "batch_size")]
    assert sources == [f"--config {other}", "--set", f"--config {other}", "config.yaml"]
    assert config.source_of("data.category") == f"--config {own}" and config.is_explicit("data.category")
    assert load_config([other, own]).train.epochs == 5 and load_config([]) == Config()
    again = tmp_path / "again.yaml"
    again.write_text(settings_text([own, other], config))
    assert load_config(again) == config
    other.write_text("train:\n  epochs: 0\n")
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        load_config([own, other])
    own.write_text("train:\n  epoch: 0\n")
    with raises_user_error("own.yaml: train.epoch", "recipe.yaml: train.epochs = 0"):
        load_config([own, other])


def test_the_recipe_names_what_differs_from_the_published_one():
    config = load_config([], ["train.epochs=7", "data.category=x", "synthesis.light=0.5", "train.resume=never"])
    assert recipe(config) == "train.epochs = 7, synthesis.light = 0.5" and recipe(Config()) == "as published"


@pytest.mark.parametrize(
    "override",
    [
        "train.lr_schedule=cosine",
        "train.ema_decay=1",
        "train.gradient_clip=0",
        "train.loss_weights=[1, 0, 1]",
        "train.loss_weights=1",
        "train.weight_decay=-1",
        "synthesis.own_images=2",
        "synthesis.min_alignment=1.1",
        "synthesis.gray_textures=always",
    ],
)
def test_values_of_a_recipe_are_checked(override):
    with pytest.raises(UserError, match=override.split("=")[0]):
        load_config([], [override])


@pytest.mark.parametrize("key", ["table", "coco"])
def test_the_category_of_a_table_or_of_annotations_is_the_name_of_the_file(tmp_path, key):
    named = f"data.{key}=parts/gear.v2.csv"
    assert load_config(ROOT / "config.yaml", [named]).data.category == "gear.v2"
    assert load_config(ROOT / "config.yaml", [named, "data.category=shaft"]).data.category == "shaft"
    own = write(tmp_path / "own.yaml", f"data: {{{key}: gear.csv, category: shaft}}\n")
    assert load_config(own).data.category == "shaft"


@pytest.mark.parametrize("key", ["table", "coco"])
@pytest.mark.parametrize("name", ["12:30.csv", "parts/a|b.csv", "..", " .csv"])
def test_a_category_that_no_folder_can_be_called_is_not_taken_from_a_file(tmp_path, key, name):
    """It was, and the settings that a run keeps could not be read again."""
    path = write(tmp_path / "own.yaml", f"data: {{{key}: '{name}'}}\n")
    with raises_user_error(f"data.{key} = {name}", "data.category"):
        load_config(path)
    assert load_config(path, ["data.category=shaft"]).data.category == "shaft"
