"""Training on several processes: steps with shared statistics, losses and gradients, against independent processes."""

import os
import statistics
import subprocess

import torch

from benchmarks import common
from loss import DRAEMLoss
from model import DRAEM
from runtime.device import memory_format, select_device, select_precision, setup
from training.distributed import ProcessGroup
from training.loop import train_step

SAYS = "seconds a step: "


def work(flags) -> None:
    """Steps of one process; with others where a launcher has started it. The first prints its median."""
    device = select_device("auto")
    uses_cuda = device.type == "cuda"
    together = ProcessGroup(uses_cuda) if "RANK" in os.environ else None
    precision = select_precision("auto", device)
    model = DRAEM(flags.width, flags.channels).to(device, memory_format=memory_format(device, precision)).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    network = together.wrap_ddp(model) if together else model
    criterion = DRAEMLoss(*([together.extremes] if together else [])).to(device)
    image = torch.randint(0, 256, (flags.batch, 3, flags.size, flags.size), dtype=torch.uint8)
    batch = {"image": image, "augmented_image": image / 255, "anomaly_mask": image[:, :1] > 128}

    def step() -> None:
        if together:
            together.any(None)
        train_step(network, criterion, optimizer, batch, device, precision, 1 / together.count if together else None)

    for _ in range(3):
        step()
    taken = [common.seconds(step) for _ in range(flags.steps)]
    if together is None or together.is_first:
        print(f"{SAYS}{statistics.median(taken)}")


def main() -> None:
    """Run both in turn: the same batch a process, on the CPU with one thread each."""
    flags = common.arguments(__doc__, runs=5, processes=2, width=32, channels=16, size=128, batch=4, steps=8, worker=0)
    setup()
    if flags.worker:
        work(flags)
        return
    common.header(
        f"training steps, {flags.processes} processes, {flags.batch} samples each, {flags.size} x {flags.size}"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = ["-m", "benchmarks.together", "--worker", "1"]
    for name in ("width", "channels", "size", "batch", "steps"):
        words += [f"--{name}", str(getattr(flags, name))]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(flags.processes)]

    def seconds_of(commands: list[list[str]]) -> float:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started = [subprocess.Popen(command, cwd=common.ROOT, env=environment, **pipes) for command in commands]
        outs = [process.communicate() for process in started]
        found = [
            float(line.removeprefix(SAYS)) for out, _ in outs for line in out.splitlines() if line.startswith(SAYS)
        ]
        assert found, outs
        return max(found)

    times = {"independent processes": [], "together": []}
    for _ in range(flags.runs):
        times["independent processes"].append(seconds_of([common.python(*words)] * flags.processes))
        times["together"].append(seconds_of([common.python(*launcher, *words)]))
    common.report("step", times)


if __name__ == "__main__":
    main()
