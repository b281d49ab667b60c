"""make_sample.py, and the commands that the README gives after it."""

import json
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT, rows_of
from in_process import run_here, train_here
from messages import assert_line
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

import make_sample
from engine import train_all
from evaluation import metrics


def test_the_sample_can_be_in_a_folder_whose_name_is_not_ascii(tmp_path, monkeypatch):
    """OpenCV's own reader fails on such paths on Windows; it is removed here."""
    monkeypatch.setattr(cv2, "imread", None)
    monkeypatch.setattr(make_sample, "N_TRAIN", 20)
    make_sample.make_sample(tmp_path / "übung")
    assert make_sample.trivial_auroc(tmp_path / "übung/mvtec/flange", 64) < 0.8


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The folder where make_sample.py was run, and what it printed."""
    folder = tmp_path_factory.mktemp("sample")
    made = subprocess.run([sys.executable, str(ROOT / "make_sample.py")], cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return folder, made.stdout


MODES = ("--train", "--threshold", "--detection")


def test_the_modes_on_the_sample(sample, monkeypatch):
    """Tiny settings, from another folder, with relative paths: what a user types after make_sample.py."""
    tmp_path, out = sample
    for category in ("flange", "board"):
        trivial = float(assert_line(out, category, re.compile(r"\b0\.\d+$"), 200, 24, 32).rsplit(" ", 1)[1])
        assert trivial < 0.8  # image AUROC of a score that anybody could compute
    for category in ("flange", "board"):
        folder = tmp_path / "sample/mvtec" / category
        good = {part: [cv2.imread(str(path), 0) for path in (folder / part).iterdir()]
                for part in ("train/good", "test/good")}  # fmt: skip
        assert len({image.tobytes() for images in good.values() for image in images}) == 224
        levels, spreads = (
            [[measure(image) for image in images] for images in good.values()] for measure in (np.mean, np.std)
        )
        assert (
            ks_2samp(*levels).pvalue > 0.05 and ks_2samp(*spreads).pvalue > 0.05
        )  # nominal test images are like those of training
    sets = ["model.base_width=2", "model.base_channels=2", "train.epochs=1", "data.img_size=32", "data.category=board"]
    arguments = ["--config", ROOT / "configs/sample.yaml", *(word for value in sets for word in ("--set", value))]
    monkeypatch.chdir(tmp_path)
    printed = run_here("main", *(word for mode in MODES for word in (mode, "True")), *arguments)
    said = dict(line.split(": ", 1) for line in printed.splitlines() if line.split(":")[0] in
                ("checkpoint", "thresholds", "results"))  # fmt: skip
    assert list(said) == ["checkpoint", "thresholds", "results"] and all((tmp_path / p).exists() for p in said.values())
    folder = tmp_path / "results/sample/board/checkpoint_1/no_masking"
    assert tmp_path / said["results"] == folder
    assert len(rows_of(folder / "scores.csv")) == 56 and len(list((folder / "panels").rglob("*.png"))) == 56
    again = subprocess.run([sys.executable, str(ROOT / "make_sample.py")], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.splitlines()[:2] == out.splitlines()[:2]


def test_the_batch_programs_on_the_sample(sample, tmp_path, monkeypatch):
    """Three commands after make_sample.py, as the README gives them, at tiny sizes."""
    (tmp_path / "sample/mvtec").mkdir(parents=True)
    (tmp_path / "sample/textures").symlink_to(sample[0] / "sample/textures")
    for category in ("flange", "board"):  # with a fifth of the training images
        shutil.copytree(sample[0] / "sample/mvtec" / category, tmp_path / "sample/mvtec" / category)
        for file in sorted((tmp_path / "sample/mvtec" / category / "train/good").iterdir())[40:]:
            file.unlink()
    sets = ["model.base_width=2", "model.base_channels=2", "train.epochs=2", "data.img_size=32", "data.num_workers=0"]
    sets += ["train.save_from=1", "train.save_every=1", "metrics.visualisation=none"]
    sets += [f"metrics.{curves}=false" for curves in ("auroc", "pr", "pro", "iou")]  # drawn by the test above
    settings = ["--config", str(ROOT / "configs/sample.yaml"), *(word for value in sets for word in ("--set", value))]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_all, "_train", train_here)
    run_here("train_all", *settings)
    run_here("evaluate_checkpoints", *settings, "--registrations", "False")
    run_here("check_best_model", *settings)
    results = tmp_path / "results/sample"
    summary = rows_of(results / "summary.csv")
    assert [(row["category"], row["checkpoint"], row["threshold"]) for row in summary] == [
        (category, name, kind)
        for category in ("board", "flange")
        for name in "12"
        for kind in ("max", "p_quantile", "k_sigma", "optimal")
    ]
    for row in summary:
        folder = results / row["category"] / f"checkpoint_{row['checkpoint']}" / row["technique"]
        kept = json.loads((folder / row["threshold"] / "metrics.json").read_text())
        assert all(kept[key] == (float(row[key]) if row[key] else None) for key in metrics.METRIC_KEYS)
        scores = rows_of(folder / "scores.csv")
        labels, values = ([float(one[key]) for one in scores] for key in ("label", "score"))
        assert float(row["image_auroc"]) == pytest.approx(roc_auc_score(labels, values))
    best = json.loads((results / "best_models.json").read_text())
    means = {name: np.mean([float(r["image_auroc"]) for r in summary if r["checkpoint"] == name]) for name in "12"}
    assert best["headline"]["image_auroc"] == pytest.approx(means[best["headline"]["checkpoint"]])
    assert set(best["label_free"]["categories"]) == {"flange", "board"}
