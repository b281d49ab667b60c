"""Read checkpoints: this program's, and the original's pair of weight files."""

import hashlib
import pickle
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from config import Config
from data.folders import category_folder
from data.image_io import find_white_level
from data.mvtec import list_nominal
from inference import fitting
from model import DRAEM
from runtime.device import core_count
from runtime.errors import UserError
from runtime.provenance import file_state

# Pairs of state dicts, the reconstructive network's and the discriminative one's: suffix -> what tells the stems apart.
PAIRS = {
    ".pckl": (r"$", "_seg"),  # the original: NAME.pckl, NAME_seg.pckl
    ".pth": (r"_REC_MODEL_(?=\d+$)", "_SEG_MODEL_"),  # earlier code: NAME_REC_MODEL_700.pth, NAME_SEG_MODEL_700.pth
}

# Settings that a checkpoint brings along for pictures from anywhere: those that it cannot be used without, and those
# that it is used with unless others are asked for.
TRAINED = (
    "data.category",
    "data.img_size",
    "data.tile_size",
    "data.registration_training",
    "model.base_width",
    "model.base_channels",
)
USUAL = (
    "data.run_name",
    "data.tile_overlap",
    "data.image_registration",
    "data.registration_method",
    "data.registration_mirror",
    "data.registration_reference",
    "data.pre_masking",
    "metrics.masking",
    "masking.regions",
    "train.precision",
)

CHECKSUM = "sha256 of tensors"  # how it is made

MEND = "set data.load_epoch to another, or train anew with train.resume=never"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and where it comes from.

    Attributes:
        name: what results call it: the epoch, or the stem of a file of other programs; with the fingerprint behind it
            where the weights are not this run's.
        fingerprint: of the weights.
        held_out: names of the nominal images that were not trained on, None where unknown.
        pictures: the images `training` and `held_out`, each name -> digest; None where unknown.
        white_level: that the pictures were read with, see `image_io.read_image`.
        carried: pictures that masking and registration need, see `inference.techniques.to_carry`.
        settings: that it was trained with, by section and key; empty where unknown.
    """

    model: DRAEM | None
    name: str
    path: Path
    fingerprint: str
    held_out: list[str] | None
    pictures: dict[str, dict[str, str]] | None
    white_level: float | None = None
    carried: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> dict[str, dict[str, Any]]:
        """Of `carried` what pictures must be laid over, as they were in training; empty where that is open."""
        if not fitting.is_of_registered(self.settings):
            return {}
        if "reference" not in self.carried:
            raise UserError(
                f"{self.path}: trained on registered pictures, but their reference is not in it; train anew"
            )
        return {"reference": self.carried["reference"]}


def read(path: Path, only_facts: bool = False) -> dict[str, Any]:
    """Content of a checkpoint file, on the CPU; only tensors and plain values are unpickled.

    only_facts: weights are not read; they must not be used, as the file can be replaced meanwhile.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=only_facts)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused: damaged, or with pickled code in it; use a checkpoint of tensors only"
        ) from error
    except (PermissionError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # damaged files fail in a dozen ways
        raise UserError(f"{path}: truncated or not a checkpoint; {MEND}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a checkpoint of this program or of the original; {MEND}")
    if path.suffix not in PAIRS and not _is_sound(content):
        raise UserError(f"{path}: damaged, or not a checkpoint of this program; {MEND}")
    return content


def _is_sound(content: dict[str, Any]) -> bool:
    model, epoch, held_out = content.get("model"), content.get("epoch"), content.get("held_out")
    pictures = content.get("pictures")
    return (
        isinstance(model, dict)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in model.items())
        and type(epoch) is int
        and epoch >= (0 if content.get("progress") else 1)  # 0: stopped in the first
        and (held_out is None or (isinstance(held_out, list) and all(isinstance(name, str) for name in held_out)))
        and (pictures is None or (isinstance(pictures, dict) and {"training", "held_out"} <= pictures.keys()))
        and isinstance(content.get("settings", {}), dict)
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
    return int(named[1]) if named else read(path, only_facts=True)["epoch"]


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
        raise UserError(f"data.load_epoch: {path} is a folder; name a checkpoint file")
    epochs = ", ".join(map(str, saved_epochs(run)))
    there = (
        f"saved epochs: {epochs}"
        if epochs
        else f"nothing is saved in {run}; train first: python main.py --train True (with the same --config and --set)"
    )
    raise UserError(f"data.load_epoch: no checkpoint {path}; {there}")


def load(config: Config, load_epoch: int | str | None = None) -> Checkpoint:
    """Load the checkpoint that data.load_epoch (or `load_epoch`) means into a model of the configured widths.

    A pair of files, as the original and the earlier code write it, is named by its first (see `PAIRS`).
    """
    path = find(config, config.data.load_epoch if load_epoch is None else load_epoch)
    content = read(path)
    if path.suffix in PAIRS:
        beside = _second_of_pair(path)
        if not beside.is_file():
            raise UserError(f"{beside}: missing; these weights are a pair, {path.name} and {beside.name}")
        pair = {"reconstructive": content, "discriminative": read(beside)}
        weights = {f"{net}.{key}": value for net, state in pair.items() for key, value in state.items()}
        content = {}
    else:
        weights = content["model"]
    model = DRAEM(config.model.base_width, config.model.base_channels)
    fitting.check_widths(path, weights, config)
    fitting.check_tiles(path, content.get("settings", {}), config)
    fitting.check_registration(path, content.get("settings", {}), config)
    try:
        model.load_state_dict(weights)
        own = fingerprint(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its weights are not DRAEM's; set data.load_epoch to another") from error
    name = _name(config, path, content["epoch"], own) if content else path.stem
    return Checkpoint(model, name, path, own, *_facts(content))


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
        raise UserError(f"{path}: one of a pair; name the reconstructive network's file, ..._REC_MODEL_<epoch>.pth")
    return path.with_name(re.sub(first, second, path.stem) + path.suffix)


def load_facts(path: Path) -> Checkpoint:
    """A checkpoint without its weights, which stay on the disk: model None, fingerprint empty."""
    if path.suffix in PAIRS:
        return Checkpoint(None, path.stem, path, "", None, None)
    return _facts_of(path, file_state(path))


@cache
def _facts_of(path: Path, _: tuple) -> Checkpoint:
    """Read once for each state of the file: a batch asks for them with every result."""
    content = read(path, only_facts=True)
    return Checkpoint(None, str(content["epoch"]), path, "", *_facts(content))


def _facts(content: dict[str, Any]) -> tuple:
    known = ("held_out", "pictures", "white_level")
    return *(content.get(key) for key in known), content.get("carried", {}), content.get("settings", {})


def settled(config: Config, ckpt: Checkpoint) -> Config:
    """The settings with data.white_level as pictures are to be read for a checkpoint: a number, or None.

    UserError where they name another than it was trained with.
    """
    is_known, wanted = ckpt.held_out is not None, config.data.white_level
    if wanted == "auto":
        category = category_folder(Path(config.data.data_path), config.data.category)
        wanted = ckpt.white_level if is_known else find_white_level(list_nominal(category))
    elif is_known and wanted != ckpt.white_level:
        there = "8 bits or all 16" if ckpt.white_level is None else f"white_level {ckpt.white_level:g}"
        raise UserError(f"data.white_level = {wanted:g}, but {ckpt.path} was trained with {there}; set it to auto")
    return with_white_level(config, wanted)


def trained_settings(path: Path) -> Config | None:
    """The settings that a checkpoint file was trained with, None where it has none. UserError where they are odd."""
    kept = read(path, only_facts=True).get("settings") if path.suffix not in PAIRS else None
    try:
        return Config.model_validate({name: dict(kept[name]) for name in kept}) if kept else None
    except (ValidationError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its settings are of another version of this program; {MEND}") from error


def with_trained_settings(config: Config, path: Path, named: Collection[str]) -> Config:
    """The settings with those that a checkpoint file brings along, as `section.key`; as they are if it has none.

    Args:
        named: keys that the user has named, whose values count.

    Raises:
        UserError: the user has named another value than the checkpoint can be used with.
    """
    trained = trained_settings(path)
    if trained is None:
        return config
    sections = config.model_dump()
    for key in (*TRAINED, *USUAL):
        section, name = key.split(".")
        old, now = getattr(getattr(trained, section), name), sections[section][name]
        if key in TRAINED and key in named and old != now:
            raise UserError(f"{key} = {now}, but {path} was trained with {old}; leave it out")
        if key in TRAINED or key not in named:
            sections[section][name] = old
    data = sections["data"]
    if data["registration_training"] and not data["image_registration"]:
        raise UserError(f"data.image_registration = false, but {path} was trained on registered pictures; leave it out")
    return Config.model_validate(sections)


def with_white_level(config: Config, white_level: float | None) -> Config:
    """The settings with the value of white that pictures are read with, None for that of their files."""
    return config.model_copy(update={"data": config.data.model_copy(update={"white_level": white_level})})


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
