"""What tiles cost: detection and synthesis against the forward passes and samples that they are made of."""

import torch

from benchmarks import common
from config import Config, Data, Model
from data_loader import DRAEMTrainDataset
from inference import tiles
from inference.detect import Networks
from inference.networks import optimized
from model import DRAEM
from runtime.device import memory_format, select_device, select_precision
from synthesis import AnomalySynthesizer


def main() -> None:
    """Time both in turn; a ratio of 0.91 or more means that tiles cost at most 1.1 times as much."""
    flags = common.arguments(__doc__, height=448, width=1120, tile=128, width1=16, width2=8, batch=8, pictures=2)
    data = Data(img_size=[flags.height, flags.width], tile_size=flags.tile, test_batch_size=flags.batch)
    config = Config(data=data, model=Model(base_width=flags.width1, base_channels=flags.width2))
    count = len(tiles.cut(data.img_size, data.tile_size, data.tile_overlap))
    common.header(
        f"{flags.width} x {flags.height} in {count} tiles of {flags.tile}, networks {flags.width1}/{flags.width2}"
    )
    model = DRAEM(flags.width1, flags.width2)
    images = torch.randint(0, 256, (flags.pictures, 3, *data.img_size), dtype=torch.uint8)
    tiled = Networks(model, config, 0)

    device = select_device("auto")
    precision = select_precision("auto", device)
    network, layout = optimized(model, device, precision), memory_format(device, precision)
    x = torch.rand(flags.batch, 3, *data.tile_size, device=device).to(precision).contiguous(memory_format=layout)

    def passes() -> None:
        """As many tiles, in batches of the same size; the last one can be smaller."""
        with torch.inference_mode():
            for first in range(0, count * flags.pictures, flags.batch):
                network(x[: count * flags.pictures - first])

    def detection() -> None:
        for _, anomaly_map in tiled(images):
            anomaly_map.cpu()

    common.compare("detection, a picture", {"forward passes": passes, "tiles": detection}, per=flags.pictures)

    rows = [image.permute(1, 2, 0).contiguous().numpy() for image in images]
    synthesizer = AnomalySynthesizer([row[: flags.tile, : flags.tile] for row in rows], data.tile_size)
    whole = DRAEMTrainDataset([row[: flags.tile, : flags.tile] for row in rows], synthesizer)
    cut = DRAEMTrainDataset(rows, synthesizer, per_image=16)

    def samples(dataset: DRAEMTrainDataset) -> None:
        for key in range(200):
            dataset[key]

    works = {"pictures of a tile's size": lambda: samples(whole), "tiles": lambda: samples(cut)}
    common.compare("synthesis, a sample", works, per=200)


if __name__ == "__main__":
    main()
