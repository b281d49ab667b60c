"""The files that a run resumes from: its checkpoints, and the state in last.pt."""

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from config import Config, effects, weight_settings
from data.image_io import EmbeddedImage
from inference import checkpoint, fingerprint
from inference.checkpoint import TrainingImages
from model import DRAEM
from runtime.device import memory_format, select_device, select_precision
from runtime.errors import UserError
from runtime.files import atomic_write, sync, write_text
from runtime.provenance import Provenance
from runtime.version import program_version
from training.optimizer import averaged, learning_rate, make_optimizer
from training.progress import Progress

if TYPE_CHECKING:
    from training.distributed import ProcessGroup

SAVE_EVERY = 30  # seconds between saved states: of large networks, saving takes longer than a short epoch
BEFORE_LAST = "last_before.pt"  # the previous last.pt
# Files of an earlier run in the same folder.
EARLIER = (
    "epoch_*.pt",
    "last.pt",
    BEFORE_LAST,
    "train_log.csv",
    "images/epoch_*.png",
    "logs/events*",
    "thresholds/*/*.json",
)
FOLDERS = ("data.data_path", "data.anomaly_source_path")
# What says where the images are, and which of them are for the test.
FORMS = [f"data.{key}" for key in ("layout", "table", "coco", "nominal_folder", "anomalous_folder")]
FORMS += ["data.test_split", "data.test_seed"]
START_ANEW = "set train.resume=never to start anew"


def changed_settings(there: Provenance, now: Provenance, ignoring: Iterable[str] = ()) -> list[str]:
    """Settings that affect the weights and have changed; folders with the same content elsewhere have not.

    A setting that was not there when the weights were trained had its default then.
    """
    there = replace(there, settings=weight_settings(Config()) | there.settings)
    is_same = (there.pictures == now.pictures, there.textures == now.textures)
    moved = [key for key, same in zip(FOLDERS, is_same, strict=True) if same]
    moved += FORMS if is_same[0] else []
    old, new = (replace(one, pictures=None, textures=None) for one in (there, now))
    return old.differences(new, ignoring=(*ignoring, *moved))


@dataclass(frozen=True)
class TrainingSource:
    """What a training is made from; kept in all of its checkpoints.

    Attributes:
        made_from: provenance. images: that are trained on and held out.
        white_level: of the images, see `image_io.read_image`.
        embedded_assets: see `inference.embedded_assets.embed`.
    """

    made_from: Provenance
    images: TrainingImages
    white_level: float | None = None
    embedded_assets: dict[str, EmbeddedImage] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedState:
    """A state to resume from, as last.pt holds it.

    Attributes:
        source: what it was trained on. model, optimizer: torch's state dictionaries.
        average: averaged weights, and the number of steps that they are of; None without averaging.
        epoch, progress: see `TrainingState`. is_last: whether it is that of last.pt, not the one before.
    """

    source: TrainingSource
    epoch: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    average: tuple[dict[str, torch.Tensor], int] | None
    progress: Progress | None
    is_last: bool

    @classmethod
    def read(cls, path: Path) -> "SavedState":
        """Read last.pt; UserError where it is damaged, or cannot be resumed from."""
        content = checkpoint.read(path)
        if not {"model", "optimizer", "epoch", "settings", "images"} <= content.keys():
            raise UserError(path, "not a state to resume from", START_ANEW)
        known, progress = checkpoint.metadata_of(path, content), content.get("progress")
        if known.made_from is None or known.images is None:
            raise UserError(path, "damaged, or of an earlier version", START_ANEW)
        model, average = content["model"], None
        try:
            if progress:
                progress = Progress.from_stored(progress)
            if "raw_model" in content:
                model, average = dict(content["raw_model"]), (content["model"], int(content["averaged_steps"]))
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(path, "damaged, or not a state to resume from", START_ANEW) from error
        source = TrainingSource(known.made_from, known.images, known.white_level, known.embedded_assets)
        return cls(
            source, content["epoch"], model, content["optimizer"], average, progress or None, path.name != BEFORE_LAST
        )

    @property
    def place(self) -> str:
        """The place in the training where it was saved, in words."""
        return place_of(self.progress.step if self.progress else None, self.epoch)


class TrainingState:
    """Model, optimizer and schedule of a run, and its folder; new, or taken from last.pt by `resume`.

    Args:
        settings_text: the settings as YAML, kept in the run's folder.
        group: the processes that train together, of which the first writes; None for one process.

    Attributes:
        epoch: epochs done. progress: within the epoch after them, None where that has not begun.
    """

    def __init__(self, config: Config, settings_text: str, source: TrainingSource, group: "ProcessGroup | None" = None):
        self.group, self.writes = group, group is None or group.is_first
        self.config, self.settings_text, self.source = config, settings_text, source
        self.device = select_device(config.train.device)
        self.precision = select_precision(config.train.precision, self.device)
        torch.manual_seed(config.train.seed)
        self.model = DRAEM(config.model.base_width, config.model.base_channels).train()
        layout = memory_format(self.device, self.precision)
        self.model.to(self.device, memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
        self.optimizer = make_optimizer(self.model, config.train)
        decay = config.train.ema_decay
        self._average = averaged(self.model, self.optimizer, decay) if decay is not None else None
        self.epoch = 0
        self.progress: Progress | None = None
        self._has_folder = self._is_resumed = self._replaces_damaged = False
        self._saved: float | None = None  # time of the last save, by time.monotonic

    @property
    def inference_model(self) -> DRAEM:
        """The model that inference uses: of averaged weights where train.ema_decay is set."""
        return cast(DRAEM, self._average.module) if self._average else self.model

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def set_learning_rate(self, done: float) -> None:
        """Set the rate of the next step. done: share of the epoch, in the middle of this step."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.train, self.epoch + done)

    def is_kept(self, epoch: int) -> bool:
        """Whether the checkpoint of an epoch is kept."""
        train = self.config.train
        return epoch == train.epochs or (epoch >= train.save_from and epoch % train.save_every == 0)

    def step(self, epoch: int) -> None:
        """Finish an epoch."""
        self.epoch, self.progress = epoch, None

    def is_due(self) -> bool:
        """Whether it is time to save last.pt."""
        return self.is_kept(self.epoch) or self._saved is None or time.monotonic() - self._saved >= SAVE_EVERY

    def _content(self) -> dict[str, Any]:
        content = {
            "model": self.inference_model.state_dict(),
            "epoch": self.epoch,
            "program_version": program_version(),
        }
        content |= {"settings": self.config.model_dump(mode="json"), "provenance": self.source.made_from.to_json()}
        return content | {
            "images": asdict(self.source.images),
            "white_level": self.source.white_level,
            "embedded_assets": {
                name: asdict(one) | {"png": torch.from_numpy(one.png)}
                for name, one in self.source.embedded_assets.items()
            },
        }

    def save_checkpoint(self) -> None:
        """Write the checkpoint of the epoch just done."""
        if not self.writes:
            return
        write_checkpoint(checkpoint.epoch_path(self.config.run_folder, self.epoch), self._content())

    def save_last(self) -> Path:
        """Write last.pt; the previous one is kept beside it."""
        path = self.config.run_folder / "last.pt"
        if not self.writes:
            return path
        content = self._content() | {"optimizer": self.optimizer.state_dict()}
        if self._average:
            content |= {"raw_model": self.model.state_dict(), "averaged_steps": int(self._average.n_averaged)}
        if self.progress:
            content["progress"] = self.progress.to_stored()
        write_checkpoint(path, content, keeps_previous=not self._replaces_damaged)
        self._saved, self._replaces_damaged = time.monotonic(), False
        return path

    def take_folder(self) -> None:
        """Remove the files of an earlier run; called after the first epoch, so that an early failure keeps them."""
        run = self.config.run_folder
        if self._has_folder or not self.writes:
            return
        self._has_folder = True
        if self.epoch == 0 and not self._is_resumed:
            for path in self._earlier:
                path.unlink(missing_ok=True)
        write_text(run / "config.yaml", self.settings_text)

    def find_earlier(self) -> None:
        """Note the files of an earlier run in this folder, for `take_folder`."""
        run = self.config.run_folder
        self._earlier = [path for pattern in EARLIER for path in run.glob(pattern)]
        if folder := next((path for path in self._earlier if path.is_dir()), None):
            raise UserError(folder, "is a folder, in the place of a file of an earlier run", "rename it")

    def resume(self, saved: SavedState) -> None:
        """Continue from a state that `read_last` has checked."""
        path = self.config.run_folder / "last.pt"
        try:
            self.model.load_state_dict(saved.model)
            self.optimizer.load_state_dict(saved.optimizer)
            if self._average and saved.average:
                self._average.module.load_state_dict(saved.average[0])
                self._average.n_averaged.fill_(saved.average[1])
            # The fused optimizer step needs moments in the memory format of the weights, not in that of the file.
            for parameter, state in self.optimizer.state.items():
                for key, value in state.items():
                    if value.shape == parameter.shape:
                        state[key] = torch.empty_like(parameter).copy_(value)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(path, "does not fit this model", START_ANEW) from error
        self.epoch, self.progress, self._is_resumed = saved.epoch, saved.progress, True
        self._replaces_damaged = not saved.is_last  # the state before it stays until there is another sound one


def read_last(config: Config, now: Provenance) -> SavedState | None:
    """The state in last.pt, None where there is none or train.resume is never.

    Args:
        now: what would be trained on. Changed images do not prevent resuming.

    Raises:
        UserError: it belongs to other settings, or cannot be used.
    """
    path = config.run_folder / "last.pt"
    epochs = checkpoint.saved_epochs(config.run_folder)
    is_there = path.is_file() or (path.with_name(BEFORE_LAST).is_file() and not epochs)
    if config.train.resume == "never" or not is_there:
        if config.train.resume == "must":
            raise UserError("train.resume = must", f"there is no {path}", "set train.resume to auto to start anew")
        if config.train.resume == "auto" and epochs:
            raise UserError(
                path,
                "missing, but checkpoints of a run are there",
                "restore it, set another data.run_name, or train.resume=never to replace that run",
            )
        return None
    saved = _read_sound(path)
    checkpoint.check_widths(path, saved.model, config)
    there = saved.source.made_from
    extendable = [key for key, one in effects().items() if one.resumes == "extendable"]
    if config.train.lr_schedule == "one_cycle":  # the rate of every step follows from the number of epochs
        if changed := changed_settings(there, now, ignoring=[key for key in now.settings if key not in extendable]):
            raise UserError(
                path,
                f"a one-cycle training, with {', '.join(changed)}; it ends with its last epoch",
                "set it back, or train anew: another data.run_name or train.resume=never",
            )
        extendable = []
    if changed := changed_settings(there, now, ignoring=extendable):
        fix = "set it back, or set another data.run_name or train.resume=never"
        raise UserError(path, f"trained with {', '.join(changed)}", fix)
    return saved


def _read_sound(path: Path) -> SavedState:
    """The state in last.pt, or, where that is damaged, of the previous one, with a message."""
    before = path.with_name(BEFORE_LAST)
    try:
        saved = SavedState.read(path)
    except (UserError, FileNotFoundError) as error:
        try:
            saved = SavedState.read(before)
        except (UserError, FileNotFoundError):
            raise error from None
        what = f"{path}: {error.problem if isinstance(error, UserError) else 'missing'}"
        lost = f"what was trained after {saved.place} is trained again"
        print(f"{what}; resuming from {before.name}: {lost}")
    return saved


def place_of(step: int | None, epochs_done: int) -> str:
    """The place in a training, in words. step: of the epoch after those done, None between epochs."""
    return f"step {step} of epoch {epochs_done + 1}" if step else f"epoch {epochs_done}"


def write_checkpoint(path: Path, content: dict[str, Any], keeps_previous: bool = True) -> None:
    """Write a checkpoint atomically, with its checksum. keeps_previous: whether the last.pt there is kept beside it."""
    with atomic_write(path, durable=path.name != "last.pt") as beside, beside.open("wb") as stream:
        try:
            torch.save(content | {"checksum": fingerprint.checksum(content)}, stream)
        except RuntimeError as error:  # torch hides a failed write behind the failed end of its archive
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        if path.name == "last.pt" and path.is_file() and keeps_previous:
            before = path.with_name(BEFORE_LAST)
            # Fast, as it is not new. After a loss of power this state is there, whatever becomes of the next.
            sync(path)
            before.unlink(missing_ok=True)
            try:
                os.link(path, before)
            except OSError:  # a drive without links
                shutil.copyfile(path, before)
