"""How far a training has come within an epoch: kept in last.pt, so that an interrupted epoch resumes."""

from dataclasses import asdict, field
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt
from pydantic.dataclasses import dataclass

TERMS = ("l2", "ssim", "focal")
CHANNELS = {"image": 3, "augmented": 3, "reconstruction": 3, "mask": 1, "prediction": 1}  # of a sample's arrays


@dataclass(config=ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True))
class Progress:
    """Progress within an epoch.

    Attributes:
        step: batches done. seconds: time spent. losses: sums over `count` samples.
        sample: the first batch and its outputs, for the sample grid.
    """

    step: NonNegativeInt = 0
    seconds: NonNegativeFloat = 0.0
    count: NonNegativeInt = 0
    losses: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TERMS, 0.0))
    sample: dict[str, np.ndarray] | None = None

    def to_stored(self) -> dict[str, Any]:
        """An entry of a checkpoint, in which the sample's arrays are tensors."""
        tensors = {name: torch.from_numpy(one) for name, one in (self.sample or {}).items()}
        return asdict(self) | {"sample": tensors}

    @classmethod
    def from_stored(cls, stored: dict[str, Any]) -> "Progress":
        """The progress of such an entry; ValueError where its values are others, RuntimeError where torch refuses."""
        sample = {name: one.numpy() for name, one in stored["sample"].items()}
        if sample and not _is_sample(sample):
            raise ValueError("its sample is of other arrays")
        found = cls(**stored | {"sample": sample})
        if found.losses.keys() != set(TERMS):
            raise ValueError("its losses have other names")
        return found


def _is_sample(sample: dict[str, np.ndarray]) -> bool:
    shapes = {name: one.shape for name, one in sample.items() if one.dtype == np.float32 and one.ndim == 4}
    sizes = {(shape[0], *shape[2:]) for shape in shapes.values()}
    return {name: shape[1] for name, shape in shapes.items()} == CHANNELS and len(sizes) == 1 and 0 not in sizes.pop()
