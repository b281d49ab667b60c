"""The training loop: epochs and steps."""

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import Config
from data_loader import scaled
from loss import DRAEMLoss
from model import DRAEM
from runtime import signals
from runtime.device import autocast, memory_format
from training.journal import Journal
from training.state import TERMS, Progress, TrainingState, place_of
from training.validation import SyntheticSamples, synthetic_pixel_ap

if TYPE_CHECKING:
    from training.distributed import ProcessGroup

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
    journal: Journal | None,
    config: Config,
) -> None:
    """Train from the state's epoch to the last one.

    Args:
        network: the state's model, compiled or as it is. loader: batches of training samples.
        validation: synthetic samples on held-out images, for val_ap; None where nothing is held out.
        journal: None for a process that does not write.

    Raises:
        FloatingPointError: a loss or weight that is not finite.
        Interrupted: requested to stop; a state that goes on from the last step is saved.
    """
    done, total = state.epoch, config.train.epochs
    epochs = tqdm(range(done + 1, total + 1), "epochs", initial=done, total=total, unit="epoch")
    with signals.deferred() as stop:
        try:
            for epoch in epochs:
                losses = _epoch(epoch, network, loader, validation, state, journal, stop)
                epochs.set_postfix({term: f"{losses[term]:.4f}" for term in TERMS})
        except signals.Interrupted as stopped:
            check_weights(state.model, epoch)
            state.take_folder()
            if journal:
                journal.save()
            path = state.save_last()
            place = place_of(state.progress and state.progress.step, state.epoch)
            if state.group:
                state.group.barrier()  # a launcher ends the first where the others end while it still writes
            how = "the same command with train.resume=auto" if config.train.resume == "never" else "the same command"
            text = f"stopped after {place}; {path} holds it, and {how} goes on from there"
            raise signals.Interrupted(stopped.number, text) from None


def _epoch(
    epoch: int,
    network: Callable[[Tensor], tuple[Tensor, Tensor]],
    loader: DataLoader,
    validation: SyntheticSamples | None,
    state: TrainingState,
    journal: Journal | None,
    stop: signals.Stop,
) -> dict[str, float]:
    """Train an epoch, or what is left of it, and keep what is to be kept of it; its losses."""
    state.progress = state.progress or Progress()
    losses = train_epoch(network, loader, state, epoch, stop)
    check_weights(state.model, epoch)
    state.take_folder()
    seconds, is_kept = state.progress.seconds, state.is_kept(epoch)
    val_ap = (None, None)
    if is_kept and validation:
        check = functools.partial(_check, stop, state)
        val_ap = synthetic_pixel_ap(state.model, validation, state.config, state.group, check)
    rate = len(loader.dataset) / seconds
    if journal:
        journal.add(epoch, losses, state.learning_rate, rate, seconds, val_ap, state.progress.sample)
    state.step(epoch)
    if is_kept:
        state.save_checkpoint()
    if journal and state.is_due():
        journal.save()
        state.save_last()
    _check(stop, state)
    return losses


def train_epoch(
    network: Callable[[Tensor], tuple[Tensor, Tensor]],
    loader: DataLoader,
    state: TrainingState,
    epoch: int,
    stop: signals.Stop,
) -> dict[str, float]:
    """One pass, from the state's progress on. Mean of each loss term.

    Raises Interrupted after a step, when `stop` is asked for.
    """
    progress, begun, group = state.progress, time.perf_counter() - state.progress.seconds, state.group
    batches = loader.batch_sampler
    size, count = batches.batch_size, batches.sampler.count
    batches.sampler.epoch, batches.sampler.start = epoch, progress.step * size
    criterion, pending = DRAEMLoss(*([group.extremes] if group else [])).to(state.device), []
    total = progress.step + len(loader)
    bar = tqdm(loader, f"epoch {epoch}", initial=progress.step, total=total, leave=False, unit="batch", disable=None)
    for batch in bar:
        of_all = min(size, count - progress.step * size)  # samples, of all group together
        share = len(batch["image"]) / of_all
        weight = share if group else None
        terms, outputs = train_step(network, criterion, state.optimizer, batch, state.device, state.precision, weight)
        progress.step += 1
        progress.seconds = time.perf_counter() - begun
        if progress.sample is None and len(outputs[1]):
            progress.sample = _sample(batch, *outputs)

        # Losses stay on the device until a few are read at once.
        pending.append((of_all, share, torch.stack([terms[term].detach() for term in TERMS])))
        requested = _requested_signal(stop, state)
        if len(pending) == READ_EVERY or progress.step == total or requested:
            _read_losses(pending, progress, epoch, group)
            pending = []
            speed = {"lr": f"{state.learning_rate:.1e}", "samples/s": f"{progress.count / progress.seconds:.1f}"}
            bar.set_postfix({term: f"{progress.losses[term] / progress.count:.4f}" for term in TERMS} | speed)
            _stop(requested)
    return {term: progress.losses[term] / progress.count for term in TERMS}


def _requested_signal(stop: signals.Stop, state: TrainingState) -> int | None:
    """The signal to stop after, the same on all group where one of them was sent it.

    It is not noted in `stop`: there it would overwrite a signal that came while the others were waited for.
    """
    return state.group.any(stop.asked) if state.group else stop.asked


def _check(stop: signals.Stop, state: TrainingState) -> None:
    _stop(_requested_signal(stop, state))


def _stop(requested: int | None) -> None:
    if requested:
        raise signals.Interrupted(requested)


def _sample(batch: dict[str, Tensor], reconstruction: Tensor, logits: Tensor) -> dict[str, np.ndarray]:
    """A batch and what the networks made of it, for `panels.sample_grid`."""
    arrays = {
        "image": scaled(batch["image"], torch.device("cpu")),
        "augmented": batch["augmented_image"],
        "reconstruction": reconstruction,
        "mask": batch["anomaly_mask"],
        "prediction": torch.softmax(logits.float(), dim=1)[:, 1:],
    }
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in arrays.items()}


def train_step(
    network: Callable,
    criterion: DRAEMLoss,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    device: torch.device,
    precision: torch.dtype,
    weight: float | None = None,
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """One step on a batch of training samples; the loss terms, still on the device, and the networks' outputs.

    weight: of the loss; that of a process with a share of the batch, which can be 0, where it has no sample.
    """
    image, augmented = (scaled(batch[key], device) for key in ("image", "augmented_image"))
    mask = batch["anomaly_mask"].to(device, non_blocking=True)
    with autocast(device, precision):
        outputs = network(augmented.contiguous(memory_format=memory_format(device, precision)))
    if weight == 0:  # still takes part in what all processes do together
        criterion.ssim.extremes(outputs[0].to(torch.promote_types(outputs[0].dtype, torch.float32)))
        terms = dict.fromkeys(TERMS, (outputs[0].sum() + outputs[1].sum()) * 0)
    else:
        terms = criterion(*outputs, image, mask)
    loss = sum(terms.values())
    optimizer.zero_grad(set_to_none=True)
    (loss if weight is None else loss * weight).backward()
    optimizer.step()
    return terms, outputs


def _read_losses(
    pending: list[tuple[int, float, Tensor]], progress: Progress, epoch: int, group: "ProcessGroup | None"
) -> None:
    """Add up losses of steps: samples of all group, this one's share of them, its terms."""
    stacked = torch.stack([terms for _, _, terms in pending])
    if group:
        shares = torch.tensor([[share] for _, share, _ in pending], dtype=stacked.dtype, device=stacked.device)
        stacked = group.sum(stacked * shares)
    for back, ((n, _, _), terms) in enumerate(zip(pending, stacked.tolist(), strict=True)):
        for term, value in zip(TERMS, terms, strict=True):
            if not abs(value) < float("inf"):
                at = progress.step - len(pending) + 1 + back
                raise FloatingPointError(f"the {term} loss became {value} at step {at} of epoch {epoch}; {NOT_FINITE}")
            progress.losses[term] += n * value
        progress.count += n


def check_weights(model: DRAEM, epoch: int) -> None:
    """A last step with finite losses can still spoil the weights; they must not reach a checkpoint."""
    state = [value for value in model.state_dict().values() if value.is_floating_point()]
    if not torch.stack([value.isfinite().all() for value in state]).all():
        raise FloatingPointError(f"weights became non-finite in the last step of epoch {epoch}; {NOT_FINITE}")
