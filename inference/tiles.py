"""Tiles: cut a large image into overlapping tiles for the networks, and blend the anomaly maps of the tiles."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config import Data

MOST_PER_IMAGE = 16  # maximum for train.tiles_per_image = auto


class Tile(NamedTuple):
    """A tile of an image.

    Attributes:
        rows, columns: its pixels in the image. down, across: weights of its rows and columns, float32 (h,) and (w,).
    """

    rows: slice
    columns: slice
    down: Tensor
    across: Tensor

    @property
    def weight(self) -> Tensor:
        """Weights of its pixels, float32 (h, w). Not stored: all tiles would need more memory than an image."""
        return torch.outer(self.down, self.across)


def cut(size: tuple[int, int], tile: tuple[int, int], overlap: float, device: torch.device | None = None) -> list[Tile]:
    """Evenly spaced tiles that cover an image.

    The weights of a tile fall off towards its border as a squared sine. In each pixel they sum to 1 over all tiles.

    Args:
        size, tile: (height, width) of the image and of a tile.
        overlap: smallest overlap of neighboring tiles, as a share of a tile's side, from 0 to below 1.
        device: of the weights.
    """
    rows, columns = (_along(*sides, overlap, device) for sides in zip(size, tile, strict=True))
    return [Tile(row, column, down, across) for row, down in rows for column, across in columns]


def _along(size: int, tile: int, overlap: float, device: torch.device | None) -> list[tuple[slice, Tensor]]:
    """Positions of tiles along one side of an image, and the weights of the pixels of each."""
    count = math.ceil((size - tile) / (tile * (1 - overlap)) - 1e-9) + 1
    starts = np.linspace(0, size - tile, count).round().astype(int).tolist()
    pixels = [slice(start, start + tile) for start in starts]
    window = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
    total = np.zeros(size)
    for part in pixels:
        total[part] += window
    return [(part, torch.from_numpy(window / total[part]).to(device, torch.float32)) for part in pixels]


def per_image(data: Data, wanted: int | str) -> int:
    """Number of training samples per image and epoch.

    Args:
        data: the settings. wanted: train.tiles_per_image; 'auto': the number of tiles that cover an image without
            overlap, at most MOST_PER_IMAGE.
    """
    if data.tile_size is None:
        return 1
    if not isinstance(wanted, str):
        return wanted
    return min(
        math.prod(-(-side // tile) for side, tile in zip(data.img_size, data.tile_size, strict=True)), MOST_PER_IMAGE
    )


class Blended:
    """Reconstruction and anomaly map of an image, as weighted sums over its tiles.

    Args:
        size: (height, width) of the image. count: number of its tiles.

    Attributes:
        output: reconstruction (3, H, W) and anomaly map (H, W), float32, on the device of the tiles; complete when
            `is_done`.
    """

    def __init__(self, size: tuple[int, int], count: int):
        self._size, self._left = size, count
        self._output: tuple[Tensor, Tensor] | None = None

    @property
    def output(self) -> tuple[Tensor, Tensor]:
        """Reconstruction and anomaly map."""
        assert self._output is not None  # a tile has been added
        return self._output

    @property
    def is_done(self) -> bool:
        """Whether all tiles have been added."""
        return self._left == 0

    def add(self, tile: Tile, reconstruction: Tensor, anomaly_map: Tensor) -> None:
        """Add the reconstruction (3, h, w) and the anomaly map (h, w) of one tile, float32."""
        self._left -= 1
        if anomaly_map.shape == self._size:  # the only tile
            self._output = reconstruction, anomaly_map
            return
        if self._output is None:
            self._output = reconstruction.new_zeros((3, *self._size)), anomaly_map.new_zeros(self._size)
        whole_reconstruction, whole_map = self._output
        whole_reconstruction[:, tile.rows, tile.columns].addcmul_(reconstruction, tile.weight)
        whole_map[tile.rows, tile.columns].addcmul_(anomaly_map, tile.weight)
        if self.is_done:
            whole_map.clamp_(max=1)  # rounding: weights may sum to slightly more than 1
