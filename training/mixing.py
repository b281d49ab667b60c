"""Batches of a dataset's images and of images that were added to them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from data_loader import DRAEMTrainDataset
from synthesis import AnomalySynthesizer


class MixedDataset(DRAEMTrainDataset):
    """A training dataset whose batches are half of added images: few of them count, and the others are not forgotten.

    An epoch is as long as without the added images. In each batch every second sample is replaced (`mixed`): in place
    of the sample with key k stands that with key -1 - k, which is of an added image.

    Args:
        images, synthesizer, seed, per_image: see `DRAEMTrainDataset`. added: images like `images`.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        added: Sequence[np.ndarray],
        synthesizer: AnomalySynthesizer,
        seed: int,
        per_image: int,
    ):
        super().__init__(images, synthesizer, seed, per_image=per_image)
        self.added = DRAEMTrainDataset(added, synthesizer, seed, stream=6, per_image=per_image)

    def __getitem__(self, key: int) -> dict[str, torch.Tensor | int]:
        return super().__getitem__(key) if key >= 0 else self.added[-1 - key]


def mixed(share: Callable[[list[int]], list[int]]) -> Callable[[list[int]], list[int]]:
    """The keys of a batch, every second one of an added image. share: of this process, see `data_loader.Shares`."""
    return lambda keys: share([-1 - key if place % 2 else key for place, key in enumerate(keys)])
