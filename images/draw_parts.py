"""Draw parts.png beside this file: a part in six poses, and the same images after registration.

python -m images.draw_parts
"""

from pathlib import Path

import cv2
import numpy as np

from registration import homography, part_pose, part_segmentation

SIZE, MARGIN, LABEL = 176, 6, 150


def lever(defect: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw a brushed lever with two bores and a slot.

    Returns:
        gray values, float (SIZE, SIZE, 3), with a dent if `defect`; its silhouette in [0, 1], (SIZE, SIZE, 1).
    """
    rng, scale = np.random.default_rng(7), 4  # drawn larger and averaged, for smooth edges
    big = SIZE * scale
    silhouette, holes = np.zeros((big, big), np.uint8), np.zeros((big, big), np.uint8)
    left, right = (int(0.28 * big), big // 2), (int(0.76 * big), big // 2)
    cv2.line(silhouette, left, right, 255, int(0.13 * big))
    cv2.circle(silhouette, left, int(0.14 * big), 255, -1)
    cv2.circle(silhouette, right, int(0.09 * big), 255, -1)
    cv2.circle(holes, left, int(0.06 * big), 255, -1)
    cv2.circle(holes, right, int(0.035 * big), 255, -1)
    cv2.line(holes, (int(0.47 * big), big // 2), (int(0.6 * big), big // 2), 255, int(0.03 * big))
    brushed = cv2.GaussianBlur(rng.normal(0, 60, (big, big)), (0, 0), 40, sigmaY=1.5) * 3
    surface = 165 + brushed + 25 * np.linspace(-1, 1, big)[:, None]
    if defect:
        cv2.circle(surface, (int(0.66 * big), int(0.47 * big)), int(0.018 * big), 90.0, -1)
    surface[holes > 0] = 55
    small = cv2.resize(surface, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    mask = cv2.resize(silhouette, (SIZE, SIZE), interpolation=cv2.INTER_AREA) / 255
    return small[..., None] * (0.96, 0.99, 1.0), mask[..., None]


def bolt(size: int, turn: float, light: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw a bolt that lies along x, with a hexagonal head and a thread.

    Args:
        size: pixels. turn: radians by which it is turned about its own axis, which moves thread and faces of the head.
        light: direction of the light across the bolt, in radians from above; 1 is far from one side.

    Returns:
        gray values, float (size, size), and silhouette, bool (size, size).
    """
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) / size * 256
    along = (x + 90) / 180  # from head to tip
    is_head, is_thread = (along >= 0) & (along < 0.14), (along >= 0.42) & (along <= 1)
    thread = 2 * np.pi * (x + 0.4 * y) / 9.5 + turn
    width_of_head = 22 * max(abs(np.cos(turn + face * np.pi / 3)) for face in range(6))
    radius = np.where(is_thread, (8.7 + 2.2 * np.cos(thread) ** 2) * np.clip((1 - along) / 0.05, 0, 1), 10.5)
    radius = np.where(is_head, width_of_head, np.where((along < 0) | (along > 1), 0, radius))
    around = np.arcsin(np.clip(y / np.maximum(radius, 1e-3), -1, 1))
    face = np.round((around + turn) / (np.pi / 3)) * (np.pi / 3) - turn
    gray = np.where(is_head, 50 + 110 * np.cos(face - light), 70 + 100 * np.cos(around - light))
    gray = np.where(is_thread, gray * (0.6 + 0.4 * np.sin(thread)), gray)
    return gray.clip(0, 255), np.abs(y) <= radius


def render(pose: np.ndarray, light: float, defect: bool, rng: np.random.Generator) -> np.ndarray:
    """Render the lever on a gray table, uint8 (SIZE, SIZE, 3).

    Args:
        pose: affine transform (2, 3) of the lever. light: factor of the brightness. defect: whether it has a dent.
    """
    surface, mask = lever(defect)
    mask = cv2.warpAffine(mask, pose, (SIZE, SIZE))[..., None]
    surface = cv2.warpAffine(surface, pose, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    table = 60 + 12 * np.linspace(-1, 1, SIZE)[None, :, None]
    image = (mask * surface + (1 - mask) * table) * light + rng.normal(0, 2, (SIZE, SIZE, 3))
    return image.clip(0, 255).astype(np.uint8)


def main() -> None:
    """Write the image."""
    rng = np.random.default_rng(1)
    straight = np.array([[1, 0, 0], [0, 1, 0]], np.float64)
    reference = render(straight, 1.0, False, rng)
    target = part_pose.reference_of(reference)
    columns = [(reference, reference)]
    for angle, move, scale, light in ((35, (6, -9), 1, 1), (90, (-8, 4), 1, 0.8), (160, (10, 6), 0.9, 1.15),
                                      (215, (-5, -8), 1, 0.9), (300, (4, 9), 1.05, 1.1)):  # fmt: skip
        pose = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), angle, scale)
        pose[:, 2] += move
        image = render(pose, light, angle == 215, rng)
        transform = part_pose.register(image, target)
        assert transform is not None
        warped, has_source = homography.warp(image, transform, (SIZE, SIZE))
        warped[~has_source] = part_segmentation.background_color(image)
        columns.append((image, warped))
    step = SIZE + MARGIN
    sheet = np.full((2 * step + MARGIN, LABEL + len(columns) * step, 3), 255, np.uint8)
    for row, text in enumerate((("images, the", "first is the", "reference"), ("registered", " ", " "))):
        for line, words in enumerate(text):
            origin = (10, MARGIN + row * step + SIZE // 2 - 14 + 26 * line)
            cv2.putText(sheet, words, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.56, (40, 40, 40), 1, cv2.LINE_AA)
        for column, pair in enumerate(columns):
            top, side = MARGIN + row * step, LABEL + column * step
            sheet[top : top + SIZE, side : side + SIZE] = pair[row]
    cv2.imwrite(str(Path(__file__).with_name("parts.png")), sheet)


if __name__ == "__main__":
    main()
