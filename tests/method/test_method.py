"""Networks, losses and Perlin noise against values of the original implementation."""

import json

import numpy as np
import pytest
import torch
from conftest import DATA

from evaluation.metrics import image_score
from loss import SSIM, DRAEMLoss, FocalLoss
from model import DRAEM, DiscriminativeSubNetwork, ReconstructiveSubNetwork
from perlin import perlin_noise

OFFICIAL = "DRAEM_seg_large_ae_large_0.0001_800_bs8_bottle_"


def original_model() -> DRAEM:
    model = DRAEM(8, 4)
    for network, name in ((model.reconstructive, f"{OFFICIAL}.pckl"), (model.discriminative, f"{OFFICIAL}_seg.pckl")):
        network.load_state_dict(torch.load(DATA / "official_format" / name, weights_only=True), strict=True)
    return model.eval()


def close(value, reference, tolerance: float) -> None:
    value, reference = (np.asarray(x, np.float64) for x in (value, reference))
    assert np.abs(value - reference).max() <= tolerance * np.abs(reference).max()


def test_state_dicts_have_the_original_names_and_shapes():
    shapes = json.loads((DATA / "state_dict_shapes.json").read_text())
    for name, network, parameters in (
        ("reconstructive", ReconstructiveSubNetwork(), 69_048_579),
        ("discriminative", DiscriminativeSubNetwork(), 28_374_146),
    ):
        assert {key: list(value.shape) for key, value in network.state_dict().items()} == shapes[name]
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_forward(layout):
    golden = np.load(DATA / "forward.npz")
    with torch.no_grad():
        model = original_model().to(memory_format=layout)
        reconstruction, logits = model(torch.from_numpy(golden["x"]).contiguous(memory_format=layout))
        probability = torch.softmax(logits, dim=1)[:, 1].numpy()
    close(reconstruction, golden["reconstruction"], 1e-5)
    close(logits, golden["logits"], 1e-5)
    close(probability, golden["probability"], 1e-5)
    close([image_score(anomaly_map) for anomaly_map in probability], golden["image_score"], 1e-5)


def test_initial_weights():
    torch.manual_seed(0)
    model = DRAEM(16, 8)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    weights = torch.cat([m.weight.flatten() for m in convolutions])
    assert abs(weights.mean()) < 1e-4 and abs(weights.std() - 0.02) < 1e-4
    scales = torch.cat([m.weight for m in norms])
    assert abs(scales.mean() - 1) < 3e-3 and abs(scales.std() - 0.02) < 3e-3
    assert all((m.bias == 0).all() for m in norms) and all((m.bias != 0).any() for m in convolutions)


def test_input_size():
    model = DRAEM(1, 1).eval()
    reconstruction, logits = model(torch.rand(1, 3, 64, 96))
    assert reconstruction.shape == (1, 3, 64, 96) and logits.shape == (1, 2, 64, 96)
    with pytest.raises(ValueError, match="multiples of 32, got 64 x 80"):
        model(torch.rand(1, 3, 64, 80))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("suffix", ["", "_wide"])
def test_ssim(dtype, suffix):
    golden = np.load(DATA / "losses.npz")
    image = torch.tensor(golden[f"image{suffix}"], dtype=dtype, requires_grad=True)
    loss = SSIM()(image, torch.tensor(golden["target"], dtype=dtype))
    loss.backward()
    assert loss.dtype == dtype
    close(loss.item(), golden[f"ssim_loss{suffix}"], 1e-5)
    close(image.grad, golden[f"ssim_grad{suffix}"], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal(dtype):
    golden = np.load(DATA / "losses.npz")
    logits = torch.tensor(golden["logits"], dtype=dtype, requires_grad=True)
    loss = FocalLoss()(torch.softmax(logits, dim=1), torch.tensor(golden["mask"], dtype=dtype))
    loss.backward()
    assert loss.dtype == dtype
    close(loss.item(), golden["focal_loss"], 1e-5)
    close(logits.grad, golden["focal_grad_logits"], 1e-5)


@pytest.mark.parametrize(("scale", "dynamic_range"), [(0.4, 1), (1.0, 2), (200.0, 256)])
def test_ssim_dynamic_range(scale, dynamic_range):
    """The range is read off the first argument alone; a direct computation with an 11 x 11 window is the reference."""
    generator = torch.Generator().manual_seed(0)
    image = scale * (2 * torch.rand(1, 1, 12, 12, generator=generator, dtype=torch.float64) - 1)
    target = torch.rand(1, 1, 12, 12, generator=generator, dtype=torch.float64)
    x = np.arange(11) - 5
    window = np.exp(-(x**2) / 4.5)[:, None] * np.exp(-(x**2) / 4.5)[None]
    window /= window.sum()
    a, b = (np.pad(t[0, 0].numpy(), 5) for t in (image, target))
    c1, c2 = (0.01 * dynamic_range) ** 2, (0.03 * dynamic_range) ** 2
    values = []
    for i in range(12):
        for j in range(12):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq, cov = (
                (window * p * p).sum() - mp**2,
                (window * q * q).sum() - mq**2,
                (window * p * q).sum() - mp * mq,
            )
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    close(SSIM()(image, target).item(), 1 - np.mean(values), 1e-6)


def test_losses_are_float32_under_bfloat16():
    reconstruction, logits = torch.rand(1, 3, 32, 32), torch.randn(1, 2, 32, 32)
    image, mask = torch.rand(1, 3, 32, 32), (torch.rand(1, 1, 32, 32) > 0.5).float()
    narrow = DRAEMLoss()(reconstruction.bfloat16(), logits.bfloat16(), image, mask)
    exact = DRAEMLoss()(reconstruction.bfloat16().float(), logits.bfloat16().float(), image, mask)
    for term in ("l2", "ssim", "focal"):
        assert narrow[term].dtype == torch.float32 and narrow[term] == exact[term]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_trajectory(layout):
    """Losses of the first steps of a training run of the original, in float64.

    Rounding alone grows about tenfold a step, and a thousandfold where it flips a ReLU: the number of threads changes
    the eighth step by up to 3e-3. The first five steps are safe from that.
    """
    golden, initial = np.load(DATA / "trajectory.npz"), np.load(DATA / "trajectory_init.npz")
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


@pytest.mark.parametrize("i", range(4))
def test_perlin(i):
    golden = np.load(DATA / "perlin.npz")
    noise = perlin_noise(tuple(golden[f"shape_{i}"]), tuple(golden[f"res_{i}"]), angles=golden[f"angles_{i}"])
    assert noise.dtype == np.float32
    close(noise, golden[f"noise_{i}"], 1e-5)


def test_perlin_sizes_the_lattice_does_not_divide():
    angles = np.random.default_rng(0).random((4, 6)) * 6
    noise = perlin_noise((50, 62), (3, 5), angles=angles)
    assert noise.shape == (50, 62)
    np.testing.assert_array_equal(noise, perlin_noise((51, 65), (3, 5), angles=angles)[:50, :62])


def test_perlin_errors():
    with pytest.raises(ValueError, match="at least 1"):
        perlin_noise((8, 8), (0, 1), rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="angles of shape"):
        perlin_noise((8, 8), (1, 1), angles=np.zeros((3, 3)))
    with pytest.raises(ValueError, match="generator"):
        perlin_noise((8, 8), (1, 1))
