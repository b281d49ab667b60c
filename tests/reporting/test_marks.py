"""reporting/marks.js in a browser: images are marked, marks stay, and feedback.csv has them."""

import time
from pathlib import Path

import numpy as np
import pytest
from conftest import rows_of, write
from messages import assert_line
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_report import browser, choose, needs_browser, show, tiles

from evaluation.thresholds import Thresholds
from inference import checkpoint
from reporting import report
from runtime.csv_file import read_csv
from runtime.provenance import file_digest

__all__ = ["browser"]
NAMES = ("=1+1.png", 'quo"te.png', "a, b.png", "it's.png")


@pytest.fixture
def page(tmp_path):
    """A page of 40 images with rising scores, and one that failed; their paths."""
    paths = [f"/line/{NAMES[i] if i < len(NAMES) else f'{i:03}.png'}" for i in range(40)]
    paths[4] = "=relative.png"
    shown = [report.Shown(f"{i:03}", "", None, i / 40, None, path=path) for i, path in enumerate(paths)]
    shown.append(report.Shown("failed", "", None, None, None, "cannot be read"))
    report.write_page(tmp_path, report.Page("line", "", shown, {"max": Thresholds("max", 0.51, 0.5)}, "max"))
    return tmp_path / report.PAGE, paths


def press(browser, *keys):
    for key in keys:
        browser.find_element(By.TAG_NAME, "body").send_keys(key)


def saved(browser, folder):
    """What the button saves."""
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    (folder / "feedback.csv").unlink(missing_ok=True)
    browser.find_element(By.ID, "save-marks").click()
    end = time.monotonic() + 20
    while not (folder / "feedback.csv").is_file():
        assert time.monotonic() < end
        time.sleep(0.05)
    return folder / "feedback.csv"


def text_of(browser):
    return browser.find_element(By.ID, "marks").text


@needs_browser
def test_marks_by_keys_and_buttons_survive_reloading_and_are_saved(browser, page, tmp_path):
    path, paths = page
    show(browser, path, "#sort=name")
    assert not browser.find_element(By.ID, "save-marks").is_enabled()
    browser.find_elements(By.CSS_SELECTOR, ".tile")[0].click()
    press(browser, "n", Keys.ARROW_RIGHT, "a", Keys.ARROW_RIGHT, "U", Keys.ARROW_RIGHT, "n", "n", Keys.ARROW_RIGHT)
    browser.find_element(By.CSS_SELECTOR, "[data-mark=nominal]").click()
    pressed = browser.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]")
    assert [button.get_attribute("data-mark") for button in pressed] == ["nominal"]
    press(browser, Keys.ESCAPE)
    browser.find_elements(By.CSS_SELECTOR, ".tile")[30].send_keys("n")  # with the focus on a tile
    browser.find_element(By.ID, "text").send_keys("nau")  # a search marks nothing
    show(browser, path, "#sort=name")
    assert "3 nominal" in text_of(browser) and "1 anomalous" in text_of(browser) and "1 unclear" in text_of(browser)
    choose(browser, "marked", "nominal")
    assert tiles(browser) == ["000", "004", "030"]
    choose(browser, "marked", "not marked")
    assert len(tiles(browser)) == 36
    slider = browser.find_element(By.ID, "slider")  # it moves what the page shows, not what the program has said
    browser.execute_script("arguments[0].value = 0; arguments[0].dispatchEvent(new Event('input'))", slider)
    rows = list(read_csv(saved(browser, tmp_path)))
    assert [(row["path"], row["verdict"], row["mark"], row["sample"]) for row in rows] == [
        (paths[0], "nominal", "nominal", ""),
        (paths[1], "nominal", "anomalous", ""),
        (paths[2], "nominal", "unclear", ""),
        ("=relative.png", "nominal", "nominal", ""),
        (paths[30], "anomalous", "nominal", ""),
    ]
    assert rows_of(tmp_path / "feedback.csv")[3]["path"] == "'=relative.png"  # for spreadsheets
    assert browser.get_log("browser") == []


@needs_browser
def test_a_random_sample_is_saved_whole_and_differs_each_time(browser, page, tmp_path):
    path, _ = page
    show(browser, path)
    size = browser.find_element(By.ID, "sample-size")
    drawn = []
    size.clear()
    size.send_keys("10")
    for _ in range(40):
        browser.find_element(By.ID, "pick-sample").click()
        names = "return [...document.querySelectorAll('.tile')].map((tile) => tile.innerText.split('\\n')[0])"
        drawn.append(browser.execute_script(names))  # tiles() asks for each alone
    assert all(len(set(names)) == 10 and "failed" not in names for names in drawn)
    counts = np.bincount([int(name) for names in drawn for name in names], minlength=40)
    assert counts.max() < 26 and counts.min() >= 1  # binomial(40, 1/4): each image in 10 of 40 samples
    browser.find_elements(By.CSS_SELECTOR, ".tile")[0].click()
    press(browser, "n", Keys.ESCAPE)
    show(browser, path)
    assert "random sample: 1 of 10" in text_of(browser)
    rows = rows_of(saved(browser, tmp_path))
    assert len(rows) == 10 and {row["sample"] for row in rows} == {"random"}
    assert sorted(row["mark"] for row in rows) == [""] * 9 + ["nominal"]
    assert browser.get_log("browser") == []


@needs_browser
def test_marks_of_one_report_are_not_those_of_another(browser, page, tmp_path_factory):
    path, _ = page
    show(browser, path)
    browser.find_elements(By.CSS_SELECTOR, ".tile")[0].click()
    press(browser, "a", Keys.ESCAPE)
    other = tmp_path_factory.mktemp("other") / report.PAGE
    other.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    show(browser, other)
    assert "0 anomalous" in text_of(browser)


@needs_browser
def test_images_without_a_path_cannot_be_marked(browser, tmp_path):
    report.write_page(tmp_path, report.Page("old", "", [report.Shown("a.png", "", 0, 0.5, None)], {}, None))
    show(browser, tmp_path / report.PAGE)
    assert not browser.find_element(By.ID, "save-marks").is_displayed()
    browser.find_elements(By.CSS_SELECTOR, ".tile")[0].click()
    press(browser, "n", Keys.ESCAPE)
    assert "0 nominal" in browser.find_element(By.ID, "marks").get_attribute("textContent")


@needs_browser
@pytest.mark.parametrize("mode", ["--predict", "--detection"])
def test_what_the_report_saves_is_what_feedback_reads(browser, ready, cli, monkeypatch, mode):
    """Paths hold in any folder, also where images are given relative to that of the program."""
    page = ready / "results/tiny/tile/checkpoint_2/no_masking/report.html"
    if mode == "--predict":
        monkeypatch.chdir(ready)
        assert cli("--predict", "mvtec/tile/test", "--output", "out")[0] == 0
        page = ready / "out/report.html"
    show(browser, page, "#sort=name")
    names = tiles(browser)
    for tile, name in zip(browser.find_elements(By.CSS_SELECTOR, ".tile"), names, strict=True):
        tile.send_keys("a" if "spot" in name else "n")
    (ready / "downloads").mkdir()
    file = saved(browser, ready / "downloads")
    monkeypatch.chdir(ready / "downloads")
    status, out, error = cli("--feedback", str(file))
    assert status == 0, error
    assert_line(out, "3 nominal", "3 anomalous")
    scores = {row["path"]: float(row["score"]) for row in rows_of(next(ready.glob("results/**/feedback/*/scores.csv")))}
    assert {path.partition("tile/test/")[2] for path in scores} == {name.removeprefix("test/") for name in names}


@needs_browser
def test_marks_from_a_browser_are_learned_from(browser, ready, cli):
    """Marked with keys in an open image, saved, and used by all that feedback can do."""
    rng = np.random.default_rng(5)
    for i in range(8):
        write(ready / f"line/{i:02}.png", rng.integers(150, 170, (40, 48, 3), dtype=np.uint8))
    low = [f"metrics.{one}" for one in ("threshold_type=manual", "image_threshold=0", "pixel_threshold=0")]
    sets = [word for one in low for word in ("--set", one)]  # everything is a false alarm
    assert cli("--predict", str(ready / "line"), "--output", str(ready / "out"), *sets)[0] == 0
    show(browser, ready / "out/report.html", "#sort=name")
    browser.find_elements(By.CSS_SELECTOR, ".tile")[0].click()
    for key in "nnnnnau":
        press(browser, key, Keys.ARROW_RIGHT)
    press(browser, Keys.ESCAPE)
    file = saved(browser, ready)
    rows = {Path(row["path"]).name: row for row in read_csv(file)}
    expected = ["nominal"] * 5 + ["anomalous", "unclear"]
    assert {name: row["mark"] for name, row in rows.items()} == {f"{i:02}.png": one for i, one in enumerate(expected)}
    assert {row["verdict"] for row in rows.values()} == {"anomalous"}
    status, out, error = cli("--feedback", str(file), "--recalibrate", "--learn", "--set", "feedback.epochs=1")
    assert status in (0, 1), error
    assert_line(out, "5 nominal", "1 anomalous", "1 unclear")
    thresholds = next(one for one in out.splitlines() if one.startswith("thresholds: ")).removeprefix("thresholds: ")
    assert (ready / thresholds).is_file()
    learned = ready / out.splitlines()[-1].removeprefix("checkpoint: ")
    kept = rows_of(learned.parent / "feedback/feedback.csv")
    assert {(row["path"], row["mark"]) for row in kept} == {(rows[f"{i:02}.png"]["path"], "nominal") for i in range(5)}
    images = checkpoint.load_metadata(learned).images
    digests = {file_digest(ready / f"line/{i:02}.png") for i in range(5)}
    assert digests == digests & {*images.training.values(), *images.held_out.values()}
    assert_line(out, "marked anomalies", "of 1")
