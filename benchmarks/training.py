"""Training steps and what they need."""

import torch
from torch import Tensor

from benchmarks import common, plain
from inference import networks
from loss import DRAEMLoss
from model import DRAEM
from runtime.device import memory_format, select_device, select_precision
from training.loop import train_step


def random_batch(size: int, n: int) -> dict[str, Tensor]:
    """A batch of training samples of noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(n, 3, size, size, generator=generator)
    mask = (torch.rand(n, 1, size, size, generator=generator) > 0.95).float()
    return {"image": image, "augmented_image": image.clone(), "anomaly_mask": mask}


class Trainer:
    """The project's step with all that belongs to it."""

    def __init__(self, width: int, channels: int, precision: str = "auto", compile_: str = "auto"):
        torch.manual_seed(0)
        self.device = select_device("auto")
        self.precision = select_precision(precision, self.device)
        layout = memory_format(self.device, self.precision)
        self.model = DRAEM(width, channels).to(self.device, memory_format=layout).train()
        self.network = networks.for_training(self.model, compile_, self.device, steps=700 * 25)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-4, fused=True)
        self.criterion = DRAEMLoss().to(self.device)

    def step(self, batch: dict[str, Tensor]) -> None:
        """One step."""
        train_step(self.network, self.criterion, self.optimizer, batch, self.device, self.precision)


def compare_steps(width: int, channels: int, size: int, batch_size: int, runs: int) -> None:
    """Time steps: the plain way, and the project's in its own precision and in float32."""
    common.header(f"training step, base_width {width}, base_channels {channels}, {size} x {size}, batch {batch_size}")
    batch = random_batch(size, batch_size)
    trainer, exact = Trainer(width, channels), Trainer(width, channels, "fp32", "off")
    torch.manual_seed(0)
    model = DRAEM(width, channels).to(trainer.device).train()
    optimizer = plain.optimizer(model)
    works = {
        "plain": lambda: plain.train_step(model, optimizer, batch, trainer.device),
        "project, fp32": lambda: exact.step(batch),
        f"project, {str(trainer.precision).removeprefix('torch.')}": lambda: trainer.step(batch),
    }
    common.compare("training step", works, runs, warmup=2)
