"""Techniques of evaluation: what is done to pictures before the networks see them, and to anomaly maps afterwards."""

import hashlib
import os
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
from config import Config
from engine import runtime
from errors import UserError
from evaluation import masking, registration
from synthesis import read_image, resize

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
        UserError: masking without regions, a region file or reference picture that cannot be read.
    """

    def __init__(self, config: Config, techniques: Sequence[Technique]):
        self.config = config
        self.key = f"masking.regions.{config.data.category}"
        self.region_source = self.reference_source = None  # what tells them from others
        self.reference = self._region = None
        self._homographies: dict[Path, np.ndarray | None] = {}
        if any(technique.masking != "no" for technique in techniques):
            self._read_region(config.masking.regions.get(config.data.category))
        if any(technique.registered for technique in techniques):
            self._read_reference(config.data.registration_reference)

    def _read_region(self, region: list[list[int]] | str | None) -> None:
        if region is None:
            raise UserError(
                f"{self.key}: masking is asked for, but no region is given; give [[y0, y1, x0, x1], ...] or a mask's "
                "path, or set metrics.masking=false"
            )
        if isinstance(region, str):
            self._region = read_image(Path(region), flags=cv2.IMREAD_GRAYSCALE) > 127
            region = _digest(Path(region))
        self.region_source = region

    def _read_reference(self, path: str | None) -> None:
        if path is None:
            path = data_loader.list_nominal(
                data_loader.category_folder(Path(self.config.data.data_path), self.config.data.category)
            )[0]
        self.reference, self.reference_source = read_image(Path(path)), _digest(Path(path))

    def check(self, path: Path, techniques: Sequence[Technique]) -> None:
        """UserError where the regions do not fit a picture, or the reference that it is laid over."""
        for technique in techniques:
            if technique.masking != "no":
                self.region(self.reference.shape[:2] if technique.registered else read_image(path).shape[:2], path)

    def identity(self, technique: Technique) -> dict[str, Any]:
        """What the maps of a technique depend on besides weights and pictures."""
        return {
            "technique": technique.name,
            "regions": self.region_source if technique.masking != "no" else None,
            "reference": self.reference_source if technique.registered else None,
        }

    def dataset(self, pictures: Sequence[data_loader.TestImage], variant: Variant) -> "VariantDataset":
        """The pictures in an input variant."""
        homographies = self._register(pictures) if variant.registered else None
        return VariantDataset(pictures, self.config.data.img_size, self, homographies, variant)

    def _register(self, pictures: Sequence[data_loader.TestImage]) -> list[np.ndarray | None]:
        new = [picture.path for picture in pictures if picture.path not in self._homographies]
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        if new:
            with runtime.mendable_errors(), ThreadPoolExecutor(workers) as pool:  # OpenCV works outside Python's lock
                found = pool.map(lambda path: registration.register(read_image(path), self.reference), new)
                for path, homography in zip(
                    new, tqdm(found, "registration", len(new), unit="image", leave=None), strict=True
                ):
                    self._homographies[path] = homography
        return [self._homographies[picture.path] for picture in pictures]

    def unregistered(self, pictures: Sequence[data_loader.TestImage]) -> list[Path]:
        """Pictures whose registration cannot be trusted: they are kept as they are."""
        return [picture.path for picture in pictures if self._homographies.get(picture.path) is None]

    def region(self, shape: tuple[int, int], path: Path) -> np.ndarray:
        """The category's region, bool (H, W), for a picture of this shape."""
        if self.region_source is None:
            return np.zeros(shape, bool)
        if self._region is None:
            try:
                return masking.region_mask(self.region_source, shape)
            except ValueError as error:
                raise UserError(f"{self.key}: {error}, as {path} is; mend it") from error
        if self._region.shape != shape:
            found, wanted = ("{1} x {0}".format(*size) for size in (self._region.shape, shape))
            raise UserError(
                f"{self.key}: mask of {found} pixels, but {path} has {wanted} (width x height); give one of its size"
            )
        return self._region


def _digest(path: Path) -> str:
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


class VariantDataset(data_loader.DRAEMTestDataset):
    """Test pictures in an input variant. Samples have, besides, `valid` and `region`, bool (1, H, W): False where the
    warp has no source; True where the category's region lies."""

    def __init__(
        self,
        pictures: Sequence[data_loader.TestImage],
        image_size: tuple[int, int],
        preparation: Preparation,
        homographies: list[np.ndarray | None] | None,
        variant: Variant,
    ):
        super().__init__(pictures, image_size)
        self.preparation, self.homographies, self.variant = preparation, homographies, variant

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor | int]:
        image, mask = self.read(idx)
        homography = self.homographies[idx] if self.homographies else None
        valid = np.ones(self.image_size, bool)
        if homography is not None:
            size = self.preparation.reference.shape[:2]
            mask, _ = registration.warp(mask, homography, size, cv2.INTER_NEAREST)
            image, has_source = registration.warp(image, homography, size)
            valid = ~masking.resize_region(~has_source, self.image_size)
        region = self.preparation.region(image.shape[:2], self.images[idx].path)
        region = masking.resize_region(region, self.image_size)
        if self.variant.pre_masked:
            image = resize(image, self.image_size).copy()
            image[region] = 0
        sample = self.sample(idx, image, mask)
        return sample | {"valid": torch.from_numpy(valid[None]), "region": torch.from_numpy(region[None])}
