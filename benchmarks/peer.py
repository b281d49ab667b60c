"""anomalib 2.7.0 at the same jobs: synthesis, training step, inference, PRO. In an environment of its own:

python -m venv peer && peer/bin/pip install -r benchmarks/requirements-peer.txt && peer/bin/python -m benchmarks.peer
"""

import tempfile
from pathlib import Path

import torch
from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
from anomalib.metrics.aupro import _AUPRO
from anomalib.models.image.draem.loss import DraemLoss
from anomalib.models.image.draem.torch_model import DraemModel

from benchmarks import common


def main() -> None:
    """Time each job; compare with the project's lines of the other benchmarks on the same machine."""
    flags = common.arguments(runs=5, size=256, batch=2, samples=100, images=80)
    common.header("anomalib 2.7.0")
    with tempfile.TemporaryDirectory() as folder:
        common.make_dataset(Path(folder), flags.size, 1, 1, 1, textures=120)
        generator = PerlinAnomalyGenerator(anomaly_source_path=Path(folder) / "textures")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        image = torch.rand(3, flags.size, flags.size)
        works = {"anomalib": lambda: [generator(image) for _ in range(flags.samples)]}
        common.compare("synthesis, one thread", works, flags.runs, per=flags.samples)
        torch.set_num_threads(threads)

    maps, masks = (
        torch.stack([torch.from_numpy(a) for a in arrays])
        for arrays in zip(*common.made_up_maps(flags.images, flags.size), strict=True)
    )

    def pro() -> None:
        metric = _AUPRO()
        metric.update(maps, masks.int())
        metric.compute()

    common.compare(f"PRO of {flags.images} maps", {"anomalib": pro}, flags.runs)

    model, criterion = DraemModel(), DraemLoss()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    x = torch.rand(flags.batch, 3, flags.size, flags.size)
    mask = (torch.rand(flags.batch, 1, flags.size, flags.size) > 0.95).float()

    def step() -> None:
        reconstruction, prediction = model(x)
        loss = criterion(x, reconstruction, mask, prediction)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    common.compare(f"training step, batch {flags.batch}", {"anomalib": step}, flags.runs)
    model.eval()
    with torch.inference_mode():
        common.compare("inference, 1 image", {"anomalib": lambda: model(x[:1])}, flags.runs)


if __name__ == "__main__":
    main()
