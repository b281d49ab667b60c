"""The training mode."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from config import Config, recipe, with_white_level
from data.folders import DatasetNotes
from data.mask_matching import and_n_more
from data_loader import DRAEMTrainDataset, train_loader
from inference import checkpoint, embedded_assets, networks
from inference.checkpoint import Checkpoint
from runtime.device import worker_count, worker_errors
from runtime.errors import UserError
from runtime.files import remove_leftovers, run_lock
from runtime.provenance import Provenance, file_digests
from training.data import (
    DatasetFiles,
    TrainingFiles,
    changed_images,
    datasets,
    find_files,
    resolve_white_level,
    split,
    training_provenance,
)
from training.journal import Journal
from training.loop import Trainer
from training.mixing import MixedDataset, mixed
from training.state import (
    FOLDERS,
    TrainingSource,
    TrainingState,
    read_last,
)
from training.validation import SyntheticSamples

if TYPE_CHECKING:
    from training.distributed import ProcessGroup


def run(config: Config, settings_text: str, group: "ProcessGroup | None" = None) -> Path:
    """Train one category and keep its checkpoints.

    Args:
        config: the settings.
        settings_text: the same as YAML, kept in the run's folder.
        group: the processes that train together, None for one process.

    Returns:
        the last kept checkpoint.

    Raises:
        UserError: mistakes in settings or data, or another training in the run's folder.
        FloatingPointError: a loss or weight that is not finite.
        Interrupted: by a signal.
    """
    if group and config.train.batch_size < group.count:
        raise UserError(
            f"train.batch_size = {config.train.batch_size}",
            f"less than one sample for each of the {group.count} processes",
            "raise it, or start fewer processes",
        )
    with ExitStack() as stack:
        with group.rank_ordered() if group else nullcontext():
            if group is None or group.is_first:
                stack.enter_context(run_lock(config.run_folder))
                remove_leftovers(config.run_folder, "**/.*.part*")
            state, files, place = _set_up(config, settings_text, group)
            samples = None
            if state.epoch < config.train.epochs:
                settled = with_white_level(config, state.source.white_level)
                samples = datasets(settled, files, state.source.embedded_assets.get("reference"))
        if samples is None:
            return _trained_already(state)
        return _train(state, len(files.held_out), *samples, place)


def _set_up(
    config: Config, settings_text: str, group: "ProcessGroup | None"
) -> tuple[TrainingState, TrainingFiles, str | None]:
    """The state to train from, its files, and where in the training it was saved, such as 'step 3 of epoch 2'."""
    notes = DatasetNotes()
    found = find_files(config, notes)
    for line in notes.lines():
        print(line)
    made_from = training_provenance(config, found.nominal + found.validation, found.textures)
    kept = read_last(config, made_from)
    start = None if kept else start_of(config)
    earlier = kept.source if kept else _source_of(start, found)
    files = split(config, found, earlier.images if earlier else None)
    settled = resolve_white_level(config, files.nominal, earlier)
    embedded = embedded_assets.embed(settled, earlier.embedded_assets if earlier else None)
    images = files.digests()
    if copies := images.held_out_copies:
        print(
            f"held-out images that are also training images (left out of thresholds): {copies[0]}{and_n_more(copies)}"
        )
    source = TrainingSource(made_from, images, settled.data.known_white_level, embedded)
    state = TrainingState(config, settings_text, source, group)
    if start:
        state.model.load_state_dict(start.model.state_dict())
    if kept:
        state.resume(kept)
        _print_changes(config.run_folder / "last.pt", kept.source, state.source)
    return state, files, kept.place if kept else None


def start_of(config: Config) -> Checkpoint | None:
    """The checkpoint of train.start_from; UserError where it cannot be used."""
    path = config.train.start_from
    if path is not None and not Path(path).is_file():
        raise UserError(f"train.start_from = {path}", "no such file", "name a checkpoint, or set it to null")
    return None if path is None else checkpoint.load(config, path)


def _source_of(start: Checkpoint | None, found: DatasetFiles) -> TrainingSource | None:
    """What the weights that a training starts from were trained on; None where that is not known, or other images."""
    if start is None or start.images is None:
        return None
    known = {*start.images.training.values(), *start.images.held_out.values()}
    if known.isdisjoint(file_digests(found.nominal + found.validation)):
        return None
    return TrainingSource(start.made_from or Provenance(), start.images, start.white_level, start.embedded_assets)


def _print_changes(path: Path, kept: TrainingSource, now: TrainingSource) -> None:
    """Print which images have changed since a state was saved: training resumes, but the user should know."""
    if changed := changed_images(kept.images, now.images):
        print(f"images of train/good have changed since {path} was saved: {changed}")
    textures, textures_now = kept.made_from.textures, now.made_from.textures
    for changed in Provenance(textures=textures).differences(Provenance(textures=textures_now)):
        print(f"since {path} was saved {changed}")
    for key in FOLDERS:  # other settings are refused by `read_last`
        before, after = kept.made_from.settings[key], now.made_from.settings[key]
        if before != after:
            print(f"{key} was {before}, is now {after}: the same images")


def _trained_already(state: TrainingState) -> Path:
    folder, done = state.config.run_folder, state.epoch
    more = "" if state.config.train.lr_schedule == "one_cycle" else "raise train.epochs to resume, or "
    print(f"{folder}: already trained for {done} epochs; {more}set train.resume=never to train anew")
    last = checkpoint.epoch_path(folder, state.config.train.epochs)
    return next(path for path in (last, checkpoint.epoch_path(folder, done), folder / "last.pt") if path.is_file())


def _train(
    state: TrainingState,
    held_out: int,
    dataset: DRAEMTrainDataset,
    validation: SyntheticSamples | None,
    place: str | None,
) -> Path:
    """Train from this state to the last epoch.

    Args:
        held_out: number of images. place: where the state was saved, in words; None for a new one.
    """
    config, done, group = state.config, state.epoch, state.group
    folder, total = config.run_folder, config.train.epochs
    state.find_earlier()
    together = f", {group.count} processes" if group else ""
    each = f", {dataset.per_image} tiles of each in an epoch" if config.data.tile_size else ""
    print(
        f"training {config.data.category} on {len(dataset.images)} images{each} ({held_out} held out), {state.device}, "
        f"{state.precision}{together}"
    )
    print(f"recipe: {recipe(config)}")
    if place:
        print(f"resuming after {place}, where {folder / 'last.pt'} was saved")
    workers = worker_count(config.data.num_workers, state.device)
    pins = state.device.type == "cuda"
    share: Callable[[list[int]], list[int]] = group.share if group else list
    if isinstance(dataset, MixedDataset):
        print(f"half of every batch: {len(dataset.added.images)} images that --learn has added")
        share = mixed(share)
    loader = train_loader(dataset, config.train.batch_size, workers, pins, share)
    model = group.wrap_ddp(state.model) if group else state.model
    # CUDA graphs cannot contain the communication of processes.
    compiled = "off" if group and config.train.compile == "auto" else config.train.compile
    network = networks.for_training(model, compiled, state.device, (total - done) * len(loader))
    with worker_errors(), Journal(config, done) if state.writes else nullcontext() as journal:
        Trainer(network, loader, validation, state, journal).train()
    return checkpoint.epoch_path(folder, total)
