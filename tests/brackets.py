"""Images of a bracket in any pose, for registration."""

import cv2
import numpy as np
import pytest
from conftest import SETTINGS, write

BRACKET_SIZE = 96


def bracket(rng: np.random.Generator, angle: float | None = None, is_anomalous: bool = False):
    """A bright angle with a dark stripe, in a random pose, BGR, and its ground-truth mask."""
    image, mask = np.full((BRACKET_SIZE, BRACKET_SIZE, 3), 40.0), np.zeros((BRACKET_SIZE, BRACKET_SIZE), np.uint8)
    corners = np.array([[20, 30], [76, 30], [76, 48], [44, 48], [44, 72], [20, 72]])
    cv2.fillPoly(image, [corners], (150, 170, 190))
    cv2.rectangle(image, (26, 36), (60, 40), (60, 90, 120), -1)
    if is_anomalous:
        cv2.circle(mask, (32, 60), 5, 255, -1)
        image[mask > 0] = 240
    angle = rng.uniform(0, 360) if angle is None else angle
    turn = cv2.getRotationMatrix2D((BRACKET_SIZE / 2, BRACKET_SIZE / 2), angle, 1.0)
    turn[:, 2] += rng.uniform(-6, 6, 2)
    image = cv2.warpAffine(image, turn, (BRACKET_SIZE, BRACKET_SIZE), flags=cv2.INTER_LINEAR, borderValue=(40, 40, 40))
    mask = cv2.warpAffine(mask, turn, (BRACKET_SIZE, BRACKET_SIZE), flags=cv2.INTER_NEAREST)
    return (image + rng.normal(0, 2, image.shape)).clip(0, 255).astype(np.uint8), mask


@pytest.fixture
def brackets(tmp_path, workplace):
    """A workplace whose images show a bracket in any pose; the first of train/good is upright."""
    rng, folder = np.random.default_rng(0), tmp_path / "mvtec/bracket"
    for i in range(6):
        write(folder / f"train/good/{i:03}.png", bracket(rng, 0 if i == 0 else None)[0])
    for i in range(2):
        write(folder / f"test/good/{i:03}.png", bracket(rng)[0])
        image, mask = bracket(rng, is_anomalous=True)
        write(folder / f"test/blob/{i:03}.png", image)
        write(folder / f"ground_truth/blob/{i:03}_mask.png", mask)
    text = SETTINGS.format(root=tmp_path.as_posix()).replace("category: tile", "category: bracket")
    (tmp_path / "config.yaml").write_text(text.replace("img_size: 32", "img_size: 96"))
    return tmp_path
