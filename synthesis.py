"""Synthetic anomalies: a Perlin-noise mask filled with an augmented texture (paper, section 3.3), or a cutout."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from data.image_io import read_all, rotate
from perlin import perlin_noise
from runtime.device import restore_numpy_table

P_ROTATE = 0.3  # nominal images that are rotated
P_CLEAN = 0.5  # samples of the Perlin branch that stay clean
P_CUTOUT = 0.2  # samples that take the cutout instead of the Perlin branch, where it is on
MAX_ROTATION = 90  # degrees, of nominal images and of the noise; the paper says 45 for images
MAX_LATTICE_EXPONENT = 5  # lattice of 2^0 to 2^5 periods
NOISE_THRESHOLD = 0.5
MAX_BETA = 0.8  # share of the nominal image that shines through
MIN_CUTOUT = 10  # pixels


@lru_cache(maxsize=1)
def augmenters() -> tuple:
    """The original's ten, made in each process: some do not survive being sent to another. They see BGR as it is."""
    restore_numpy_table()
    import imgaug.augmenters as iaa  # half a second that only training needs

    return (
        iaa.GammaContrast((0.5, 2.0), per_channel=True),
        iaa.MultiplyAndAddToBrightness(mul=(0.8, 1.2), add=(-30, 30)),
        iaa.pillike.EnhanceSharpness(),
        iaa.AddToHueAndSaturation((-50, 50), per_channel=True),
        iaa.Solarize(0.5, threshold=(32, 128)),
        iaa.Posterize(),
        iaa.Invert(),
        iaa.pillike.Autocontrast(),
        iaa.pillike.Equalize(),
        iaa.Affine(rotate=(-45, 45)),
    )


class AnomalySynthesizer:
    """Turns a nominal image into a training sample.

    Args:
        textures: files, decoded here and kept, or decoded textures, uint8 (H, W, 3) of `image_size`.
        image_size: height and width of the samples.
        cut: with probability 0.2 a flat rectangle instead of the Perlin branch.
        max_rotation: degrees, of nominal images.
    """

    def __init__(
        self,
        textures: Sequence[Path | np.ndarray],
        image_size: tuple[int, int],
        cut: bool = False,
        max_rotation: float = MAX_ROTATION,
    ):
        if not len(textures):
            raise ValueError("synthesis needs at least one texture")
        self.textures = read_all(textures, image_size)
        self.image_size = tuple(image_size)
        self.cut, self.max_rotation = cut, max_rotation

    def augment_texture(self, texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Three different augmenters, in the order drawn; uint8 (H, W, 3) to the same."""
        for index in rng.choice(len(augmenters()), 3, replace=False):
            augmenter = augmenters()[index]
            augmenter.seed_(int(rng.integers(2**31)))
            if hasattr(inner := getattr(augmenter, "children", None), "seed_"):
                # seed_ passes over it, and the order of its two would come from global state
                inner.seed_(int(rng.integers(2**31)))
            texture = augmenter.augment_image(texture)
        return texture

    def perlin_mask(self, rng: np.random.Generator) -> np.ndarray:
        """Bool (H, W): rotated Perlin noise above the threshold; may be empty."""
        res = tuple(2 ** rng.integers(0, MAX_LATTICE_EXPONENT + 1, size=2))
        noise = perlin_noise(self.image_size, res, rng=rng)
        return rotate(noise, rng.uniform(-MAX_ROTATION, MAX_ROTATION)) > NOISE_THRESHOLD

    # Both write into the image that they are given, float32 (H, W, 3) in [0, 1].

    def _blend_perlin(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        texture = self.augment_texture(self.textures[rng.integers(len(self.textures))], rng)
        mask = self.perlin_mask(rng)
        beta = np.float32(rng.uniform(0, MAX_BETA))
        # Blended everywhere and copied inside: three plain passes are faster than gathering the mask's pixels.
        blended = np.multiply(texture, (1 - beta) / 255, dtype=np.float32)
        blended += beta * image
        return cv2.copyTo(blended, mask.view(np.uint8), image), mask

    def _cut_out(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        where = []
        for side in self.image_size:
            longest = max(side // 2, 1)
            length = int(rng.integers(min(MIN_CUTOUT, longest), longest + 1))
            start = int(rng.integers(side - length + 1))
            where.append(slice(start, start + length))
        mask = np.zeros(self.image_size, bool)
        mask[tuple(where)] = True
        image[mask] = rng.choice((0.5, 1.0))
        return image, mask

    def corrupt(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One training sample, in the smallest types that lose nothing.

        Args:
            image: nominal image, uint8 (H, W, 3), BGR, of `image_size`.
            rng: all randomness of the sample.

        Returns:
            the image, possibly rotated, uint8; the same with an anomaly, float32 (H, W, 3) in [0, 1]; the anomaly's
            mask, bool (H, W), which may be empty.
        """
        if rng.random() < P_ROTATE:
            image = rotate(image, rng.uniform(-self.max_rotation, self.max_rotation))
        scaled = image.astype(np.float32) / 255
        # Decided before anything is synthesized: half of the work is not done.
        if self.cut and rng.random() < P_CUTOUT:
            return image, *self._cut_out(scaled, rng)
        if rng.random() < P_CLEAN:
            return image, scaled, np.zeros(self.image_size, bool)
        return image, *self._blend_perlin(scaled, rng)

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """One training sample as arrays of one type: `corrupt` with everything in float32.

        Returns:
            image and augmented image (H, W, 3) in [0, 1]; mask (H, W, 1) of 0 and 1; has_anomaly (1,): 0 where the mask
            is empty.
        """
        image, augmented, mask = self.corrupt(image, rng)
        return image.astype(np.float32) / 255, augmented, mask[..., None].astype(np.float32), np.float32([mask.any()])
