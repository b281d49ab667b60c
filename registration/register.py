"""Registration of a category's pictures: the reference, the method, and what has been registered so far."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from tqdm import tqdm

from config import Config
from data.cache import ArrayCache, half_of_disk
from data.folders import category_folder
from data.image_io import from_png, read_image, resize, write_image
from data.mvtec import TestSample, list_nominal
from registration import part_pose
from registration.homography import register as register_scene
from registration.homography import warp
from runtime import provenance
from runtime.device import core_count
from runtime.errors import UserError
from runtime.files import write_text

if TYPE_CHECKING:
    from runtime.device import Together


class NoReferencePartError(UserError):
    """The reference image has no part that others could be registered to."""


class Registration:
    """Lays one category's pictures over a reference picture. Each is registered once, whatever asks for it.

    Args:
        config: the settings. embedded: the reference that a checkpoint brings along, in place of its file.
    """

    def __init__(self, config: Config, embedded: dict[str, Any] | None = None):
        self.config, self._embedded = config, embedded
        self.white_level = None if config.data.white_level == "auto" else config.data.white_level
        self._homographies: dict[Path, np.ndarray | None] = {}  # no pictures: there may be very many

    @property
    def _is_of_parts(self) -> bool:
        return self.config.data.registration_method == "part"

    def read(self, path: Path) -> np.ndarray:
        """A picture as the networks are to see it, uint8 (H, W, 3), of its own size."""
        return read_image(path, white_level=self.white_level)

    def check(self) -> None:
        """UserError where the reference picture cannot be read, or has no part."""
        _ = self._part if self._is_of_parts else self.reference

    @cached_property
    def reference_path(self) -> Path:
        if self._embedded:
            return Path(self._embedded["path"])
        if self.config.data.registration_reference is not None:
            path = Path(self.config.data.registration_reference)
            if not path.is_file():
                raise UserError(
                    "data.registration_reference", f"{path} does not exist", "name another, or leave it out"
                )
            return path
        folder = category_folder(Path(self.config.data.data_path), self.config.data.category)
        return list_nominal(folder)[0]

    @cached_property
    def reference(self) -> np.ndarray:
        """The picture that others are laid over."""
        if self._embedded:
            return from_png(self._embedded["png"].numpy())
        return self.read(self.reference_path)

    @cached_property
    def _part(self) -> part_pose.Reference:
        """The part that others are laid over."""
        try:
            return part_pose.reference_of(self.reference)
        except part_pose.NoPartError as error:
            shown, hint = self.config.run_folder / "registration_reference.png", ""
            if shown.parent.is_dir():  # a check before any training writes nothing
                write_image(shown, _in_red(self.reference, error.silhouette))
                hint = f"; {shown} shows it"
            raise NoReferencePartError(
                "data.registration_method = part",
                f"no part found in {self.reference_path}: {error}",
                f"name another image with data.registration_reference, or set data.registration_method=scene{hint}",
            ) from error

    @cached_property
    def digest(self) -> str:
        """Tells all that registered pictures depend on besides themselves."""
        digest = self._embedded["digest"] if self._embedded else provenance.file_digest(self.reference_path)
        if self._is_of_parts:
            digest += " part" + (", mirrored" if self.config.data.registration_mirror else "")
        return digest

    def homography(self, image: np.ndarray) -> np.ndarray | None:
        """That lays a picture over the reference; None where it cannot be trusted."""
        if self._is_of_parts:
            return part_pose.register(image, self._part, self.config.data.registration_mirror)
        return register_scene(image, self.reference)

    def homography_of(self, path: Path) -> np.ndarray | None:
        """That of an image that `register` has met."""
        return self._homographies[path]

    def warp(
        self, image: np.ndarray, homography: np.ndarray, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """An image and its mask warped onto the reference.

        Args:
            image: uint8 (H, W, 3). homography: 3 x 3, from its pixels to the reference's. mask: uint8 (H, W).

        Returns:
            image and mask of the reference's size, and where the warp has a source, bool (H, W). Elsewhere the image is
            black; around a part it has the color of its background.
        """
        size = self.reference.shape[:2]
        warped, has_source = warp(image, homography, size)
        if self._is_of_parts:
            warped[~has_source] = part_pose.background_color(image)
        if mask is not None:
            mask, _ = warp(mask, homography, size, cv2.INTER_NEAREST)
        return warped, mask, has_source

    def to_own_pixels(self, anomaly_map: np.ndarray, homography: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """An anomaly map of the reference, float32, in the pixels of the image of `shape` that was warped onto it."""
        frame = resize(anomaly_map, self.reference.shape[:2])
        return warp(frame, np.linalg.inv(homography), shape)[0]

    def register(self, pictures: Sequence[TestSample], ranks: "Together | None" = None) -> None:
        """Register those that have not been yet. ranks: processes that do a share each and tell each other."""
        new = [picture.path for picture in pictures if picture.path not in self._homographies]
        if not new:
            return
        _ = self._part if self._is_of_parts else self.reference  # made before threads share it
        own = new[ranks.rank :: ranks.count] if ranks else new
        # Threads: OpenCV works outside the interpreter's lock.
        with ThreadPoolExecutor(core_count()) as pool:
            found = pool.map(lambda path: self.homography(self.read(path)), own)
            bar = tqdm(found, "registration", len(own), unit="image", leave=None, disable=len(own) == 1)
            done = dict(zip(own, bar, strict=True))
        for part in ranks.gather(done) if ranks else [done]:
            self._homographies |= part

    def registration_summary(self, pictures: Sequence[TestSample], what: str) -> str:
        """How many of `what` could not be registered, and which; empty where all could."""
        left = self.unregistered(pictures)
        shown = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        return f"{len(left)} of {len(pictures)} {what} could not be registered: {shown}" if left else ""

    def register_to_train(self, files: Sequence[Path]) -> str:
        """Register training images; their `registration_summary`. UserError where more than half cannot be."""
        pictures = [TestSample(file, False, file.name) for file in files]
        self.register(pictures)
        said = self.registration_summary(pictures, "nominal pictures")
        if len(self.unregistered(pictures)) > len(files) / 2:
            raise UserError(
                "data.registration_training",
                said,
                "set another data.registration_method or data.registration_reference, or leave it out",
            )
        return said

    def unregistered(self, pictures: Sequence[TestSample]) -> list[str]:
        """Pictures whose registration cannot be trusted, told from the category on: they are kept as they are."""
        return [picture.name for picture in pictures if self._homographies[picture.path] is None]


class RegisteredImages(ArrayCache):
    """Nominal images to train on, registered and resized, uint8 (H, W, 3); as they are where that cannot be trusted.

    Raises:
        UserError: more than half of them cannot be registered.
    """

    def __init__(self, folder: Path, files: Sequence[Path], registering: Registration):
        self._registering, self._files, size = registering, list(files), registering.config.data.img_size
        digests = provenance.file_digests(self._files)
        parts_of_name = [provenance.VERSION, registering.white_level, registering.digest, *digests]
        name = f"registered_images_{size[0]}x{size[1]}_{provenance.digest(parts_of_name)}"
        self._left = folder / f"{name}.txt"  # what could not be registered, for runs that find the file there
        super().__init__(folder, name, "registered pictures", len(self._files), (*size, 3), half_of_disk(folder))
        if self._left.is_file() and (said := self._left.read_text(encoding="utf-8")):
            print(f"{said}; they are trained on as they are")

    def _write(self, title: str) -> None:
        write_text(self._left, self._registering.register_to_train(self._files))
        super()._write(title)

    def make(self, index: int) -> np.ndarray:
        """The image of a file."""
        path = self._files[index]
        self._registering.register([TestSample(path, False, path.name)])  # what an earlier run has written is not yet
        image, homography = self._registering.read(path), self._registering.homography_of(path)
        if homography is not None:
            image, *_ = self._registering.warp(image, homography)
        return resize(image, self._registering.config.data.img_size)


def _in_red(image: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """A picture with what was taken for a part in red."""
    red = image.copy()
    red[..., 2] = 255
    seen = cv2.resize(seen.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
    return np.where(seen[..., None], red, image)
