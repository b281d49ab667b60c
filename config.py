"""The schema of config.yaml: each setting, its allowed values, and what it affects."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from pydantic.fields import FieldInfo

import config_types as kinds
from config_types import Affects
from evaluation.thresholds import OPTIMAL
from runtime.errors import UserError
from runtime.names import as_on_disk

TRAINED_WITH = "the checkpoint's settings"  # what `source_of` says of settings that a checkpoint brought along


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    data_path: Annotated[kinds.PathText, kinds.WEIGHTS] = "./datasets/mvtec"
    category: Annotated[kinds.NameText, kinds.INPUT] = "bottle"
    layout: Annotated[kinds.Layout, kinds.WEIGHTS] = "auto"
    table: Annotated[kinds.OptionalPathText, kinds.WEIGHTS] = None
    coco: Annotated[kinds.OptionalPathText, kinds.WEIGHTS] = None
    nominal_folder: Annotated[kinds.OptionalPathText, kinds.WEIGHTS] = None
    anomalous_folder: Annotated[kinds.OptionalPathText, kinds.WEIGHTS] = None
    test_split: Annotated[float, Field(strict=True, ge=0, lt=1), kinds.WEIGHTS] = 0.2
    test_seed: Annotated[int, kinds.whole(0, 2**32 - 1), kinds.WEIGHTS] = 0
    anomaly_source_path: Annotated[kinds.PathText, kinds.WEIGHTS] = "dtd/images"
    checkpoint_path: Annotated[kinds.PathText, kinds.NOTHING] = "./checkpoints"
    results_path: Annotated[kinds.PathText, kinds.NOTHING] = "./results"
    run_name: Annotated[kinds.NameText, Affects(from_checkpoint="unless set")] = "draem"
    img_size: Annotated[kinds.ImageSize, kinds.INPUT] = (256, 256)
    tile_size: Annotated[kinds.TileSize, kinds.INPUT] = None
    tile_overlap: Annotated[
        float,
        Field(strict=True, ge=0, le=0.75),
        Affects(("maps",), from_checkpoint="unless set", only_with="data.tile_size"),
    ] = 0.25
    load_epoch: Annotated[kinds.Epoch, kinds.NOTHING] = "last"
    test_batch_size: Annotated[int, kinds.whole(1, 4096), kinds.NOTHING] = 8
    val_split: Annotated[float, Field(strict=True, ge=0, lt=1), kinds.WEIGHTS] = 0.2
    split_by: Annotated[kinds.Grouping, kinds.WEIGHTS] = None
    white_level: Annotated[kinds.WhiteLevel, Affects(("weights", "maps"), from_checkpoint="unless set")] = "auto"
    num_workers: Annotated[int | str, kinds.auto_or(0, 1024), kinds.NOTHING] = "auto"
    image_registration: Annotated[kinds.Flag, kinds.TECHNIQUE] = False
    registration_method: Annotated[Literal["scene", "part"], kinds.REFERENCE] = "scene"
    registration_mirror: Annotated[kinds.Flag, kinds.REFERENCE] = False
    registration_training: Annotated[kinds.TrainingRegistration, kinds.NETWORKS] = False
    registration_crop: Annotated[kinds.Cropping, kinds.NETWORKS] = False
    registration_reference: Annotated[kinds.OptionalPathText, kinds.REFERENCE] = None
    pre_masking: Annotated[kinds.Flag, kinds.TECHNIQUE] = False

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of what the networks see: a tile, or the whole image."""
        return self.tile_size or self.img_size

    @property
    def known_white_level(self) -> float | None:
        """The value of white; None for that of the files' type, and before `auto` is resolved."""
        return None if isinstance(self.white_level, str) else self.white_level


class Model(_Section):
    base_width: Annotated[int, kinds.whole(1, 4096), kinds.NETWORKS] = 128
    base_channels: Annotated[int, kinds.whole(1, 4096), kinds.NETWORKS] = 64


class Train(_Section):
    epochs: Annotated[int, kinds.whole(1, 1_000_000), kinds.EXTENDS] = 700
    batch_size: Annotated[int, kinds.whole(1, 4096), kinds.WEIGHTS] = 8
    tiles_per_image: Annotated[
        int | str, kinds.auto_or(1, 2**16), Affects(("weights",), only_with="data.tile_size")
    ] = "auto"
    learning_rate: Annotated[kinds.PositiveRate, kinds.EXTENDS] = 1e-4
    lr_schedule: Annotated[Literal["steps", "one_cycle"], kinds.WEIGHTS] = "steps"
    lr_milestones: Annotated[kinds.Milestones, kinds.EXTENDS] = [0.8, 0.9]
    lr_gamma: Annotated[kinds.PositiveRate, kinds.EXTENDS] = 0.2
    weight_decay: Annotated[float, Field(strict=True, ge=0, le=1), kinds.WEIGHTS] = 0.0
    gradient_clip: Annotated[kinds.OptionalPositive, kinds.WEIGHTS] = None
    ema_decay: Annotated[kinds.OptionalShare, kinds.WEIGHTS] = None
    loss_weights: Annotated[kinds.LossWeights, kinds.WEIGHTS] = [1.0, 1.0, 1.0]
    cut: Annotated[kinds.Flag, kinds.WEIGHTS] = True
    seed: Annotated[int, kinds.whole(0, 2**32 - 1), kinds.WEIGHTS] = 0
    device: Annotated[kinds.Device, kinds.NOTHING] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], Affects(("maps",), from_checkpoint="unless set", recorded_as="precision")
    ] = "auto"
    compile: Annotated[kinds.Compile, kinds.NOTHING] = "auto"
    resume: Annotated[Literal["auto", "never", "must"], kinds.NOTHING] = "auto"
    start_from: Annotated[kinds.OptionalPathText, kinds.WEIGHTS] = None
    save_from: Annotated[int, kinds.whole(1, 1_000_000), kinds.NOTHING] = 500
    save_every: Annotated[int, kinds.whole(1, 1_000_000), kinds.NOTHING] = 50
    visualize: Annotated[kinds.Flag, kinds.DISPLAY] = True
    visualize_every: Annotated[int, kinds.whole(1, 1_000_000), kinds.DISPLAY] = 10


class Synthesis(_Section):
    clean_share: Annotated[float, Field(strict=True, ge=0, le=1), kinds.WEIGHTS] = 0.5
    max_transparency: Annotated[float, Field(strict=True, ge=0, le=1), kinds.WEIGHTS] = 0.8
    gray_textures: Annotated[Literal["never", "auto"], kinds.WEIGHTS] = "never"
    own_images: Annotated[float, Field(strict=True, ge=0, le=1), kinds.WEIGHTS] = 0.0
    min_alignment: Annotated[float, Field(strict=True, ge=0, le=1), kinds.WEIGHTS] = 0.0
    adjusted_images: Annotated[float, Field(strict=True, ge=0, le=1), kinds.WEIGHTS] = 0.0
    light: Annotated[float, Field(strict=True, ge=0, le=1), kinds.WEIGHTS] = 0.0
    max_rotation: Annotated[float, Field(strict=True, ge=0, le=180), kinds.WEIGHTS] = 90.0


class Metrics(_Section):
    masking: Annotated[kinds.Flag, kinds.TECHNIQUE] = False
    threshold: Annotated[kinds.Flag, kinds.DISPLAY] = True
    threshold_type: Annotated[kinds.ThresholdType, kinds.DISPLAY] = "p_quantile"
    p: Annotated[float, Field(strict=True, ge=0, le=100), kinds.NOMINAL_THRESHOLDS] = 99.0
    k: Annotated[float, Field(strict=True, ge=0, le=100), kinds.NOMINAL_THRESHOLDS] = 3.0
    max_false_alarms: Annotated[float, Field(strict=True, ge=1e-6, le=0.999), kinds.NOMINAL_THRESHOLDS] = 0.05
    image_threshold: Annotated[kinds.OptionalScore, kinds.MANUAL_THRESHOLDS] = None
    pixel_threshold: Annotated[kinds.OptionalScore, kinds.MANUAL_THRESHOLDS] = None
    nominal: Annotated[kinds.OptionalName, kinds.DISPLAY] = None
    optimal: Annotated[Literal["f1", "youden"], Affects(("thresholds",), recorded_as=OPTIMAL)] = "f1"
    auroc: Annotated[kinds.Flag, kinds.DISPLAY] = True
    pr: Annotated[kinds.Flag, kinds.DISPLAY] = True
    pro: Annotated[kinds.Flag, kinds.DISPLAY] = True
    iou: Annotated[kinds.Flag, kinds.DISPLAY] = True
    misclassifications: Annotated[kinds.Flag, kinds.DISPLAY] = True
    visualisation: Annotated[kinds.Visualisation, kinds.DISPLAY] = "all"


class Inference(_Section):
    engine: Annotated[Literal["torch", "openvino", "openvino-int8"], kinds.NOTHING] = "torch"


class Watch(_Section):
    quiet_seconds: Annotated[float, Field(strict=True, gt=0, le=3600), kinds.NOTHING] = 2.0
    exclude: Annotated[list[str], kinds.NOTHING] = []


class Feedback(_Section):
    epochs: Annotated[int, kinds.whole(1, 1_000_000), kinds.NOTHING] = 20


class Export(_Section):
    max_loss_pixel_ap: Annotated[float, Field(strict=True, ge=0, le=1), kinds.NOTHING] = 0.005
    max_loss_image_auroc: Annotated[float, Field(strict=True, ge=0, le=1), kinds.NOTHING] = 0.002
    min_speedup: Annotated[float, Field(strict=True, ge=0, le=100), kinds.NOTHING] = 1.3


class Masking(_Section):
    regions: Annotated[
        dict[kinds.NameText, kinds.Regions], Affects(("maps",), from_checkpoint="unless set", recorded_as="region")
    ] = {}


class Config(_Section):
    """Every setting, checked. Sections may be left out; their keys then have the values of config.yaml.

    It knows of each key where its value is from: `source_of`.
    """

    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    synthesis: Synthesis = Synthesis()
    metrics: Metrics = Metrics()
    masking: Masking = Masking()
    inference: Inference = Inference()
    watch: Watch = Watch()
    feedback: Feedback = Feedback()
    export: Export = Export()
    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether all values are the same, wherever they are from."""
        return isinstance(other, Config) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]  # values can be lists

    @property
    def run_folder(self) -> Path:
        """Where this category's run is kept."""
        return Path(as_on_disk(f"{self.data.checkpoint_path}/{self.data.category}/{self.data.run_name}"))

    def __getitem__(self, key: str) -> Any:
        """Value of `section.key`."""
        section, _, name = key.partition(".")
        return getattr(getattr(self, section), name)

    def source_of(self, key: str) -> str:
        """Where the value of `section.key` is from: config.yaml, the checkpoint's settings, a file, or --set."""
        return self._sources.get(key, "config.yaml")

    def is_explicit(self, key: str) -> bool:
        """Whether the user has set this key in a file named by --config, or by --set."""
        return self.source_of(key) not in ("config.yaml", TRAINED_WITH)

    def with_values(self, changes: dict[str, Any], source: str | None = None) -> "Config":
        """A copy with changed values, `section.key` -> value, which are not validated again.

        source: where they are from; None keeps what is recorded.
        """
        sections: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            section, _, name = key.partition(".")
            sections.setdefault(section, {})[name] = value
        copy = self.model_copy(
            update={section: getattr(self, section).model_copy(update=values) for section, values in sections.items()}
        )
        copy._sources = self._sources | (dict.fromkeys(changes, source) if source else {})
        return copy


def fields_of(section: str) -> dict[str, FieldInfo]:
    """Name -> field, of a section of the settings."""
    model: Any = Config.model_fields[section].annotation
    return model.model_fields


def effects() -> dict[str, Affects]:
    """`section.key` -> what it affects, of every setting."""
    return {
        f"{section}.{name}": next(one for one in field.metadata if isinstance(one, Affects))
        for section in Config.model_fields
        for name, field in fields_of(section).items()
    }


def keys_that_affect(what: str, recorded_as: str | None = None) -> list[str]:
    """Keys of the settings that affect `what`: weights, maps, thresholds or display.

    recorded_as: those that a Provenance records under this name; None: those that it records by value.
    """
    return [key for key, one in effects().items() if what in one.what and one.recorded_as == recorded_as]


def weight_settings(config: Config) -> dict[str, Any]:
    """Settings that the weights depend on, key -> plain value; the default for one that has no effect."""
    plain, values = config.model_dump(mode="json"), {}
    for key, one in effects().items():
        if "weights" not in one.what:
            continue
        section, _, name = key.partition(".")
        has_effect = one.only_with is None or config[one.only_with]
        values[key] = plain[section][name] if has_effect else getattr(Config.model_fields[section].default, name)
    return values


def map_settings(config: Config) -> dict[str, Any]:
    """Settings that anomaly maps depend on and that a Provenance records by value: name -> plain value."""
    return _recorded(config, keys_that_affect("maps"))


def threshold_settings(config: Config, kind: str | None = None) -> dict[str, Any]:
    """Settings that thresholds depend on, name -> value. kind: manual, optimal, or None for those of nominal images."""
    return _recorded(config, keys_that_affect("thresholds", kind))


def _recorded(config: Config, keys: Iterable[str]) -> dict[str, Any]:
    found = {}
    for key in keys:
        only_with = effects()[key].only_with
        value = config[key] if only_with is None or config[only_with] else None
        found[key.partition(".")[2]] = list(value) if isinstance(value, tuple) else value
    return found


def with_checkpoint_settings(config: Config, trained: Config, path: Path) -> Config:
    """The settings with those that a checkpoint brings along for inference on new images.

    Raises:
        UserError: the user has set another value than the checkpoint can be used with.
    """
    changes = {}
    for key, one in effects().items():
        now, there = config[key], trained[key]
        if one.from_checkpoint == "always" and config.is_explicit(key) and there != now:
            raise UserError(f"{key} = {now}", f"{path} was trained with {there}", "leave it out")
        if one.from_checkpoint == "always" or (one.from_checkpoint == "unless set" and not config.is_explicit(key)):
            changes[key] = there
    config = config.with_values(changes, TRAINED_WITH)
    if config.data.registration_training and not config.data.image_registration:
        raise UserError("data.image_registration = false", f"{path} was trained on registered images", "leave it out")
    return config


def with_category(config: Config, name: str) -> Config:
    """The same settings for another category."""
    return config.with_values({"data.category": name})


def with_white_level(config: Config, white_level: float | None) -> Config:
    """The settings with the value of white that images are read with, None for that of their files."""
    return config.with_values({"data.white_level": white_level})


def recipe(config: Config) -> str:
    """What differs from the published recipe: keys and values, or `as published`."""
    now, published = config.model_dump(mode="json"), Config().model_dump(mode="json")
    differ = [
        f"{key} = {now[section][name]}"
        for key, one in effects().items()
        for section, name in [key.split(".")]
        if "weights" in one.what and section in ("model", "train", "synthesis") and key != "train.seed"
        if now[section][name] != published[section][name]
    ]
    return ", ".join(differ) or "as published"
