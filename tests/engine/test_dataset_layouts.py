"""Datasets in every form through the programs: training, resuming, thresholds, detection, prediction, whole batches."""

from pathlib import Path

import layout_fixtures
import pytest
from conftest import rows_of, write
from in_process import train_here
from messages import assert_line, assert_user_error

from engine import train_all
from inference import checkpoint

SETTINGS = """\
data:
  data_path: {root}/data
  category: '{category}'
  anomaly_source_path: {root}/textures
  checkpoint_path: {root}/checkpoints
  results_path: {root}/results
  run_name: tiny
  img_size: [32, 64]
  val_split: 0.34
  num_workers: 0
{more}
model: {{base_width: 1, base_channels: 1}}
train: {{epochs: 1, batch_size: 4, precision: fp32, device: cpu, visualize: false, save_from: 1, save_every: 1}}
metrics: {{auroc: false, pr: false, pro: false, iou: false, visualisation: none}}
"""
# Form -> layout, categories, settings.
CASES = {
    "loco": ("mvtec", ["breakfast_box", "pushpins"], ""),
    "btad": ("btad", ["01", "03"], ""),
    "mvtec_ad_2": ("mvtec-ad-2", ["can", "vial"], ""),
    "mvtec_3d": ("mvtec-3d", ["bagel", "rope"], ""),
    "visa": ("visa", ["candle", "pcb1"], ""),
    "visa_without_table": ("visa", ["candle", "pcb1"], ""),
    "kolektor_sdd": ("kolektor", ["KolektorSDD"], "test_split: 0.4"),
    "kolektor_sdd2": ("kolektor", ["KolektorSDD2"], ""),
    "dagm": ("dagm", ["Class1", "Class10"], ""),
    "real_iad": ("real-iad", ["audiojack", "usb"], ""),
    "tables": ("table", ["gear", "shaft"], ""),
    "table": ("table", ["gear"], "table: {root}/data/gear.csv"),
    "two_folders": (
        "folders",
        ["lid"],
        "nominal_folder: {root}/data/passed\n  anomalous_folder: {root}/data/rejected",
    ),
    "coco": ("coco", ["lids"], "coco: {root}/data/annotations/lids.json"),
}
MAKERS = {
    "visa_without_table": lambda root: layout_fixtures.visa(root, has_table=False),
    "table": layout_fixtures.tables,
}


@pytest.fixture
def dataset(tmp_path):
    """Make the dataset of a case, and settings for it; its settings file."""

    def make(name: str) -> Path:
        _, categories, more = CASES[name]
        MAKERS.get(name, getattr(layout_fixtures, name, None))(tmp_path / "data")
        out = layout_fixtures.Writer(tmp_path)
        for i in range(3):
            write(tmp_path / f"textures/{i}.png", out.rng.integers(0, 256, (40, 48, 3), dtype="uint8"))
        own = "\n".join(f"  {line.strip()}" for line in more.format(root=tmp_path).splitlines())
        text = SETTINGS.format(root=tmp_path.as_posix(), category=categories[0], more=own)
        path = tmp_path / "own.yaml"
        path.write_text(text)
        return path

    return make


@pytest.mark.parametrize("name", CASES)
def test_whole_datasets_are_trained_evaluated_and_compared(dataset, call, monkeypatch, tmp_path, name):
    categories, settings = CASES[name][1], dataset(name)
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    monkeypatch.setattr(train_all, "_train", train_here)
    status, out, error = call("train_all", "--config", str(settings))
    assert status == 0, out + error
    assert_line(out, f"trained: {', '.join(categories)}")
    plain = ("--registrations", "False", "--thresholds", "max")
    status, out, error = call("evaluate_checkpoints", "--config", str(settings), *plain)
    assert status == 0, out + error
    rows = rows_of(tmp_path / "results/tiny/summary.csv")
    assert list(dict.fromkeys(row["category"] for row in rows)) == categories and all(
        float(row["pixel_ap"]) > 0 for row in rows
    )
    assert all((row["spro_05"] != "") == (name == "loco") for row in rows)
    status, out, error = call("check_best_model", "--config", str(settings))
    assert status == 0 and (tmp_path / "results/tiny/best_models.md").is_file(), out + error
    assert all(path.read_bytes() == content for path, content in before.items())  # nothing of the dataset is written
    after = {path for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert after == before.keys()


@pytest.mark.parametrize(
    "name", ["visa_without_table", "kolektor_sdd", "tables", "real_iad", "coco", "two_folders", "btad"]
)
def test_a_training_resumes_with_the_same_held_out_images_and_predicts(dataset, call, tmp_path, name):
    layout, categories, _ = CASES[name]
    settings = ["--config", str(dataset(name))]
    status, out, error = call("main", *settings, "--check", "--train", "--threshold", "--detection")
    assert status == 0, out + error
    line = assert_line(out, f"layout: {layout} (recognised)")
    last = tmp_path / f"checkpoints/{categories[0]}/tiny/last.pt"
    first = checkpoint.load_metadata(last).images
    assert_line(line, f"{len(first.training)} images to train on, {len(first.held_out)} held out")
    scores = rows_of(tmp_path / f"results/tiny/{categories[0]}/checkpoint_1/no_masking/scores.csv")
    assert not {row[next(iter(row))] for row in scores} & {*first.training, *first.held_out}
    status, out, error = call("main", *settings, "--train", "--set", "train.epochs=2")
    assert status == 0, out + error
    resumed = checkpoint.load_metadata(last)
    assert resumed.images == first and resumed.settings.train.epochs == 2
    new = next(path for path in (tmp_path / "data").rglob("*") if path.suffix.lower() in (".png", ".jpg", ".bmp"))
    status, out, error = call("main", *settings, "--predict", str(new), "--output", str(tmp_path / "out"))
    assert status == 0 and len(rows_of(tmp_path / "out/predictions.csv")) == 1, out + error


def test_test_images_that_were_trained_on_are_refused(dataset, call):
    settings = ["--config", str(dataset("visa_without_table"))]
    assert call("main", *settings, "--train", "--threshold")[0] == 0
    others = ["--set", "data.test_seed=5"]
    assert_user_error(call("main", *settings, *others, "--detection"), "data.test_seed")
    status, out, _ = call("evaluate_checkpoints", *settings, *others, "--categories", "candle")
    assert status == 1
    assert_line(out, "failed: candle", "data.test_seed")


def test_another_share_for_the_test_is_refused_on_resume(dataset, call):
    settings = ["--config", str(dataset("two_folders"))]
    assert call("main", *settings, "--train")[0] == 0
    more = ["--train", "--set", "train.epochs=2"]
    assert_user_error(call("main", *settings, *more, "--set", "data.test_split=0.4"), "data.test_split = 0.2")
    assert call("main", *settings, *more, "--set", "data.layout=folders")[0] == 0  # the same images


def test_a_new_image_of_a_held_out_group_is_held_out(dataset, call, tmp_path):
    settings = ["--config", str(dataset("real_iad"))]
    assert call("main", *settings, "--train")[0] == 0
    last = tmp_path / "checkpoints/audiojack/tiny/last.pt"
    held_out = checkpoint.load_metadata(last).images.held_out
    file = tmp_path / "data/realiad_jsons/realiad_jsons/audiojack.json"
    name = sorted(held_out)[0].replace("_C1_", "_C6_")
    layout_fixtures.Writer(tmp_path).nominal(f"data/realiad_1024/audiojack/{name}")
    entry = f'"train": [{{"anomaly_class": "OK", "image_path": "{name}", "mask_path": null}}, '
    file.write_text(file.read_text().replace('"train": [', entry))
    status, out, error = call("main", *settings, "--train", "--set", "train.epochs=2")
    assert status == 0, out + error
    assert checkpoint.load_metadata(last).images.held_out.keys() == held_out.keys() | {name}


def test_results_are_out_of_date_when_a_label_of_a_table_changes(dataset, call, tmp_path):
    settings = ["--config", str(dataset("table"))]
    assert call("main", *settings, "--train")[0] == 0
    assert call("evaluate_checkpoints", *settings, "--thresholds", "max")[0] == 0
    _, out, _ = call("evaluate_checkpoints", *settings, "--thresholds", "max")
    assert_line(out, "2 already complete")
    table = tmp_path / "data/gear.csv"
    table.write_text(table.read_text().replace("dent", "hole"))
    _, out, _ = call("evaluate_checkpoints", *settings, "--thresholds", "max")
    assert_line(out, "0 already complete")


def test_images_trained_on_before_there_were_anomalous_ones_are_not_tested(dataset, call, tmp_path):
    settings = dataset("two_folders")
    text = settings.read_text()
    settings.write_text(text.replace("  anomalous_folder", "  # anomalous_folder"))
    assert call("main", "--config", str(settings), "--train", "--threshold")[0] == 0
    settings.write_text(text)
    assert_user_error(call("main", "--config", str(settings), "--detection"), "data.test_split")
