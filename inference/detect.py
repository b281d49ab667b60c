"""Checkpoint and images to anomaly maps: the one place that runs the networks to detect."""

from collections.abc import Iterator
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


@torch.inference_mode()
def detect(model: DRAEM, dataset: Dataset, config: Config, title: str) -> Iterator[NetworkOutput]:
    """Run the networks once over every sample (`image`, `mask`, `idx`; perhaps `valid`, `region`), in order.

    The title is that of the progress bar; without one there is none.
    """
    device = runtime.select_device(config.train.device)
    precision = runtime.select_precision(config.train.precision, device)
    layout = runtime.memory_format(device, precision)
    network = networks.ForInference(networks.optimized(model, device, precision), config.train.compile, len(dataset))
    batch_size = config.data.test_batch_size
    workers = runtime.worker_count(config.data.num_workers, device, batches=-(-len(dataset) // batch_size))
    loader = data_loader.test_loader(dataset, batch_size, workers, config.data.img_size, device.type == "cuda")
    with (
        tqdm(total=len(dataset), desc=title, unit="image", leave=None, disable=not title) as bar,
        runtime.worker_errors(),
    ):
        before = None
        for batch in loader:
            image = data_loader.scaled(batch["image"], device).to(precision)
            after = batch, *network(image.contiguous(memory_format=layout))
            # One batch ahead: a GPU works on the next while what it made of this one is used.
            if before is not None:
                yield from _outputs(*before, dataset)
                bar.update(len(before[0]["idx"]))
            before = after
        if before is not None:
            yield from _outputs(*before, dataset)
            bar.update(len(before[0]["idx"]))


def _outputs(
    batch: dict[str, Tensor], reconstruction: Tensor, logits: Tensor, dataset: Dataset
) -> Iterator[NetworkOutput]:
    maps = torch.softmax(logits.float(), dim=1)[:, 1].cpu().numpy()
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
