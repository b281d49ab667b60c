"""engine/detection.py on MVTec LOCO: sPRO from the masks' files, with the saturation of defects_config.json."""

import json

import cv2
import layout_fixtures
import numpy as np
import pytest
import torch
from conftest import image_key, noisy_maps, rows_of, write
from sklearn.metrics import auc

from config_file import load_config
from data.layouts.tree import open_tree
from data.mvtec import with_masks_read
from engine import detection
from inference.preprocessing import Preprocessor, Technique, Variant

SETTINGS = """
data: {{data_path: '{root}', category: pushpins, anomaly_source_path: '{root}/textures', checkpoint_path: '{root}/c',
  results_path: '{root}/r', run_name: tiny, img_size: 32, num_workers: 0}}
model: {{base_width: 1, base_channels: 1}}
train: {{epochs: 1, batch_size: 4, precision: fp32, device: cpu, visualize: false, save_from: 1, save_every: 1}}
metrics: {{auroc: false, pr: false, pro: false, iou: false, visualisation: none}}
"""


@pytest.fixture
def settings(tmp_path):
    layout_fixtures.loco(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(3):
        write(tmp_path / f"textures/{i}.png", rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    path = tmp_path / "own.yaml"
    path.write_text(SETTINGS.format(root=tmp_path.as_posix()))
    return path


def test_masks_are_prepared_one_by_one_as_the_image_is(settings, tmp_path, monkeypatch):
    config = load_config(settings)
    samples, _ = with_masks_read(open_tree("mvtec", tmp_path / "pushpins").test(), (32, 32))
    preprocessor = Preprocessor(config, [Technique()])
    two = next(one for one in samples if len(one.masks) == 2)
    found = detection._defects(preprocessor, Variant(False, False), two)
    dataset = preprocessor.dataset(samples, [Technique()])
    union = dataset[samples.index(two)]["mask"][0].numpy() > 0
    assert len(found) == 2 and (found[0] | found[1]).sum() > 40 and not (np.logical_or(*found) & ~union).any()
    assert detection._defects(preprocessor, Variant(False, False), samples[0]) == []
    # Registered: the reference shows the image moved by twelve pixels, eight of the resized ones.
    shift = np.array([[1.0, 0, 12], [0, 1, 0], [0, 0, 1]])
    monkeypatch.setattr(preprocessor.registration, "homography_of", lambda path: shift)
    monkeypatch.setattr(
        preprocessor.registration,
        "warp",
        lambda image, homography, mask: (
            image,
            cv2.warpPerspective(mask, homography, (48, 40), flags=cv2.INTER_NEAREST),
            np.ones((40, 48), bool),
        ),
    )
    moved = detection._defects(preprocessor, Variant(True, False), two)
    np.testing.assert_array_equal(moved[0][:, 8:], found[0][:, :-8])


def expected(root, planted) -> float:
    """sPRO of the planted maps: each file's pixels of one value, and the file of thresholds, read here."""
    entries = {one["pixel_value"]: one for one in json.loads((root / "defects_config.json").read_text())}
    maps = {key[1]: value for key, value in planted.items()}
    nominal, defects = [], []
    for path in sorted((root / "test").rglob("*.png")):
        image = cv2.resize(cv2.imread(str(path)), (32, 32), interpolation=cv2.INTER_LINEAR)
        scores, union = maps[image_key(torch.from_numpy(image.transpose(2, 0, 1)))], np.zeros((32, 32), bool)
        for file in (root / "ground_truth" / path.relative_to(root / "test").with_suffix("")).glob("*.png"):
            stored = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
            entry, area = entries[int(stored.max())], (stored > 0).sum()
            share = entry["saturation_threshold"] * (1 if entry["relative_saturation"] else 1 / area)
            mask = cv2.resize((stored > 0).astype(np.uint8) * 255, (32, 32), interpolation=cv2.INTER_LINEAR) == 255
            union |= mask
            defects.append((scores[mask], min(share, 1) * mask.sum()))
        nominal.append(scores[~union])
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([*nominal, *(scores for scores, _ in defects)]))[::-1]:
        rates.append((np.concatenate(nominal) >= threshold).mean())
        overlaps.append(np.mean([min((scores >= threshold).sum() / limit, 1) for scores, limit in defects]))
    inside = np.searchsorted(rates, 0.05, side="right")
    ends = np.interp(0.05, rates, overlaps)
    return auc([*rates[:inside], 0.05], [*overlaps[:inside], ends]) / 0.05


def test_spro_follows_from_maps_mask_files_and_configuration(settings, call, plant, tmp_path):
    arguments = ("--config", str(settings), "--thresholds", "optimal", "--maskings", "no", "--registrations", "False")
    arguments += ("--categories", "pushpins")
    assert call("main", "--config", str(settings), "--train")[0] == 0
    planted, values = plant(noisy_maps(0)), []
    for threshold in (10, 100):  # pixels of the mask that suffice
        config = tmp_path / "pushpins/defects_config.json"
        entries = json.loads(config.read_text())
        entries[0]["saturation_threshold"] = threshold
        config.write_text(json.dumps(entries))
        planted.clear()
        assert call("evaluate_checkpoints", *arguments)[0] == 0
        [row] = [one for one in rows_of(tmp_path / "r/tiny/summary.csv") if one["category"] == "pushpins"]
        values.append(float(row["spro_05"]))
        assert values[-1] == pytest.approx(expected(tmp_path / "pushpins", planted), abs=1e-4)
        assert float(row["spro_05_low"]) < values[-1] < float(row["spro_05_high"])
        folder = tmp_path / "r/tiny/pushpins/checkpoint_1/no_masking/optimal"
        assert "sPRO" in (folder / "metrics.txt").read_text()
        kinds = {row["defect"]: row for row in rows_of(folder / "defects.csv")}
        of_kinds = {kind: float(row["spro_05"]) for kind, row in kinds.items()}
        together = (3 * of_kinds["logical_anomalies"] + of_kinds["structural_anomalies"]) / 4  # weighted by mask files
        assert together == pytest.approx(values[-1], abs=1e-6)
    assert values[0] > values[1] + 0.05
