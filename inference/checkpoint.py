"""Read checkpoints of this program, and pairs of weight files of the original DRAEM."""

import pickle
import re
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from config import Config, with_checkpoint_settings, with_white_level
from data.image_io import EmbeddedImage, find_white_level
from data.layouts.registry import nominal_if_there
from inference.fingerprint import fingerprint, has_plain_values, is_damaged, load_plain
from model import DRAEM
from runtime.errors import UserError
from runtime.provenance import Provenance, file_state

# Pairs of weight files: suffix -> pattern in the reconstructive network's stem, its replacement in the other stem.
PAIRS = {
    ".pckl": (r"$", "_seg"),  # the original: NAME.pckl, NAME_seg.pckl
    ".pth": (r"_REC_MODEL_(?=\d+$)", "_SEG_MODEL_"),  # earlier code: NAME_REC_MODEL_700.pth, NAME_SEG_MODEL_700.pth
}

# Setting of a network's width -> the weight whose first dimension is that width.
WIDTH_KEYS = {
    "model.base_width": "reconstructive.encoder.block1.0.weight",
    "model.base_channels": "discriminative.encoder_segment.block1.0.weight",
}

TENSORS_IN = ("model", "raw_model", "optimizer", "progress", "embedded_assets")  # entries of checkpoints

FIX_HINT = "set data.load_epoch to another checkpoint, or train again with train.resume=never"


@dataclass(frozen=True)
class TrainingImages:
    """The nominal images of a training run: name -> digest of the file's content."""

    training: dict[str, str]
    held_out: dict[str, str]

    @property
    def held_out_copies(self) -> list[str]:
        """Names of held-out images whose content was trained on as well."""
        trained = set(self.training.values())
        return [name for name, digest in self.held_out.items() if digest in trained]


@dataclass(frozen=True)
class CheckpointMetadata:
    """A checkpoint without its model.

    Attributes:
        name: name in results: the epoch, with the fingerprint if the weights do not belong to the configured run; the
            stem of a file of another program.
        images: nominal images of the training; None if unknown (weights of another program).
        is_within_epoch: whether the training was interrupted within an epoch, so that its weights are of no whole one.
        white_level: of the training images, see `image_io.read_image`.
        embedded_assets: images for masking and registration, see `inference.embedded_assets.embed`.
        settings, made_from: of the training, and what it was trained on; None if unknown.
    """

    name: str
    path: Path
    images: TrainingImages | None = None
    is_within_epoch: bool = False
    white_level: float | None = None
    embedded_assets: dict[str, EmbeddedImage] = field(default_factory=dict)
    settings: Config | None = None
    made_from: Provenance | None = None

    @property
    def is_of_registered(self) -> bool:
        """Whether the model was trained on registered images."""
        return self.settings is not None and self.settings.data.registration_training

    def assets_for(self, config: Config) -> dict[str, EmbeddedImage]:
        """The embedded images to use: those whose setting, and the category, are as in training and not set explicitly.

        The reference of a training on registered images is always used; UserError if the checkpoint does not have it.
        """
        keys = {"reference": "data.registration_reference", "region": "masking.regions"}
        assets = {
            name: asset
            for name, asset in self.embedded_assets.items()
            if self.settings
            and not config.is_explicit(keys[name])
            and all(config[key] == self.settings[key] for key in (keys[name], "data.category"))
        }
        if self.is_of_registered:
            if "reference" not in self.embedded_assets:
                raise UserError(self.path, "trained on registered images, but has no reference image", "train again")
            assets["reference"] = self.embedded_assets["reference"]
        return assets


@dataclass(frozen=True, kw_only=True)
class Checkpoint(CheckpointMetadata):
    """A trained model with its metadata. fingerprint: digest of the weights, see the function of this name."""

    model: DRAEM
    fingerprint: str


def read(path: Path, only_metadata: bool = False) -> dict[str, Any]:
    """Read a checkpoint file to the CPU; only tensors and plain values are unpickled. UserError if it is damaged.

    only_metadata: do not read the weights. They must not be used then, as the file may be replaced.
    """
    try:
        content = load_plain(path, mmap=only_metadata)
    except pickle.UnpicklingError as error:
        raise UserError(
            path, "damaged, or contains pickled code, which is not executed", "use a checkpoint that has only tensors"
        ) from error
    except (PermissionError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # a damaged file can cause many types of errors
        raise UserError(path, "truncated or not a checkpoint", FIX_HINT) from error
    if not isinstance(content, dict):
        raise UserError(path, "not a checkpoint of this program or of the original", FIX_HINT)
    is_own = path.suffix not in PAIRS
    if is_own and "pictures" in content:
        raise UserError(path, "of an earlier, unreleased version of this program", FIX_HINT)
    if not has_plain_values(content, TENSORS_IN if is_own else content) or (is_own and not _is_sound(content)):
        raise UserError(path, "damaged, or not a checkpoint of this program", FIX_HINT)
    if not only_metadata and is_damaged(content):
        raise UserError(path, "damaged: its content does not match its checksum", FIX_HINT)
    return content


def _is_sound(content: dict[str, Any]) -> bool:
    """Whether a checkpoint of this program has all required entries with the right types."""
    model, epoch, images = content.get("model"), content.get("epoch"), content.get("images")
    entries = (content.get(name, {}) for name in (*TENSORS_IN, "settings"))
    return (
        all(isinstance(one, dict) for one in entries)
        and isinstance(model, dict)
        and "settings" in content
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in model.items())
        and type(epoch) is int
        and epoch >= (0 if content.get("progress") else 1)  # 0: interrupted in the first epoch
        and isinstance(images, dict)
        and images.keys() == {"training", "held_out"}
        and type(content.get("averaged_steps", 0)) is int
    )


def epoch_path(run: Path, epoch: int) -> Path:
    """Checkpoint file of an epoch in the folder of a run."""
    return run / f"epoch_{epoch:04d}.pt"


def saved_epochs(run: Path) -> list[int]:
    """Epochs with a checkpoint file in the folder of a run, in ascending order."""
    names = {path.name for path in run.glob("epoch_*.pt") if path.is_file()}
    matches = (re.fullmatch(r"epoch_(\d{4,9})\.pt", name) for name in names)
    return sorted({epoch for match in matches if match and epoch_path(run, epoch := int(match[1])).name in names})


def epoch_of(path: Path) -> int:
    """Epoch of a checkpoint of this program: from the name epoch_*.pt, else from the content of the file."""
    match = re.fullmatch(r"epoch_(\d+)", path.stem)
    return int(match[1]) if match else int(load_metadata(path).name)


def find(config: Config, load_epoch: int | str) -> Path:
    """Path of the checkpoint for an epoch, 'last' or a path; UserError with the saved epochs if it does not exist."""
    run = config.run_folder
    path = epoch_path(run, load_epoch) if isinstance(load_epoch, int) else Path(load_epoch)
    if load_epoch == "last":
        path = run / "last.pt"
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError("data.load_epoch", f"{path} is a folder", "set it to a checkpoint file")
    fix = "train first: python main.py --train True (or give the --config and --set of the training)"
    if epochs := ", ".join(map(str, saved_epochs(run))):
        fix = f"set it to one of the saved epochs: {epochs}"
    elif others := ", ".join(sorted(one.name for one in run.parent.glob("*/") if saved_epochs(one))):
        fix = f"give the --config and --set of the training, or set data.run_name to one of: {others}"
    raise UserError("data.load_epoch", f"no checkpoint {path}", fix)


def load(config: Config, load_epoch: int | str | None = None) -> Checkpoint:
    """Load a checkpoint into a model of the configured widths; UserError if it does not fit the settings.

    load_epoch: see `find`; None: data.load_epoch. Of a pair of weight files, that of the reconstructive network.
    """
    path = find(config, config.data.load_epoch if load_epoch is None else load_epoch)
    content = read(path)
    if path.suffix in PAIRS:
        beside = _second_of_pair(path)
        if not beside.is_file():
            raise UserError(beside, f"missing, but {path.name} is one of a pair", "put both files into one folder")
        pair = {"reconstructive": content, "discriminative": read(beside)}
        weights = {f"{net}.{key}": value for net, state in pair.items() for key, value in state.items()}
        content = {}
    else:
        weights = content["model"]
    model = DRAEM(config.model.base_width, config.model.base_channels)
    metadata = metadata_of(path, content)
    check_widths(path, weights, config)
    _check_fit(path, metadata.settings, config)
    try:
        model.load_state_dict(weights)
        own = fingerprint(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(path, "its weights are not those of a DRAEM model", FIX_HINT) from error
    name = _name(config, metadata, own) if content else path.stem
    known = {one.name: getattr(metadata, one.name) for one in fields(metadata)} | {"name": name}
    return Checkpoint(**known, model=model, fingerprint=own)


def check_widths(path: Path, weights: dict[str, Tensor], config: Config) -> None:
    """UserError if the widths of the networks differ from the settings."""
    there = {key: weights.get(name) for key, name in WIDTH_KEYS.items()}
    widths = {key: one.shape[0] for key, one in there.items() if isinstance(one, Tensor) and one.ndim == 4}
    if wrong := {key: width for key, width in widths.items() if width != config[key]}:
        found = ", ".join(f"{key} = {width}" for key, width in wrong.items())
        fix = "set " + " and ".join(f"{key}={width}" for key, width in wrong.items())
        if (settings := path.parent / "config.yaml").is_file():
            fix += f", or give the settings of its training: --config {settings}"
        raise UserError(path, f"has {found}, the settings have {', '.join(str(config[key]) for key in wrong)}", fix)


def notes_on_size(config: Config, ckpt: CheckpointMetadata) -> list[str]:
    """A sentence where the training had another image size."""
    trained = ckpt.settings.data.img_size if ckpt.settings else config.data.img_size
    if trained == config.data.img_size:
        return []
    return [f"data.img_size is {list(config.data.img_size)}, but {ckpt.path} was trained with {list(trained)}"]


def _check_fit(path: Path, trained: Config | None, config: Config) -> None:
    """UserError if the training had another tile size, or another method of registration."""
    if trained is None:
        return
    trained_data, data = trained.data, config.data
    if trained_data.tile_size != data.tile_size:
        size, trained_size = ("null" if one is None else list(one) for one in (data.tile_size, trained_data.tile_size))
        raise UserError(
            f"data.tile_size = {size}", f"{path} was trained with {trained_size}", f"set data.tile_size={trained_size}"
        )
    if trained_data.registration_training and trained_data.registration_method != data.registration_method:
        raise UserError(
            f"data.registration_method = {data.registration_method}",
            f"{path} was trained on images registered with the method {trained_data.registration_method}",
            f"set data.registration_method={trained_data.registration_method} and data.image_registration=true",
        )


def _name(config: Config, found: CheckpointMetadata, own: str) -> str:
    """Name in results: the epoch, with the fingerprint `own` of the weights if they are not this run's after it."""
    run = config.run_folder
    if found.is_within_epoch:
        return f"{found.name}_{own[:8]}"
    if found.path.resolve().parent == run.resolve():
        return found.name
    same_epoch = epoch_path(run, int(found.name))
    if same_epoch.is_file() and fingerprint(read(same_epoch)["model"]) == own:
        return found.name  # a copy
    return f"{found.name}_{own[:8]}"


def _second_of_pair(path: Path) -> Path:
    """File of the discriminative network, for the file of the reconstructive network."""
    first, second = PAIRS[path.suffix]
    if not re.search(first, path.stem):
        raise UserError(path, "one of a pair", "use the reconstructive network's file, ..._REC_MODEL_<epoch>.pth")
    return path.with_name(re.sub(first, second, path.stem) + path.suffix)


def load_metadata(path: Path) -> CheckpointMetadata:
    """Read a checkpoint without its weights."""
    if path.suffix in PAIRS:
        return metadata_of(path, {})
    return _cached_metadata(path, file_state(path))


@cache
def _cached_metadata(path: Path, _: tuple) -> CheckpointMetadata:
    """Metadata of a checkpoint, cached for each state of the file: a batch reads it for every result."""
    return metadata_of(path, read(path, only_metadata=True))


def metadata_of(path: Path, content: dict[str, Any]) -> CheckpointMetadata:
    """Metadata in the content of a checkpoint file; empty content: weights of another program."""
    if not content:
        return CheckpointMetadata(path.stem, path)
    settings, white_level = _settings_of(path, content["settings"]), content.get("white_level")
    try:
        images = TrainingImages(*(_texts(content["images"][name]) for name in ("training", "held_out")))
        assets = {name: EmbeddedImage.from_stored(one) for name, one in content.get("embedded_assets", {}).items()}
        white_level = white_level if white_level is None else float(white_level)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(path, f"damaged, or not a checkpoint of this program ({error})", FIX_HINT) from error
    is_within_epoch = bool(content.get("progress"))
    made_from = Provenance.from_json(content.get("provenance"))
    name = str(content["epoch"])
    return CheckpointMetadata(name, path, images, is_within_epoch, white_level, assets, settings, made_from)


def _texts(values: dict[str, str]) -> dict[str, str]:
    """The same values; TypeError where they are not texts."""
    if not all(isinstance(text, str) for pair in values.items() for text in pair):
        raise TypeError("its images are not named by texts")
    return dict(values)


def _settings_of(path: Path, values: dict[str, Any]) -> Config:
    try:
        if not all(isinstance(one, dict) for one in values.values()):
            raise TypeError("not settings by section")
        return Config.model_validate(values)
    except (ValidationError, TypeError, ValueError) as error:
        raise UserError(path, "its settings are of another version of this program", FIX_HINT) from error


def resolve_white_level(config: Config, ckpt: CheckpointMetadata) -> Config:
    """The settings with the white level of the training in place of 'auto'; UserError if they have another one.

    For weights of another program, 'auto' is estimated from train/good where that folder is there.
    """
    is_known, wanted = ckpt.images is not None, config.data.white_level
    if isinstance(wanted, str) and is_known:  # auto
        return with_white_level(config, ckpt.white_level)
    if isinstance(wanted, str):
        nominal = nominal_if_there(config)
        return with_white_level(config, find_white_level(nominal) if nominal else None)
    if is_known and wanted != ckpt.white_level:
        trained = "images of 8 or full 16 bits" if ckpt.white_level is None else f"white_level {ckpt.white_level:g}"
        raise UserError(f"data.white_level = {wanted:g}", f"{ckpt.path} was trained with {trained}", "set it to auto")
    return config


def for_new_images(config: Config) -> tuple[Config, Path]:
    """Settings for inference on new images, and the path of the configured checkpoint.

    The settings of the training replace those that the user has not set explicitly.
    """
    path = find(config, config.data.load_epoch)
    trained = load_metadata(path).settings
    return (with_checkpoint_settings(config, trained, path) if trained else config), path
