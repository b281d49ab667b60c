"""registration/homography.py: known homographies of natural images, and images that must not be registered."""

import multiprocessing
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage

from registration.homography import plausible, register, warp


def sample_image(name: str) -> np.ndarray:
    return cv2.imread(str(Path(skimage.data_dir) / name))


def about_centre(shape, degrees=0.0, scale=1.0, shift=(0, 0), perspective=(0, 0)) -> np.ndarray:
    """Homography that turns, scales and tilts an image about its centre, then shifts it; shift in pixels."""
    y, x = (np.array(shape[:2]) - 1) / 2
    centre = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]])
    linear = np.eye(3)
    linear[:2] = cv2.getRotationMatrix2D((0, 0), degrees, scale)
    linear[2, :2] = np.array(perspective) / (shape[1], shape[0])
    moved = np.eye(3)
    moved[:2, 2] = shift
    return np.linalg.inv(centre) @ moved @ linear @ centre


def moved_image(original, homography, size=None, gain=1.0, offset=0.0, noise=0.0, seed=0) -> np.ndarray:
    """The image moved by the homography, its brightness changed, noise added; BGR."""
    height, width = size or original.shape[:2]
    moved = cv2.warpPerspective(original, homography, (width, height)).astype(float) * gain + offset
    return (moved + np.random.default_rng(seed).normal(0, noise, moved.shape)).clip(0, 255).round().astype(np.uint8)


def corner_error(estimate, truth, shape) -> float:
    """Mean distance in pixels between the image's corners as the two map them."""
    height, width = shape[:2]
    corners = np.array([[[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]], float)
    estimate, truth = (cv2.perspectiveTransform(corners, matrix) for matrix in (estimate, truth))
    return float(np.linalg.norm(estimate - truth, axis=-1).mean())


MOVES = [
    {"degrees": 20, "scale": 0.85, "shift": (30, -20)},
    {"degrees": -15, "scale": 1.2, "shift": (-25, 30)},
    {"degrees": 5, "perspective": (0.1, -0.08), "shift": (10, 5)},
]


@pytest.mark.parametrize("name", ["coffee.png", "brick.png"])
def test_known_homographies_are_found_despite_noise_and_changed_brightness(name):
    reference = sample_image(name)
    for seed, (move, gain, offset) in enumerate(zip(MOVES, (0.8, 1.2, 1.0), (20, -20, 10), strict=True)):
        truth = about_centre(reference.shape, **move)
        image = moved_image(reference, np.linalg.inv(truth), gain=gain, offset=offset, noise=8, seed=seed)
        homography = register(image, reference)
        assert homography.dtype == np.float64 and homography.shape == (3, 3) and homography[2, 2] == 1
        assert corner_error(homography, truth, image.shape) < 0.5


def test_an_anomaly_changes_the_homography_little():
    reference = sample_image("coffee.png")
    truth = about_centre(reference.shape, 8, 1.05, (12, -9))
    image = moved_image(reference, np.linalg.inv(truth), noise=5)
    image[150:280, 250:400] = sample_image("gravel.png")[:130, :150]  # 8 % of it
    assert corner_error(register(image, reference), truth, image.shape) < 1.0


def test_gray_and_bgr_give_the_same_homography():
    reference = sample_image("coffee.png")
    truth = about_centre(reference.shape, 10, 1.0, (15, 10))
    image = moved_image(reference, np.linalg.inv(truth), noise=5)
    gray, reference_gray = (cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in (image, reference))
    expected = register(image, reference)
    assert corner_error(expected, truth, image.shape) < 0.5
    np.testing.assert_array_equal(register(gray, reference), expected)
    np.testing.assert_array_equal(register(image, reference_gray), expected)


def test_sizes_may_differ():
    reference = sample_image("camera.png")  # 512 x 512
    halved = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])  # pixel edges on pixel edges
    truth = np.linalg.inv(halved @ about_centre(reference.shape, 6, 1.0, (10, 5)))
    image = moved_image(cv2.GaussianBlur(reference, (0, 0), 0.8), np.linalg.inv(truth), size=(256, 256), noise=5)
    homography = register(image, reference)  # its area scale is 4
    assert corner_error(homography, truth, image.shape) < 1.0
    assert corner_error(register(reference, image), np.linalg.inv(truth), reference.shape) < 1.0
    image = moved_image(reference, np.eye(3), size=(430, 470), noise=5)
    assert corner_error(register(image, reference), np.eye(3), image.shape) < 0.5


def test_unrelated_images_are_not_registered():
    names = ["coffee.png", "camera.png", "brick.png", "gravel.png", "chelsea.png"]
    images = [sample_image(name) for name in names]
    for i, image in enumerate(images[:3]):
        assert register(image, images[i - 1]) is None, (names[i], names[i - 1])


def test_images_without_features_are_not_registered():
    camera, noise = sample_image("camera.png"), np.random.default_rng(0).integers(0, 256, (2, 200, 200), np.uint8)
    assert register(noise[0], noise[1]) is None
    for poor in (np.full((200, 300), 128, np.uint8), camera[:5, :5], camera[:1, :1], camera[:, :1], camera[:20, :20]):
        poor = np.ascontiguousarray(poor)
        assert register(poor, camera) is None
        assert register(camera, poor) is None
        assert register(poor, poor) is None


def test_features_in_one_corner_are_not_enough():
    reference = np.full((400, 400), 200, np.uint8)
    reference[:110, :110] = cv2.cvtColor(sample_image("coffee.png"), cv2.COLOR_BGR2GRAY)[100:210, 200:310]  # 8 % of it
    assert register(reference, reference) is None


def test_implausible_homographies_are_rejected():
    shape = (400, 600)
    for area in (0.51, 1.0, 1.99):
        assert plausible(about_centre(shape, 20, area**0.5), shape, shape)
    for area in (0.4, 0.49, 2.01, 2.5):
        assert not plausible(about_centre(shape, 20, area**0.5), shape, shape)
    assert plausible(np.diag([2.0, 2.0, 1.0]), shape, (800, 1200))  # for sizes that differ, relative to them
    assert not plausible(np.eye(3), shape, (800, 1200))
    mirror = np.array([[-1.0, 0, 599], [0, 1, 0], [0, 0, 1]])
    assert not plausible(mirror, shape, shape)
    assert not plausible(np.zeros((3, 3)), shape, shape)
    assert not plausible(np.full((3, 3), np.nan), shape, shape)
    assert not plausible(np.array([[1.0, 0, 0], [0, 1, 0], [-0.0025, 0, 1]]), shape, shape)  # w < 0 on the right
    square = np.float32([[0, 0], [400, 0], [400, 400], [0, 400]])
    for corner in ([250, 250], [420, 10]):  # pushed in: not convex; beyond its neighbour: sides cross
        bent = cv2.getPerspectiveTransform(square, np.float32([corner, *square[1:]]))
        assert not plausible(bent, (400, 400), (400, 400))


def test_large_changes_of_scale_and_mirrored_images_are_rejected():
    reference = sample_image("camera.png")
    for area, accepted in ((0.4, False), (0.6, True), (2.5, False)):
        truth = about_centre(reference.shape, 0, area**0.5)
        assert (register(moved_image(reference, np.linalg.inv(truth)), reference) is not None) == accepted, area
    assert register(np.ascontiguousarray(reference[:, ::-1]), reference) is None


def test_the_same_pair_gives_the_same_homography_in_any_thread_count_and_process():
    reference = sample_image("coffee.png")
    image = moved_image(reference, about_centre(reference.shape, 12, 1.1, (10, 10)), noise=10)
    threads, expected = cv2.getNumThreads(), register(image, reference)
    try:
        for seed in (1, 2):
            cv2.setRNGSeed(seed)
            cv2.setNumThreads(seed)
            np.testing.assert_array_equal(register(image, reference), expected)
            assert cv2.getNumThreads() == seed
    finally:
        cv2.setNumThreads(1)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            forked = pool.apply_async(register, (image, reference)).get(timeout=30)
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(forked, expected)


def test_register_keeps_the_random_state_of_opencv():
    reference, drawn = sample_image("coffee.png"), []
    for call in (False, True):
        cv2.setRNGSeed(7)
        if call:
            register(reference, reference)
        drawn.append(cv2.randu(np.zeros(8, np.float32), 0, 1).copy())
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("interpolation", [cv2.INTER_LINEAR, cv2.INTER_NEAREST])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_warp_by_whole_pixels_is_exact(interpolation, dtype):
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(dtype)
    warped, valid = warp(image, np.array([[1, 0, 3], [0, 1, -2], [0, 0, 1]]), (5, 10), interpolation)
    expected, expected_valid = np.zeros((5, 10, 3), dtype), np.zeros((5, 10), bool)
    expected[:4, 3:] = image[2:, :7]
    expected_valid[:4, 3:] = True
    np.testing.assert_array_equal(warped, expected)
    np.testing.assert_array_equal(valid, expected_valid)
    back, valid = warp(image, np.array([[1, 0, -3], [0, 1, 2], [0, 0, 1]]), (6, 8), interpolation)
    expected, expected_valid = np.zeros((6, 8, 3), dtype), np.zeros((6, 8), bool)
    expected[2:, :5] = image[:4, 3:]
    expected_valid[2:, :5] = True
    np.testing.assert_array_equal(back, expected)
    np.testing.assert_array_equal(valid, expected_valid)
    assert warped.dtype == dtype and valid.dtype == bool


def test_warp_is_valid_only_where_every_source_pixel_exists():
    image = np.full((6, 8), 200, np.uint8)
    _, valid = warp(image, np.array([[1, 0, 0.5], [0, 1, 0], [0, 0, 1]]), (6, 9))
    np.testing.assert_array_equal(valid, np.tile(np.arange(9), (6, 1)) % 8 != 0)  # half of it from column -1, or 8
    turned = about_centre((100, 100), 30)
    warped, valid = warp(np.full((100, 100), 200, np.uint8), turned, (100, 100))
    assert (warped[valid] == 200).all() and 0.6 < valid.mean() < 0.9 and not valid[0, 0]
    mask, mask_valid = warp(np.full((100, 100), 255, np.uint8), turned, (100, 100), cv2.INTER_NEAREST)
    np.testing.assert_array_equal(mask_valid, valid)
    assert set(np.unique(mask)) == {0, 255}
    quarter = np.array([[0.0, -1, 99], [1, 0, 0], [0, 0, 1]])
    image = np.random.default_rng(0).integers(0, 256, (100, 100), np.uint8)
    warped, valid = warp(image, quarter, (100, 100))
    np.testing.assert_array_equal(warped, np.rot90(image, -1))
    assert valid.all()
    mirrored, valid = warp(image, -np.array([[-1.0, 0, 99], [0, 1, 0], [0, 0, 1]]), (100, 100))
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    assert valid.all()
    tilted = np.array([[1, 0, 0], [0, 1, 0], [0.02, 0, 1]])  # its horizon lies at x = 50 in the new frame
    assert not warp(image, tilted, (100, 100))[1][:, 50:].any()


def test_arrays_that_cannot_be_registered_or_warped_are_errors():
    image = sample_image("coffee.png")
    invalid = (image / 255, image[..., :1], image[None], np.dstack((image, image[..., 0])), image[:0], image > 5)
    for other in invalid:
        with pytest.raises(ValueError, match=r"^image\b.*uint8"):
            register(other, image)
        with pytest.raises(ValueError, match=r"^reference\b.*uint8"):
            register(image, other)
        with pytest.raises(ValueError, match=r"uint8.*float32.*(float64|\(|bool)"):
            warp(other, np.eye(3), (10, 10))
    with pytest.raises(ValueError, match="INTER_LINEAR"):
        warp(image, np.eye(3), (10, 10), cv2.INTER_CUBIC)
    for homography in (np.eye(2), np.zeros((3, 3)), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="3 x 3"):
            warp(image, homography, (10, 10))
