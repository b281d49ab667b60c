"""inference/detector.py, the Python entrance: images in, verdicts out."""

import shutil

import cv2
import numpy as np
import pytest
from conftest import rows_of, write
from messages import raises_user_error

from inference.detector import Detector


def test_masking_and_registration_come_from_the_checkpoint(workplace, cli):
    region = np.zeros((40, 48), np.uint8)
    region[:20] = 255
    write(workplace / "region.png", region)
    settings = ("--set", f"masking.regions={{tile: {workplace / 'region.png'}}}", "--set", "metrics.masking=true")
    settings += ("--set", "data.image_registration=true")
    assert cli("--train", "--threshold", "--detection", *settings)[0] == 0
    expected = rows_of(workplace / "results/tiny/tile/checkpoint_2/post_masking_registered/scores.csv")
    shutil.move(workplace / "mvtec", workplace / "images")
    (workplace / "region.png").unlink()
    detector = Detector.load(workplace / "checkpoints/tile/tiny")
    assert detector.technique.name == "post_masking_registered" and detector.thresholds
    for row in expected:
        found = detector(cv2.imread(str(workplace / "images/tile" / row["path"])))
        assert found.score == pytest.approx(float(row["score"]), abs=1e-6)
        assert not found.anomaly_map[:18].any()


def test_the_detector_takes_arrays_of_any_size(ready):
    detector = Detector.load(ready / "elsewhere/run/epoch_0002.pt", device="cpu")
    images = [np.full((70, 33, 3), 100, np.uint8), cv2.imread(str(ready / "mvtec/tile/test/spot/002.png"))]
    both = detector(images)
    assert [one.anomaly_map.shape for one in both] == [(70, 33), (40, 48)]
    assert both[0].anomaly_map.dtype == np.float32 and both[0].mask.dtype == bool
    assert detector(images[1]).score == pytest.approx(both[1].score, abs=1e-6)
    for wrong in (images[0].astype(np.float32), images[0][..., 0], [[1, 2]]):
        with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\)"):
            detector(wrong if isinstance(wrong, np.ndarray) else wrong[0])
    with raises_user_error(ready / "elsewhere"):
        Detector.load(ready / "elsewhere")
