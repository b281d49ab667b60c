"""The schema of config.yaml: load, override, check, edit."""

import difflib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from errors import UserError

THRESHOLD_TYPES = ("max", "p_quantile", "k_sigma")
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


def _load_epoch(value: Any) -> Any:
    if (type(value) is int and value >= 1) or (isinstance(value, str) and value.strip()):
        # The command line gives text only.
        return int(value) if str(value).isdecimal() and int(value) >= 1 else str(value).replace("\\", "/")
    raise ValueError("must be last, an epoch from 1, or the path of a checkpoint")


def _auto_or_count(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 0 <= value <= 1024):
        return value
    raise ValueError("must be auto or a whole number from 0 to 1024")


def _threshold_type(value: Any) -> Any:
    return THRESHOLD_TYPES[value] if type(value) is int and 0 <= value <= 2 else value


def _visualisation(value: Any) -> Any:
    if type(value) is bool:
        return "all" if value else "none"
    if value in ("all", "errors", "none") or (type(value) is int and value >= 0):
        return value
    raise ValueError("must be all, errors, none, or a number of images from 0")


def _device(value: str) -> str:
    if value in ("auto", "cuda", "mps", "cpu") or (value.startswith("cuda:") and value[5:].isdecimal()):
        return value
    raise ValueError("must be auto, cuda, cuda:N, mps or cpu")


def _regions(values: Any) -> Any:
    if isinstance(values, str):
        return _path(values)
    is_list = isinstance(values, (list, tuple)) and len(values) > 0
    rectangles = [values] if is_list and type(values[0]) is int else values
    for rectangle in rectangles if is_list else [None]:
        is_four = (
            isinstance(rectangle, (list, tuple)) and len(rectangle) == 4 and all(type(v) is int for v in rectangle)
        )
        if not is_four or not (0 <= rectangle[0] < rectangle[1] and 0 <= rectangle[2] < rectangle[3]):
            raise ValueError(
                "must be rectangles [[y0, y1, x0, x1], ...] in pixels, y0 < y1 and x0 < x1, or a mask's path"
            )
    return [list(rectangle) for rectangle in rectangles]


def _milestones(values: Any) -> Any:
    is_list = isinstance(values, (list, tuple)) and all(type(value) is float for value in values)
    if is_list and values == sorted(set(values)) and all(0 < value < 1 for value in values):
        return list(values)
    raise ValueError("must be a list of numbers between 0 and 1 that rise, e.g. [0.8, 0.9]")


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
    load_epoch: Annotated[int | str, BeforeValidator(_load_epoch)] = "last"
    test_batch_size: _whole(1, 4096) = 8
    val_split: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.2
    num_workers: Annotated[int | str, BeforeValidator(_auto_or_count)] = "auto"
    image_registration: Flag = False
    registration_reference: OptionalPathText = None
    pre_masking: Flag = False


class Model(_Section):
    base_width: _whole(1, 4096) = 128
    base_channels: _whole(1, 4096) = 64


class Train(_Section):
    epochs: _whole(1, 1_000_000) = 700
    batch_size: _whole(1, 4096) = 8
    learning_rate: PositiveRate = 1e-4
    lr_milestones: Annotated[list[float], BeforeValidator(_milestones)] = [0.8, 0.9]
    lr_gamma: PositiveRate = 0.2
    cut: Flag = True
    seed: _whole(0, 2**32 - 1) = 0
    device: Annotated[str, AfterValidator(_device)] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    resume: Literal["auto", "never", "must"] = "auto"
    save_from: _whole(1, 1_000_000) = 500
    save_every: _whole(1, 1_000_000) = 50
    visualize: Flag = True
    visualize_every: _whole(1, 1_000_000) = 10


class Metrics(_Section):
    masking: Flag = False
    threshold: Flag = True
    threshold_type: Annotated[Literal[THRESHOLD_TYPES], BeforeValidator(_threshold_type)] = "p_quantile"
    p: Annotated[float, Field(strict=True, ge=0, le=100)] = 99.0
    k: Annotated[float, Field(strict=True, ge=0, le=100)] = 3.0
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


def _yaml() -> YAML:
    yaml = YAML()  # YAML 1.2, keeps comments: on and off are text, 1e-4 is a number
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml


def _parse(text: str, source: str, keep_comments: Flag = False) -> Any:
    try:
        return (_yaml() if keep_comments else YAML(typ="safe", pure=True)).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{source}{where}: not valid YAML ({error.problem or error.context}); mend it there") from error
    except YAMLError as error:
        raise UserError(f"{source}: not valid YAML ({error})") from error


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
    return field.annotation is str or key in ("data.load_epoch", "data.registration_reference")


def _problem(error: dict[str, Any]) -> str:
    path = error["loc"]
    key = ".".join(str(part) for part in path[:2])
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown(key)
    context = error.get("ctx", {})
    field = Config.model_fields[path[0]].annotation.model_fields.get(path[1]) if len(path) > 1 else None
    limits = {name: value for item in (field.metadata if field else []) for name, value in _limits(item).items()}
    kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list"}
    if "error" in context:
        allowed = str(context["error"])
    elif error["type"] == "literal_error":
        allowed = f"must be one of {context['expected']}"
    elif error["type"] in ("model_type", "model_attributes_type"):
        allowed = "must be a section with keys below it"
    else:
        word = next((text for name, text in kind.items() if error["type"].startswith(name)), None)
        word = word or ("a whole number" if field and field.annotation is int else "a number")
        signs = {"ge": "from", "gt": "above", "lt": "to below", "le": "to"}
        bounds = [f"{sign} {limits[name]}" for name, sign in signs.items() if name in limits]
        allowed = " ".join(["must be", word, *bounds])
        if word == "text":
            allowed += f", in quotes: '{error['input']}'"
    value = repr(error["input"]) if isinstance(error["input"], str) else error["input"]
    return f"{'.'.join(map(str, path))} = {value}: {allowed}"


def _limits(item: Any) -> dict[str, Any]:
    return {name: getattr(item, name) for name in ("ge", "gt", "lt", "le") if getattr(item, name, None) is not None}


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> Config:
    """Read and check settings.

    Args:
        path: YAML file.
        overrides: `section.key=value`, the value in YAML; for a key of text type taken as written.

    Raises:
        UserError: unreadable file, bad YAML (line and column), unknown keys, values out of range; all at once.
    """
    path = Path(path)
    values = _parse(_read(path), str(path))
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold the sections {', '.join(Config.model_fields)}")
    values = {section: {} if keys is None else keys for section, keys in values.items()}
    problems, overridden = [], set()
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals:
            raise UserError(f"--set {override}: must be section.key=value, e.g. --set data.category=bottle")
        if key.startswith(f"{REGIONS}."):  # of one category
            category, key = key[len(REGIONS) + 1 :], REGIONS
            text = {category: _parse(text, f"--set {REGIONS}.{category}")}
        if key not in _known_keys():
            problems.append(f"--set {_unknown(key)}")
            continue
        overridden.add(key)
        section, name = key.split(".")
        if isinstance(values.setdefault(section, {}), dict):
            if isinstance(text, dict):
                values[section][name] = (values[section].get(name) or {}) | text
            else:
                values[section][name] = text if _is_text(key) else _parse(text, f"--set {key}")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        for item in error.errors():
            source = "--set" if ".".join(map(str, item["loc"][:2])) in overridden else f"{path}:"
            problems.append(f"{source} {_problem(item)}")
    if problems:
        raise UserError("\n".join(problems))
    return config


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; name a settings file with --config") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a settings file ({error})") from error


def edit_config(path: Path | str, changes: dict[str, Any]) -> str:
    """Text of a settings file with values changed and everything else kept, comments too.

    Args:
        changes: `section.key` -> value.
    """
    document = _parse(_read(Path(path)), str(path), keep_comments=True) or {}
    for key, value in changes.items():
        section, name = key.split(".")
        if isinstance(value, list):
            value = CommentedSeq(value)
            value.fa.set_flow_style()
        if document.get(section) is None:
            document[section] = {}
        document[section][name] = value
    stream = io.StringIO()
    _yaml().dump(document, stream)
    return stream.getvalue()


def settings_text(path: Path | str, config: Config) -> str:
    """Text of a settings file, comments kept, with every value as it is in `config`."""
    sections = config.model_dump(mode="json").items()
    return edit_config(path, {f"{section}.{key}": value for section, keys in sections for key, value in keys.items()})
