"""Masking and registration, from pictures to metrics."""

import json

import cv2
import numpy as np
import pytest
import skimage
from conftest import checked, planted_detections, write
from sklearn.metrics import average_precision_score, roc_auc_score

from config import load_config
from data.mvtec import TestSample, list_test
from evaluation import metrics
from inference import detect as inference
from inference import masking, preprocessing
from inference.preprocessing import Preprocessor, Technique, Variant
from registration import homography

REGION = ("--set", "masking.regions.tile=[[0, 10, 0, 48], [20, 24, 5, 9]]", "--set", "metrics.masking=true")


def test_regions_are_rectangles_with_ends_excluded():
    region = masking.region_mask([[0, 2, 0, 3], [1, 4, 4, 6]], (4, 6))
    assert region.sum() == 6 + 6 and region[1, 2] and not region[2, 2] and region[3, 5]
    for outside in ([0, 5, 0, 1], [0, 1, 0, 7], [2, 2, 0, 1], [-1, 1, 0, 1]):
        with pytest.raises(ValueError, match=r"not inside a picture of 6 x 4"):
            masking.region_mask([outside], (4, 6))


@pytest.mark.parametrize("size", [(8, 8), (24, 40), (64, 96), (96, 64)])
def test_a_resized_picture_outside_the_region_has_nothing_of_it(size):
    """The region lit, the rest dark: whatever the resize carries over must lie in the resized region."""
    region = masking.region_mask([[7, 12, 30, 31], [40, 47, 3, 9]], (48, 64))
    lit = cv2.resize(region.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0
    resized = masking.resize_region(region, size)
    assert not (lit & ~resized).any()
    assert resized.sum() < 3 * np.prod(size) * region.mean() + 40  # and not everything


def test_pre_masking_blackens_the_input_and_post_masking_does_not(workplace):
    config = load_config(workplace / "config.yaml", [REGION[1]])
    preprocessor = Preprocessor(config, preprocessing.TECHNIQUES[:3])
    pictures = list_test(workplace / "mvtec/tile")
    plain, pre = (preprocessor.dataset(pictures, [Technique(masking)])[4] for masking in ("post", "pre"))
    region = masking.resize_region(masking.region_mask([[0, 10, 0, 48], [20, 24, 5, 9]], (40, 48)), (32, 32))
    np.testing.assert_array_equal(plain["region"][0].numpy(), region)
    assert plain["valid"].all() and (plain["image"].numpy() > 0.3).all()
    assert (pre["image"].numpy()[:, region] == 0).all()
    np.testing.assert_array_equal(pre["image"].numpy()[:, ~region], plain["image"].numpy()[:, ~region])


@pytest.mark.parametrize("is_pre", [False, True])
def test_masked_pixels_count_nowhere(workplace, cli, monkeypatch, is_pre):
    """Maps are planted; thresholds and metrics follow from the pixels outside the region alone."""
    planted = {}
    detect = planted_detections(planted, np.random.default_rng(1))
    assert cli("--train", "--set", "train.epochs=1")[0] == 0
    monkeypatch.setattr("engine.threshold.detect", detect)
    monkeypatch.setattr("engine.detection.detect", detect)
    name = "pre_masking" if is_pre else "post_masking"
    status, out, _ = cli("--threshold", "--detection", *REGION, "--set", f"data.pre_masking={str(is_pre).lower()}")
    assert status == 0 and out.splitlines()[-1].endswith(f"checkpoint_1/{name}")
    content = json.loads((workplace / f"results/tiny/tile/checkpoint_1/{name}/p_quantile/metrics.json").read_text())
    region = planted["test images", Variant(False, is_pre), 0].region
    test = [planted["test images", Variant(False, is_pre), idx] for idx in range(6)]
    maps, truth = (np.concatenate([getattr(one, key)[~region] for one in test]) for key in ("anomaly_map", "mask"))
    assert content["pixel_auroc"] == pytest.approx(roc_auc_score(truth, maps), abs=1e-4)
    assert content["pixel_ap"] == pytest.approx(average_precision_score(truth, maps), abs=1e-4)
    scores = [metrics.image_score(np.where(region, np.float32(0), one.anomaly_map)) for one in test]
    assert content["image_auroc"] == pytest.approx(roc_auc_score([0, 0, 0, 1, 1, 1], scores))
    assert f"{6 * region.sum():,} of 6,144 pixels" in content["notes"]["left_out"]
    kept = json.loads((workplace / f"checkpoints/tile/tiny/thresholds/checkpoint_1/{name}.json").read_text())
    nominal = [planted["nominal images", Variant(False, is_pre), idx].anomaly_map for idx in range(2)]
    assert kept["pixel"]["max"] == max(one[~region].max() for one in nominal)
    expected = np.percentile(np.concatenate([one[~region] for one in nominal]).astype(float), 99)
    assert kept["pixel"]["p_quantile"] == pytest.approx(expected) and kept["pixels_left_out"] == 2 * region.sum()


def test_a_mask_file_is_a_region_too(workplace):
    region = np.zeros((40, 48), np.uint8)
    region[5:9, 7:30] = 255
    path = write(workplace / "region.png", region)
    pictures = list_test(workplace / "mvtec/tile")
    samples = []
    for value in (path.as_posix(), "[5, 9, 7, 30]"):
        config = load_config(workplace / "config.yaml", [f"masking.regions.tile={value}"])
        preprocessor = Preprocessor(config, [Technique("post")])
        samples.append(preprocessor.dataset(pictures, [Technique("post")])[0]["region"].numpy())
    np.testing.assert_array_equal(*samples)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "metrics.masking=true"], ["masking.regions.tile", "no region"]),
        ([*REGION[2:], "--set", "masking.regions.tile=[[0, 41, 0, 4]]"], ["masking.regions.tile", "48 x 40", "/0"]),
        ([*REGION[2:], "--set", "masking.regions.tile=[[4, 1, 0, 4]]"], ["masking.regions.tile", "y0 < y1"]),
        ([*REGION[2:], "--set", "masking.regions.tile=nothing.png"], ["nothing.png", "cannot be read"]),
        ([*REGION[2:], "--set", "masking.regions.tile={root}/small.png"], ["masking.regions.tile", "9 x 9", "48 x 40"]),
        ([*REGION[2:], "--set", "masking.regions.tile=[[0, 40, 0, 48]]"], ["everything is left out"]),
        (
            ["--set", "data.image_registration=true", "--set", "data.registration_reference=none.png"],
            ["none.png", "cannot be read"],
        ),
    ],
)
def test_mistakes(workplace, cli, arguments, words):
    assert cli("--train", "--set", "train.epochs=1")[0] == 0
    write(workplace / "small.png", np.zeros((9, 9), np.uint8))
    arguments = [argument.replace("{root}", workplace.as_posix()) for argument in arguments]
    checked(cli("--threshold", *arguments), words)


def test_thresholds_of_other_regions_are_refused(workplace, cli):
    assert cli("--train", "--threshold", *REGION)[0] == 0
    moved = ("--set", "masking.regions.tile=[[0, 11, 0, 48]]", *REGION[2:])
    checked(cli("--detection", *moved), ["post_masking.json", "regions", "--threshold True"])
    assert cli("--threshold", "--detection", *moved)[0] == 0


@pytest.fixture
def shifted(tmp_path):
    """Pictures of one scene from slightly other places, the last of them of something else; and the homographies."""
    scene = cv2.imread(f"{skimage.data_dir}/camera.png", cv2.IMREAD_COLOR)
    scene = cv2.resize(scene, (300, 260), interpolation=cv2.INTER_AREA)
    rng = np.random.default_rng(5)
    reference, pictures, homographies = scene[20:240, 20:280], [], []
    write(tmp_path / "reference.png", reference)
    for i in range(3):
        dy, dx = rng.integers(-12, 13, 2)
        image = scene[20 + dy : 240 + dy, 20 + dx : 280 + dx].copy()
        mask = np.zeros(image.shape[:2], np.uint8)
        image[100:130, 90:120], mask[100:130, 90:120] = 255, 255
        path = write(tmp_path / f"mvtec/cam/test/spot/{i}.png", image)
        mask_path = write(tmp_path / f"mvtec/cam/ground_truth/spot/{i}_mask.png", mask)
        pictures.append(TestSample(path, True, f"test/spot/{i}.png", (mask_path,)))
        homographies.append((dy, dx))
    good = write(tmp_path / "mvtec/cam/test/good/0.png", np.full((220, 260, 3), 90))
    pictures.append(TestSample(good, False, "test/good/0.png"))
    (tmp_path / "c.yaml").write_text("{}")
    sets = [f"data.registration_reference={tmp_path}/reference.png", "data.img_size=[224, 256]"]
    return load_config(tmp_path / "c.yaml", sets), pictures, homographies, reference


def test_registered_pictures_and_masks_lie_over_the_reference(shifted):
    config, pictures, homographies, reference = shifted
    preprocessor = Preprocessor(config, [Technique("no", True)])
    dataset = preprocessor.dataset(pictures, [Technique("no", True)])
    expected = cv2.resize(reference, (256, 224)).astype(np.float32) / 255
    for sample, (dy, dx) in zip((dataset[i] for i in range(3)), homographies, strict=True):
        mask, valid = sample["mask"][0].numpy() > 0, sample["valid"][0].numpy()
        rows, columns = np.nonzero(mask)
        # the square that stood at 100, 90 of the shifted picture
        assert rows.min() == pytest.approx((100 + dy) * 224 / 220, abs=2)
        assert columns.min() == pytest.approx((90 + dx) * 256 / 260, abs=2)
        compared = valid & ~cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool)
        image = sample["image"].permute(1, 2, 0).numpy() / np.float32(255)
        assert np.abs(image - expected)[compared].mean() < 0.01  # unregistered it is 0.06 and more
        share = 1 - (1 - abs(dy) / 220) * (1 - abs(dx) / 260)
        assert 1 - valid.mean() == pytest.approx(share, abs=0.015)
    assert preprocessor.registration.unregistered(pictures) == ["test/good/0.png"]
    assert dataset[3]["valid"].all() and int(dataset[3]["image"].min()) == 90


def test_each_picture_is_registered_once(shifted, monkeypatch):
    config, pictures, *_ = shifted
    preprocessor, count = Preprocessor(config, [Technique("no", True)]), []
    counted = lambda *pair: count.append(1) or homography.register(*pair)  # noqa: E731
    monkeypatch.setattr("registration.register.register_scene", counted)
    for _ in range(3):
        preprocessor.dataset(pictures, [Technique("no", True)])
        preprocessor.dataset(pictures[:2], [Technique("pre", True)])
    assert len(count) == 4


def test_what_a_technique_leaves_out_is_zero_and_not_valid():
    ones, region = np.ones((4, 4), np.float32), np.zeros((4, 4), bool)
    region[0] = True
    valid = np.ones((4, 4), bool)
    valid[:, 0] = False
    found = inference.NetworkOutput(0, None, None, ones, region, valid, region)
    assert (preprocessing.apply_valid_mask(found, Technique("no", True)).anomaly_map == valid).all()
    for name in ("pre", "post"):
        seen = preprocessing.apply_valid_mask(found, Technique(name))
        assert (seen.anomaly_map == (valid & ~region)).all() and (seen.valid == (valid & ~region)).all()
    everywhere = inference.NetworkOutput(0, None, None, ones, region, ~region | True, region)
    assert preprocessing.apply_valid_mask(everywhere, Technique()).valid is None
