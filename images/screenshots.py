"""Takes the images of README and docs beside this file anew, from the results of the sample.

python -m images.screenshots --results results/sample --checkpoints checkpoints

It trains nothing. To be run before, each with --config configs/sample.yaml: train_all.py, evaluate_checkpoints.py,
check_best_model.py, and main.py --predict sample/mvtec/board/test --set data.category=board. Needs Chromium with
chromedriver, and requirements-dev.txt.
"""

import argparse
import shutil
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

HERE = Path(__file__).parent
CATEGORY, PANEL = "board", "hole/001.png"  # shown by pages and panel
SAMPLES = "flange"  # whose training samples are shown
PAGE_SIZE = {"report.png": (1180, 1312), "predictions.png": (1180, 900)}
LOADED = """return [...document.images].every((image) =>
    image.getBoundingClientRect().top > innerHeight || (image.complete && image.naturalWidth));"""


def newest(paths: list[Path]) -> Path:
    """The one of the highest epoch, which ends each name."""
    return max(paths, key=lambda path: int(path.stem.rpartition("_")[2]))


def capture(browser: webdriver.Chrome, page: Path, to: Path) -> None:
    """The top of a page as a PNG, once the images there are loaded."""
    width, height = PAGE_SIZE[to.name]
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.resolve().as_uri())
    WebDriverWait(browser, 60).until(lambda page: page.execute_script(LOADED))
    browser.save_screenshot(str(to))


def capture_marks(browser: webdriver.Chrome, page: Path) -> None:
    """A report of predictions as it is marked: the gallery with a random sample, and an image that is open."""
    browser.set_window_size(1180, 1000)
    browser.get(page.resolve().as_uri())
    browser.execute_script("localStorage.clear(); $('sample-size').value = 14; pickSample(14)")
    for tile in browser.find_elements(By.CSS_SELECTOR, ".tile")[:11]:
        tile.send_keys("n" if tile.text.startswith("good/") else "a")
    browser.execute_script(
        "[...document.querySelectorAll('h2')].find((h) => h.textContent === 'Images').scrollIntoView()"
    )
    _save(browser, "marks.png", 860)
    shown = browser.find_elements(By.CSS_SELECTOR, ".tile")  # again: another size of the window builds them anew
    next(tile for tile in shown if tile.text.startswith("good/")).click()
    _save(browser, "marked.png", 860)


def _save(browser: webdriver.Chrome, name: str, height: int) -> None:
    size = {"width": 1180, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    WebDriverWait(browser, 60).until(lambda page: page.execute_script(LOADED))
    browser.save_screenshot(str(HERE / name))


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
    [predicted] = (checkpoint / "predictions").glob("test-*/report.html")  # with a hash of its paths
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    with webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        capture(browser, checkpoint / "no_masking/report.html", HERE / "report.png")
        capture(browser, predicted, HERE / "predictions.png")
        capture_marks(browser, predicted)


if __name__ == "__main__":
    main()
