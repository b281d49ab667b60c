"""The floor of rows 2 to 4: the networks' convolutions alone, in the project's precision and in float32."""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import common
from model import DRAEM
from runtime.device import memory_format, select_device, select_precision


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


def main() -> None:
    """Time the convolutions of a step and of inference; five times each."""
    flags = common.arguments(__doc__, runs=5)
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


if __name__ == "__main__":
    main()
