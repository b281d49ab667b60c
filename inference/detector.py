"""The Python entrance: pictures in; scores, verdicts, anomaly maps and outlined regions out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from config import Config, map_settings, with_white_level
from data.image_io import resize
from evaluation.metrics import Region, image_score, regions
from evaluation.thresholds import MANUAL, relative
from inference import checkpoint, threshold_file
from inference.checkpoint import Checkpoint
from inference.detect import NetworkOutput, Networks
from inference.preprocessing import ModelInput, Preprocessor, apply_valid_mask, configured
from runtime.errors import UserError
from runtime.provenance import Provenance


class Limits(NamedTuple):
    """What a picture is judged by: scores, and pixels of the map, above these are anomalous."""

    kind: str
    image: float
    pixel: float


@dataclass(frozen=True)
class Detection:
    """What was found in one picture.

    Attributes:
        score: image score, in [0, 1].
        relative: the score with 0.5 at the threshold, see `evaluation.thresholds.relative`; None without thresholds.
        verdict: anomalous or nominal; None without thresholds.
        anomaly_map: float32 (H, W) in [0, 1], of the picture's own size.
        mask: bool (H, W), the map above the pixel threshold; None without thresholds.
        regions: connected parts of the mask, the largest first.
        seen: picture, reconstruction and map as the networks had them.
    """

    score: float
    relative: float | None
    verdict: str | None
    anomaly_map: np.ndarray
    mask: np.ndarray | None
    regions: list[Region]
    seen: NetworkOutput


class Detector:
    """A trained model, ready for pictures.

    Args:
        ckpt: with its model. config: the settings, see `checkpoint.for_new_images`.

    Attributes:
        limits: None without thresholds. thresholds: all that are known, type -> of images and of pixels.
        nominal_scores: of the pictures that they are from, where known.
        notes: what the user should know, a sentence each.
        run_folder: with all that belongs to the checkpoint. name: of the checkpoint among those of its run.
        thresholds_path: the file that the limits are from, or would be.

    Raises:
        UserError: thresholds of something else; regions or a reference picture that cannot be read.
    """

    def __init__(self, ckpt: Checkpoint, config: Config):
        if config.is_explicit("data.white_level"):
            config = checkpoint.resolve_white_level(config, ckpt)  # which refuses another than the checkpoint's
        elif ckpt.images is not None:
            config = with_white_level(config, ckpt.white_level)
        self.ckpt, self.config, self.technique = ckpt, config, configured(config)
        self._preprocessor = Preprocessor(config, [self.technique], embedded=ckpt.assets_for(config))
        self._networks = Networks(ckpt.model, config, 0)
        self.notes: list[str] = []
        self.nominal_scores: list[float] = []
        self.thresholds: dict[str, tuple[float, float]] = {}
        self.run_folder, self.name = config.run_folder, ckpt.name
        if ckpt.images is not None:  # of this program: what lies beside it is its own
            self.run_folder, self.name = ckpt.path.parent, str(checkpoint.epoch_of(ckpt.path))
        self.limits = self._read_limits()

    @property
    def images_at_once(self) -> int:
        """How many pictures to prepare and run together."""
        return self._networks.images_at_once

    @classmethod
    def load(cls, path: Path | str, device: str = "auto", nominal: str | None = None) -> "Detector":
        """Of a checkpoint, or of a run's folder: its last epoch.

        Args:
            device: auto, cuda, cuda:N, mps or cpu. nominal: take the thresholds from the folder of this name, see
                `engine.threshold.run_on`; None: those from held-out images.

        Raises:
            UserError: no checkpoint there, or one that cannot be used.
        """
        path = Path(path)
        if path.is_dir():
            epochs = checkpoint.saved_epochs(path)
            path = checkpoint.epoch_path(path, epochs[-1]) if epochs else path / "last.pt"
        if not path.is_file():
            raise UserError(path, "no checkpoint there", "name a run's folder or a file epoch_*.pt")
        config = checkpoint.load_facts(path).settings or Config()
        return cls.of(config.with_values({"metrics.nominal": nominal}), path, device=device)

    @classmethod
    def of(cls, config: Config, path: Path, device: str | None = None) -> "Detector":
        """Of a checkpoint, with settings that name its widths."""
        changes = {"data.load_epoch": path.as_posix(), "train.device": device or config.train.device}
        config = config.with_values(changes)
        return cls(checkpoint.load(config), config)

    def _read_limits(self) -> Limits | None:
        settings = self.config.metrics
        self.thresholds_path = threshold_file.path_of(self.run_folder, self.name, self.technique, settings.nominal)
        if not settings.threshold:
            return None
        if settings.threshold_type == MANUAL:
            return self._limits_of(threshold_file.manual(self.config))
        if not self.thresholds_path.is_file():
            return None
        found, made_from = threshold_file.read(self.thresholds_path)
        now = replace(self.made_from(), nominal=made_from.nominal)
        if changed := made_from.differences(replace(now, precision=made_from.precision)):
            raise UserError(self.thresholds_path, f"out of date: {', '.join(changed)}", threshold_file.FIX_HINT)
        if now.precision != made_from.precision:
            self.notes.append(
                f"thresholds were computed in {made_from.precision}, these scores are in {now.precision}: "
                "scores close to the threshold can be judged otherwise"
            )
        self.nominal_scores = found["image_scores"]
        return self._limits_of(found)

    def _limits_of(self, found: dict[str, Any]) -> Limits:
        self.thresholds = {kind: (limit, found["pixel"][kind]) for kind, limit in found["image"].items()}
        kind = self.config.metrics.threshold_type
        return Limits(kind, *self.thresholds[kind])

    def made_from(self) -> Provenance:
        """What scores depend on besides the pictures."""
        data = self.config.data
        settings = map_settings(self.config)
        settings["white_level"] = None if data.white_level == "auto" else data.white_level
        facts = self._preprocessor.facts(self.technique)
        return Provenance(weights=self.ckpt.fingerprint, settings=settings, **facts)

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> "Detection | list[Detection]":
        """What is found in one picture, BGR uint8 (H, W, 3) of any size, or in each of a list.

        Raises:
            ValueError: another type or shape. UserError: a region does not fit the picture.
        """
        if isinstance(images, np.ndarray):
            return self.run([self.prepare(images)])[0]
        return self.run([self.prepare(image) for image in images])

    def read(self, path: Path) -> ModelInput:
        """A picture file, ready for `run`; UserError where it cannot be read or used."""
        return self.prepare(self._preprocessor.read(path), path.as_posix())

    def prepare(self, image: np.ndarray, name: str = "picture") -> ModelInput:
        """One picture as the networks are to see it. May be called from several threads."""
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
            what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"a picture must be BGR, uint8 (H, W, 3), not {what}")
        homography = self._preprocessor.registration.homography(image) if self.technique.registered else None
        found = self._preprocessor.align(image, homography)
        if self.technique.masking != "no":
            found = self._preprocessor.apply_region(found, self.technique.variant, Path(name))
        return found

    def run(self, prepared: Sequence[ModelInput]) -> list[Detection]:
        """What is found in prepared pictures; `images_at_once` fill a pass of the networks."""
        images = (torch.from_numpy(np.ascontiguousarray(one.image.transpose(2, 0, 1))) for one in prepared)
        return [
            self._detection_of(picture, reconstruction.permute(1, 2, 0).cpu().numpy(), anomaly_map.cpu().numpy())
            for picture, (reconstruction, anomaly_map) in zip(prepared, self._networks(images), strict=True)
        ]

    def _detection_of(self, picture: ModelInput, reconstruction: np.ndarray, anomaly_map: np.ndarray) -> Detection:
        if not np.isfinite(anomaly_map).all():
            raise UserError("image", "its anomaly map is not finite", "use another checkpoint, or train.precision=fp32")
        nothing = np.zeros(anomaly_map.shape, bool)
        seen = NetworkOutput(0, picture.image, reconstruction, anomaly_map, nothing, picture.valid, picture.region)
        seen = apply_valid_mask(seen, self.technique)
        score, own = float(image_score(seen.anomaly_map)), self._in_own_pixels(seen.anomaly_map, picture)
        if self.limits is None:
            return Detection(score, None, None, own, None, [], seen)
        mask = own > self.limits.pixel
        verdict = "anomalous" if score > self.limits.image else "nominal"
        return Detection(score, relative(score, self.limits.image), verdict, own, mask, regions(mask), seen)

    def _in_own_pixels(self, anomaly_map: np.ndarray, picture: ModelInput) -> np.ndarray:
        if picture.homography is None:
            return resize(anomaly_map, picture.shape)
        return self._preprocessor.registration.to_own_pixels(anomaly_map, picture.homography, picture.shape)
