"""What the demo's settings reach on the sample: seeds 0 to 2, each category, float32."""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np

import data_loader
from benchmarks import common
from config import Config, load_config
from data.mvtec import list_test
from engine import detection, threshold, train
from inference import checkpoint
from inference.detect import detect
from make_sample import CATEGORIES, SIZE, make_sample, trivial_auroc

SHOWN = ("image_auroc", "pixel_ap", "accuracy")


def reconstruction_error(config: Config) -> float:
    """Mean squared error of reconstructing nominal test pictures, divided by that of their mean colors."""
    pictures = [one for one in list_test(Path(config.data.data_path) / config.data.category) if not one.has_anomaly]
    dataset = data_loader.DRAEMTestDataset(pictures, config.data.img_size)
    errors = []
    for seen in detect(checkpoint.load(config).model, dataset, config, ""):
        image = seen.image.astype(np.float32) / (255 if seen.image.dtype == np.uint8 else 1)
        errors.append((((seen.reconstruction - image) ** 2).mean(), ((image - image.mean((0, 1))) ** 2).mean()))
    error, of_mean = np.mean(errors, axis=0)
    return float(error / of_mean)


def main() -> None:
    """Print a line for each training."""
    flags = common.arguments(__doc__, seeds=3)
    common.header("sample, settings of configs/sample.yaml, float32")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with contextlib.redirect_stdout(io.StringIO()):
            make_sample(root / "sample")
        for category in CATEGORIES:
            trivial = trivial_auroc(root / "sample/mvtec" / category, SIZE)
            print(f"{category}: a trivial detector has image AUROC {trivial:.3f}")
            for seed in range(flags.seeds):
                settings = [f"data.category={category}", f"train.seed={seed}", f"data.run_name=seed{seed}"]
                settings += [f"data.data_path={root}/sample/mvtec", f"data.anomaly_source_path={root}/sample/textures"]
                settings += [f"data.checkpoint_path={root}/checkpoints", f"data.results_path={root}/results"]
                config = load_config(common.ROOT / "configs/sample.yaml", [*settings, "train.precision=fp32"])

                def run(config: Config = config) -> Path:
                    train.run(config, "")
                    threshold.run(config)
                    return detection.run(config)

                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    results: list[Path] = []
                    taken = common.seconds(lambda run=run, results=results: results.append(run()))
                metrics = json.loads((results[0] / "p_quantile/metrics.json").read_text(encoding="utf-8"))
                figures = "   ".join(f"{key} {metrics[key]:.3f}" for key in SHOWN)
                print(
                    f"{category:8} seed {seed}   {figures}   reconstruction error {reconstruction_error(config):.3f} "
                    f"of the mean color's   {taken:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
