"""The Python entrance: images in; scores, verdicts, anomaly maps and outlined regions out."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import Config, map_settings
from data.image_io import read_image, resize
from evaluation.metrics import Region, image_score, regions
from evaluation.thresholds import KIND_SETTINGS, MANUAL, Thresholds, relative
from inference import checkpoint, exported, threshold_file
from inference.checkpoint import Checkpoint
from inference.detect import NetworkOutput, Networks
from inference.exported import Run
from inference.preprocessing import ModelInput, Preprocessor, apply_valid_mask, configured
from inference.threshold_file import NominalThresholds
from runtime.errors import UserError
from runtime.provenance import Provenance


@dataclass(frozen=True)
class Detection:
    """What was found in one image.

    Attributes:
        score: image score, in [0, 1].
        relative: the score with 0.5 at the threshold, see `evaluation.thresholds.relative`; None without thresholds.
        verdict: anomalous or nominal; None without thresholds.
        anomaly_map: float32 (H, W) in [0, 1], at the image's own size.
        mask: bool (H, W), True where the map is above the pixel threshold; None without thresholds.
        regions: connected regions of the mask, the largest first.
        output: image, reconstruction and anomaly map at the networks' size.
    """

    score: float
    relative: float | None
    verdict: str | None
    anomaly_map: np.ndarray
    mask: np.ndarray | None
    regions: list[Region]
    output: NetworkOutput


@cache
def _prepare_forks() -> None:
    """Let forked processes run the networks on one thread: those that torch has started do not exist in them."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class Detector:
    """A trained model, ready for images. It can be pickled, which loads the checkpoint anew, and used after a fork.

    Args:
        ckpt: with its model. config: the settings, see `checkpoint.for_new_images`.

    Attributes:
        thresholds: those that verdicts come from; None for none. all_thresholds: threshold kind -> thresholds.
        nominal_scores: image scores of the nominal images that the thresholds come from, where known.
        notes: what the user should know, a sentence each.
        run_folder: of the checkpoint. name: of the checkpoint within its run.
        engine: inference.engine. preprocessor: of the images.
        thresholds_path: the file that the thresholds come from, whether or not it exists.

    Raises:
        UserError: thresholds of another model or other settings; a region or reference image that cannot be read.
    """

    def __init__(self, ckpt: Checkpoint, config: Config):
        _prepare_forks()
        self.ckpt, self.technique = ckpt, configured(config)
        self.preprocessor = Preprocessor.for_checkpoint(config, ckpt, [self.technique])
        self.config = config = self.preprocessor.config
        self.notes = list(self.preprocessor.notes)
        self.nominal_scores: list[float] = []
        self.all_thresholds: dict[str, Thresholds] = {}
        self.run_folder, self.name = config.run_folder, ckpt.name
        if ckpt.images is not None:  # a checkpoint of this program has its run's files beside it
            self.run_folder = ckpt.path.parent
            self.name = ckpt.name if ckpt.is_within_epoch else str(checkpoint.epoch_of(ckpt.path))
        self.engine: str = config.inference.engine
        self._networks = Networks(ckpt.model, config, 0, self._exported_run())
        self.thresholds = self._read_thresholds()

    def _exported_run(self) -> Run | None:
        """Runs the exported file of inference.engine; None for torch."""
        if self.engine == "torch":
            return None
        path = exported.path_of(self.run_folder, self.config.data.category, self.name, self.engine)
        fix = f"run: python main.py --export {self.engine}"
        if not find_spec("openvino"):
            fix = "run: pip install -r requirements-export.txt"
            raise UserError(f"inference.engine = {self.engine}", "openvino is not installed", fix)
        if not path.is_file():
            raise UserError(f"inference.engine = {self.engine}", f"{path} does not exist", fix)
        if exported.is_damaged(path):
            raise UserError(f"inference.engine = {self.engine}", f"{path} or a file beside it is damaged", fix)
        if exported.fingerprint_of(path) != self.ckpt.fingerprint:
            raise UserError(
                f"inference.engine = {self.engine}", f"{path} is of other weights than {self.ckpt.path}", fix
            )
        try:
            return exported.compiled(path, self.config.data.input_size)
        except RuntimeError as error:
            problem = f"{path} cannot be run ({str(error).strip().splitlines()[-1]})"
            raise UserError(f"inference.engine = {self.engine}", problem, fix) from error

    def __reduce__(self) -> tuple:
        return Detector._of, (self.config, self.ckpt.path.absolute(), self.config.train.device)

    @property
    def images_at_once(self) -> int:
        """How many images to prepare and run together."""
        return self._networks.images_at_once

    @classmethod
    def load(cls, path: Path | str, device: str = "auto", nominal: str | None = None) -> "Detector":
        """A detector from a checkpoint, or from a run's folder: its last epoch.

        Args:
            device: auto, cuda, cuda:N, mps or cpu.
            nominal: name of the folder of nominal images whose thresholds to use, see `engine.threshold.run_on`; None
                for the thresholds from held-out images.

        Raises:
            UserError: no checkpoint there, or one that cannot be used.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            epochs = checkpoint.saved_epochs(path)
            path = checkpoint.epoch_path(path, epochs[-1]) if epochs else path / "last.pt"
        if not path.is_file():
            raise UserError(path, "no checkpoint there", "name a run's folder or a file epoch_*.pt")
        config = checkpoint.load_metadata(path).settings or Config()
        return cls._of(config.with_values({"metrics.nominal": nominal}), path, device)

    @classmethod
    def for_new_images(cls, config: Config, changes: dict[str, Any] | None = None) -> "Detector":
        """A detector from the configured checkpoint, with the settings that it brings along.

        changes: settings, `section.key` -> value, that replace both.

        Raises:
            UserError: no checkpoint, or settings that contradict it.
        """
        config, path = checkpoint.for_new_images(config)
        config = config.with_values(changes or {})
        return cls._of(config, path, config.train.device)

    @classmethod
    def _of(cls, config: Config, path: Path, device: str) -> "Detector":
        config = config.with_values({"data.load_epoch": path.as_posix(), "train.device": device})
        return cls(checkpoint.load(config), config)

    def _read_thresholds(self) -> Thresholds | None:
        settings = self.config.metrics
        self.thresholds_path = threshold_file.path_of(
            self.run_folder, self.name, self.technique, settings.nominal, self.engine
        )
        if not settings.threshold:
            return None
        if settings.threshold_type == MANUAL:
            self.all_thresholds = threshold_file.manual(self.config).by_kind
            return self.all_thresholds[MANUAL]
        if not self.thresholds_path.is_file():
            if settings.nominal is not None:
                names = threshold_file.nominal_names(self.thresholds_path.parent, self.technique)
                others = f"set it to one of: {', '.join(names)}, or " if names else ""
                raise UserError(
                    f"metrics.nominal = {settings.nominal}",
                    f"no thresholds from there ({self.thresholds_path} is missing)",
                    f"{others}run: python main.py --threshold True --nominal FOLDER",
                )
            return None
        found = threshold_file.read(self.thresholds_path)
        made_from, now = found.made_from, replace(self.made_from(), nominal=found.nominal)
        assert made_from is not None  # `read` refuses files without
        changed = made_from.differences(replace(now, precision=made_from.precision))
        key = KIND_SETTINGS.get(settings.threshold_type, "")
        if key and (there := made_from.settings.get(key)) != (wanted := getattr(settings, key)):
            if self.config.is_explicit(f"metrics.{key}"):
                changed.append(f"{key} = {there}, now {wanted}")
            else:
                self.notes.append(f"thresholds were computed with metrics.{key} = {there}")
        if changed:
            raise UserError(self.thresholds_path, f"out of date: {', '.join(changed)}", threshold_file.FIX_HINT)
        if now.precision != made_from.precision:
            self.notes.append(
                f"thresholds were computed in {made_from.precision}, these scores are in {now.precision}: the verdict "
                "of a score close to the threshold can differ"
            )
        return self._chosen_of(found)

    def use_exported(self, run: Run, engine: str) -> None:
        """Take an exported file in place of the networks. engine: its inference.engine."""
        self.engine = engine
        self._networks = Networks(self.ckpt.model, self.config, 0, run)

    def use(self, found: NominalThresholds) -> None:
        """Take thresholds in place of those that were read."""
        self.thresholds = self._chosen_of(found)

    def _chosen_of(self, found: NominalThresholds) -> Thresholds:
        self.nominal_scores, self.all_thresholds = found.image_scores, found.by_kind
        chosen = self.all_thresholds[self.config.metrics.threshold_type]
        if chosen.image is not None and math.isinf(chosen.image):
            self.notes.append(
                f"no image will be called anomalous: the {chosen.kind} threshold is infinite, as it comes from "
                f"{len(found.image_scores)} images only; set metrics.threshold_type to another kind"
            )
        return chosen

    def made_from(self) -> Provenance:
        """What scores depend on besides the images."""
        fields = self.preprocessor.provenance_fields(self.technique)
        if self.engine != "torch":
            fields["precision"] = self.engine
        return Provenance(weights=self.ckpt.fingerprint, settings=map_settings(self.config), **fields)

    def __call__(self, images: np.ndarray | Iterable[np.ndarray]) -> "Detection | list[Detection]":
        """What is found in one image, BGR uint8 (H, W, 3) of any size, or in each of a list.

        Raises:
            ValueError: another type or shape. UserError: a region does not fit the image.
        """
        if isinstance(images, Iterable) and not isinstance(images, str) and not hasattr(images, "shape"):
            return self.run([self.prepare(image, f"image {place}") for place, image in enumerate(images)])
        return self.run([self.prepare(images)])[0]  # type: ignore[arg-type]  # `prepare` checks it

    def read(self, path: Path | str) -> ModelInput:
        """An image file, ready for `run`; UserError where it cannot be read or used."""
        path, white = Path(path), self.config.data.known_white_level
        return self.prepare(read_image(path, white_level=white, refuses_dark=True), path.as_posix())

    def prepare(self, image: np.ndarray, name: str = "image") -> ModelInput:
        """One image as the networks need it. May be called from several threads. name: for messages."""
        _check_image(image, name)
        homography = self.preprocessor.registration.homography(image) if self.technique.registered else None
        model_input = self.preprocessor.align(image, homography)
        if self.technique.masking != "no":
            model_input = self.preprocessor.apply_region(model_input, self.technique.variant, Path(name))
        return model_input

    def run(self, prepared: Sequence[ModelInput]) -> list[Detection]:
        """What is found in prepared images; `images_at_once` of them fill a pass of the networks."""
        images = (torch.from_numpy(np.ascontiguousarray(one.image.transpose(2, 0, 1))) for one in prepared)
        return [
            self._detection_of(model_input, reconstruction.permute(1, 2, 0).cpu().numpy(), anomaly_map.cpu().numpy())
            for model_input, (reconstruction, anomaly_map) in zip(prepared, self._networks(images), strict=True)
        ]

    def _detection_of(self, model_input: ModelInput, reconstruction: np.ndarray, anomaly_map: np.ndarray) -> Detection:
        if not np.isfinite(anomaly_map).all():
            raise UserError("image", "its anomaly map is not finite", "use another checkpoint, or train.precision=fp32")
        no_mask = np.zeros(anomaly_map.shape, bool)
        output = NetworkOutput(
            0, model_input.image, reconstruction, anomaly_map, no_mask, model_input.valid, model_input.region
        )
        output = apply_valid_mask(output, self.technique)
        score, own = image_score(output.anomaly_map), self._in_own_pixels(output.anomaly_map, model_input)
        if self.thresholds is None:
            return Detection(score, None, None, own, None, [], output)
        _, image_threshold, pixel_threshold = self.thresholds
        assert image_threshold is not None and pixel_threshold is not None  # only `optimal` ones can be undefined
        mask = own > pixel_threshold
        verdict = "anomalous" if score > image_threshold else "nominal"
        return Detection(score, relative(score, image_threshold), verdict, own, mask, regions(mask), output)

    def _in_own_pixels(self, anomaly_map: np.ndarray, model_input: ModelInput) -> np.ndarray:
        assert model_input.shape is not None  # `prepare` knows it
        if model_input.homography is None:
            return resize(anomaly_map, model_input.shape)
        return self.preprocessor.registration.to_own_pixels(anomaly_map, model_input.homography, model_input.shape)


def _check_image(image: object, name: str) -> None:
    """ValueError if an image is not BGR, uint8 (H, W, 3), with at least one pixel; it says how to get one."""
    given, fix = type(image).__name__, "read one with cv2.imread"
    if image is None:
        fix = "cv2.imread gives None where a file is missing or cannot be decoded"
    elif isinstance(image, np.ndarray):
        given = f"{image.dtype} {image.shape}"
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return
        fix = "scale its values to 0 to 255 and convert it with astype(np.uint8)"
        if not image.size:
            fix = "it has no pixel"
        elif image.ndim == 2:
            fix = "give gray in three channels: cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)"
        elif image.ndim == 4:
            fix = "give several images as a list"
        elif image.ndim == 3 and image.shape[2] == 4:
            fix = "leave out alpha: image[..., :3]"
    elif hasattr(image, "convert"):  # of Pillow
        fix = 'convert it: np.asarray(image.convert("RGB"))[..., ::-1]'
    raise ValueError(f"{name} must be BGR, uint8 (H, W, 3), not {given}; {fix}")
