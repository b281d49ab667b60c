"""What a step of the optimizer is: learning rate, Adam or AdamW, clipped gradients, averaged weights."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from config import Train
from model import DRAEM

WARM_UP = 0.1  # share of a one-cycle training in which the rate rises


def learning_rate(train: Train, epochs_done: float) -> float:
    """The learning rate after a number of epochs, fractions included.

    steps: constant within an epoch, multiplied by lr_gamma at each of lr_milestones. one_cycle: it rises linearly
    during WARM_UP, then falls to 0 as half a cosine (L. N. Smith and N. Topin, 'Super-convergence', 2018).
    """
    if train.lr_schedule == "one_cycle":
        done = epochs_done / train.epochs
        if done < WARM_UP:
            return train.learning_rate * done / WARM_UP
        return train.learning_rate * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
    passed = sum(int(epochs_done) >= round(share * train.epochs) for share in train.lr_milestones)
    return train.learning_rate * train.lr_gamma**passed


def make_optimizer(model: DRAEM, train: Train) -> torch.optim.Optimizer:
    """Adam, or AdamW where weight_decay is set (I. Loshchilov and F. Hutter, ICLR 2019).

    With gradient_clip, gradients are scaled so that their norm over all weights is at most that.
    """
    parameters, rate = list(model.parameters()), train.learning_rate
    optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters, rate, fused=True)
    if train.weight_decay:
        optimizer = torch.optim.AdamW(parameters, rate, weight_decay=train.weight_decay, fused=True)
    largest = train.gradient_clip

    def clip(*_: Any) -> None:
        if largest is not None:
            nn.utils.clip_grad_norm_(parameters, largest)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def averaged(model: DRAEM, optimizer: torch.optim.Optimizer, decay: float) -> AveragedModel:
    """Exponential moving average of weights and batch norm statistics, updated after each step of the optimizer."""
    average = AveragedModel(model, multi_avg_fn=_ema(decay), use_buffers=True)
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(model))
    return average


def _ema(decay: float) -> Callable:
    """Update of the average. The decay rises from 0.1, so that the random first weights are forgotten."""

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], steps: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # numbers of batches
            torch._foreach_copy_(averages, values)
            return
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averages, values, 1 - now)

    return update
