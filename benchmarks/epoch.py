"""Row 5: a whole epoch of 200 images against its steps alone."""

import contextlib
import io
import tempfile
from pathlib import Path

from benchmarks import common
from benchmarks.training import Trainer, random_batch
from config import load_config
from engine import train


def main() -> None:
    """Time runs of one and of more epochs; the difference is what whole epochs take, with all that is saved."""
    flags = common.arguments(__doc__, width=32, channels=16, size=128, batch=8, images=200, epochs=1, runs=5)
    common.header(
        f"epoch of {flags.images} images, base_width {flags.width}, base_channels {flags.channels}, "
        f"{flags.size} x {flags.size}, batch {flags.batch}"
    )
    trainer, batch = Trainer(flags.width, flags.channels), random_batch(flags.size, flags.batch)
    trainer.step(batch)
    times = {"steps alone": [], "whole epoch": []}
    with tempfile.TemporaryDirectory() as folder:
        settings = common.make_dataset(Path(folder), flags.size, flags.images, 1, 1, textures=120)
        settings += [f"model.base_width={flags.width}", f"model.base_channels={flags.channels}"]
        settings += [f"data.img_size={flags.size}", f"train.batch_size={flags.batch}", "data.val_split=0"]
        settings += ["train.resume=never", "train.visualize=false"]

        def run(epochs: int) -> float:
            config = load_config(common.ROOT / "config.yaml", [*settings, f"train.epochs={epochs}"])
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                return common.seconds(lambda: train.run(config, ""))

        run(1)  # decodes images and textures
        for _ in range(flags.runs):
            times["steps alone"].append(
                common.seconds(lambda: [trainer.step(batch) for _ in range(flags.images // flags.batch)])
            )
            times["whole epoch"].append((run(1 + flags.epochs) - run(1)) / flags.epochs)
    common.report("epoch", times)


if __name__ == "__main__":
    main()
