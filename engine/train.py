"""The training loop."""

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary
from tqdm import tqdm

import data_loader
from config import Config
from engine import checkpoint, compilation, runtime
from engine.decoded import DecodedImages
from engine.inference import SyntheticSamples, synthetic_pixel_ap
from errors import UserError
from evaluation import plots
from loss import DRAEMLoss
from model import DRAEM
from synthesis import AnomalySynthesizer

TERMS = ("l2", "ssim", "focal")
LOG_COLUMNS = ("epoch", *TERMS, "loss", "learning_rate", "samples_per_second", "seconds", "val_ap")
NOT_FINITE = (
    "training stops, nothing of this epoch is kept\n"
    "lower train.learning_rate, or set train.precision=fp32, and run again"
)
SAVE_EVERY = 30  # seconds between states to resume from: for large networks a state takes longer than a short epoch
READ_EVERY = 10  # steps between looks at the losses: each look waits for the device


def train(config: Config, settings_text: str) -> Path:
    """Train one category and keep its checkpoints.

    Args:
        config: the settings.
        settings_text: the same as YAML, kept in the run's folder.

    Returns:
        the last kept checkpoint.

    Raises:
        UserError: mistakes in settings or data. FloatingPointError: a loss or weight that is not finite.
    """
    run, seed = config.run_folder, config.train.seed
    with runtime.mendable_errors():
        files = _files(config)
        held_out = [file.name for file in files.held_out]
        device = runtime.select_device(config.train.device)
        precision = runtime.select_precision(config.train.precision, device)
        torch.manual_seed(seed)
        model = DRAEM(config.model.base_width, config.model.base_channels)
        model = model.to(device, memory_format=runtime.memory_format(precision)).train()
        optimizer = torch.optim.Adam(model.parameters(), config.train.learning_rate, fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _learning_rate_factor(config))
        done = _resume(config, model, optimizer, scheduler, held_out)
    last = checkpoint.epoch_path(run, config.train.epochs)
    if done >= config.train.epochs:
        print(
            f"{run}: already trained for {done} epochs; a larger train.epochs goes on, train.resume=never starts anew"
        )
        return next(path for path in (last, checkpoint.epoch_path(run, done), run / "last.pt") if path.is_file())

    with runtime.mendable_errors():
        dataset, validation = _datasets(config, files)
    stale = _earlier_files(run) if done == 0 else []
    print(f"training {config.data.category} on {len(dataset)} images ({len(held_out)} held out), {device}, {precision}")
    if done:
        print(f"going on after epoch {done}, which {run / 'last.pt'} was saved at")
    workers = runtime.worker_count(config.data.num_workers, device)
    loader = data_loader.train_loader(dataset, config.train.batch_size, workers, device.type == "cuda")
    steps = (config.train.epochs - done) * len(loader)
    network = compilation.for_training(model, config.train.compile, device, steps)
    log = _read_log(run / "train_log.csv", done)
    saved = 0.0
    with runtime.mendable_errors(), _Board(run / "logs", done + 1) as board:
        total = config.train.epochs
        epochs = tqdm(range(done + 1, total + 1), "epochs", initial=done, total=total, unit="epoch")
        for epoch in epochs:
            start = time.perf_counter()
            loader.sampler.epoch = epoch
            losses, sample = _train_epoch(network, loader, optimizer, device, precision, epoch)
            _check_weights(model, epoch)
            if epoch == done + 1:  # from here on it is this run's folder; a start that failed has cost nothing
                for path in stale:
                    path.unlink(missing_ok=True)
                runtime.write_text(run / "config.yaml", settings_text)
            seconds = time.perf_counter() - start
            row = {"epoch": epoch, **losses, "loss": sum(losses.values())}
            row |= {"learning_rate": optimizer.param_groups[0]["lr"], "seconds": round(seconds, 3)}
            row |= {"samples_per_second": round(len(dataset) / seconds, 2)}
            is_kept = epoch >= config.train.save_from and epoch % config.train.save_every == 0
            is_kept |= epoch == config.train.epochs
            row["val_ap"] = synthetic_pixel_ap(model, validation, config) if is_kept and validation else None
            board.add(epoch, *(summary.scalar(key, row[key]) for key in LOG_COLUMNS[1:] if row[key] is not None))
            epochs.set_postfix({term: f"{losses[term]:.4f}" for term in TERMS})
            if config.train.visualize and (epoch % config.train.visualize_every == 0 or epoch == config.train.epochs):
                grid = plots.sample_grid(**sample)
                with runtime.replacing(run / "images" / f"epoch_{epoch:04d}.png") as beside:
                    plots.write_image(beside, grid)
                board.add(epoch, summary.image("samples", grid[..., ::-1], dataformats="HWC"))
            scheduler.step()

            log.append(row)
            content = {"model": model.state_dict(), "epoch": epoch, "settings": config.model_dump(mode="json")}
            content["held_out"] = held_out
            if is_kept:
                checkpoint.save(checkpoint.epoch_path(run, epoch), content)
            if is_kept or epoch == done + 1 or time.monotonic() - saved >= SAVE_EVERY:
                _write_log(run / "train_log.csv", log)
                state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
                checkpoint.save(run / "last.pt", content | state)
                saved = time.monotonic()
    return last


class _Board:
    """TensorBoard's events, written at once: its own writer hangs for good when its disk is full.

    Events of `first_epoch` and later that an interrupted run left in the folder are made invalid.
    """

    def __init__(self, folder: Path, first_epoch: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"events.out.tfevents.{time.time_ns()}"
        self._stream = self._path.open("wb")
        self._writer = RecordWriter(self._stream)
        self._write(Event(file_version="brain.Event:2"))
        restart = SessionLog(status=SessionLog.START)
        self._write(Event(step=first_epoch, session_log=restart))

    def _write(self, event: Event) -> None:
        with runtime.naming(self._path):
            event.wall_time = time.time()
            self._writer.write(event.SerializeToString())
            self._stream.flush()

    def add(self, epoch: int, *summaries: Summary) -> None:
        for entry in summaries:
            self._write(Event(step=epoch, summary=entry))

    def __enter__(self) -> "_Board":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


class _Files(NamedTuple):
    training: list[Path]
    held_out: list[Path]
    textures: list[Path]


def _files(config: Config) -> _Files:
    """Images to train on and those held out, and textures. Nothing is decoded yet."""
    category = data_loader.category_folder(Path(config.data.data_path), config.data.category)
    files = data_loader.list_nominal(category)
    files, held_out = data_loader.split_nominal(files, config.data.val_split, config.train.seed)
    textures = data_loader.list_textures(Path(config.data.anomaly_source_path))
    if config.data.img_size == (32, 32) and 1 in (config.train.batch_size, len(files) % config.train.batch_size):
        raise UserError(
            f"train.batch_size = {config.train.batch_size} leaves a batch of one of the {len(files)} images, and at "
            "img_size 32 batch norm needs two; change one of them"
        )
    return _Files(files, held_out, textures)


def _datasets(config: Config, files: _Files) -> tuple[data_loader.DRAEMTrainDataset, SyntheticSamples | None]:
    """Samples to train on, and those on held-out images where there are any. Decodes all images and textures."""
    size, seed, folder = config.data.img_size, config.train.seed, config.run_folder.parent
    textures = DecodedImages(Path(config.data.checkpoint_path), "textures", files.textures, size)
    images = DecodedImages(folder, "training images", files.training, size)
    dataset = data_loader.DRAEMTrainDataset(images, AnomalySynthesizer(textures, size, config.train.cut), seed)
    if not files.held_out:
        return dataset, None
    images = DecodedImages(folder, "held-out images", files.held_out, size)
    synthetic = data_loader.DRAEMTrainDataset(images, AnomalySynthesizer(textures, size), seed, stream=4)
    return dataset, SyntheticSamples(synthetic, files.held_out)


def _learning_rate_factor(config: Config):
    milestones = [round(share * config.train.epochs) for share in config.train.lr_milestones]
    return lambda epochs_done: config.train.lr_gamma ** sum(epochs_done >= milestone for milestone in milestones)


def _resume(config: Config, model: DRAEM, optimizer: Any, scheduler: Any, held_out: list[str]) -> int:
    """Take up the state of last.pt where there is one and it is wanted; the number of epochs done."""
    path = config.run_folder / "last.pt"
    if config.train.resume == "never" or not path.is_file():
        if config.train.resume == "must":
            raise UserError(f"train.resume = must, but there is no {path}; set train.resume to auto to start anew")
        if config.train.resume == "auto" and checkpoint.saved_epochs(config.run_folder):
            raise UserError(
                f"{path}: missing, but checkpoints of a run are there; restore it, set another data.run_name, "
                "or train.resume=never to replace that run"
            )
        return 0
    content = checkpoint.read(path)
    if not {"model", "optimizer", "scheduler", "epoch", "settings", "held_out"} <= content.keys():
        raise UserError(f"{path}: not a state to resume from; set train.resume to never to start anew")
    checkpoint.check_widths(path, content["model"], config)
    there = content["settings"]
    try:
        img_size, seed = tuple(there["data"]["img_size"]), there["train"]["seed"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged; set train.resume=never to start anew") from error
    for key, old, new in (
        ("data.img_size", img_size, config.data.img_size),
        ("train.seed", seed, config.train.seed),
    ):
        if old != new:
            raise UserError(
                f"{path}: trained with {key} = {old}, the settings say {new}; set it back, "
                "or set another data.run_name or train.resume=never"
            )
    if content["held_out"] != held_out:
        raise UserError(
            f"{path}: trained with other images held out: train/good or data.val_split has changed since; "
            "restore it, or set another data.run_name or train.resume=never"
        )
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: does not fit this model; set train.resume=never to start anew") from error
    # Moments keep the memory format that they were saved in, and the fused step takes them as lying like the weights.
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)
    # Epochs, rate and milestones are the settings' of now, so that a run can be extended.
    scheduler.load_state_dict(content["scheduler"] | {"base_lrs": [config.train.learning_rate]})
    for group in optimizer.param_groups:
        group["lr"] = config.train.learning_rate * _learning_rate_factor(config)(content["epoch"])
    return content["epoch"]


def _earlier_files(run: Path) -> list[Path]:
    """Files of an earlier run in this folder, which must not be taken for those of one that starts anew."""
    patterns = ("epoch_*.pt", "last.pt", "train_log.csv", "images/epoch_*.png", "logs/events*", "thresholds/*/*.json")
    return [path for pattern in patterns for path in run.glob(pattern)]


def _train_epoch(
    network: Callable, loader: Any, optimizer: Any, device: torch.device, precision: torch.dtype, epoch: int
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
                "image": batch["image"],
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
    image, augmented, mask = (
        batch[key].to(device, non_blocking=True) for key in ("image", "augmented_image", "anomaly_mask")
    )
    with runtime.autocast(device, precision):
        outputs = network(augmented.contiguous(memory_format=runtime.memory_format(precision)))
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


def _check_weights(model: DRAEM, epoch: int) -> None:
    """A last step with finite losses can still spoil the weights; they must not reach a checkpoint."""
    state = [value for value in model.state_dict().values() if value.is_floating_point()]
    if not torch.stack([value.isfinite().all() for value in state]).all():
        raise FloatingPointError(f"weights became non-finite in the last step of epoch {epoch}; {NOT_FINITE}")


def _read_log(path: Path, done: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [{column: row[column] for column in LOG_COLUMNS} for row in csv.DictReader(stream)]
        return [row for row in rows if int(row["epoch"]) <= done]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: damaged, or saved in another form; restore it, or move it away to go on") from error


def _write_log(path: Path, rows: list[dict[str, Any]]) -> None:
    runtime.write_csv(path, [LOG_COLUMNS, *([row[column] for column in LOG_COLUMNS] for row in rows)])
