"""registration/register.py: what is registered and warped, how often, and by which process; scenes in the programs."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import cv2
import numpy as np
import pytest
import skimage
from brackets import BRACKET_SIZE
from conftest import write
from messages import assert_line, assert_user_error

from config_file import load_config
from data.cache import ArrayCache
from data.image_io import read_image
from data.mvtec import list_nominal, list_test
from registration.register import RegisteredTrainingImages, Registration


@pytest.fixture
def scene(workplace):
    """Images of one scene, shifted; one of them shows something else and has another size."""
    whole = cv2.imread(f"{skimage.data_dir}/camera.png", cv2.IMREAD_COLOR)
    whole = cv2.resize(whole, (300, 260), interpolation=cv2.INTER_AREA)
    rng, folder = np.random.default_rng(5), workplace / "mvtec/tile"
    write(workplace / "reference.png", whole[20:240, 20:280])
    for path in sorted(folder.rglob("*.png")):
        dy, dx = rng.integers(-12, 13, 2)
        if "ground_truth" in path.parts:
            mask = np.zeros((220, 260), np.uint8)
            mask[50:80, 60:90] = 255
            write(path, mask)
        else:
            write(path, whole[20 + dy : 240 + dy, 20 + dx : 280 + dx])
    write(folder / "test/good/001.png", np.full((90, 120, 3), 90, np.uint8))
    return ("--set", "data.image_registration=true", "--set", f"data.registration_reference={workplace}/reference.png",
            "--set", "masking.regions.tile=[[200, 220, 0, 260]]", "--set", "metrics.masking=true")  # fmt: skip


def test_an_image_that_cannot_be_registered_is_kept_and_listed(workplace, cli, scene):
    """Also where its size is not that of the reference, which regions are given for."""
    status, out, error = cli("--train", "--threshold", "--detection", *scene)
    assert status == 0, error
    path = workplace / "results/tiny/tile/checkpoint_2/post_masking_registered/p_quantile/metrics.json"
    notes = json.loads(path.read_text())["notes"]
    assert notes["unregistered"] == ["test/good/001.png"]
    assert_line(out, "1 of 6", "test/good/001.png")


def test_regions_are_checked_without_decoding_an_image(workplace, call, scene, monkeypatch):
    assert call("main", "--train")[0] == 0
    names = {path.read_bytes(): path.name for path in workplace.rglob("*.png") if "ground_truth" not in path.parts}
    decode, decoded = cv2.imdecode, []

    def record(data, flags):
        decoded.append(names.get(data.tobytes()))
        return decode(data, flags)

    monkeypatch.setattr(cv2, "imdecode", record)
    outside = ("--set", "masking.regions.tile=[[200, 230, 0, 260]]", "--registrations", "True")
    found = call("evaluate_checkpoints", *scene, *outside)
    assert_user_error(found, "masking.regions.tile", "[200, 230, 0, 260]", "260 x 220", "reference.png")
    assert [name for name in decoded if name] == ["reference.png"]
    # Without registration regions must fit the images: one of them is smaller.
    found = call("evaluate_checkpoints", *scene, "--registrations", "False")
    assert_user_error(found, "masking.regions.tile", "[200, 220, 0, 260]", "120 x 90", "001.png")


def test_registered_images_are_warped_once_for_all_checkpoints(workplace, call, scene, monkeypatch):
    assert call("main", "--train")[0] == 0
    warp, count = cv2.warpPerspective, []

    def record(*arguments, **options):
        if options.get("flags") == cv2.INTER_NEAREST:  # a mask: registering itself warps as well
            count.append(1)
        return warp(*arguments, **options)

    monkeypatch.setattr(cv2, "warpPerspective", record)
    arguments = ("--registrations", "True", "--maskings", "no", "pre", "post", "--set", "metrics.visualisation=none")
    once = []
    for checkpoints in (("2",), ("1", "2")):
        count.clear()
        assert call("evaluate_checkpoints", *scene, *arguments, "--force", "--checkpoints", *checkpoints)[0] == 0
        once.append(len(count))
    # One checkpoint: each image for each of two inputs, held-out ones too. Two: once for all of them.
    assert once == [2 * (5 + 2), 5 + 2]
    maps = [
        (workplace / f"results/tiny/tile/checkpoint_2/{name}_masking_registered/scores.csv").read_text()
        for name in ("no", "pre", "post")
    ]
    count.clear()
    assert call("evaluate_checkpoints", *scene, *arguments, "--force", "--checkpoints", "2")[0] == 0
    assert count and maps == [
        (workplace / f"results/tiny/tile/checkpoint_2/{name}_masking_registered/scores.csv").read_text()
        for name in ("no", "pre", "post")
    ]  # the same, whether read from the file or warped again


REGISTERED = ("data.image_registration=true", "data.registration_method=part", "data.registration_training=true")


def test_training_images_are_aligned_with_the_reference(brackets):
    config = load_config(brackets / "config.yaml", REGISTERED)
    files = list_nominal(brackets / "mvtec/bracket")
    images = RegisteredTrainingImages(brackets / "kept", files, Registration(config))
    assert isinstance(images, ArrayCache) and len(images) == 6
    reference = read_image(files[0]).astype(int)
    for image, file in zip(images, files, strict=True):
        assert np.abs(image - reference).mean() < 4, file  # black corners would be 40 away
    assert np.abs(read_image(files[1]).astype(int) - reference).mean() > 10


def test_a_cropped_reference_shows_the_part_larger(brackets):
    """All parts fill it in one pose, and what is marked there lies on the part of the image."""
    plain, registration = (
        Registration(load_config(brackets / "config.yaml", [*REGISTERED, f"data.registration_crop={crop}"]))
        for crop in (False, True)
    )
    reference = registration.reference
    height, width = reference.shape[:2]
    shares = [(one.max(axis=2) > 90).mean() for one in (plain.reference, reference)]
    assert height < width < BRACKET_SIZE and shares[1] > 1.5 * shares[0]
    for file in list_nominal(brackets / "mvtec/bracket"):
        image = read_image(file)
        homography = registration.homography(image)
        warped, _, _ = registration.warp(image, homography)
        assert warped.shape == reference.shape and np.abs(warped.astype(int) - reference).mean() < 6
        marked = (warped.max(axis=2) > 90).astype(np.float32)
        back = registration.to_own_pixels(marked, homography, image.shape[:2]) > 0.5
        part = image.max(axis=2) > 90
        assert (back & part).sum() > 0.9 * (back | part).sum()
    assert registration.digest != plain.digest


def test_an_image_too_wide_to_warp_stays_unregistered(brackets):
    config = load_config(brackets / "config.yaml", ["data.image_registration=true"])
    assert Registration(config).homography(np.zeros((4, 32767, 3), np.uint8)) is None


def test_processes_share_the_images_to_register(brackets, monkeypatch):
    """Each registers its part, and all have all homographies."""
    refine, count, meet, said = cv2.findTransformECC, [], Barrier(2), [None, None]
    monkeypatch.setattr(cv2, "findTransformECC", lambda *arguments: count.append(1) or refine(*arguments))

    class ProcessGroup:
        count = 2

        def __init__(self, rank):
            self.rank = rank

        def gather(self, content):
            said[self.rank] = content
            meet.wait()
            return list(said)

    config = load_config(brackets / "config.yaml", REGISTERED)
    images, alone = list_test(brackets / "mvtec/bracket"), Registration(config)
    alone.register(images)
    steps = len(count)
    assert steps >= 4
    both = [Registration(config), Registration(config)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda rank: both[rank].register(images, ProcessGroup(rank)), range(2)))
    assert len(count) == 2 * steps and [len(own) for own in said] == [2, 2]
    for one in both:
        for path in (image.path for image in images):
            np.testing.assert_array_equal(one.homography_of(path), alone.homography_of(path))
