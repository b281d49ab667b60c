"""The schema of config.yaml: load, override, check, edit."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime import yaml_file
from runtime.errors import UserError
from setting_values import (
    Compile,
    Device,
    Epoch,
    Flag,
    Grouping,
    ImageSize,
    Milestones,
    NameText,
    OptionalName,
    OptionalPathText,
    OptionalScore,
    PathText,
    PositiveRate,
    Regions,
    ThresholdType,
    TileSize,
    TrainingRegistration,
    Visualisation,
    WhiteLevel,
    auto_or,
    whole,
)

REGIONS = "masking.regions"
UNUSED_KEYS = {"input_channel", "save_txt", "comparison"}  # of earlier code


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    data_path: PathText = "./datasets/mvtec"
    category: NameText = "bottle"
    anomaly_source_path: PathText = "dtd/images"
    checkpoint_path: PathText = "./checkpoints"
    results_path: PathText = "./results"
    run_name: NameText = "draem"
    img_size: ImageSize = (256, 256)
    tile_size: TileSize = None
    tile_overlap: Annotated[float, Field(strict=True, ge=0, le=0.75)] = 0.25
    load_epoch: Epoch = "last"
    test_batch_size: whole(1, 4096) = 8
    val_split: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.2
    split_by: Grouping = None
    white_level: WhiteLevel = "auto"
    num_workers: Annotated[int | str, auto_or(0, 1024)] = "auto"
    image_registration: Flag = False
    registration_method: Literal["scene", "part"] = "scene"
    registration_mirror: Flag = False
    registration_training: TrainingRegistration = False
    registration_reference: OptionalPathText = None
    pre_masking: Flag = False

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of what the networks see: a tile, or the whole picture."""
        return self.tile_size or self.img_size


class Model(_Section):
    base_width: whole(1, 4096) = 128
    base_channels: whole(1, 4096) = 64


class Train(_Section):
    epochs: whole(1, 1_000_000) = 700
    batch_size: whole(1, 4096) = 8
    tiles_per_image: Annotated[int | str, auto_or(1, 2**16)] = "auto"
    learning_rate: PositiveRate = 1e-4
    lr_milestones: Milestones = [0.8, 0.9]
    lr_gamma: PositiveRate = 0.2
    cut: Flag = True
    seed: whole(0, 2**32 - 1) = 0
    device: Device = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Compile = "auto"
    resume: Literal["auto", "never", "must"] = "auto"
    save_from: whole(1, 1_000_000) = 500
    save_every: whole(1, 1_000_000) = 50
    visualize: Flag = True
    visualize_every: whole(1, 1_000_000) = 10


class Metrics(_Section):
    masking: Flag = False
    threshold: Flag = True
    threshold_type: ThresholdType = "p_quantile"
    p: Annotated[float, Field(strict=True, ge=0, le=100)] = 99.0
    k: Annotated[float, Field(strict=True, ge=0, le=100)] = 3.0
    max_false_alarms: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.05
    image_threshold: OptionalScore = None
    pixel_threshold: OptionalScore = None
    nominal: OptionalName = None
    optimal: Literal["f1", "youden"] = "f1"
    auroc: Flag = True
    pr: Flag = True
    pro: Flag = True
    iou: Flag = True
    misclassifications: Flag = True
    visualisation: Visualisation = "all"


class Masking(_Section):
    regions: dict[NameText, Regions] = {}


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


def of_category(config: Config, name: str) -> Config:
    """The same settings for another category."""
    return config.model_copy(update={"data": config.data.model_copy(update={"category": name})})


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
            allowed += f", in quotes: '{yaml_file.as_written(text, *path) or error['input']}'"
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
    text = yaml_file.read(path)
    values = yaml_file.parse(text, str(path))
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
            value = {category: yaml_file.parse(value, f"--set {REGIONS}.{category}")}
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
                values[section][name] = value if _is_text(key) else yaml_file.parse(value, f"--set {key}")
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
    values = yaml_file.parse(yaml_file.read(Path(path)), str(path)) if path else {}
    found = {f"{section}.{key}" for section, keys in (values or {}).items() for key in keys or {}}
    keys = (override.partition("=")[0].strip() for override in overrides)
    return found | {REGIONS if key.startswith(f"{REGIONS}.") else key for key in keys}


def edit_config(path: Path | str, changes: dict[str, Any]) -> str:
    """Text of a settings file with values changed (`section.key` -> value) and everything else kept, comments too."""
    return yaml_file.edit(path, changes)


def settings_text(path: Path | str, config: Config) -> str:
    """Text of a settings file, comments kept, with every value as it is in `config`."""
    sections = config.model_dump(mode="json").items()
    return yaml_file.edit(
        path, {f"{section}.{key}": value for section, keys in sections for key, value in keys.items()}
    )
