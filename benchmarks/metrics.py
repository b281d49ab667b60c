"""Row 6: all pixel metrics and curves of 80 maps."""

import numpy as np

from benchmarks import common, plain
from evaluation.metrics import PixelMetrics


def made_up_maps(count: int, size: int, seed: int = 0):
    """Anomaly maps, float32 in [0, 1], and masks of a disc on half of them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    for i in range(count):
        cy, cx = rng.integers(size // 4, 3 * size // 4, 2)
        mask = ((y - cy) ** 2 + (x - cx) ** 2 < (size // 10) ** 2) & (i % 2 == 0)
        yield np.clip(rng.normal(0.2 + 0.3 * mask, 0.15), 0, 1).astype(np.float32), mask


def main() -> None:
    """Time them against sorting all pixels, and print how far the values differ."""
    flags = common.arguments(__doc__, runs=5, images=80, size=256)
    common.header(f"pixel metrics and curves of {flags.images} maps, {flags.size} x {flags.size}")
    maps, masks = zip(*made_up_maps(flags.images, flags.size), strict=True)

    def ours() -> dict:
        pixels = PixelMetrics()
        for anomaly_map, mask in zip(maps, masks, strict=True):
            pixels.update(anomaly_map, mask)
        pixels.curves()
        return pixels.compute(pixels.optimal_threshold())

    exact, found = plain.pixel_metrics(maps, masks), ours()
    print("largest difference of the values:", max(abs(found[key] - value) for key, value in exact.items()))
    common.compare(
        "metrics", {"plain, no curves": lambda: plain.pixel_metrics(maps, masks), "project": ours}, flags.runs
    )


if __name__ == "__main__":
    main()
