"""What a run keeps to go on from: its checkpoints and the state in last.pt."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import runtime
from config import Config
from errors import UserError
from inference import checkpoint
from model import DRAEM

SAVE_EVERY = 30  # seconds between states to resume from: for large networks a state takes longer than a short epoch

# Files of an earlier run in a folder.
EARLIER = ("epoch_*.pt", "last.pt", "train_log.csv", "images/epoch_*.png", "logs/events*", "thresholds/*/*.json")


def learning_rate_factor(config: Config) -> Callable[[int], float]:
    """Epochs done -> what the learning rate is multiplied by."""
    milestones = [round(share * config.train.epochs) for share in config.train.lr_milestones]
    return lambda epochs_done: config.train.lr_gamma ** sum(epochs_done >= milestone for milestone in milestones)


class TrainingState:
    """Model, optimizer and schedule of a run, and its folder; new, or taken up from last.pt by `resume`.

    Attributes:
        epoch: epochs done.
    """

    def __init__(self, config: Config, settings_text: str, held_out: list[str]):
        self.config, self.settings_text, self.held_out = config, settings_text, held_out
        self.device = runtime.select_device(config.train.device)
        self.precision = runtime.select_precision(config.train.precision, self.device)
        torch.manual_seed(config.train.seed)
        model = DRAEM(config.model.base_width, config.model.base_channels)
        self.model = model.to(self.device, memory_format=runtime.memory_format(self.precision)).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), config.train.learning_rate, fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, learning_rate_factor(config))
        self.epoch = 0
        self._saved: float | None = None  # when

    @property
    def learning_rate(self) -> float:
        """Of the epoch that is being trained."""
        return self.optimizer.param_groups[0]["lr"]

    def is_kept(self, epoch: int) -> bool:
        """Whether the checkpoint of an epoch stays."""
        train = self.config.train
        return epoch == train.epochs or (epoch >= train.save_from and epoch % train.save_every == 0)

    def step(self, epoch: int) -> None:
        """An epoch is done."""
        self.scheduler.step()
        self.epoch = epoch

    def is_due(self) -> bool:
        """Whether it is time to save last.pt."""
        return self.is_kept(self.epoch) or self._saved is None or time.monotonic() - self._saved >= SAVE_EVERY

    def _content(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json")
        return {"model": self.model.state_dict(), "epoch": self.epoch, "settings": settings, "held_out": self.held_out}

    def save_checkpoint(self) -> None:
        """Write the checkpoint of the epoch just done."""
        write_checkpoint(checkpoint.epoch_path(self.config.run_folder, self.epoch), self._content())

    def save_last(self) -> None:
        """Write last.pt."""
        state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        write_checkpoint(self.config.run_folder / "last.pt", self._content() | state)
        self._saved = time.monotonic()

    def take_folder(self) -> None:
        """From here on it is this run's folder: what an earlier one left goes. A start that failed has cost nothing."""
        run = self.config.run_folder
        if self.epoch == 0:
            for path in self._earlier:
                path.unlink(missing_ok=True)
        runtime.write_text(run / "config.yaml", self.settings_text)

    def find_earlier(self) -> None:
        """Note the files of an earlier run in this folder, which must not be taken for those of one that starts."""
        run = self.config.run_folder
        self._earlier = [path for pattern in EARLIER for path in run.glob(pattern)]

    def resume(self) -> None:
        """Take up the state of last.pt where there is one and it is wanted."""
        config, path = self.config, self.config.run_folder / "last.pt"
        if config.train.resume == "never" or not path.is_file():
            if config.train.resume == "must":
                raise UserError(f"train.resume = must, but there is no {path}; set train.resume to auto to start anew")
            if config.train.resume == "auto" and checkpoint.saved_epochs(config.run_folder):
                raise UserError(
                    f"{path}: missing, but checkpoints of a run are there; restore it, set another data.run_name, "
                    "or train.resume=never to replace that run"
                )
            return
        content = checkpoint.read(path)
        if not {"model", "optimizer", "scheduler", "epoch", "settings", "held_out"} <= content.keys():
            raise UserError(f"{path}: not a state to resume from; set train.resume to never to start anew")
        checkpoint.check_widths(path, content["model"], config)
        self._check_settings(path, content)
        try:
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path}: does not fit this model; set train.resume=never to start anew") from error
        # Moments keep the memory format that they were saved in; the fused step takes them as lying like the weights.
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                if value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter).copy_(value)
        # Epochs, rate and milestones are the settings' of now, so that a run can be extended.
        self.scheduler.load_state_dict(content["scheduler"] | {"base_lrs": [config.train.learning_rate]})
        for group in self.optimizer.param_groups:
            group["lr"] = config.train.learning_rate * learning_rate_factor(config)(content["epoch"])
        self.epoch = content["epoch"]

    def _check_settings(self, path: Path, content: dict[str, Any]) -> None:
        there, config = content["settings"], self.config
        try:
            img_size, seed = tuple(there["data"]["img_size"]), there["train"]["seed"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged; set train.resume=never to start anew") from error
        for key, old, new in (
            ("data.img_size", img_size, config.data.img_size),
            ("train.seed", seed, config.train.seed),
        ):
            if old != new:
                raise UserError(
                    f"{path}: trained with {key} = {old}, the settings say {new}; set it back, "
                    "or set another data.run_name or train.resume=never"
                )
        if content["held_out"] != self.held_out:
            raise UserError(
                f"{path}: trained with other images held out: train/good or data.val_split has changed since; "
                "restore it, or set another data.run_name or train.resume=never"
            )


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint beside, then replace."""
    with runtime.replacing(path) as beside, beside.open("wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:  # torch closes its archive over a failed write and hides what failed
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
