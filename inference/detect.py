"""Checkpoint and images to anomaly maps: the one place that runs the networks to detect."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import data_loader
from config import Config
from inference import networks, tiles
from model import DRAEM
from runtime.device import Together, memory_format, select_device, select_precision, worker_count, worker_errors
from runtime.errors import UserError


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
    """Networks ready for pictures.

    Args:
        images: how many are to come in all.

    Attributes:
        images_at_once: that fill a batch, so that no more need to be in memory.
    """

    def __init__(self, model: DRAEM, config: Config, images: int):
        self.device = select_device(config.train.device)
        self._precision = select_precision(config.train.precision, self.device)
        self._layout = memory_format(self.device, self._precision)
        data, self._batch_size = config.data, config.data.test_batch_size
        self._tiles = tiles.cut(data.img_size, data.input_size, data.tile_overlap, self.device)
        self.images_at_once = max(self._batch_size // len(self._tiles), 1)
        optimized = networks.optimized(model, self.device, self._precision)
        blank = torch.zeros(self._batch_size, 3, *data.input_size, device=self.device, dtype=self._precision)
        passes = -(-images * len(self._tiles) // self._batch_size)
        self._run = networks.for_inference(
            optimized, config.train.compile, blank.contiguous(memory_format=self._layout), passes
        )

    @torch.inference_mode()
    def __call__(self, images: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """What they make of pictures, uint8 (3, H, W) or float32 in [0, 1], in order, in batches of tiles.

        Yields:
            reconstruction (3, H, W) and anomaly map (H, W), the probability of 'anomalous', float32, on the device.
        """
        parts, before = self._parts(images), []
        while batch := list(islice(parts, self._batch_size)):
            done = []
            for (_, tile, whole), *made in zip(batch, *self._pass([image for image, *_ in batch]), strict=True):
                whole.add(tile, *made)
                if whole.is_done:
                    done.append((whole.reconstruction, whole.anomaly_map))
            # One batch ahead: a GPU works on the next while what it made of this one is used.
            yield from before
            before = done
        yield from before

    def _parts(self, images: Iterable[Tensor]) -> Iterator[tuple[Tensor, tiles.Tile, tiles.Blended]]:
        for image in images:
            image = image.to(self.device, non_blocking=True)
            whole = tiles.Blended(tuple(image.shape[1:]), len(self._tiles))
            for tile in self._tiles:
                yield image[:, tile.rows, tile.columns], tile, whole

    def _pass(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        scaled = data_loader.scaled(torch.stack(images), self.device).to(self._precision)
        reconstruction, logits = self._run(scaled.contiguous(memory_format=self._layout))
        return reconstruction.float(), anomaly_maps(logits)


def detect(
    model: DRAEM,
    dataset: Dataset,
    config: Config,
    title: str,
    group: Together | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[NetworkOutput]:
    """Run the networks once over every sample (`image`, `mask`, `idx`; perhaps `valid`, `region`), in order.

    Args:
        title: of the progress bar; without one there is none.
        group: processes that have every N-th batch each; the first gets what all have found, the others nothing.
        check: called by all of them after a batch of each; what it raises ends the pass.
    """
    rank, count = (group.rank, group.count) if group else (0, 1)
    if group:
        group.barrier()  # nothing has failed so far, which the first would tell
    network, data = Networks(model, config, len(dataset)), config.data
    batch_size = network.images_at_once
    batches = -(-len(dataset) // batch_size)
    workers = worker_count(data.num_workers, network.device, batches=-(-batches // count))
    uses_cuda = network.device.type == "cuda"
    loader = data_loader.test_loader(dataset, batch_size, workers, data.img_size, uses_cuda, every=(rank, count))
    own = _passes(network, loader, dataset)
    with (
        tqdm(total=len(dataset), desc=title, unit="image", leave=None, disable=not title or rank > 0) as bar,
        worker_errors(),
    ):
        for first in range(0, batches, count):
            if rank == 0:
                for other in range(min(count, batches - first)):
                    found = group.receive(other) if other else next(own)
                    yield from found
                    bar.update(len(found))
            elif first + rank < batches:
                group.send(next(own))
            check()


def _passes(network: Networks, loader: DataLoader, dataset: Dataset) -> Iterator[list[NetworkOutput]]:
    """What the networks make of each batch of the loader."""
    batches: deque[dict[str, Tensor]] = deque()

    def images() -> Iterator[Tensor]:
        for batch in loader:
            batches.append(batch)
            yield from batch["image"]

    made = network(images())
    for first in made:
        batch = batches.popleft()
        found = [first, *islice(made, len(batch["idx"]) - 1)]
        yield list(_outputs(batch, *(torch.stack(part).cpu().numpy() for part in zip(*found, strict=True)), dataset))


def anomaly_maps(logits: Tensor) -> Tensor:
    """Logits (N, 2, H, W) -> the probability of 'anomalous', float32 (N, H, W)."""
    return torch.softmax(logits.float(), dim=1)[:, 1]


def _outputs(
    batch: dict[str, Tensor], reconstructions: np.ndarray, maps: np.ndarray, dataset: Dataset
) -> Iterator[NetworkOutput]:
    for idx, anomaly_map in zip(batch["idx"].tolist(), maps, strict=True):
        if not np.isfinite(anomaly_map).all():
            name = dataset.name(idx)
            raise UserError(name, "its anomaly map is not finite", "use another checkpoint, or train.precision=fp32")
    planes = {key: batch[key][:, 0].numpy() for key in ("valid", "region") if key in batch}
    images, reconstructions = batch["image"].permute(0, 2, 3, 1).numpy(), reconstructions.transpose(0, 2, 3, 1)
    for i, idx in enumerate(batch["idx"].tolist()):
        mask = batch["mask"][i, 0].numpy() > 0
        rest = {key: plane[i] for key, plane in planes.items()}
        yield NetworkOutput(idx, images[i], reconstructions[i], maps[i], mask, **rest)
