"""Techniques of evaluation: what is done to pictures before the networks see them, and to anomaly maps afterwards."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from config import Config
from data.cache import ArrayCache
from data.image_io import decode_mask_file, from_png, read_size, resize, resize_mask, to_png
from data.mvtec import TestSample
from data_loader import DRAEMTestDataset
from inference import masking
from registration.register import NoReferencePartError, Registration
from runtime import provenance
from runtime.device import select_device, select_precision
from runtime.errors import UserError

if TYPE_CHECKING:
    from inference.detect import NetworkOutput
    from runtime.device import Together

MASK_SIGNALS = ("no", "pre", "post")


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


TECHNIQUES = [Technique(masking, registered) for registered in (False, True) for masking in MASK_SIGNALS]


def configured(config: Config) -> Technique:
    """The technique that the settings ask for."""
    masked = "pre" if config.data.pre_masking else "post"
    return Technique(masked if config.metrics.masking else "no", config.data.image_registration)


def apply_valid_mask(output: "NetworkOutput", technique: Technique) -> "NetworkOutput":
    """What the networks made of a picture, with 0 in the map and not valid what a technique leaves out."""
    valid = output.valid
    if technique.masking != "no" and output.region is not None:
        valid = ~output.region if valid is None else valid & ~output.region
    if valid is None or valid.all():
        return replace(output, valid=None)
    return replace(output, anomaly_map=np.where(valid, output.anomaly_map, np.float32(0)), valid=valid)


@dataclass(frozen=True)
class ModelInput:
    """An image as the networks get it.

    Attributes:
        image: uint8 (H, W, 3), BGR, of the image size.
        shape: height and width of the image as it was; None where that is not known.
        homography: 3 x 3, from its pixels to the reference's; None where it was not registered.
        mask: ground truth, bool (H, W); None where none was given.
        valid: bool (H, W), False where the warp has no source; None for all True.
        region: bool (H, W), where the category's region lies; None where no technique asks for it.
    """

    image: np.ndarray
    shape: tuple[int, int] | None
    homography: np.ndarray | None = None
    mask: np.ndarray | None = None
    valid: np.ndarray | None = None
    region: np.ndarray | None = None


class Preprocessor:
    """Brings one category's images into the form that the networks get, the same in all modes.

    Args:
        config: the settings. techniques: those that will be asked for.
        embedded: the images of `embed_assets` that a checkpoint brings along, in place of their files.
        kept_in: folder to keep registered pictures in, for several passes over them; None: they are warped when read.

    Raises:
        UserError: masking without regions, a region file or a named reference picture that cannot be read.
    """

    def __init__(
        self,
        config: Config,
        techniques: Sequence[Technique],
        kept_in: Path | None = None,
        embedded: dict[str, dict[str, Any]] | None = None,
    ):
        self.config, self.kept_in, self.embedded = config, kept_in, embedded or {}
        self.registration = Registration(config, self.embedded.get("reference"))
        self.key = f"masking.regions.{config.data.category}"
        self._region_source = self._region = None
        if any(technique.masking != "no" for technique in techniques):
            self._read_region(config.masking.regions.get(config.data.category))
        if any(technique.registered for technique in techniques):
            self.registration.check()  # now: a mistake is told before anything runs

    def _read_region(self, region: list[list[int]] | str | None) -> None:
        if region is None:
            raise UserError(
                self.key,
                "masking is on, but no region is given",
                "give [[y0, y1, x0, x1], ...] or a mask's path, or set metrics.masking=false",
            )
        if isinstance(region, str) and "region" in self.embedded:
            self._region = from_png(self.embedded["region"]["png"].numpy()) > 0
            region = self.embedded["region"]["digest"]
        elif isinstance(region, str):
            self._region = decode_mask_file(Path(region)).mask
            region = provenance.file_digest(Path(region))
        self._region_source = region

    def check(self, pictures: Sequence[TestSample], techniques: Sequence[Technique]) -> None:
        """UserError where the regions do not fit what they are laid over: each picture, or the reference.

        No picture is decoded for it. One that cannot be read is passed over here: the pass over it will fail.
        """
        masked = [technique for technique in techniques if technique.masking != "no"]
        if any(technique.registered for technique in masked):
            self.region(self.registration.reference.shape[:2], self.registration.reference_path)
        if all(technique.registered for technique in masked):
            return
        shapes: dict[tuple[int, int], Path] = {}
        for picture in pictures:
            with suppress(UserError):
                shapes.setdefault(read_size(picture.path), picture.path)
        for shape, path in shapes.items():
            self.region(shape, path)

    def provenance_fields(self, technique: Technique) -> dict[str, Any]:
        """What maps and metrics depend on besides weights and pictures, as a Provenance names it."""
        device = select_device(self.config.train.device)
        precision = select_precision(self.config.train.precision, device)
        return {
            "technique": technique.name,
            "region": self._region_source if technique.masking != "no" else None,
            "reference": self.registration.digest if technique.registered else None,
            "precision": str(precision).removeprefix("torch."),
        }

    def read(self, path: Path) -> np.ndarray:
        """An image file, uint8 (H, W, 3), BGR, of its own size, white as in training."""
        return self.registration.read(path)

    def align(self, image: np.ndarray, homography: np.ndarray | None, mask: np.ndarray | None = None) -> ModelInput:
        """Warp an image onto the reference, and resize it.

        Args:
            image: uint8 (H, W, 3), BGR. homography: see `ModelInput`; None: it keeps its place.
            mask: ground truth, uint8 (H, W), 0 or 255.
        """
        size, shape, valid = self.config.data.img_size, image.shape[:2], None
        if homography is not None:
            image, mask, has_source = self.registration.warp(image, homography, mask)
            valid = ~masking.resize_region(~has_source, size)
        if mask is not None:
            mask = resize_mask(mask, size)
        return ModelInput(resize(image, size), shape, homography, mask, valid)

    def apply_region(self, model_input: ModelInput, variant: Variant, path: Path) -> ModelInput:
        """The same with the category's region, which is black where the variant is pre-masked. path: for errors."""
        region, image = self.resized_region(variant, path, model_input.shape), model_input.image
        if variant.pre_masked:
            image = np.where(region[..., None], np.uint8(0), image)
        return replace(model_input, image=image, region=region)

    def dataset(
        self, pictures: Sequence[TestSample], techniques: Sequence[Technique], group: "Together | None" = None
    ) -> "VariantDataset":
        """The pictures in the input variant that these techniques share. group: see `Registration.register`."""
        [variant] = {technique.variant for technique in techniques}
        needs_region = any(technique.masking != "no" for technique in techniques)
        registered = None
        if variant.registered:
            self.registration.register(pictures, group)
            if self.kept_in:
                registered = RegisteredImages(self, pictures)
        return VariantDataset(pictures, self, variant, needs_region, registered)

    def resized_region(self, variant: "Variant", path: Path, shape: tuple[int, int] | None) -> np.ndarray:
        """The category's region at the image size, bool (H, W), for a picture of this shape (None: read it).

        Where pictures are registered it is the reference's, also for those that could not be: they keep their place,
        and all are resized to one size.
        """
        if variant.registered:
            path, shape = self.registration.reference_path, self.registration.reference.shape[:2]
        return masking.resize_region(self.region(shape or read_size(path), path), self.config.data.img_size)

    def region(self, shape: tuple[int, int], path: Path) -> np.ndarray:
        """The category's region, bool (H, W), for a picture, or the reference it is laid over, of this shape."""
        if self._region is None:
            try:
                return masking.region_mask(self._region_source, shape)
            except masking.RegionError as error:
                raise UserError(
                    self.key,
                    f"{error}: {path}, or the reference that it is registered to",
                    "give rectangles that lie inside",
                ) from error
        if self._region.shape != shape:
            found, wanted = ("{1} x {0}".format(*size) for size in (self._region.shape, shape))
            raise UserError(
                self.key,
                f"mask of {found} pixels, but {path} (or its reference) has {wanted} (width x height)",
                "give one of its size",
            )
        return self._region


def embed_assets(config: Config, kept: dict[str, dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """The pictures that the configured technique needs, for a checkpoint to bring along: `region`, `reference`.

    Each its path, the digest of its file, and uint8 bytes of a PNG: of the reference as it is read, of the region 0 or
    255. One that cannot be read is left out, as training does not need it; detection will say what is wrong.

    Args:
        kept: of an earlier state; training pictures lie as its reference does, whatever is the first one now.

    Raises:
        UserError: no reference where training pictures are registered, or one without a part.
    """
    technique, found, embedded = configured(config), {}, {}
    region = config.masking.regions.get(config.data.category)
    if technique.masking != "no" and isinstance(region, str):
        with suppress(UserError):
            found["region"] = Path(region), decode_mask_file(Path(region)).mask.astype(np.uint8) * 255
    if config.data.registration_training and kept and "reference" in kept:
        embedded["reference"] = kept["reference"]
    elif technique.registered:
        registering = Registration(config)
        try:
            registering.check()
            found["reference"] = registering.reference_path, registering.reference
        except NoReferencePartError:
            raise
        except UserError:
            if config.data.registration_training:
                raise
    return embedded | {
        name: {"path": path.as_posix(), "digest": provenance.file_digest(path), "png": torch.from_numpy(to_png(image))}
        for name, (path, image) in found.items()
    }


class VariantDataset(DRAEMTestDataset):
    """Test pictures in an input variant. Samples have, besides, `valid` and `region`, bool (1, H, W).

    Args:
        registered: the pictures aligned already, in the same order; None: that is done here.
    """

    def __init__(
        self,
        pictures: Sequence[TestSample],
        preprocessor: Preprocessor,
        variant: Variant,
        needs_region: bool,
        registered: "RegisteredImages | None" = None,
    ):
        super().__init__(pictures, preprocessor.config.data.img_size, preprocessor.registration.white_level)
        self.preprocessor, self.variant, self.needs_region = preprocessor, variant, needs_region
        self._registered = registered

    def align(self, idx: int) -> ModelInput:
        """A picture and its mask, registered where the variant is, and resized."""
        image, mask = self.read(idx)
        homography = None
        if self.variant.registered:
            homography = self.preprocessor.registration.homography_of(self.images[idx].path)
        return self.preprocessor.align(image, homography, mask)

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor | int]:
        found = self._registered.model_input(idx) if self._registered else self.align(idx)
        if self.needs_region:
            found = self.preprocessor.apply_region(found, self.variant, self.images[idx].path)
        valid = np.ones(self.image_size, bool) if found.valid is None else found.valid
        region = np.zeros(self.image_size, bool) if found.region is None else found.region
        sample = self.sample(idx, found.image, found.mask)
        return sample | {"valid": torch.from_numpy(valid[None]), "region": torch.from_numpy(region[None])}


class RegisteredImages(ArrayCache):
    """Pictures, masks and where they are valid, registered and resized, uint8 (H, W, 5), for many passes."""

    def __init__(self, preprocessor: Preprocessor, pictures: Sequence[TestSample]):
        size = preprocessor.config.data.img_size
        self._source = VariantDataset(pictures, preprocessor, Variant(True, False), needs_region=False)
        files = [path for picture in pictures for path in (picture.path, *picture.masks)]
        parts = [
            provenance.VERSION,
            preprocessor.registration.white_level,
            preprocessor.registration.digest,
        ]
        parts += [*(len(picture.masks) for picture in pictures), *provenance.file_digests(files)]
        name = f"registered_{size[0]}x{size[1]}_{provenance.digest(parts)}"
        super().__init__(preprocessor.kept_in, name, "registered pictures", len(pictures), (*size, 5))

    def make(self, index: int) -> np.ndarray:
        """Blue, green, red, mask (0 or 255), valid (0 or 255)."""
        found = self._source.align(index)
        valid = np.ones(found.mask.shape, bool) if found.valid is None else found.valid
        return np.dstack([found.image, found.mask.astype(np.uint8) * 255, valid.astype(np.uint8) * 255])

    def model_input(self, index: int) -> ModelInput:
        """One of them; its own size is not known any more."""
        planes = self[index]
        return ModelInput(planes[..., :3], None, mask=planes[..., 3] > 0, valid=planes[..., 4] > 0)
