"""A training that is told to stop keeps what it has done, to the last step."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, start_process

from config import load_config
from engine import train
from inference import checkpoint, detect
from model import DRAEM
from runtime import cli as command_line
from runtime import signals
from training import loop

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are other ones there")
# Counts steps in a file, and takes its time for each, so that a signal comes in the middle of an epoch.
SLOW = """\
import runpy, sys, time
sys.path.insert(0, {root!r})
sys.argv[0] = {main!r}
from training import loop
step, steps = loop.train_step, open("steps", "a", buffering=1)
def slow(*arguments):
    result = step(*arguments)
    steps.write("x")
    steps.flush()
    time.sleep({seconds})
    return result
loop.train_step = slow
runpy.run_path({main!r}, run_name="__main__")
"""


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
def test_stopped_at_random_steps_ends_with_the_same_weights(workplace, monkeypatch, workers):
    """Losses in the log too are those of a training that was never stopped."""
    short = ("train.epochs=3", "train.batch_size=4", "data.val_split=0")  # six steps, of four images and of two
    whole = config_of(workplace, *short, "data.run_name=whole")
    reference = weights(train.run(whole, ""))
    moments, step, stops = random.Random(workers), loop.train_step, 0
    for number in range(20 if workers == 0 else 3):
        config = config_of(workplace, *short, f"data.run_name=stopped{number}", f"data.num_workers={workers}")
        at = moments.sample(range(1, 7), moments.choice((1, 1, 2)))
        done = 0

        def signalled(*arguments, at=at):
            nonlocal done
            done += 1
            if done in at:
                os.kill(os.getpid(), moments.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)))
            return step(*arguments)

        monkeypatch.setattr(loop, "train_step", signalled)
        for _ in range(3):
            try:
                path = train.run(config, "")
                break
            except signals.Interrupted as stopped:
                stops += 1
                assert "the same command goes on from there" in str(stopped) and "last.pt" in str(stopped)
        assert done == 6 and same(weights(path), reference) and rows(config) == rows(whole)
    assert stops >= (20 if workers == 0 else 3)


def test_stopped_while_an_epoch_is_validated(workplace, monkeypatch):
    """Its steps are not done again, and val_ap is what it would have been."""
    short = ("train.epochs=2", "train.save_from=1", "train.save_every=1")
    whole = config_of(workplace, *short, "data.run_name=whole")
    reference = weights(train.run(whole, ""))
    validate, step, config, steps = loop.synthetic_pixel_ap, loop.train_step, config_of(workplace, *short), []

    def signalled(*arguments):
        monkeypatch.setattr(loop, "synthetic_pixel_ap", validate)
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*arguments)

    monkeypatch.setattr(loop, "synthetic_pixel_ap", signalled)
    monkeypatch.setattr(loop, "train_step", lambda *arguments: steps.append(1) or step(*arguments))
    with pytest.raises(signals.Interrupted, match="stopped after step 2 of epoch 1"):
        train.run(config, "")
    assert same(weights(train.run(config, "")), reference) and len(steps) == 4 and rows(config) == rows(whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_stop_together_while_an_epoch_is_validated(workplace, rank):
    """One of three is told to in the second of six rounds: all end after that, with nothing left half exchanged."""
    config = config_of(workplace, "data.test_batch_size=1")
    sample = {"image": torch.zeros(3, 32, 32), "mask": torch.zeros(1, 32, 32)}
    samples, exchanged, rounds = [sample | {"idx": idx} for idx in range(17)], [], 0
    group = SimpleNamespace(rank=rank, count=3, barrier=lambda: None, send=exchanged.append)
    group.receive = lambda other: exchanged.append(other) or []

    def check():
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            raise signals.Interrupted(signal.SIGTERM)

    with pytest.raises(signals.Interrupted):
        list(detect.detect(DRAEM(2, 2), samples, config, "", group, check))
    found = [one.idx for batch in exchanged for one in batch] if rank else exchanged
    assert found == ([1, 4] if rank else [1, 2, 1, 2])
    rounds = -1000
    exchanged.clear()
    list(detect.detect(DRAEM(2, 2), samples, config, "", group, check))
    assert rounds == -994 and len(exchanged) == (6 if rank else 11)  # the last round is one of two


def start(workplace, seconds, *arguments):
    code = SLOW.format(root=str(ROOT), main=str(ROOT / "main.py"), seconds=seconds)
    command = [sys.executable, "-c", code, "--config", str(workplace / "config.yaml"), "--train", *arguments]
    process = start_process(command, workplace)
    end = time.monotonic() + 60
    while not (workplace / "steps").is_file() or not (workplace / "steps").read_text():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_all_processes_are_signalled_at_once(workplace, number):
    """As a terminal and a scheduler do it: loader processes go on until the step is done."""
    process = start(workplace, 0.1, "--threshold", "--set", "train.epochs=500", "--set", "data.num_workers=2")
    before = time.monotonic()
    os.killpg(process.pid, number)
    out, error = process.communicate(timeout=30)
    assert time.monotonic() - before < 3
    assert process.returncode == (130 if number == signal.SIGINT else 143), error
    assert "stopped after" in error and "goes on from there" in error and "Traceback" not in error
    assert "thresholds" not in out
    steps = len((workplace / "steps").read_text())
    state = checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")
    assert (
        state["epoch"] * 2 + state["progress"]["step"] == steps if "progress" in state else state["epoch"] * 2 == steps
    )


def test_a_signal_that_a_library_makes_an_error_of_is_one(capsys):
    """As pydantic does while it builds a model."""

    def program():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt as error:
            raise ValueError(f"building failed: {error}") from None

    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        with pytest.raises(SystemExit) as exit_:
            command_line.run(program)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert exit_.value.code == 143 and capsys.readouterr().err == "told to stop; what was written stays\n"


def test_a_signal_while_others_are_waited_for_is_not_lost():
    """ProcessGroup tell each other in one call; a signal in the middle of it is told by the next one."""

    def tell(number):
        if number is None:
            os.kill(os.getpid(), signal.SIGUSR1)
        return number

    group = SimpleNamespace(group=SimpleNamespace(any=tell))
    with pytest.raises(signals.Interrupted) as stopped, signals.deferred() as stop:
        assert [loop._told(stop, group), loop._told(stop, group)] == [None, signal.SIGUSR1]
    assert stopped.value.status == 143


def test_a_second_signal_ends_at_once(workplace):
    process = start(workplace, 5)
    before = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM and time.monotonic() - before < 2
    assert not (workplace / "checkpoints/tile/tiny/last.pt").exists()


def test_a_damaged_state_falls_back_to_the_one_before(workplace, cli, monkeypatch):
    monkeypatch.setattr("training.state.SAVE_EVERY", 0)
    config = config_of(workplace)
    reference = weights(train.run(config, ""))
    last, before = (config.run_folder / name for name in ("last.pt", "last_before.pt"))
    assert checkpoint.read(last)["epoch"] == 3 and checkpoint.read(before)["epoch"] == 2
    content = checkpoint.read(last)
    content["model"]["reconstructive.decoder.fin_out.0.bias"] += 1  # as a faulty disk might, with the rest whole
    sets = ("--set", "train.epochs=3", "--set", "train.visualize=false")
    sets += ("--set", "train.save_from=3")
    whole = last.read_bytes(), before.read_bytes()
    for damage in (
        lambda: torch.save(content, last),
        lambda: last.write_bytes(whole[0][:-1000]),
        lambda: last.write_bytes(b""),
        lambda: last.unlink(),
    ):
        before.write_bytes(whole[1])
        damage()
        (config.run_folder / "epoch_0003.pt").unlink()
        status, out, error = cli("--train", *sets)
        assert status == 0, error
        assert "last_before.pt: what was trained after epoch 2 is lost, and trained again" in out
        assert same(weights(config.run_folder / "epoch_0003.pt"), reference)
    last.write_bytes(b"")
    before.write_bytes(b"")
    status, _, error = cli("--train", *sets)
    assert status == 2 and "last.pt: truncated or not a checkpoint" in error and "train.resume=never" in error


def test_other_modes_end_cleanly(two, cli, monkeypatch):
    """What is told to stop in the middle of a pass leaves no half of a result."""

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    monkeypatch.setattr(detect, "anomaly_maps", signalled)
    before = {path for path in two.rglob("*") if "checkpoints" in path.parts or "results" in path.parts}
    for mode in (["--threshold"], ["--detection", "--set", "metrics.threshold=false"]):
        status, _, error = cli(*mode)
        assert status == 143 and error.strip().splitlines()[-1].startswith("told to stop"), error
    left = {path for path in two.rglob("*") if "checkpoints" in path.parts or "results" in path.parts}
    assert not [path for path in left - before if path.is_file()]


def test_train_all_hands_the_signal_on(workplace):
    command = [
        sys.executable,
        ROOT / "train_all.py",
        "--config",
        workplace / "config.yaml",
        "--set",
        "train.epochs=2000",
    ]
    process = subprocess.Popen(command, cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = workplace / "checkpoints/tile/tiny/last.pt"
    end, error = time.monotonic() + 60, []
    threading.Thread(target=lambda: error.append(process.stderr.read()), daemon=True).start()
    while not log.is_file():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    time.sleep(0.2)
    assert "goes on from there" in error[0] and checkpoint.read(log)["epoch"] >= 1
    assert not (workplace / "checkpoints/tile/tiny/.owner.json").exists()
