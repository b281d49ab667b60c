"""training/validation.py, val_ap: average precision on synthetic anomalies of held-out images."""

import cv2
import numpy as np
import pytest
from conftest import image_key, model_key, rows_of, write
from sklearn.metrics import average_precision_score

from config_file import load_config
from model import DRAEM
from training import validation
from training.data import datasets, find_files, split


def test_val_ap_is_computed_at_kept_epochs_only(two, call):
    sets = ("--set", "train.save_from=3", "--set", "train.epochs=4", "--set", "train.save_every=5")
    assert call("main", "--train", *sets)[0] == 0
    log = rows_of(two / "checkpoints/tile/tiny/train_log.csv")
    assert [bool(row["val_ap"]) for row in log] == [True, True, False, True]  # two of the run before, the last always
    assert all(0 < float(row["val_ap"]) <= 1 for row in log if row["val_ap"])
    assert call("main", "--train", "--set", "data.val_split=0", "--set", "train.resume=never")[0] == 0
    assert not any(row["val_ap"] for row in rows_of(two / "checkpoints/tile/tiny/train_log.csv"))


def random_map(model, image):
    """Of an image always the same map."""
    return np.random.default_rng(list(image_key(image))).random(image.shape[1:])


def test_val_ap_is_the_average_precision_of_the_maps(two, monkeypatch, plant):
    """Half of the samples stay clean, none is of the training stream, and the same come each time."""
    monkeypatch.setattr(validation, "SAMPLES", 200)  # the real number
    config = load_config(two / "config.yaml")
    _, samples = datasets(config, split(config, find_files(config)))
    assert len(samples) == 200 and {samples.name(i) for i in range(200)} == set(map(str, samples.files))
    again = datasets(config, split(config, find_files(config)))[1]
    clean = 0
    for idx in range(200):
        np.testing.assert_array_equal(samples[idx]["image"], again[idx]["image"])
        clean += not samples[idx]["mask"].any()
    assert 70 <= clean <= 130
    planted, model = plant(random_map), DRAEM(4, 4)
    value, error = validation.synthetic_pixel_ap(model, samples, config)
    maps = [planted[model_key(model.state_dict()), image_key(samples[idx]["image"])] for idx in range(200)]
    truth = np.concatenate([samples[idx]["mask"].numpy().ravel() for idx in range(200)])
    expected = average_precision_score(truth, np.concatenate([one.ravel() for one in maps]))
    assert value == pytest.approx(expected, abs=1e-5) and 0 < error < 0.2


def test_the_error_of_val_ap_of_a_single_held_out_image_is_not_known(workplace):
    config = load_config(workplace / "config.yaml", ["data.val_split=0.17", "data.img_size=64"])
    _, samples = datasets(config, split(config, find_files(config)))
    value, error = validation.synthetic_pixel_ap(DRAEM(4, 4), samples, config)
    assert len(samples.files) == 1 and 0 < value < 1 and error is None


@pytest.mark.parametrize("setting", ["never", "auto"])
def test_synthetic_anomalies_of_gray_images_are_gray_where_those_of_the_training_are(workplace, setting):
    for path in sorted((workplace / "mvtec/tile/train/good").iterdir()):
        write(path, np.repeat(cv2.imread(str(path))[..., :1], 3, axis=2))
    overrides = [f"synthesis.gray_textures={setting}", "synthesis.own_images=1.0"]  # the second only in the training
    config = load_config(workplace / "config.yaml", overrides)
    _, samples = datasets(config, split(config, find_files(config)))
    filled = [sample["image"][:, sample["mask"][0]] for sample in map(samples.__getitem__, range(40))]
    spread = max(float((one.amax(0) - one.amin(0)).max()) for one in filled if one.numel())
    assert (spread < 1e-6) == (setting == "auto")
