"""Shared by the benchmarks: command line, timing in turn, description of the machine, a made-up dataset."""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch

from make_sample import load_grey, write_png
from runtime.device import core_count, setup

_description: str | None = None  # of the benchmark that runs


def machine() -> str:
    """Cores, instruction sets, device and versions: what a figure depends on besides the code."""
    capabilities = torch.cpu.get_capabilities()
    sets = [name for name in ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16") if capabilities.get(name)]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    return f"{core_count()} cores ({', '.join(sets)}), {torch.get_num_threads()} threads{gpu}; {versions}"


def run(benchmarks: dict[str, Callable[[], None]]) -> None:
    """Run the benchmark that the first word of the command line names."""
    global _description
    names = argparse.ArgumentParser(
        description="\n".join(f"{name}: {(work.__doc__ or '').splitlines()[0]}" for name, work in benchmarks.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="NAME --help lists the flags of a benchmark",
        add_help=len(sys.argv) < 3,
    )
    names.add_argument("name", choices=benchmarks, metavar="NAME", help=", ".join(benchmarks))
    chosen, sys.argv[1:] = names.parse_known_args()
    sys.argv[0] += f" {chosen.name}"
    _description = benchmarks[chosen.name].__doc__
    benchmarks[chosen.name]()


def parser() -> argparse.ArgumentParser:
    """A parser for the flags of the benchmark that runs."""
    return argparse.ArgumentParser(description=_description)


def arguments(**defaults: int) -> argparse.Namespace:
    """Flags of a benchmark: whole numbers, each with its default."""
    flags = parser()
    for name, value in defaults.items():
        flags.add_argument(f"--{name}", type=int, default=value, help="default: %(default)s")
    return flags.parse_args()


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes; on a GPU until it is done."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def compare(
    title: str, works: Mapping[str, Callable[[], object]], runs: int = 5, warmup: int = 1, per: int = 1
) -> dict[str, list[float]]:
    """Time the works in turn and print a line for each; the first is the baseline of the ratios. Their seconds.

    Args:
        runs: counted calls of each. warmup: calls of each before. per: what a call's time is divided by.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for run in range(warmup + runs):
        for name, work in works.items():
            taken = seconds(work) / per
            if run >= warmup:
                times[name].append(taken)
    report(title, times)
    return times


def report(title: str, times: dict[str, list[float]]) -> None:
    """Print median, minimum and maximum of each, and how many times faster than the first it is, run by run."""
    first = next(iter(times.values()))
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
        print(
            f"{title:32} {name:28} median {1e3 * statistics.median(values):10.2f} ms   min {1e3 * min(values):10.2f}   "
            f"max {1e3 * max(values):10.2f}   {ratio:6.2f} x",
            flush=True,
        )


def header(title: str) -> None:
    """Set the process up as the programs do; print what is measured and where."""
    setup()
    print(f"# {title}\n# {machine()}", flush=True)


def make_dataset(root: Path, size: int, train: int, good: int, bad: int, textures: int, spread: int = 512) -> list[str]:
    """Write a category `made_up` in MVTec AD form of crops of one image, and textures; the settings for it.

    Args:
        size: side of the images, up to 512. train, good, bad: numbers of images. A defect is a gray disc.
        spread: range of the crops' origins, pixels; a small one makes images that can be registered.
    """
    rng = np.random.default_rng(0)
    photo = load_grey("brick.png")
    folder = root / "mvtec" / "made_up"

    def nominal() -> np.ndarray:
        y, x = rng.integers(0, min(spread, 513 - size), 2)
        return photo[y : y + size, x : x + size] + rng.normal(0, 4, (size, size))

    for i in range(train):
        write_png(folder / f"train/good/{i:05}.png", nominal())
    for i in range(good):
        write_png(folder / f"test/good/{i:05}.png", nominal())
    for i in range(bad):
        mask = np.zeros((size, size), np.uint8)
        cv2.circle(mask, tuple(rng.integers(size // 4, 3 * size // 4, 2).tolist()), size // 10, 255, -1)
        write_png(folder / f"test/disc/{i:05}.png", np.where(mask > 0, 128, nominal()))
        write_png(folder / f"ground_truth/disc/{i:05}_mask.png", mask)
    for i in range(textures):
        source = load_grey(("gravel.png", "grass.png", "camera.png")[i % 3])
        y, x = rng.integers(0, 257, 2)
        write_png(root / f"textures/{i:05}.png", source[y : y + 256, x : x + 256])
    names = {
        "data.data_path": root / "mvtec",
        "data.category": "made_up",
        "data.anomaly_source_path": root / "textures",
        "data.checkpoint_path": root / "checkpoints",
        "data.results_path": root / "results",
        "data.run_name": "bench",
    }
    return [f"{key}={value}" for key, value in names.items()]


def made_up_maps(count: int, size: int, seed: int = 0):
    """Anomaly maps, float32 in [0, 1], and masks of a disc on half of them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    for i in range(count):
        cy, cx = rng.integers(size // 4, 3 * size // 4, 2)
        mask = ((y - cy) ** 2 + (x - cx) ** 2 < (size // 10) ** 2) & (i % 2 == 0)
        yield np.clip(rng.normal(0.2 + 0.3 * mask, 0.15), 0, 1).astype(np.float32), mask


def python(*words: object) -> list[str]:
    """Command line of a program of this project."""
    return [sys.executable, *map(str, words)]


ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("PYTHONPATH", str(ROOT))
