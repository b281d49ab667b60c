"""engine/train.py, --train: files of a run, resuming, and what ends a training."""

import csv
import re
import signal
import time

import pytest
import torch
from conftest import ROOT, config_of, same, start_fork, wait_until, weights
from messages import assert_fix, assert_line, assert_names, assert_user_error, error_of

from engine import train
from inference import checkpoint
from loss import DRAEMLoss


def log_of(config) -> list[dict[str, str]]:
    with (config.run_folder / "train_log.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_a_failed_start_keeps_the_earlier_run(workplace, cli):
    train.run(config_of(workplace), "old")
    files = {path: path.read_bytes() for path in (workplace / "checkpoints").rglob("*") if path.is_file()}
    (workplace / "textures/kind/0.jpg").write_bytes(b"x")
    (workplace / "textures/kind/1.jpg").write_bytes(b"x")
    (workplace / "textures/kind/2.jpg").write_bytes(b"x")
    status, _, _ = cli("--train", "--set", "train.resume=never", "--set", "train.batch_size=4")
    assert status == 2 and all(path.read_bytes() == content for path, content in files.items())
    (workplace / "checkpoints/tile/tiny/last.pt").unlink()
    assert_user_error(cli("--train"), "tiny/last.pt", "data.run_name", "train.resume=never")
    assert checkpoint.saved_epochs(workplace / "checkpoints/tile/tiny") == [1, 2]


def test_the_log_has_the_learning_rate_of_each_epoch(workplace):
    config = config_of(workplace, "train.epochs=5", "train.visualize=false")
    train.run(config, "")
    assert [float(row["learning_rate"]) for row in log_of(config)] == pytest.approx([1e-3] * 4 + [1e-3 * 0.04])


def test_the_same_seed_gives_the_same_weights(workplace):
    paths = [train.run(config_of(workplace, f"data.run_name={name}", "train.visualize=false"), "") for name in "ab"]
    assert same(weights(paths[0]), weights(paths[1]))
    other = train.run(config_of(workplace, "data.run_name=c", "train.seed=1", "train.visualize=false"), "")
    assert not same(weights(paths[0]), weights(other))


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


def test_a_killed_training_resumes_and_ends_with_the_same_weights(workplace):
    """SIGKILL, which nothing can catch, at two moments after a state was saved."""
    overrides = ["train.epochs=12", "train.save_from=1", "train.save_every=1", "train.visualize=false"]
    overrides += ["data.num_workers=1", "data.val_split=0", "data.img_size=64"]
    alone = "data.num_workers=0"  # the start of a loader process takes seconds
    reference = train.run(config_of(workplace, *overrides, alone, "data.run_name=whole"), "")
    config = config_of(workplace, *overrides, alone)
    arguments = ["--train", "--config", workplace / "config.yaml"]
    arguments += [word for override in overrides for word in ("--set", override)]
    for epoch, file, wait in ((1, "last.pt", 0.0), (5, "epoch_0005.pt", 0.05)):
        process = start_fork(ROOT / "main.py", arguments, workplace)
        wait_until((config.run_folder / file).is_file, process)
        time.sleep(wait)
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        assert epoch - 1 <= checkpoint.read(config.run_folder / "last.pt")["epoch"] < 12
    path = train.run(config, "")
    assert path == config.run_folder / "epoch_0012.pt" and same(weights(path), weights(reference))
    assert [int(row["epoch"]) for row in log_of(config)] == list(range(1, 13))


def test_a_finished_run_is_kept_and_can_be_extended(workplace, capsys):
    config = config_of(workplace, "train.visualize=false")
    first = train.run(config, "")
    before = first.stat().st_mtime_ns
    assert train.run(config, "") == first and first.stat().st_mtime_ns == before
    assert_line(capsys.readouterr().out, config.run_folder, 2, "train.epochs", "train.resume=never")
    longer = config_of(workplace, "train.visualize=false", "train.epochs=3")
    assert train.run(longer, "").name == "epoch_0003.pt"
    assert [int(row["epoch"]) for row in log_of(longer)] == [1, 2, 3]


def test_resume_never_replaces_the_earlier_run(workplace):
    train.run(config_of(workplace, "train.epochs=3"), "")
    config = config_of(workplace, "train.epochs=2", "train.resume=never", "train.visualize=false")
    train.run(config, "")
    assert checkpoint.saved_epochs(config.run_folder) == [1, 2] and len(log_of(config)) == 2
    assert not list((config.run_folder / "images").glob("*"))


@pytest.mark.parametrize("term", ["l2", "ssim", "focal"])
def test_a_non_finite_loss_ends_a_training_and_reaches_no_checkpoint(workplace, cli, on_forward, term):
    config = config_of(workplace)
    train.run(config_of(workplace, "train.epochs=1"), "")
    before, calls = (config.run_folder / "last.pt").read_bytes(), []

    def spoil(loss, reconstruction, terms):
        calls.append(1)
        return terms | {term: terms[term] * float("nan")} if len(calls) == 2 else None

    on_forward(spoil, kind=DRAEMLoss)
    text = error_of(cli("--train"), status=1)
    assert_names(text, term, "nan", "train.learning_rate")
    assert len(re.findall(r"\b2\b", text)) == 2  # step and epoch
    assert_fix(text)
    assert (config.run_folder / "last.pt").read_bytes() == before
    assert checkpoint.saved_epochs(config.run_folder) == [1]


def test_non_finite_weights_reach_no_checkpoint(workplace, cli, monkeypatch):
    step = torch.optim.Adam.step

    def spoiled(self, *arguments):
        step(self, *arguments)
        self.param_groups[0]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.Adam, "step", spoiled)
    text = error_of(cli("--train", "--set", "train.batch_size=8", "--set", "train.epochs=1"), status=1)
    assert_names(text, 1, "train.learning_rate")
    assert_fix(text)
    assert not list((workplace / "checkpoints").rglob("*.pt"))
