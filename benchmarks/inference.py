"""Row 4: inference of the full-size networks: 1, 8 and 200 images, as the program runs them."""

import torch

from benchmarks import common
from engine import compilation, runtime
from engine.inference import prepared
from model import DRAEM


def main() -> None:
    """Time batches of 1 and 8, and from these what 200 images take; `--compiled 1` compiles whatever pays."""
    flags = common.arguments(__doc__, runs=5, size=256, width=128, channels=64, compiled=0)
    common.header(
        f"inference, base_width {flags.width}, base_channels {flags.channels}, {flags.size} x {flags.size}, per image"
    )
    device = runtime.select_device("auto")
    precision = runtime.select_precision("auto", device)
    model = DRAEM(flags.width, flags.channels).to(device).eval()
    network = prepared(model, device, precision)
    with torch.inference_mode():
        for n in (1, 8):
            x = torch.rand(n, 3, flags.size, flags.size, device=device)
            ours = x.to(precision).contiguous(memory_format=runtime.memory_format(precision))
            works = {
                "plain, one by one": lambda x=x: [model(image) for image in x.split(1)],
                "project": lambda x=ours: network(x)[1].float().cpu(),
            }
            common.compare(f"{n} images" if n > 1 else "1 image", works, flags.runs, per=n)
        seconds = common.seconds(lambda: network(ours)) / 8 * 200
        pays = seconds > compilation.PAYS_FROM
        print(
            f"200 images: {seconds:.1f} s of inference, so compile: auto {'compiles' if pays else 'does not compile'}"
        )
        if flags.compiled or pays:
            compiled = compilation.Compiled(network, "on", freezing=True)
            print(f"compilation and first pass: {common.seconds(lambda: compiled(ours)):.1f} s")
            works = {"plain, one by one": works["plain, one by one"], "project": works["project"]}
            works["project, compiled"] = lambda: compiled(ours)[1].float().cpu()
            common.compare("200 images, compiled", works, flags.runs, per=8)


if __name__ == "__main__":
    main()
