"""Exported files in OpenVINO's form: run on a CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Images, uint8 (N, H, W, 3), BGR -> anomaly maps (N, H, W) and image scores (N,), float32.
Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def pixels_of(images: Tensor) -> np.ndarray:
    """Images (N, 3, H, W), uint8 or float32 in [0, 1], as a file takes them: uint8 (N, H, W, 3)."""
    if images.dtype != torch.uint8:
        images = (images * 255).round().to(torch.uint8)
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())


def saved(model: Any, path: Path) -> Path:
    """Write a model of OpenVINO as .xml and .bin, with weights in 16 bits; the path."""
    import openvino

    openvino.save_model(model, path)
    return path


def compiled(model: Any, size: tuple[int, int] | None = None, precision: str = "f32", threads: int = 0) -> Run:
    """A function that runs a model on the CPU.

    Args:
        model: of OpenVINO, or the path of its .xml. size: (height, width) of single images, which is faster than free
            sizes; None for any. precision: f32 or bf16, of what is not in 8 bits. threads: 0 for all cores.
    """
    import openvino

    core = openvino.Core()
    if isinstance(model, Path):
        model = core.read_model(model)
    if size:
        model = model.clone()
        model.reshape({0: [1, *size, 3]})
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    network = core.compile_model(model, "CPU", options)

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = network(images)
        return found[0], found[1]

    return run
