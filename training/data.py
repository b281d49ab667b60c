"""The data of a training: its files, the split into training and held-out images, and the datasets."""

from dataclasses import dataclass
from pathlib import Path

from config import Config, Synthesis, weight_settings, with_white_level
from data import image_io
from data.cache import ArrayCache, DecodedImages, Subset, cache_folder, half_of_disk
from data.folders import DatasetNotes
from data.image_io import EmbeddedImage
from data.layouts import registry
from data.layouts.extended import ExtendedCategory
from data.layouts.registry import Category
from data.mvtec import split_nominal
from data_loader import DRAEMTrainDataset
from inference import tiles
from inference.checkpoint import TrainingImages
from registration.register import RegisteredTrainingImages, Registration
from runtime import provenance
from runtime.errors import UserError
from runtime.names import composed
from runtime.provenance import Provenance
from synthesis import AnomalySynthesizer
from training.mixing import MixedDataset
from training.state import FOLDERS, TrainingSource
from training.validation import SyntheticSamples, split_textures

SMALL_ROTATION = 5  # degrees, of nominal images that are registered


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a category before the split: images of train/good and of validation/good, textures."""

    source: Category
    nominal: list[Path]
    validation: list[Path]
    textures: list[Path]

    @property
    def category(self) -> Path:
        """Folder of the category."""
        return self.source.folder


@dataclass(frozen=True)
class TrainingFiles:
    """The files of a training: training images, held-out nominal images, textures."""

    source: Category
    training: list[Path]
    held_out: list[Path]
    textures: list[Path]

    @property
    def nominal(self) -> list[Path]:
        """All nominal images, sorted: the same for every split, so that runs share their decoded images."""
        return sorted(self.training + self.held_out)

    def added(self) -> set[Path]:
        """Those that --learn has added."""
        source = self.source
        return (
            {file for file in self.nominal if source.is_added(file)} if isinstance(source, ExtendedCategory) else set()
        )

    def digests(self) -> TrainingImages:
        """The nominal images by name and content."""
        parts = (
            {self.source.key(file): digest for file, digest in zip(files, provenance.file_digests(files), strict=True)}
            for files in (self.training, self.held_out)
        )
        return TrainingImages(*parts)


def find_files(config: Config, notes: DatasetNotes | None = None) -> DatasetFiles:
    """The files of the configured category. No file is read."""
    category = registry.open_category(config)
    nominal, validation = category.nominal(notes), category.validation(notes)
    return DatasetFiles(category, nominal, validation, registry.list_textures(config, category, notes))


def split(config: Config, files: DatasetFiles, kept: TrainingImages | None = None) -> TrainingFiles:
    """Split into training and held-out images.

    Held out are the images of validation/good, or else a share that the seed chooses. With the images of an earlier
    state (`kept`), those that it held out, also under another name.

    Raises:
        UserError: no training or no held-out image is left, or a batch would have a single sample.
    """
    nominal = files.nominal + files.validation
    if kept is not None:
        held_out = _held_out_before(kept, files.source, nominal) | set(files.validation)
    elif files.validation:
        held_out = set(files.validation)
    else:
        settings = config.data.val_split, config.train.seed, config.data.split_by, None, files.source
        held_out = set(split_nominal(files.nominal, *settings)[1])
    if kept and kept.held_out and not held_out:
        folder = nominal[0].parent
        raise UserError(folder, "none of the images that the training held out is there any more", "restore them")
    training = [file for file in nominal if file not in held_out]
    if not training:
        raise UserError(
            nominal[0].parent, "all images there are held out, none is left to train on", "restore the others"
        )
    in_order = sorted(file for file in nominal if file in held_out)  # as in `TrainingFiles.nominal`
    found = TrainingFiles(files.source, training, in_order, files.textures)
    samples = len(set(training) - found.added()) * tiles.per_image(config.data, config.train.tiles_per_image)
    if config.data.input_size == (32, 32) and 1 in (config.train.batch_size, samples % config.train.batch_size):
        raise UserError(
            f"train.batch_size = {config.train.batch_size}",
            f"leaves a batch of one of the {samples} samples, and batch norm needs two at 32 x 32 pixels",
            f"change it, or {'data.tile_size' if config.data.tile_size else 'data.img_size'}",
        )
    return found


def _held_out_before(kept: TrainingImages, category: Category, nominal: list[Path]) -> set[Path]:
    """The images that an earlier state held out.

    An image is known by name and content together, since copies of it may have been trained on. One that is not known
    so is new or renamed: it is held out if its content was, or if it is of a group of which images were.
    """
    trained = {(composed(name), digest) for name, digest in kept.training.items()}
    digests = dict(zip(nominal, provenance.file_digests(nominal), strict=True))
    untrained = [file for file, digest in digests.items() if (category.key(file), digest) not in trained]
    held_out = {file for file in untrained if digests[file] in kept.held_out.values()}
    groups = {category.groups[file] for file in held_out if file in category.groups}
    return held_out | {file for file in untrained if category.groups.get(file) in groups}


def training_provenance(config: Config, files: list[Path], textures: list[Path]) -> Provenance:
    """What a training would be made from with the current settings and files."""
    settings = weight_settings(config) | {key: composed(Path(config[key]).resolve().as_posix()) for key in FOLDERS}
    return Provenance(pictures=provenance.content(files), textures=provenance.content(textures), settings=settings)


def changed_images(before: TrainingImages, after: TrainingImages) -> str:
    """Nominal images added, removed and replaced, in words; empty where none is."""
    there, now = (images.training | images.held_out for images in (before, after))
    old, new = set(there.values()), set(now.values())
    replaced = {name for name in there.keys() & now.keys() if there[name] not in new and now[name] not in old}
    added = [name for name, digest in now.items() if digest not in old and name not in replaced]
    removed = [name for name, digest in there.items() if digest not in new and name not in replaced]
    counts = {"added": len(added), "removed": len(removed), "replaced": len(replaced)}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def resolve_white_level(config: Config, nominal: list[Path], kept: TrainingSource | None = None) -> Config:
    """The settings with the white level in place of `auto`: that of the state to resume, or found in the images."""
    if not isinstance(config.data.white_level, str):
        return config
    if kept:
        return with_white_level(config, kept.white_level)
    white_level = image_io.find_white_level(nominal)
    if white_level is not None:
        print(f"images have more than 8 bits: {white_level:g} counts as white (data.white_level)")
    return with_white_level(config, white_level)


def datasets(
    config: Config, files: TrainingFiles, reference: EmbeddedImage | None = None
) -> tuple[DRAEMTrainDataset, SyntheticSamples | None]:
    """Training samples, and synthetic samples on held-out images (None without these). Decodes all files.

    config: with the white level resolved. reference: embedded image that others are registered to; None for that of
        the settings.
    """
    nominal: ArrayCache
    rotation = config.synthesis.max_rotation
    size, seed, folder = config.data.input_size, config.train.seed, cache_folder(config.data.checkpoint_path)
    if config.data.registration_training:
        nominal = RegisteredTrainingImages(folder, files.nominal, Registration(config, reference))
        rotation = min(SMALL_ROTATION, rotation)
    else:
        limit, white = half_of_disk(folder), config.data.known_white_level
        nominal = DecodedImages(folder, "nominal images", files.nominal, config.data.img_size, white, limit)
    # After `nominal`, which is in use by now: a new cache file may remove files that no process has open.
    textures = DecodedImages(folder, "textures", files.textures, size, "own")
    per_image, held_out = tiles.per_image(config.data, config.train.tiles_per_image), set(files.held_out)
    added = files.added() - held_out
    places = [place for place, file in enumerate(files.nominal) if file not in held_out | added]
    own, others = split_textures(files.textures, seed) if files.held_out else (range(len(textures)), [])
    images = Subset(nominal, places)
    synthesizer = AnomalySynthesizer(Subset(textures, own), size, config.train.cut, rotation, config.synthesis, images)
    dataset = DRAEMTrainDataset(images, synthesizer, seed, per_image=per_image)
    if added:
        places = [place for place, file in enumerate(files.nominal) if file in added]
        dataset = MixedDataset(images, Subset(nominal, places), synthesizer, seed, per_image)
    if not files.held_out:
        return dataset, None
    # The published anomalies for every recipe, but not in colors that the category does not have.
    gray = Synthesis(gray_textures=config.synthesis.gray_textures)
    synthesizer = AnomalySynthesizer(Subset(textures, others), size, False, rotation, gray, images)
    places = [place for place, file in enumerate(files.nominal) if file in held_out]
    synthetic = DRAEMTrainDataset(Subset(nominal, places), synthesizer, seed, stream=4)
    return dataset, SyntheticSamples(synthetic, files.held_out)
