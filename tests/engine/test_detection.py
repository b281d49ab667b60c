"""engine/detection.py, --detection: metrics, files and notes of a result; also reporting/result.py, measurements.py."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
from conftest import DRAWN, detect, image_key, metrics_of, noisy_maps, rows_of, write
from messages import assert_line, assert_names, lines_with
from sklearn.metrics import average_precision_score, roc_auc_score

from data.mvtec import list_test
from data_loader import DRAEMTestDataset
from evaluation import metrics
from inference import checkpoint

MODES = ("--train", "--threshold", "--detection")


def test_metrics_follow_from_the_anomaly_maps(workplace, cli, plant):
    """Known maps come out of the networks; every value in metrics.json follows from them."""
    assert cli("--train")[0] == 0
    planted = plant(noisy_maps(3))
    status, out, _ = cli("--threshold", "--detection", "--set", "metrics.threshold_type=k_sigma", *DRAWN)
    assert status == 0
    folder = workplace / "results/tiny/tile/checkpoint_2/no_masking"
    assert out.splitlines()[-1] == f"results: {folder}"
    [weights] = {weights for weights, _ in planted}

    def map_of(path):
        image = cv2.resize(cv2.imread(str(path)), (32, 32)).transpose(2, 0, 1)
        return planted[weights, image_key(np.ascontiguousarray(image))]

    held_out = checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")["images"]["held_out"]
    nominal = [map_of(workplace / "mvtec/tile/train" / name) for name in held_out]
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

    samples = DRAEMTestDataset(list_test(workplace / "mvtec/tile"), (32, 32))
    paths = [path for kind in ("good", "spot") for path in sorted((workplace / "mvtec/tile/test" / kind).iterdir())]
    test = [(map_of(path), samples[idx]["mask"][0].numpy()) for idx, path in enumerate(paths)]
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


def test_only_the_curves_and_panels_asked_for_are_drawn(workplace, cli):
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


def test_metrics_of_other_weights_are_removed(workplace, cli):
    folder = workplace / "results/tiny/tile/checkpoint_2/no_masking"
    assert cli("--train", "--threshold", "--detection", "--set", "metrics.threshold_type=max")[0] == 0
    assert cli("--detection", "--set", "metrics.threshold_type=k_sigma")[0] == 0
    kinds = {path.parent.name for path in folder.glob("*/metrics.json")}
    assert kinds == {"max", "k_sigma", "optimal"}
    assert cli("--train", "--threshold", "--detection", "--set", "train.resume=never", "--set", "train.seed=1")[0] == 0
    assert {path.parent.name for path in folder.glob("*/metrics.json")} == {"p_quantile", "optimal"}


def test_every_image_goes_through_the_networks_once(workplace, cli, batch_sizes):
    assert cli("--train", "--threshold")[0] == 0
    batch_sizes.clear()
    assert cli("--detection")[0] == 0
    assert sum(batch_sizes) == 6


def test_undefined_metrics_are_null_with_a_reason(workplace, cli):
    assert cli("--train", "--threshold")[0] == 0
    shutil.rmtree(workplace / "mvtec/tile/ground_truth")
    path = workplace / "results/tiny/tile/checkpoint_2/no_masking/optimal/metrics.json"
    status, out, _ = cli("--detection")
    content = json.loads(path.read_text())
    assert status == 0
    assert_line(out, 3, re.compile("(?i)mask"))
    assert content["pixel_auroc"] is content["iou"] is content["pro"] is None
    assert {"pixel_auroc", "iou", "pro"} <= content["notes"].keys() and content["image_auroc"] is not None
    assert "image_auroc" not in content["notes"]
    shutil.rmtree(workplace / "mvtec/tile/test/good")
    assert cli("--detection")[0] == 0
    content = json.loads(path.read_text())
    assert content["image_auroc"] is None and content["notes"]["image_auroc"]
    assert cli("--detection", "--set", "metrics.threshold=false")[0] == 0  # panels without any threshold


def test_masks_that_vanish_when_resized_are_named(workplace, cli):
    mask = np.zeros((40, 48), np.uint8)
    mask[5, 5] = 255
    write(workplace / "mvtec/tile/ground_truth/spot/001_mask.png", mask)
    status, out, _ = cli(*MODES)
    assert status == 0 and len(lines_with(out, "test/spot/001.png")) == 1


def test_a_high_image_auroc_without_localization_is_reported(two, cli, plant):
    """Anomalous images score higher, but at a corner where no mask is."""

    def corner(model, image):
        anomaly_map = np.full(image.shape[1:], 0.1)
        anomaly_map[-20:, -20:] = 0.9 if image.max() > 0.8 else 0.2
        return anomaly_map

    plant(corner)
    large = ("--set", "data.img_size=128")
    out = detect(cli, *large)
    found = metrics_of(two)
    assert found["image_auroc"] == 1 and found["hit_rate"] == 0 and found["pixel_ap"] < 0.3
    assert_names(found["notes"]["masks_not_found"], "0.00")
    assert found["notes"]["masks_not_found"] in out
    plant(lambda model, image: 0.1 + 0.8 * (image[0] > 0.75))
    detect(cli, *large)
    found = metrics_of(two)
    assert found["hit_rate"] == 1 and "masks_not_found" not in found["notes"]


def test_confidence_intervals_contain_the_values(two, cli):
    detect(cli)
    found = metrics_of(two)
    for key in ("image_auroc", "pixel_ap", "pro", "accuracy", "iou", "true_positives"):
        assert found[f"{key}_low"] <= found[key] <= found[f"{key}_high"], key
    again = metrics_of(two)
    detect(cli)
    assert metrics_of(two) == again


@pytest.mark.parametrize(("wanted", "count"), [("all", 6), ("2", 2), ("errors", 6)])
def test_only_images_that_may_be_drawn_are_kept_until_the_threshold_is_known(
    workplace, cli, monkeypatch, wanted, count
):
    """Without nominal thresholds panels wait for the optimal one, with 11 bytes a pixel on the disk, as NumPy shows."""
    assert cli("--train", "--set", "train.epochs=1", "--set", "train.visualize=false")[0] == 0
    waiting, save = [], np.save
    monkeypatch.setattr(np, "save", lambda file, array: waiting.append(np.asarray(array).nbytes) or save(file, array))
    assert cli("--detection", "--set", "metrics.threshold=false", "--set", f"metrics.visualisation={wanted}")[0] == 0
    per_pixel = 3 + 3 + 4 + 1  # image and reconstruction in 8 bits, map, mask
    assert sum(waiting) == count * (per_pixel * 32 * 32 + 8)
