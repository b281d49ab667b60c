"""Tiles: what networks are trained on and detect in, and how their maps become one."""

import json
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import ROOT, SETTINGS, config_of, make_dataset, rows_of, write
from in_process import run_here
from messages import assert_line, assert_user_error

from data_loader import DRAEMTrainDataset
from inference import tiles
from inference.detect import Networks
from model import DRAEM
from synthesis import AnomalySynthesizer

TILED = ("data.img_size=[96, 160]", "data.tile_size=64")


def sets(*settings):
    return [word for one in settings for word in ("--set", one)]


def noise(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def seeded_model():
    torch.manual_seed(3)
    return DRAEM(4, 4).eval()


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "count"),
    [
        ((64, 64), (64, 64), 0.25, 1),
        ((448, 1120), (128, 128), 0.25, 5 * 12),
        ((96, 160), (64, 32), 0.0, 2 * 5),
        ((96, 160), (64, 32), 0.75, 3 * 17),
        ((320, 64), (32, 64), 0.5, 19),
    ],
)
def test_tiles_cover_the_image_and_their_weights_sum_to_one(size, tile, overlap, count):
    found = tiles.cut(size, tile, overlap)
    assert len(found) == count
    total = np.zeros(size)
    for one in found:
        assert (one.rows.stop - one.rows.start, one.columns.stop - one.columns.start) == tile
        assert one.rows.start >= 0 and one.rows.stop <= size[0] and one.columns.stop <= size[1]
        assert one.weight.shape == tile and one.weight.min() > 0
        total[one.rows, one.columns] += one.weight.numpy()
    np.testing.assert_allclose(total, 1, atol=1e-6)
    for axis, side in enumerate(tile):
        starts = sorted({one[axis].start for one in found})
        assert starts[0] == 0 and starts[-1] == size[axis] - side
        assert all(b - a <= side * (1 - overlap) + 1 for a, b in pairwise(starts))


def test_weights_fall_off_to_the_rim_of_a_tile():
    [first, *_] = tiles.cut((64, 160), (64, 64), 0.25)
    row = first.weight.numpy()[32]
    assert (row[:40] > 0.999).all() and (np.diff(row[48:]) < 0).all() and row[-1] < 0.01


def test_a_constant_map_stays_constant():
    found = tiles.cut((96, 160), (64, 64), 0.4)
    whole = tiles.Blended((96, 160), len(found))
    for tile in found:
        assert not whole.is_done
        whole.add(tile, torch.full((3, 64, 64), 0.3), torch.full((64, 64), 0.7))
    assert whole.is_done
    np.testing.assert_allclose(whole.output[1], 0.7, atol=1e-6)
    np.testing.assert_allclose(whole.output[0], 0.3, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [((448, 1120), (128, 128), 0.25), ((320, 320), (64, 128), 0.75), ((96, 160), (64, 64), 0)],
)
def test_blended_maps_stay_in_0_to_1(size, tile, overlap):
    """A map of 1 everywhere; the sum of weights is 1 except for rounding."""
    found = tiles.cut(size, tile, overlap)
    whole = tiles.Blended(size, len(found))
    for one in found:
        whole.add(one, torch.zeros(3, *tile), torch.ones(tile))
    assert whole.output[1].max() == 1 and whole.output[1].min() > 1 - 1e-6


def test_weights_take_less_memory_than_the_image():
    """Stored for each tile they would take sixteen times the memory of the image at an overlap of 0.75."""
    kept = {
        tensor.data_ptr(): tensor.nbytes for tile in tiles.cut((2048, 2048), (256, 256), 0.75) for tensor in tile[2:]
    }
    assert sum(kept.values()) < 2048 * 2048 / 50


def test_a_tile_as_large_as_the_image_gives_the_untiled_map(workplace):
    images = [torch.from_numpy(noise(3, 64, 96)) for _ in range(5)]
    made = []
    for settings in ((), ("data.tile_size=[64, 96]",)):
        config = config_of(workplace, "data.img_size=[64, 96]", *settings)
        made.append(list(Networks(seeded_model(), config, 5)(images)))
    for (reconstruction, anomaly_map), (other_reconstruction, other_map) in zip(*made, strict=True):
        assert torch.equal(anomaly_map, other_map) and torch.equal(reconstruction, other_reconstruction)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_maps_are_blended_from_those_of_the_tiles(workplace, batch_size):
    """Tiles of several images share batches; whatever their size, each image gets its own."""
    config = config_of(workplace, *TILED, f"data.test_batch_size={batch_size}", "data.tile_overlap=0.3")
    images, alone = (
        [noise(3, 96, 160) // (i + 1) for i in range(3)],
        config_of(workplace, "data.img_size=64"),
    )
    single = Networks(seeded_model(), alone, 1)
    network = Networks(seeded_model(), config, 3)
    for image, (reconstruction, anomaly_map) in zip(images, network(map(torch.from_numpy, images)), strict=True):
        expected, weights = np.zeros((4, 96, 160)), np.zeros((96, 160))
        window = np.outer(*[np.sin(np.pi * (np.arange(64) + 0.5) / 64) ** 2] * 2)
        for top in (0, 32):
            for left in (0, 32, 64, 96):
                where = slice(top, top + 64), slice(left, left + 64)
                [(part, part_map)] = single([torch.from_numpy(image[(slice(None), *where)].copy())])
                expected[(slice(None), *where)] += window * np.concatenate([part, part_map[None]])
                weights[where] += window
        np.testing.assert_allclose(reconstruction, (expected / weights)[:3], atol=1e-5)
        np.testing.assert_allclose(anomaly_map, (expected / weights)[3], atol=1e-6)


def test_training_samples_are_tiles_at_random_positions():
    """The values of a pixel are its position."""
    rows, columns = np.mgrid[:96, :160].astype(np.uint8)
    images = [np.dstack([rows, columns, np.full_like(rows, i)]) for i in range(3)]
    synthesizer = AnomalySynthesizer([noise(64, 32, 3)], (64, 32))
    dataset = DRAEMTrainDataset(images, synthesizer, seed=5, per_image=4)
    assert len(dataset) == 12
    places, counts = set(), [0, 0, 0]
    for key in range(60):  # five epochs
        sample = dataset[key]
        image = sample["image"].numpy()
        assert image.shape == (3, 64, 32) and sample["anomaly_mask"].shape == (1, 64, 32) and sample["idx"] == key % 12
        np.testing.assert_array_equal(image, dataset[key]["image"])
        if not (image[2] == image[2, 0, 0]).all() or image[2, 0, 0] != key % 3:
            continue  # rotated
        counts[key % 3] += 1
        top, left = int(image[0, 0, 0]), int(image[1, 0, 0])
        if np.array_equal(image[0, :, 0], np.arange(top, top + 64)):
            np.testing.assert_array_equal(image, images[key % 3][top : top + 64, left : left + 32].transpose(2, 0, 1))
            places.add((top, left))
    assert len(places) > 30 and max(top for top, _ in places) > 24 and max(left for _, left in places) > 100
    assert min(counts) > 8


def test_samples_of_a_tile_as_large_as_the_image_are_those_of_the_image():
    image, synthesizer = noise(64, 64, 3), AnomalySynthesizer([noise(64, 64, 3) // 2], (64, 64))
    dataset = DRAEMTrainDataset([image], synthesizer)
    for key in range(8):  # epochs of one sample
        sample, expected = dataset[key], synthesizer.corrupt(image, np.random.default_rng([0, key, 0, 1]))
        for name, array in zip(("image", "augmented_image", "anomaly_mask"), expected, strict=True):
            array = array[..., None] if array.ndim == 2 else array
            np.testing.assert_array_equal(sample[name], array.transpose(2, 0, 1), err_msg=name)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ((), 1),
        (("data.tile_size=64",), 2 * 3),
        (("data.tile_size=32",), 15),
        (("data.tile_size=32", "data.img_size=[160, 160]"), 16),
        (("data.tile_size=32", "train.tiles_per_image=40"), 40),
        (("train.tiles_per_image=40",), 1),
    ],
)
def test_the_number_of_tiles_in_an_epoch(workplace, settings, count):
    config = config_of(workplace, "data.img_size=[96, 160]", *settings)
    assert tiles.per_image(config.data, config.train.tiles_per_image) == count


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """A workplace whose images are of two sizes; for the settings of a run of tiles."""
    root = make_dataset(tmp_path_factory.mktemp("tiled"))
    write(root / "mvtec/tile/test/good/003.png", noise(100, 170, 3) // 8 + 90)
    text = SETTINGS.replace("img_size: 32", "img_size: [64, 96]\n  tile_size: 32").format(root=root.as_posix())
    (root / "config.yaml").write_text(text)
    return root


def test_every_mode_works_on_tiles_and_gives_the_same_scores(tiled, exporter, monkeypatch):
    """Detection, --predict and the exported file give one score for an image."""
    monkeypatch.setattr(torch.onnx, "export", exporter)
    arguments = ["--config", tiled / "config.yaml", "--train", "--threshold", "--detection", "--export", "onnx"]
    out = run_here("main", *arguments, "--predict", tiled / "mvtec/tile/test", "--output", tiled / "out")
    assert_line(out, "tile", 4, 6, 2)
    log = (tiled / "checkpoints/tile/tiny/train_log.csv").read_text().splitlines()
    assert len(log) == 3 and "nan" not in log[-1]
    scores = {
        row["path"]: float(row["score"])
        for row in rows_of(tiled / "results/tiny/tile/checkpoint_2/no_masking/scores.csv")
    }
    predicted = {row["path"].partition("mvtec/tile/")[2]: row for row in rows_of(tiled / "out/predictions.csv")}
    assert scores.keys() == predicted.keys() and len(scores) == 7
    for path, score in scores.items():
        assert float(predicted[path]["score"]) == pytest.approx(score, abs=1e-6)
    paths = [row["path"] for row in predicted.values()]
    file = tiled / "checkpoints/tile/tiny/export/tile_2.onnx"
    facts = json.loads(file.with_suffix(".json").read_text())
    assert (facts["img_size"], facts["tile_size"], facts["tile_overlap"]) == ([64, 96], [32, 32], 0.25)
    done = subprocess.run([sys.executable, ROOT / "deploy/detect.py", file, *paths], capture_output=True, text=True)
    said = dict(line.split(maxsplit=2)[:0:-1] for line in done.stdout.splitlines())
    for path, row in zip(paths, predicted.values(), strict=True):
        assert float(said[path]) == pytest.approx(float(row["score"]), abs=2e-6)


def test_as_many_images_are_in_memory_as_fill_a_batch(tiled):
    for settings, images in ((("data.tile_size=32",), 64 // 12), (("data.tile_size=null",), 64)):
        network = Networks(seeded_model(), config_of(tiled, "data.test_batch_size=64", *settings), 1)
        assert network.images_at_once == images
    assert Networks(seeded_model(), config_of(tiled), 1).images_at_once == 1


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["data.tile_size=64"], ["data.tile_size = 64", "data.img_size = [32, 32]"]),
        (
            ["data.img_size=[64, 96]", "data.tile_size=[96, 64]"],
            ["data.tile_size = [96, 64]", "data.img_size = [64, 96]"],
        ),
        (["data.img_size=64", "data.tile_size=40"], ["data.tile_size = 40", "32"]),
        (["data.tile_size=0"], ["data.tile_size = 0", "32"]),
        (["data.tile_overlap=0.8"], ["data.tile_overlap = 0.8", "0.75"]),
        (["data.tile_overlap=-0.1"], ["data.tile_overlap = -0.1", "0.75"]),
        (["train.tiles_per_image=0"], ["train.tiles_per_image = 0", "1"]),
    ],
)
def test_tile_sizes_that_do_not_fit_are_user_errors(workplace, cli, settings, names):
    assert_user_error(cli("--train", *sets(*settings)), *names)


def test_a_checkpoint_of_another_tile_size_is_a_user_error(two, cli):
    """In every mode, and where a training would resume."""
    tiled = sets("data.img_size=64", "data.tile_size=32")
    assert cli("--train", *tiled, *sets("data.run_name=tiled"))[0] == 0
    for mode in (["--threshold"], ["--detection"], ["--predict", str(two / "mvtec/tile/test")], ["--export", "onnx"]):
        is_of_dataset = mode[0] in ("--threshold", "--detection")  # the others take what is not set from the checkpoint
        names = ["data.tile_size = [32, 32]", "null"] if is_of_dataset else ["data.img_size = (64, 64)", "(32, 32)"]
        assert_user_error(cli(*mode, *tiled), "last.pt", *names)
        other = sets("data.img_size=64", "data.tile_size=64", "data.run_name=tiled")
        assert_user_error(cli(*mode, *other), "last.pt", re.compile(r"data\.tile_size = [\[(]64, 64.*[\[(]32, 32"))
    resumed = cli("--train", *sets("data.img_size=64", "data.tile_size=64", "data.run_name=tiled"))
    assert_user_error(resumed, "last.pt", re.compile(r"data\.tile_size = \[32, 32\].*\[64, 64\]"))
    more = sets("data.img_size=64", "data.tile_size=32", "data.run_name=tiled", "train.tiles_per_image=3")
    assert_user_error(cli("--train", *more), "last.pt", re.compile(r"train\.tiles_per_image = auto.*\b3\b"))


def test_a_state_of_before_tiles_was_trained_without_them(two, cli):
    path = two / "checkpoints/tile/tiny/last.pt"
    content = torch.load(path, weights_only=True)
    for place in (content["settings"]["data"], content["provenance"]["settings"]):
        for key in ("tile_size", "tile_overlap", "data.tile_size", "train.tiles_per_image"):
            place.pop(key, None)
    content.pop("checksum")
    torch.save(content, path)
    before = path.read_bytes()
    resumed = cli("--train", *sets("train.epochs=3", "data.tile_size=32"))
    assert_user_error(resumed, "last.pt", "data.tile_size = None", "[32, 32]", "train.resume=never")
    assert path.read_bytes() == before
    assert cli("--detection", *sets("data.load_epoch=last", "metrics.threshold=false"))[0] == 0
    assert cli("--train", *sets("train.epochs=3"))[0] == 0
    assert torch.load(path, weights_only=True)["epoch"] == 3
