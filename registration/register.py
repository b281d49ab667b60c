"""Registration of the images of a category: reference, method, and the homographies computed so far."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from config import Config
from data.cache import ArrayCache, half_of_disk
from data.image_io import EmbeddedImage, read_image, resize, write_image
from data.layouts.registry import open_category
from data.mvtec import TestSample
from registration import part_pose, part_segmentation
from registration.homography import register as register_scene
from registration.homography import warp
from runtime import provenance
from runtime.device import map_in_threads
from runtime.errors import UserError
from runtime.files import write_text

if TYPE_CHECKING:
    from runtime.device import Together

LITTLE = 0.6  # share of the reference that a part with its margin covers, below which cropping is advised
LONGEST_SIDE = 32766  # pixels; cv2.remap takes no larger ones


class NoReferencePartError(UserError):
    """No part is found in the reference image."""


class Registration:
    """Registers the images of one category to a reference image. Each image is registered only once.

    Args:
        config: the settings.
        embedded: reference from a checkpoint, used instead of its file.
        writes: whether a reference without a part may be written to the run's folder, for the user to see.
    """

    def __init__(self, config: Config, embedded: EmbeddedImage | None = None, writes: bool = True):
        self.config, self._embedded, self._writes = config, embedded, writes
        self.white_level = config.data.known_white_level
        self._homographies: dict[Path, np.ndarray | None] = {}  # images are not kept: there may be very many

    @property
    def _is_of_parts(self) -> bool:
        return self.config.data.registration_method == "part"

    def read(self, path: Path) -> np.ndarray:
        """Read an image at its own size, uint8 (H, W, 3), BGR, with the white level of training."""
        return read_image(path, white_level=self.white_level)

    def check(self) -> None:
        """UserError if the reference image cannot be read, or no part is found in it."""
        _ = self._part if self._is_of_parts else self.reference

    @cached_property
    def reference_path(self) -> Path:
        """Path of the reference image: as configured, else the first image of train/good."""
        if self._embedded:
            return Path(self._embedded.path)
        if self.config.data.registration_reference is not None:
            path = Path(self.config.data.registration_reference)
            if not path.is_file():
                raise UserError(
                    "data.registration_reference", f"{path} does not exist", "set it to an image, or to null"
                )
            return path
        return open_category(self.config).nominal()[0]

    @cached_property
    def uncropped(self) -> np.ndarray:
        """The reference image as it is in its file, uint8 (H, W, 3), BGR."""
        return self._embedded.decode() if self._embedded else self.read(self.reference_path)

    @cached_property
    def reference(self) -> np.ndarray:
        """What images are warped onto, uint8 (H, W, 3), BGR: the reference, or its part with data.registration_crop."""
        if not self._is_of_parts or not self.config.data.registration_crop:
            return self.uncropped
        try:
            return part_segmentation.cropped(self.uncropped)
        except part_segmentation.NoPartError as error:
            raise self._without_part(self.uncropped, error) from error

    @cached_property
    def _part(self) -> part_pose.Reference:
        """The part in the reference image."""
        try:
            return part_pose.reference_of(self.reference)
        except part_segmentation.NoPartError as error:
            raise self._without_part(self.reference, error) from error

    def crop_note(self) -> str:
        """What to know of data.registration_crop, in words; empty where it does not apply, or changes little."""
        if not self._is_of_parts or not self.config.data.registration_training:
            return ""
        whole, part = self.uncropped.shape, part_segmentation.cropped(self.uncropped).shape
        height, width = part[:2]
        if self.config.data.registration_crop:
            return f"the cropped reference has {width} x {height} pixels: give data.img_size this shape"
        if height * width > LITTLE * whole[0] * whole[1]:
            return ""
        return (
            f"the part covers {width} x {height} pixels of the reference: data.registration_crop=true, with "
            "data.img_size in this shape, shows it larger"
        )

    def _without_part(self, image: np.ndarray, error: part_segmentation.NoPartError) -> NoReferencePartError:
        """The error of a reference image without a part; writes an image that shows what was found instead."""
        shown, hint = self.config.run_folder / "registration_reference.png", ""
        if self._writes and shown.parent.is_dir():  # before training there is no run folder
            write_image(shown, _in_red(image, error.silhouette))
            hint = f" ({shown} shows it in red)"
        return NoReferencePartError(
            "data.registration_method = part",
            f"no part found in {self.reference_path}: {error}{hint}",
            "set data.registration_reference to another image, or data.registration_method=scene",
        )

    @cached_property
    def digest(self) -> str:
        """Digest of everything that registration depends on besides the images: reference and method."""
        digest = self._embedded.digest if self._embedded else provenance.file_digest(self.reference_path)
        if self._is_of_parts:
            data = self.config.data
            digest += " part" + ", mirrored" * data.registration_mirror + ", cropped" * data.registration_crop
        return digest

    def homography(self, image: np.ndarray) -> np.ndarray | None:
        """Homography (3, 3) from an image, uint8 (H, W, 3), to the reference; None if it is not reliable.

        Neither is that of an image that OpenCV cannot warp, of more than LONGEST_SIDE pixels a side.
        """
        if max(image.shape) > LONGEST_SIDE:
            return None
        if self._is_of_parts:
            return part_pose.register(image, self._part, self.config.data.registration_mirror)
        return register_scene(image, self.reference)

    def homography_of(self, path: Path) -> np.ndarray | None:
        """Homography of an image that `register` has processed; None if it is not reliable."""
        return self._homographies[path]

    def warp(
        self, image: np.ndarray, homography: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Warp an image and its mask onto the reference.

        Args:
            image: uint8 (H, W, 3). homography: (3, 3), from its pixels to the reference's. mask: uint8 (H, W) or None.

        Returns:
            image and mask at the size of the reference, and has_source, bool (H, W). Where it is False, the image is
            black, or has its background color with the method 'part'.
        """
        size = self.reference.shape[:2]
        warped, has_source = warp(image, homography, size)
        if self._is_of_parts:
            warped[~has_source] = part_segmentation.background_color(image)
        if mask is not None:
            mask, _ = warp(mask, homography, size, cv2.INTER_NEAREST)
        return warped, mask, has_source

    def to_own_pixels(self, anomaly_map: np.ndarray, homography: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Warp an anomaly map back from the reference to the image.

        Args:
            anomaly_map: float32 (h, w), of the registered image. homography: from the image to the reference.
            shape: (H, W) of the image.

        Returns:
            float32 (H, W).
        """
        frame = resize(anomaly_map, self.reference.shape[:2])
        return warp(frame, np.linalg.inv(homography), shape)[0]

    def register(self, samples: Sequence[TestSample], group: "Together | None" = None) -> None:
        """Compute the homographies of the images that have none yet.

        Args:
            group: processes of a distributed run; each registers a share of the images, and all get all results.
        """
        new = [sample.path for sample in samples if sample.path not in self._homographies]
        if not new:
            return
        _ = self._part if self._is_of_parts else self.reference  # computed before threads share it
        own = new[group.rank :: group.count] if group else new
        with tqdm(desc="registration", total=len(own), unit="image", leave=None, disable=len(own) == 1) as bar:

            def find(path: Path) -> np.ndarray | None:
                homography = self.homography(self.read(path))
                bar.update()
                return homography

            own_homographies = dict(zip(own, map_in_threads(find, own), strict=True))
        for share in group.gather(own_homographies) if group else [own_homographies]:
            self._homographies |= share

    def registration_summary(self, samples: Sequence[TestSample], what: str) -> str:
        """Sentence with the number and names of images that could not be registered; empty if there are none.

        Args:
            what: word for the images, a plural such as 'test images'.
        """
        names = self.unregistered(samples)
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        return f"{len(names)} of {len(samples)} {what} could not be registered: {shown}" if names else ""

    def register_to_train(self, files: Sequence[Path]) -> str:
        """Register training images, and return their `registration_summary`; UserError if more than half fail."""
        samples = [TestSample(file, False, file.name) for file in files]
        self.register(samples)
        summary = self.registration_summary(samples, "nominal images")
        if len(self.unregistered(samples)) > len(files) / 2:
            raise UserError(
                "data.registration_training",
                summary,
                "change data.registration_method or data.registration_reference, or set it to false",
            )
        return summary

    def unregistered(self, samples: Sequence[TestSample]) -> list[str]:
        """Names of the images whose registration is not reliable; these are used unregistered."""
        return [sample.name for sample in samples if self._homographies[sample.path] is None]


class RegisteredTrainingImages(ArrayCache):
    """Training images, registered and resized, uint8 (H, W, 3), BGR. Those that cannot be registered are only resized.

    Raises:
        UserError: more than half of the images cannot be registered.
    """

    def __init__(self, folder: Path, files: Sequence[Path], registering: Registration):
        self._registering, self._files, size = registering, list(files), registering.config.data.img_size
        digests = provenance.file_digests(self._files)
        parts_of_name = [provenance.VERSION, registering.white_level, registering.digest, *digests]
        name = f"registered_images_{size[0]}x{size[1]}_{provenance.digest(parts_of_name)}"
        self._summary_path = folder / f"{name}.txt"  # names of unregistered images, for later runs that use the cache
        super().__init__(folder, name, "registered images", len(self._files), (*size, 3), half_of_disk(folder))
        if self._summary_path.is_file() and (summary := self._summary_path.read_text(encoding="utf-8")):
            print(f"{summary}; training uses them unregistered")

    def _write(self, title: str) -> None:
        write_text(self._summary_path, self._registering.register_to_train(self._files))
        super()._write(title)

    def make(self, index: int) -> np.ndarray:
        """Register and resize image `index`: uint8 (H, W, 3), BGR."""
        path = self._files[index]
        self._registering.register([TestSample(path, False, path.name)])  # a no-op, except with an earlier run's cache
        image, homography = self._registering.read(path), self._registering.homography_of(path)
        if homography is not None:
            image, *_ = self._registering.warp(image, homography)
        return resize(image, self._registering.config.data.img_size)


def _in_red(image: np.ndarray, silhouette: np.ndarray) -> np.ndarray:
    """An image, uint8 (H, W, 3), with a silhouette, bool (h, w), in red."""
    red = image.copy()
    red[..., 2] = 255
    silhouette = cv2.resize(silhouette.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
    return np.where(silhouette[..., None], red, image)
