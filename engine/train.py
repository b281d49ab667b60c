"""The training mode."""

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import data_loader
from config import Config
from data import image_io
from data.cache import DecodedImages, Subset, half_of_disk, kept_folder
from data.folders import Remarks, category_folder, list_textures
from data.mvtec import list_nominal, list_validation, nominal_name, split_nominal
from inference import checkpoint, networks, tiles
from inference.preprocessing import to_carry
from registration.register import RegisteredImages, Registration
from reporting.mistakes import shows_mistakes
from runtime import provenance
from runtime.device import worker_count, worker_errors
from runtime.errors import UserError
from runtime.files import owning, remove_leftovers
from runtime.provenance import Provenance
from synthesis import MAX_ROTATION, AnomalySynthesizer
from training import loop
from training.journal import Journal
from training.state import (
    FOLDERS,
    TrainingState,
    changed_pictures,
    place_in,
    provenance_of,
    read_last,
    training_provenance,
)
from training.validation import SyntheticSamples, split_textures

if TYPE_CHECKING:
    from training.distributed import Ranks

SMALL_ROTATION = 5  # degrees, of nominal images that are registered


@shows_mistakes
def run(config: Config, settings_text: str, ranks: "Ranks | None" = None) -> Path:
    """Train one category and keep its checkpoints.

    Args:
        config: the settings.
        settings_text: the same as YAML, kept in the run's folder.
        ranks: the processes that train together, None for this one alone.

    Returns:
        the last kept checkpoint.

    Raises:
        UserError: mistakes in settings or data, or another training in the run's folder.
        FloatingPointError: a loss or weight that is not finite.
        Stopped: told to stop.
    """
    if ranks and config.train.batch_size < ranks.count:
        raise UserError(
            f"train.batch_size = {config.train.batch_size}: the batch of all processes together, and there are "
            f"{ranks.count}; raise it, or start fewer"
        )
    with ExitStack() as stack:
        with ranks.in_turn() if ranks else nullcontext():
            if ranks is None or ranks.is_first:
                stack.enter_context(owning(config.run_folder))
                remove_leftovers(config.run_folder, "**/.*.part*")
            state, files, place = _set_up(config, settings_text, ranks)
            samples = None
            if state.epoch < config.train.epochs:
                samples = datasets(config, files, state.white_level, state.carried.get("reference"))
        if samples is None:
            return _trained_already(state)
        return _train(state, len(files.held_out), *samples, place)


def _set_up(config: Config, settings_text: str, ranks: "Ranks | None") -> tuple[TrainingState, "Files", str | None]:
    """State to train from, what it is made of, and where a kept one was saved, in words."""
    remarks = Remarks()
    nominal, validation, textures = find_files(config, remarks)
    for line in remarks.lines():
        print(line)
    made_from = training_provenance(config, nominal + validation, textures)
    kept = read_last(config, made_from)
    files = split(config, nominal, validation, textures, kept)
    white_level = find_white_level(config, files, kept)
    carried = to_carry(checkpoint.with_white_level(config, white_level), (kept or {}).get("carried"))
    state = TrainingState(config, settings_text, made_from, files.digests(), white_level, carried, ranks)
    if kept:
        state.resume(kept)
        _tell_changes(config.run_folder / "last.pt", kept, state)
    return state, files, place_in(kept) if kept else None


def _tell_changes(path: Path, kept: dict[str, Any], state: TrainingState) -> None:
    """Which pictures are others than those that a state was trained on: no reason against going on, but to be known."""
    if changed := changed_pictures(kept.get("pictures"), state.pictures):
        print(f"pictures of train/good have changed since {path} was saved: {changed}")
    there, now = provenance_of(path, kept), state.made_from
    for changed in Provenance(textures=there.textures).differences(Provenance(textures=now.textures)):
        print(f"since {path} was saved {changed}")
    for key in FOLDERS:  # others are no way to go on, see `read_last`
        if there.settings[key] != now.settings[key]:
            print(f"{key} was {there.settings[key]}, is now {now.settings[key]}: the same pictures")


def _trained_already(state: TrainingState) -> Path:
    folder, done = state.config.run_folder, state.epoch
    print(f"{folder}: already trained for {done} epochs; a larger train.epochs goes on, train.resume=never starts anew")
    last = checkpoint.epoch_path(folder, state.config.train.epochs)
    return next(path for path in (last, checkpoint.epoch_path(folder, done), folder / "last.pt") if path.is_file())


def _train(
    state: TrainingState,
    held_out: int,
    dataset: data_loader.DRAEMTrainDataset,
    validation: SyntheticSamples | None,
    place: str | None,
) -> Path:
    """Train from the state on. held_out: number of images. place: where the state was saved, None for a new one."""
    config, done, ranks = state.config, state.epoch, state.ranks
    folder, total = config.run_folder, config.train.epochs
    state.find_earlier()
    together = f", {ranks.count} processes" if ranks else ""
    each = f", {dataset.per_image} tiles of each in an epoch" if config.data.tile_size else ""
    print(
        f"training {config.data.category} on {len(dataset.images)} images{each} ({held_out} held out), {state.device}, "
        f"{state.precision}{together}"
    )
    if place:
        print(f"going on after {place}, which {folder / 'last.pt'} was saved at")
    workers = worker_count(config.data.num_workers, state.device)
    share = {"share": ranks.share} if ranks else {}
    loader = data_loader.train_loader(dataset, config.train.batch_size, workers, state.device.type == "cuda", **share)
    model = ranks.share_out(state.model) if ranks else state.model
    # CUDA graphs cannot hold what processes exchange.
    compiled = "off" if ranks and config.train.compile == "auto" else config.train.compile
    network = networks.for_training(model, compiled, state.device, (total - done) * len(loader))
    with worker_errors(), Journal(config, done) if state.writes else nullcontext() as journal:
        loop.train(network, loader, validation, state, journal, config)
    return checkpoint.epoch_path(folder, total)


class Files(NamedTuple):
    """What a training is made of: all nominal images, those of them that are held out, textures."""

    category: Path
    nominal: list[Path]
    held_out: list[Path]
    textures: list[Path]

    def digests(self) -> dict[str, dict[str, str]]:
        """Of the `training` and the `held_out` images, each name -> digest of content."""
        held_out, digests = set(self.held_out), provenance.file_digests(self.nominal)
        named = [
            (file, nominal_name(self.category, file), one) for file, one in zip(self.nominal, digests, strict=True)
        ]
        return {
            "training": {name: digest for file, name, digest in named if file not in held_out},
            "held_out": {name: digest for file, name, digest in named if file in held_out},
        }


def find_files(config: Config, remarks: Remarks | None = None) -> tuple[list[Path], list[Path], list[Path]]:
    """Images of train/good and of validation/good, and textures. Nothing is read yet."""
    category = category_folder(Path(config.data.data_path), config.data.category)
    nominal, validation = list_nominal(category, remarks), list_validation(category, remarks)
    return nominal, validation, list_textures(Path(config.data.anomaly_source_path), remarks)


def split(
    config: Config,
    nominal: list[Path],
    validation: list[Path],
    textures: list[Path],
    kept: dict[str, Any] | None = None,
) -> Files:
    """Training and held-out images: those of validation/good, else by seed, or as in the state that is kept, told by
    content."""
    category = category_folder(Path(config.data.data_path), config.data.category)
    own, nominal = nominal, nominal + validation
    if kept is None and validation:
        held_out = validation
    elif kept is None:
        _, held_out = split_nominal(own, config.data.val_split, config.train.seed, config.data.split_by, category)
    elif "pictures" in kept:
        digests = set(kept["pictures"]["held_out"].values())
        found = zip(nominal, provenance.file_digests(nominal), strict=True)
        held_out = [file for file, digest in found if digest in digests or file in validation]
    else:  # of an earlier version
        held_out = [file for file in nominal if file.name in kept["held_out"] or file in validation]
    if kept and kept["held_out"] and not held_out:
        folder = nominal[0].parent
        raise UserError(f"{folder}: none of the images that the training held out is there any more; restore them")
    count = len(nominal) - len(held_out)
    if not count:
        raise UserError(f"{nominal[0].parent}: all images there are held out, none is left to train on; restore them")
    samples = count * tiles.per_image(config.data, config.train.tiles_per_image)
    if config.data.input_size == (32, 32) and 1 in (config.train.batch_size, samples % config.train.batch_size):
        raise UserError(
            f"train.batch_size = {config.train.batch_size} leaves a batch of one of the {samples} samples, and at "
            f"{'tile_size' if config.data.tile_size else 'img_size'} 32 batch norm needs two; change one of them"
        )
    return Files(category, nominal, held_out, textures)


def find_white_level(config: Config, files: Files, kept: dict[str, Any] | None) -> float | None:
    """The value of white in pictures of more than 8 bits: the setting's, that of the state that is kept, or found."""
    if config.data.white_level != "auto":
        return config.data.white_level
    if kept is not None:
        return kept.get("white_level")
    white_level = image_io.find_white_level(files.nominal)
    if white_level is not None:
        print(f"pictures have more than 8 bits: {white_level:g} is taken for white (data.white_level)")
    return white_level


def datasets(
    config: Config, files: Files, white_level: float | None = None, reference: dict[str, Any] | None = None
) -> tuple[data_loader.DRAEMTrainDataset, SyntheticSamples | None]:
    """Samples to train on, and those on held-out images where there are any. Decodes all images and textures.

    reference: that pictures are laid over, see `inference.techniques.to_carry`; None: as the settings say.
    """
    size, seed, folder = config.data.input_size, config.train.seed, kept_folder(config.data.checkpoint_path)
    if config.data.registration_training:
        registering = Registration(checkpoint.with_white_level(config, white_level), reference)
        nominal, rotation = RegisteredImages(folder, files.nominal, registering), SMALL_ROTATION
    else:
        limit = half_of_disk(folder)
        nominal = DecodedImages(folder, "nominal images", files.nominal, config.data.img_size, white_level, limit)
        rotation = MAX_ROTATION
    textures = DecodedImages(folder, "textures", files.textures, size)  # which may push out what nobody has open
    per_image = tiles.per_image(config.data, config.train.tiles_per_image)
    held_out = set(files.held_out)
    places = [place for place, file in enumerate(files.nominal) if file not in held_out]
    own, others = split_textures(files.textures, seed) if held_out else (range(len(textures)), [])
    synthesizer = AnomalySynthesizer(Subset(textures, own), size, config.train.cut, rotation)
    dataset = data_loader.DRAEMTrainDataset(Subset(nominal, places), synthesizer, seed, per_image=per_image)
    if not held_out:
        return dataset, None
    places = [place for place, file in enumerate(files.nominal) if file in held_out]
    synthesizer = AnomalySynthesizer(Subset(textures, others), size, max_rotation=rotation)
    synthetic = data_loader.DRAEMTrainDataset(Subset(nominal, places), synthesizer, seed, stream=4)
    return dataset, SyntheticSamples(synthetic, files.held_out)
