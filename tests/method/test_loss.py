"""loss.py: SSIM and focal loss against values of the original implementation and direct computation."""

import numpy as np
import pytest
import torch
from conftest import GOLDEN

from loss import SSIM, DRAEMLoss, FocalLoss


def close(value, reference, tolerance: float) -> None:
    value, reference = (np.asarray(x, np.float64) for x in (value, reference))
    assert np.abs(value - reference).max() <= tolerance * np.abs(reference).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("suffix", ["", "_wide"])
def test_ssim_and_its_gradient(dtype, suffix):
    golden = np.load(GOLDEN / "losses.npz")
    image = torch.tensor(golden[f"image{suffix}"], dtype=dtype, requires_grad=True)
    loss = SSIM()(image, torch.tensor(golden["target"], dtype=dtype))
    loss.backward()
    assert loss.dtype == dtype
    close(loss.item(), golden[f"ssim_loss{suffix}"], 1e-5)
    close(image.grad, golden[f"ssim_grad{suffix}"], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal_loss_and_its_gradient(dtype):
    golden = np.load(GOLDEN / "losses.npz")
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
