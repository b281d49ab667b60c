"""Checkpoint and images to anomaly maps: the one place that runs the networks to detect."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
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


@torch.inference_mode()
def detect(model: DRAEM, dataset: Dataset, config: Config, title: str) -> Iterator[NetworkOutput]:
    """Run the networks once over every sample (`image`, `mask`, `idx`; perhaps `valid`, `region`), in order.

    The title is that of the progress bar; without one there is none.
    """
    network, batch_size = Networks(model, config, len(dataset)), config.data.test_batch_size
    workers = runtime.worker_count(config.data.num_workers, network.device, batches=-(-len(dataset) // batch_size))
    loader = data_loader.test_loader(dataset, batch_size, workers, config.data.img_size, network.device.type == "cuda")
    with (
        tqdm(total=len(dataset), desc=title, unit="image", leave=None, disable=not title) as bar,
        runtime.worker_errors(),
    ):
        before = None
        for batch in loader:
            after = batch, *network(batch["image"])
            # One batch ahead: a GPU works on the next while what it made of this one is used.
            if before is not None:
                yield from _outputs(*before, dataset)
                bar.update(len(before[0]["idx"]))
            before = after
        if before is not None:
            yield from _outputs(*before, dataset)
            bar.update(len(before[0]["idx"]))


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
