"""training/state.py, the state of a training: learning rates, what is saved and when, what a run resumes from."""

import os
from pathlib import Path
from typing import Annotated

import pytest
import torch
from conftest import config_of, same, weights
from messages import assert_line, assert_user_error
from pydantic import create_model

import config
import config_types
from engine import train
from inference import checkpoint
from runtime.errors import UserError
from training import state
from training.state import SavedState, TrainingState


@pytest.mark.parametrize(("before", "after"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_run_resumes_in_another_precision(workplace, monkeypatch, before, after):
    """Weights get another memory format with it, as on some devices: each must keep its own moments.

    The choice of a format is replaced, since on a CPU both precisions have the same one.
    """
    layouts = {torch.bfloat16: torch.channels_last, torch.float32: torch.contiguous_format}
    for module in ("training.state", "training.loop"):
        monkeypatch.setattr(f"{module}.memory_format", lambda device, precision: layouts[precision])
    train.run(config_of(workplace, "train.epochs=1", f"train.precision={before}", "train.visualize=false"), "")
    config = config_of(workplace, "train.epochs=2", f"train.precision={after}")
    saved = SavedState.read(config.run_folder / "last.pt")
    state = TrainingState(config, "", saved.source)
    state.resume(saved)
    model, optimizer = state.model, state.optimizer
    layout = torch.channels_last if after == "bf16" else torch.contiguous_format
    assert all(value.is_contiguous(memory_format=layout) for value in model.parameters() if value.ndim == 4)
    names = [name for name, _ in model.named_parameters()]
    expected = {name: saved.optimizer["state"][i] for i, name in enumerate(names)}
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            state = optimizer.state[parameter][key]
            assert state.stride() == parameter.stride() and torch.equal(state, expected[name][key])


def test_a_state_without_embedded_images_is_resumed(workplace):
    config = config_of(workplace, "train.epochs=1")
    train.run(config, "")
    last = config.run_folder / "last.pt"
    content = checkpoint.read(last)
    del content["embedded_assets"], content["checksum"]
    state.write_checkpoint(last, content)
    assert train.run(config_of(workplace, "train.epochs=2"), "").name == "epoch_0002.pt"


def test_a_state_of_before_a_setting_is_resumed_with_its_default(workplace):
    config = config_of(workplace, "train.epochs=1", "train.visualize=false")
    train.run(config, "")
    last = config.run_folder / "last.pt"
    content = checkpoint.read(last)
    del content["provenance"]["settings"]["train.ema_decay"], content["checksum"]
    state.write_checkpoint(last, content)
    with pytest.raises(UserError, match=r"train\.ema_decay = None, now 0\.9"):
        train.run(config_of(workplace, "train.epochs=2", "train.ema_decay=0.9"), "")
    assert train.run(config_of(workplace, "train.epochs=2"), "").name == "epoch_0002.pt"


def test_states_are_saved_with_kept_epochs_and_at_intervals(workplace, monkeypatch):
    """After the first epoch, with each that is kept, and every SAVE_EVERY seconds, which are 30."""
    saved, replace = [], os.replace

    def record(source, target):
        if Path(target).name == "last.pt":
            saved.append(checkpoint.read(Path(source))["epoch"])
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    settings = ["train.epochs=5", "train.save_from=3", "train.save_every=3", "train.visualize=false"]
    for seconds, expected in ((1e9, [1, 3, 5]), (0, [1, 2, 3, 4, 5])):
        monkeypatch.setattr("training.state.SAVE_EVERY", seconds)
        saved.clear()
        train.run(config_of(workplace, *settings, f"data.run_name=every{seconds:.0f}"), "")
        assert saved == expected


def test_a_damaged_state_falls_back_to_the_one_before(workplace, cli):
    settings = ("train.epochs=3", "train.visualize=false", "train.save_from=2", "train.save_every=1")
    config = config_of(workplace, *settings)
    reference = weights(train.run(config, ""))
    last, before = (config.run_folder / name for name in ("last.pt", "last_before.pt"))
    assert checkpoint.read(last)["epoch"] == 3 and checkpoint.read(before)["epoch"] == 2
    content = checkpoint.read(last)
    content["model"]["reconstructive.decoder.fin_out.0.bias"] += 1  # as a faulty disk might, with the rest intact
    sets = [word for one in settings for word in ("--set", one)]
    whole = last.read_bytes(), before.read_bytes()
    for damage in (
        lambda: torch.save(content, last),
        lambda: last.write_bytes(whole[0][:-1000]),
        lambda: last.write_bytes(b""),
        lambda: last.unlink(),
    ):
        before.write_bytes(whole[1])
        damage()
        for path in config.run_folder.glob("epoch_*.pt"):
            path.unlink()
        status, out, error = cli("--train", *sets)
        assert status == 0, error
        assert_line(out, last, "last_before.pt", 2)
        assert same(weights(config.run_folder / "epoch_0003.pt"), reference)
    last.write_bytes(b"")
    before.write_bytes(b"")
    assert_user_error(cli("--train", *sets), last, "train.resume=never")


def test_the_only_sound_state_is_not_replaced_by_a_damaged_one(workplace):
    """A training that resumes from the state before, and is killed while it saves its first state."""
    settings = ("train.visualize=false", "train.save_from=9")
    train.run(config_of(workplace, "train.epochs=2", *settings), "")
    run = workplace / "checkpoints/tile/tiny"
    before = run / "last_before.pt"
    sound = before.read_bytes()
    (run / "last.pt").write_bytes((run / "last.pt").read_bytes()[:-1000])
    kept = []

    def note(source, target):
        if target == run / "last.pt":
            kept.append(before.read_bytes() == sound)
        replace(source, target)

    replace = os.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", note)
        train.run(config_of(workplace, "train.epochs=4", *settings), "")
    assert kept[0] and len(kept) >= 2  # with the next one there are two sound states
    assert {checkpoint.read(run / name)["epoch"] for name in ("last.pt", "last_before.pt")} <= {2, 3, 4}


def test_a_new_setting_is_refused_on_resume_by_its_declaration_alone(workplace, monkeypatch):
    """The schema is replaced by one with a made-up setting, of which nothing else knows."""
    made_up = Annotated[int, config_types.whole(1, 9), config_types.WEIGHTS]
    section = create_model("Train", __base__=config.Train, made_up=(made_up, 1))
    schema = create_model("Config", __base__=config.Config, train=(section, section()))
    for module in ("config", "config_file", "inference.checkpoint", "training.state"):
        monkeypatch.setattr(f"{module}.Config", schema)
    train.run(config_of(workplace, "train.epochs=1", "train.visualize=false"), "")
    with pytest.raises(UserError) as caught:
        train.run(config_of(workplace, "train.epochs=2", "train.made_up=2"), "")
    assert "made_up = 1" in caught.value.problem and "last.pt" in caught.value.subject
    path = train.run(config_of(workplace, "train.epochs=2", "train.visualize=false"), "")
    assert checkpoint.load_metadata(path).settings.train.made_up == 1


def test_epochs_and_the_state_before_the_last_are_on_the_drive(workplace, monkeypatch):
    """After a loss of power the last state may be damaged, as it is new; those that are kept must not be."""
    synced, sync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda one: (synced.append(Path(os.readlink(f"/proc/self/fd/{one}")).name), sync(one))
    )
    monkeypatch.setattr(state, "SAVE_EVERY", 0)
    train.run(config_of(workplace, "train.epochs=3", "train.visualize=false"), "")
    epochs = [name.rpartition(".")[0] for name in synced if name.startswith(".epoch_")]
    assert [name[:11] for name in epochs] == [".epoch_0001", ".epoch_0002", ".epoch_0003"]
    assert synced.count("last.pt") >= 2
