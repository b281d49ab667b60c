"""Row 8: evaluate_checkpoints.py, one checkpoint, all techniques and thresholds, against its forward passes alone."""

import subprocess
import tempfile
from pathlib import Path

import torch

from benchmarks import common
from inference.networks import optimized
from model import DRAEM
from runtime.device import memory_format, select_device, select_precision


def main() -> None:
    """Time the whole process on 80 test and 40 held-out images; four input variants of each."""
    flags = common.arguments(__doc__, runs=5, size=128, width=32, channels=16, images=80, held_out=40)
    common.header(f"evaluate_checkpoints.py, {flags.images} test and {flags.held_out} held-out images")
    with tempfile.TemporaryDirectory() as folder:
        half = flags.images // 2
        train = 5 * flags.held_out
        settings = common.make_dataset(
            Path(folder), flags.size, train, flags.images - half, half, textures=3, spread=12
        )
        settings += [f"model.base_width={flags.width}", f"model.base_channels={flags.channels}", "train.epochs=1"]
        settings += [f"data.img_size={flags.size}", "metrics.visualisation=none"]
        settings += ["masking.regions.made_up=[[0, 16, 0, 64]]"]
        overrides = [word for setting in settings for word in ("--set", setting)]
        main_py = common.python(common.ROOT / "main.py", "--train", *overrides)
        subprocess.run(main_py, check=True, capture_output=True)
        command = common.python(common.ROOT / "evaluate_checkpoints.py", "--force", *overrides)

        device = select_device("auto")
        precision = select_precision("auto", device)
        network = optimized(DRAEM(flags.width, flags.channels), device, precision)
        x = torch.rand(8, 3, flags.size, flags.size, device=device).to(precision)
        x = x.contiguous(memory_format=memory_format(device, precision))

        def forward() -> None:
            with torch.inference_mode():
                for _ in range(4 * (flags.images + flags.held_out) // 8):
                    network(x)

        def whole() -> None:
            for path in Path(folder).rglob("thresholds/*/*.json"):
                path.unlink()
            subprocess.run(command, check=True, capture_output=True)

        def start() -> None:
            packages = "import engine.detection, matplotlib.backends.backend_agg, matplotlib.figure"
            subprocess.run(common.python("-c", packages), check=True)

        works = {"forward passes alone": forward, "starting Python, imports": start, "whole process": whole}
        common.compare("evaluation", works, flags.runs)


if __name__ == "__main__":
    main()
