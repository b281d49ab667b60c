"""Row 4: inference of the full-size networks: 1, 8 and 200 images, as the program runs them."""

import torch
from torch.utils.data import Dataset

from benchmarks import common
from config import load_config
from inference import networks
from inference.detect import detect
from inference.networks import optimized
from model import DRAEM
from runtime.device import memory_format, select_device, select_precision


class Pictures(Dataset):
    """So many random pictures to detect on, made when they are asked for."""

    def __init__(self, count: int, size: int):
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor | int]:
        return {"image": torch.rand(3, self.size, self.size), "mask": torch.zeros(1, self.size, self.size), "idx": idx}


def main() -> None:
    """Time batches of 1 and 8, and detection of 200 pictures; `--compiled 1`: also what a compiled batch takes."""
    flags = common.arguments(__doc__, runs=5, size=256, width=128, channels=64, compiled=0)
    common.header(
        f"inference, base_width {flags.width}, base_channels {flags.channels}, {flags.size} x {flags.size}, per image"
    )
    device = select_device("auto")
    precision = select_precision("auto", device)
    model = DRAEM(flags.width, flags.channels).to(device).eval()
    network = optimized(model, device, precision)
    with torch.inference_mode():
        for n in (1, 8):
            x = torch.rand(n, 3, flags.size, flags.size, device=device)
            ours = x.to(precision).contiguous(memory_format=memory_format(device, precision))
            works = {
                "plain, one by one": lambda x=x: [model(image) for image in x.split(1)],
                "project": lambda x=ours: network(x)[1].float().cpu(),
            }
            times = common.compare(f"{n} images" if n > 1 else "1 image", works, flags.runs, per=n)
        names = [f"{key}={value}" for key, value in (("base_width", flags.width), ("base_channels", flags.channels))]
        config = load_config(common.ROOT / "config.yaml", [f"model.{name}" for name in names])
        detected = common.seconds(lambda: [None for _ in detect(model, Pictures(200, flags.size), config, "")]) / 200
        common.report(
            "200 images by detect, once", {"plain, one by one": times["plain, one by one"][:1], "project": [detected]}
        )
        if flags.compiled:
            compiled = networks.Compiled(network, "on", freezing=True)
            print(f"compilation and first pass: {common.seconds(lambda: compiled(ours)):.1f} s")
            works = {"plain, one by one": works["plain, one by one"], "project": works["project"]}
            works["project, compiled"] = lambda: compiled(ours)[1].float().cpu()
            common.compare("8 images, compiled", works, flags.runs, per=8)


if __name__ == "__main__":
    main()
