"""Row 10: full-size networks on a CUDA GPU: training end to end with the loader, and inference."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

import data_loader
from benchmarks import baselines, common
from benchmarks.training import Trainer
from data import folders
from data.mvtec import list_nominal
from inference import networks
from inference.networks import optimized
from model import DRAEM
from runtime.device import memory_format, select_precision, worker_count
from synthesis import AnomalySynthesizer


def endless(dataset: data_loader.DRAEMTrainDataset, batch: int, workers: int) -> Iterator[dict]:
    """Batches of training samples, epoch after epoch."""
    loader = data_loader.train_loader(dataset, batch, workers, pin_memory=True)
    while True:
        loader.batch_sampler.sampler.epoch += 1  # type: ignore[union-attr]  # it is `train_loader`'s own
        yield from loader


def main() -> None:
    """Time both against float32 eager contiguous without TF32. Bars: 3.33 and 1 ms an image, and 4 x."""
    flags = common.arguments(runs=5, steps=200, size=256, batch=8, inference_batch=16, width=128, channels=64)
    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing is measured")
        return
    common.header(
        f"GPU, base_width {flags.width}, base_channels {flags.channels}, {flags.size} x {flags.size}, per image"
    )
    device = torch.device("cuda")
    precision = select_precision("auto", device)

    def compare(title: str, batch: int, works: Mapping[str, Callable[[], object]]) -> None:
        """Many steps of each, so that what a loader has made ahead cannot hide that it is slow; few of the baseline."""
        times: dict[str, list[float]] = {name: [] for name in works}
        for run in range(flags.runs + 1):
            for name, work in works.items():
                is_plain = name == "plain fp32"
                steps = max(flags.steps // 10, 1) if is_plain else flags.steps
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not is_plain
                taken = common.seconds(lambda: [work() for _ in range(steps)])  # noqa: B023  # called at once
                if run:  # the first compiles and chooses algorithms
                    times[name].append(taken / steps / batch)
        common.report(title, times)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        common.make_dataset(root, flags.size, train=200, good=1, bad=1, textures=120)
        size = (flags.size, flags.size)
        files, textures = list_nominal(root / "mvtec/made_up"), folders.list_textures(root / "textures")
        dataset = data_loader.DRAEMTrainDataset(files, AnomalySynthesizer(textures, size))
        loaders = [endless(dataset, flags.batch, worker_count("auto", device)) for _ in range(3)]
        trainer, eager = Trainer(flags.width, flags.channels), Trainer(flags.width, flags.channels, compile_="off")
        model = DRAEM(flags.width, flags.channels).to(device).train()
        optimizer = baselines.optimizer(model)
        works: dict[str, Callable[[], object]] = {
            "plain fp32": lambda: baselines.train_step(model, optimizer, next(loaders[0]), device),
            "project, compile off": lambda: eager.step(next(loaders[1])),
            "project": lambda: trainer.step(next(loaders[2])),
        }
        compare("training, with loader", flags.batch, works)

    model = model.eval()
    network = optimized(model, device, precision)
    compiled = networks.Compiled(network, "on", freezing=True)
    x = torch.rand(flags.inference_batch, 3, flags.size, flags.size, device=device)
    ours = x.to(precision).contiguous(memory_format=memory_format(device, precision))
    with torch.inference_mode():
        works = {
            "plain fp32": lambda: model(x),
            "project": lambda: network(ours),
            "project, compiled": lambda: compiled(ours),
        }
        compare("inference", flags.inference_batch, works)


if __name__ == "__main__":
    main()
