"""training/loop.py: a training that is interrupted keeps what it has done, to the last step, and resumes there."""

import os
import random
import re
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, make_dataset, start_fork, wait_until
from messages import assert_line, assert_names, assert_user_error, lines_with

from config_file import load_config
from engine import train
from inference import checkpoint
from runtime import signals
from training import loop, optimizer

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are other ones there")


def config_of(workplace, *overrides):
    settings = ("train.epochs=3", "train.visualize=false", "train.save_from=3", *overrides)
    return load_config(workplace / "config.yaml", settings)


def weights(path):
    return checkpoint.read(path)["model"]


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def rows(config):
    """Lines of the log without times."""
    lines = (config.run_folder / "train_log.csv").read_text().splitlines()
    return [[value for place, value in enumerate(line.split(",")) if place not in (6, 7)] for line in lines]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_interrupted_at_random_steps_ends_with_the_same_weights(workplace, on_forward, workers):
    """Losses in the log, too, are those of a training that was never interrupted."""
    short = ("train.epochs=3", "train.batch_size=4", "data.val_split=0")  # six steps, of four images and of two
    short += ("train.save_from=3", "train.visualize=false")  # sooner done
    whole = config_of(workplace, *short, "data.run_name=whole")
    reference = weights(train.run(whole, ""))
    moments, stops, done, at = random.Random(workers), 0, 0, []

    def interrupt(model, batch, output):
        nonlocal done
        if model.training:
            done += 1
            if done in at:
                os.kill(os.getpid(), moments.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)))

    on_forward(interrupt)
    for number in range(20 if workers == 0 else 3):
        config = config_of(workplace, *short, f"data.run_name=stopped{number}", f"data.num_workers={workers}")
        at = moments.sample(range(1, 7), moments.choice((1, 1, 2)))
        done = 0
        for _ in range(3):
            try:
                path = train.run(config, "")
                break
            except signals.Interrupted as stopped:
                stops += 1
                assert_names(str(stopped), config.run_folder / "last.pt")
        assert done == 6 and same(weights(path), reference) and rows(config) == rows(whole)
    assert stops >= (20 if workers == 0 else 3)


RECIPE = (
    "train.lr_schedule=one_cycle",
    "train.learning_rate=0.01",
    "train.ema_decay=0.9",
    "train.weight_decay=0.1",
    "train.gradient_clip=0.5",
    "train.loss_weights=[1, 2, 3]",
    "synthesis.own_images=0.5",
    "synthesis.min_alignment=0.1",
    "synthesis.light=0.5",
    "synthesis.gray_textures=auto",
)


def test_a_one_cycle_training_with_averaged_weights_resumes_exactly(workplace, on_forward):
    short = ("train.epochs=3", "train.batch_size=4", "data.val_split=0", *RECIPE)  # six steps
    whole = config_of(workplace, *short, "data.run_name=whole")
    reference = weights(train.run(whole, ""))
    config, steps = config_of(workplace, *short), []

    def interrupt(model, batch, output):
        steps.append(1)
        if len(steps) in (3, 5) and model.training:
            os.kill(os.getpid(), signal.SIGTERM)

    on_forward(interrupt)
    for _ in range(2):
        with pytest.raises(signals.Interrupted):
            train.run(config, "")
    assert same(weights(train.run(config, "")), reference) and len(steps) == 6 and rows(config) == rows(whole)
    ends = [checkpoint.read(one.run_folder / "last.pt") for one in (whole, config)]
    assert same(ends[0]["raw_model"], ends[1]["raw_model"]) and not same(ends[0]["raw_model"], reference)
    assert same(ends[0]["model"], reference) and ends[0]["averaged_steps"] == ends[1]["averaged_steps"] == 6
    log = [float(row[5]) for row in rows(config)[1:]]  # of the last step of each epoch, in its middle
    assert log == pytest.approx([loop_rate(config, step) for step in (1.5, 3.5, 5.5)])


def loop_rate(config, step: float) -> float:
    return optimizer.learning_rate(config.train, step / 2)


def test_the_end_of_a_one_cycle_training_cannot_be_moved(workplace, cli):
    train.run(config_of(workplace, *RECIPE), "")
    sets = [word for one in RECIPE for word in ("--set", one)]
    for key, value in (("train.epochs", 4), ("train.learning_rate", 0.02)):
        outcome = cli("--train", *sets, "--set", "train.epochs=3", "--set", f"{key}={value}")
        assert_user_error(outcome, "last.pt", f"{key} = ", str(value), "train.resume=never")
    for other in (
        "train.ema_decay=0.8",
        "synthesis.light=0.1",
        "train.gradient_clip=null",
        "train.loss_weights=[1, 1, 1]",
    ):
        outcome = cli("--train", *sets, "--set", "train.epochs=3", "--set", other)
        assert_user_error(outcome, "last.pt", other.split("=")[0], "train.resume=never")


def test_a_training_interrupted_during_validation_repeats_no_step(workplace, on_forward):
    """And val_ap is what it would have been."""
    short = ("train.epochs=2", "train.save_from=1", "train.save_every=1")
    whole = config_of(workplace, *short, "data.run_name=whole")
    reference = weights(train.run(whole, ""))
    config, steps, passes = config_of(workplace, *short), [], []

    def interrupt(model, batch, output):
        (steps if model.training else passes).append(1)
        if len(passes) == 1 and not model.training:
            os.kill(os.getpid(), signal.SIGTERM)

    on_forward(interrupt)
    with pytest.raises(signals.Interrupted) as stopped:
        train.run(config, "")
    assert len(steps) == 2 and len(passes) < 5  # of five passes
    assert_names(str(stopped.value), 2, 1, config.run_folder / "last.pt")  # step and epoch
    assert same(weights(train.run(config, "")), reference) and len(steps) == 4 and rows(config) == rows(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_training_whose_processes_are_all_signalled_keeps_every_step(workplace, number):
    """As a terminal and a scheduler do it: loader processes continue until the step is done."""
    make_dataset(workplace, n_train=60)
    settings = ("train.epochs=500", "data.num_workers=2", "data.val_split=0", "data.img_size=64", "train.save_from=500")
    arguments = ["--config", workplace / "config.yaml", "--train", "--threshold"]
    arguments += [word for one in (*settings, "train.visualize=false") for word in ("--set", one)]
    process, last = start_fork(ROOT / "main.py", arguments, workplace), workplace / "checkpoints/tile/tiny/last.pt"
    wait_until(last.is_file, process)
    time.sleep(0.2)
    before = time.monotonic()
    os.killpg(process.pid, number)
    out, error = process.communicate(timeout=30)
    assert time.monotonic() - before < 3
    assert process.returncode == (130 if number == signal.SIGINT else 143), error
    assert "Traceback" not in error and not lines_with(out, re.compile(r"^thresholds\b"))
    state = checkpoint.read(last)
    steps = state["progress"]["step"] if "progress" in state else 0
    place = rf"\b{steps}\b.*\b{state['epoch'] + 1}\b" if steps else rf"\b{state['epoch']}\b"
    message = assert_line(error, last).replace(str(last), "")
    assert_names(message, re.compile(place))  # what the message names is what the file holds
    assert 0 <= steps < 30 and (state["epoch"], steps) > (1, 0)
    log = (last.parent / "train_log.csv").read_text().splitlines()
    assert len(log) == 1 + state["epoch"]


def test_a_signal_while_ranks_exchange_theirs_is_kept_for_the_next_exchange():
    """Through private functions: of two real processes a signal cannot be timed to come within the exchange."""

    def exchange(number):
        if number is None:
            os.kill(os.getpid(), signal.SIGUSR1)
        return number

    group = SimpleNamespace(group=SimpleNamespace(any=exchange))
    with pytest.raises(signals.Interrupted) as stopped, signals.deferred() as stop:
        assert [loop._requested_signal(stop, group) for _ in range(2)] == [None, signal.SIGUSR1]
    assert stopped.value.status == 143
