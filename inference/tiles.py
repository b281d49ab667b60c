"""Tiles: parts of a picture that the networks see one after the other, and the whole that their maps are blended to."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config import Data

MOST_PER_IMAGE = 16  # training samples of a picture in an epoch, where that is not set


class Tile(NamedTuple):
    """One of the tiles of a picture. rows, columns: where it lies. down, across: weights, float32 (H,) and (W,)."""

    rows: slice
    columns: slice
    down: Tensor
    across: Tensor

    @property
    def weight(self) -> Tensor:
        """Of its map, float32 (H, W); not kept, as those of all tiles would be larger than the picture."""
        return torch.outer(self.down, self.across)


def cut(size: tuple[int, int], tile: tuple[int, int], overlap: float, device: torch.device | None = None) -> list[Tile]:
    """Tiles that cover a picture, evenly spaced, neighbours with at least `overlap` of a side in common.

    Weights fall off to a tile's rim as a squared sine does; those of all tiles that a pixel lies in sum to 1.

    Args:
        size, tile: (height, width) of the picture and of a tile. overlap: from 0 to below 1.
    """
    rows, columns = (_along(*sides, overlap, device) for sides in zip(size, tile, strict=True))
    return [Tile(row, column, down, across) for row, down in rows for column, across in columns]


def _along(size: int, tile: int, overlap: float, device: torch.device | None) -> list[tuple[slice, Tensor]]:
    """Where tiles lie along a side, and the weights of each one's pixels."""
    count = math.ceil((size - tile) / (tile * (1 - overlap)) - 1e-9) + 1
    starts = np.linspace(0, size - tile, count).round().astype(int).tolist()
    places = [slice(start, start + tile) for start in starts]
    window = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    total = np.zeros(size)
    for place in places:
        total[place] += window
    return [(place, torch.from_numpy(window / total[place]).to(device, torch.float32)) for place in places]


def per_image(data: Data, wanted: int | str) -> int:
    """Training samples of a picture in an epoch: `wanted`, or for auto as many as tiles cover it."""
    if data.tile_size is None:
        return 1
    if wanted != "auto":
        return wanted
    return min(
        math.prod(-(-side // tile) for side, tile in zip(data.img_size, data.tile_size, strict=True)), MOST_PER_IMAGE
    )


class Blended:
    """A picture's reconstruction and anomaly map, put together from its tiles.

    Args:
        size: (height, width) of the picture. count: of its tiles.

    Attributes:
        reconstruction: (3, H, W). anomaly_map: (H, W). Both float32, on the tiles' device.
    """

    def __init__(self, size: tuple[int, int], count: int):
        self._size, self._left = size, count
        self.reconstruction = self.anomaly_map = None

    @property
    def is_done(self) -> bool:
        """Whether all tiles have come."""
        return self._left == 0

    def add(self, tile: Tile, reconstruction: Tensor, anomaly_map: Tensor) -> None:
        """Take in what the networks make of one tile: (3, h, w) and (h, w), float32."""
        self._left -= 1
        if anomaly_map.shape == self._size:  # the only one
            self.reconstruction, self.anomaly_map = reconstruction, anomaly_map
            return
        if self.anomaly_map is None:
            self.reconstruction = reconstruction.new_zeros((3, *self._size))
            self.anomaly_map = anomaly_map.new_zeros(self._size)
        weight = tile.weight
        self.reconstruction[:, tile.rows, tile.columns].addcmul_(reconstruction, weight)
        self.anomaly_map[tile.rows, tile.columns].addcmul_(anomaly_map, weight)
        if self.is_done:
            self.anomaly_map.clamp_(max=1)  # weights sum to 1 but for rounding
