"""Tiles: parts of a picture that the networks see one after the other, and the whole that their maps are blended to."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from config import Data

MOST_PER_IMAGE = 16  # training samples of a picture in an epoch, where that is not set


class Tile(NamedTuple):
    """One of the tiles of a picture. rows, columns: where it lies. weight: of its map there, float32 (H, W)."""

    rows: slice
    columns: slice
    weight: Tensor


def cut(size: tuple[int, int], tile: tuple[int, int], overlap: float, device: torch.device | None = None) -> list[Tile]:
    """Tiles that cover a picture, evenly spaced, neighbours with at least `overlap` of a side in common.

    Weights fall off to a tile's rim as a squared sine does; those of all tiles that a pixel lies in sum to 1.

    Args:
        size, tile: (height, width) of the picture and of a tile. overlap: from 0 to below 1.
    """
    (tops, down), (lefts, across) = (_along(*sides, overlap) for sides in zip(size, tile, strict=True))
    return [
        Tile(
            slice(top, top + tile[0]),
            slice(left, left + tile[1]),
            torch.from_numpy(np.outer(one, other).astype(np.float32)).to(device),
        )
        for top, one in zip(tops, down, strict=True)
        for left, other in zip(lefts, across, strict=True)
    ]


def _along(size: int, tile: int, overlap: float) -> tuple[list[int], list[np.ndarray]]:
    """Starts of tiles along a side, and the weights of each one's pixels."""
    count = math.ceil((size - tile) / (tile * (1 - overlap)) - 1e-9) + 1
    starts = np.linspace(0, size - tile, count).round().astype(int).tolist()
    window = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    total = np.zeros(size)
    for start in starts:
        total[start : start + tile] += window
    return starts, [window / total[start : start + tile] for start in starts]


def per_image(data: Data, wanted: int | str) -> int:
    """Training samples of a picture in an epoch: `wanted`, or for auto as many as tiles cover it."""
    if data.tile_size is None:
        return 1
    if wanted != "auto":
        return wanted
    return min(
        math.prod(-(-side // tile) for side, tile in zip(data.img_size, data.tile_size, strict=True)), MOST_PER_IMAGE
    )


def facts(data: Data) -> dict[str, Any]:
    """What maps depend on, as a Provenance names it."""
    tiles = {
        "tile_size": data.tile_size and list(data.tile_size),
        "tile_overlap": data.tile_overlap if data.tile_size else None,
    }
    return {"img_size": list(data.img_size), **tiles}


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
        self.reconstruction[:, tile.rows, tile.columns].addcmul_(reconstruction, tile.weight)
        self.anomaly_map[tile.rows, tile.columns].addcmul_(anomaly_map, tile.weight)
