"""training/optimizer.py: learning rates, and what a step of the optimizer does."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import GOLDEN, config_of

from config import Train
from model import DRAEM
from training.optimizer import averaged, learning_rate, make_optimizer


def test_learning_rates_drop_as_the_originals(workplace):
    """x 0.2 after round(0.8 E) and round(0.9 E) epochs: ten epochs, and seven, where it drops twice at once."""
    train = config_of(workplace, "train.epochs=10", "train.learning_rate=1.0").train
    assert [learning_rate(train, done + 0.9) for done in range(10)] == pytest.approx([1] * 8 + [0.2, 0.04])
    train = config_of(workplace, "train.epochs=7", "train.learning_rate=1.0").train
    assert [learning_rate(train, done) for done in range(7)] == pytest.approx([1] * 6 + [0.04])


def test_learning_rates_equal_the_golden_ones():
    golden = np.load(GOLDEN / "trajectory.npz")["losses_l2_ssim_focal_lr"][:, 3]
    rates = [learning_rate(Train(epochs=10), (step + 0.5) / 2) for step in range(20)]
    assert rates == pytest.approx(golden.tolist(), rel=1e-9)


def test_a_one_cycle_rate_rises_for_a_tenth_and_falls_to_zero():
    train = Train(epochs=20, learning_rate=0.01, lr_schedule="one_cycle")
    rates = [learning_rate(train, done) for done in (0, 1, 2, 11, 20)]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.005, 0], abs=1e-12)
    # Half a cosine: a third of the way down is at an angle of 60 degrees.
    assert learning_rate(train, 8) == pytest.approx(0.01 * (1 + math.cos(math.pi / 3)) / 2)


def test_the_average_forgets_the_first_weights_and_follows_every_step():
    torch.manual_seed(0)
    model = DRAEM(2, 1)
    optimizer = make_optimizer(model, Train(learning_rate=0.1))
    average = averaged(model, optimizer, 0.5)
    expected: dict[str, torch.Tensor] = {}
    for step in range(6):
        model(torch.rand(2, 3, 32, 32))[1].sum().backward()
        optimizer.step()
        decay = min(0.5, (1 + step) / (10 + step)) if step else 0  # the first step replaces the random weights
        for name, value in model.state_dict().items():
            now = value.double()
            expected[name] = copy.copy(now) if not step else decay * expected[name] + (1 - decay) * now
    for name, value in average.module.state_dict().items():
        wanted = model.state_dict()[name] if name.endswith("num_batches_tracked") else expected[name]
        torch.testing.assert_close(value.double(), wanted.double(), rtol=1e-5, atol=1e-7)


def test_gradients_are_clipped_and_weights_decay():
    model = DRAEM(2, 1)
    optimizer = make_optimizer(model, Train(gradient_clip=0.5, weight_decay=0.1, learning_rate=0.01))
    assert isinstance(optimizer, torch.optim.AdamW)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    weight = next(model.parameters())
    before = weight.detach().clone()
    optimizer.step()
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-4)
    # The first step of Adam is the rate along the sign of the gradient; decay takes rate * decay of the weight.
    torch.testing.assert_close(weight.detach(), before * (1 - 0.01 * 0.1) - 0.01, rtol=1e-4, atol=1e-5)
    plain = make_optimizer(model, Train())
    assert type(plain) is torch.optim.Adam and plain.param_groups[0]["weight_decay"] == 0
