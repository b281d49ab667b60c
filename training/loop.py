"""The training loop: epochs and steps."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import runtime
from config import Config
from data_loader import scaled
from loss import DRAEMLoss
from model import DRAEM
from training.journal import TERMS, Journal
from training.state import TrainingState
from training.validation import SyntheticSamples, synthetic_pixel_ap

NOT_FINITE = (
    "training stops, nothing of this epoch is kept\n"
    "lower train.learning_rate, or set train.precision=fp32, and run again"
)
READ_EVERY = 10  # steps between looks at the losses: each look waits for the device


def train(
    network: Callable[[Tensor], tuple[Tensor, Tensor]],
    loader: DataLoader,
    validation: SyntheticSamples | None,
    state: TrainingState,
    journal: Journal,
    config: Config,
) -> None:
    """Train from the state's epoch to the last one.

    Args:
        network: the state's model, compiled or as it is. loader: batches of training samples.
        validation: synthetic samples on held-out images, for val_ap; None where nothing is held out.

    Raises:
        FloatingPointError: a loss or weight that is not finite.
    """
    done, total = state.epoch, config.train.epochs
    epochs = tqdm(range(done + 1, total + 1), "epochs", initial=done, total=total, unit="epoch")
    for epoch in epochs:
        start = time.perf_counter()
        loader.sampler.epoch = epoch
        losses, sample = train_epoch(network, loader, state.optimizer, state.device, state.precision, epoch)
        check_weights(state.model, epoch)
        if epoch == done + 1:
            state.take_folder()
        seconds = time.perf_counter() - start
        is_kept = state.is_kept(epoch)
        val_ap = synthetic_pixel_ap(state.model, validation, config) if is_kept and validation else (None, None)
        journal.add(epoch, losses, state.learning_rate, len(loader.dataset) / seconds, seconds, val_ap, sample)
        epochs.set_postfix({term: f"{losses[term]:.4f}" for term in TERMS})
        state.step(epoch)
        if is_kept:
            state.save_checkpoint()
        if state.is_due():
            journal.save()
            state.save_last()


def train_epoch(
    network: Callable[[Tensor], tuple[Tensor, Tensor]],
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    precision: torch.dtype,
    epoch: int,
) -> tuple[dict[str, float], dict[str, Any]]:
    """One pass. Mean of each loss term, and the first batch with what the networks made of it, for the sample grid."""
    criterion = DRAEMLoss().to(device)
    total, count, pending = dict.fromkeys(TERMS, 0.0), 0, []
    rate = optimizer.param_groups[0]["lr"]
    bar = tqdm(loader, f"epoch {epoch}", leave=False, unit="batch", disable=None)
    for step, batch in enumerate(bar, 1):
        terms, (reconstruction, logits) = train_step(network, criterion, optimizer, batch, device, precision)
        if step == 1:
            arrays = {
                "image": scaled(batch["image"], torch.device("cpu")),
                "augmented": batch["augmented_image"],
                "reconstruction": reconstruction,
                "mask": batch["anomaly_mask"],
                "prediction": torch.softmax(logits.float(), dim=1)[:, 1:],
            }
            sample = {name: tensor.detach().float().cpu().numpy() for name, tensor in arrays.items()}

        # Losses stay on the device until a few are read at once.
        pending.append((len(logits), torch.stack([terms[term].detach() for term in TERMS])))
        if len(pending) == READ_EVERY or step == len(loader):
            _read_losses(pending, total, epoch, step)
            count += sum(n for n, _ in pending)
            pending = []
            speed = {"lr": f"{rate:.1e}", "samples/s": f"{count / (bar.format_dict['elapsed'] or 1):.1f}"}
            bar.set_postfix({term: f"{total[term] / count:.4f}" for term in TERMS} | speed)
    return {term: total[term] / count for term in TERMS}, sample


def train_step(
    network: Callable,
    criterion: DRAEMLoss,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    device: torch.device,
    precision: torch.dtype,
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """One step on a batch of training samples; the loss terms, still on the device, and the networks' outputs."""
    image, augmented = (scaled(batch[key], device) for key in ("image", "augmented_image"))
    mask = batch["anomaly_mask"].to(device, non_blocking=True)
    with runtime.autocast(device, precision):
        outputs = network(augmented.contiguous(memory_format=runtime.memory_format(device, precision)))
    terms = criterion(*outputs, image, mask)
    optimizer.zero_grad(set_to_none=True)
    sum(terms.values()).backward()
    optimizer.step()
    return terms, outputs


def _read_losses(pending: list[tuple[int, Tensor]], total: dict[str, float], epoch: int, step: int) -> None:
    values = torch.stack([terms for _, terms in pending]).tolist()
    for back, ((n, _), terms) in enumerate(zip(pending, values, strict=True)):
        for term, value in zip(TERMS, terms, strict=True):
            if not abs(value) < float("inf"):
                at = step - len(pending) + 1 + back
                raise FloatingPointError(f"the {term} loss became {value} at step {at} of epoch {epoch}; {NOT_FINITE}")
            total[term] += n * value


def check_weights(model: DRAEM, epoch: int) -> None:
    """A last step with finite losses can still spoil the weights; they must not reach a checkpoint."""
    state = [value for value in model.state_dict().values() if value.is_floating_point()]
    if not torch.stack([value.isfinite().all() for value in state]).all():
        raise FloatingPointError(f"weights became non-finite in the last step of epoch {epoch}; {NOT_FINITE}")
