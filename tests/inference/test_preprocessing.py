"""inference/preprocessing.py: masking and registration, from images to metrics."""

import json
import re

import cv2
import numpy as np
import pytest
import skimage
from conftest import image_key, noisy_maps, write
from messages import assert_names, assert_user_error
from sklearn.metrics import average_precision_score, roc_auc_score

from config_file import load_config
from data.mvtec import TestSample, list_test
from evaluation import metrics
from inference import checkpoint, embedded_assets, masking, preprocessing
from inference import detect as inference
from inference.preprocessing import Preprocessor, Technique
from registration import homography

ANY_IMAGE = re.compile(r"/00\d\.png")
REGION = ("--set", "masking.regions.tile=[[0, 10, 0, 48], [20, 24, 5, 9]]", "--set", "metrics.masking=true")


def test_pre_masking_blackens_the_input_and_post_masking_does_not(workplace):
    config = load_config(workplace / "config.yaml", [REGION[1]])
    preprocessor = Preprocessor(config, preprocessing.TECHNIQUES[:3])
    images = list_test(workplace / "mvtec/tile")
    plain, pre = (preprocessor.dataset(images, [Technique(masking)])[4] for masking in ("post", "pre"))
    region = masking.resize_region(masking.region_mask([[0, 10, 0, 48], [20, 24, 5, 9]], (40, 48)), (32, 32))
    np.testing.assert_array_equal(plain["region"][0].numpy(), region)
    assert plain["valid"].all() and (plain["image"].numpy() > 0.3).all()
    assert (pre["image"].numpy()[:, region] == 0).all()
    np.testing.assert_array_equal(pre["image"].numpy()[:, ~region], plain["image"].numpy()[:, ~region])


@pytest.mark.parametrize("is_pre", [False, True])
def test_masked_pixels_count_nowhere(workplace, cli, plant, is_pre):
    """Maps are planted; thresholds and metrics follow from the pixels outside the region alone."""
    assert cli("--train", "--set", "train.epochs=1")[0] == 0
    planted = plant(noisy_maps(1))
    name = "pre_masking" if is_pre else "post_masking"
    status, out, _ = cli("--threshold", "--detection", *REGION, "--set", f"data.pre_masking={str(is_pre).lower()}")
    assert status == 0 and out.splitlines()[-1].endswith(f"checkpoint_1/{name}")
    content = json.loads((workplace / f"results/tiny/tile/checkpoint_1/{name}/p_quantile/metrics.json").read_text())
    preprocessor = Preprocessor(load_config(workplace / "config.yaml", [REGION[1]]), preprocessing.TECHNIQUES[:3])
    [weights] = {weights for weights, _ in planted}

    def found(images):
        samples = preprocessor.dataset(images, [Technique("pre" if is_pre else "post")])
        return [(planted[weights, image_key(sample["image"])], sample["mask"][0].numpy()) for sample in samples]

    region = masking.resize_region(masking.region_mask([[0, 10, 0, 48], [20, 24, 5, 9]], (40, 48)), (32, 32))
    test = found(list_test(workplace / "mvtec/tile"))
    maps, truth = (np.concatenate([pair[i][~region] for pair in test]) for i in (0, 1))
    assert content["pixel_auroc"] == pytest.approx(roc_auc_score(truth, maps), abs=1e-4)
    assert content["pixel_ap"] == pytest.approx(average_precision_score(truth, maps), abs=1e-4)
    scores = [metrics.image_score(np.where(region, np.float32(0), anomaly_map)) for anomaly_map, _ in test]
    assert content["image_auroc"] == pytest.approx(roc_auc_score([0, 0, 0, 1, 1, 1], scores))
    assert_names(content["notes"]["left_out"], f"{6 * region.sum():,} of 6,144")
    kept = json.loads((workplace / f"checkpoints/tile/tiny/thresholds/checkpoint_1/{name}.json").read_text())
    held_out = checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")["images"]["held_out"]
    files = [workplace / "mvtec/tile/train" / file for file in held_out]
    nominal = [anomaly_map[~region] for anomaly_map, _ in found([TestSample(file, False, file.name) for file in files])]
    assert len(nominal) == 2 and kept["pixel"]["max"] == max(pixels.max() for pixels in nominal)
    expected = np.percentile(np.concatenate(nominal).astype(float), 99)
    assert kept["pixel"]["p_quantile"] == pytest.approx(expected) and kept["pixels_left_out"] == 2 * region.sum()


def test_a_mask_file_as_a_region(workplace):
    region = np.zeros((40, 48), np.uint8)
    region[5:9, 7:30] = 255
    path = write(workplace / "region.png", region)
    images = list_test(workplace / "mvtec/tile")
    samples = []
    for value in (path.as_posix(), "[5, 9, 7, 30]"):
        config = load_config(workplace / "config.yaml", [f"masking.regions.tile={value}"])
        preprocessor = Preprocessor(config, [Technique("post")])
        samples.append(preprocessor.dataset(images, [Technique("post")])[0]["region"].numpy())
    np.testing.assert_array_equal(*samples)


def test_a_file_that_has_changed_since_it_was_embedded_is_noted(workplace):
    path = write(workplace / "region.png", np.pad(np.full((4, 23), 255, np.uint8), ((5, 31), (7, 18))))
    reference = sorted((workplace / "mvtec/tile/train/good").iterdir())[0]
    settings = [f"masking.regions.tile={path.as_posix()}", "metrics.masking=true", "data.image_registration=true"]
    config, technique = load_config(workplace / "config.yaml", settings), Technique("post", True)
    embedded = embedded_assets.embed(config)
    assert Preprocessor(config, [technique], embedded=embedded).notes == []
    for file in (path, reference):
        write(file, 255 - cv2.imread(str(file), cv2.IMREAD_UNCHANGED))
    preprocessor = Preprocessor(config, [technique], embedded=embedded)
    assert_names(preprocessor.notes[0], path, "masking.regions.tile")
    assert_names(preprocessor.notes[1], reference, "data.registration_reference")
    assert preprocessor.region((40, 48), path).sum() == 4 * 23
    assert len(Preprocessor(config, [Technique("no")], embedded=embedded).notes) == 0
    reference.unlink()
    assert len(Preprocessor(config, [technique], embedded=embedded).notes) == 1


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--set", "metrics.masking=true"], ["masking.regions.tile", "metrics.masking=false"]),
        (
            [*REGION[2:], "--set", "masking.regions.tile=[[0, 41, 0, 4]]"],
            ["masking.regions.tile", "48 x 40", ANY_IMAGE],
        ),
        ([*REGION[2:], "--set", "masking.regions.tile=[[4, 1, 0, 4]]"], ["masking.regions.tile", "[4, 1, 0, 4]"]),
        ([*REGION[2:], "--set", "masking.regions.tile=nothing.png"], ["nothing.png"]),
        ([*REGION[2:], "--set", "masking.regions.tile={root}/small.png"], ["masking.regions.tile", "9 x 9", "48 x 40"]),
        ([*REGION[2:], "--set", "masking.regions.tile=[[0, 40, 0, 48]]"], ["masking.regions.tile"]),
        (
            ["--set", "data.image_registration=true", "--set", "data.registration_reference=none.png"],
            ["data.registration_reference", "none.png"],
        ),
    ],
)
def test_regions_that_do_not_fit_are_user_errors(workplace, cli, arguments, names):
    assert cli("--train", "--set", "train.epochs=1")[0] == 0
    write(workplace / "small.png", np.zeros((9, 9), np.uint8))
    arguments = [argument.replace("{root}", workplace.as_posix()) for argument in arguments]
    assert_user_error(cli("--threshold", *arguments), *names)


@pytest.fixture
def shifted(tmp_path):
    """Images of one scene, shifted, the last of something else; and the shifts."""
    scene = cv2.imread(f"{skimage.data_dir}/camera.png", cv2.IMREAD_COLOR)
    scene = cv2.resize(scene, (300, 260), interpolation=cv2.INTER_AREA)
    rng = np.random.default_rng(5)
    reference, images, homographies = scene[20:240, 20:280], [], []
    write(tmp_path / "reference.png", reference)
    for i in range(3):
        dy, dx = rng.integers(-12, 13, 2)
        image = scene[20 + dy : 240 + dy, 20 + dx : 280 + dx].copy()
        mask = np.zeros(image.shape[:2], np.uint8)
        image[100:130, 90:120], mask[100:130, 90:120] = 255, 255
        path = write(tmp_path / f"mvtec/cam/test/spot/{i}.png", image)
        mask_path = write(tmp_path / f"mvtec/cam/ground_truth/spot/{i}_mask.png", mask)
        images.append(TestSample(path, True, f"test/spot/{i}.png", (mask_path,)))
        homographies.append((dy, dx))
    good = write(tmp_path / "mvtec/cam/test/good/0.png", np.full((220, 260, 3), 90))
    images.append(TestSample(good, False, "test/good/0.png"))
    (tmp_path / "c.yaml").write_text("{}")
    sets = [f"data.registration_reference={tmp_path}/reference.png", "data.img_size=[224, 256]"]
    return load_config(tmp_path / "c.yaml", sets), images, homographies, reference


def test_registered_images_and_masks_are_aligned_with_the_reference(shifted):
    config, images, homographies, reference = shifted
    preprocessor = Preprocessor(config, [Technique("no", True)])
    dataset = preprocessor.dataset(images, [Technique("no", True)])
    expected = cv2.resize(reference, (256, 224)).astype(np.float32) / 255
    for sample, (dy, dx) in zip((dataset[i] for i in range(3)), homographies, strict=True):
        mask, valid = sample["mask"][0].numpy() > 0, sample["valid"][0].numpy()
        rows, columns = np.nonzero(mask)
        # The square is at 100, 90 of the shifted image.
        assert rows.min() == pytest.approx((100 + dy) * 224 / 220, abs=2)
        assert columns.min() == pytest.approx((90 + dx) * 256 / 260, abs=2)
        compared = valid & ~cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool)
        image = sample["image"].permute(1, 2, 0).numpy() / np.float32(255)
        assert np.abs(image - expected)[compared].mean() < 0.01  # unregistered it is 0.06 and more
        share = 1 - (1 - abs(dy) / 220) * (1 - abs(dx) / 260)
        assert 1 - valid.mean() == pytest.approx(share, abs=0.015)
    assert preprocessor.registration.unregistered(images) == ["test/good/0.png"]
    assert dataset[3]["valid"].all() and int(dataset[3]["image"].min()) == 90


def test_each_image_is_registered_once(shifted, monkeypatch):
    config, images, *_ = shifted
    preprocessor, count, find = Preprocessor(config, [Technique("no", True)]), [], cv2.findHomography
    monkeypatch.setattr(cv2, "findHomography", lambda *a, **b: count.append(1) or find(*a, **b))
    for image in images:
        homography.register(cv2.imread(str(image.path)), cv2.imread(config.data.registration_reference))
    once = len(count)
    assert once >= 3
    count.clear()
    for _ in range(3):
        preprocessor.dataset(images, [Technique("no", True)])
        preprocessor.dataset(images[:2], [Technique("pre", True)])
    assert len(count) == once


def test_pixels_that_a_technique_leaves_out_are_zero_and_not_valid():
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
