"""Inference: networks, --predict, tiles, precision."""

import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

import data_loader
from benchmarks import common
from config import Config, Data, Model
from config_file import load_config
from data.mvtec import list_test
from data_loader import DRAEMTrainDataset
from evaluation import image_metrics, metrics
from inference import checkpoint, networks, tiles
from inference.detect import Networks, detect
from inference.networks import optimized
from model import DRAEM
from runtime.cli import add_config_flags
from runtime.device import memory_format, select_device, select_precision
from synthesis import AnomalySynthesizer


class RandomImages(Dataset):
    """Random images as test samples, made when they are read."""

    def __init__(self, count: int, size: int):
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor | int]:
        return {"image": torch.rand(3, self.size, self.size), "mask": torch.zeros(1, self.size, self.size), "idx": idx}

    def name(self, idx: int) -> str:
        """Name of an image, for messages."""
        return str(idx)


def bench_networks() -> None:
    """Row 4: inference of the full-size networks: 1, 8 and 200 images, as the program runs them.

    Time batches of 1 and 8, and detection of 200 images; `--compiled 1`: also what a compiled batch takes.
    """
    flags = common.arguments(runs=5, size=256, width=128, channels=64, compiled=0)
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
            works: dict[str, Callable[[], object]] = {
                "plain, one by one": lambda: [model(image) for image in x.split(1)],  # noqa: B023  # called at once
                "project": lambda: network(ours)[1].float().cpu(),  # noqa: B023
            }
            times = common.compare(f"{n} images" if n > 1 else "1 image", works, flags.runs, per=n)
        names = [f"{key}={value}" for key, value in (("base_width", flags.width), ("base_channels", flags.channels))]
        config = load_config(common.ROOT / "config.yaml", [f"model.{name}" for name in names])
        detected = (
            common.seconds(lambda: [None for _ in detect(model, RandomImages(200, flags.size), config, "")]) / 200
        )
        common.report(
            "200 images by detect, once", {"plain, one by one": times["plain, one by one"][:1], "project": [detected]}
        )
        if flags.compiled:
            compiled = networks.Compiled(network, "on", freezing=True)
            print(f"compilation and first pass: {common.seconds(lambda: compiled(ours)):.1f} s")
            works = {"plain, one by one": works["plain, one by one"], "project": works["project"]}
            works["project, compiled"] = lambda: compiled(ours)[1].float().cpu()
            common.compare("8 images, compiled", works, flags.runs, per=8)


def bench_predict() -> None:
    """--predict: 200 images against the networks' own time, and the first verdict of a fresh process.

    Time main.py --predict on images of a made-up category, in turn with the forward passes that it makes.
    """
    flags = common.arguments(runs=3, width=128, channels=64, size=256, images=200, side=256)
    common.header(f"--predict, {flags.images} images {flags.side} x {flags.side}, networks at {flags.size}, per image")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = common.make_dataset(root, min(flags.side, 512), 6, flags.images, 0, textures=3)
        photos = root / "mvtec/made_up/test/good"
        if flags.side > 512:
            for path in photos.iterdir():
                cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (flags.side, flags.side)))
        settings += [f"model.base_width={flags.width}", f"model.base_channels={flags.channels}", "train.epochs=1"]
        settings += [f"data.img_size={flags.size}", "train.batch_size=2"]
        command = common.python(common.ROOT / "main.py", *(word for one in settings for word in ("--set", one)))
        subprocess.run([*command, "--train", "--threshold"], check=True, capture_output=True)

        device = select_device("auto")
        precision = select_precision("auto", device)
        network = optimized(DRAEM(flags.width, flags.channels), device, precision)
        x = torch.rand(8, 3, flags.size, flags.size, device=device).to(precision)
        x = x.contiguous(memory_format=memory_format(device, precision))

        def networks() -> None:
            with torch.inference_mode():
                for _ in range(flags.images // 8):
                    network(x)

        def predict(images: Path) -> list[str]:
            return [*command, "--predict", str(images), "--output", str(root / "out")]

        def first_row() -> float:
            """Seconds from the start of a process to its first row."""
            rows, start = root / "out/predictions.csv", time.perf_counter()
            rows.unlink(missing_ok=True)
            process = subprocess.Popen(
                predict(next(photos.iterdir())), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            while not rows.is_file() or rows.read_text().count("\n") < 2:
                assert process.poll() in (None, 0), process.stderr and process.stderr.read()
                time.sleep(0.01)
            taken = time.perf_counter() - start
            process.communicate()
            return taken

        times: dict[str, list[float]] = {"the networks alone": [], "--predict, whole process": []}
        first = []
        for run in range(flags.runs + 1):
            alone = common.seconds(networks) / flags.images
            whole = common.seconds(lambda: subprocess.run(predict(photos), check=True, capture_output=True))
            taken = first_row()
            if run:
                times["the networks alone"].append(alone)
                times["--predict, whole process"].append(whole / flags.images)
                first.append(taken)
        common.report("image", times)
        common.report("first row", {"a fresh process": first})


def bench_tiles() -> None:
    """What tiles cost: detection and synthesis against the forward passes and samples that they are made of.

    Time both in turn; a ratio of 0.91 or more means that tiles cost at most 1.1 times as much.
    """
    flags = common.arguments(height=448, width=1120, tile=128, width1=16, width2=8, batch=8, images=2)
    data = Data(img_size=(flags.height, flags.width), tile_size=(flags.tile, flags.tile), test_batch_size=flags.batch)
    config = Config(data=data, model=Model(base_width=flags.width1, base_channels=flags.width2))
    count = len(tiles.cut(data.img_size, data.input_size, data.tile_overlap))
    common.header(
        f"{flags.width} x {flags.height} in {count} tiles of {flags.tile}, networks {flags.width1}/{flags.width2}"
    )
    model = DRAEM(flags.width1, flags.width2)
    images = torch.randint(0, 256, (flags.images, 3, *data.img_size), dtype=torch.uint8)
    tiled = Networks(model, config, 0)

    device = select_device("auto")
    precision = select_precision("auto", device)
    network, layout = optimized(model, device, precision), memory_format(device, precision)
    x = torch.rand(flags.batch, 3, *data.input_size, device=device).to(precision).contiguous(memory_format=layout)

    def passes() -> None:
        """As many tiles, in batches of the same size; the last one can be smaller."""
        with torch.inference_mode():
            for first in range(0, count * flags.images, flags.batch):
                network(x[: count * flags.images - first])

    def detection() -> None:
        for _, anomaly_map in tiled(images):
            anomaly_map.cpu()

    common.compare("detection, an image", {"forward passes": passes, "tiles": detection}, per=flags.images)

    rows = [image.permute(1, 2, 0).contiguous().numpy() for image in images]
    synthesizer = AnomalySynthesizer([row[: flags.tile, : flags.tile] for row in rows], data.input_size)
    whole = DRAEMTrainDataset([row[: flags.tile, : flags.tile] for row in rows], synthesizer)
    cut = DRAEMTrainDataset(rows, synthesizer, per_image=16)

    def samples(dataset: DRAEMTrainDataset) -> None:
        for key in range(200):
            dataset[key]

    works = {"images of the tile size": lambda: samples(whole), "tiles": lambda: samples(cut)}
    common.compare("synthesis, a sample", works, per=200)


def bench_precision() -> None:
    """Quality: maps and metrics of one checkpoint in bfloat16 and in float32.

    Detect on test/ in both precisions; print how far maps and AUROCs differ.
    """
    parser = common.parser()
    add_config_flags(parser)
    flags = parser.parse_args()
    configs = [load_config(flags.config, [*flags.set, f"train.precision={name}"]) for name in ("fp32", "bf16")]
    common.header(f"bfloat16 against float32, {configs[0].data.category}, the same weights")
    samples = list_test(Path(configs[0].data.data_path) / configs[0].data.category)
    model = checkpoint.load(configs[0]).model
    labels, maps, values = np.array([int(sample.has_anomaly) for sample in samples]), [], []
    for config in configs:
        pixels, own = metrics.PixelMetrics(), []
        for found in detect(model, data_loader.DRAEMTestDataset(samples, config.data.img_size), config, ""):
            pixels.update(found.anomaly_map, found.mask)
            own.append(found.anomaly_map)
        scores = np.array([metrics.image_score(anomaly_map) for anomaly_map in own])
        over_all = image_metrics.image_metrics(labels, scores) | pixels.compute()
        values.append([over_all[key] for key in ("image_auroc", "pixel_auroc", "pixel_ap")])
        maps.append(np.array(own))
    difference = np.abs(maps[0] - maps[1])
    print(f"maps: mean difference {difference.mean():.5f}, largest {difference.max():.4f}")
    for name, exact, narrow in zip(("image AUROC", "pixel AUROC", "pixel AP"), *values, strict=True):
        print(f"{name}: float32 {exact:.4f}, bfloat16 {narrow:.4f}, difference {abs(exact - narrow):.4f}")


if __name__ == "__main__":
    common.run(
        {"networks": bench_networks, "predict": bench_predict, "tiles": bench_tiles, "precision": bench_precision}
    )
