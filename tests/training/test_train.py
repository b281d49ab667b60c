"""Training: schedule, resume, and what stops it."""

import csv
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config import load_config
from engine import train
from inference import checkpoint
from inference.checkpoint import TrainingImages
from loss import DRAEMLoss
from runtime.device import select_device, select_precision
from runtime.files import atomic_write, write_text
from runtime.provenance import Provenance
from training import state
from training.state import TrainingState, learning_rate_factor


def config_of(workplace, *overrides):
    return load_config(workplace / "config.yaml", overrides)


def weights(path):
    return checkpoint.read(path)["model"]


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def log_of(config) -> list[dict[str, str]]:
    with (config.run_folder / "train_log.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_learning_rates_follow_the_original(workplace):
    """x 0.2 after round(0.8 E) and round(0.9 E) epochs: the original's ten epochs, and one it drops twice at."""
    factor = learning_rate_factor(config_of(workplace, "train.epochs=10"))
    assert [factor(done) for done in range(10)] == pytest.approx([1] * 8 + [0.2, 0.04])
    factor = learning_rate_factor(config_of(workplace, "train.epochs=7"))
    assert [factor(done) for done in range(7)] == pytest.approx([1] * 6 + [0.04])


def test_learning_rates_are_those_of_the_golden_trajectory(workplace):
    factor = learning_rate_factor(config_of(workplace, "train.epochs=10"))
    golden = np.load(DATA / "trajectory.npz")["losses_l2_ssim_focal_lr"][:, 3]
    assert [1e-4 * factor(step // 2) for step in range(20)] == pytest.approx(golden.tolist(), rel=1e-9)


def test_a_start_that_fails_costs_the_earlier_run_nothing(workplace, cli):
    train.run(config_of(workplace), "old")
    files = {path: path.read_bytes() for path in (workplace / "checkpoints").rglob("*") if path.is_file()}
    (workplace / "textures/kind/0.jpg").write_bytes(b"x")
    (workplace / "textures/kind/1.jpg").write_bytes(b"x")
    (workplace / "textures/kind/2.jpg").write_bytes(b"x")
    status, _, _ = cli("--train", "--set", "train.resume=never", "--set", "train.batch_size=4")
    assert status == 2 and all(path.read_bytes() == content for path, content in files.items())
    (workplace / "checkpoints/tile/tiny/last.pt").unlink()
    status, _, error = cli("--train")
    assert status == 2 and "last.pt: missing, but checkpoints of a run are there" in error
    assert checkpoint.saved_epochs(workplace / "checkpoints/tile/tiny") == [1, 2]


def test_the_loop_steps_the_learning_rate(workplace):
    config = config_of(workplace, "train.epochs=5", "train.visualize=false")
    train.run(config, "")
    assert [float(row["learning_rate"]) for row in log_of(config)] == pytest.approx([1e-3] * 4 + [1e-3 * 0.04])


def test_same_seed_same_weights(workplace):
    paths = [train.run(config_of(workplace, f"data.run_name={name}", "train.visualize=false"), "") for name in "ab"]
    assert same(weights(paths[0]), weights(paths[1]))
    other = train.run(config_of(workplace, "data.run_name=c", "train.seed=1", "train.visualize=false"), "")
    assert not same(weights(paths[0]), weights(other))


@pytest.mark.parametrize(("before", "after"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_run_can_go_on_in_another_precision(workplace, monkeypatch, before, after):
    """Whose weights lie in another order, as on some devices: each must still meet its own moments."""
    layouts = {torch.bfloat16: torch.channels_last, torch.float32: torch.contiguous_format}
    for module in ("training.state", "training.loop"):
        monkeypatch.setattr(f"{module}.memory_format", lambda device, precision: layouts[precision])
    train.run(config_of(workplace, "train.epochs=1", f"train.precision={before}", "train.visualize=false"), "")
    config = config_of(workplace, "train.epochs=2", f"train.precision={after}")
    content = checkpoint.read(config.run_folder / "last.pt")
    state = TrainingState(config, "", TrainingSource(Provenance(), TrainingImages(**content["images"])))
    state.resume(content)
    model, optimizer = state.model, state.optimizer
    layout = torch.channels_last if after == "bf16" else torch.contiguous_format
    assert all(value.is_contiguous(memory_format=layout) for value in model.parameters() if value.ndim == 4)
    names = [name for name, _ in model.named_parameters()]
    expected = {name: content["optimizer"]["state"][i] for i, name in enumerate(names)}
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            state = optimizer.state[parameter][key]
            assert state.stride() == parameter.stride() and torch.equal(state, expected[name][key])


def test_files_of_a_run(workplace):
    config = config_of(workplace, "train.epochs=5", "train.save_from=2", "train.save_every=2")
    assert train.run(config, "# text\n") == config.run_folder / "epoch_0005.pt"
    assert checkpoint.saved_epochs(config.run_folder) == [2, 4, 5]
    names = {path.relative_to(config.run_folder).as_posix() for path in config.run_folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "last.pt", "train_log.csv"} <= names
    assert {f"images/epoch_{epoch:04}.png" for epoch in range(1, 6)} <= names
    assert any(name.startswith("logs/events") for name in names)
    assert [name for name in names if "/." in f"/{name}"] == [".lock"]
    content = checkpoint.read(config.run_folder / "epoch_0004.pt")
    assert content["epoch"] == 4 and content["settings"]["train"]["seed"] == 0
    assert len(content["images"]["held_out"]) == 2
    assert {key.split(".")[0] for key in content["model"]} == {"reconstructive", "discriminative"}
    rows = log_of(config)
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5]
    assert all(float(row["loss"]) == pytest.approx(sum(float(row[k]) for k in ("l2", "ssim", "focal"))) for row in rows)


def test_tensorboard_reads_the_events_of_an_interrupted_run(workplace):
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


KILLED = """
import os, runpy, signal, sys
sys.path.insert(0, {root!r})
import training.loop
import training.state
training.state.SAVE_EVERY = 0
step, count = training.loop.train_step, 0
def killing(*arguments):
    global count
    count += 1
    if count == {steps}:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
training.loop.train_step = killing
sys.argv[0] = "main.py"
runpy.run_path({main!r}, run_name="__main__")
"""


def test_killed_and_resumed_ends_with_the_same_weights(workplace):
    """Killed outright by a signal that nothing can catch, in the middle of an epoch, then at the beginning of one."""
    overrides = ["train.epochs=6", "train.save_from=6", "train.visualize=false", "data.num_workers=1"]
    reference = train.run(config_of(workplace, *overrides, "data.run_name=whole"), "")
    config = config_of(workplace, *overrides)
    arguments = ["--train", "--config", str(workplace / "config.yaml")]
    arguments += [word for override in overrides for word in ("--set", override)]
    for steps, epoch in ((4, 1), (5, 3)):  # of two steps each
        code = KILLED.format(root=str(ROOT), main=str(ROOT / "main.py"), steps=steps)
        command = [sys.executable, "-c", code, *arguments]
        # No pipes: its loader process outlives it by seconds, and would keep them open.
        nowhere = subprocess.DEVNULL
        killed = subprocess.run(command, cwd=workplace, stdout=nowhere, stderr=nowhere, timeout=240)
        assert killed.returncode == -signal.SIGKILL
        assert checkpoint.read(config.run_folder / "last.pt")["epoch"] == epoch
    path = train.run(config, "")
    assert path == config.run_folder / "epoch_0006.pt" and same(weights(path), weights(reference))
    assert [int(row["epoch"]) for row in log_of(config)] == [1, 2, 3, 4, 5, 6]


def test_a_state_without_carried_pictures_is_gone_on_from(workplace):
    """As earlier versions have written it."""
    config = config_of(workplace, "train.epochs=1")
    train.run(config, "")
    last = config.run_folder / "last.pt"
    content = checkpoint.read(last)
    del content["embedded_assets"], content["checksum"]
    state.write_checkpoint(last, content)
    assert train.run(config_of(workplace, "train.epochs=2"), "").name == "epoch_0002.pt"


def test_states_to_resume_from_do_not_hold_up_short_epochs(workplace, monkeypatch):
    """Saved after the first epoch, with what is kept, and then as often as SAVE_EVERY says."""
    saved, save = [], state.write_checkpoint

    def record(path, content):
        saved.append((path.name, content["epoch"]))
        save(path, content)

    monkeypatch.setattr(state, "write_checkpoint", record)
    settings = ["train.epochs=5", "train.save_from=3", "train.save_every=3", "train.visualize=false"]
    for seconds, expected in ((1e9, [1, 3, 5]), (0, [1, 2, 3, 4, 5])):
        monkeypatch.setattr("training.state.SAVE_EVERY", seconds)
        saved.clear()
        train.run(config_of(workplace, *settings, f"data.run_name=every{seconds:.0f}"), "")
        assert [epoch for name, epoch in saved if name == "last.pt"] == expected


def test_a_finished_run_says_so_and_can_be_extended(workplace, capsys):
    config = config_of(workplace, "train.visualize=false")
    first = train.run(config, "")
    before = first.stat().st_mtime_ns
    assert train.run(config, "") == first and first.stat().st_mtime_ns == before
    assert "already trained for 2 epochs" in capsys.readouterr().out
    longer = config_of(workplace, "train.visualize=false", "train.epochs=3")
    assert train.run(longer, "").name == "epoch_0003.pt"
    assert [int(row["epoch"]) for row in log_of(longer)] == [1, 2, 3]


def test_never_starts_anew_and_leaves_nothing_of_the_run_before(workplace):
    train.run(config_of(workplace, "train.epochs=3"), "")
    config = config_of(workplace, "train.epochs=2", "train.resume=never", "train.visualize=false")
    train.run(config, "")
    assert checkpoint.saved_epochs(config.run_folder) == [1, 2] and len(log_of(config)) == 2
    assert not list((config.run_folder / "images").glob("*"))


@pytest.mark.parametrize("term", ["l2", "ssim", "focal"])
def test_a_non_finite_loss_stops_and_reaches_no_checkpoint(workplace, cli, monkeypatch, term):
    config = config_of(workplace)
    train.run(config_of(workplace, "train.epochs=1"), "")
    before = (config.run_folder / "last.pt").read_bytes()
    forward, calls = DRAEMLoss.forward, []

    def spoiled(self, *arguments):
        calls.append(1)
        terms = forward(self, *arguments)
        return terms | {term: terms[term] * float("nan")} if len(calls) == 2 else terms

    monkeypatch.setattr(DRAEMLoss, "forward", spoiled)
    status, _, error = cli("--train")
    assert status == 1 and f"the {term} loss became nan at step 2 of epoch 2" in error
    lines = [line for line in error.splitlines() if "epoch" not in line.split(":")[0]]
    assert "Traceback" not in error and "learning_rate" in lines[-1]
    assert (config.run_folder / "last.pt").read_bytes() == before
    assert checkpoint.saved_epochs(config.run_folder) == [1]


def test_non_finite_weights_reach_no_checkpoint(workplace, cli, monkeypatch):
    step = torch.optim.Adam.step

    def spoiled(self, *arguments):
        step(self, *arguments)
        self.param_groups[0]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.Adam, "step", spoiled)
    status, _, error = cli("--train", "--set", "train.batch_size=8", "--set", "train.epochs=1")
    assert status == 1 and "weights became non-finite in the last step of epoch 1" in error
    assert not list((workplace / "checkpoints").rglob("*.pt"))


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_precision_and_device(monkeypatch):
    cpu = torch.device("cpu")
    assert select_precision("fp32", cpu) == torch.float32
    assert select_precision("bf16", cpu) == torch.bfloat16
    for capabilities, expected in (({"amx_bf16": True}, torch.bfloat16), ({"avx512_bf16": True}, torch.bfloat16),
                                   ({"avx512_f": True}, torch.float32)):  # fmt: skip
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert select_precision("auto", cpu) == expected
    assert select_device("cpu") == cpu
