"""Checkpoint and images to anomaly maps: the one place that runs the networks to detect."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import data_loader
import runtime
from config import Config
from errors import UserError
from inference import networks
from model import DRAEM


@dataclass(frozen=True)
class NetworkOutput:
    """What the networks make of one picture.

    Attributes:
        idx: of the picture in its dataset. image: as the dataset gives it, (H, W, 3), BGR.
        reconstruction: float32 (H, W, 3), BGR. anomaly_map: float32 (H, W), the probability of 'anomalous'.
        mask: bool (H, W), ground truth.
        valid: bool (H, W), False where pixels are left out; None for all True.
        region: bool (H, W), where the category's region lies; None for nowhere.
    """

    idx: int
    image: np.ndarray
    reconstruction: np.ndarray
    anomaly_map: np.ndarray
    mask: np.ndarray
    valid: np.ndarray | None = None
    region: np.ndarray | None = None


class Networks:
    """Networks ready for batches of pictures.

    Args:
        images: how many are to come in all.
    """

    def __init__(self, model: DRAEM, config: Config, images: int):
        self.device = runtime.select_device(config.train.device)
        self._precision = runtime.select_precision(config.train.precision, self.device)
        self._layout = runtime.memory_format(self.device, self._precision)
        optimized = networks.optimized(model, self.device, self._precision)
        self._run = networks.ForInference(optimized, config.train.compile, images)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Images uint8 (N, 3, H, W) -> reconstructions (N, 3, H, W) and logits (N, 2, H, W), on the device."""
        scaled = data_loader.scaled(images, self.device).to(self._precision)
        return self._run(scaled.contiguous(memory_format=self._layout))


class Together(Protocol):
    """Processes that share pictures out: `training.distributed.Ranks`."""

    rank: int
    count: int

    def barrier(self) -> None:
        """Wait for all."""

    def send(self, content: object) -> None:
        """To the first."""

    def receive(self, rank: int) -> Any:
        """From another."""


@torch.inference_mode()
def detect(
    model: DRAEM, dataset: Dataset, config: Config, title: str, ranks: Together | None = None
) -> Iterator[NetworkOutput]:
    """Run the networks once over every sample (`image`, `mask`, `idx`; perhaps `valid`, `region`), in order.

    Args:
        title: of the progress bar; without one there is none.
        ranks: processes that have every N-th batch each; the first gets what all have found, the others nothing.
    """
    rank, count = (ranks.rank, ranks.count) if ranks else (0, 1)
    if ranks:
        ranks.barrier()  # nothing has failed so far, which the first would tell
    network, batch_size = Networks(model, config, len(dataset)), config.data.test_batch_size
    batches = -(-len(dataset) // batch_size)
    workers = runtime.worker_count(config.data.num_workers, network.device, batches=-(-batches // count))
    uses_cuda = network.device.type == "cuda"
    loader = data_loader.test_loader(dataset, batch_size, workers, config.data.img_size, uses_cuda, every=(rank, count))
    own = _passes(network, loader, dataset)
    with (
        tqdm(total=len(dataset), desc=title, unit="image", leave=None, disable=not title or rank > 0) as bar,
        runtime.worker_errors(),
    ):
        if rank:
            for found in own:
                ranks.send(found)
            return
        for batch in range(batches):
            found = next(own) if batch % count == 0 else ranks.receive(batch % count)
            yield from found
            bar.update(len(found))


def _passes(network: Networks, loader: DataLoader, dataset: Dataset) -> Iterator[list[NetworkOutput]]:
    """What the networks make of each batch."""
    before = None
    for batch in loader:
        after = batch, *network(batch["image"])
        # One batch ahead: a GPU works on the next while what it made of this one is used.
        if before is not None:
            yield list(_outputs(*before, dataset))
        before = after
    if before is not None:
        yield list(_outputs(*before, dataset))


def anomaly_maps(logits: Tensor) -> np.ndarray:
    """Logits (N, 2, H, W) -> the probability of 'anomalous', float32 (N, H, W)."""
    return torch.softmax(logits.float(), dim=1)[:, 1].cpu().numpy()


def _outputs(
    batch: dict[str, Tensor], reconstruction: Tensor, logits: Tensor, dataset: Dataset
) -> Iterator[NetworkOutput]:
    maps = anomaly_maps(logits)
    for idx, anomaly_map in zip(batch["idx"].tolist(), maps, strict=True):
        if not np.isfinite(anomaly_map).all():
            name = dataset.name(idx)
            raise UserError(f"{name}: its anomaly map is not finite; use another checkpoint, or precision=fp32")
    planes = {key: batch[key][:, 0].numpy() for key in ("valid", "region") if key in batch}
    reconstructions = reconstruction.float().permute(0, 2, 3, 1).cpu().numpy()
    images = batch["image"].permute(0, 2, 3, 1).numpy()
    for i, idx in enumerate(batch["idx"].tolist()):
        mask = batch["mask"][i, 0].numpy() > 0
        rest = {key: plane[i] for key, plane in planes.items()}
        yield NetworkOutput(idx, images[i], reconstructions[i], maps[i], mask, **rest)
