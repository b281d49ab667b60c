"""The log of a training: train_log.csv, TensorBoard events, grids of samples."""

import csv
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from config import Config
from data import image_io
from reporting import panels
from runtime.csv_file import read_csv, write_csv
from runtime.errors import UserError
from runtime.files import atomic_write, naming
from training.progress import TERMS

LOG_COLUMNS = ("epoch", *TERMS, "loss", "learning_rate", "samples_per_second", "seconds", "val_ap", "val_ap_se")


class EpochResult(NamedTuple):
    """An epoch of a training.

    Attributes:
        losses: mean of each of TERMS. seconds: that the epoch took.
        val_ap: pixel AP on synthetic anomalies, val_ap_se its standard error; None where not measured.
    """

    epoch: int
    losses: dict[str, float]
    learning_rate: float
    samples_per_second: float
    seconds: float
    val_ap: float | None
    val_ap_se: float | None


class Journal:
    """The log of a run, including the epochs before a resume, its sample grids and its TensorBoard events.

    Raises:
        UserError: the existing log is damaged.
    """

    def __init__(self, config: Config, done: int):
        self._run, self._settings, self._total = config.run_folder, config.train, config.train.epochs
        self._rows = read_log(self._run / "train_log.csv", done)
        self._board = _Board(self._run / "logs", done + 1)

    def add(self, result: EpochResult, sample: dict[str, np.ndarray]) -> None:
        """Add an epoch. sample: arguments of `panels.sample_grid`."""
        epoch, losses = result.epoch, result.losses
        row: dict[str, Any] = {
            "epoch": epoch,
            **losses,
            "loss": sum(weight * losses[term] for term, weight in zip(TERMS, self._settings.loss_weights, strict=True)),
            "learning_rate": result.learning_rate,
        }
        row |= {"samples_per_second": round(result.samples_per_second, 2), "seconds": round(result.seconds, 3)}
        row |= {"val_ap": result.val_ap, "val_ap_se": result.val_ap_se}
        self._rows.append(row)
        self._board.add(epoch, *(summary.scalar(key, row[key]) for key in LOG_COLUMNS[1:] if row[key] is not None))
        is_drawn = epoch % self._settings.visualize_every == 0 or epoch == self._total
        if self._settings.visualize and is_drawn:
            grid = panels.sample_grid(**sample)  # type: ignore[arg-type]  # `rows` keeps its default
            with atomic_write(self._run / "images" / f"epoch_{epoch:04d}.png") as beside:
                image_io.write_image(beside, grid)
            self._board.add(epoch, summary.image("samples", grid[..., ::-1], dataformats="HWC"))

    def save(self) -> None:
        """Write train_log.csv."""
        rows = ([row[column] for column in LOG_COLUMNS] for row in self._rows)
        write_csv(self._run / "train_log.csv", [LOG_COLUMNS, *rows])

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()


def read_log(path: Path, done: int) -> list[dict[str, Any]]:
    """Rows of train_log.csv up to an epoch; none where there is no file. UserError where it is damaged."""
    if not path.is_file():
        return []
    try:
        rows = [{column: row[column] for column in LOG_COLUMNS} for row in read_csv(path)]
        return [row for row in rows if int(row["epoch"]) <= done]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            path, "damaged, or saved in another form", "restore it, or move it away to resume without it"
        ) from error


class _Board:
    """TensorBoard's events, written without its own writer, which hangs for ever when the disk is full.

    Events of `first_epoch` and later that an interrupted run has left in the folder become invalid.
    """

    def __init__(self, folder: Path, first_epoch: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"events.out.tfevents.{time.time_ns()}"
        self._stream = self._path.open("wb")
        self._writer = RecordWriter(self._stream)
        self._write(Event(file_version="brain.Event:2"))
        restart = SessionLog(status=SessionLog.START)
        self._write(Event(step=first_epoch, session_log=restart))

    def _write(self, event: Event) -> None:
        with naming(self._path):
            event.wall_time = time.time()
            self._writer.write(event.SerializeToString())
            self._stream.flush()

    def add(self, epoch: int, *summaries: Summary) -> None:
        for entry in summaries:
            self._write(Event(step=epoch, summary=entry))

    def close(self) -> None:
        self._stream.close()
