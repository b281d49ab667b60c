"""Synthetic anomalies: an augmented texture blended in where Perlin noise is high (paper, section 3.3), or a cutout."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from config import Synthesis
from data.image_io import read_all, resize, rotate
from perlin import perlin_noise
from runtime.device import restore_numpy_table

P_ROTATE = 0.3  # probability that a nominal image is rotated
P_CUTOUT = 0.2  # probability of a cutout instead of the Perlin branch, if cutouts are enabled
MAX_ROTATION = 90  # degrees, for nominal images and the noise; the paper says 45 for images
MAX_LATTICE_EXPONENT = 5  # the noise has 2^0 to 2^5 lattice periods along each axis
NOISE_THRESHOLD = 0.5  # noise above this value marks the anomaly
GRAY = 3  # levels
PUBLISHED = Synthesis()
P_ADJUST = 0.4  # probability of each change of sharpness and contrast
GRID = 8  # cells along each axis of a shuffled image
MIN_CUTOUT = 10  # pixels, smallest side of a cutout


def are_gray(images: Sequence[np.ndarray]) -> bool:
    """Whether images, uint8 (H, W, 3), have no color: their channels differ by less than GRAY."""
    return bool(np.mean([np.ptp(image, axis=2).mean() for image in images]) < GRAY)


def alignment(images: Sequence[np.ndarray]) -> float:
    """Share of the variance of pixels that their place explains, 0 to 1: high where parts lie alike, 0 in textures."""
    small = np.stack([resize(image, (32, 32)) for image in images]).astype(np.float64)
    within = small.var(axis=0, ddof=1).mean()
    between = max(small.mean(axis=0).var(axis=(0, 1)).mean() - within / len(small), 0)
    return float(between / max(between + within, 1e-9))


@lru_cache(maxsize=1)
def augmenters() -> tuple:
    """The ten augmenters of the original, applied to BGR. Created in each process: not all of them can be pickled."""
    restore_numpy_table()
    import imgaug.augmenters as iaa  # takes half a second, and only training needs it

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
    """Synthesizes training samples from nominal images.

    Args:
        textures: files, decoded here, or decoded textures, uint8 (H, W, 3), BGR, of `image_size`.
        image_size: (height, width) of the samples.
        cut: whether to use, with probability 0.2, a uniform rectangle (cutout) instead of Perlin noise.
        max_rotation: largest rotation of nominal images in degrees.
        settings: the section `synthesis`; its defaults are the original's.
        own_images: nominal images of the category, uint8 (H, W, 3), BGR, that settings.own_images takes patches of.

    Raises:
        ValueError: no texture.
    """

    def __init__(
        self,
        textures: Sequence[Path | np.ndarray],
        image_size: tuple[int, int],
        cut: bool = False,
        max_rotation: float = MAX_ROTATION,
        settings: Synthesis = PUBLISHED,
        own_images: Sequence[np.ndarray] = (),
    ):
        if not len(textures):
            raise ValueError("synthesis needs at least one texture")
        self.textures = read_all(textures, image_size, "own")
        self.image_size = (image_size[0], image_size[1])
        self.cut, self.max_rotation, self.settings, self.own_images = cut, max_rotation, settings, own_images
        some = [own_images[index] for index in range(0, len(own_images), -(-len(own_images) // 20) or 1)]
        self._is_gray = settings.gray_textures == "auto" and len(some) > 0 and are_gray(some)
        if settings.min_alignment and not (len(some) > 1 and alignment(some) >= settings.min_alignment):
            self.own_images = ()

    def augment_texture(self, texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Apply three different random augmenters in random order; uint8 (H, W, 3), BGR, to the same."""
        for index in rng.choice(len(augmenters()), 3, replace=False):
            augmenter = augmenters()[index]
            augmenter.seed_(int(rng.integers(2**31)))
            inner = getattr(augmenter, "children", None)
            if inner is not None and hasattr(inner, "seed_"):
                # seed_ does not seed the list of children, whose random order would come from global state
                inner.seed_(int(rng.integers(2**31)))
            texture = augmenter.augment_image(texture)
        return texture

    def perlin_mask(self, rng: np.random.Generator) -> np.ndarray:
        """Random anomaly mask, bool (H, W): rotated Perlin noise above the threshold; may be empty."""
        rows, columns = 2 ** rng.integers(0, MAX_LATTICE_EXPONENT + 1, size=2)
        noise = perlin_noise(self.image_size, (int(rows), int(columns)), rng=rng)
        return rotate(noise, rng.uniform(-MAX_ROTATION, MAX_ROTATION)) > NOISE_THRESHOLD

    def _own_texture(self, rng: np.random.Generator) -> np.ndarray:
        """A nominal image, turned by a multiple of 90 degrees, and shifted or with its GRID x GRID cells shuffled."""
        image, size = self.own_images[int(rng.integers(len(self.own_images)))], self.image_size
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(image.shape, size, strict=False))
        image = resize(np.rot90(image[top : top + size[0], left : left + size[1]], int(rng.integers(4))), size)
        if rng.random() < 0.5:
            return np.roll(image, (int(rng.integers(1, size[0])), int(rng.integers(1, size[1]))), axis=(0, 1))
        cells = image.reshape(GRID, size[0] // GRID, GRID, size[1] // GRID, 3).swapaxes(1, 2)
        shuffled = rng.permutation(cells.reshape(GRID * GRID, *cells.shape[2:]))
        return shuffled.reshape(cells.shape).swapaxes(1, 2).reshape(image.shape)

    def _adjusted(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An image, uint8, in another brightness, and often in another contrast or sharpness."""
        blur, contrast = rng.random(2) < P_ADJUST
        if blur:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(1, 4))
        gain = 2 ** rng.uniform(-1, 1)
        spread = gain * (2 ** rng.uniform(-2, 1) if contrast else 1)
        levels = spread * (np.arange(256) - image.mean()) + gain * image.mean() + rng.uniform(-40, 40)
        return cv2.LUT(image, np.rint(levels.clip(0, 255)).astype(np.uint8))

    def _filling(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What an anomaly of this image, uint8 (H, W, 3), is filled with, as `settings` have it."""
        if len(self.own_images) and self.settings.own_images and rng.random() < self.settings.own_images:
            return self._own_texture(rng)
        if self.settings.adjusted_images and rng.random() < self.settings.adjusted_images:
            return self._adjusted(image, rng)
        return self.augment_texture(self.textures[int(rng.integers(len(self.textures)))], rng)

    def _relight(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change gain and gamma, both by a factor of up to 2 to the power of `settings.light`."""
        gain, gamma = 2 ** (self.settings.light * rng.uniform(-1, 1, 2))
        table = 255 * np.clip(gain * np.linspace(0, 1, 256) ** gamma, 0, 1)
        return cv2.LUT(image, np.rint(table).astype(np.uint8))

    # Both change `scaled`, an image as float32 (H, W, 3) in [0, 1], in place, and return it with the mask, bool (H, W).

    def _blend_perlin(
        self, image: np.ndarray, scaled: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        texture = self._filling(image, rng)
        if self._is_gray:
            texture = cv2.cvtColor(cv2.cvtColor(texture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        mask = self.perlin_mask(rng)
        beta = np.float32(rng.uniform(0, self.settings.max_transparency))
        # Blending the whole image and copying the masked pixels is faster than indexing with the mask.
        blended = np.multiply(texture, (1 - beta) / 255, dtype=np.float32)
        blended += beta * scaled
        return cv2.copyTo(blended, mask.view(np.uint8), scaled), mask

    def _cut_out(self, scaled: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        rectangle = []
        for side in self.image_size:
            longest = max(side // 2, 1)
            length = int(rng.integers(min(MIN_CUTOUT, longest), longest + 1))
            start = int(rng.integers(side - length + 1))
            rectangle.append(slice(start, start + length))
        mask = np.zeros(self.image_size, bool)
        mask[tuple(rectangle)] = True
        scaled[mask] = rng.choice((0.5, 1.0))
        return scaled, mask

    def corrupt(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Synthesize one training sample, in compact data types.

        Args:
            image: nominal image, uint8 (H, W, 3), BGR, of `image_size`. rng: source of all randomness.

        Returns:
            the image, possibly rotated, uint8 (H, W, 3); the same image with the anomaly, float32 (H, W, 3) in [0, 1];
            mask of the anomaly, bool (H, W), which may be empty.
        """
        if rng.random() < P_ROTATE:
            image = rotate(image, rng.uniform(-self.max_rotation, self.max_rotation))
        if self.settings.light:
            image = self._relight(image, rng)
        scaled = image.astype(np.float32) / 255
        # Decided before synthesis: the original synthesizes an anomaly for every sample and discards half of them.
        if self.cut and rng.random() < P_CUTOUT:
            return image, *self._cut_out(scaled, rng)
        if rng.random() < self.settings.clean_share:
            return image, scaled, np.zeros(self.image_size, bool)
        return image, *self._blend_perlin(image, scaled, rng)

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Synthesize one training sample, like `corrupt`, with all arrays in float32.

        Returns:
            image and augmented image, (H, W, 3) in [0, 1]; mask (H, W, 1) of 0 and 1; has_anomaly (1,), 0 if the mask
            is empty, else 1.
        """
        image, augmented, mask = self.corrupt(image, rng)
        return (
            image.astype(np.float32) / 255,
            augmented,
            mask[..., None].astype(np.float32),
            np.array([mask.any()], np.float32),
        )
