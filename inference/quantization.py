"""8-bit integers for the convolutions of an exported model, as far as the loss of quality stays within bounds."""

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.image_metrics import image_metrics
from evaluation.metrics import PixelMetrics
from inference import networks
from inference.exported import EXAMPLE, Graph, Run, compiled, openvino_model, own_signal_stack
from model import DRAEM
from runtime.device import select_precision

LEVELS = 255  # between the lowest and the highest value of 8 bits
RUNS, LONG_ENOUGH = 5, 5000  # runs that are timed; milliseconds of one from which on fewer are


class Quality(NamedTuple):
    """Of anomaly maps on images with synthetic anomalies, each in [0, 1]."""

    pixel_ap: float
    image_auroc: float

    def loss(self, other: "Quality") -> "Quality":
        """How much lower the other's values are; negative where they are higher."""
        return Quality(self.pixel_ap - other.pixel_ap, self.image_auroc - other.image_auroc)

    def is_within(self, bounds: "Quality") -> bool:
        """Whether no value, of a loss, exceeds its bound."""
        return all(value <= bound for value, bound in zip(self, bounds, strict=True))


class Samples(NamedTuple):
    """Images with synthetic anomalies, uint8 (1, H, W, 3): training ones, and held-out ones with masks."""

    calibration: list[np.ndarray]
    held_out: list[np.ndarray]
    masks: list[np.ndarray]


def quality_of(run: Run, samples: Samples) -> Quality:
    """Quality of a file on the held-out images with synthetic anomalies."""
    pixels, scores = PixelMetrics(), []
    for image, mask in zip(samples.held_out, samples.masks, strict=True):
        maps, score, *_ = run(image)
        pixels.update(maps[0], mask)
        scores.append(float(score[0]))
    labels = np.array([mask.any() for mask in samples.masks])
    image_auroc, pixel_ap = image_metrics(labels, np.array(scores))["image_auroc"], pixels.compute()["pixel_ap"]
    return Quality(pixel_ap or 0.0, image_auroc or 0.0)


class Attempt(NamedTuple):
    """A model with some of its convolutions quantized. in_float: names of the others."""

    in_float: Sequence[str]
    model: Any
    quality: Quality


def convolutions(model: Any) -> list[str]:
    """Names of the convolutions of an OpenVINO model, in the order in which they run."""
    return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]


def quantized(model: Any, calibration: Sequence[np.ndarray], in_float: Sequence[str]) -> Any:
    """An OpenVINO model with its convolutions in 8 bits, but for those named.

    Args:
        model: takes images, uint8 (N, H, W, 3). calibration: such batches, whose activations set the ranges.
    """
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level("ERROR")
    with own_signal_stack(), contextlib.redirect_stdout(io.StringIO()):  # progress bars
        return nncf.quantize(
            model,
            nncf.Dataset(list(calibration)),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            # The score's average of the finished map is not quantized: it would round scores to 256 values.
            ignored_scope=nncf.IgnoredScope(names=list(in_float), types=["AvgPool"]),
            # Anomalies make the largest activations and are few: the average of the images' extremes would clip them,
            # and means of activations, which a correction of biases restores, hardly change.
            advanced_parameters=AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX, disable_bias_correction=True
            ),
        )


@torch.inference_mode()
def sensitivities(graph: nn.Module, images: Tensor) -> list[float]:
    """Mean squared change of the anomaly maps by 8 bits in one convolution alone; of each, in the order they run.

    Args:
        graph: images -> anomaly maps and scores. images: uint8 (N, H, W, 3).
    """
    order: list[nn.Conv2d] = []
    layers = [module for module in graph.modules() if isinstance(module, nn.Conv2d)]
    hooks = [layer.register_forward_pre_hook(lambda module, _: order.append(module)) for layer in layers]
    exact = graph(images)[0]
    for hook in hooks:
        hook.remove()
    found = []
    for layer in order:
        weight = layer.weight.data
        scale = (weight.abs().amax((1, 2, 3), keepdim=True) / (LEVELS // 2)).clamp(min=1e-12)
        layer.weight.data = (weight / scale).round() * scale
        hook = layer.register_forward_pre_hook(lambda _, inputs: (_rounded(inputs[0]),))
        found.append(float((graph(images)[0] - exact).square().mean()))
        hook.remove()
        layer.weight.data = weight
    return found


def _rounded(values: Tensor) -> Tensor:
    """Values rounded to 8 bits between their extremes."""
    low, high = values.aminmax()
    step = ((high - low) / LEVELS).clamp(min=1e-12)
    return ((values - low) / step).round() * step + low


def search(
    ranked: Sequence[str], attempt: Callable[[Sequence[str]], tuple[Any, Quality]], exact: Quality, bounds: Quality
) -> list[Attempt]:
    """Look for the model with the fewest convolutions in float whose loss is within bounds.

    First none stays in float, then the first 1, 2, 4 and so on until the bounds hold, then the numbers between the last
    two are halved.

    Args:
        ranked: names of all convolutions, those that lose the most in 8 bits first.
        attempt: names of those in float -> a model and its quality. exact: quality with all in float.

    Returns:
        the attempts in their order, but for the last: that is the model looked for, or, where no attempt is within
        bounds, the one with the most in float.
    """
    attempts: list[Attempt] = []

    def succeeds(count: int) -> bool:
        attempts.append(Attempt(ranked[:count], *attempt(ranked[:count])))
        return exact.loss(attempts[-1].quality).is_within(bounds)

    failed, count = -1, 0
    while not succeeds(count):
        failed, count = count, max(2 * count, 1)
        if count >= len(ranked):
            return attempts
    best = attempts[-1]
    while count - failed > 1:
        middle = (failed + count) // 2
        if succeeds(middle):
            best, count = attempts[-1], middle
        else:
            failed = middle
    return [*(one for one in attempts if one is not best), best]


def milliseconds(runs: Sequence[Run], images: Sequence[np.ndarray]) -> list[float]:
    """Median time of an image, for each of some files; they take turns."""
    times: list[list[float]] = [[] for _ in runs]
    for image in images:
        for run, own in zip(runs, times, strict=True):
            start = time.perf_counter()
            run(image)
            own.append(1000 * (time.perf_counter() - start))
    return [float(np.median(own)) for own in times]


@cache
def milliseconds_by_form(
    base_width: int, base_channels: int, size: tuple[int, int], device: torch.device
) -> dict[str, float]:
    """Time of a single image of `size` (height, width) in each form in which networks of these widths can run here.

    The forms are float32 and, where that is fast, bfloat16 by PyTorch; on a CPU also those of --export, if the packages
    are installed. Neither the weights nor the image change the time.
    """
    model = DRAEM(base_width, base_channels).eval()
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    runs: dict[str, Run] = {}
    for precision in dict.fromkeys((torch.float32, select_precision("auto", device))):
        runs[str(precision).removeprefix("torch.")] = torch_run(model, device, precision)
    if device.type == "cpu" and find_spec("openvino"):
        for form, converted in _converted(base_width, base_channels).items():
            runs[form] = compiled(converted, size)
    first = milliseconds(list(runs.values()), [image])  # warms up
    count = max(1, min(RUNS, int(LONG_ENOUGH / max(first))))
    return dict(zip(runs, milliseconds(list(runs.values()), [image] * count), strict=True))


@cache
def _converted(base_width: int, base_channels: int) -> dict[str, Any]:
    """Models of OpenVINO of networks of these widths, for images of any size, in the forms of --export."""
    exact = openvino_model(Graph(DRAEM(base_width, base_channels).eval()).eval())
    found = {"openvino": exact}
    if find_spec("nncf"):
        found["openvino-int8"] = quantized(exact, [EXAMPLE[:1].numpy()], [])
    return found


def torch_run(model: DRAEM, device: torch.device, precision: torch.dtype) -> Run:
    """A function that runs networks by PyTorch; it gives the logits."""
    network = networks.optimized(model, device, precision)

    @torch.inference_mode()
    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
        return [network(pixels.to(precision))[1].float().cpu().numpy()]

    return run
