"""Inference: run the networks over images to get reconstructions and anomaly maps. All modes use this module."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import data_loader
from config import Config
from inference import networks, tiles
from inference.exported import Run, pixels_of
from model import DRAEM
from runtime.device import (
    Together,
    map_in_threads,
    memory_format,
    select_device,
    select_precision,
    worker_count,
    worker_errors,
)
from runtime.errors import UserError


@dataclass(frozen=True)
class NetworkOutput:
    """Output of the networks for one image.

    Attributes:
        idx: index of the image in its dataset. image: sample of the dataset, (H, W, 3), BGR.
        reconstruction: float32 (H, W, 3), BGR.
        anomaly_map: float32 (H, W), probability of 'anomalous', in [0, 1].
        mask: ground truth, bool (H, W).
        valid: bool (H, W), False in pixels that metrics ignore; None for all True.
        region: masking region, bool (H, W); None for all False.
        defects: of each mask of its sample the pixels it marks, bool (H, W), where overlaps saturate; else empty.
    """

    idx: int
    image: np.ndarray
    reconstruction: np.ndarray
    anomaly_map: np.ndarray
    mask: np.ndarray
    valid: np.ndarray | None = None
    region: np.ndarray | None = None
    defects: Sequence[np.ndarray] = ()


class Networks:
    """The networks, optimized for inference, with tiling and batching.

    Args:
        model: on any device; it is copied. config: the settings.
        images: total number of images, to decide whether compilation pays.
        exported: runs an exported file in place of the model, with reconstructions.

    Attributes:
        device: that the networks run on. images_at_once: number of images whose tiles fill a batch, at least 1.
    """

    def __init__(self, model: DRAEM, config: Config, images: int, exported: Run | None = None):
        self.device, self._exported = select_device(config.train.device), exported
        self._precision = select_precision(config.train.precision, self.device)
        self._layout = memory_format(self.device, self._precision)
        data, self._batch_size = config.data, config.data.test_batch_size
        self._tiles = tiles.cut(data.img_size, data.input_size, data.tile_overlap, self.device)
        self.images_at_once = max(self._batch_size // len(self._tiles), 1)
        if exported:
            self.device = torch.device("cpu")
            return
        optimized = networks.optimized(model, self.device, self._precision)
        passes = -(-images * len(self._tiles) // self._batch_size)

        def blank() -> Tensor:
            batch = torch.zeros(self._batch_size, 3, *data.input_size, device=self.device, dtype=self._precision)
            return batch.contiguous(memory_format=self._layout)

        self._run = networks.for_inference(optimized, config.train.compile, blank, passes)

    @torch.inference_mode()
    def __call__(self, images: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Run the networks over images, in batches of tiles. Results have the order of the images.

        Args:
            images: uint8 (3, H, W), or float32 in [0, 1], BGR.

        Yields:
            reconstruction (3, H, W) and anomaly map (H, W), the probability of 'anomalous', float32, on the device.
        """
        parts = self._parts(images)
        previous: list[tuple[Tensor, Tensor]] = []
        while batch := list(islice(parts, self._batch_size)):
            finished = []
            for (_, tile, blended), *outputs in zip(batch, *self._pass([part for part, *_ in batch]), strict=True):
                blended.add(tile, *outputs)
                if blended.is_done:
                    finished.append(blended.output)
            # One batch ahead: the GPU computes this batch while the caller uses the results of the previous one.
            yield from previous
            previous = finished
        yield from previous

    def _parts(self, images: Iterable[Tensor]) -> Iterator[tuple[Tensor, tiles.Tile, tiles.Blended]]:
        """The pixels of every tile of every image, with the tile and the image's blended output."""
        for image in images:
            image = image.to(self.device, non_blocking=True)
            blended = tiles.Blended((image.shape[1], image.shape[2]), len(self._tiles))
            for tile in self._tiles:
                yield image[:, tile.rows, tile.columns], tile, blended

    def _pass(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """One forward pass: reconstructions (N, 3, h, w) and anomaly maps (N, h, w), float32."""
        if self._exported:
            return self._pass_exported(torch.stack(images))
        scaled = data_loader.scaled(torch.stack(images), self.device).to(self._precision)
        reconstruction, logits = self._run(scaled.contiguous(memory_format=self._layout))
        return reconstruction.float(), anomaly_maps(logits)

    def _pass_exported(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert self._exported is not None
        found = [self._exported(one[None]) for one in pixels_of(images)]  # its size is fixed at one image
        maps, reconstructions = (np.concatenate([one[place] for one in found]) for place in (0, 2))
        return torch.from_numpy(reconstructions), torch.from_numpy(maps)


class Samples(Protocol):
    """A dataset of test samples: dicts with `image`, `mask` and `idx`, and optionally `valid` and `region`."""

    def __len__(self) -> int: ...

    def __getitem__(self, idx: int) -> dict[str, Any]: ...

    def name(self, idx: int) -> str:
        """Name of a sample, for messages."""


def detect(
    model: DRAEM,
    dataset: Samples,
    config: Config,
    title: str,
    group: Together | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[NetworkOutput]:
    """Run the networks once over all samples of a dataset, and yield the outputs in order.

    Args:
        dataset: samples are dicts with `image`, `mask` and `idx`, and optionally `valid` and `region`.
        title: of the progress bar; empty: no progress bar.
        group: processes of a distributed run, which take batches in turn. Rank 0 yields all outputs, the other ranks
            none.
        check: called by every rank after each round of batches; may raise to stop.

    Raises:
        UserError: an image cannot be read, or an anomaly map is not finite.
    """
    rank, count = (group.rank, group.count) if group else (0, 1)
    if group:
        group.barrier()  # an error of another rank before this point is raised here
    network, data = Networks(model, config, len(dataset)), config.data
    batch_size = network.images_at_once
    batches = -(-len(dataset) // batch_size)
    workers = worker_count(data.num_workers, network.device, batches=-(-batches // count))
    uses_cuda = network.device.type == "cuda"
    loader = data_loader.test_loader(
        cast(Dataset, dataset), batch_size, workers, data.img_size, uses_cuda, every=(rank, count)
    )
    own = _passes(network, loader, dataset)
    with (
        tqdm(total=len(dataset), desc=title, unit="image", leave=None, disable=not title or rank > 0) as bar,
        _every_failure(dataset, group),
        worker_errors(),
    ):
        for first in range(0, batches, count):
            if rank == 0:
                for other in range(min(count, batches - first)):
                    outputs = group.receive(other) if group and other else next(own)
                    yield from outputs
                    bar.update(len(outputs))
            elif group and first + rank < batches:
                group.send(next(own))
            check()


@contextmanager
def _every_failure(dataset: Samples, group: Together | None) -> Iterator[None]:
    """Where an image cannot be read, name all that cannot, so that all can be fixed at once."""
    try:
        yield
    except UserError:
        if not group:
            map_in_threads(lambda idx: dataset[idx] and None, range(len(dataset)))
        raise


def _passes(network: Networks, loader: DataLoader, dataset: Samples) -> Iterator[list[NetworkOutput]]:
    """Run the networks over the batches of a loader; yields a list of outputs for each batch."""
    batches: deque[dict[str, Tensor]] = deque()

    def images() -> Iterator[Tensor]:
        for batch in loader:
            batches.append(batch)
            yield from batch["image"]

    results = network(images())
    for first in results:
        batch = batches.popleft()
        own = [first, *islice(results, len(batch["idx"]) - 1)]
        reconstructions, maps = (torch.stack(part).cpu().numpy() for part in zip(*own, strict=True))
        yield list(_outputs(batch, reconstructions, maps, dataset))


def anomaly_maps(logits: Tensor) -> Tensor:
    """Logits (N, 2, H, W) -> anomaly maps: probability of 'anomalous', float32 (N, H, W), in [0, 1]."""
    return torch.softmax(logits.float(), dim=1)[:, 1]


def _outputs(
    batch: dict[str, Tensor], reconstructions: np.ndarray, maps: np.ndarray, dataset: Samples
) -> Iterator[NetworkOutput]:
    """Split the arrays of a batch into one NetworkOutput per image; UserError if an anomaly map is not finite."""
    for idx, anomaly_map in zip(batch["idx"].tolist(), maps, strict=True):
        if not np.isfinite(anomaly_map).all():
            name = dataset.name(idx)
            raise UserError(
                name, "its anomaly map is not finite", "use another checkpoint, or set train.precision=fp32"
            )
    planes = {key: batch[key][:, 0].numpy() for key in ("valid", "region") if key in batch}
    images, reconstructions = batch["image"].permute(0, 2, 3, 1).numpy(), reconstructions.transpose(0, 2, 3, 1)
    for i, idx in enumerate(batch["idx"].tolist()):
        mask = batch["mask"][i, 0].numpy() > 0
        rest = {key: plane[i] for key, plane in planes.items()}
        yield NetworkOutput(idx, images[i], reconstructions[i], maps[i], mask, **rest)
