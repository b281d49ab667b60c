"""Evaluation and start-up: pixel metrics, detection, evaluate_checkpoints, main.py --help."""

import subprocess
import tempfile
from pathlib import Path

import torch

from benchmarks import baselines, common
from data.mvtec import list_test
from evaluation.metrics import PixelMetrics
from inference.networks import optimized
from model import DRAEM
from runtime.device import memory_format, select_device, select_precision


def bench_metrics() -> None:
    """Row 6: all pixel metrics and curves of 80 maps.

    Time them against sorting all pixels, and print how far the values differ.
    """
    flags = common.arguments(runs=5, images=80, size=256)
    common.header(f"pixel metrics and curves of {flags.images} maps, {flags.size} x {flags.size}")
    maps, masks = zip(*common.made_up_maps(flags.images, flags.size), strict=True)

    def ours() -> dict:
        pixels = PixelMetrics()
        for anomaly_map, mask in zip(maps, masks, strict=True):
            pixels.update(anomaly_map, mask)
        pixels.curves()
        return pixels.compute(pixels.optimal_threshold())

    exact, found = baselines.pixel_metrics(maps, masks), ours()
    print("largest difference of the values:", max(abs(found[key] - value) for key, value in exact.items()))
    common.compare(
        "metrics", {"plain, no curves": lambda: baselines.pixel_metrics(maps, masks), "project": ours}, flags.runs
    )


def bench_detection() -> None:
    """Row 7: detection of 200 images, all that is not the networks: a whole process less the forward passes in it.

    Time main.py --detection on the smallest networks, a panel for every image, against the plain way.
    """
    flags = common.arguments(runs=5, size=256, images=200, few=20)
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
        samples = list_test(root / "mvtec/made_up")[half - flags.few // 2 :][: flags.few]
        files = [(one.path, next((mask for mask in one.masks if isinstance(mask, Path)), None)) for one in samples]

        def baseline() -> None:
            baselines.detection(files, lambda image: image[..., 0], root, flags.size)

        times: dict[str, list[float]] = {"plain": [], "project": []}
        for run in range(flags.runs + 1):
            taken = common.seconds(baseline) / flags.few
            whole = common.seconds(lambda: main_py("--detection"))
            with torch.inference_mode():
                networks = common.seconds(lambda: [network(x) for _ in range(flags.images // 8)])
            if run:
                times["plain"].append(taken)
                times["project"].append((whole - networks) / flags.images)
    common.report("image", times)


def bench_batch() -> None:
    """Row 8: evaluate_checkpoints.py, one checkpoint, all techniques and thresholds, against its forward passes alone.

    Time the whole process on 80 test and 40 held-out images; four input variants of each.
    """
    flags = common.arguments(runs=5, size=128, width=32, channels=16, images=80, held_out=40)
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


def bench_startup() -> None:
    """Row 9: main.py --help.

    Time whole processes; the baseline is a Python that does nothing.
    """
    flags = common.arguments(runs=9)
    common.header("main.py --help, whole process")
    command = common.python(common.ROOT / "main.py", "--help")
    works = {
        "python -c pass": lambda: subprocess.run(common.python("-c", "pass"), check=True),
        "main.py --help": lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL),
    }
    common.compare("process", works, flags.runs)


if __name__ == "__main__":
    common.run({"metrics": bench_metrics, "detection": bench_detection, "batch": bench_batch, "startup": bench_startup})
