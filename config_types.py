"""Types of settings: which values are allowed, and what a setting affects."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic.fields import FieldInfo

from evaluation.thresholds import MANUAL, NOMINAL_KINDS
from runtime.cli import expand_path
from runtime.names import as_on_disk, composed


@dataclass(frozen=True)
class Affects:
    """What a setting affects. It stands in the declaration of each setting; all else is derived from it.

    Attributes:
        what: of `weights`, `maps`, `thresholds`, `display`; empty for nothing.
        on_resume: a run that resumes refuses another value (`fixed`), is extended by it (`extendable`), or takes it
            (`free`). Empty: fixed where it affects the weights, else free.
        from_checkpoint: inference on new images takes the checkpoint's value `always`, `unless set` by the user, or
            `never`.
        only_with: key of a setting that this one needs to have an effect.
        recorded_as: what a Provenance records in place of the value.
    """

    what: tuple[str, ...] = ()
    on_resume: str = ""
    from_checkpoint: str = "never"
    only_with: str | None = None
    recorded_as: str | None = None

    @property
    def resumes(self) -> str:
        """fixed, extendable or free."""
        return self.on_resume or ("fixed" if "weights" in self.what else "free")


LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, of Linux and most file systems

NOTHING, DISPLAY = Affects(), Affects(("display",))
WEIGHTS = Affects(("weights",))
EXTENDS = Affects(("weights",), on_resume="extendable")
NETWORKS = Affects(("weights",), from_checkpoint="always")
INPUT = Affects(("weights", "maps"), from_checkpoint="always")
TECHNIQUE = Affects(("maps",), from_checkpoint="unless set", recorded_as="technique")
REFERENCE = Affects(("weights", "maps"), "", "unless set", "data.registration_training", "reference")
NOMINAL_THRESHOLDS, MANUAL_THRESHOLDS = Affects(("thresholds",)), Affects(("thresholds",), recorded_as=MANUAL)


def _path(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    expanded = value if value == "~" else expand_path(value)  # "~" alone, in quotes: a folder's name
    path = expanded.replace("\\", "/")
    if not _can_be_named(path, LONGEST_PATH) or not all(_can_be_named(part, LONGEST_NAME) for part in path.split("/")):
        raise ValueError(f"must be a path in UTF-8, of parts of at most {LONGEST_NAME} bytes, {LONGEST_PATH} together")
    return as_on_disk(path)


def folder_name(value: str) -> str:
    """A name that a folder can have on every system, in composed form; ValueError for another."""
    if not value.strip() or set(value) & set('/\\:*?"<>|') or value in (".", ".."):
        raise ValueError("must be a plain folder name")
    if not _can_be_named(value, LONGEST_NAME):
        raise ValueError(f"must be a folder name in UTF-8 of at most {LONGEST_NAME} bytes")
    return composed(value)


def _can_be_named(text: str, limit: int) -> bool:
    """Whether a file can have this name or path, of at most `limit` bytes, and files of settings can hold it."""
    try:
        return len(text.encode()) <= limit and "\0" not in text
    except UnicodeEncodeError:
        return False


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
        return int(value) if str(value).isdecimal() and int(value) >= 1 else _path(str(value))
    raise ValueError("must be last, an epoch from 1, or the path of a checkpoint")


def _must(allowed: str, value: Any, is_fine: bool, low: int = 1, high: int = 0) -> Any:
    """The value, if `is_fine` or a whole number from low to high; else ValueError with what is allowed."""
    if is_fine or (type(value) is int and low <= value <= high):
        return value
    raise ValueError(f"must be {allowed}")


def auto_or(low: int, high: int) -> BeforeValidator:
    allowed = f"auto or a whole number from {low} to {high}"
    return BeforeValidator(lambda value: _must(allowed, value, value == "auto", low, high))


def _white_level(value: Any) -> Any:
    is_level = type(value) in (int, float) and 0 < value < 2**32
    return _must("auto, or the number that means white", value, value == "auto" or is_level)


def _training_registration(value: bool, info: ValidationInfo) -> bool:
    if value and not info.data.get("image_registration"):
        raise ValueError("must be true or false; true needs data.image_registration=true, for test images too")
    return value


def _cropping(value: bool, info: ValidationInfo) -> bool:
    if value and not info.data.get("registration_training"):
        raise ValueError("must be true or false; true needs data.registration_training=true, for parts of one size")
    return value


def _score(value: Any) -> Any:
    is_score = type(value) in (int, float) and 0 <= value <= 1
    return _must("null, or a number from 0 to 1", value, value is None or is_score)


def _split_by(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        groups = re.compile(value := composed(value)).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"must be a regular expression ({error})") from error
    if not groups:
        raise ValueError("must have a group in brackets, e.g. '(part\\d+)_'")
    return value


def _device(value: Any) -> Any:
    is_fine = value in ("auto", "cuda", "mps", "cpu") or bool(re.fullmatch("cuda:(0|[1-9][0-9]?)", str(value)))
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
    rectangles: list[Any] = list(values) if isinstance(values, (list, tuple)) and len(values) else [None]
    if type(rectangles[0]) is int:
        rectangles = [values]
    allowed = "rectangles [[y0, y1, x0, x1], ...] in pixels, y0 < y1 and x0 < x1, or a mask's path"
    for one in rectangles:
        is_four = isinstance(one, (list, tuple)) and len(one) == 4 and all(type(side) is int for side in one)
        _must(allowed, values, is_four and 0 <= one[0] < one[1] and 0 <= one[2] < one[3])
    return [list(rectangle) for rectangle in rectangles]


def _milestones(values: Any) -> Any:
    is_list = isinstance(values, (list, tuple)) and all(type(value) is float for value in values)
    is_fine = is_list and list(values) == sorted(set(values)) and all(0 < value < 1 for value in values)
    return list(_must("a list of numbers between 0 and 1 that rise, e.g. [0.8, 0.9]", values, is_fine))


def _optional(allowed: str, is_fine: Callable[[float], bool]) -> BeforeValidator:
    def check(value: Any) -> Any:
        return _must(f"null, or {allowed}", value, value is None or (type(value) in (int, float) and is_fine(value)))

    return BeforeValidator(check)


def _loss_weights(values: Any) -> Any:
    is_list = isinstance(values, (list, tuple)) and len(values) == 3
    is_fine = is_list and all(type(value) in (int, float) and 0 < value <= 1000 for value in values)
    return [float(value) for value in _must("three numbers above 0: of l2, ssim and focal", values, is_fine)]


def whole(low: int, high: int) -> Any:
    return Field(strict=True, ge=low, le=high)


PathText = Annotated[str, AfterValidator(_path)]
OptionalPathText = Annotated[str | None, AfterValidator(lambda value: value if value is None else _path(value))]
NameText = Annotated[str, AfterValidator(folder_name)]
Layout = Literal[
    "auto",
    "mvtec",
    "mvtec-ad-2",
    "mvtec-3d",
    "visa",
    "btad",
    "kolektor",
    "dagm",
    "real-iad",
    "folders",
    "table",
    "coco",
]
Flag = Annotated[bool, Field(strict=True)]
PositiveRate = Annotated[float, Field(strict=True, gt=0, le=1)]
ImageSize = Annotated[tuple[int, int], BeforeValidator(_img_size)]
TrainingRegistration = Annotated[Flag, AfterValidator(_training_registration)]
Cropping = Annotated[Flag, AfterValidator(_cropping)]
TileSize = Annotated[tuple[int, int] | None, BeforeValidator(_tile_size)]
Epoch = Annotated[int | str, BeforeValidator(_load_epoch)]
Grouping = Annotated[str | None, AfterValidator(_split_by)]
WhiteLevel = Annotated[float | str, BeforeValidator(_white_level)]
Device = Annotated[str, BeforeValidator(_device)]
Milestones = Annotated[list[float], BeforeValidator(_milestones)]
LossWeights = Annotated[list[float], BeforeValidator(_loss_weights)]
OptionalPositive = Annotated[float | None, _optional("a number above 0", lambda value: 0 < value < math.inf)]
OptionalShare = Annotated[float | None, _optional("a number between 0 and 1", lambda value: 0 < value < 1)]
Compile = Annotated[Literal["auto", "on", "off"], BeforeValidator(_compile)]
ThresholdType = Annotated[
    Literal["max", "p_quantile", "k_sigma", "conformal", "manual"], BeforeValidator(_threshold_type)
]
OptionalScore = Annotated[float | None, BeforeValidator(_score)]
OptionalName = Annotated[str | None, AfterValidator(lambda value: value if value is None else folder_name(value))]
Visualisation = Annotated[int | str, BeforeValidator(_visualisation)]
Regions = Annotated[list[list[int]] | str, BeforeValidator(_regions)]


def allowed_values(error: dict[str, Any], field: FieldInfo | None, written: str | None) -> str:
    """What a value that pydantic refused must be, as the end of a sentence.

    Args:
        error: one of ValidationError.errors().
        field: the setting's; None for a section.
        written: the value as it stands in the file, None where it is from the command line.
    """
    metadata, signs = field.metadata if field else (), {"ge": "from", "gt": "above", "lt": "to below", "le": "to"}
    limits = {sign: getattr(item, name) for item in metadata for name, sign in signs.items() if hasattr(item, name)}
    kinds = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list"}
    kinds["dict"] = "a mapping of categories, e.g. {bottle: [[0, 40, 0, 900]]}"
    if "error" in error.get("ctx", {}):
        return str(error["ctx"]["error"])
    if error["type"] == "literal_error":
        return f"must be one of {error['ctx']['expected']}"
    if error["type"] in ("model_type", "model_attributes_type"):
        return "must be a section with keys below it"
    kind = next((text for name, text in kinds.items() if error["type"].startswith(name)), None)
    kind = kind or ("a whole number" if field and field.annotation is int else "a number")
    bounds = [f"{sign} {limits[sign]}" for sign in signs.values() if limits.get(sign) is not None]
    quoted = ""
    if kind == "text" and not isinstance(error["input"], (dict, list)):
        quoted = f", in quotes: '{written or error['input']}'"
    return " ".join(["must be", kind, *bounds]) + quoted
