"""Perlin noise as two matrix products (K. Perlin, 'Improving noise', SIGGRAPH 2002)."""

from functools import lru_cache

import numpy as np
import torch


@lru_cache(maxsize=64)
def _axis(size: int, periods: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fade weights, and fade weights times distance, of pixels and lattice points along one axis.

    Both are float32 (size, periods + 1). If `periods` does not divide `size`, the next larger multiple is sampled and
    cropped.
    """
    rows, step = np.arange(size), -(-size // periods)
    cell, t = rows // step, rows % step / step
    fade = t**3 * (t * (6 * t - 15) + 10)
    weight, distance = np.zeros((2, size, periods + 1))
    weight[rows, cell], weight[rows, cell + 1] = 1 - fade, fade
    distance[rows, cell], distance[rows, cell + 1] = (1 - fade) * t, fade * (t - 1)
    return torch.from_numpy(weight).float(), torch.from_numpy(distance).float()


def perlin_noise(
    shape: tuple[int, int],
    res: tuple[int, int],
    *,
    rng: np.random.Generator | None = None,
    angles: np.ndarray | None = None,
) -> np.ndarray:
    """Two-dimensional Perlin noise.

    The noise at (y, x) is a sum over the four lattice points around it: fade weight times dot product of gradient and
    distance. Weights and distances depend on one axis each, so the sum over the lattice is a product of small matrices.

    Args:
        shape: height and width of the result in pixels.
        res: lattice periods along height and width, at least 1. A size that they do not divide is cropped from a larger
            one.
        rng: generator for the gradient angles, uniform in [0, 2 pi), if `angles` is not given.
        angles: gradient angles in radians, (res[0] + 1, res[1] + 1); 0 points along the first axis.

    Returns:
        float32 (H, W), about [-1, 1].

    Raises:
        ValueError: sizes or periods below 1, angles of a wrong shape, or neither `rng` nor `angles`.
    """
    if min(*shape, *res) < 1:
        raise ValueError(f"Perlin noise needs a shape and a lattice of at least 1, got {shape} and {res}")
    lattice = (res[0] + 1, res[1] + 1)
    if angles is None:
        if rng is None:
            raise ValueError("Perlin noise needs a random generator or the gradient angles")
        angles = rng.random(lattice) * (2 * np.pi)
    if np.shape(angles) != lattice:
        raise ValueError(f"Perlin noise on a {res} lattice needs angles of shape {lattice}, got {np.shape(angles)}")
    weight_y, distance_y = _axis(shape[0], res[0])
    weight_x, distance_x = _axis(shape[1], res[1])
    scale = np.float32(np.sqrt(2))
    down, right = (torch.from_numpy(part(angles).astype(np.float32) * scale) for part in (np.cos, np.sin))
    # Matrix products of torch: it uses one thread in a loader process, while NumPy would start one for each core.
    left = torch.hstack((distance_y @ down, weight_y @ right))
    return (left @ torch.hstack((weight_x, distance_x)).T).numpy()
