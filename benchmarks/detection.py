"""Row 7: detection of 200 images, all that is not the networks: a whole process less the forward passes in it."""

import subprocess
import tempfile
from pathlib import Path

import torch

from benchmarks import common, plain
from data.mvtec import list_test
from inference.networks import optimized
from model import DRAEM
from runtime.device import memory_format, select_device, select_precision


def main() -> None:
    """Time main.py --detection on the smallest networks, a panel for every image, against the plain way."""
    flags = common.arguments(__doc__, runs=5, size=256, images=200, few=20)
    common.header(f"detection of {flags.images} images without the networks, {flags.size} x {flags.size}, per image")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        half = flags.images // 2
        settings = common.make_dataset(root, flags.size, 20, flags.images - half, half, textures=3)
        settings += ["model.base_width=1", "model.base_channels=1", "train.epochs=1", f"data.img_size={flags.size}"]
        overrides = [word for setting in settings for word in ("--set", setting)]

        def main_py(*modes: str) -> None:
            command = common.python(common.ROOT / "main.py", *modes, *overrides)
            subprocess.run(command, check=True, capture_output=True)

        main_py("--train", "--threshold")
        device = select_device("auto")
        precision = select_precision("auto", device)
        network = optimized(DRAEM(1, 1), device, precision)
        x = torch.rand(8, 3, flags.size, flags.size, device=device).to(precision)
        x = x.contiguous(memory_format=memory_format(device, precision))
        pictures = list_test(root / "mvtec/made_up")[half - flags.few // 2 :][: flags.few]
        files = [(picture.path, picture.masks[0] if picture.masks else None) for picture in pictures]

        def baseline() -> None:
            plain.detection(files, lambda image: image[..., 0], root, flags.size)

        times = {"plain": [], "project": []}
        for run in range(flags.runs + 1):
            taken = common.seconds(baseline) / flags.few
            whole = common.seconds(lambda: main_py("--detection"))
            with torch.inference_mode():
                networks = common.seconds(lambda: [network(x) for _ in range(flags.images // 8)])
            if run:
                times["plain"].append(taken)
                times["project"].append((whole - networks) / flags.images)
    common.report("image", times)


if __name__ == "__main__":
    main()
