"""Files of datasets and earlier results that a stranger has changed: read or refused, and nothing is written elsewhere.

200; 20,000 with `make faults`.
"""

import csv
import io
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from faults.places import IS_WHOLE
from faults.strangers import SETTING_FILES, make_place, mutated, problems_of
from in_process import run_here

from config_file import load_config
from data.layouts import loco, registry
from engine import best_model, evaluate_all
from engine.feedback import marks
from engine.watch_record import Record, state_of
from evaluation.thresholds import Thresholds
from inference import exported, threshold_file
from reporting import best_models, significance, summary
from reporting.predictions import Predictions
from reporting.result import read_record
from runtime.files import run_lock
from training import journal

FILES = 20_000 if IS_WHOLE else 200
PROCESSES = 4
RUN, RESULT = "checkpoints/tile/tiny", "results/tiny/tile/checkpoint_1/no_masking"
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
DIGITS = ("9" * 400, "9" * 5000)
ODD = ["", "x", "-1", "1e999", "nan", *DIGITS, "../../../outside", "/outside", "\0", "\ud800", "=1+1", "é" * 300]
NUMBERS = (-1, 2**70, 10**400, 1e308, float("nan"), float("inf"))
ODD_VALUES = [*ODD, *NUMBERS, None, True, [], {}, [[]], {"a": {"b": []}}, [None]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workplace with results and predictions, alone in its folder; networks of width 1."""
    root = make_place(tmp_path_factory.mktemp("results") / "alone/place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_here("check_best_model", *SETTING_FILES)
    marked = "path,verdict,mark,sample\nmvtec/tile/test/good/000.png,anomalous,nominal,random\n"
    (root / "feedback.csv").write_text(marked)
    table = "path,split,label,mask,group,category\n" + "".join(
        f"tile/train/good/{number:03}.png,train,good,,part{number},gear\n" for number in range(6)
    )
    table += "tile/test/spot/000.png,test,dent,tile/ground_truth/spot/000_mask.png,,gear\n"
    (root / "mvtec/gear.csv").write_text(table)
    images = [{"id": n, "file_name": f"tile/train/good/{n:03}.png", "height": 40, "width": 48} for n in range(6)]
    shapes: list[dict] = [
        {"image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]},
        {"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]},
        {"image_id": 2, "category_id": 1, "segmentation": {"size": [40, 48], "counts": [900, 120, 900]}},
        {"image_id": 3, "category_id": 1, "segmentation": {"size": [40, 48], "counts": "PU1"}},
    ]
    content = {"images": images, "annotations": shapes, "categories": [{"id": 1, "name": "dent"}]}
    (root / "mvtec/lids.json").write_text(json.dumps(content))
    listing = {
        "meta": {"prefix": "tile/", "normal_class": "OK"},
        "train": [{"image_path": f"train/good/{n:03}.png", "anomaly_class": "OK", "mask_path": None} for n in range(6)],
    }
    mask = "ground_truth/spot/000_mask.png"
    listing["test"] = [{"image_path": "test/spot/000.png", "anomaly_class": "AK", "mask_path": mask}]
    (root / "real").mkdir()
    (root / "real/jack.json").write_text(json.dumps(listing))
    shutil.copytree(root / "mvtec/tile", root / "real/tile")
    entry = {"defect_name": "a", "pixel_value": 255, "saturation_threshold": 0.5, "relative_saturation": True}
    (root / "defects_config.json").write_text(json.dumps([entry]))
    (root / "export.json").write_text(json.dumps({"sha256": "0" * 64, "files": {"export.bin": "0" * 64}}))
    (root / "export.xml").write_text("<net/>")
    (root / f"{RUN}/.owner.json").write_text(json.dumps({"host": "x", "boot": "y", "process": 1, "batch": None}))
    _record(root / "record.sqlite", root / "mvtec").close()
    shutil.copy(root / "out/made_with.json", root)  # as it was
    return root


def _record(path: Path, folder: Path) -> Record:
    record = Record(path, folder)
    for number in range(3):
        image = folder / f"tile/test/good/{number:03}.png"
        state = state_of(str(image))
        assert state is not None
        record.add(f"tile/test/good/{number:03}.png", state, [image.as_posix(), *["0.5"] * 9])
    return record


def _predictions(folder: Path) -> Predictions:
    made_with = json.loads((folder.parent / "made_with.json").read_text(encoding="utf-8"))
    del made_with["program_version"]
    return Predictions(folder, Thresholds("max", 0.5, 0.5), made_with, "none", "keep")


def _read_predictions(folder: Path) -> None:
    found = _predictions(folder)
    found.last_rows()
    list(found.rows("predictions*.csv"))
    found.done()
    found.write_report("title", str, {"max": Thresholds("max", 0.5, 0.5)})


def _read_watch(w: Path) -> None:
    predictions = _predictions(w / "out")
    record = Record(w / "record.sqlite", w / "mvtec")
    try:
        record.catch_up(predictions)
        state = state_of(str(w / "mvtec/tile/test/good/000.png"))
        assert state is not None
        with suppress(sqlite3.Error):  # the watch tries again
            record.is_done("tile/test/good/000.png", state)
            record.add("a.png", state, ["x"] * 10)
            record.write_rows(predictions)
    finally:
        record.close()


def _config(w: Path, *sets: str):
    return load_config([w / "config.yaml", w / "tiny.yaml"], sets)


def _read_category(w: Path, *sets: str) -> None:
    config = _config(w, *sets)
    for name in registry.list_categories(config):
        category = registry.open_category(config.with_values({"data.category": name}))
        category.nominal()
        for one in category.test():
            assert ".." not in Path(one.name).parts and not Path(one.name).is_absolute(), one.name
            for mask in one.masks:
                if not isinstance(mask, Path):
                    mask.draw()


def _read_results(w: Path) -> None:
    config = _config(w)
    results = w / "results/tiny"
    found, stale = evaluate_all.current_results(results, config, {})
    summary.write_summary(results, found, {}, set())
    summary.write_defects(results / "defects.csv", found)
    summary.write_times(results / "times.txt", found)
    summary.write_index(results, found)
    summary.print_stale(stale)
    if record := read_record(w / RESULT):
        summary.read_kinds(w / RESULT, record)


def _read_owner(w: Path) -> None:
    with run_lock(w / RUN):
        pass


def _read_log(w: Path) -> None:
    journal.read_log(w / RUN / "train_log.csv", 9)
    best_models.read_val_ap(w / RUN / "train_log.csv")


# File -> what reads it. The function is given the workplace.
READERS: dict[str, Callable[[Path], object]] = {
    f"{RUN}/thresholds/checkpoint_1/no_masking.json": lambda w: threshold_file.read(
        w / RUN / "thresholds/checkpoint_1/no_masking.json"
    ),
    f"{RUN}/train_log.csv": _read_log,
    f"{RUN}/.owner.json": _read_owner,
    f"{RESULT}/made_with.json": _read_results,
    f"{RESULT}/p_quantile/metrics.json": _read_results,
    f"{RESULT}/p_quantile/defects.csv": _read_results,
    f"{RESULT}/scores.csv": lambda w: significance._read_scores(w / RESULT),
    "results/tiny/summary.csv": lambda w: (_read_results(w), best_model.run(_config(w), None)),
    "out/predictions.csv": lambda w: _read_predictions(w / "out"),
    "out/made_with.json": lambda w: _read_predictions(w / "out"),
    "feedback.csv": lambda w: marks.read(w / "feedback.csv"),
    "mvtec/gear.csv": lambda w: _read_category(w, f"data.table={w}/mvtec/gear.csv"),
    "mvtec/lids.json": lambda w: _read_category(w, f"data.coco={w}/mvtec/lids.json", "data.category=lids"),
    "real/jack.json": lambda w: _read_category(w, f"data.data_path={w}/real", "data.layout=real-iad"),
    "defects_config.json": lambda w: loco.read_config(w / "defects_config.json"),
    "export.json": lambda w: exported.is_damaged(w / "export.xml"),
    "record.sqlite": _read_watch,
}


def _changed_json(value: object, rng: np.random.Generator) -> object:
    """A JSON value with an entry, at any depth, replaced, removed or added."""
    odd = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
    if not isinstance(value, (dict, list)) or not value:
        return odd
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[int(rng.integers(len(keys)))]
    kind = rng.random()
    if kind < 0.1:
        del value[key]  # type: ignore[arg-type]
    elif kind < 0.2 and isinstance(value, dict):
        value["../../outside"] = odd
    elif kind < 0.2:
        value.append(odd)  # type: ignore[union-attr]
    elif kind < 0.4:
        value[key] = odd  # type: ignore[index]
    else:
        value[key] = _changed_json(value[key], rng)  # type: ignore[index]
    return value


def _changed_csv(text: str, rng: np.random.Generator) -> str:
    rows = list(csv.reader(io.StringIO(text)))
    for _ in range(int(rng.integers(1, 4))):
        row = rows[int(rng.integers(len(rows)))]
        place, odd = int(rng.integers(len(row) + 1)), ODD[int(rng.integers(len(ODD)))]
        row[place : place + int(rng.integers(2))] = [odd] * int(rng.integers(1, 3))
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    return stream.getvalue()


def _changed_record(data: bytes, rng: np.random.Generator, folder: Path) -> bytes:
    """A database with another value in a row, or with statements that others would run."""
    path = folder / "changed.sqlite"
    path.write_bytes(data)
    base = sqlite3.connect(path)
    values = ["../x", "\0", None, -1, 2**62, b"x", "[]", "{", "[1]", "x" * 1000, "[" * 50_000]
    value = values[int(rng.integers(len(values)))]
    columns = ["done.path", "done.size", "done.time", "done.file", "done.again", "done.digest", "waiting.cells"]
    table, column = columns[int(rng.integers(len(columns)))].split(".")
    if rng.random() < 0.7:
        base.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = 1", (value,))
    elif rng.random() < 0.5:
        base.execute("CREATE TRIGGER odd AFTER INSERT ON done BEGIN DELETE FROM waiting; END")
    else:
        base.execute("DROP TABLE waiting")
        base.execute("CREATE VIEW waiting AS SELECT 1 AS number, path AS cells FROM done")
    base.commit()
    base.close()
    return path.read_bytes()


def file_of(copies: dict[str, bytes], folder: Path, number: int) -> bytes:
    name = list(READERS)[number % len(READERS)]
    rng, data = np.random.default_rng(number), copies[name]
    if rng.random() < 0.2:
        return mutated(data, rng)
    if name.endswith(".json"):
        if rng.random() < 0.02:
            return b"[" * int(rng.integers(1, 200_000))
        return json.dumps(_changed_json(json.loads(data), rng)).encode()
    if name.endswith(".sqlite"):
        return _changed_record(data, rng, folder)
    return _changed_csv(data.decode(), rng).encode("utf-8", "surrogatepass")


def read(w: Path, copy: Path, copies: dict[str, bytes], files: Callable[[int], bytes], number: bytes) -> None:
    """Put a changed file into its place, and let the program read it."""
    name = list(READERS)[int(number) % len(READERS)]
    (w / name).write_bytes(files(int(number)))
    try:
        READERS[name](w)
    finally:
        for folder in ("out", "results"):
            if name.startswith(folder) or name == "record.sqlite":
                shutil.rmtree(w / folder)
                shutil.copytree(copy / folder, w / folder)
        (w / name).write_bytes(copies[name])


def _all_below(folder: Path, besides: Path) -> dict[str, bytes]:
    return {
        path.as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if besides != path and besides not in path.parents
    }


@pytest.mark.parametrize("part", range(PROCESSES))
def test_changed_files_are_read_or_refused(place, part, capfd):
    top, copy = place.parents[1], place.parents[1] / f"copy{part}"
    shutil.copytree(place, copy / "of/place")
    work = copy / "alone/place"
    shutil.copytree(place, work)
    for name in ("config.yaml",):
        (work / name).write_text((work / name).read_text().replace(place.as_posix(), work.as_posix()))
    copies = {name: (place / name).read_bytes() for name in READERS}
    before = _all_below(top, work)
    files = partial(file_of, copies, work)
    numbers = range(part * FILES // PROCESSES, (part + 1) * FILES // PROCESSES)
    reader = partial(read, work, copy / "of/place", copies, files)
    found = problems_of(reader, lambda number: str(number).encode(), numbers)
    found = [f"{list(READERS)[int(one.split(':')[0].split()[0]) % len(READERS)]} {one}" for one in found]
    assert not found, "\n".join(found)
    assert _all_below(top, work) == before
