"""training/data.py: which images and textures a training uses, and which are held out."""

import json
import re

import numpy as np
import pytest
from conftest import same, write
from messages import assert_line, assert_user_error

from config_file import load_config
from inference import checkpoint
from training.data import datasets, find_files, split


def test_a_fifth_of_the_textures_is_held_out_for_val_ap(workplace, cli):
    for i in range(3, 10):
        write(workplace / f"textures/kind/{i}.png", np.random.default_rng(i).integers(0, 256, (50, 60, 3)))
    config = load_config(workplace / "config.yaml")
    train, samples = datasets(config, split(config, find_files(config)))
    used = [{texture.tobytes() for texture in one.synthesizer.textures} for one in (train, samples.nominal)]
    assert [len(some) for some in used] == [8, 2] and not used[0] & used[1]
    config = load_config(workplace / "config.yaml", ["data.val_split=0"])
    train, samples = datasets(config, split(config, find_files(config)))
    assert len(train.synthesizer.textures) == 10 and samples is None


@pytest.mark.parametrize(("largest", "corners"), [(0, False), (3, False), (90, True)])
def test_training_images_are_rotated_as_far_as_is_set(workplace, largest, corners):
    """A rotation by more than a few degrees leaves black corners; one by 0 degrees leaves the image as it is."""
    config = load_config(workplace / "config.yaml", [f"synthesis.max_rotation={largest}"])
    train, _ = datasets(config, split(config, find_files(config)))
    images = [train[key]["image"].permute(1, 2, 0).numpy() for key in range(40)]
    known = {image.tobytes() for image in train.images}
    assert any(image.tobytes() not in known for image in images) == (largest > 0)
    assert any((image[:3, :3] == 0).all() for image in images) == corners


def copies_in(workplace, count):
    """Copies of nominal images, named so that some fall on both sides of the split."""
    good = workplace / "mvtec/tile/train/good"
    for i in range(count):
        (good / f"1{i:02}.png").write_bytes((good / f"{i % 3:03}.png").read_bytes())


def test_copies_of_held_out_images_do_not_change_the_split_on_resume(workplace, cli):
    copies_in(workplace, 15)
    sets = ("--set", "train.visualize=false", "--set", "data.run_name")
    status, out, _ = cli("--train", *sets[:3], f"{sets[3]}=whole")
    assert status == 0 and (workplace / "checkpoints/tile/whole/epoch_0002.pt").is_file()
    assert_line(out, re.compile(r"^held-out images that are also training images"), re.compile(r"good/\d{3}\.png"))
    assert cli("--train", *sets[:3], f"{sets[3]}=parts", "--set", "train.epochs=1")[0] == 0
    first = checkpoint.read(workplace / "checkpoints/tile/parts/last.pt")["images"]
    assert cli("--train", *sets[:3], f"{sets[3]}=parts")[0] == 0
    second, whole = (checkpoint.read(workplace / f"checkpoints/tile/{name}/last.pt") for name in ("parts", "whole"))
    assert first == second["images"] == whole["images"]
    assert {part: len(names) for part, names in first.items()} == {"training": 14, "held_out": 7}
    assert same(second["model"], whole["model"])
    status, out, _ = cli("--threshold", *sets[:3], f"{sets[3]}=parts")
    kept = json.loads((workplace / "checkpoints/tile/parts/thresholds/checkpoint_2/no_masking.json").read_text())
    own = set(first["held_out"].values()) - set(first["training"].values())
    assert status == 0 and kept["pictures"] == len(own) > 0


def test_copies_among_held_out_images_count_once(workplace, cli):
    """In thresholds, and in the false-positive rate that their number allows to expect."""
    category, nominal = workplace / "mvtec/tile", workplace / "others"
    for i in range(5):
        image = np.random.default_rng(100 + i % 2).integers(90, 110, (40, 48, 3), dtype=np.uint8)
        for folder in (category / "validation/good", nominal):
            write(folder / f"{i}.png", image)
    assert cli("--train", "--set", "train.epochs=1")[0] == 0
    for arguments, file in ((["--threshold"], "no_masking"), (["--threshold", "--nominal", str(nominal)], "others")):
        status, out, error = cli(*arguments)
        assert status == 0, error
        [path] = (workplace / "checkpoints/tile/tiny/thresholds").rglob(f"*{file}*.json")
        assert json.loads(path.read_text())["pictures"] == 2
    assert_line(out, re.compile("copies"), 3)


def test_images_of_the_same_name_in_two_folders_are_two(workplace, cli):
    good = workplace / "mvtec/tile/train/good"
    for path in good.iterdir():
        other = np.random.default_rng(int(path.stem)).integers(90, 110, (40, 48, 3), dtype=np.uint8)
        write(good.parent / "ok" / path.name, other)
    assert cli("--train", "--set", "train.epochs=1")[0] == 0
    first = checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")["images"]
    assert len(first["training"]) == 8 and len(first["held_out"]) == 4
    assert cli("--train")[0] == 0
    assert checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")["images"] == first


def test_a_renamed_image_stays_held_out_and_a_copy_of_it_becomes_held_out(workplace, cli):
    assert cli("--train", "--set", "train.epochs=1")[0] == 0
    path = workplace / "checkpoints/tile/tiny/last.pt"
    held_out = checkpoint.read(path)["images"]["held_out"]
    train = workplace / "mvtec/tile/train"
    one, other = sorted(held_out)
    (train / "good/new.png").write_bytes((train / other).read_bytes())
    (train / one).rename(train / "good/renamed.png")
    assert cli("--train")[0] == 0
    assert set(checkpoint.read(path)["images"]["held_out"]) == {other, "good/new.png", "good/renamed.png"}


def test_images_of_a_validation_folder_are_held_out(workplace, cli):
    for i in range(4):
        image = np.random.default_rng(100 + i).integers(90, 110, (40, 48, 3), dtype=np.uint8)
        write(workplace / f"mvtec/tile/validation/good/{i}.png", image)
    status, out, _ = cli("--train", "--threshold")
    assert status == 0
    assert_line(out, "tile", 6, 4)
    kept = json.loads((workplace / "checkpoints/tile/tiny/thresholds/checkpoint_2/no_masking.json").read_text())
    assert kept["pictures"] == 4 and kept["held_out"] is True
    kept = checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")
    assert set(kept["images"]["held_out"]) == {f"validation/good/{i}.png" for i in range(4)}
    write(workplace / "mvtec/tile/validation/good/9.png", np.full((40, 48, 3), 7, np.uint8))
    assert cli("--train", "--set", "train.epochs=3")[0] == 0
    kept = checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")
    assert len(kept["images"]["held_out"]) == 5 and len(kept["images"]["training"]) == 6


def test_groups_are_held_out_together(workplace, cli):
    good = workplace / "mvtec/tile/train/good"
    for path in sorted(good.iterdir()):
        path.rename(good / f"part{int(path.stem) // 2}_{path.name}")
    assert cli("--train", "--set", "data.split_by=(part\\d)_")[0] == 0
    kept = checkpoint.read(workplace / "checkpoints/tile/tiny/last.pt")["images"]
    parts = [{name[:10] for name in kept[part]} for part in ("training", "held_out")]
    assert [len(names) for names in parts] == [2, 1] and not parts[0] & parts[1]
    anew = ("--set", "data.run_name=other", "--set", "data.split_by=(shift)")
    assert_user_error(cli("--train", *anew), "data.split_by", "(shift)", re.compile(r"part\d_\d+\.png"))
