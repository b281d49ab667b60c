"""The training loop: epochs and steps."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from data_loader import scaled
from loss import DRAEMLoss
from model import DRAEM
from runtime import signals
from runtime.device import Compute, autocast, memory_format
from training.journal import EpochResult, Journal
from training.progress import TERMS, Progress
from training.state import TrainingState, place_of
from training.validation import SyntheticSamples, synthetic_pixel_ap

if TYPE_CHECKING:
    from training.distributed import ProcessGroup

NOT_FINITE = "training stops without this epoch\nlower train.learning_rate, or set train.precision=fp32, and run again"
READ_EVERY = 10  # steps between two reads of the losses: each read waits for the device


@dataclass
class Trainer:
    """A training: what it runs on, and its loop.

    Attributes:
        network: the state's model, compiled or not. loader: batches of training samples.
        validation: synthetic samples on held-out images, for val_ap; None where no image is held out.
        state: model, optimizer and progress. journal: the log; None for a process that does not write.
    """

    network: Callable[[Tensor], Sequence[Tensor]]
    loader: DataLoader
    validation: SyntheticSamples | None
    state: TrainingState
    journal: Journal | None

    def train(self) -> None:
        """Train from the state's epoch to the last one.

        Raises:
            FloatingPointError: a loss or weight that is not finite.
            Interrupted: by a signal; the state after the last step is saved.
        """
        state, train = self.state, self.state.config.train
        left = range(state.epoch + 1, train.epochs + 1)
        epochs = tqdm(left, "epochs", initial=state.epoch, total=train.epochs, unit="epoch")
        with signals.deferred() as stop:
            try:
                for epoch in epochs:
                    losses = self._epoch(epoch, stop)
                    epochs.set_postfix({term: f"{losses[term]:.4f}" for term in TERMS})
            except signals.Interrupted as error:
                check_weights(state.model, epoch)
                state.take_folder()
                if self.journal:
                    self.journal.save()
                path = state.save_last()
                place = place_of(state.progress.step if state.progress else None, state.epoch)
                if state.group:
                    state.group.barrier()  # a launcher ends the first process when others end while it still writes
                how = "the same command with train.resume=auto" if train.resume == "never" else "the same command"
                text = f"interrupted after {place}; the state is saved in {path}, and {how} resumes"
                raise signals.Interrupted(error.number, text) from None

    def _epoch(self, epoch: int, stop: signals.Stop) -> dict[str, float]:
        """Train an epoch, or the rest of it, and save its checkpoint where it is to be kept; its losses."""
        state, journal = self.state, self.journal
        losses, progress = self.train_epoch(epoch, stop)
        check_weights(state.model, epoch)
        state.take_folder()
        seconds, is_kept = progress.seconds, state.is_kept(epoch)
        if is_kept and not (state.config.run_folder / "last.pt").is_file():
            state.save_last()  # a process that is killed after the checkpoint could not be resumed without it
        val_ap: tuple[float | None, float | None] = (None, None)
        if is_kept and self.validation:
            check = functools.partial(_check, stop, state)
            val_ap = synthetic_pixel_ap(state.inference_model, self.validation, state.config, state.group, check)
        rate = len(self.loader.dataset) / seconds  # type: ignore[arg-type]  # data_loader's has a length
        if journal and progress.sample:
            journal.add(EpochResult(epoch, losses, state.learning_rate, rate, seconds, *val_ap), progress.sample)
        state.step(epoch)
        if is_kept:
            state.save_checkpoint()
        if journal and state.is_due():
            journal.save()
            state.save_last()
        _check(stop, state)
        return losses

    def train_epoch(self, epoch: int, stop: signals.Stop) -> tuple[dict[str, float], Progress]:
        """One pass, from the state's progress on; the mean of each loss term, and the progress.

        Raises:
            Interrupted: after a step, when `stop` has a signal.
        """
        state, loader = self.state, self.loader
        progress, group = state.progress or Progress(), state.group
        state.progress, begun = progress, time.perf_counter() - progress.seconds
        batches: Any = loader.batch_sampler  # data_loader's
        size, count = batches.batch_size, batches.sampler.count
        batches.sampler.epoch, batches.sampler.start = epoch, progress.step * size
        weights, extremes = state.config.train.loss_weights, group.extremes if group else torch.aminmax
        criterion, pending = DRAEMLoss(extremes, weights).to(state.device), []
        compute = Compute(state.device, state.precision)
        total = progress.step + len(loader)
        bar = tqdm(
            loader, f"epoch {epoch}", initial=progress.step, total=total, leave=False, unit="batch", disable=None
        )
        for batch in bar:
            state.set_learning_rate((progress.step + 0.5) / total)
            of_all = min(size, count - progress.step * size)  # samples of all processes together
            share = len(batch["image"]) / of_all
            terms, outputs = train_step(
                self.network, criterion, state.optimizer, batch, compute, share if group else None
            )
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
                _interrupt(requested)
        return {term: progress.losses[term] / progress.count for term in TERMS}, progress


def _requested_signal(stop: signals.Stop, state: TrainingState) -> int | None:
    """The signal that interrupts the training, the same in all processes when one of them has received it.

    It is not stored in `stop`, where it would overwrite a signal that arrived during this exchange.
    """
    return state.group.any(stop.asked) if state.group else stop.asked


def _check(stop: signals.Stop, state: TrainingState) -> None:
    _interrupt(_requested_signal(stop, state))


def _interrupt(number: int | None) -> None:
    if number:
        raise signals.Interrupted(number)


def _sample(batch: dict[str, Tensor], reconstruction: Tensor, logits: Tensor) -> dict[str, np.ndarray]:
    """A batch and the networks' outputs, for `panels.sample_grid`."""
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
    compute: Compute,
    weight: float | None = None,
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """One step on a batch of training samples; the loss terms, still on the device, and the networks' outputs.

    Args:
        batch: as the loader gives it, see `data_loader.DRAEMTrainDataset`.
        weight: of the loss, where this process has a share of the batch; 0 where it has no sample.
    """
    device, precision = compute
    image, augmented = (scaled(batch[key], device) for key in ("image", "augmented_image"))
    mask = batch["anomaly_mask"].to(device, non_blocking=True)
    with autocast(device, precision):
        outputs = network(augmented.contiguous(memory_format=memory_format(device, precision)))
    if weight == 0:  # a process without samples still takes part in the exchanges of all processes
        criterion.ssim.extremes(outputs[0].to(torch.promote_types(outputs[0].dtype, torch.float32)))
        terms = dict.fromkeys(TERMS, (outputs[0].sum() + outputs[1].sum()) * 0)
    else:
        terms = criterion(*outputs, image, mask)
    loss = criterion.total(terms)
    optimizer.zero_grad(set_to_none=True)
    (loss if weight is None else loss * weight).backward()
    optimizer.step()
    return terms, outputs


def _read_losses(
    pending: list[tuple[int, float, Tensor]], progress: Progress, epoch: int, group: "ProcessGroup | None"
) -> None:
    """Add the losses of steps to the progress. pending: samples of all processes, the share of this one, its terms."""
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
    """FloatingPointError where weights are not finite: the last step can do that although its losses are finite."""
    state = [value for value in model.state_dict().values() if value.is_floating_point()]
    if not torch.stack([value.isfinite().all() for value in state]).all():
        raise FloatingPointError(f"weights became non-finite in the last step of epoch {epoch}; {NOT_FINITE}")
