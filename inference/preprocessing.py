"""Preprocessing of images for the networks (registration, resizing, masking), and masking of anomaly maps."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from config import Config
from data.annotations import MaskSource
from data.cache import ArrayCache
from data.image_io import EmbeddedImage, decode_mask_file, read_size, resize, resize_mask
from data.mvtec import TestSample, check_bit_depth
from data_loader import DRAEMTestDataset
from inference import checkpoint, masking
from inference.checkpoint import CheckpointMetadata
from registration.register import Registration
from runtime import provenance
from runtime.device import select_device, select_precision
from runtime.errors import UserError

if TYPE_CHECKING:
    from inference.detect import NetworkOutput
    from runtime.device import Together

MASKINGS = ("no", "pre", "post")


@dataclass(frozen=True)
class Variant:
    """Input variant: how images are preprocessed for the networks.

    Attributes:
        registered: images are warped onto the reference. pre_masked: the masking region is black.
    """

    registered: bool
    pre_masked: bool


@dataclass(frozen=True)
class Technique:
    """Technique of evaluation: masking and registration.

    Attributes:
        masking: 'no'; 'pre': the region is black in the image and 0 in the anomaly map; 'post': 0 in the map only.
        registered: images are warped onto the reference.
    """

    masking: str = "no"
    registered: bool = False

    @property
    def name(self) -> str:
        """Name in files and results, such as pre_masking_registered."""
        return f"{self.masking}_masking" + ("_registered" if self.registered else "")

    @property
    def variant(self) -> Variant:
        """The input variant; 'post' has the same as 'no'."""
        return Variant(self.registered, self.masking == "pre")


TECHNIQUES = [Technique(masking, registered) for registered in (False, True) for masking in MASKINGS]


def configured(config: Config) -> Technique:
    """The technique in the settings."""
    masked = "pre" if config.data.pre_masking else "post"
    return Technique(masked if config.metrics.masking else "no", config.data.image_registration)


def apply_valid_mask(output: "NetworkOutput", technique: Technique) -> "NetworkOutput":
    """Apply the masking of a technique to an output.

    The anomaly map is 0, and `valid` False, in the masking region and where the warp has no source.
    """
    valid = output.valid
    if technique.masking != "no" and output.region is not None:
        valid = ~output.region if valid is None else valid & ~output.region
    if valid is None or valid.all():
        return replace(output, valid=None)
    return replace(output, anomaly_map=np.where(valid, output.anomaly_map, np.float32(0)), valid=valid)


@dataclass(frozen=True)
class ModelInput:
    """A preprocessed image; (H, W) is data.img_size.

    Attributes:
        image: uint8 (H, W, 3), BGR.
        shape: (height, width) of the image before preprocessing; None if unknown.
        homography: (3, 3), from pixels of the image to those of the reference; None if it is not registered.
        mask: ground truth, bool (H, W); None without one.
        valid: bool (H, W), False where the warp has no source; None for all True.
        region: masking region, bool (H, W); None if no technique needs it.
    """

    image: np.ndarray
    shape: tuple[int, int] | None
    homography: np.ndarray | None = None
    mask: np.ndarray | None = None
    valid: np.ndarray | None = None
    region: np.ndarray | None = None


class Preprocessor:
    """Prepares the images of one category for the networks, in the same way in all modes.

    Args:
        config: the settings. techniques: techniques that will be used.
        kept_in: folder for a cache of registered images, for several passes over them; None: no cache.
        embedded: images from a checkpoint (see `embedded_assets.embed`), used instead of their files.
        writes: whether a reference without a part may be written to the run's folder, for the user to see.

    Attributes:
        notes: a sentence for each file that has changed since its copy was embedded.
        region_of_mask: the masking region, bool (H, W), where it comes from a mask; else None.

    Raises:
        UserError: masking without a region, or a region or reference image that cannot be read.
    """

    def __init__(
        self,
        config: Config,
        techniques: Sequence[Technique],
        kept_in: Path | None = None,
        embedded: dict[str, EmbeddedImage] | None = None,
        writes: bool = True,
    ):
        self.config, self.kept_in, self.embedded = config, kept_in, embedded or {}
        self.registration = Registration(config, self.embedded.get("reference"), writes)
        self.notes: list[str] = []
        self.key = f"masking.regions.{config.data.category}"
        self.region_of_mask: np.ndarray | None = None
        self._region_source: Any = None  # rectangles, or the digest of a mask file
        if any(technique.masking != "no" for technique in techniques):
            self._read_region(config.masking.regions.get(config.data.category))
        if any(technique.registered for technique in techniques):
            self.registration.check()  # here, so that a mistake is reported before anything runs
            self._note_if_changed("reference", "data.registration_reference")

    @classmethod
    def for_checkpoint(
        cls, config: Config, ckpt: CheckpointMetadata, techniques: Sequence[Technique], kept_in: Path | None = None
    ) -> "Preprocessor":
        """Preprocessor with the white level and the embedded images of a checkpoint; `config` has the settings used."""
        config = checkpoint.resolve_white_level(config, ckpt)
        preprocessor = cls(config, techniques, kept_in, ckpt.assets_for(config))
        preprocessor.notes += checkpoint.notes_on_size(config, ckpt)
        return preprocessor

    def _read_region(self, region: list[list[int]] | str | None) -> None:
        if region is None:
            raise UserError(
                self.key,
                "masking is on, but no region is set",
                "set it to [[y0, y1, x0, x1], ...] or to the path of a mask, or set metrics.masking=false",
            )
        if isinstance(region, str) and "region" in self.embedded:
            self._note_if_changed("region", self.key)
            self.region_of_mask = self.embedded["region"].decode() > 0
            region = self.embedded["region"].digest
        elif isinstance(region, str):
            self.region_of_mask = decode_mask_file(Path(region)).mask
            region = provenance.file_digest(Path(region))
        self._region_source = region

    def _note_if_changed(self, name: str, key: str) -> None:
        """Add a note if the file of an embedded image is there and has changed. key: of its setting."""
        image = self.embedded.get(name)
        path = Path(image.path if image else "")
        if image and path.is_file() and provenance.file_digest(path) != image.digest:
            fix = f"set {key} on the command line"
            if name == "reference" and self.config.data.registration_training:
                fix = "train again"
            self.notes.append(
                f"{path} has changed since training; its copy in the checkpoint is used; to use the file, {fix}"
            )

    def check(self, samples: Sequence[TestSample], techniques: Sequence[Technique]) -> list[str]:
        """Check images before a pass; warnings about their bit depth, see `check_bit_depth`.

        Of most images, only the header is read. One that cannot be read is ignored; reading it later raises the error.

        Raises:
            UserError: the masking region does not fit the size of an image, or of the reference if it is registered.
        """
        warnings = check_bit_depth(samples, self.config.data.known_white_level)
        masked = [technique for technique in techniques if technique.masking != "no"]
        if any(technique.registered for technique in masked):
            self.region(self.registration.reference.shape[:2], self.registration.reference_path)
        if all(technique.registered for technique in masked):
            return warnings
        shapes: dict[tuple[int, int], Path] = {}
        for sample in samples:
            with suppress(UserError):
                shapes.setdefault(read_size(sample.path), sample.path)
        for shape, path in shapes.items():
            self.region(shape, path)
        return warnings

    def provenance_fields(self, technique: Technique) -> dict[str, Any]:
        """Fields of a Provenance that follow from the preprocessing: technique, region, reference and precision."""
        device = select_device(self.config.train.device)
        precision = select_precision(self.config.train.precision, device)
        return {
            "technique": technique.name,
            "region": self._region_source if technique.masking != "no" else None,
            "reference": self.registration.digest if technique.registered else None,
            "precision": str(precision).removeprefix("torch."),
        }

    def align(self, image: np.ndarray, homography: np.ndarray | None, mask: np.ndarray | None = None) -> ModelInput:
        """Warp an image onto the reference, and resize it to data.img_size.

        Args:
            image: uint8 (H, W, 3), BGR. homography: see `ModelInput`; None: the image is only resized.
            mask: ground truth, uint8 (H, W), 0 or 255; None without one.
        """
        size, shape, valid = self.config.data.img_size, image.shape[:2], None
        if homography is not None:
            image, mask, has_source = self.registration.warp(image, homography, mask)
            valid = ~masking.resize_region(~has_source, size)
        if mask is not None:
            mask = resize_mask(mask, size)
        return ModelInput(resize(image, size), shape, homography, mask, valid)

    def apply_region(self, model_input: ModelInput, variant: Variant, path: Path) -> ModelInput:
        """Add the masking region to an input; with pre-masking it is black in the image. path: of the image."""
        region, image = self.resized_region(variant, path, model_input.shape), model_input.image
        if variant.pre_masked:
            image = np.where(region[..., None], np.uint8(0), image)
        return replace(model_input, image=image, region=region)

    def dataset(
        self, samples: Sequence[TestSample], techniques: Sequence[Technique], group: "Together | None" = None
    ) -> "VariantDataset":
        """Dataset of images for techniques with one input variant. group: see `Registration.register`."""
        if (engine := self.config.inference.engine) != "torch":
            raise UserError(
                f"inference.engine = {engine}", "is for --predict, --watch, --nominal and --recalibrate", "leave it out"
            )
        [variant] = {technique.variant for technique in techniques}
        needs_region = any(technique.masking != "no" for technique in techniques)
        registered = None
        if variant.registered:
            self.registration.register(samples, group)
            if self.kept_in:
                registered = RegisteredTestImages(self, samples)
        return VariantDataset(samples, self, variant, needs_region, registered)

    def resized_region(self, variant: "Variant", path: Path, shape: tuple[int, int] | None) -> np.ndarray:
        """The masking region at data.img_size, bool (H, W), for the image at `path` (shape: its own size, if known).

        With registration it is the region of the reference, also for images that could not be registered.
        """
        if variant.registered:
            path, shape = self.registration.reference_path, self.registration.reference.shape[:2]
        return masking.resize_region(self.region(shape or read_size(path), path), self.config.data.img_size)

    def region(self, shape: tuple[int, int], path: Path) -> np.ndarray:
        """The masking region, bool of `shape` (height, width); UserError with `path` if it has another size."""
        if self.region_of_mask is None:
            try:
                return masking.region_mask(self._region_source, shape)
            except masking.RegionError as error:
                raise UserError(
                    self.key,
                    f"{error}: {path}, or the reference that it is registered to",
                    "change the rectangle",
                ) from error
        if self.region_of_mask.shape != shape:
            mask_size, image_size = ("{1} x {0}".format(*size) for size in (self.region_of_mask.shape, shape))
            raise UserError(
                self.key,
                f"the mask has {mask_size} pixels, but {path} (or its reference) has {image_size} (width x height)",
                "use a mask of that size",
            )
        return self.region_of_mask


class VariantDataset(DRAEMTestDataset):
    """Test images in an input variant. Samples also have `valid` and `region`, bool (1, H, W) (see `ModelInput`).

    Args:
        samples: images and masks. preprocessor: of the category. variant: how images are preprocessed.
        needs_region: whether samples get the masking region; without it `region` is all False.
        registered: cache of the registered images, in the same order; None: images are warped at every access.
    """

    def __init__(
        self,
        samples: Sequence[TestSample],
        preprocessor: Preprocessor,
        variant: Variant,
        needs_region: bool,
        registered: "RegisteredTestImages | None" = None,
    ):
        super().__init__(samples, preprocessor.config.data.img_size, preprocessor.registration.white_level)
        self.preprocessor, self.variant, self.needs_region = preprocessor, variant, needs_region
        self._registered = registered

    def align(self, idx: int) -> ModelInput:
        """Read an image and its mask; register them if the variant says so, and resize them."""
        image, mask = self.read(idx)
        homography = None
        if self.variant.registered:
            homography = self.preprocessor.registration.homography_of(self.images[idx].path)
        return self.preprocessor.align(image, homography, mask)

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor | int]:
        model_input = self._registered.model_input(idx) if self._registered else self.align(idx)
        if self.needs_region:
            model_input = self.preprocessor.apply_region(model_input, self.variant, self.images[idx].path)
        valid = np.ones(self.image_size, bool) if model_input.valid is None else model_input.valid
        region = np.zeros(self.image_size, bool) if model_input.region is None else model_input.region
        assert model_input.mask is not None  # `align` was given one
        sample = self.sample(idx, model_input.image, model_input.mask)
        return sample | {"valid": torch.from_numpy(valid[None]), "region": torch.from_numpy(region[None])}


class RegisteredTestImages(ArrayCache):
    """Cache of registered test images: image, mask and valid pixels as planes of a uint8 array (H, W, 5)."""

    def __init__(self, preprocessor: Preprocessor, samples: Sequence[TestSample]):
        size = preprocessor.config.data.img_size
        self._source = VariantDataset(samples, preprocessor, Variant(True, False), needs_region=False)
        files: list[MaskSource] = [path for sample in samples for path in (sample.path, *sample.masks)]
        parts = [provenance.VERSION, preprocessor.registration.white_level, preprocessor.registration.digest]
        parts += [*(len(sample.masks) for sample in samples), *provenance.file_digests(files)]
        name = f"registered_{size[0]}x{size[1]}_{provenance.digest(parts)}"
        assert preprocessor.kept_in is not None  # asked for by `Preprocessor.dataset`
        super().__init__(preprocessor.kept_in, name, "registered images", len(samples), (*size, 5))

    def make(self, index: int) -> np.ndarray:
        """Register and resize image `index`: planes blue, green, red, mask (0 or 255) and valid (0 or 255)."""
        aligned = self._source.align(index)
        assert aligned.mask is not None  # the source gives one
        valid = np.ones(aligned.mask.shape, bool) if aligned.valid is None else aligned.valid
        return np.dstack([aligned.image, aligned.mask.astype(np.uint8) * 255, valid.astype(np.uint8) * 255])

    def model_input(self, index: int) -> ModelInput:
        """Image `index` as an input of the networks; `shape` and `homography` are not stored and are None."""
        planes = self[index]
        return ModelInput(planes[..., :3], None, mask=planes[..., 3] > 0, valid=planes[..., 4] > 0)
