"""Checkpoint and images to anomaly maps: the one place that runs the networks to detect."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torch.utils.data import Dataset
from tqdm import tqdm

import data_loader
from config import Config
from engine import compilation, runtime
from engine.techniques import Technique
from errors import UserError
from evaluation.metrics import PixelMetrics
from model import DRAEM


@dataclass(frozen=True)
class Detection:
    """What the networks make of one picture: `image` and `reconstruction` float32 (H, W, 3), BGR; `anomaly_map` float32
    (H, W), the probability of 'anomalous'; `mask` bool (H, W); `idx` in the dataset. `valid` bool (H, W): False where
    pixels count nowhere; `region` bool (H, W): where the category's region lies; None for all True and all False."""

    idx: int
    image: np.ndarray
    reconstruction: np.ndarray
    anomaly_map: np.ndarray
    mask: np.ndarray
    valid: np.ndarray | None = None
    region: np.ndarray | None = None

    def under(self, technique: Technique) -> "Detection":
        """The same with what a technique leaves out being 0 in the map and not valid."""
        valid = self.valid
        if technique.masking != "no" and self.region is not None:
            valid = ~self.region if valid is None else valid & ~self.region
        if valid is None or valid.all():
            return replace(self, valid=None)
        return replace(self, anomaly_map=np.where(valid, self.anomaly_map, np.float32(0)), valid=valid)


def _folded(model: DRAEM) -> DRAEM:
    """A copy for inference: each batch norm folded into the convolution before it."""
    model = copy.deepcopy(model).eval()
    for layers in model.modules():
        if isinstance(layers, nn.Sequential):
            for i, (convolution, norm) in enumerate(pairwise(list(layers))):
                if isinstance(norm, nn.BatchNorm2d):
                    layers[i], layers[i + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    return model


def prepared(model: DRAEM, device: torch.device, precision: torch.dtype) -> DRAEM:
    """A copy for inference in `precision`, but for its logits."""
    model = _folded(model).to(device, precision, memory_format=runtime.memory_format(precision))
    # Its logits in float32: rounded to bfloat16, different scores would become equal.
    final = model.discriminative.decoder_segment.fin_out.float()
    final.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    return model


@torch.inference_mode()
def detect(model: DRAEM, dataset: Dataset, config: Config, title: str) -> Iterator[Detection]:
    """Run the networks once over every sample (`image`, `mask`, `idx`; perhaps `valid`, `region`), in order.

    The title is that of the progress bar; without one there is none.
    """
    device = runtime.select_device(config.train.device)
    precision = runtime.select_precision(config.train.precision, device)
    layout = runtime.memory_format(precision)
    network = compilation.ForInference(prepared(model, device, precision), config.train.compile, len(dataset))
    # Starting loader processes takes longer than reading some batches, and on a CPU they take it from the networks.
    is_small = len(dataset) <= 16 * config.data.test_batch_size
    workers = 0 if is_small else runtime.worker_count(config.data.num_workers, device)
    loader = data_loader.test_loader(dataset, config.data.test_batch_size, workers, device.type == "cuda")
    with (
        tqdm(total=len(dataset), desc=title, unit="image", leave=None, disable=not title) as bar,
        runtime.mendable_errors(),
    ):

        def started() -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
            for batch in loader:
                image = batch["image"].to(device, precision, non_blocking=True)
                yield batch, *network(image.contiguous(memory_format=layout))

        # One batch ahead: a GPU works on the next while what it made of this one is used.
        for made, _ in pairwise(chain(started(), [None])):
            yield from _detections(*made, dataset)
            bar.update(len(made[0]["idx"]))


def _detections(
    batch: dict[str, Tensor], reconstruction: Tensor, logits: Tensor, dataset: Dataset
) -> Iterator[Detection]:
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
        yield Detection(idx, images[i], reconstructions[i], maps[i], mask, **rest)


class SyntheticSamples(Dataset):
    """Synthetic anomalies on nominal images as samples to detect on, the same ones each time.

    Args:
        nominal: training samples of the images to put them on. files: those images'. count: samples, at least; each
            image gets as many.
    """

    def __init__(self, nominal: data_loader.DRAEMTrainDataset, files: Sequence[Path], count: int = 64):
        self.nominal, self.files, self.count = nominal, list(files), -(-count // len(nominal)) * len(nominal)

    def __len__(self) -> int:
        return self.count

    def name(self, idx: int) -> str:
        """What errors call a sample."""
        return str(self.files[idx % len(self.files)])

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor | int]:
        sample = self.nominal[idx]
        return {"image": sample["augmented_image"], "mask": sample["anomaly_mask"], "idx": idx}


def synthetic_pixel_ap(model: DRAEM, samples: SyntheticSamples, config: Config) -> float | None:
    """Pixel AP on synthetic anomalies: tells checkpoints apart without any test image. None without a masked pixel."""
    pixels = PixelMetrics()
    for result in detect(model, samples, config, ""):
        pixels.update(result.anomaly_map, result.mask)
    return pixels.compute()["pixel_ap"]
