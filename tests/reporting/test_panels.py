"""reporting/panels.py: panels hold the arrays they are made of, and small regions of large images."""

import cv2
import numpy as np

from reporting import panels


def test_panels_of_large_images_are_reduced_and_keep_small_anomalies():
    """Six planes of 3000 pixels would be too wide; an anomaly of three pixels is still outlined."""
    image, truth = np.full((1500, 3000, 3), 90, np.uint8), np.zeros((1500, 3000), bool)
    truth[700:703, 1500:1503] = True
    scores = np.zeros((1500, 3000), np.float32)
    sheet = panels.panel(panels.PanelContent("one", "nominal", True, image, image, scores, truth, ~truth & False))
    assert sheet.shape[0] < 620 and sheet.shape[1] < 6 * 1032
    blue = (sheet[..., 0] > sheet[..., 2].astype(int) + 60).sum()
    assert 4 <= blue < 3000  # the outline and its word
    assert (sheet[100:560, 3 * 1030 : 4 * 1030] == 255).all(axis=2).any()  # the ground truth's plane
    for k in range(8):
        truth[60 + 97 * k, 200 + 331 * k] = True  # single pixels: nearest-neighbour sampling would omit most of them
    sheet = panels.panel(panels.PanelContent("one", "nominal", True, image, image, scores, truth, ~truth & False))
    plane = (sheet[55:550, 3 * 1030 + 2 : 4 * 1030 - 10] == 255).all(axis=2)
    assert cv2.connectedComponents(plane.astype(np.uint8))[0] - 1 == 9


def test_panels_and_sample_grids_show_their_arrays(workplace, cli):
    """At known places of the files."""
    assert cli("--train", "--detection", "--set", "metrics.threshold=false")[0] == 0
    panel = cv2.imread(str(workplace / "results/tiny/tile/checkpoint_2/no_masking/panels/spot/000.png"))
    image = cv2.resize(cv2.imread(str(workplace / "mvtec/tile/test/spot/000.png")), (32, 32))
    tile = cv2.resize(image, None, fx=6, fy=6, interpolation=cv2.INTER_NEAREST)
    places = cv2.matchTemplate(panel, tile, cv2.TM_SQDIFF)
    assert places.min() < 1 and cv2.minMaxLoc(places)[2][0] == 0  # the input is the first plane, unchanged
    # From 192 pixels on nothing is enlarged.
    assert cli("--detection", "--set", "metrics.threshold=false", "--set", "data.img_size=256")[0] == 0
    panel = cv2.imread(str(workplace / "results/tiny/tile/checkpoint_2/no_masking/panels/spot/000.png"))
    image = cv2.resize(cv2.imread(str(workplace / "mvtec/tile/test/spot/000.png")), (256, 256))
    places = cv2.matchTemplate(panel, image, cv2.TM_SQDIFF)
    assert places.min() < 1 and cv2.minMaxLoc(places)[2][0] == 0 and panel.shape[1] == 6 * (256 + 6)
    grid = cv2.imread(str(workplace / "checkpoints/tile/tiny/images/epoch_0002.png"))
    assert grid.shape[1] == 5 * (192 + 6)
