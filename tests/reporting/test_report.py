"""reporting/report.py and its page in a browser: what a user does with it, and what it then shows."""

import csv
import errno
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import rows_of
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from evaluation.thresholds import Thresholds
from reporting import report

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium")
NAMES = ("it's.png", "a#b.png", "100 %.png", "<b>bold</b>.png", "grün und weiß.png", 'quo"te.png', "amp&ersand.png")


def test_no_two_images_share_a_map():
    names = ["a.jpg", "a.jpg.png", "a.jpg.png.png", "a.png", "a.png.png", "a.PNG", "b/a.png", "2026.11.28.png"]
    names += ["x" * 250 + ".png", "x" * 250 + ".jpg", "x" * 249 + "y.png"]
    made = list(map(report.png_name, names))
    assert len(set(made)) == len(names) and made[0] == "a.jpg.png" and made[3] == "a.png" and made[7] == names[7]
    assert all(len(name.encode()) < 255 - len(".png") for name in made)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,1400",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def show(browser, path, address=""):
    browser.get("about:blank")
    browser.get(path.as_uri() + address)
    return browser


def counts(browser):
    boxes = browser.find_elements(By.CSS_SELECTOR, "#counts b")
    return {box.get_attribute("data-count"): float(box.text) if box.text != "–" else None for box in boxes}


def tiles(browser):
    return [tile.text.split("\n")[0] for tile in browser.find_elements(By.CSS_SELECTOR, ".tile")]


def choose(browser, name, value):
    Select(browser.find_element(By.ID, name)).select_by_value(value)


def expected(labels, scores, threshold):
    called = scores > threshold
    tp, fp = int((called & labels).sum()), int((called & ~labels).sum())
    fn, tn = int((~called & labels).sum()), int((~called & ~labels).sum())
    values = {"true positives": tp, "false negatives": fn, "false positives": fp, "true negatives": tn}
    return values | {"accuracy": round((tp + tn) / len(labels), 4), "F1": round(2 * tp / (2 * tp + fp + fn), 4)}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of 60 images, some with unusual names; labels and scores."""
    folder, rng = tmp_path_factory.mktemp("page with spaces"), np.random.default_rng(0)
    labels = np.arange(60) % 2 == 1
    scores = np.round(np.clip(rng.normal(0.3 + 0.2 * labels, 0.1), 0, 1), 4)
    shown = []
    for i in range(60):
        kind = "spot" if labels[i] else "good"
        name = f"{kind}/{NAMES[i] if i < len(NAMES) else f'{i:03}.png'}"
        files = report.view_files(name, bool(labels[i]))
        image = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
        truth = np.zeros((16, 24), bool)
        truth[4:9, 5:12] = True
        report.write_view(folder, files, image, image / 255, rng.random((16, 24), np.float32), truth)
        files["path"] = f"/data/{name}"
        shown.append(report.Shown(f"test/{name}", kind, int(labels[i]), float(scores[i]), i / 100, **files))
    curves = [
        report.curve(
            "ROC",
            ("fpr", "x"),
            ("tpr", "y"),
            {"image": {key: np.linspace(0, 1, 30) for key in ("fpr", "tpr")} | {"threshold": np.linspace(1, 0, 30)}},
        )
    ]
    infinite = float("inf")
    values = {"max": (0.45, 0.9), "optimal": (0.4, 0.5), "conformal": (infinite, infinite)}
    thresholds = {kind: Thresholds(kind, image, pixel) for kind, (image, pixel) in values.items()}
    recalls = [[one / 31, (one + 1) / 31] for one in range(31)]
    texts = {"image_auroc": "0.9 [0.8, 1.0]", "pro": "–"}
    kinds = [{"defect": "spot", "images": 30, "recalls": recalls} | texts]
    report.write_page(folder, report.Page("tile <1>", "60 images", shown, thresholds, "max", curves, kinds))
    return folder / report.PAGE, labels, scores


@needs_browser
def test_a_page_of_very_many_images_works(browser, tmp_path):
    """More than a function call of JavaScript takes arguments."""
    shown = [report.Shown(f"{i}.png", f"folder {i % 9}", i % 2, i / 150_000, None) for i in range(150_000)]
    limits = {"max": Thresholds("max", 0.5, 0.5)}
    report.write_page(tmp_path, report.Page("many", "150000 images.", shown, limits, "max"))
    show(browser, tmp_path / "report.html")
    assert counts(browser)["false positives"] == 37_499 and counts(browser)["true negatives"] == 37_501


@needs_browser
def test_the_recall_of_a_kind_follows_the_threshold_and_its_name_shows_its_images(browser, page):
    path, labels, scores = page
    show(browser, path)
    for kind, threshold in (("max", 0.45), ("optimal", 0.4)):
        browser.find_element(By.CSS_SELECTOR, f"[data-threshold={kind}]").click()
        found = int((scores[labels] > threshold).sum())
        ends = f"[{found / 31:.2f}, {(found + 1) / 31:.2f}]"
        cells = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#defects td")]
        assert cells == ["spot", "30", "0.9 [0.8, 1.0]", "–", f"{found / 30:.4f} {ends}, {found} of 30"]
    browser.find_element(By.CSS_SELECTOR, "#defects button").click()
    assert len(tiles(browser)) == 30 and "folder=spot" in browser.current_url


@needs_browser
@pytest.mark.parametrize("spro", [{}, {"spro_05": "0.7 [0.6, 0.8]"}])
def test_kinds_of_defects_have_a_column_of_spro_where_it_is_known(browser, tmp_path, spro):
    row = {"defect": "spot", "images": 1, "recalls": [], "image_auroc": "0.9", "pro": "0.8"} | spro
    shown = [report.Shown("spot/0.png", "spot", 1, 0.5, None)]
    limits = {"max": Thresholds("max", 0.4, 0.5)}
    report.write_page(tmp_path, report.Page("loco", "", shown, limits, "max", (), [row]))
    show(browser, tmp_path / "report.html")
    heads = [head.text for head in browser.find_elements(By.CSS_SELECTOR, "#defects th")]
    cells = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#defects td")]
    assert [head for head in heads if head] == ["kind", "images", "image AUROC", "PRO", *["sPRO"] * len(spro), "recall"]
    assert cells == ["spot", "1", "0.9", "0.8", *spro.values(), "1.0000, 1 of 1"]


@needs_browser
def test_counts_follow_the_threshold(browser, page):
    path, labels, scores = page
    show(browser, path)
    assert browser.title == "tile <1>" and counts(browser).items() >= expected(labels, scores, 0.45).items()
    optimal = browser.find_element(By.CSS_SELECTOR, "[data-threshold=optimal]")
    optimal.click()
    assert counts(browser).items() >= expected(labels, scores, 0.4).items()
    assert (
        len(optimal.text) > len("optimal")
        and browser.find_element(By.CSS_SELECTOR, "[data-threshold=max]").text == "max"
    )
    point = browser.find_element(By.CSS_SELECTOR, "#curves circle")
    before = point.get_attribute("cx")
    histogram = browser.find_element(By.ID, "histogram")
    for share in (-0.2, 0.1, 0.3):
        offset = int(histogram.size["width"] * share)
        ActionChains(browser).move_to_element(histogram).click_and_hold().move_by_offset(offset, 0).release().perform()
        chosen = float(re.search(r"threshold=([\d.]+)", browser.current_url)[1])
        assert counts(browser).items() >= expected(labels, scores, chosen).items()
        kinds = [tile.get_attribute("class").split()[1] for tile in browser.find_elements(By.CSS_SELECTOR, ".tile")]
        assert kinds.count("anomalous") == (scores > chosen).sum()
    assert point.get_attribute("cx") != before
    slider = browser.find_element(By.ID, "slider")
    slider.send_keys(Keys.ARROW_LEFT)
    chosen = float(re.search(r"threshold=([\d.]+)", browser.current_url)[1])
    assert counts(browser).items() >= expected(labels, scores, chosen).items()
    assert browser.get_log("browser") == []


@needs_browser
def test_sorting_filtering_and_searching(browser, page):
    path, labels, scores = page
    show(browser, path)
    first = tiles(browser)[0]
    rows = json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"))[1])["images"]
    names = [row["name"] for row in rows]
    wrong = np.where(labels, 0.45 - scores, scores - 0.45)
    assert first == names[int(wrong.argmax())]
    choose(browser, "sort", "high")
    assert tiles(browser)[:3] == [names[i] for i in np.argsort(-scores, kind="stable")[:3]]
    choose(browser, "sort", "area")
    assert tiles(browser)[0] == names[59]
    choose(browser, "sort", "name")
    assert tiles(browser) == sorted(names)
    choose(browser, "filter", "false negative")
    missed = {name for name, label, score in zip(names, labels, scores, strict=True) if label and score <= 0.45}
    assert set(tiles(browser)) == missed and f"{len(missed)} of 60" in browser.find_element(By.ID, "shown").text
    choose(browser, "filter", "all")
    choose(browser, "folder", "good")
    assert len(tiles(browser)) == 30
    choose(browser, "folder", "")
    browser.find_element(By.ID, "text").send_keys("<B>")
    assert tiles(browser) == ["test/spot/<b>bold</b>.png"]
    assert browser.get_log("browser") == []


@needs_browser
def test_an_image_opens_enlarged_and_has_an_address(browser, page):
    path, _, _ = page
    show(browser, path, "#sort=name")
    order, unusual = tiles(browser), [f"test/{'spot' if i % 2 else 'good'}/{name}" for i, name in enumerate(NAMES)]
    for name in unusual:
        [tile] = [tile for tile in browser.find_elements(By.CSS_SELECTOR, ".tile") if tile.text.startswith(name)]
        browser.execute_script("arguments[0].scrollIntoView(); arguments[0].click()", tile)
        assert browser.find_element(By.ID, "name").text == name
        end = time.monotonic() + 10
        while not browser.execute_script(
            "return [...document.querySelectorAll('#stack img')].every((image) => image.complete && image.naturalWidth)"
        ):
            assert time.monotonic() < end, name
        assert len(browser.find_elements(By.CSS_SELECTOR, "#stack img")) == 3 - name.startswith("test/good")
        address = browser.current_url
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
        assert not browser.find_element(By.ID, "dialog").is_displayed()
        browser.get("about:blank")
        browser.get(address)
        assert browser.find_element(By.ID, "name").text == name
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    browser.find_elements(By.CSS_SELECTOR, ".tile")[0].click()
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.ARROW_RIGHT)
    assert browser.find_element(By.ID, "name").text == order[1]
    body.send_keys(Keys.ARROW_LEFT)
    assert browser.find_element(By.ID, "name").text == order[0]
    browser.find_element(By.ID, "reconstruction").click()
    assert "/reconstructions/" in browser.find_element(By.CSS_SELECTOR, "#stack img").get_attribute("src")
    browser.execute_script(
        "const pixel = document.getElementById('pixel'); pixel.value = 0.5; pixel.dispatchEvent(new Event('input'))"
    )
    assert float(browser.find_element(By.ID, "cut").get_attribute("intercept")) == pytest.approx(-127.5)
    assert browser.get_log("browser") == []


@needs_browser
def test_a_page_of_ten_thousand_images_stays_fast(browser, tmp_path):
    rng = np.random.default_rng(0)
    shown = [report.Shown(f"test/good/{i:05}.png", "good", i % 2, float(rng.random()), None) for i in range(10_000)]
    thresholds = {"max": Thresholds("max", 0.5, 0.5)}
    report.write_page(tmp_path, report.Page("many", "", shown, thresholds, "max"))
    show(browser, tmp_path / report.PAGE)
    assert len(browser.find_elements(By.CSS_SELECTOR, ".tile")) <= 360
    choose(browser, "sort", "name")
    assert browser.find_element(By.CSS_SELECTOR, ".tile span").text == "test/good/00000.png"
    for work in ("setThreshold(0.3)", "setThreshold(0.7, false)", "arrange()"):  # milliseconds, of the page alone
        assert (
            browser.execute_script(f"const start = performance.now(); {work}; return performance.now() - start") < 1000
        )
    browser.execute_script("document.getElementById('end').scrollIntoView()")
    end = time.monotonic() + 10
    while len(browser.find_elements(By.CSS_SELECTOR, ".tile")) <= 360:
        browser.execute_script("document.getElementById('end').scrollIntoView()")
        assert time.monotonic() < end
    browser.set_window_size(3840, 4000)  # shows several chunks at once: nothing need be scrolled
    try:
        show(browser, tmp_path / report.PAGE)
        position = "return document.getElementById('end').getBoundingClientRect().top - innerHeight"
        while browser.execute_script(position) < 800:
            assert time.monotonic() < end + 10
        assert len(browser.find_elements(By.CSS_SELECTOR, ".tile")) < 3000
    finally:
        browser.set_window_size(1200, 1400)


@needs_browser
def test_reports_of_results_and_predictions_and_the_index_of_a_batch(browser, two, call, cli):
    assert call("evaluate_checkpoints", "--maskings", "no", "--registrations", "False")[0] == 0
    folder = two / "results/tiny/tile/checkpoint_2/no_masking"
    rows = rows_of(folder / "scores.csv")
    labels = np.array([row["label"] == "1" for row in rows])
    scores = np.array([float(row["score"]) for row in rows])
    show(browser, folder / report.PAGE)
    for name in ("max", "p_quantile", "optimal"):
        metrics = json.loads((folder / name / "metrics.json").read_text())
        browser.find_element(By.CSS_SELECTOR, f"[data-threshold={name}]").click()
        found = counts(browser)
        assert found.items() >= expected(labels, scores, metrics["image_threshold"]).items()
        assert found["true positives"] == metrics["true_positives"]
        assert found["accuracy"] == round(metrics["accuracy"], 4)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#curves figure")) == 4
    assert cli("--predict", str(two / "mvtec/tile/test"), "--output", str(two / "out"))[0] == 0
    show(browser, two / "out" / report.PAGE)
    with (two / "out/predictions.csv").open() as stream:
        called = sum(row["verdict"] == "anomalous" for row in csv.DictReader(stream))
    assert counts(browser) == {"anomalous": called, "nominal": 6 - called}
    show(browser, two / "results/tiny" / report.INDEX)
    assert len(browser.find_elements(By.CSS_SELECTOR, "tbody tr")) == len(rows_of(two / "results/tiny/summary.csv"))
    column = [head.text for head in browser.find_elements(By.CSS_SELECTOR, "th")].index("image AUROC")
    for is_falling in (False, True):
        browser.find_elements(By.CSS_SELECTOR, "th button")[column].click()
        values = [
            row.find_elements(By.TAG_NAME, "td")[column].text
            for row in browser.find_elements(By.CSS_SELECTOR, "tbody tr")
        ]
        assert values == sorted(values, key=float, reverse=is_falling)
    browser.find_element(By.LINK_TEXT, "open").click()
    assert browser.current_url.partition("#")[0].endswith("/no_masking/report.html")
    assert browser.get_log("browser") == []


def test_an_image_of_a_report_that_cannot_be_written_whole_is_absent(tmp_path, monkeypatch):
    """Where the process was killed within the write, half of it stood at its place."""

    def half(path, data):
        with path.open("wb") as stream:
            stream.write(bytes(data)[:20])
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "write_bytes", half)
    plane = np.zeros((16, 24, 3), np.uint8)
    with pytest.raises(OSError, match="Input/output error"):
        report.write_view(tmp_path, report.view_files("a.png", False), plane, plane, plane[..., 0], None)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
