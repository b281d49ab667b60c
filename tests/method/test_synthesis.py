"""synthesis.py: synthetic anomalies, and that training samples of them depend on the seed alone."""

import json

import cv2
import numpy as np
import pytest
import torch
from conftest import GOLDEN, make_dataset, write

import data_loader
import synthesis
from config import Synthesis
from data import folders
from data.mvtec import list_nominal
from synthesis import AnomalySynthesizer, alignment, rotate


@pytest.fixture
def textures(tmp_path):
    rng = np.random.default_rng(1)
    return [write(tmp_path / f"{i}.png", rng.integers(0, 256, (70, 60, 3), dtype=np.uint8)) for i in range(4)]


@pytest.fixture
def nominal():
    return np.random.default_rng(2).integers(0, 256, (64, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize("degrees", [-90.0, -33.3, 0.0, 12.0, 90.0])
def test_rotation_equals_imgaugs(degrees, nominal):
    import imgaug.augmenters as iaa  # behind synthesis, which puts in place what imgaug misses in NumPy 2

    np.testing.assert_array_equal(rotate(nominal, degrees), iaa.Affine(rotate=degrees).augment_image(nominal))
    noise = nominal[..., 0].astype(np.float32)
    expected = iaa.Affine(rotate=degrees).augment_image(noise[..., None])[..., 0]
    np.testing.assert_allclose(rotate(noise, degrees), expected, atol=1e-3)


def test_statistics_equal_the_originals(textures):
    reference = json.loads((GOLDEN / "synthesis_stats.json").read_text())
    synthesizer = AnomalySynthesizer(textures, (256, 256))
    image = np.zeros((256, 256, 3), np.uint8)
    samples = [synthesizer(image, np.random.default_rng([3, k])) for k in range(1200)]
    anomalous = np.array([has_anomaly[0] for *_, has_anomaly in samples])
    areas = np.array([mask.mean() for _, _, mask, has_anomaly in samples if has_anomaly[0]])
    for values, key in ((anomalous, "p_anomalous"), (areas, "mask_area_fraction_mean")):
        error = np.hypot(values.std() / np.sqrt(len(values)), reference[f"{key}_stderr"])
        assert abs(values.mean() - reference[key]) < 4 * error, key


def test_a_sample_follows_the_paper(textures, nominal):
    synthesizer = AnomalySynthesizer(textures, (64, 96))
    rotated = anomalous = 0
    for k in range(300):
        image, augmented, mask, has_anomaly = synthesizer(nominal, np.random.default_rng(k))
        assert image.dtype == augmented.dtype == mask.dtype == has_anomaly.dtype == np.float32
        assert image.shape == augmented.shape == (64, 96, 3) and mask.shape == (64, 96, 1) and has_anomaly.shape == (1,)
        assert augmented.min() >= 0 and augmented.max() <= 1 and set(np.unique(mask)) <= {0, 1}
        assert has_anomaly[0] == mask.max()
        np.testing.assert_array_equal(image[mask[..., 0] == 0], augmented[mask[..., 0] == 0])
        rotated += not np.array_equal(image, nominal.astype(np.float32) / 255)
        anomalous += has_anomaly[0]
    assert abs(rotated / 300 - 0.3) < 4 * np.sqrt(0.21 / 300)
    assert 0.3 < anomalous / 300 < 0.6


def test_the_blend_is_a_convex_sum_of_texture_and_image(textures, nominal):
    class FlatTexture(AnomalySynthesizer):
        def augment_texture(self, texture, rng):
            return np.full_like(texture, 51)

    synthesizer = FlatTexture(textures, (64, 96))
    betas = []
    for k in range(200):
        image, augmented, mask, has_anomaly = synthesizer(nominal, np.random.default_rng(k))
        inside = mask[..., 0] == 1
        if has_anomaly[0] and image[inside].std() > 0.1:
            beta, offset = np.polyfit(image[inside].ravel(), augmented[inside].ravel(), 1)
            assert abs(offset - (1 - beta) * 0.2) < 1e-4
            betas.append(beta)
    assert min(betas) + 1e-6 >= 0 and max(betas) < 0.8 and abs(np.mean(betas) - 0.4) < 0.1


def test_a_fifth_of_the_samples_are_cutouts_of_the_documented_sizes_and_values(textures, nominal):
    """They are recognized by their values: all of 0.5 or all of 1, which no blend of image and texture has."""
    synthesizer = AnomalySynthesizer(textures, (64, 96), cut=True)
    heights, values = [], set()
    for k in range(1500):
        _, augmented, mask, has_anomaly = synthesizer(nominal, np.random.default_rng(k))
        inside = set(np.unique(augmented[mask[..., 0] == 1]).tolist())
        if inside not in ({0.5}, {1.0}):
            continue
        rows, columns = np.flatnonzero(mask[..., 0].any(1)), np.flatnonzero(mask[..., 0].any(0))
        height, width = len(rows), len(columns)
        assert has_anomaly[0] == 1 and mask.sum() == height * width
        assert 10 <= height <= 32 and 10 <= width <= 48
        values |= inside
        heights.append(height)
    assert values == {0.5, 1.0} and min(heights) == 10 and max(heights) == 32
    assert abs(len(heights) / 1500 - 0.2) < 4 * np.sqrt(0.16 / 1500)


def test_no_anomaly_is_synthesized_for_samples_that_stay_nominal(textures, nominal):
    """Half of the samples take a texture; the others none, so that no time is spent on them."""
    used = []

    class Recorded(AnomalySynthesizer):
        def augment_texture(self, texture, rng):
            used.append(1)
            return texture

        def perlin_mask(self, rng):
            used.append(2)
            return super().perlin_mask(rng)

    synthesizer = Recorded(textures, (64, 96))
    for k in range(1000):
        before = len(used)
        has_anomaly = synthesizer(nominal, np.random.default_rng(k))[3][0]
        assert used[before:] in ([], [1, 2]) and (used[before:] or not has_anomaly)
    assert abs(len(used) / 2000 - 0.5) < 4 * np.sqrt(0.25 / 1000)


def test_augmenters_depend_on_the_generator_alone(textures, nominal):
    synthesizer = AnomalySynthesizer(textures, (64, 96))
    for index in range(10):  # each of the ten comes first once or more among these
        first = synthesizer.augment_texture(nominal, np.random.default_rng(index))
        np.random.seed(index)
        synthesizer.augment_texture(nominal, np.random.default_rng(99))
        again = AnomalySynthesizer(textures, (64, 96)).augment_texture(nominal, np.random.default_rng(index))
        np.testing.assert_array_equal(first, again)


def test_every_augmenter_changes_the_texture_within_uint8(nominal):
    changed = np.zeros(10, int)
    for index, augmenter in enumerate(synthesis.augmenters()):
        for seed in range(20):
            augmenter.seed_(seed)
            result = augmenter.augment_image(nominal.copy())
            assert result.dtype == np.uint8 and result.shape == nominal.shape
            changed[index] += not np.array_equal(result, nominal)
    assert (changed[[i for i in range(10) if i != 7]] > 0).all()  # autocontrast leaves full-range noise as it is


def samples(tmp_path, workers: int, epochs: int = 2) -> list[dict]:
    files = list_nominal(tmp_path / "mvtec" / "tile")
    textures = folders.list_textures(tmp_path / "textures")
    dataset = data_loader.DRAEMTrainDataset(files, AnomalySynthesizer(textures, (32, 64), cut=True), seed=5)
    loader = data_loader.train_loader(dataset, 2, workers)
    batches = []
    for epoch in range(1, epochs + 1):
        loader.batch_sampler.sampler.epoch = epoch
        batches += list(loader)
    return batches


def test_samples_do_not_depend_on_the_number_of_workers(tmp_path):
    make_dataset(tmp_path, n_train=7)
    none, one, several = (samples(tmp_path, workers) for workers in (0, 1, 3))
    assert len(none) == 8 and sorted(torch.cat([batch["idx"] for batch in none[:4]]).tolist()) == list(range(7))
    for batches in (one, several):
        for batch, reference in zip(batches, none, strict=True):
            assert all(torch.equal(batch[key], reference[key]) for key in reference)
    assert not torch.equal(none[0]["idx"], none[4]["idx"]) or not torch.equal(none[0]["image"], none[4]["image"])


def test_samples_do_not_depend_on_how_workers_are_started(tmp_path):
    """Windows, macOS and newer Pythons send the dataset to a fresh process instead of forking."""
    make_dataset(tmp_path, n_train=12)
    files = list_nominal(tmp_path / "mvtec" / "tile")
    synthesizer = AnomalySynthesizer(folders.list_textures(tmp_path / "textures"), (32, 32))
    dataset = data_loader.DRAEMTrainDataset(files, synthesizer, seed=2)
    here = list(data_loader.train_loader(dataset, 12, 0))
    there = list(torch.utils.data.DataLoader(dataset, 12, num_workers=1, multiprocessing_context="spawn"))
    order = torch.argsort(here[0]["idx"])
    assert here[0]["has_anomaly"].sum() > 2
    assert all(torch.equal(here[0][key][order], there[0][key]) for key in there[0])


def test_no_two_samples_are_equal(tmp_path):
    make_dataset(tmp_path, n_train=1)
    file = list_nominal(tmp_path / "mvtec" / "tile") * 40
    textures = folders.list_textures(tmp_path / "textures")
    dataset = data_loader.DRAEMTrainDataset(file, AnomalySynthesizer(textures, (32, 32)))
    seen = [dataset[k]["augmented_image"].numpy().tobytes() for k in range(80) if dataset[k]["has_anomaly"]]
    assert len(seen) == len(set(seen)) > 20


def test_the_shapes_of_a_training_batch(tmp_path):
    make_dataset(tmp_path)
    sample = next(iter(samples(tmp_path, 0)))
    shapes = {key: tuple(value.shape) for key, value in sample.items()}
    assert shapes == {
        "image": (2, 3, 32, 64),
        "augmented_image": (2, 3, 32, 64),
        "anomaly_mask": (2, 1, 32, 64),
        "has_anomaly": (2, 1),
        "idx": (2,),
    }


def test_the_defaults_of_the_recipe_change_no_sample(textures, nominal):
    plain = AnomalySynthesizer(textures, (64, 96), cut=True)
    with_settings = AnomalySynthesizer(textures, (64, 96), cut=True, settings=Synthesis(), own_images=[nominal])
    for k in range(50):
        pairs = zip(*(one.corrupt(nominal, np.random.default_rng(k)) for one in (plain, with_settings)), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs)


def test_shares_of_clean_samples_and_of_transparency(textures, nominal):
    black = [np.zeros((64, 96, 3), np.uint8)]
    settings = Synthesis(clean_share=0.1, max_transparency=0, own_images=1.0)
    synthesizer = AnomalySynthesizer(textures, (64, 96), settings=settings, own_images=black)
    drawn = [synthesizer.corrupt(np.maximum(nominal, 1), np.random.default_rng(k))[1:] for k in range(300)]
    changed = [(augmented == 0).all(axis=2) & mask for augmented, mask in drawn]
    assert all(np.array_equal(one, mask) for one, (_, mask) in zip(changed, drawn, strict=True))
    plain = AnomalySynthesizer(textures, (64, 96))
    shares = [
        np.mean([one.corrupt(nominal, np.random.default_rng(k))[2].any() for k in range(1500)])
        for one in (synthesizer, plain)
    ]
    assert shares[0] == pytest.approx(0.9 * shares[1] / 0.5, abs=0.07)


def test_anomalies_from_own_images_keep_every_pixel_in_another_place(textures, nominal):
    settings = Synthesis(own_images=1.0)
    synthesizer = AnomalySynthesizer(textures, (64, 64), settings=settings, own_images=[nominal[:, :64]])
    for k in range(20):
        own = synthesizer._own_texture(np.random.default_rng(k))
        assert own.shape == (64, 64, 3) and not np.array_equal(own, nominal[:, :64])
        for channel in range(3):
            assert np.array_equal(np.bincount(own[..., channel].ravel()), np.bincount(nominal[:, :64, channel].ravel()))
    tiles = AnomalySynthesizer(textures, (32, 64), settings=settings, own_images=[nominal])  # of a larger image
    assert tiles._own_texture(np.random.default_rng(0)).shape == (32, 64, 3)


def test_anomalies_of_adjusted_images_have_the_structure_of_the_image_below(textures, nominal):
    settings = Synthesis(clean_share=0, max_transparency=0, adjusted_images=1.0)
    synthesizer = AnomalySynthesizer(textures, (64, 96), settings=settings)
    correlations, changes = [], []
    for k in range(200):
        image, augmented, mask = synthesizer.corrupt(nominal, np.random.default_rng(k))
        np.testing.assert_array_equal(augmented[~mask], image[~mask].astype(np.float32) / 255)
        before, after = image[mask].astype(float).ravel() / 255, augmented[mask].ravel()
        is_seen = (after > 0) & (after < 1)  # not clipped
        if is_seen.sum() > 300 and np.ptp(after[is_seen]) > 0.1:
            correlations.append(np.corrcoef(before[is_seen], after[is_seen])[0, 1])
            changes.append(np.mean(after[is_seen] - before[is_seen]))
    assert len(changes) > 50 and np.median(correlations) > 0.7
    assert min(changes) < -0.1 and max(changes) > 0.1  # darker and brighter


def test_own_and_adjusted_images_and_textures_fill_their_shares(textures, nominal):
    """own_images is a share of all anomalies, adjusted_images one of the others."""
    settings = Synthesis(own_images=0.25, adjusted_images=0.5)
    black = [np.zeros((64, 96, 3), np.uint8)]
    synthesizer = AnomalySynthesizer(
        [np.full((64, 96, 3), 255, np.uint8)], (64, 96), settings=settings, own_images=black
    )
    synthesizer.augment_texture = lambda texture, rng: texture
    filled = [synthesizer._filling(nominal, np.random.default_rng(k)) for k in range(2000)]
    assert np.mean([not one.any() for one in filled]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([one.min() == 255 for one in filled]) == pytest.approx(0.375, abs=0.03)


def test_alignment_is_the_share_of_the_variance_that_the_place_explains():
    """Of images that are a common pattern and noise of known variances; textures; one image in any place."""
    rng = np.random.default_rng(0)
    pattern = cv2.resize(rng.normal(0, 1, (32, 32)), (64, 64), interpolation=cv2.INTER_NEAREST)[..., None]
    for share in (0.1, 0.5, 0.9):
        images = []
        for _ in range(20):
            noise = cv2.resize(rng.normal(0, 1, (32, 32, 3)), (64, 64), interpolation=cv2.INTER_NEAREST)
            values = 128 + 20 * (np.sqrt(share) * pattern + np.sqrt(1 - share) * noise)
            images.append(values.clip(0, 255).astype(np.uint8))
        assert alignment(images) == pytest.approx(share, abs=0.03)
    textures = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(20)]
    assert 0 <= alignment(textures) < 0.02
    assert alignment([images[0]] * 3) == 1 and alignment([np.zeros((8, 8, 3), np.uint8)] * 3) == 0


def test_own_images_are_used_only_where_they_are_aligned_enough(textures, nominal):
    """Below min_alignment all samples are those without own images."""
    rng = np.random.default_rng(0)
    unlike = [rng.integers(0, 256, nominal.shape, dtype=np.uint8) for _ in range(5)]
    alike = [np.clip(nominal.astype(int) + change, 0, 255).astype(np.uint8) for change in (0, 1, 2)]
    for images, limit, is_used in (
        (unlike, 0.25, False),
        (alike, 0.25, True),
        (unlike, 0.0, True),
        (alike[:1], 0.25, False),
    ):
        settings = {"clean_share": 0, "adjusted_images": 0.5, "min_alignment": limit}
        one = AnomalySynthesizer(textures, (64, 96), settings=Synthesis(own_images=0.5, **settings), own_images=images)
        without = AnomalySynthesizer(textures, (64, 96), settings=Synthesis(**settings), own_images=images)
        for_both = [
            zip(*(kind.corrupt(nominal, np.random.default_rng(k)) for kind in (one, without)), strict=True)
            for k in range(20)
        ]
        assert all(np.array_equal(*pair) for pairs in for_both for pair in pairs) != is_used


def test_textures_are_gray_where_the_nominal_images_are(textures, nominal):
    gray = np.repeat(nominal[..., :1], 3, axis=2)
    for images, is_gray in (([gray], True), ([nominal], False)):
        settings = Synthesis(clean_share=0, max_transparency=0, gray_textures="auto")
        synthesizer = AnomalySynthesizer(textures, (64, 96), settings=settings, own_images=images)
        for k in range(10):
            _, augmented, mask = synthesizer.corrupt(gray, np.random.default_rng(k))
            filled = augmented[mask]
            assert not len(filled) or (np.ptp(filled, axis=1).max() < 1e-6) == is_gray


def test_light_changes_gain_and_gamma_of_the_target_too(textures, nominal):
    synthesizer = AnomalySynthesizer(textures, (64, 96), settings=Synthesis(light=0.5, clean_share=1))
    means = []
    for k in range(60):
        image, augmented, _ = synthesizer.corrupt(nominal, np.random.default_rng(k))
        np.testing.assert_array_equal(image.astype(np.float32) / 255, augmented)
        means.append(image.mean())
    assert np.std(means) > 5 and min(means) > 0.5 * nominal.mean() and max(means) < 1.5 * nominal.mean()
