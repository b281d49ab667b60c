"""The training mode."""

from pathlib import Path
from typing import NamedTuple

import data_loader
import runtime
from config import Config
from errors import UserError
from image_io import DecodedImages
from inference import checkpoint, networks
from synthesis import AnomalySynthesizer
from training import loop
from training.journal import Journal
from training.state import TrainingState
from training.validation import SyntheticSamples


def run(config: Config, settings_text: str) -> Path:
    """Train one category and keep its checkpoints.

    Args:
        config: the settings.
        settings_text: the same as YAML, kept in the run's folder.

    Returns:
        the last kept checkpoint.

    Raises:
        UserError: mistakes in settings or data. FloatingPointError: a loss or weight that is not finite.
    """
    folder, total = config.run_folder, config.train.epochs
    with runtime.mendable_errors():
        files = find_files(config)
        state = TrainingState(config, settings_text, [file.name for file in files.held_out])
        state.resume()
    done, last = state.epoch, checkpoint.epoch_path(folder, total)
    if done >= total:
        print(
            f"{folder}: already trained for {done} epochs; a larger train.epochs goes on, "
            "train.resume=never starts anew"
        )
        return next(path for path in (last, checkpoint.epoch_path(folder, done), folder / "last.pt") if path.is_file())

    with runtime.mendable_errors():
        dataset, validation = datasets(config, files)
    state.find_earlier()
    held_out = len(files.held_out)
    print(
        f"training {config.data.category} on {len(dataset)} images ({held_out} held out), {state.device}, "
        f"{state.precision}"
    )
    if done:
        print(f"going on after epoch {done}, which {folder / 'last.pt'} was saved at")
    workers = runtime.worker_count(config.data.num_workers, state.device)
    loader = data_loader.train_loader(dataset, config.train.batch_size, workers, state.device.type == "cuda")
    network = networks.for_training(state.model, config.train.compile, state.device, (total - done) * len(loader))
    with runtime.mendable_errors(), Journal(config, done) as journal:
        loop.train(network, loader, validation, state, journal, config)
    return last


class Files(NamedTuple):
    """What a training is made of."""

    training: list[Path]
    held_out: list[Path]
    textures: list[Path]


def find_files(config: Config) -> Files:
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
    return Files(files, held_out, textures)


def datasets(config: Config, files: Files) -> tuple[data_loader.DRAEMTrainDataset, SyntheticSamples | None]:
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
