"""model.py against values of the original implementation, and a training of it with loss.py."""

import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN

from evaluation.metrics import image_score
from loss import DRAEMLoss
from model import DRAEM, DiscriminativeSubNetwork, ReconstructiveSubNetwork

OFFICIAL = "DRAEM_seg_large_ae_large_0.0001_800_bs8_bottle_"


def original_model() -> DRAEM:
    model = DRAEM(8, 4)
    for network, name in ((model.reconstructive, f"{OFFICIAL}.pckl"), (model.discriminative, f"{OFFICIAL}_seg.pckl")):
        network.load_state_dict(torch.load(GOLDEN / "official_format" / name, weights_only=True), strict=True)
    return model.eval()


def close(value, reference, tolerance: float) -> None:
    value, reference = (np.asarray(x, np.float64) for x in (value, reference))
    assert np.abs(value - reference).max() <= tolerance * np.abs(reference).max()


def test_state_dicts_have_the_original_names_and_shapes():
    shapes = json.loads((GOLDEN / "state_dict_shapes.json").read_text())
    for name, network, parameters in (
        ("reconstructive", ReconstructiveSubNetwork(), 69_048_579),
        ("discriminative", DiscriminativeSubNetwork(), 28_374_146),
    ):
        assert {key: list(value.shape) for key, value in network.state_dict().items()} == shapes[name]
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_forward_pass_equals_the_originals(layout):
    golden = np.load(GOLDEN / "forward.npz")
    with torch.no_grad():
        model = original_model().to(memory_format=layout)
        reconstruction, logits = model(torch.from_numpy(golden["x"]).contiguous(memory_format=layout))
        probability = torch.softmax(logits, dim=1)[:, 1].numpy()
    close(reconstruction, golden["reconstruction"], 1e-5)
    close(logits, golden["logits"], 1e-5)
    close(probability, golden["probability"], 1e-5)
    close([image_score(anomaly_map) for anomaly_map in probability], golden["image_score"], 1e-5)


def test_the_distribution_of_initial_weights():
    torch.manual_seed(0)
    model = DRAEM(16, 8)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    weights = torch.cat([m.weight.flatten() for m in convolutions])
    assert abs(weights.mean()) < 1e-4 and abs(weights.std() - 0.02) < 1e-4
    scales = torch.cat([m.weight for m in norms])
    assert abs(scales.mean() - 1) < 3e-3 and abs(scales.std() - 0.02) < 3e-3
    assert all((m.bias == 0).all() for m in norms) and all((m.bias != 0).any() for m in convolutions)


def test_image_sizes_are_multiples_of_32():
    model = DRAEM(1, 1).eval()
    reconstruction, logits = model(torch.rand(1, 3, 64, 96))
    assert reconstruction.shape == (1, 3, 64, 96) and logits.shape == (1, 2, 64, 96)
    with pytest.raises(ValueError, match=r"\b32\b.*\b64 x 80\b"):
        model(torch.rand(1, 3, 64, 80))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_losses_of_a_training_equal_the_originals(layout):
    """Losses of the first steps of a training run of the original, in float64.

    Rounding alone grows about tenfold a step, and a thousandfold where it flips a ReLU: the number of threads changes
    the eighth step by up to 3e-3. The first five steps are safe from that.
    """
    golden, initial = np.load(GOLDEN / "trajectory.npz"), np.load(GOLDEN / "trajectory_init.npz")
    model = DRAEM(8, 4).double()
    for network, prefix in ((model.reconstructive, "rec."), (model.discriminative, "seg.")):
        network.load_state_dict(
            {k.removeprefix(prefix): torch.tensor(initial[k]) for k in initial if k.startswith(prefix)}
        )
    model.train().to(memory_format=layout)
    optimizer, criterion = torch.optim.Adam(model.parameters(), 1e-4, fused=True), DRAEMLoss()
    for step, reference in enumerate(golden["losses_l2_ssim_focal_lr"][:5]):
        image, augmented, mask = (
            torch.tensor(golden[f"{name}_{step % 2}"]).double() for name in ("image", "augmented", "mask")
        )
        terms = criterion(*model(augmented.contiguous(memory_format=layout)), image, mask)
        for term, value in zip(("l2", "ssim", "focal"), reference[:3], strict=True):
            assert abs(terms[term].item() / value - 1) < 1e-6, (step, term)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
