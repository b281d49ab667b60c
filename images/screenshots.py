"""Takes the images of README and docs beside this file anew, from the results of the sample.

python -m images.screenshots --results results/sample --checkpoints checkpoints

It trains nothing. To be run before, each with --config configs/sample.yaml: train_all.py, evaluate_checkpoints.py,
check_best_model.py, and main.py --predict sample/mvtec/board/test --set data.category=board. Needs Chromium.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).parent
CATEGORY, PANEL = "board", "hole/001.png"  # shown by pages and panel
SAMPLES = "flange"  # whose training samples are shown
PAGE_SIZE = {"report.png": (1180, 1312), "predictions.png": (1180, 900)}
MARGIN = 120  # pixels of the window that headless Chromium may leave undrawn


def newest(paths: list[Path]) -> Path:
    """The one of the highest epoch, which ends each name."""
    return max(paths, key=lambda path: int(path.stem.rpartition("_")[2]))


def capture(page: Path, to: Path) -> None:
    """The top of a page as a PNG."""
    width, height = PAGE_SIZE[to.name]
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        sys.exit("error: no Chromium; install it and run again")
    with tempfile.TemporaryDirectory() as folder:
        # Without a timeout the page is drawn before its lazily loaded images are there.
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += [f"--user-data-dir={folder}/profile", f"--screenshot={folder}/page.png", "--timeout=4000"]
        address = page.resolve().as_uri()
        subprocess.run(
            [browser, *flags, f"--window-size={width},{height + MARGIN}", address],
            check=True,
            capture_output=True,
            timeout=120,
        )
        cv2.imwrite(
            str(to), np.asarray(cv2.imread(f"{folder}/page.png"))[:height, :width], [cv2.IMWRITE_PNG_COMPRESSION, 9]
        )


def main() -> None:
    """Copy what the programs have drawn, and capture the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results/sample"), help="folder of the run's results")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="data.checkpoint_path")
    arguments = parser.parse_args()
    checkpoint = newest(list((arguments.results / CATEGORY).glob("checkpoint_*")))
    grids = arguments.checkpoints / SAMPLES / arguments.results.name / "images"
    for source, name in (
        (checkpoint / "no_masking/panels" / PANEL, "panel.png"),
        (newest(list(grids.glob("epoch_*.png"))), "samples.png"),
        (arguments.results / "best_models.png", "best_models.png"),
    ):
        shutil.copyfile(source, HERE / name)
    for page, name in (
        (checkpoint / "no_masking/report.html", "report.png"),
        (checkpoint / "predictions/test/report.html", "predictions.png"),
    ):
        capture(page, HERE / name)


if __name__ == "__main__":
    main()
