"""Techniques of evaluation: what is done to pictures before the networks see them, and to anomaly maps afterwards."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

import data_loader
import runtime
from config import Config
from errors import UserError
from evaluation import masking, registration
from image_io import read_image, resize

MASKINGS = ("no", "pre", "post")


@dataclass(frozen=True)
class Variant:
    """What the networks are given: pictures as they are, or registered, pre-masked, or both."""

    registered: bool
    pre_masked: bool


@dataclass(frozen=True)
class Technique:
    """`masking`: no, pre (region black in the input, 0 in the map) or post (0 in the map). `registered`: pictures laid
    over the reference first."""

    masking: str = "no"
    registered: bool = False

    @property
    def name(self) -> str:
        """As files and results call it."""
        return f"{self.masking}_masking" + ("_registered" if self.registered else "")

    @property
    def variant(self) -> Variant:
        """The input that it needs; post-masking shares its one with no masking."""
        return Variant(self.registered, self.masking == "pre")


TECHNIQUES = [Technique(masking, registered) for registered in (False, True) for masking in MASKINGS]


def configured(config: Config) -> Technique:
    """The technique that the settings ask for."""
    masked = "pre" if config.data.pre_masking else "post"
    return Technique(masked if config.metrics.masking else "no", config.data.image_registration)


class Preparation:
    """Brings one category's pictures before the networks. Each picture is registered once, whatever asks for it.

    Args:
        config: the settings. techniques: those that will be asked for.

    Raises:
        UserError: masking without regions, a region file or a named reference picture that cannot be read.
    """

    def __init__(self, config: Config, techniques: Sequence[Technique]):
        self.config = config
        self.key = f"masking.regions.{config.data.category}"
        self._region_source = self._region = self._reference = None
        self._homographies: dict[Path, np.ndarray | None] = {}  # no pictures: there may be very many
        if any(technique.masking != "no" for technique in techniques):
            self._read_region(config.masking.regions.get(config.data.category))
        if any(technique.registered for technique in techniques) and config.data.registration_reference:
            self._read_reference()

    def _read_region(self, region: list[list[int]] | str | None) -> None:
        if region is None:
            raise UserError(
                f"{self.key}: masking is asked for, but no region is given; give [[y0, y1, x0, x1], ...] or a mask's "
                "path, or set metrics.masking=false"
            )
        if isinstance(region, str):
            self._region = read_image(Path(region), flags=cv2.IMREAD_GRAYSCALE) > 127
            region = _file_digest(Path(region))
        self._region_source = region

    def _read_reference(self) -> tuple[np.ndarray, str]:
        """The picture that others are laid over, and what tells it from others."""
        if self._reference is None:
            path = self.config.data.registration_reference
            if path is None:
                folder = data_loader.category_folder(Path(self.config.data.data_path), self.config.data.category)
                path = data_loader.list_nominal(folder)[0]
            self._reference = read_image(Path(path)), _file_digest(Path(path))
        return self._reference

    def check(self, pictures: Sequence[data_loader.TestImage], techniques: Sequence[Technique]) -> None:
        """UserError where the regions do not fit a picture. Pictures that cannot be read are told when they are due."""
        if all(technique.masking == "no" for technique in techniques):
            return
        for picture in pictures:
            try:
                shape = read_image(picture.path).shape[:2]
            except UserError:
                continue
            self.region(shape, picture.path)

    def identity(self, technique: Technique, pictures: Sequence[data_loader.TestImage]) -> dict[str, Any]:
        """What maps and metrics depend on besides the weights."""
        device = runtime.select_device(self.config.train.device)
        return {
            "technique": technique.name,
            "regions": self._region_source if technique.masking != "no" else None,
            "reference": self._read_reference()[1] if technique.registered else None,
            "img_size": list(self.config.data.img_size),
            "precision": str(runtime.select_precision(self.config.train.precision, device)),
            "pictures_digest": _pictures_digest(pictures),
        }

    def dataset(self, pictures: Sequence[data_loader.TestImage], techniques: Sequence[Technique]) -> "VariantDataset":
        """The pictures in the input variant that these techniques share."""
        [variant] = {technique.variant for technique in techniques}
        if variant.registered:
            self._register(pictures)
        needs_region = any(technique.masking != "no" for technique in techniques)
        return VariantDataset(pictures, self.config.data.img_size, self, variant, needs_region)

    def _register(self, pictures: Sequence[data_loader.TestImage]) -> None:
        new = [picture.path for picture in pictures if picture.path not in self._homographies]
        if not new:
            return
        reference, _ = self._read_reference()
        # Threads: OpenCV works outside the interpreter's lock.
        with runtime.mendable_errors(), ThreadPoolExecutor(runtime.core_count()) as pool:
            found = pool.map(lambda path: registration.register(read_image(path), reference), new)
            bar = tqdm(found, "registration", len(new), unit="image", leave=None)
            self._homographies.update(zip(new, bar, strict=True))

    def registered(
        self, path: Path, image: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """A picture that `dataset` has registered, laid over the reference; as it is where that cannot be trusted.

        Returns:
            image and mask, uint8, and where the warp has a source, bool (H, W), None for everywhere.
        """
        homography = self._homographies[path]
        if homography is None:
            return image, mask, None
        frame = self._read_reference()[0].shape[:2]
        mask, _ = registration.warp(mask, homography, frame, cv2.INTER_NEAREST)
        image, has_source = registration.warp(image, homography, frame)
        return image, mask, has_source

    def unregistered(self, pictures: Sequence[data_loader.TestImage]) -> list[str]:
        """Pictures whose registration cannot be trusted, told from the category on: they are kept as they are."""
        return [
            picture.path.relative_to(picture.path.parents[2]).as_posix()
            for picture in pictures
            if self._homographies[picture.path] is None
        ]

    def region(self, shape: tuple[int, int], path: Path) -> np.ndarray:
        """The category's region, bool (H, W), for a picture, or the reference it is laid over, of this shape."""
        if self._region is None:
            try:
                return masking.region_mask(self._region_source, shape)
            except ValueError as error:
                raise UserError(f"{self.key}: {error}: {path}, or the reference that it is laid over") from error
        if self._region.shape != shape:
            found, wanted = ("{1} x {0}".format(*size) for size in (self._region.shape, shape))
            raise UserError(
                f"{self.key}: mask of {found} pixels, but {path} (or the reference that it is laid over) has {wanted} "
                "(width x height); give one of its size"
            )
        return self._region


def _file_digest(path: Path) -> str:
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def _pictures_digest(pictures: Sequence[data_loader.TestImage]) -> str:
    """Digest of pictures and their masks."""
    files = ((picture.path, picture.mask_path) for picture in pictures)
    return runtime.files_digest(path for pair in files for path in pair if path)


class VariantDataset(data_loader.DRAEMTestDataset):
    """Test pictures in an input variant. Samples have, besides, `valid` and `region`, bool (1, H, W): False where the
    warp has no source; True where the category's region lies."""

    def __init__(
        self,
        pictures: Sequence[data_loader.TestImage],
        image_size: tuple[int, int],
        preparation: Preparation,
        variant: Variant,
        needs_region: bool,
    ):
        super().__init__(pictures, image_size)
        self.preparation, self.variant, self.needs_region = preparation, variant, needs_region

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor | int]:
        path, size = self.images[idx].path, self.image_size
        valid, region = np.ones(size, bool), np.zeros(size, bool)
        image, mask = self.read(idx)
        if self.variant.registered:
            image, mask, has_source = self.preparation.registered(path, image, mask)
            if has_source is not None:
                valid = ~masking.resize_region(~has_source, size)
        if self.needs_region:
            region = masking.resize_region(self.preparation.region(image.shape[:2], path), size)
        if self.variant.pre_masked:
            image = resize(image, size).copy()
            image[region] = 0
        sample = self.sample(idx, image, mask)
        return sample | {"valid": torch.from_numpy(valid[None]), "region": torch.from_numpy(region[None])}
