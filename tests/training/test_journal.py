"""training/journal.py: the log of a training and its TensorBoard events."""

import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config_file import load_config
from engine import train


def config_of(workplace, *overrides):
    return load_config(workplace / "config.yaml", overrides)


def log_of(config) -> list[dict[str, str]]:
    with (config.run_folder / "train_log.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_tensorboard_reads_the_events_of_a_resumed_run(workplace):
    train.run(config_of(workplace, "train.epochs=2"), "")
    config = config_of(workplace, "train.epochs=3")
    train.run(config, "")
    events = EventAccumulator(str(config.run_folder / "logs"))
    events.Reload()
    rows = log_of(config)
    for key in ("l2", "ssim", "focal", "loss", "learning_rate"):
        assert [event.step for event in events.Scalars(key)] == [1, 2, 3]
        assert [event.value for event in events.Scalars(key)] == pytest.approx([float(row[key]) for row in rows])
    assert [event.step for event in events.Images("samples")] == [1, 2, 3]
