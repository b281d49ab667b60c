"""inference/checkpoint.py: reading checkpoints, also the original's pair of files."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import GOLDEN, write
from messages import assert_user_error

from config_file import load_config
from inference import checkpoint
from inference import detect as inference
from runtime.errors import UserError
from training.state import SavedState, write_checkpoint

PAIR = "DRAEM_seg_large_ae_large_0.0001_800_bs8_bottle_"


def test_detection_with_the_originals_weights(workplace, cli):
    shutil.copytree(GOLDEN / "official_format", workplace / "official")
    sets = ("--set", f"data.load_epoch={workplace}/official/{PAIR}.pckl", "--set", "model.base_width=8")
    status, out, _ = cli("--threshold", "--detection", *sets)
    assert status == 0
    assert out.splitlines()[-1].endswith(f"/results/tiny/tile/checkpoint_{PAIR}/no_masking")
    assert_user_error(cli("--detection", *sets[:2]), f"{PAIR}.pckl", "model.base_width=8")
    (workplace / f"official/{PAIR}_seg.pckl").unlink()
    assert_user_error(cli("--detection", *sets), f"official/{PAIR}_seg.pckl", f"{PAIR}.pckl")


@pytest.mark.parametrize("name", ["epoch_0002.pt", "last.pt"])
def test_one_flipped_bit_is_noticed_in_every_mode(two, cli, name):
    path = two / "checkpoints/tile/tiny" / name
    data = bytearray(path.read_bytes())
    bias = checkpoint.read(path)["model"]["reconstructive.encoder.block1.0.bias"]
    data[data.index(bias.numpy().tobytes()) + 2] ^= 1
    path.write_bytes(data)
    (two / "checkpoints/tile/tiny/thresholds").mkdir(exist_ok=True)
    chosen = ("--set", f"data.load_epoch={'last' if name == 'last.pt' else 2}", "--set", "metrics.threshold=false")
    for mode in (["--threshold"], ["--detection"], ["--predict", str(two / "mvtec/tile/test")], ["--export", "onnx"]):
        assert_user_error(cli(*mode, *chosen), path, "checksum", "data.load_epoch")
    assert not list(two.glob("results/**/scores.csv")) and not list(two.rglob("*.onnx"))


def test_weights_from_within_an_epoch_have_a_name_of_their_own(two, call):
    """The thresholds and results of the whole epoch are not theirs."""
    last = two / "checkpoints/tile/tiny/last.pt"
    write_checkpoint(last, checkpoint.read(last) | {"progress": {"step": 1}}, keeps_previous=False)
    config = load_config(two / "config.yaml")
    found = checkpoint.load(config, "last")
    assert found.name == f"2_{found.fingerprint[:8]}" and checkpoint.load(config, 2).name == "2"
    assert call("main", "--threshold")[0] == 0
    folder = two / "checkpoints/tile/tiny/thresholds"
    assert [path.name for path in folder.iterdir()] == [f"checkpoint_{found.name}"]
    out = call("main", "--predict", str(two / "mvtec/tile/test/good"))[1]
    assert f"checkpoint_{found.name}/predictions" in out
    status, out, _ = call("evaluate_checkpoints", "--categories", "tile", "--checkpoints", "last", "--maskings", "no")
    assert status == 1 and "failed: tile, last: " in out and str(last) in out


def test_fields_of_other_types_are_user_errors(two, cli):
    """Of files from elsewhere, whose checksum fits their content."""
    path, config = two / "checkpoints/tile/tiny/last.pt", load_config(two / "config.yaml")
    content, bytes_ = checkpoint.read(path), torch.zeros(9, dtype=torch.uint8)
    asset = {"path": "a.png", "digest": "0"}
    for changes in (
        {"images": {"training": ["a.png"], "held_out": {}}},
        {"images": {"training": {"a.png": 1}, "held_out": {}}},
        {"images": {"training": {}, "held_out": None}},
        {"white_level": "bright"},
        {"white_level": [1]},
        {"embedded_assets": ["reference"]},
        {"embedded_assets": {"reference": asset}},
        {"embedded_assets": {"reference": asset | {"png": "text"}}},
        {"embedded_assets": {"reference": asset | {"png": bytes_}}},
        {"embedded_assets": {"reference": asset | {"png": bytes_[:0]}}},
        {"settings": {"data": [1]}},
        {"settings": {"data": {"registration_method": 3}}},
        {"settings": {"train": None}},
    ):
        with pytest.raises(UserError, match=re.escape(str(path))):
            checkpoint.metadata_of(path, content | changes)
    for changes in (
        {"epoch": "2"},
        {"epoch": True},
        {"model": {"a": 1}},
        {"model": {"reconstructive.encoder.block1.0.weight": torch.zeros(2)}},
    ):
        write_checkpoint(path, content | changes, keeps_previous=False)
        with pytest.raises(UserError, match=re.escape(str(path))):
            checkpoint.load(config, "last")
    for changes in ({"progress": 3}, {"progress": {"sample": {"image": 1}}}, {"raw_model": 1}, {"provenance": [1]}):
        write_checkpoint(path, content | changes, keeps_previous=False)
        with pytest.raises(UserError, match=re.escape(str(path))):
            SavedState.read(path)
    write_checkpoint(path, content | {"optimizer": {"state": 3}}, keeps_previous=False)
    assert_user_error(cli("--train", "--set", "train.epochs=3"), path)


def test_settings_of_another_size_are_told(two, call):
    """Widths that differ are named together; another image size is possible, but rarely what is wanted."""
    run = two / "checkpoints/tile/tiny"
    other = call("main", "--threshold", "--set", "model.base_width=16", "--set", "model.base_channels=16")
    assert_user_error(
        other, run / "last.pt", "model.base_width=4", "model.base_channels=4", f"--config {run}/config.yaml"
    )
    status, out, _ = call("main", "--threshold", "--set", "data.img_size=64")
    assert status == 0 and "[64, 64]" in out and "[32, 32]" in out


def test_the_originals_weights_give_the_originals_anomaly_maps():
    golden = np.load(GOLDEN / "forward.npz")
    pair = {
        net: torch.load(GOLDEN / f"official_format/{PAIR}{end}.pckl", weights_only=True)
        for net, end in (("reconstructive", ""), ("discriminative", "_seg"))
    }
    model = inference.DRAEM(8, 4).eval()
    model.load_state_dict({f"{net}.{key}": value for net, state in pair.items() for key, value in state.items()})
    with torch.no_grad():
        probability = torch.softmax(model(torch.from_numpy(golden["x"]))[1], dim=1)[:, 1]
    np.testing.assert_allclose(probability, golden["probability"], rtol=1e-5, atol=1e-7)


def test_of_weights_from_elsewhere_the_training_images_are_not_known(workplace, cli):
    """The original's, and those of the earlier code, whose pair has other names."""
    folder = GOLDEN / "official_format"
    stem = "DRAEM_seg_large_ae_large_0.0001_800_bs8_bottle_"
    (workplace / "old").mkdir()
    shutil.copy(folder / f"{stem}.pckl", workplace / "old/bottle_run_REC_MODEL_700.pth")
    shutil.copy(folder / f"{stem}_seg.pckl", workplace / "old/bottle_run_SEG_MODEL_700.pth")
    sets = ("--set", "model.base_width=8", "--set")
    results = workplace / "results/tiny/tile"
    for pair in (folder / f"{stem}.pckl", workplace / "old/bottle_run_REC_MODEL_700.pth"):
        assert cli("--threshold", "--detection", *sets, f"data.load_epoch={pair}")[0] == 0
        kept = workplace / f"checkpoints/tile/tiny/thresholds/checkpoint_{pair.stem}/no_masking.json"
        assert json.loads(kept.read_text())["held_out"] is None
        metrics = results / f"checkpoint_{pair.stem}/no_masking/p_quantile/metrics.json"
        assert json.loads(metrics.read_text())["notes"]["nominal"]
    first, second = (
        (results / f"checkpoint_{name}/no_masking/scores.csv").read_text()
        for name in (stem, "bottle_run_REC_MODEL_700")
    )
    assert first == second
    second_file = workplace / "old/bottle_run_SEG_MODEL_700.pth"
    other = cli("--detection", *sets, f"data.load_epoch={second_file}")
    assert_user_error(other, "bottle_run_SEG_MODEL_700.pth", re.compile("_REC_MODEL_"))
    second_file.unlink()
    alone = cli("--detection", *sets, f"data.load_epoch={workplace}/old/bottle_run_REC_MODEL_700.pth")
    assert_user_error(alone, "old/bottle_run_SEG_MODEL_700.pth", "bottle_run_REC_MODEL_700.pth")


def test_the_white_level_of_another_programs_weights_is_that_of_the_nominal_images(workplace):
    config, ckpt = load_config(workplace / "config.yaml"), checkpoint.CheckpointMetadata("other", workplace)
    assert checkpoint.resolve_white_level(config, ckpt).data.white_level is None  # 8 bits
    for path in sorted((workplace / "mvtec/tile/train/good").iterdir()):
        write(path, np.full((40, 48), 4000, np.uint16))
    assert checkpoint.resolve_white_level(config, ckpt).data.white_level == 4095
    shutil.rmtree(workplace / "mvtec")  # prediction needs no dataset
    assert checkpoint.resolve_white_level(config, ckpt).data.white_level is None
    known = checkpoint.CheckpointMetadata("1", workplace, checkpoint.TrainingImages({}, {}), white_level=1023)
    assert checkpoint.resolve_white_level(config, known).data.white_level == 1023
    with pytest.raises(UserError, match=r"data\.white_level"):
        checkpoint.resolve_white_level(config.with_values({"data.white_level": 4095}), known)
