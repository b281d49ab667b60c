"""Whether settings fit what a checkpoint was trained with."""

from pathlib import Path
from typing import Any

from torch import Tensor

from config import Config
from runtime.errors import UserError

# The convolution that tells a network's width, and how many times that width it has.
WIDTH_KEYS = {
    "model.base_width": "reconstructive.encoder.block1.0.weight",
    "model.base_channels": "discriminative.encoder_segment.block1.0.weight",
}


def check_widths(path: Path, weights: dict[str, Tensor], config: Config) -> None:
    """UserError where the weights belong to networks of other widths than the settings'."""
    settings = {"model.base_width": config.model.base_width, "model.base_channels": config.model.base_channels}
    for key, name in WIDTH_KEYS.items():
        weight = weights.get(name)
        if isinstance(weight, Tensor) and weight.ndim == 4 and (found := weight.shape[0]) != settings[key]:
            raise UserError(f"{path}: has {key} = {found}, the settings say {settings[key]}; set {key}={found}")


def check_tiles(path: Path, trained: dict[str, Any], config: Config) -> None:
    """UserError where a checkpoint was trained on tiles of another size; trained: its settings, empty if unknown."""
    if not isinstance(trained.get("data"), dict):
        return
    there, now = trained["data"].get("tile_size"), config.data.tile_size
    if there != (now and list(now)):
        there, now = ("null" if one is None else list(one) for one in (there, now))
        raise UserError(f"data.tile_size = {now}, but {path} was trained with {there}; set data.tile_size={there}")


def is_of_registered(trained: dict[str, Any]) -> bool:
    """Whether a checkpoint was trained on registered pictures; trained: its settings, empty if unknown."""
    return isinstance(trained.get("data"), dict) and bool(trained["data"].get("registration_training"))


def check_registration(path: Path, trained: dict[str, Any], config: Config) -> None:
    """UserError where a checkpoint was trained on pictures that were registered in another way."""
    now = config.data.registration_method
    if is_of_registered(trained) and (there := trained["data"]["registration_method"]) != now:
        raise UserError(
            f"data.registration_method = {now}, but {path} was trained on pictures registered as {there}; "
            f"set data.registration_method={there} and data.image_registration=true"
        )
