"""perlin.py against values of the original implementation."""

import numpy as np
import pytest
from conftest import GOLDEN

from perlin import perlin_noise


def close(value, reference, tolerance: float) -> None:
    value, reference = (np.asarray(x, np.float64) for x in (value, reference))
    assert np.abs(value - reference).max() <= tolerance * np.abs(reference).max()


@pytest.mark.parametrize("i", range(4))
def test_perlin_noise_equals_the_originals(i):
    golden = np.load(GOLDEN / "perlin.npz")
    noise = perlin_noise(tuple(golden[f"shape_{i}"]), tuple(golden[f"res_{i}"]), angles=golden[f"angles_{i}"])
    assert noise.dtype == np.float32
    close(noise, golden[f"noise_{i}"], 1e-5)


def test_perlin_sizes_the_lattice_does_not_divide():
    angles = np.random.default_rng(0).random((4, 6)) * 6
    noise = perlin_noise((50, 62), (3, 5), angles=angles)
    assert noise.shape == (50, 62)
    np.testing.assert_array_equal(noise, perlin_noise((51, 65), (3, 5), angles=angles)[:50, :62])


def test_invalid_arguments_of_perlin_noise():
    with pytest.raises(ValueError, match=r"\(8, 8\).*\(0, 1\)"):
        perlin_noise((8, 8), (0, 1), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(3, 3\)"):
        perlin_noise((8, 8), (1, 1), angles=np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"(?i)generator"):
        perlin_noise((8, 8), (1, 1))
