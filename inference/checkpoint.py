"""Read checkpoints: this program's, and the original's pair of weight files."""

import hashlib
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from config import Config, with_checkpoint_settings, with_white_level
from data.folders import category_folder
from data.image_io import find_white_level
from data.mvtec import list_nominal
from model import DRAEM
from runtime.device import core_count
from runtime.errors import UserError
from runtime.provenance import file_state

# Pairs of state dicts, the reconstructive network's and the discriminative one's: suffix -> what tells the stems apart.
PAIRS = {
    ".pckl": (r"$", "_seg"),  # the original: NAME.pckl, NAME_seg.pckl
    ".pth": (r"_REC_MODEL_(?=\d+$)", "_SEG_MODEL_"),  # earlier code: NAME_REC_MODEL_700.pth, NAME_SEG_MODEL_700.pth
}

# The convolution that tells a network's width, and how many times that width it has.
WIDTH_KEYS = {
    "model.base_width": "reconstructive.encoder.block1.0.weight",
    "model.base_channels": "discriminative.encoder_segment.block1.0.weight",
}

CHECKSUM = "sha256 of tensors"  # how it is made

FIX_HINT = "set data.load_epoch to another, or train anew with train.resume=never"


@dataclass(frozen=True)
class TrainingImages:
    """The nominal images of a training: name -> digest of content, of those trained on and of those held out."""

    training: dict[str, str]
    held_out: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and where it comes from.

    Attributes:
        model: None where only the rest was read, see `load_metadata`.
        name: what results call it: the epoch, or the stem of a file of other programs; with the fingerprint behind it
            where the weights are not this run's.
        fingerprint: of the weights; empty without them.
        images: that it was trained with, None where unknown (weights of another program).
        white_level: that the images were read with, see `image_io.read_image`.
        embedded_assets: images that masking and registration need, see `inference.preprocessing.embed_assets`.
        settings: that it was trained with, None where unknown.
    """

    model: DRAEM | None
    name: str
    path: Path
    fingerprint: str
    images: TrainingImages | None = None
    white_level: float | None = None
    embedded_assets: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: Config | None = None

    @property
    def is_of_registered(self) -> bool:
        """Whether it was trained on registered images."""
        return self.settings is not None and self.settings.data.registration_training

    def assets_for(self, config: Config) -> dict[str, dict[str, Any]]:
        """The embedded images to use with these settings: those of keys that have the value of training and that the
        user has not set. The reference of a training on registered images is always used.

        Raises:
            UserError: such a training whose reference is not in the checkpoint.
        """
        keys = {"reference": "data.registration_reference", "region": "masking.regions"}
        found = {
            name: asset
            for name, asset in self.embedded_assets.items()
            if self.settings
            and not config.is_explicit(keys[name])
            and all(config[key] == self.settings[key] for key in (keys[name], "data.category"))
        }
        if self.is_of_registered:
            if "reference" not in self.embedded_assets:
                raise UserError(
                    self.path, "trained on registered images, but does not hold their reference", "train anew"
                )
            found["reference"] = self.embedded_assets["reference"]
        return found


def read(path: Path, only_metadata: bool = False) -> dict[str, Any]:
    """Content of a checkpoint file, on the CPU; only tensors and plain values are unpickled.

    only_metadata: weights are not read; they must not be used, as the file can be replaced meanwhile.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=only_metadata)
    except pickle.UnpicklingError as error:
        raise UserError(
            path, "refused: damaged, or with pickled code in it", "use a checkpoint that holds tensors only"
        ) from error
    except (PermissionError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # damaged files fail in a dozen ways
        raise UserError(path, "truncated or not a checkpoint", FIX_HINT) from error
    if not isinstance(content, dict):
        raise UserError(path, "not a checkpoint of this program or of the original", FIX_HINT)
    if path.suffix not in PAIRS and not _is_sound(content):
        raise UserError(path, "damaged, or not a checkpoint of this program", FIX_HINT)
    return content


def _is_sound(content: dict[str, Any]) -> bool:
    model, epoch, images = content.get("model"), content.get("epoch"), content.get("images")
    return (
        isinstance(model, dict)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in model.items())
        and type(epoch) is int
        and epoch >= (0 if content.get("progress") else 1)  # 0: interrupted in the first
        and isinstance(images, dict)
        and images.keys() == {"training", "held_out"}
        and isinstance(content.get("settings"), dict)
    )


def epoch_path(run: Path, epoch: int) -> Path:
    """File of a kept epoch."""
    return run / f"epoch_{epoch:04d}.pt"


def saved_epochs(run: Path) -> list[int]:
    """Epochs whose checkpoints a run has kept, rising."""
    found = (re.fullmatch(r"epoch_(\d+)", path.stem) for path in run.glob("epoch_*.pt"))
    return sorted(int(match[1]) for match in found if match)


def epoch_of(path: Path) -> int:
    """Epoch of a checkpoint of this program; of epoch_*.pt by name alone."""
    named = re.fullmatch(r"epoch_(\d+)", path.stem)
    return int(named[1]) if named else read(path, only_metadata=True)["epoch"]


def find(config: Config, load_epoch: int | str) -> Path:
    """Path of the checkpoint that data.load_epoch means; UserError lists what is there."""
    run = config.run_folder
    if load_epoch == "last":
        path = run / "last.pt"
    elif isinstance(load_epoch, int):
        path = epoch_path(run, load_epoch)
    else:
        path = Path(load_epoch)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError("data.load_epoch", f"{path} is a folder", "name a checkpoint file")
    epochs = ", ".join(map(str, saved_epochs(run)))
    there = (
        f"saved epochs: {epochs}"
        if epochs
        else f"nothing is saved in {run}; train first: python main.py --train True (with the same --config and --set)"
    )
    raise UserError("data.load_epoch", f"no checkpoint {path}", there)


def load(config: Config, load_epoch: int | str | None = None) -> Checkpoint:
    """Load the checkpoint that data.load_epoch (or `load_epoch`) means into a model of the configured widths.

    A pair of files, as the original and the earlier code write it, is named by its first (see `PAIRS`).
    """
    path = find(config, config.data.load_epoch if load_epoch is None else load_epoch)
    content = read(path)
    if path.suffix in PAIRS:
        beside = _second_of_pair(path)
        if not beside.is_file():
            raise UserError(beside, "missing", f"put it there: these weights are a pair, {path.name} and {beside.name}")
        pair = {"reconstructive": content, "discriminative": read(beside)}
        weights = {f"{net}.{key}": value for net, state in pair.items() for key, value in state.items()}
        content = {}
    else:
        weights = content["model"]
    model = DRAEM(config.model.base_width, config.model.base_channels)
    metadata = _metadata(path, content)
    check_widths(path, weights, config)
    _check_fit(path, metadata["settings"], config)
    try:
        model.load_state_dict(weights)
        own = fingerprint(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            path, "its weights are not those of a DRAEM model", "set data.load_epoch to another checkpoint"
        ) from error
    name = _name(config, path, content["epoch"], own) if content else path.stem
    return Checkpoint(model, name, path, own, **metadata)


def check_widths(path: Path, weights: dict[str, Tensor], config: Config) -> None:
    """UserError where the weights belong to networks of other widths than the settings'."""
    for key, name in WIDTH_KEYS.items():
        weight = weights.get(name)
        if isinstance(weight, Tensor) and weight.ndim == 4 and (found := weight.shape[0]) != config[key]:
            raise UserError(path, f"has {key} = {found}, the settings have {config[key]}", f"set {key}={found}")


def _check_fit(path: Path, trained: Config | None, config: Config) -> None:
    """UserError where a checkpoint was trained on tiles of another size, or on images registered in another way."""
    if trained is None:
        return
    there, now = trained.data, config.data
    if there.tile_size != now.tile_size:
        sizes = ["null" if one is None else list(one) for one in (now.tile_size, there.tile_size)]
        raise UserError(
            f"data.tile_size = {sizes[0]}", f"{path} was trained with {sizes[1]}", f"set data.tile_size={sizes[1]}"
        )
    if there.registration_training and there.registration_method != now.registration_method:
        raise UserError(
            f"data.registration_method = {now.registration_method}",
            f"{path} was trained on images registered as {there.registration_method}",
            f"set data.registration_method={there.registration_method} and data.image_registration=true",
        )


def _name(config: Config, path: Path, epoch: int, own: str) -> str:
    """The epoch; for weights that are not of this run with their fingerprint, so that results do not mix."""
    run = config.run_folder
    if path.resolve().parent == run.resolve():
        return str(epoch)
    same_epoch = epoch_path(run, epoch)
    if same_epoch.is_file() and fingerprint(read(same_epoch)["model"]) == own:
        return str(epoch)  # a copy
    return f"{epoch}_{own[:8]}"


def _second_of_pair(path: Path) -> Path:
    first, second = PAIRS[path.suffix]
    if not re.search(first, path.stem):
        raise UserError(path, "one of a pair", "name the reconstructive network's file, ..._REC_MODEL_<epoch>.pth")
    return path.with_name(re.sub(first, second, path.stem) + path.suffix)


def load_metadata(path: Path) -> Checkpoint:
    """A checkpoint without its weights, which stay on the disk: model None, fingerprint empty."""
    if path.suffix in PAIRS:
        return Checkpoint(None, path.stem, path, "")
    return _metadata_of(path, file_state(path))


@cache
def _metadata_of(path: Path, _: tuple) -> Checkpoint:
    """Read once for each state of the file: a batch asks for them with every result."""
    content = read(path, only_metadata=True)
    return Checkpoint(None, str(content["epoch"]), path, "", **_metadata(path, content))


def _metadata(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Checkpoint besides its weights; empty `content`: of another program."""
    if not content:
        return {"settings": None}
    return {
        "images": TrainingImages(**content["images"]),
        "white_level": content.get("white_level"),
        "embedded_assets": content.get("embedded_assets", {}),
        "settings": _settings_of(path, content["settings"]),
    }


def _settings_of(path: Path, values: dict[str, Any]) -> Config:
    try:
        return Config.model_validate({name: dict(values[name]) for name in values})
    except (ValidationError, TypeError, ValueError) as error:
        raise UserError(path, "its settings are of another version of this program", FIX_HINT) from error


def resolve_white_level(config: Config, ckpt: Checkpoint) -> Config:
    """The settings with data.white_level as images are to be read for a checkpoint: a number, or None.

    UserError where they name another than it was trained with.
    """
    is_known, wanted = ckpt.images is not None, config.data.white_level
    if wanted == "auto":
        category = category_folder(Path(config.data.data_path), config.data.category)
        wanted = ckpt.white_level if is_known else find_white_level(list_nominal(category))
    elif is_known and wanted != ckpt.white_level:
        there = "8 bits or all 16" if ckpt.white_level is None else f"white_level {ckpt.white_level:g}"
        raise UserError(f"data.white_level = {wanted:g}", f"{ckpt.path} was trained with {there}", "set it to auto")
    return with_white_level(config, wanted)


def for_new_images(config: Config) -> tuple[Config, Path]:
    """The settings for inference on images from anywhere, and the checkpoint that they name: what it was trained with
    counts, but for what the user has set."""
    path = find(config, config.data.load_epoch)
    trained = load_metadata(path).settings
    return (with_checkpoint_settings(config, trained, path) if trained else config), path


def fingerprint(weights: dict[str, Tensor]) -> str:
    """SHA-256 of all weights, first 16 digits: the same for the same weights in whatever file."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(_bytes(weights[name]))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 of all that a file holds but its own `checksum`: tensors, and plain values in dicts and lists."""
    digest, tensors = hashlib.sha256(), []

    def feed(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"tensor {len(tensors)}".encode())
            tensors.append(value)
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(repr(key).encode())
                feed(value[key])
        elif isinstance(value, (list, tuple)):
            for one in value:
                feed(one)
        else:
            digest.update(repr(value).encode())

    feed({key: value for key, value in content.items() if key != "checksum"})
    with ThreadPoolExecutor(core_count()) as pool:  # hashing works outside the interpreter's lock
        for one in pool.map(lambda tensor: hashlib.sha256(_bytes(tensor)).digest(), tensors):
            digest.update(one)
    return f"{CHECKSUM} {digest.hexdigest()}"


def is_damaged(content: dict[str, Any]) -> bool:
    """Whether what a file holds is not what its checksum tells; False where it has none, or an earlier version's."""
    there = str(content.get("checksum"))
    return there.startswith(f"{CHECKSUM} ") and checksum(content) != there
