"""Row 10: full-size networks on a CUDA GPU: training end to end with the loader, and inference."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import data_loader
from benchmarks import common, plain
from benchmarks.training import Trainer
from engine import compilation, runtime
from engine.inference import prepared
from model import DRAEM
from synthesis import AnomalySynthesizer


def endless(dataset: data_loader.DRAEMTrainDataset, batch: int, workers: int) -> Iterator[dict]:
    """Batches of training samples, epoch after epoch."""
    loader = data_loader.train_loader(dataset, batch, workers, pin_memory=True)
    while True:
        loader.sampler.epoch += 1
        yield from loader


def main() -> None:
    """Time both against float32 eager contiguous without TF32."""
    flags = common.arguments(__doc__, runs=5, steps=200, size=256, batch=8, inference_batch=16, width=128, channels=64)
    if not torch.cuda.is_available():
        print("no CUDA GPU here: nothing is measured")
        return
    common.header(
        f"GPU, base_width {flags.width}, base_channels {flags.channels}, {flags.size} x {flags.size}, per image"
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        common.make_dataset(root, flags.size, train=200, good=1, bad=1, textures=120)
        size = (flags.size, flags.size)
        files, textures = data_loader.list_nominal(root / "mvtec/made_up"), data_loader.list_textures(root / "textures")
        dataset = data_loader.DRAEMTrainDataset(files, AnomalySynthesizer(textures, size))
        # A loader of its own for each, and many steps: what was made ahead cannot hide a slow loader.
        loaders = [endless(dataset, flags.batch, runtime.worker_count("auto", device)) for _ in range(3)]
        trainer, eager = Trainer(flags.width, flags.channels), Trainer(flags.width, flags.channels, compile_="off")
        model = DRAEM(flags.width, flags.channels).to(device).train()
        optimizer = plain.optimizer(model)

        def steps(step, batches: Iterator[dict]) -> None:
            for _ in range(flags.steps):
                step(next(batches))

        works = {
            "plain fp32": lambda: steps(lambda batch: plain.train_step(model, optimizer, batch, device), loaders[0]),
            "project, compile off": lambda: steps(eager.step, loaders[1]),
            "project": lambda: steps(trainer.step, loaders[2]),
        }
        common.compare("training, with loader", works, flags.runs, per=flags.steps * flags.batch)

    precision = runtime.select_precision("auto", device)
    model = model.eval()
    network = prepared(model, device, precision)
    compiled = compilation.Compiled(network, "on", freezing=True)
    x = torch.rand(flags.inference_batch, 3, flags.size, flags.size, device=device)
    ours = x.to(precision).contiguous(memory_format=runtime.memory_format(precision))
    with torch.inference_mode():
        works = {
            "plain fp32": lambda: [model(x) for _ in range(flags.steps)],
            "project": lambda: [network(ours) for _ in range(flags.steps)],
            "project, compiled": lambda: [compiled(ours) for _ in range(flags.steps)],
        }
        common.compare("inference", works, flags.runs, per=flags.steps * flags.inference_batch)


if __name__ == "__main__":
    main()
