"""Quality: maps and metrics of one checkpoint in bfloat16 and in float32."""

import argparse
from pathlib import Path

import numpy as np

import data_loader
from benchmarks import common
from config import load_config
from data.mvtec import list_test
from evaluation import image_metrics, metrics
from inference import checkpoint
from inference.detect import detect
from runtime.cli import add_config_flags


def main() -> None:
    """Detect on test/ in both precisions; print how far maps and AUROCs differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_flags(parser)
    flags = parser.parse_args()
    configs = [load_config(flags.config, [*flags.set, f"train.precision={name}"]) for name in ("fp32", "bf16")]
    common.header(f"bfloat16 against float32, {configs[0].data.category}, the same weights")
    pictures = list_test(Path(configs[0].data.data_path) / configs[0].data.category)
    model = checkpoint.load(configs[0]).model
    labels, maps, values = np.array([int(picture.has_anomaly) for picture in pictures]), [], []
    for config in configs:
        pixels, own = metrics.PixelMetrics(), []
        for found in detect(model, data_loader.DRAEMTestDataset(pictures, config.data.img_size), config, ""):
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
    main()
