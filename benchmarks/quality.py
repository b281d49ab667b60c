"""Quality of trainings: the sample, and registered parts."""

import argparse
import contextlib
import functools
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import data_loader
from benchmarks import common
from config import Config
from config_file import load_config
from data.image_io import read_image
from data.mvtec import list_nominal, list_test
from engine import detection, threshold, train
from images.draw_parts import bolt, lever
from inference import checkpoint
from inference.detect import detect
from make_sample import CATEGORIES, SIZE, make_sample, trivial_auroc, write_png
from registration import part_pose, part_segmentation

SHOWN_OF_SAMPLE = ("image_auroc", "pixel_ap", "accuracy")


def reconstruction_error(config: Config) -> float:
    """Mean squared error of reconstructing nominal test images, divided by that of their mean colors."""
    samples = [one for one in list_test(Path(config.data.data_path) / config.data.category) if not one.has_anomaly]
    dataset = data_loader.DRAEMTestDataset(samples, config.data.img_size)
    errors = []
    for seen in detect(checkpoint.load(config).model, dataset, config, ""):
        image = seen.image.astype(np.float32) / (255 if seen.image.dtype == np.uint8 else 1)
        errors.append((((seen.reconstruction - image) ** 2).mean(), ((image - image.mean((0, 1))) ** 2).mean()))
    error, of_mean = np.mean(errors, axis=0)
    return float(error / of_mean)


def bench_sample() -> None:
    """What the demo's settings reach on the sample: seeds 0 to 2, each category, float32.

    Print a line for each training.
    """
    flags = common.arguments(seeds=3)
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
                    taken = common.seconds(lambda: results.append(run()))  # noqa: B023  # called at once
                metrics = json.loads((results[0] / "p_quantile/metrics.json").read_text(encoding="utf-8"))
                figures = "   ".join(f"{key} {metrics[key]:.3f}" for key in SHOWN_OF_SAMPLE)
                print(
                    f"{category:8} seed {seed}   {figures}   reconstruction error {reconstruction_error(config):.3f} "
                    f"of the mean color's   {taken:.0f} s",
                    flush=True,
                )


WRONG = 3  # % of the side
SIDE, N_TRAIN, N_GOOD, N_BAD = 176, 64, 20, 20


VARIANTS = ("as it is", "registered", "cropped")  # the last: data.registration_crop
SHOWN = ("image_auroc", "pixel_ap", "pixel_auroc", "pro")


def cap() -> tuple[np.ndarray, np.ndarray]:
    """A turned cap, nearly round: a flat on one side, three bores. Float (SIDE, SIDE, 3), and its silhouette."""
    rng, scale = np.random.default_rng(11), 4  # drawn large, for smooth edges
    big, center = SIDE * scale, SIDE * scale / 2
    y, x = np.mgrid[:big, :big] - center
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    silhouette = ((radius < 0.33 * big) & (x < 0.3 * big)).astype(np.float64)
    rings = np.interp(radius, np.arange(big), rng.normal(0, 7, big))  # what the lathe has left
    surface = 150 + rings + 30 * np.cos(2 * angle) * np.minimum(radius / (0.15 * big), 1)  # light on turned metal
    for turn, distance, size in ((0.4, 0.21, 0.045), (2.1, 0.21, 0.045), (4.4, 0.2, 0.03)):
        bore = np.hypot(x - distance * big * np.cos(turn), y - distance * big * np.sin(turn)) < size * big
        surface[bore] = 50
    small = (cv2.resize(one, (SIDE, SIDE), interpolation=cv2.INTER_AREA)[..., None] for one in (surface, silhouette))
    surface, silhouette = small
    return surface * (0.96, 0.99, 1.0), silhouette


def defect(silhouette: np.ndarray, rng: np.random.Generator, size: float = 1.0) -> tuple[np.ndarray, float]:
    """A dent or a scratch on a part: its outline, float (SIDE, SIDE), and its gray levels. About 0.3 % of the area.

    size: factor of a dent's axes and of a scratch's width.
    """
    inside = np.argwhere(cv2.erode(silhouette[..., 0], np.ones((13, 13))) > 0.99)[:, ::-1]
    place, drawn = rng.choice(inside), np.zeros((SIDE, SIDE))
    if rng.random() < 0.5:
        axes, turn = (int(size * rng.integers(3, 6)), int(size * rng.integers(2, 5))), float(rng.uniform(0, 180))
        cv2.ellipse(drawn, place.tolist(), axes, turn, 0, 360, 1.0, -1)
    else:
        turn, length = rng.uniform(0, 2 * np.pi), rng.uniform(8, 16)
        ends = [(place + sign * length * np.array((np.cos(turn), np.sin(turn)))).astype(int) for sign in (-1, 1)]
        cv2.line(drawn, ends[0].tolist(), ends[1].tolist(), 1.0, int(2 * size))
    return drawn * (silhouette[..., 0] > 0.5), float(rng.choice((-60, 60)))


def draw(root: Path, category: str, seed: int) -> None:
    """Write images of a part: turned by any angle, moved, scaled and brightened by a little.

    On a gray table; a bolt on a light one, as its shaded side is dark, and with defects 1.5 times as large.
    """
    rng = np.random.default_rng(seed)
    gray = 210 if category == "bolt" else 60
    table = gray + 12 * np.linspace(-1, 1, SIDE)[None, :, None]
    for kind, count in (("train/good", N_TRAIN), ("test/good", N_GOOD), ("test/damaged", N_BAD)):
        for number in range(count):
            angle = rng.uniform(0, 360)
            pose = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), angle, rng.uniform(0.92, 1.05))
            pose[:, 2] += rng.uniform(-8, 8, 2)
            surface, silhouette = drawn(category, rng, np.cos(np.radians(angle)))  # light from one side of the image
            own, mask = surface, np.zeros((SIDE, SIDE))
            if kind == "test/damaged":
                mask, levels = defect(silhouette, rng, 1.5 if category == "bolt" else 1.0)
                own = own + levels * cv2.GaussianBlur(mask, (0, 0), 0.6)[..., None]
            part = cv2.warpAffine(silhouette, pose, (SIDE, SIDE))[..., None]
            own = cv2.warpAffine(own, pose, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            image = (part * own + (1 - part) * table) * rng.uniform(0.85, 1.15) + rng.normal(0, 2, (SIDE, SIDE, 3))
            write_png(root / category / kind / f"{number:03}.png", image)
            if kind == "test/damaged":
                turned = cv2.warpAffine(mask, pose, (SIDE, SIDE)) > 0.5
                write_png(root / category / f"ground_truth/damaged/{number:03}_mask.png", turned * 255.0)


FIXED = {"lever": functools.cache(lambda: lever(False)), "cap": functools.cache(cap)}


def drawn(category: str, rng: np.random.Generator, light: float) -> tuple[np.ndarray, np.ndarray]:
    """A part in its own frame: gray levels (SIDE, SIDE, 3) and silhouette (SIDE, SIDE, 1). light: see `bolt`."""
    if category == "bolt":  # turned about its own axis too
        gray, shape = bolt(SIDE, rng.uniform(0, 2 * np.pi), light)
        return np.repeat(gray[..., None], 3, axis=2), shape[..., None].astype(np.float64)
    return FIXED[category]()


def size_like(image: np.ndarray) -> list[int]:
    """Height and width, multiples of 32, of about 128 x 128 pixels in the shape of an image."""
    height, width = image.shape[:2]
    return [max(round(128 * ratio**0.5 / 32), 1) * 32 for ratio in (height / width, width / height)]


def settings(flags: argparse.Namespace, root: Path, category: str, seed: int, variant: str) -> Config:
    """The settings of one training."""
    sets = ["data.img_size=128", "model.base_width=16", "model.base_channels=8"]
    sets += [] if flags.recipe else ["train.learning_rate=1e-3"]
    sets += ["train.visualize=false", "metrics.visualisation=none", f"train.precision={flags.precision}"]
    sets += [f"train.epochs={flags.epochs}"]
    sets += [f"train.save_from={flags.epochs}", f"train.seed={seed}", f"data.category={category}"]
    sets += [f"data.data_path={flags.data or root / 'mvtec'}", f"data.run_name={variant.replace(' ', '_')}_{seed}"]
    sets += [f"data.anomaly_source_path={flags.textures or root / 'sample/textures'}"]
    sets += [f"data.checkpoint_path={root / 'checkpoints'}", f"data.results_path={root / 'results'}"]
    if variant != VARIANTS[0]:
        sets += ["data.image_registration=true", "data.registration_method=part", "data.registration_training=true"]
    if variant == "cropped":
        first = list_nominal(Path(flags.data or root / "mvtec") / category)[0]
        size = size_like(part_segmentation.cropped(read_image(first)))
        sets += ["data.registration_crop=true", f"data.img_size={size}"]
    files = [common.ROOT / "config.yaml", *([flags.recipe] if flags.recipe else [])]
    return load_config(files, sets)


def bench_parts() -> None:
    """Registration of parts: the same training with and without it, on drawn parts in any pose.

    Print a line for each training, then the means.
    """
    parser = common.parser()
    parser.add_argument("--data", type=Path, help="dataset in MVTec AD form (default: parts that are drawn)")
    parser.add_argument("--categories", nargs="+", default=["lever", "cap"], help="of it (default: %(default)s)")
    parser.add_argument("--textures", type=Path, help="folder of textures (default: those of the sample)")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--precision", default="fp32", help="default: %(default)s")
    parser.add_argument("--recipe", type=Path, help="settings file of a recipe (default: the published one)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, metavar="NAME")
    parser.add_argument("--keep", type=Path, help="folder for images, checkpoints and results (default: a new one)")
    flags = parser.parse_args()
    common.header(f"registration of parts, {flags.epochs} epochs, 128 x 128, networks 16/8, {flags.precision}")
    with tempfile.TemporaryDirectory() as folder:
        root = (flags.keep or Path(folder)).resolve()
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        if not flags.textures:
            with quiet[0]:
                make_sample(root / "sample")
        for number, category in enumerate(flags.categories):
            if not flags.data:
                draw(root / "mvtec", category, number)
            found: dict[str, list[dict[str, Any]]] = {one: [] for one in flags.variants}
            for seed in range(flags.seeds):
                for variant, results in found.items():
                    config = settings(flags, root, category, seed, variant)
                    with quiet[0], quiet[1]:
                        train.run(config, "")
                        threshold.run(config)
                        path = detection.run(config)
                    results.append(json.loads((path / "p_quantile/metrics.json").read_text(encoding="utf-8")))
                    said = "  ".join(f"{key} {results[-1][key]:.3f}" for key in SHOWN)
                    left = len(results[-1].get("notes", {}).get("unregistered", ()))
                    note = f"  {left} not registered" if left else ""
                    print(f"{category:10} seed {seed}  {variant:10}  {said}{note}", flush=True)
            for variant, results in found.items():
                means = "  ".join(
                    f"{key} {statistics.mean(one[key] for one in results):.3f} ± "
                    f"{statistics.stdev(one[key] for one in results) if len(results) > 1 else 0:.3f}"
                    for key in SHOWN
                )
                print(f"{category:10} {variant:10}  {means}", flush=True)


def bench_poses() -> None:
    """Poses of drawn bolts, whose true pose is known: how many are found, how exactly, and in which time.

    Each is turned about its own axis by a random angle. Light comes from above or from one side of the image.
    """
    parser = common.parser()
    parser.add_argument("--images", type=int, default=300, help="for each light (default: %(default)s)")
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side (default: %(default)s)")
    flags = parser.parse_args()
    common.header(f"{flags.images} bolts, {flags.size} x {flags.size}; a pose is wrong from {WRONG} % of the side on")
    size, corners = flags.size, np.array([[-90, -20, 1], [-90, 20, 1], [88, 0, 1]], np.float64).T
    middle = (size - 1) / 2
    corners[:2] = corners[:2] * size / 256 + middle
    for light in (0.0, 0.6, 1.2):
        rng, errors, taken = np.random.default_rng(0), [], 0.0
        reference = part_pose.reference_of(bolt_image(size, np.eye(3), light, rng))
        for _ in range(flags.images):
            turn = cv2.getRotationMatrix2D((middle, middle), rng.uniform(0, 360), rng.uniform(0.85, 1.15))
            pose = np.vstack([turn, (0, 0, 1)])
            pose[:2, 2] += rng.uniform(-0.06, 0.06, 2) * size
            image, start = bolt_image(size, pose, light, rng), time.perf_counter()
            found = part_pose.register(image, reference)
            taken += time.perf_counter() - start
            if found is not None:
                errors.append(100 / size * np.linalg.norm((found @ pose @ corners - corners)[:2], axis=0).max())
        share, wrong = 100 * len(errors) / flags.images, sum(error > WRONG for error in errors)
        print(
            f"light {light:.1f}  registered {share:.1f} %  wrong {wrong}  error of a corner, "
            f"median {np.median(errors):.2f} %, largest {max(errors):.2f} % of the side  {taken / flags.images:.3f} s",
            flush=True,
        )


def bolt_image(size: int, pose: np.ndarray, light: float, rng: np.random.Generator) -> np.ndarray:
    """A bolt on a light table that is darker in the corners, uint8 (size, size, 3).

    Args:
        pose: transform (3, 3) from the bolt's own frame. light: 0 from above, 1.2 from one side of the image.
    """
    y, x = np.mgrid[:size, :size] / size - 0.5
    gray, shape = bolt(size, rng.uniform(0, 2 * np.pi), light * np.cos(np.arctan2(pose[1, 0], pose[0, 0])))
    inside = cv2.warpPerspective(shape.astype(np.float32), pose, (size, size))
    gray = cv2.warpPerspective(gray.astype(np.float32), pose, (size, size), borderMode=cv2.BORDER_REPLICATE)
    image = (inside * gray + (1 - inside) * 210) * (1 - 0.3 * (x**2 + y**2)) * rng.uniform(0.85, 1.1)
    return np.repeat((image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


if __name__ == "__main__":
    common.run({"sample": bench_sample, "parts": bench_parts, "poses": bench_poses})
