"""Feedback in another light: false alarms before, with new thresholds alone, and after learning from 20 images."""

import contextlib
import csv
import io
import json
import shutil
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np

from benchmarks import common
from config import Config
from config_file import load_config
from data.image_io import read_image, write_image
from engine import detection, threshold, train
from engine.feedback import learn, recalibrate, review
from engine.threshold import scores_of
from evaluation.bootstrap import share_interval
from evaluation.image_metrics import image_metrics
from inference.detector import Detector
from make_sample import make_sample
from training.data import find_files, split

MARKED = 20  # nominal images in the new light that feedback has
GAMMA, GRADIENT = 0.7, (1.0, 0.6)  # of the new light; the factor at the left and right edge


def in_new_light(image: np.ndarray) -> np.ndarray:
    """An image, uint8 (H, W, 3), with another gamma and a gradient from left to right."""
    factor = np.linspace(*GRADIENT, image.shape[1])[None, :, None]
    return (255 * (image / 255.0) ** GAMMA * factor).round().clip(0, 255).astype(np.uint8)


def _write(files: list[Path], folder: Path) -> list[Path]:
    """Copies of images in the new light."""
    folder.mkdir(parents=True)
    written = [folder / f"{place:03}.png" for place in range(len(files))]
    for file, to in zip(files, written, strict=True):
        write_image(to, in_new_light(read_image(file)))
    return written


def _metrics(config: Config) -> tuple[float, float]:
    """Image AUROC and pixel AP on the old test set."""
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = json.loads((detection.run(config) / "optimal/metrics.json").read_text(encoding="utf-8"))
    return metrics["image_auroc"], metrics["pixel_ap"]


def _print(title: str, config: Config, nominal: list[Path], anomalous: list[Path], old: tuple[float, float]) -> None:
    """A row: what a checkpoint with its thresholds does in the new light, and on the old test set."""
    detector = Detector.for_new_images(config)
    assert detector.thresholds and detector.thresholds.image is not None
    scores = [np.array(scores_of(detector, files).image_scores) for files in (nominal, anomalous)]
    rate, recall = (float((one > detector.thresholds.image).mean()) for one in scores)
    low, high = share_interval(rate, len(nominal))
    labels = np.repeat([0, 1], [len(nominal), len(anomalous)])
    auroc = image_metrics(labels, np.concatenate(scores))["image_auroc"]
    print(
        f"{title:24} new light: false-positive rate {rate:.3f} [{low:.2f}, {high:.2f}]  recall {recall:.3f}  image "
        f"AUROC {auroc:.4f}   old test set: image AUROC {old[0]:.4f}  pixel AP {old[1]:.4f}",
        flush=True,
    )


def _run(asked: Namespace, root: Path) -> None:
    sets = [f"data.checkpoint_path={root / 'checkpoints'}", f"data.results_path={root / 'results'}"]
    sets += [f"train.seed={asked.seed}", "metrics.visualisation=none", "train.visualize=false"]
    sets += [f"data.category={asked.category}", *asked.set]
    if asked.data:
        sets += [f"data.data_path={asked.data}", f"data.anomaly_source_path={asked.textures}"]
    else:
        make_sample(root / "sample")
        sets += [f"data.data_path={root / 'sample/mvtec'}", f"data.anomaly_source_path={root / 'sample/textures'}"]
    config = load_config([common.ROOT / "config.yaml", *asked.config], sets)
    quiet = contextlib.redirect_stdout(io.StringIO())
    start = time.perf_counter()
    with quiet:
        train.run(config, "")
        threshold.run(config)
    print(f"trained in {time.perf_counter() - start:.0f} s", flush=True)
    files = split(config, find_files(config))
    test = files.source.test()
    nominal = _write([one.path for one in test if not one.has_anomaly], root / "new light/good")
    anomalous = _write([one.path for one in test if one.has_anomaly], root / "new light/anomalous")
    marked = _write(files.held_out[:MARKED], root / "line")
    old = _metrics(config)
    _print("before", config, nominal, anomalous, old)
    feedback = root / "feedback.csv"
    with feedback.open("w", newline="", encoding="utf-8") as stream:
        rows = [(file.as_posix(), "nominal", "random") for file in marked]
        csv.writer(stream).writerows([("path", "mark", "sample"), *rows])
    with quiet:
        reviewed = review.run(config, feedback)
        recalibrate.run(reviewed)
    _print("--recalibrate", config.with_values({"metrics.nominal": review.name_of(feedback)}), nominal, anomalous, old)
    start = time.perf_counter()
    path, is_better = learn.run(config, [], reviewed)
    print(f"--learn took {time.perf_counter() - start:.0f} s and says {'better' if is_better else 'not better'}")
    learned = config.with_values({"data.run_name": path.parent.name, "data.load_epoch": path.as_posix()})
    with quiet:
        threshold.run(learned)
    _print("--learn", learned, nominal, anomalous, _metrics(learned))


def main() -> None:
    """Train, change the light, mark images, and print a row for each way to use the marks."""
    flags = common.parser()
    flags.description = __doc__
    flags.add_argument("--data", type=Path, help="folder of categories in MVTec AD form; default: the sample, drawn")
    flags.add_argument("--textures", type=Path, help="with --data: folder of textures")
    flags.add_argument("--category", default="flange")
    flags.add_argument("--config", type=Path, action="append", default=[], help="settings, e.g. configs/fast.yaml")
    flags.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--keep", type=Path, metavar="FOLDER", help="folder to work in, kept; a second call resumes")
    asked = flags.parse_args()
    common.header(str(__doc__))
    if asked.keep:
        for name in ("new light", "line"):
            shutil.rmtree(asked.keep / name, ignore_errors=True)
        _run(asked, asked.keep.absolute())
    else:
        with tempfile.TemporaryDirectory() as folder:
            _run(asked, Path(folder))


if __name__ == "__main__":
    main()
