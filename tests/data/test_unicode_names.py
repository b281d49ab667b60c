"""Names in composed and decomposed Unicode (NFC, NFD), which look the same, are the same everywhere."""

import unicodedata

import numpy as np
import pytest
from conftest import SETTINGS, make_dataset, write
from messages import raises_user_error

from config import with_category
from config_file import load_config
from data.folders import (
    DatasetNotes,
    category_folder,
    chosen_categories,
    list_categories,
    list_textures,
    normalize_name,
)
from data.mvtec import TestSample, list_nominal, list_test, split_nominal
from engine import detection
from inference.checkpoint import TrainingImages
from inference.preprocessing import Preprocessor, configured
from inference.threshold_file import path_of
from reporting import best_models
from runtime import cli
from runtime.provenance import Provenance, file_digest
from training.data import find_files, split

MASK = np.pad(np.full((10, 10), 255, np.uint8), ((10, 20), (10, 28)))
NFC, NFD = (unicodedata.normalize(form, "pièce") for form in ("NFC", "NFD"))


@pytest.fixture(params=[(NFC, NFD), (NFD, NFC)], ids=["NFD on the disk", "NFC on the disk"])
def forms(request):
    """The form in which names are typed, and that on the disk."""
    return request.param


@pytest.fixture
def root(tmp_path, forms):
    root = make_dataset(tmp_path / forms[1])
    (root / "mvtec/tile").rename(root / "mvtec" / forms[1])
    return root


def settings(root, forms, *overrides):
    path = root / "c.yaml"
    path.write_text(SETTINGS.format(root=root.as_posix()).replace("tile", forms[0]), encoding="utf-8")
    return load_config(path, overrides)


def test_categories_are_found_and_called_in_composed_form(root, forms):
    typed, there = forms
    data_path = root / "mvtec"
    assert category_folder(data_path, typed) == data_path / there
    assert list_categories(data_path) == chosen_categories(data_path, [typed]) == [NFC]
    with raises_user_error("other", NFC):
        chosen_categories(data_path, ["other"])
    (data_path / typed / "train/good").mkdir(parents=True)
    with raises_user_error(data_path, NFC):
        list_categories(data_path)


def test_settings_with_paths_regions_and_run_names(root, forms):
    typed, there = forms
    write(root / f"region {there}.png", MASK)
    region = root.parent / typed / f"region {typed}.png"
    config = settings(
        root, forms, f"masking.regions.{typed}={region}", "metrics.masking=true", f"data.run_name={typed}"
    )
    assert config.data.category == config.data.run_name == NFC
    assert len(find_files(config).nominal) == 6
    preprocessor = Preprocessor(config, [configured(config)])
    assert preprocessor.region((40, 48), region).sum() == 100
    assert preprocessor.provenance_fields(configured(config))["region"]
    assert with_category(config, list_categories(root / "mvtec")[0]).masking.regions[NFC] == config.masking.regions[NFC]
    run = root / "checkpoints" / there / there
    run.mkdir(parents=True)
    assert config.run_folder == run
    before = Provenance(settings={"category": there}).to_json()
    assert not Provenance.from_json(before).differences(Provenance(settings={"category": config.data.category}))
    assert path_of(run, "1", configured(config), typed) == path_of(run, "1", configured(config), there)


def test_masks_match_images_in_another_form(root, forms):
    typed, there = forms
    category = root / "mvtec" / there
    for i in range(2):
        write(category / f"test/{typed}/{typed}/{typed}{i}.png", MASK // 2)
        write(category / f"ground_truth/{there}/{there}/{there}{i}_mask.png", MASK)
        write(category / f"test/dent/images/{typed}{i}.png", MASK // 2)
        write(category / f"test/dent/masks/{there}{i}.png", MASK)
    write(category / f"test/loose/{typed}7.png", MASK // 2)
    write(category / f"ground_truth/{there}7_mask.png", MASK)
    notes = DatasetNotes()
    samples = [sample for sample in list_test(category, notes) if sample.has_anomaly]
    assert len(samples) == 8 and all(len(sample.masks) == 1 for sample in samples)
    assert len(notes.assumed) == 1 and not notes.skipped  # nothing but the masks beside images is assumed
    write(category / f"test/good/{typed}.jpg", np.full((40, 48, 3), np.arange(48)[:, None], np.uint8))
    write(category / f"test/good/{there}.png", MASK)
    with raises_user_error(f"{there}.png", f"{typed}.jpg"):
        list_test(category)


def test_names_in_regular_expressions_and_in_checkpoints(root, forms):
    typed, there = forms
    category = root / "mvtec" / there
    for i, file in enumerate(list_nominal(category)):
        file.rename(file.with_name(f"{there}{i // 2}_{i}.png"))
    config = settings(root, forms, f"data.split_by=({typed}\\d)_", "data.img_size=64")
    files = find_files(config)
    _, held_out = split_nominal(files.nominal, 0.34, 0, config.data.split_by, files.category)
    assert len(held_out) == 2
    before = split(config, files).digests()
    copy = category / f"train/good/{there}9_9.png"  # of a held-out image, and trained on
    copy.write_bytes(held_out[0].read_bytes())
    decomposed = {unicodedata.normalize("NFD", name): digest for name, digest in before.training.items()}
    decomposed[unicodedata.normalize("NFD", f"good/{copy.name}")] = file_digest(copy)
    kept = TrainingImages(decomposed, before.held_out)
    assert split(config, find_files(config), kept).held_out == held_out


def test_results_of_renamed_test_images_stay_valid(root, forms):
    config, digests = settings(root, forms), []
    for name in (NFC, NFD):
        path = write(root / f"{name}.png", MASK)
        samples = [TestSample(path, True, f"test/spot/{name}.png", (path,))]
        technique = configured(config)
        digests.append(detection.provenance_of("", Preprocessor(config, [technique]), technique, samples, None, []))
    assert not digests[0].differences(digests[1])


def test_results_copied_from_another_system_are_those_in_the_summary(root, forms):
    there = forms[1]
    (root / there / "checkpoint_1/no_masking/max").mkdir(parents=True)
    (root / there / "checkpoint_1/no_masking/max/metrics.json").write_text("{}")
    row = {"category": NFC, "checkpoint": "1", "technique": "no_masking", "threshold": "max"}
    assert best_models.unlisted(root, [row], []) == []


def test_folder_names_are_compared_in_composed_form(root, forms):
    assert normalize_name(NFD) == normalize_name(NFC) == NFC
    with raises_user_error("data.anomaly_source_path"):
        list_textures(root / "mvtec" / forms[1], None, root / "mvtec")


def test_paths_on_the_command_line_are_found(root, forms):
    typed, there = forms
    assert cli.path(f"{root.parent}/{typed}/mvtec/{typed}") == root / "mvtec" / there
    assert cli.path(f"{root.parent}/{typed}/new") == root / "new"
