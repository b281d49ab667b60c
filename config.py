"""The schema of config.yaml: load, override, check, edit."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

import settings_file
from errors import UserError
from evaluation.thresholds import MANUAL, NOMINAL_KINDS

REGIONS = "masking.regions"
UNUSED_KEYS = {"input_channel", "save_txt", "comparison"}  # of earlier code


def _path(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value.replace("\\", "/")


def _name(value: str) -> str:
    if not value.strip() or set(value) & set('/\\:*?"<>|') or value in (".", ".."):
        raise ValueError("must be a plain folder name")
    return value


def _img_size(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value, value]
    sides = value if isinstance(value, (list, tuple)) else []
    if len(sides) != 2 or not all(type(side) is int and 32 <= side <= 8192 and side % 32 == 0 for side in sides):
        raise ValueError("must be a multiple of 32 from 32 to 8192, or two such: [height, width]")
    return tuple(sides)


def _tile_size(value: Any, info: ValidationInfo) -> Any:
    if value is None:
        return None
    tile = _img_size(value)
    whole = info.data.get("img_size", tile)
    if any(side > limit for side, limit in zip(tile, whole, strict=True)):
        raise ValueError("must be at most data.img_size = [{}, {}]".format(*whole))
    return tile


def _load_epoch(value: Any) -> Any:
    if (type(value) is int and value >= 1) or (isinstance(value, str) and value.strip()):
        # The command line gives text only.
        return int(value) if str(value).isdecimal() and int(value) >= 1 else str(value).replace("\\", "/")
    raise ValueError("must be last, an epoch from 1, or the path of a checkpoint")


def _must(allowed: str, value: Any, is_fine: bool, low: int = 1, high: int = 0) -> Any:
    """The value, if it is fine or a whole number within bounds."""
    if is_fine or (type(value) is int and low <= value <= high):
        return value
    raise ValueError(f"must be {allowed}")


def _auto_or(low: int, high: int) -> BeforeValidator:
    allowed = f"auto or a whole number from {low} to {high}"
    return BeforeValidator(lambda value: _must(allowed, value, value == "auto", low, high))


def _white_level(value: Any) -> Any:
    is_level = type(value) in (int, float) and 0 < value < 2**32
    return _must("auto, or the number that means white", value, value == "auto" or is_level)


def _score(value: Any) -> Any:
    is_score = type(value) in (int, float) and 0 <= value <= 1
    return _must("null, or a number from 0 to 1", value, value is None or is_score)


def _split_by(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"must be a regular expression ({error})") from error
    if not groups:
        raise ValueError("must have a group in brackets, e.g. '(part\\d+)_'")
    return value


def _device(value: Any) -> Any:
    is_fine = value in ("auto", "cuda", "mps", "cpu") or bool(re.fullmatch(r"cuda:\d+", str(value)))
    return _must("auto, cuda, cuda:N, mps or cpu", value, is_fine)


def _threshold_type(value: Any) -> Any:
    return NOMINAL_KINDS[value] if type(value) is int and 0 <= value <= 2 else value


def _visualisation(value: Any) -> Any:
    if type(value) is bool:
        return "all" if value else "none"
    return _must("all, errors, none, or a number of images from 0", value, value in ("all", "errors", "none"), 0, 2**31)


def _compile(value: Any) -> Any:
    return {True: "on", False: "off"}[value] if type(value) is bool else value  # YAML reads on as true


def _regions(values: Any) -> Any:
    if isinstance(values, str):
        return _path(values)
    is_list = isinstance(values, (list, tuple)) and len(values) > 0
    rectangles = [values] if is_list and type(values[0]) is int else values
    allowed = "rectangles [[y0, y1, x0, x1], ...] in pixels, y0 < y1 and x0 < x1, or a mask's path"
    for one in rectangles if is_list else [None]:
        is_four = isinstance(one, (list, tuple)) and len(one) == 4 and all(type(side) is int for side in one)
        _must(allowed, values, is_four and 0 <= one[0] < one[1] and 0 <= one[2] < one[3])
    return [list(rectangle) for rectangle in rectangles]


def _milestones(values: Any) -> Any:
    is_list = isinstance(values, (list, tuple)) and all(type(value) is float for value in values)
    is_fine = is_list and list(values) == sorted(set(values)) and all(0 < value < 1 for value in values)
    return list(_must("a list of numbers between 0 and 1 that rise, e.g. [0.8, 0.9]", values, is_fine))


def _whole(low: int, high: int) -> Any:
    return Annotated[int, Field(strict=True, ge=low, le=high)]


PathText = Annotated[str, AfterValidator(_path)]
OptionalPathText = Annotated[str | None, AfterValidator(lambda value: value if value is None else _path(value))]
NameText = Annotated[str, AfterValidator(_name)]
Flag = Annotated[bool, Field(strict=True)]
PositiveRate = Annotated[float, Field(strict=True, gt=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    data_path: PathText = "./datasets/mvtec"
    category: NameText = "bottle"
    anomaly_source_path: PathText = "dtd/images"
    checkpoint_path: PathText = "./checkpoints"
    results_path: PathText = "./results"
    run_name: NameText = "draem"
    img_size: Annotated[tuple[int, int], BeforeValidator(_img_size)] = (256, 256)
    tile_size: Annotated[tuple[int, int] | None, BeforeValidator(_tile_size)] = None
    tile_overlap: Annotated[float, Field(strict=True, ge=0, le=0.75)] = 0.25
    load_epoch: Annotated[int | str, BeforeValidator(_load_epoch)] = "last"
    test_batch_size: _whole(1, 4096) = 8
    val_split: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.2
    split_by: Annotated[str | None, AfterValidator(_split_by)] = None
    white_level: Annotated[float | str, BeforeValidator(_white_level)] = "auto"
    num_workers: Annotated[int | str, _auto_or(0, 1024)] = "auto"
    image_registration: Flag = False
    registration_reference: OptionalPathText = None
    pre_masking: Flag = False

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of what the networks see: a tile, or the whole picture."""
        return self.tile_size or self.img_size


class Model(_Section):
    base_width: _whole(1, 4096) = 128
    base_channels: _whole(1, 4096) = 64


class Train(_Section):
    epochs: _whole(1, 1_000_000) = 700
    batch_size: _whole(1, 4096) = 8
    tiles_per_image: Annotated[int | str, _auto_or(1, 2**16)] = "auto"
    learning_rate: PositiveRate = 1e-4
    lr_milestones: Annotated[list[float], BeforeValidator(_milestones)] = [0.8, 0.9]
    lr_gamma: PositiveRate = 0.2
    cut: Flag = True
    seed: _whole(0, 2**32 - 1) = 0
    device: Annotated[str, BeforeValidator(_device)] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_compile)] = "auto"
    resume: Literal["auto", "never", "must"] = "auto"
    save_from: _whole(1, 1_000_000) = 500
    save_every: _whole(1, 1_000_000) = 50
    visualize: Flag = True
    visualize_every: _whole(1, 1_000_000) = 10


class Metrics(_Section):
    masking: Flag = False
    threshold: Flag = True
    threshold_type: Annotated[Literal[(*NOMINAL_KINDS, MANUAL)], BeforeValidator(_threshold_type)] = "p_quantile"
    p: Annotated[float, Field(strict=True, ge=0, le=100)] = 99.0
    k: Annotated[float, Field(strict=True, ge=0, le=100)] = 3.0
    max_false_alarms: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.05
    image_threshold: Annotated[float | None, BeforeValidator(_score)] = None
    pixel_threshold: Annotated[float | None, BeforeValidator(_score)] = None
    nominal: Annotated[str | None, AfterValidator(lambda value: value if value is None else _name(value))] = None
    optimal: Literal["f1", "youden"] = "f1"
    auroc: Flag = True
    pr: Flag = True
    pro: Flag = True
    iou: Flag = True
    misclassifications: Flag = True
    visualisation: Annotated[int | str, BeforeValidator(_visualisation)] = "all"


class Masking(_Section):
    regions: dict[NameText, Annotated[list[list[int]] | str, BeforeValidator(_regions)]] = {}


class Config(_Section):
    """Every setting, checked. Sections may be left out; their keys then have the values of config.yaml."""

    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    metrics: Metrics = Metrics()
    masking: Masking = Masking()

    @property
    def run_folder(self) -> Path:
        """Where this category's run is kept."""
        return Path(self.data.checkpoint_path) / self.data.category / self.data.run_name


def _known_keys() -> list[str]:
    sections = {name: field.annotation.model_fields for name, field in Config.model_fields.items()}
    return [f"{section}.{key}" for section, keys in sections.items() for key in keys]


def _unknown(key: str) -> str:
    if key.split(".")[-1] in UNUSED_KEYS:
        return f"{key}: this key of earlier code has no use here; remove it"
    known = _known_keys()
    candidates = known if "." in key else list(Config.model_fields)
    same_name = [other for other in known if other.split(".")[-1] == key.split(".")[-1]]
    near = same_name or difflib.get_close_matches(key, candidates, 1, 0)
    return f"{key}: unknown key; nearest known: {near[0]}"


def _is_text(key: str) -> bool:
    section, _, name = key.partition(".")
    field = Config.model_fields[section].annotation.model_fields[name]
    return field.annotation is str or key in (
        "data.load_epoch",
        "data.registration_reference",
        "data.split_by",
        "metrics.nominal",
    )


def _problem(error: dict[str, Any], text: str) -> str:
    """What is wrong with a value, and what is allowed. text: of the settings file."""
    path = error["loc"]
    key = ".".join(str(part) for part in path[:2])
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown(key)
    context = error.get("ctx", {})
    field = Config.model_fields[path[0]].annotation.model_fields.get(path[1]) if len(path) > 1 else None
    metadata, signs = field.metadata if field else (), {"ge": "from", "gt": "above", "lt": "to below", "le": "to"}
    limits = {sign: getattr(item, name) for item in metadata for name, sign in signs.items() if hasattr(item, name)}
    kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list"}
    kind["dict"] = "a mapping of categories, e.g. {bottle: [[0, 40, 0, 900]]}"
    if "error" in context:
        allowed = str(context["error"])
    elif error["type"] == "literal_error":
        allowed = f"must be one of {context['expected']}"
    elif error["type"] in ("model_type", "model_attributes_type"):
        allowed = "must be a section with keys below it"
    else:
        word = next((text for name, text in kind.items() if error["type"].startswith(name)), None)
        word = word or ("a whole number" if field and field.annotation is int else "a number")
        bounds = [f"{sign} {limits[sign]}" for sign in signs.values() if limits.get(sign) is not None]
        allowed = " ".join(["must be", word, *bounds])
        if word == "text" and not isinstance(error["input"], (dict, list)):
            allowed += f", in quotes: '{settings_file.as_written(text, *path) or error['input']}'"
    value = repr(error["input"]) if isinstance(error["input"], str) else error["input"]
    return f"{'.'.join(map(str, path))} = {value}: {allowed}"


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> Config:
    """Read and check settings.

    Args:
        path: YAML file.
        overrides: `section.key=value`, the value in YAML; for a key of text type taken as written.

    Raises:
        UserError: unreadable file, bad YAML (line and column), unknown keys, values out of range; all at once.
    """
    path = Path(path)
    text = settings_file.read(path)
    values = settings_file.parse(text, str(path))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold the sections {', '.join(Config.model_fields)}")
    values = {section: {} if keys is None else keys for section, keys in values.items()}
    problems, overridden = [], set()
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.strip()
        if not equals:
            raise UserError(f"--set {override}: must be section.key=value, e.g. --set data.category=bottle")
        if key.startswith(f"{REGIONS}."):  # of one category
            category, key = key[len(REGIONS) + 1 :], REGIONS
            value = {category: settings_file.parse(value, f"--set {REGIONS}.{category}")}
        if key not in _known_keys():
            problems.append(f"--set {_unknown(key)}")
            continue
        overridden.add(key)
        section, name = key.split(".")
        if isinstance(values.setdefault(section, {}), dict):
            there = values[section].get(name)
            if isinstance(value, dict):
                values[section][name] = (there if isinstance(there, dict) else {}) | value
            else:
                values[section][name] = value if _is_text(key) else settings_file.parse(value, f"--set {key}")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        for item in error.errors():
            source = "--set" if ".".join(map(str, item["loc"][:2])) in overridden else f"{path}:"
            problems.append(f"{source} {_problem(item, text)}")
    if problems:
        raise UserError("\n".join(problems))
    return config


def named_keys(path: Path | str | None, overrides: Iterable[str] = ()) -> set[str]:
    """Keys, `section.key`, that a settings file (None: none) and overrides name. `load_config` has accepted them."""
    values = settings_file.parse(settings_file.read(Path(path)), str(path)) if path else {}
    found = {f"{section}.{key}" for section, keys in (values or {}).items() for key in keys or {}}
    keys = (override.partition("=")[0].strip() for override in overrides)
    return found | {REGIONS if key.startswith(f"{REGIONS}.") else key for key in keys}


def edit_config(path: Path | str, changes: dict[str, Any]) -> str:
    """Text of a settings file with values changed (`section.key` -> value) and everything else kept, comments too."""
    return settings_file.edit(path, changes)


def settings_text(path: Path | str, config: Config) -> str:
    """Text of a settings file, comments kept, with every value as it is in `config`."""
    sections = config.model_dump(mode="json").items()
    return settings_file.edit(
        path, {f"{section}.{key}": value for section, keys in sections for key, value in keys.items()}
    )
