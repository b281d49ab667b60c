"""--learn: a run of its own from the weights, with false alarms among its training images, and its comparison."""

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import config_of, rows_of, same, weights, write
from messages import assert_line, assert_user_error
from test_feedback import feedback

from data.image_io import read_image
from engine.feedback import comparison
from engine.feedback.comparison import Figures
from engine.threshold import nominal_images
from inference import checkpoint
from runtime.provenance import file_digest
from training.data import datasets, find_files, split

RUNS = "checkpoints/tile"
SHORT = ("--set", "feedback.epochs=1")


@pytest.fixture
def line(ready):
    """A workplace with thresholds, and 12 images of a line in other light."""
    rng = np.random.default_rng(5)
    for i in range(12):
        write(ready / f"line/{i:02}.png", rng.integers(150, 170, (40, 48, 3), dtype=np.uint8))
    return ready


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def learn(line, cli, rows, *arguments):
    status, out, error = cli("--feedback", str(feedback(line, rows)), "--learn", *SHORT, *arguments)
    assert status in (0, 1), error
    path = Path(out.splitlines()[-1].removeprefix("checkpoint: "))
    assert (line / path).is_file(), error
    return status, out, line / path


ROWS = [f"line/{i:02}.png,anomalous,nominal," for i in range(10)] + ["line/10.png,nominal,nominal,"]


def test_false_alarms_join_a_new_run_and_nothing_else_changes(line, cli):
    before = {name: contents(line / name) for name in ("mvtec", "line", f"{RUNS}/tiny")}
    held_out = next(iter(checkpoint.load_metadata(line / f"{RUNS}/tiny/epoch_0002.pt").images.held_out))
    known = [f"mvtec/tile/train/{held_out},anomalous,nominal,", "mvtec/tile/test/good/000.png,anomalous,nominal,"]
    status, out, path = learn(line, cli, [*ROWS, *known, "line/11.png,nominal,anomalous,"])
    assert path.parent.name.startswith("tiny_feedback-") and path.name == "epoch_0001.pt"
    assert before == {name: contents(line / name) for name in before}
    old, new = checkpoint.load_metadata(line / f"{RUNS}/tiny/epoch_0002.pt"), checkpoint.load_metadata(path)
    line_images = {file_digest(line / f"line/{i:02}.png") for i in range(10)}
    added = {
        part: dict(getattr(new.images, part).items() - getattr(old.images, part).items())
        for part in ("training", "held_out")
    }
    assert old.images.training.items() <= new.images.training.items()
    assert old.images.held_out.items() <= new.images.held_out.items()
    assert (len(added["training"]), len(added["held_out"])) == (8, 2)  # a fifth is held out
    assert set(added["training"].values()) | set(added["held_out"].values()) == line_images
    assert new.settings.train.start_from == (line / f"{RUNS}/tiny/epoch_0002.pt").as_posix()
    kept = rows_of(path.parent / "feedback/feedback.csv")
    assert Counter(row["file"].partition("/")[0] for row in kept) == {"training": 8, "held_out": 2}
    assert all(file_digest(Path(row["path"])) in row["file"] for row in kept)
    made_from = json.loads((path.parent / "feedback/made_from.json").read_text())
    assert made_from["checkpoint_file"] == new.settings.train.start_from
    assert_line(out, 1, "held out")
    assert_line(out, 1, "test")
    samples, is_held_out = nominal_images(config_of(line, f"data.run_name={path.parent.name}"), new)
    assert is_held_out and len(samples) == len(old.images.held_out) + 2
    thresholds = json.loads((path.parent / "thresholds/checkpoint_1/no_masking.json").read_text())
    assert thresholds["pictures"] == len(samples)
    assert (path.parent / "feedback/comparison.txt").read_text() in out
    assert_line(out, "of 2")
    assert_line(out, "marked anomalies", "of 1")
    assert status == (1 if "not better" in out else 0)
    # The new run is used as any other.
    name = f"data.run_name={path.parent.name}"
    assert cli("--detection", "--set", name, "--set", "data.load_epoch=1")[0] == 0
    assert cli("--predict", str(line / "line"), "--output", str(line / "out"), "--set", name)[0] == 0


def test_it_goes_on_from_the_weights_and_resumes(line, cli):
    slow = ("--set", "train.learning_rate=1e-12")
    _, _, path = learn(line, cli, ROWS, *slow)
    old, new = weights(line / f"{RUNS}/tiny/last.pt"), weights(path)
    moved = [key for key in old if key.endswith("weight") and not torch.allclose(old[key], new[key], atol=1e-6)]
    assert not moved and old.keys() == new.keys()
    for file in ("epoch_0001.pt", "last.pt"):
        (path.parent / file).unlink()
    _, _, same_path = learn(line, cli, ROWS[::-1], *slow)
    assert same_path == path and same(weights(path), new)
    _, _, other = learn(line, cli, ROWS[1:], *slow)
    assert other.parent != path.parent
    assert cli("--feedback", str(feedback(line, ROWS)), "--learn", *slow, "--set", "feedback.epochs=2")[0] in (0, 1)
    assert len(list((line / RUNS).glob("tiny_feedback-*/epoch_0002.pt"))) == 1  # other settings are another run
    assert not (path.parent / "epoch_0002.pt").exists() and len(list((line / RUNS).iterdir())) == 4


def test_an_interrupted_learning_resumes_to_the_same_weights(line, cli, on_forward):
    """Interrupted within its training, and again between the training and the comparison."""
    rows = str(feedback(line, ROWS))
    arguments = ("--feedback", rows, "--learn", "--set", "feedback.epochs=3", "--set", "train.ema_decay=0.9")
    status, whole_out, error = cli(*arguments)
    assert status in (0, 1), error
    whole = line / whole_out.splitlines()[-1].removeprefix("checkpoint: ")
    reference, log = weights(whole), rows_of(whole.parent / "train_log.csv")
    texts = {name: (whole.parent / name).read_bytes() for name in ("feedback/comparison.txt", "feedback/feedback.csv")}
    shutil.rmtree(whole.parent)
    trained = stopped = 0

    def interrupt(model, batch, output):
        nonlocal trained, stopped
        trained += model.training
        if (model.training and trained == 3) or (not model.training and stopped == 1 and whole.is_file()):
            stopped += 1
            os.kill(os.getpid(), signal.SIGTERM)

    on_forward(interrupt)
    for number in (1, 2):
        assert cli(*arguments)[0] == 143 and stopped == number
        assert whole.is_file() == (number == 2) and not (whole.parent / "feedback/comparison.txt").exists()
    assert cli(*arguments)[0] == status
    assert same(weights(whole), reference) and trained == 3 * 2  # no step is repeated
    again = rows_of(whole.parent / "train_log.csv")
    terms = ("epoch", "loss", "learning_rate", "val_ap")
    assert [[row[key] for key in terms] for row in again] == [[row[key] for key in terms] for row in log]
    assert texts == {name: (whole.parent / name).read_bytes() for name in texts}


def test_a_learned_run_learns_again_and_keeps_what_it_has_learned(line, cli):
    _, _, first = learn(line, cli, ROWS[:4])
    rows = [f"line/{i:02}.png,anomalous,nominal," for i in range(4, 10)]
    arguments = ("--set", f"data.run_name={first.parent.name}")
    _, _, second = learn(line, cli, rows, *arguments)
    assert second.parent.name.count("feedback") == 1 and second.parent != first.parent
    before, after = (checkpoint.load_metadata(path).images for path in (first, second))
    assert before.training.items() <= after.training.items() and before.held_out.items() <= after.held_out.items()
    assert len(after.training) == len(before.training) + 5 and len(after.held_out) == len(before.held_out) + 1


def test_the_exit_status_says_whether_it_is_better(line, cli, monkeypatch):
    seen = []

    def planned(*figures):
        seen.append(figures)
        return ["a reason"] if len(seen) == 1 else []

    monkeypatch.setattr(comparison, "worse", planned)
    status, out, path = learn(line, cli, ROWS)
    assert status == 1
    assert_line(out, "not better")
    assert_line(out, "tiny/last.pt")
    status, out, _ = learn(line, cli, ROWS)
    assert status == 0
    assert_line(out, "better", path.parent.name)
    before, recalibrated, after = seen[0]
    assert before.false_positives["new"][1] == after.false_positives["new"][1] == 2
    assert before.pixel_ap is recalibrated.pixel_ap is not after.pixel_ap


def figures(new=0, old=0, recall=0.9, auroc=0.9, pixel_ap=0.8):
    both = {"old": recall, "new": recall}
    return Figures({"old": (old, 40), "new": (new, 4)}, both, {"old": auroc, "new": 0.5}, {"old": pixel_ap, "new": 0.5})


@pytest.mark.parametrize(
    "before, recalibrated, after, reasons",
    [
        (figures(new=4), figures(recall=0.5), figures(), 0),
        (figures(new=4), figures(recall=0.5), figures(new=4), 1),
        (figures(new=4), figures(), figures(old=2), 1),
        (figures(new=4), figures(), figures(auroc=0.885), 1),
        (figures(new=4), figures(), figures(auroc=0.895, pixel_ap=0.795), 0),
        (figures(new=4), figures(), figures(pixel_ap=0.785), 1),
        (figures(new=4), figures(recall=0.95), figures(recall=0.9), 1),
        (figures(new=0), figures(), figures(new=0), 1),  # none was a false alarm: nothing to gain
        (figures(new=4), figures(), figures(new=4, old=3, auroc=0.5, pixel_ap=0.5, recall=0.5), 5),
    ],
)
def test_what_counts_as_worse(before, recalibrated, after, reasons):
    assert len(comparison.worse(before, recalibrated, after)) == reasons


def test_both_are_compared_on_so_many_samples_that_chance_seldom_decides(line, cli, monkeypatch):
    counts, outputs = [], comparison.outputs

    def counted(model, samples, config):
        found = list(outputs(model, samples, config))
        counts.append(len(found))
        return found

    monkeypatch.setattr(comparison, "outputs", counted)
    monkeypatch.setattr(comparison, "SAMPLES", 41)
    learn(line, cli, ROWS)
    assert counts == [44, 44]  # eleven of each of the four held-out images


def test_mistakes(line, cli):
    one = [*ROWS[:1], "line/10.png,nominal,nominal,"]
    assert_user_error(cli("--feedback", str(feedback(line, one)), "--learn"), "feedback.csv", 1, 2)
    file = str(feedback(line, ROWS))
    assert_user_error(cli("--feedback", file, "--learn", "--set", "train.batch_size=1"), "train.batch_size = 1")
    assert_user_error(cli("--threshold", "--learn"), "--learn", "--feedback")
    shutil.rmtree(line / "mvtec")
    assert_user_error(cli("--feedback", file, "--learn"), "data.data_path")


def test_a_training_starts_from_weights_with_the_same_images_held_out(two, cli):
    start = two / f"{RUNS}/tiny/epoch_0002.pt"
    sets = ("--set", "data.run_name=more", "--set", f"train.start_from={start}", "--set", "train.learning_rate=1e-12")
    assert cli("--train", *sets, "--set", "train.seed=7")[0] == 0  # of the split, too
    old, new = (checkpoint.load_metadata(path) for path in (start, two / f"{RUNS}/more/epoch_0002.pt"))
    assert old.images == new.images
    before, after = weights(start), weights(new.path)
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before if key.endswith("weight"))
    # Of other images: the weights alone.
    assert cli("--train", *sets, "--set", "data.category=wood")[0] == 0
    assert checkpoint.load_metadata(two / "checkpoints/wood/more/epoch_0002.pt").images.held_out
    missing = cli("--train", "--set", "data.run_name=x", "--set", f"train.start_from={two}/none.pt")
    assert_user_error(missing, f"train.start_from = {two}/none.pt")
    assert_user_error(cli("--train", "--set", "data.run_name=more"), "train.start_from")


def test_synthetic_samples_know_the_files_of_their_images(line, cli):
    """Added images come after those of the dataset, but their folder is sorted before it."""
    _, _, path = learn(line, cli, ROWS)
    config = config_of(line, f"data.run_name={path.parent.name}", "synthesis.max_rotation=0")
    files = split(config, find_files(config), checkpoint.load_metadata(path).images)
    training, synthetic = datasets(config, files)
    assert [len(training.images), len(training.added.images), len(synthetic.files)] == [4, 8, 4]
    assert {file.parent.name for file in synthetic.files} == {"good", "held_out"}
    for file, image in zip(synthetic.files, synthetic.nominal.images, strict=True):
        np.testing.assert_array_equal(image, read_image(file, (32, 32)))
    assert all(image.mean() > 140 for image in training.added.images)  # in the other light
    assert all(image.mean() < 120 for image in training.images)
