"""registration/part_pose.py: known poses of parts are found; other parts and images without a part are rejected."""

import cv2
import numpy as np
import pytest
import skimage.data

from benchmarks.quality import bolt_image
from registration import part_pose

SIZE = 256
KINDS = [("bracket", "brick"), ("bracket", "camera"), ("rod", "gravel"), ("nut", "camera"), ("disc", "coffee")]


def outline(kind, size=SIZE):
    """Silhouette of a part, uint8 (size, size), 0 or 255."""
    mask, c = np.zeros((size, size), np.uint8), size / 2
    if kind == "bracket":
        corners = np.array([[40, 80], [200, 80], [200, 120], [110, 120], [110, 190], [40, 190]]) * size / 256
        return cv2.fillPoly(mask, [corners.astype(np.int32)], 255)
    if kind == "rod":
        cv2.ellipse(mask, (size // 2, size // 2), (int(0.36 * size), int(0.11 * size)), 0, 0, 360, 255, -1)
        return cv2.rectangle(mask, (int(0.6 * size), int(0.42 * size)), (int(0.8 * size), int(0.58 * size)), 255, -1)
    if kind == "nut":
        angles = np.arange(6) * np.pi / 3
        corners = np.stack([c + 0.34 * size * np.cos(angles), c + 0.34 * size * np.sin(angles)], axis=1)
        return cv2.fillPoly(mask, [corners.astype(np.int32)], 255)
    return cv2.circle(mask, (size // 2, size // 2), int(0.33 * size), 255, -1)


def surface_of(name, size=SIZE):
    image = getattr(skimage.data, name)()
    image = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return cv2.resize(image[..., :3], (size, size), interpolation=cv2.INTER_AREA) * 0.55 + 70


class Drawn:
    """A part with a natural surface, drawn into images."""

    def __init__(self, kind, name, size=SIZE):
        self.mask, self.surface, self.size = outline(kind, size), surface_of(name, size), size

    def image(self, pose, rng, gain=1.0, shade=0.0, is_anomalous=False):
        """uint8 (size, size, 3), and the ground-truth mask of it. pose: from the part's own frame."""
        surface, marked = self.surface.copy(), np.zeros_like(self.mask)
        if is_anomalous:
            y, x = rng.permutation(np.argwhere(cv2.erode(self.mask, np.ones((21, 21)))))[0].tolist()
            cv2.circle(marked, (x, y), self.size // 28, 255, -1)
            surface[marked > 0] = rng.integers(0, 255, 3)
        frame, border = (self.size, self.size), {"borderMode": cv2.BORDER_REPLICATE}
        inside = cv2.warpPerspective(self.mask, pose, frame)[..., None] / 255
        surface = cv2.warpPerspective(surface, pose, frame, flags=cv2.INTER_CUBIC, **border)
        background = 30 + shade * (np.arange(self.size) / self.size - 0.5)[:, None]
        image = (inside * surface + (1 - inside) * background) * gain + rng.normal(0, 3, (self.size, self.size, 3))
        return image.clip(0, 255).astype(np.uint8), cv2.warpPerspective(marked, pose, frame, flags=cv2.INTER_NEAREST)

    def corners(self):
        (top, left), (bottom, right) = (np.argwhere(self.mask).min(axis=0), np.argwhere(self.mask).max(axis=0))
        return np.array([[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]], float).T


def random_pose(rng, size=SIZE, flip=False):
    """Turned by 0 to 360 degrees, moved by up to 8 % of the side, scaled by 0.8 to 1.2."""
    angle, scale, center = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.2), np.full(2, (size - 1) / 2)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = linear @ np.diag([1, -1 if flip else 1])
    pose = np.eye(3)
    pose[:2, :2], pose[:2, 2] = linear, center + rng.uniform(-0.08, 0.08, 2) * size - linear @ center
    return pose


def error_of(found, pose, drawn):
    """Largest error of a corner, in pixels at 256."""
    corners = drawn.corners()
    mapped = found @ pose @ corners
    return np.linalg.norm((mapped / mapped[2] - corners)[:2], axis=0).max() * 256 / drawn.size


@pytest.fixture(scope="module")
def known():
    """Kind and surface -> a part, and the reference made of an image of it."""
    found = {}
    for kind in KINDS:
        drawn = Drawn(*kind)
        found[kind] = drawn, part_pose.reference_of(drawn.image(np.eye(3), np.random.default_rng(1))[0])
    return found


def test_known_poses_are_found_and_anomalies_are_kept(known):
    errors, kept = [], []
    for kind, (drawn, reference) in known.items():
        rng = np.random.default_rng(len(kind[0]))
        for _ in range(8):
            pose = random_pose(rng)
            image, marked = drawn.image(pose, rng, rng.uniform(0.8, 1.25), rng.uniform(-15, 15), is_anomalous=True)
            found = part_pose.register(image, reference)
            errors.append(np.inf if found is None else error_of(found, pose, drawn))
            if found is not None:
                back, warped = np.linalg.inv(pose), cv2.warpPerspective(marked, found, (SIZE, SIZE))
                there = cv2.warpPerspective(marked, back, (SIZE, SIZE))
                kept.append(((warped > 127) & (there > 127)).sum() / (there > 127).sum())
    assert np.mean(np.array(errors) < 1) >= 0.95 and np.median(errors) < 0.3
    assert min(kept) > 0.9


@pytest.mark.parametrize("size", [200, 700])
def test_images_and_references_of_any_size(size):
    """The size of the reference differs from that of the images."""
    drawn, rng = Drawn("bracket", "brick", size), np.random.default_rng(5)
    reference = part_pose.reference_of(cv2.resize(drawn.image(np.eye(3), rng)[0], (512, 512)))
    for _ in range(4):
        pose = random_pose(rng, size)
        found = part_pose.register(drawn.image(pose, rng)[0], reference)
        scale = size / 512
        to_own = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])
        assert error_of(to_own @ found, pose, drawn) < 1


def test_other_parts_and_images_without_a_part_are_rejected(known):
    rejected = []
    for kind, (_, reference) in known.items():
        rng = np.random.default_rng(2)
        for other, (drawn, _) in known.items():
            if other[0] != kind[0]:
                image, _ = drawn.image(random_pose(rng), rng, rng.uniform(0.8, 1.2))
                rejected.append(part_pose.register(image, reference) is None)
        plain = rng.normal(rng.uniform(20, 200), 4, (SIZE, SIZE, 3)) + np.linspace(-20, 20, SIZE)[:, None]
        for image in (plain, surface_of("brick"), surface_of("grass"), surface_of("camera")):
            rejected.append(part_pose.register(image.clip(0, 255).astype(np.uint8), reference) is None)
    assert np.mean(rejected) >= 0.95 and len(rejected) > 30


@pytest.mark.parametrize("kind", [("bracket", "brick"), ("nut", "camera")])
def test_parts_upside_down_are_found_where_that_is_allowed(known, kind):
    drawn, reference = known[kind]
    rng = np.random.default_rng(4)
    for _ in range(3):
        pose = random_pose(rng, flip=True)
        image, _ = drawn.image(pose, rng)
        assert part_pose.register(image, reference) is None
        assert error_of(part_pose.register(image, reference, mirror=True), pose, drawn) < 1


def screw(angle, thread=0.0, fall=0.0):
    """A screw on a light table, lit from the top of the image: its shading is reversed when it is turned around.
    thread: radians by which it is turned about its own axis. fall: gray levels that corners are darker by."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    along = (x + 90) / 180  # from head to tip
    wave = 2 * np.pi * (x + 0.4 * y) / 9.5 + thread
    radius = np.where(along < 0.12, 19 - 70 * along, np.where(along < 0.42, 10.5, 8.5 + 4 * np.cos(wave) ** 2))
    radius = np.where((along < 0) | (along > 1), 0, radius * np.clip((1 - along) / 0.08, 0, 1))
    across = np.arcsin(np.clip(y / np.maximum(radius, 1e-3), -1, 1))
    light = 80 + 80 * np.cos(across - 0.6 * np.cos(angle))
    light = np.where(along > 0.42, light * (0.6 + 0.4 * np.sin(wave)), light)
    image = np.where(np.abs(y) <= radius, light, 210)
    turn = cv2.getRotationMatrix2D(((SIZE - 1) / 2,) * 2, np.degrees(angle), 1.0)
    image = cv2.warpAffine(image, turn, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderValue=210)
    return image - fall * 2 * (x**2 + y**2) / SIZE**2, turn


@pytest.mark.parametrize("fall", [0, 60])
def test_poses_are_found_under_other_light_and_vignetting(fall):
    """Head and tip are never confused."""
    rng = np.random.default_rng(3)
    straight, _ = screw(0.0, fall=fall)
    reference = part_pose.reference_of(np.repeat(straight[..., None], 3, axis=2).astype(np.uint8))
    for angle in np.arange(12) * np.pi / 6 + 0.1:
        image, turn = screw(angle, rng.uniform(0, 2 * np.pi), fall)
        found = part_pose.register((image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8), reference)
        ends = np.array([[45, 127.5, 1], [210, 127.5, 1]]).T
        assert np.linalg.norm((found @ np.vstack([turn, [0, 0, 1]]) @ ends - ends)[:2], axis=0).max() < 8


@pytest.mark.parametrize("light", [0.0, 1.2])
def test_bolts_turned_about_their_own_axis_are_found(light):
    """Threads and faces of the head differ in every image, and shading is reversed in bolts that lie the other way."""
    size, rng = 512, np.random.default_rng(0)
    reference = part_pose.reference_of(bolt_image(size, np.eye(3), light, rng))
    ends = np.array([[-90, -20, 1], [-90, 20, 1], [88, 0, 1]]).T
    ends[:2] = ends[:2] * size / 256 + (size - 1) / 2
    errors = []
    for _ in range(20):
        pose = random_pose(rng, size)
        found = part_pose.register(bolt_image(size, pose, light, rng), reference)
        if found is not None:
            mapped = found @ pose @ ends
            errors.append(np.linalg.norm((mapped / mapped[2] - ends)[:2], axis=0).max() * 256 / size)
    assert len(errors) >= 19 and max(errors) < 3.5 and np.median(errors) < 1.5


def test_a_round_part_is_shifted_and_not_rotated():
    """Rings look alike in every turn; a mark on them must stay where it is."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)

    def rings(center):
        radius = np.hypot(x - center[0], y - center[1])
        image = np.where(radius < 90, 120 + 60 * np.cos(radius / 8), 20)
        return np.repeat(image[..., None], 3, axis=2)

    rng = np.random.default_rng(0)
    reference = part_pose.reference_of(
        (rings((128, 128)) + rng.normal(0, 3, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
    )
    assert reference.is_round
    for center in ((120, 140), (133, 121)):
        image = rings(center)
        cv2.circle(image, (center[0] + 40, center[1]), 9, (255, 255, 255), -1)
        image = (image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)
        found = part_pose.register(image, reference)
        np.testing.assert_allclose(found, [[1, 0, 128 - center[0]], [0, 1, 128 - center[1]], [0, 0, 1]], atol=0.35)
