"""Checkpoint and images to anomaly maps: the one place that runs the networks to detect."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

import data_loader
from config import Config
from engine import runtime
from errors import UserError
from model import DRAEM


@dataclass(frozen=True)
class Detection:
    """What the networks make of one picture: `image` and `reconstruction` float32 (H, W, 3), BGR; `anomaly_map` float32
    (H, W), the probability of 'anomalous'; `mask` bool (H, W); `idx` in the dataset."""

    idx: int
    image: np.ndarray
    reconstruction: np.ndarray
    anomaly_map: np.ndarray
    mask: np.ndarray


@torch.inference_mode()
def detect(model: DRAEM, dataset: data_loader.DRAEMTestDataset, config: Config, title: str) -> Iterator[Detection]:
    """Run the networks once over every picture, in order."""
    device = runtime.select_device(config.train.device)
    precision = runtime.select_precision(config.train.precision, device)
    layout = runtime.memory_format(precision)
    model = model.to(device, memory_format=layout).eval()
    # Starting loader processes takes longer than reading a few batches.
    is_small = len(dataset) <= 8 * config.data.test_batch_size
    workers = 0 if is_small else data_loader.worker_count(config.data.num_workers, device.type == "cuda")
    loader = data_loader.test_loader(dataset, config.data.test_batch_size, workers, device.type == "cuda")
    with tqdm(total=len(dataset), desc=title, unit="image") as bar, runtime.mendable_errors():
        for batch in loader:
            image = batch["image"].to(device, non_blocking=True)
            with runtime.autocast(device, precision):
                reconstruction, logits = model(image.contiguous(memory_format=layout))
            maps = torch.softmax(logits.float(), dim=1)[:, 1].cpu().numpy()
            for idx, anomaly_map in zip(batch["idx"].tolist(), maps, strict=True):
                if not np.isfinite(anomaly_map).all():
                    path = dataset.images[idx].path
                    raise UserError(f"{path}: its anomaly map is not finite; use another checkpoint, or precision=fp32")
            reconstructions = reconstruction.float().permute(0, 2, 3, 1).cpu().numpy()
            images = batch["image"].permute(0, 2, 3, 1).numpy()
            for i, idx in enumerate(batch["idx"].tolist()):
                yield Detection(idx, images[i], reconstructions[i], maps[i], batch["mask"][i, 0].numpy() > 0)
            bar.update(len(maps))
