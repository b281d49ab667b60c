"""How long a training step takes on this machine."""

import time

import torch
from tqdm import tqdm

import data_loader
from config import Config
from data import image_io
from loss import DRAEMLoss
from model import DRAEM
from runtime.device import Compute, memory_format
from synthesis import AnomalySynthesizer
from training import loop
from training.data import TrainingFiles

STEPS = 3  # measured, after one for warm-up
LONG_ENOUGH = 20  # seconds of measured steps, after which no further one is measured


def step_seconds(config: Config, files: TrainingFiles, size: int, compute: Compute) -> float:
    """Seconds of the fastest of a few steps with batches of `size` samples."""
    white = config.data.known_white_level
    images = [image_io.read_image(file, config.data.input_size, white) for file in files.training[:size]]
    dataset = data_loader.DRAEMTrainDataset(images, AnomalySynthesizer(files.textures[:4], config.data.input_size), 0)
    batch = torch.utils.data.default_collate([dataset[place] for place in range(size)])
    model = DRAEM(config.model.base_width, config.model.base_channels)
    layout = memory_format(compute.device, compute.precision)
    model.to(compute.device, memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    optimizer = torch.optim.Adam(model.train().parameters(), fused=True)
    criterion = DRAEMLoss().to(compute.device)
    seconds: list[float] = []
    for _ in tqdm(range(1 + STEPS), "measuring steps", leave=None):
        if len(seconds) > 1 and sum(seconds) > LONG_ENOUGH:
            break
        start = time.perf_counter()
        terms, _ = loop.train_step(model, criterion, optimizer, batch, compute)
        float(terms["focal"].detach())  # waits for the device
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
