"""config.yaml and its schema."""

import pytest
import yaml
from conftest import ROOT

from config import Config, edit_config, load_config, settings_text
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


def test_sample_settings_load():
    assert load_config(ROOT / "configs/sample.yaml").data.data_path == "sample/mvtec"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.learning_rate=1e-4", 1e-4),
        ("data.img_size=96", (96, 96)),
        ("data.img_size=[64, 96]", (64, 96)),
        ("data.category=007", "007"),
        ("data.category=true", "true"),
        ("data.data_path=C:\\parts\\photos", "C:/parts/photos"),
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
    ("override", "message"),
    [
        ("train.epochs=-1", "--set train.epochs = -1: must be a whole number from 1 to 1000000"),
        ("train.cut=1", "train.cut = 1: must be true or false"),
        ("train.epochs=true", "train.epochs = True: must be a whole number"),
        ("train.learning_rate=fast", "train.learning_rate = 'fast': must be a number above 0 to 1"),
        ("train.learning_rate=.nan", "train.learning_rate = nan: must be a number above 0 to 1"),
        ("data.img_size=100", "data.img_size = 100: must be a multiple of 32"),
        ("data.val_split=1", "data.val_split = 1: must be a number from 0 to below 1"),
        ("train.lr_milestones=[0.9, 0.8]", "train.lr_milestones"),
        ("train.precision=fp16", "must be one of 'auto', 'fp32' or 'bf16'"),
        ("metrics.threshold_type=3", "metrics.threshold_type = 3"),
        ("metrics.p=101", "metrics.p = 101: must be a number from 0 to 100"),
        ("data.category=", "data.category = '': must be a plain folder name"),
        ("data.category=a/b", "must be a plain folder name"),
        ("train.epoch=3", "train.epoch: unknown key; nearest known: train.epochs"),
        ("learning_rate=1", "nearest known: train.learning_rate"),
        ("data.input_channel=3", "data.input_channel: this key of earlier code has no use here"),
        ("train.epochs", "must be section.key=value"),
        ("data.img_size=[64", "--set data.img_size, line 1, column 4: not valid YAML"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(UserError) as error:
        load_config(ROOT / "config.yaml", [override])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_all_mistakes_are_told_at_once(tmp_path):
    path = write(tmp_path / "c.yaml", "data: {img_size: 33, categry: a}\ntrain: {epochs: 0, save_txt: 1}\nmodle: {}\n")
    with pytest.raises(UserError) as error:
        load_config(path)
    for part in ("img_size = 33", "data.categry: unknown key; nearest known: data.category", "train.epochs = 0"):
        assert part in str(error.value)
    assert "save_txt: this key of earlier code" in str(error.value)
    assert "modle: unknown key; nearest known: model" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:\n  category: [1", "c.yaml, line 2, column"),
        ("data:\n\tcategory: a", "c.yaml, line 2, column 1: not valid YAML"),
        ("- 1", "must hold the sections"),
        ("data: 3", "data = 3: must be a section"),
        ("data:\n  category: 007", "data.category = 7: must be text, in quotes"),
        ("data: {category: a}\ndata: {category: b}", "duplicate"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path / "c.yaml", text))
    assert message in str(error.value)


def test_an_empty_section_can_be_written(tmp_path):
    path = write(tmp_path / "c.yaml", "data:\n  category: a\nmetrics:\n")
    config = load_config(path)
    assert load_config(write(tmp_path / "d.yaml", settings_text(path, config))) == config


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)


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
def test_a_wrong_kind_is_told_what_is_allowed(tmp_path, section, key):
    """Whatever is given: a text is never said to be a number, a mapping never a text."""
    default = getattr(getattr(Config(), section), key)
    kinds = {bool: "true or false", int: "whole number", float: "a number", dict: "a mapping of categories"}
    word = kinds.get(type(default), "")
    refused = 0
    for value in WRONG:
        path = write(tmp_path / "c.yaml", f"{section}:\n  {key}: {value}\n")
        try:
            load_config(path)
        except UserError as error:
            refused += 1
            said = str(error).rpartition(": must be ")[2]
            if word and not (key == "regions" and value == "{a: 1}"):
                assert word in said, error
            else:
                assert not said.startswith(("a number", "a whole number")), error
            if said.startswith("text, in quotes: "):
                assert said == f"text, in quotes: '{value}'"
    assert refused >= 3


def test_regions_of_a_wrong_kind_show_how_they_are_written():
    with pytest.raises(UserError, match=r"masking.regions = 5: must be a mapping of categories, e.g. {bottle: \[\["):
        load_config(ROOT / "config.yaml", ["masking.regions=5"])
    with pytest.raises(UserError, match=r"masking.regions.tile = 5: must be rectangles"):
        load_config(ROOT / "config.yaml", ["masking.regions.tile=5"])


@pytest.mark.parametrize("value", ["no", "on", "007", "010", "1e5", "12:30", "1_000", "0x10", "~", "2024-01-02"])
def test_what_yaml_takes_for_another_kind_is_advised_as_written(tmp_path, value):
    """A folder's name that is not a text to YAML: the advice shows what was written, and following it works."""
    path = write(tmp_path / "c.yaml", f"data:\n  run_name: {value}\n")
    with pytest.raises(UserError, match=rf"must be text, in quotes: '{value}'"):
        load_config(path)
    path = write(tmp_path / "c.yaml", f"data:\n  data_path: '{value}'\n")
    assert load_config(path).data.data_path == value


@pytest.mark.parametrize("value", ["on", "off"])
def test_compile_is_what_is_written(tmp_path, value):
    assert load_config(write(tmp_path / "c.yaml", f"train: {{compile: {value}}}\n")).train.compile == value
    assert load_config(write(tmp_path / "c.yaml", f"train: {{compile: '{value}'}}\n")).train.compile == value
    assert load_config(ROOT / "config.yaml", [f"train.compile={value}"]).train.compile == value


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.e-4", "1.0e-4", "+1e-4", "0.0001"])
def test_numbers_with_an_exponent(tmp_path, number):
    assert load_config(write(tmp_path / "c.yaml", f"train: {{learning_rate: {number}}}\n")).train.learning_rate == 1e-4
    assert load_config(ROOT / "config.yaml", [f"train.learning_rate={number}"]).train.learning_rate == 1e-4


def same_to_all(path):
    """A settings file means the same to PyYAML alone."""
    loaded = load_config(path).model_dump(mode="json")
    for section, values in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for key, value in (values or {}).items():
            ours = loaded[section][key]
            value = [value, value] if key == "img_size" and isinstance(value, int) else value
            assert ours == value and isinstance(value, str) == isinstance(ours, str), (key, value)


@pytest.mark.parametrize("path", [ROOT / "config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))], ids=str)
def test_the_projects_files_mean_the_same_to_every_reader(path):
    same_to_all(path)


@pytest.mark.parametrize("name", ["on", "no", "1e5", "1_000", "12:30", "0x10", "2024-01-02", "null", "007", "a b", "ü"])
def test_written_settings_mean_the_same_to_every_reader(tmp_path, name):
    plain = name.replace(":", "-")
    sets = [f"data.run_name={plain}", f"data.data_path={name}", "train.learning_rate=1e-5", "train.compile=on"]
    sets += [f"masking.regions={{'{plain}': [[0, 1, 0, 1]], b: '{name}'}}"]
    config = load_config(ROOT / "config.yaml", sets)
    path = write(tmp_path / "c.yaml", settings_text(ROOT / "config.yaml", config))
    assert load_config(path) == config and "learning_rate: 1.0e-05" in path.read_text(encoding="utf-8")
    same_to_all(path)
