"""Training: synthesis of samples, steps, their floor, whole epochs, several processes."""

import contextlib
import io
import os
import statistics
import subprocess
import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import data_loader
from benchmarks import baselines, common
from config_file import load_config
from data import folders
from data.mvtec import list_nominal
from engine import train
from inference import networks
from loss import DRAEMLoss
from model import DRAEM
from runtime.device import Compute, memory_format, select_device, select_precision, setup
from synthesis import AnomalySynthesizer
from training.distributed import ProcessGroup
from training.loop import train_step


def bench_synthesis() -> None:
    """Row 1: a training sample, on one core.

    Time 2,000 samples of 256 x 256 against the plain way.
    """
    flags = common.arguments(runs=5, samples=400, size=256)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    common.header(f"synthesis, {flags.size} x {flags.size}, cutout off, {flags.runs} x {flags.samples} samples")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        common.make_dataset(root, flags.size, train=60, good=1, bad=1, textures=120)
        files, textures = list_nominal(root / "mvtec/made_up"), folders.list_textures(root / "textures")
        size = (flags.size, flags.size)
        dataset = data_loader.DRAEMTrainDataset(files, AnomalySynthesizer(textures, size))
        helper, rng, keys = AnomalySynthesizer(textures[:1], size), np.random.default_rng(0), count()

        def ours() -> None:
            for _ in range(flags.samples):
                dataset[next(keys)]

        def baseline() -> None:
            for _ in range(flags.samples // 4):
                baselines.sample(files, textures, helper, rng)

        times: dict[str, list[float]] = {"plain": [], "project": []}
        for run in range(flags.runs + 1):
            for name, work, n in (("plain", baseline, flags.samples // 4), ("project", ours, flags.samples)):
                taken = common.seconds(work) / n
                if run:
                    times[name].append(taken)
        common.report("sample", times)


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
        self.model = DRAEM(width, channels).train()
        self.model.to(self.device, memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
        self.network = networks.for_training(self.model, compile_, self.device, steps=700 * 25)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-4, fused=True)
        self.criterion = DRAEMLoss().to(self.device)

    def step(self, batch: dict[str, Tensor]) -> object:
        """One step."""
        return train_step(self.network, self.criterion, self.optimizer, batch, Compute(self.device, self.precision))


def compare_steps(width: int, channels: int, size: int, batch_size: int, runs: int) -> None:
    """Time steps: the plain way, and the project's in its own precision and in float32."""
    common.header(f"training step, base_width {width}, base_channels {channels}, {size} x {size}, batch {batch_size}")
    batch = random_batch(size, batch_size)
    trainer, exact = Trainer(width, channels), Trainer(width, channels, "fp32", "off")
    torch.manual_seed(0)
    model = DRAEM(width, channels).to(trainer.device).train()
    optimizer = baselines.optimizer(model)
    works = {
        "plain": lambda: baselines.train_step(model, optimizer, batch, trainer.device),
        "project, fp32": lambda: exact.step(batch),
        f"project, {str(trainer.precision).removeprefix('torch.')}": lambda: trainer.step(batch),
    }
    common.compare("training step", works, runs, warmup=2)


def convolutions(width: int, channels: int, size: int, batch: int) -> list[tuple[nn.Conv2d, torch.Size]]:
    """Every convolution of the networks, with the shape that it is given."""
    model, found = DRAEM(width, channels), []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, _: found.append((layer, inputs[0].shape)))
    with torch.inference_mode():
        model(torch.rand(batch, 3, size, size))
    return found


def seconds(layers: list[tuple[nn.Conv2d, torch.Size]], precision: torch.dtype, is_training: bool) -> float:
    """How long all of them take, one after the other: forward, in training also backward to input and weights."""
    device = select_device("auto")
    layout = memory_format(device, precision)
    taken = 0.0
    for layer, shape in layers:
        x, weight = (
            tensor.to(device, precision, memory_format=layout).requires_grad_(is_training)
            for tensor in (torch.randn(shape), layer.weight.detach())
        )
        ones = torch.ones_like(F.conv2d(x, weight, padding=layer.padding))

        def work(x=x, weight=weight, padding=layer.padding, ones=ones) -> None:
            y = F.conv2d(x, weight, padding=padding)
            if is_training:
                torch.autograd.grad(y, (x, weight), ones)

        work()
        taken += common.seconds(work)
    return taken


def bench_floor() -> None:
    """The floor of rows 2 to 4: the networks' convolutions alone, in the project's precision and in float32.

    Time the convolutions of a step and of inference; five times each.
    """
    flags = common.arguments(runs=5)
    common.header("convolutions alone")
    precision = select_precision("auto", select_device("auto"))
    for title, sizes, is_training in (
        ("training step, full size", (128, 64, 256, 2), True),
        ("training step, 32/16", (32, 16, 128, 8), True),
        ("inference, full size, 1 image", (128, 64, 256, 1), False),
    ):
        layers = convolutions(*sizes)
        times = {
            name: [seconds(layers, dtype, is_training) for _ in range(flags.runs)]
            for name, dtype in (("fp32", torch.float32), (str(precision).removeprefix("torch."), precision))
        }
        common.report(title, times)


def bench_epoch() -> None:
    """Row 5: a whole epoch of 200 images against its steps alone.

    Time runs of one and of more epochs; the difference is what whole epochs take, with all that is saved.
    """
    flags = common.arguments(width=32, channels=16, size=128, batch=8, images=200, epochs=1, runs=5)
    common.header(
        f"epoch of {flags.images} images, base_width {flags.width}, base_channels {flags.channels}, "
        f"{flags.size} x {flags.size}, batch {flags.batch}"
    )
    trainer, batch = Trainer(flags.width, flags.channels), random_batch(flags.size, flags.batch)
    trainer.step(batch)
    times: dict[str, list[float]] = {"steps alone": [], "whole epoch": []}
    with tempfile.TemporaryDirectory() as folder:
        settings = common.make_dataset(Path(folder), flags.size, flags.images, 1, 1, textures=120)
        settings += [f"model.base_width={flags.width}", f"model.base_channels={flags.channels}"]
        settings += [f"data.img_size={flags.size}", f"train.batch_size={flags.batch}", "data.val_split=0"]
        settings += ["train.resume=never", "train.visualize=false"]

        def run(epochs: int) -> float:
            config = load_config(common.ROOT / "config.yaml", [*settings, f"train.epochs={epochs}"])
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                return common.seconds(lambda: train.run(config, ""))

        run(1)  # decodes images and textures
        for _ in range(flags.runs):
            times["steps alone"].append(
                common.seconds(lambda: [trainer.step(batch) for _ in range(flags.images // flags.batch)])
            )
            times["whole epoch"].append((run(1 + flags.epochs) - run(1)) / flags.epochs)
    common.report("epoch", times)


SAYS = "seconds a step: "


def work(flags) -> None:
    """Steps of one process; with others where a launcher has started it. The first prints its median."""
    device = select_device("auto")
    uses_cuda = device.type == "cuda"
    together = ProcessGroup(uses_cuda) if "RANK" in os.environ else None
    precision = select_precision("auto", device)
    model, layout = DRAEM(flags.width, flags.channels).train(), memory_format(device, precision)
    model.to(device, memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    network = together.wrap_ddp(model) if together else model
    criterion = DRAEMLoss(together.extremes if together else torch.aminmax).to(device)
    image = torch.randint(0, 256, (flags.batch, 3, flags.size, flags.size), dtype=torch.uint8)
    batch = {"image": image, "augmented_image": image / 255, "anomaly_mask": image[:, :1] > 128}

    def step() -> None:
        if together:
            together.any(None)
        train_step(
            network, criterion, optimizer, batch, Compute(device, precision), 1 / together.count if together else None
        )

    for _ in range(3):
        step()
    taken = [common.seconds(step) for _ in range(flags.steps)]
    if together is None or together.is_first:
        print(f"{SAYS}{statistics.median(taken)}")


def bench_processes() -> None:
    """Training on several processes: steps with shared statistics, losses and gradients, against independent processes.

    Run both in turn: the same batch a process, on the CPU with one thread each.
    """
    flags = common.arguments(runs=5, processes=2, width=32, channels=16, size=128, batch=4, steps=8, worker=0)
    setup()
    if flags.worker:
        work(flags)
        return
    common.header(
        f"training steps, {flags.processes} processes, {flags.batch} samples each, {flags.size} x {flags.size}"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = ["-m", "benchmarks.training", "processes", "--worker", "1"]
    for name in ("width", "channels", "size", "batch", "steps"):
        words += [f"--{name}", str(getattr(flags, name))]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(flags.processes)]

    def seconds_of(commands: list[list[str]]) -> float:
        pipe = subprocess.PIPE
        started = [
            subprocess.Popen(command, cwd=common.ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
            for command in commands
        ]
        outs = [process.communicate() for process in started]
        found = [
            float(line.removeprefix(SAYS)) for out, _ in outs for line in out.splitlines() if line.startswith(SAYS)
        ]
        assert found, outs
        return max(found)

    times: dict[str, list[float]] = {"independent processes": [], "together": []}
    for _ in range(flags.runs):
        times["independent processes"].append(seconds_of([common.python(*words)] * flags.processes))
        times["together"].append(seconds_of([common.python(*launcher, *words)]))
    common.report("step", times)


def bench_step() -> None:
    """Row 2: a training step at full size, batch 2. Row 3: --width 32 --channels 16 --size 128 --batch 8."""
    flags = common.arguments(runs=5, width=128, channels=64, size=256, batch=2)
    compare_steps(flags.width, flags.channels, flags.size, flags.batch, flags.runs)


if __name__ == "__main__":
    common.run(
        {
            "synthesis": bench_synthesis,
            "step": bench_step,
            "floor": bench_floor,
            "epoch": bench_epoch,
            "processes": bench_processes,
        }
    )
