"""Exported files: how long an image takes in each form, and what 8 bits change on test images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import common
from config_file import load_config
from data.mvtec import list_test
from data_loader import DRAEMTestDataset
from evaluation.image_metrics import image_metrics
from evaluation.metrics import PixelMetrics
from inference.detector import Detector
from inference.exported import Graph, compiled, openvino_model
from inference.quantization import quantized, torch_run
from model import DRAEM
from runtime.cli import add_config_flags

CHANNELS_OF = {16: 8, 32: 16, 64: 32, 128: 64}  # base_width -> base_channels


def bench_speed() -> None:
    """Time single images in each form, in turn, with networks that are not trained, which changes no time."""
    flags = common.arguments(runs=7, width=32, size=128, threads=2)
    torch.set_num_threads(flags.threads)
    common.header(f"one image, base_width {flags.width}, {flags.size} x {flags.size}")
    torch.manual_seed(0)
    model = DRAEM(flags.width, CHANNELS_OF[flags.width]).eval()
    image = np.random.default_rng(0).integers(0, 256, (1, flags.size, flags.size, 3), dtype=np.uint8)
    exact, size = openvino_model(Graph(model).eval()), (flags.size, flags.size)
    in_8_bits = quantized(exact, [image], [])
    forms = {
        f"{name}, the rest in {precision}": compiled(one, size, precision, flags.threads)
        for name, one in (("openvino", exact), ("openvino-int8", in_8_bits))
        for precision in ("f32", "bf16")
    }
    works: dict[str, Callable[[], object]] = {name: lambda run=run: run(image) for name, run in forms.items()}  # type: ignore[misc]
    for precision in (torch.float32, torch.bfloat16):
        run_torch = torch_run(model, torch.device("cpu"), precision)
        works[f"torch {precision}"] = lambda run=run_torch: run(image)  # type: ignore[misc]
    common.compare("forms", works, runs=flags.runs)


def bench_quality() -> None:
    """Image AUROC and pixel AP on the test images, of the networks and of the files that --export has written."""
    flags = common.parser()
    add_config_flags(flags)
    arguments = flags.parse_args()
    for engine in ("torch", "openvino", "openvino-int8"):
        sets = [*(arguments.set), f"inference.engine={engine}", "train.precision=fp32", "metrics.threshold=false"]
        detector = Detector.for_new_images(load_config(arguments.config, sets))
        data = detector.config.data
        samples = list_test(Path(data.data_path) / data.category)
        truth = DRAEMTestDataset(samples, data.img_size, data.known_white_level)
        pixels, scores = PixelMetrics(), []
        for place, sample in enumerate(samples):
            found = detector.run([detector.read(sample.path)])[0]
            scores.append(found.score)
            mask = truth[place]["mask"]
            assert isinstance(mask, torch.Tensor)
            pixels.update(found.output.anomaly_map, mask[0].numpy())
        labels = np.array([sample.has_anomaly for sample in samples])
        auroc, pixel_ap = image_metrics(labels, np.array(scores))["image_auroc"], pixels.compute()["pixel_ap"]
        print(f"{data.category}, {engine}: image AUROC {auroc:.4f}, pixel AP {pixel_ap:.4f}")


if __name__ == "__main__":
    common.run({"speed": bench_speed, "quality": bench_quality})
