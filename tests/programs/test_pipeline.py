"""The three modes as a user runs them."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import DATA, DRAWN, ROOT, main_py, rows_of, write
from scipy.stats import ks_2samp
from sklearn.metrics import average_precision_score, roc_auc_score

from evaluation import metrics
from inference import detect as inference

MODES = ("--train", "--threshold", "--detection")
PAIR = "DRAEM_seg_large_ae_large_0.0001_800_bs8_bottle_"


def test_help_explains_the_modes_and_imports_nothing_heavy(tmp_path):
    command = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"torch", "cv2", "numpy", "pydantic", "yaml", "matplotlib"}
    for word in (*MODES, "--config", "--set", "example:", "python main.py --train True"):
        assert word in result.stdout


@pytest.mark.parametrize("flag", ["-cfg", "--config"])
def test_settings_are_named_by_either_flag(workplace, flag):
    (workplace / "other.yaml").write_text("data: {category: '12'}")
    done = main_py("--train", flag, workplace / "other.yaml", cwd=workplace)
    assert done.returncode == 2 and "12/train/good" in done.stderr


def test_the_sample_through_all_modes(tmp_path):
    """Tiny settings, from another folder, with relative paths: what a user types after make_sample.py."""
    made = subprocess.run([sys.executable, str(ROOT / "make_sample.py")], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    trivial = [float(line.rsplit(" ", 1)[1]) for line in made.stdout.splitlines() if "trivial" in line]
    assert len(trivial) == 2 and max(trivial) < 0.8
    for category in ("flange", "board"):
        folder = tmp_path / "sample/mvtec" / category
        good = {part: [cv2.imread(str(path), 0) for path in (folder / part).iterdir()]
                for part in ("train/good", "test/good")}  # fmt: skip
        assert len({picture.tobytes() for pictures in good.values() for picture in pictures}) == 224
        levels, spreads = (
            [[measure(picture) for picture in pictures] for pictures in good.values()] for measure in (np.mean, np.std)
        )
        assert ks_2samp(*levels).pvalue > 0.05 and ks_2samp(*spreads).pvalue > 0.05  # test pictures are like training's
    sets = ["model.base_width=2", "model.base_channels=2", "train.epochs=1", "data.img_size=32", "data.category=board"]
    arguments = ["--config", ROOT / "configs/sample.yaml", *(word for value in sets for word in ("--set", value))]
    result = main_py(*(word for mode in MODES for word in (mode, "True")), *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    said = dict(line.split(": ", 1) for line in result.stdout.splitlines() if line.split(":")[0] in
                ("checkpoint", "thresholds", "results"))  # fmt: skip
    assert list(said) == ["checkpoint", "thresholds", "results"] and all((tmp_path / p).exists() for p in said.values())
    folder = tmp_path / "results/sample/board/checkpoint_1/no_masking"
    assert tmp_path / said["results"] == folder
    assert len(rows_of(folder / "scores.csv")) == 56 and len(list((folder / "panels").rglob("*.png"))) == 56
    again = subprocess.run([sys.executable, str(ROOT / "make_sample.py")], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and "image AUROC" in again.stdout


def test_metrics_are_those_of_the_maps(workplace, cli, monkeypatch):
    """Known maps come out of the networks; every figure in metrics.json follows from them."""
    rng = np.random.default_rng(3)
    planted = {}

    def detect(model, dataset, config, title, ranks=None):
        for idx in range(len(dataset)):
            sample = dataset[idx]
            mask = sample["mask"][0].numpy() > 0
            scores = np.clip(rng.normal(0.4 + 0.3 * mask, 0.15), 0, 1).astype(np.float32)
            image = sample["image"].permute(1, 2, 0).numpy()
            planted[title, idx] = scores, mask
            yield inference.NetworkOutput(idx, image, image, scores, mask)

    assert cli("--train")[0] == 0
    monkeypatch.setattr("engine.threshold.detect", detect)
    monkeypatch.setattr("engine.detection.detect", detect)
    status, out, _ = cli("--threshold", "--detection", "--set", "metrics.threshold_type=k_sigma", *DRAWN)
    assert status == 0
    folder = workplace / "results/tiny/tile/checkpoint_2/no_masking"
    assert out.splitlines()[-1] == f"results: {folder}"

    nominal = [scores for (title, _), (scores, _) in planted.items() if title.startswith("nominal")]
    assert len(nominal) == 2
    kept = json.loads((workplace / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking.json").read_text())
    pixels, images = np.concatenate([s.ravel() for s in nominal]), [metrics.image_score(s) for s in nominal]
    for scope, values in (("pixel", pixels), ("image", images)):
        values = np.asarray(values, np.float64)
        expected = {
            "max": values.max(), "p_quantile": np.percentile(values, 99), "k_sigma": values.mean() + 3 * values.std(),
        }  # fmt: skip
        assert kept[scope] == pytest.approx(expected, abs=1e-9)
    assert kept["pictures"] == 2 and kept["held_out"] is True

    test = [planted["test images", idx] for idx in range(6)]
    labels = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([metrics.image_score(anomaly_map) for anomaly_map, _ in test])
    assert [float(row["score"]) for row in rows_of(folder / "scores.csv")] == pytest.approx(scores)
    maps, truth = (np.concatenate([pair[i].ravel() for pair in test]) for i in (0, 1))
    for kind in ("k_sigma", "optimal"):
        content = json.loads((folder / kind / "metrics.json").read_text())
        assert set(content) == {*metrics.METRIC_KEYS, "notes"}
        assert content["image_auroc"] == pytest.approx(roc_auc_score(labels, scores))
        assert content["image_ap"] == pytest.approx(average_precision_score(labels, scores))
        assert content["pixel_auroc"] == pytest.approx(roc_auc_score(truth, maps), abs=1e-4)
        assert content["pixel_ap"] == pytest.approx(average_precision_score(truth, maps), abs=1e-4)
        predicted, outlined = scores > content["image_threshold"], maps > content["pixel_threshold"]
        assert content["accuracy"] == pytest.approx((predicted == labels).mean())
        assert content["true_positives"] == (predicted & (labels == 1)).sum()
        assert content["iou"] == pytest.approx((outlined & truth).sum() / (outlined | truth).sum(), abs=2e-3)
    content = json.loads((folder / "k_sigma/metrics.json").read_text())
    assert content["image_threshold"] == kept["image"]["k_sigma"]
    assert content["pixel_threshold"] == kept["pixel"]["k_sigma"]
    rows = rows_of(folder / "scores.csv")
    assert [row["path"] for row in rows[:4]] == [f"test/good/{i:03}.png" for i in range(3)] + ["test/spot/000.png"]
    assert [int(row["prediction"]) for row in rows] == (scores > content["image_threshold"]).astype(int).tolist()
    wrong = [row["path"] for row in rows if row["label"] != row["prediction"]]
    assert [row["path"] for row in rows_of(folder / "misclassified.csv")] == wrong
    assert {p.name for p in folder.glob("*.png")} == {
        *("roc.png", "precision_recall.png", "pro.png", "iou.png", "scores.png"),
        *(["mistakes.png"] if wrong else []),
    }
    panels = sorted(p.relative_to(folder / "panels").as_posix() for p in (folder / "panels").rglob("*.png"))
    assert panels == [f"{kind}/{i:03}.png" for kind in ("good", "spot") for i in range(3)]


def test_only_what_is_asked_for_is_drawn(workplace, cli):
    off = [f"metrics.{key}=false" for key in ("threshold", "auroc", "pro", "iou", "pr", "misclassifications")]
    arguments = [word for value in off for word in ("--set", value)]
    folder = workplace / "results/tiny/tile/checkpoint_2/no_masking"
    assert cli("--train", "--detection", *arguments, "--set", "metrics.visualisation=2")[0] == 0
    assert sorted(p.name for p in folder.iterdir()) == [
        *("curves.npz", "made_with.json", "optimal", "panels", "report.html", "scores.csv", "scores.png", "view"),
    ]
    panels, shown = folder / "panels", folder / "view/images"
    assert sorted(p.relative_to(shown).as_posix() for p in shown.rglob("*.jpg")) == [
        "good/000.png.jpg",
        "spot/002.png.jpg",
    ]
    assert sorted(p.relative_to(panels).as_posix() for p in panels.rglob("*.png")) == ["good/000.png", "spot/002.png"]
    assert cli("--detection", *arguments, "--set", "metrics.visualisation=errors")[0] == 0
    rows = rows_of(folder / "scores.csv")
    wrong = {row["path"].removeprefix("test/") for row in rows if row["label"] != row["prediction"]}
    assert {p.relative_to(panels).as_posix() for p in panels.rglob("*.png")} == wrong
    assert cli("--detection", *arguments, "--set", "metrics.visualisation=none")[0] == 0
    assert not list(panels.rglob("*.png")) and not list(shown.rglob("*")) and (folder / "report.html").is_file()


def test_metrics_of_other_weights_do_not_stay_beside_new_ones(workplace, cli):
    folder = workplace / "results/tiny/tile/checkpoint_2/no_masking"
    assert cli("--train", "--threshold", "--detection", "--set", "metrics.threshold_type=max")[0] == 0
    assert cli("--detection", "--set", "metrics.threshold_type=k_sigma")[0] == 0
    kinds = {path.parent.name for path in folder.glob("*/metrics.json")}
    assert kinds == {"max", "k_sigma", "optimal"}
    assert cli("--train", "--threshold", "--detection", "--set", "train.resume=never", "--set", "train.seed=1")[0] == 0
    assert {path.parent.name for path in folder.glob("*/metrics.json")} == {"p_quantile", "optimal"}


def test_every_image_goes_through_the_networks_once(workplace, cli, monkeypatch):
    assert cli("--train", "--threshold")[0] == 0
    seen = []
    forward = inference.DRAEM.forward
    monkeypatch.setattr(inference.DRAEM, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    assert cli("--detection")[0] == 0
    assert sum(seen) == 6


def test_the_originals_weights(workplace, cli):
    shutil.copytree(DATA / "official_format", workplace / "official")
    sets = ("--set", f"data.load_epoch={workplace}/official/{PAIR}.pckl", "--set", "model.base_width=8")
    status, out, _ = cli("--threshold", "--detection", *sets)
    assert status == 0 and "not known" in out
    assert out.splitlines()[-1].endswith(f"/results/tiny/tile/checkpoint_{PAIR}/no_masking")
    config_widths = cli("--detection", *sets[:2])
    assert config_widths[0] == 2 and "set model.base_width=8" in config_widths[2]
    (workplace / f"official/{PAIR}_seg.pckl").unlink()
    status, _, error = cli("--detection", *sets)
    assert status == 2 and f"{PAIR}_seg.pckl: missing" in error


def test_the_originals_weights_give_the_originals_maps():
    golden = np.load(DATA / "forward.npz")
    pair = {
        net: torch.load(DATA / f"official_format/{PAIR}{end}.pckl", weights_only=True)
        for net, end in (("reconstructive", ""), ("discriminative", "_seg"))
    }
    model = inference.DRAEM(8, 4).eval()
    model.load_state_dict({f"{net}.{key}": value for net, state in pair.items() for key, value in state.items()})
    with torch.no_grad():
        probability = torch.softmax(model(torch.from_numpy(golden["x"]))[1], dim=1)[:, 1]
    np.testing.assert_allclose(probability, golden["probability"], rtol=1e-5, atol=1e-7)


def test_val_split_0_says_where_thresholds_come_from(workplace, cli):
    status, out, _ = cli("--train", "--threshold", "--set", "data.val_split=0")
    assert status == 0 and "6 TRAINING images (val_split is 0" in out


def test_undefined_metrics_are_null_with_a_reason(workplace, cli):
    assert cli("--train", "--threshold")[0] == 0
    shutil.rmtree(workplace / "mvtec/tile/ground_truth")
    path = workplace / "results/tiny/tile/checkpoint_2/no_masking/optimal/metrics.json"
    status, out, _ = cli("--detection")
    content = json.loads(path.read_text())
    assert status == 0 and "3 defect images without a mask are left out" in out
    assert content["pixel_auroc"] is content["iou"] is content["pro"] is None
    assert content["notes"]["pixel_auroc"] == "no defect image has a mask" and content["image_auroc"] is not None
    shutil.rmtree(workplace / "mvtec/tile/test/good")
    assert cli("--detection")[0] == 0
    content = json.loads(path.read_text())
    assert content["image_auroc"] is None and content["notes"]["image_auroc"] == "test/ has no nominal image"
    assert cli("--detection", "--set", "metrics.threshold=false")[0] == 0  # panels without any threshold


def test_vanished_masks_are_named(workplace, cli):
    mask = np.zeros((40, 48), np.uint8)
    mask[5, 5] = 255
    write(workplace / "mvtec/tile/ground_truth/spot/001_mask.png", mask)
    status, out, _ = cli(*MODES)
    assert status == 0 and out.count("test/spot/001.png") == 1 and "masks that vanish" in out


def test_pictures_show_what_they_should(workplace, cli):
    """Panels and grids hold the arrays they are made of at known places."""
    assert cli("--train", "--detection", "--set", "metrics.threshold=false")[0] == 0
    panel = cv2.imread(str(workplace / "results/tiny/tile/checkpoint_2/no_masking/panels/spot/000.png"))
    image = cv2.resize(cv2.imread(str(workplace / "mvtec/tile/test/spot/000.png")), (32, 32))
    tile = cv2.resize(image, None, fx=6, fy=6, interpolation=cv2.INTER_NEAREST)
    places = cv2.matchTemplate(panel, tile, cv2.TM_SQDIFF)
    assert places.min() < 1 and cv2.minMaxLoc(places)[2][0] == 0  # the input stands first, unchanged
    # From 192 pixels on nothing is enlarged.
    assert cli("--detection", "--set", "metrics.threshold=false", "--set", "data.img_size=256")[0] == 0
    panel = cv2.imread(str(workplace / "results/tiny/tile/checkpoint_2/no_masking/panels/spot/000.png"))
    image = cv2.resize(cv2.imread(str(workplace / "mvtec/tile/test/spot/000.png")), (256, 256))
    places = cv2.matchTemplate(panel, image, cv2.TM_SQDIFF)
    assert places.min() < 1 and cv2.minMaxLoc(places)[2][0] == 0 and panel.shape[1] == 6 * (256 + 6)
    grid = cv2.imread(str(workplace / "checkpoints/tile/tiny/images/epoch_0002.png"))
    assert grid.shape[1] == 5 * (192 + 6)
