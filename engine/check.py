"""The check mode: looks at dataset, masks and settings, and estimates the time. Nothing is written."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from config import Config, recipe
from data import image_io, mvtec
from data.annotations import MaskSource
from data.folders import DatasetNotes
from data.image_io import EmbeddedImage
from data.layouts import registry
from data.mvtec import TestSample, vanishing_note, vanishing_regions
from engine.train import start_of
from evaluation.thresholds import false_positive_estimate, images_needed
from inference import checkpoint, tiles
from inference.preprocessing import Preprocessor, configured
from inference.quantization import milliseconds_by_form
from registration.register import Registration
from runtime import provenance
from runtime.device import Compute, core_count, select_device, select_precision
from runtime.errors import UserError
from training.data import DatasetFiles, TrainingFiles, resolve_white_level, split
from training.estimate import step_seconds

MANY_HOURS = 8  # of training on a CPU, from which on small networks are advised
SHOWN = 5  # names listed of each kind


class Look(NamedTuple):
    """An image after decoding: size (height, width), whether it has more than 8 bits, digest of its content."""

    size: tuple[int, int]
    has_high_bit_depth: bool
    content: str


class Findings:
    """The errors found so far, each of which would stop training or detection."""

    def __init__(self):
        self.problems: list[UserError | OSError] = []

    def attempt(self, what: Callable[[], Any]) -> Any:
        """The result of `what`; None where it raises an error, which is kept."""
        try:
            return what()
        except (UserError, OSError) as error:
            if str(error) not in map(str, self.problems):
                self.problems.append(error)
            return None

    def by_reason(self) -> dict[str, list[Path]]:
        """Problem -> the files that have it; no file for problems of settings."""
        found: dict[str, list[Path]] = {}
        for problem in sorted(map(str, self.problems)):
            name, separator, reason = problem.partition(": ")
            if separator and Path(name).exists():
                found.setdefault(reason, []).append(Path(name))
            else:
                found.setdefault(problem, [])
        return found


def run(config: Config) -> None:
    """Print what is found. UserError where training or detection would stop, after all reasons are printed."""
    findings, notes = Findings(), DatasetNotes()
    category = registry.open_category(config)
    nominal = findings.attempt(lambda: category.nominal(notes)) or []
    validation = findings.attempt(lambda: category.validation(notes)) or []
    textures = findings.attempt(lambda: registry.list_textures(config, category, notes)) or []
    test = findings.attempt(lambda: category.test(notes)) if category.has_test else []
    files = (
        findings.attempt(lambda: split(config, DatasetFiles(category, nominal, validation, textures)))
        if nominal
        else None
    )
    trained, held_out = (len(files.training), len(files.held_out)) if files else (len(nominal), len(validation))
    print(registry.summary(category, config, trained, held_out, test))
    _print_counts(category, files, textures, test, bool(validation))
    for line in notes.lines():
        print(line)
    if not (config.run_folder / "last.pt").is_file():  # else that is resumed
        findings.attempt(lambda: start_of(config))
    if files:
        settled = findings.attempt(lambda: resolve_white_level(config, files.nominal)) or config
        groups = {"training": files.training, "held out": files.held_out, "test": [one.path for one in test or []]}
        looks = _look_at(groups | {"textures": textures}, settled.data.known_white_level, findings)
        _print_looks(groups, looks)
        _print_masks(test or [], looks, findings, config.data.img_size)
        reference = _kept_reference(config)
        if test:
            findings.attempt(lambda: mvtec.saturation_by_mask(test))
            technique = configured(config)
            preparing = partial(Preprocessor, settled, [technique], embedded=reference, writes=False)
            for line in findings.attempt(lambda: preparing().check(test, [technique])) or []:
                print(line)
        _print_sizes(config, [looks[file] for names in groups.values() for file in names if file in looks])
        for line in _without_effect(config):
            print(line)
        if config.data.image_registration:
            findings.attempt(lambda: _print_registration(settled, files, test or [], reference))
        images = files.digests()  # copies say nothing new, and those of training images are left out
        _print_false_positive_estimate(config, len(set(images.held_out.values()) - set(images.training.values())))
        if not findings.problems:
            print(f"recipe: {recipe(config)}")
            _print_time(settled, files)
            _print_inference_time(settled)
    reasons = findings.by_reason() if len(findings.problems) > 1 else {}  # a single one is the error below
    for reason, paths in reasons.items():
        others = f"; the same for {_some(paths[1:])}" if len(paths) > 1 else ""
        print(f"would stop: {paths[0]}: {reason}{others}" if paths else f"would stop: {reason}")
    if findings.problems:
        first, rest = min(findings.problems, key=str), len(findings.problems) - 1
        if rest:
            print(f"{rest} more problems are listed above")
        raise first
    both = "training or detection" if category.has_test else "training; detection needs test images"
    print(f"no problem found that would stop {both}")


def _print_counts(
    category: registry.Category,
    files: TrainingFiles | None,
    textures: Sequence[Path],
    test: Sequence[TestSample] | None,
    has_validation: bool,
) -> None:
    if files and category.layout in registry.TREES:
        names = {"/".join(category.name(file).split("/")[:2]) for file in (*files.training, *files.held_out)}
        source = "validation/good" if has_validation else f"of {' and '.join(sorted(names))}"
        print(f"{category.folder}: {len(files.training)} training images, {len(files.held_out)} held out ({source})")
    print(
        f"textures: {len(textures)}" + (", a fifth of them held out" if textures and files and files.held_out else "")
    )
    if test is None:
        return
    kinds = Counter(one.kind for one in test)
    unmasked = Counter(one.kind for one in test if one.has_anomaly and not one.masks)
    counts = [
        f"{count} {kind}" + (f" ({unmasked[kind]} without a mask)" if unmasked[kind] else "")
        for kind, count in kinds.items()
    ]
    print(f"test images: {', '.join(counts) or 'none'}")
    if test and not any(one.has_anomaly for one in test):
        print("test/ has no anomalous image: image and pixel metrics will be undefined")
    if test and all(one.has_anomaly for one in test):
        print("test/ has no nominal image: image metrics will be undefined")


def _look_at(groups: dict[str, Sequence[Path]], white_level: float | None, findings: Findings) -> dict[Path, Look]:
    """Decode every image once. Images that cannot be read are missing; their errors are in `findings`."""
    paths = [path for files in groups.values() for path in files]
    textures = set(groups["textures"])

    def look(path: Path) -> Look | None:
        def decode() -> Look:
            image = image_io.read_image(path, white_level="own" if path in textures else white_level)
            return Look(
                image.shape[:2], image_io.has_high_bit_depth(path), provenance.digest([image.shape, image.tobytes()])
            )

        return findings.attempt(decode)

    with ThreadPoolExecutor(core_count()) as pool:
        found = pool.map(look, paths)
        bar = tqdm(found, "reading images", len(paths), unit="image", leave=None)
        return {path: one for path, one in zip(paths, bar, strict=True) if one}


def _print_looks(groups: dict[str, Sequence[Path]], looks: dict[Path, Look]) -> None:
    """Print sizes, bit depths and copies."""
    for group, files in groups.items():
        seen = [looks[file] for file in files if file in looks]
        sizes = Counter(f"{one.size[1]} x {one.size[0]}" for one in seen).most_common()
        if sizes:
            shown = ", ".join(f"{count} of {size}" for size, count in sizes[:SHOWN])
            deep = sum(one.has_high_bit_depth for one in seen)
            depth = f"; {deep} have more than 8 bits" if deep else ""
            print(f"{group}: {shown}{', ...' if len(sizes) > SHOWN else ''} (width x height){depth}")
    trained: dict[str, Path] = {}
    for file in groups["training"]:
        if file in looks:
            trained.setdefault(looks[file].content, file)
    copies = [file for file in groups["training"] if file in looks and trained[looks[file].content] != file]
    if copies:
        print(f"training images that are copies of others: {_some(copies)}")
    for group in ("held out", "test"):
        known = [file for file in groups[group] if file in looks and looks[file].content in trained]
        if known:
            what = "left out of thresholds" if group == "held out" else "metrics are too optimistic"
            print(f"{group} images that are also training images ({what}): {_some(known)}")


def _some(paths: Sequence[MaskSource]) -> str:
    names = [f"{path.parent.name}/{path.name}" for path in paths[:SHOWN]]
    return f"{len(paths)} ({', '.join(names)}{', ...' if len(paths) > SHOWN else ''})"


def _print_masks(
    test: Sequence[TestSample], looks: dict[Path, Look], findings: Findings, size: tuple[int, int]
) -> None:
    """Print how masks are decoded, and warnings. size: (height, width) that they are resized to."""
    pairs = [(sample, mask) for sample in test for mask in sample.masks]
    kinds: Counter[str] = Counter()
    warnings: dict[str, list[MaskSource]] = {}
    vanishing: dict[MaskSource, tuple[int, int]] = {}
    with ThreadPoolExecutor(core_count()) as pool:
        found = pool.map(lambda pair: findings.attempt(lambda: image_io.decode_mask_file(pair[1])), pairs)
        bar = tqdm(found, "reading masks", len(pairs), unit="mask", leave=None, disable=None if pairs else True)
        for (sample, mask), decoded in zip(pairs, bar, strict=True):
            if decoded is None:
                continue
            kinds[decoded.kind] += 1
            vanishing[mask] = vanishing_regions(decoded.mask, size)
            if decoded.warning:
                warnings.setdefault(decoded.warning, []).append(mask)
            if sample.path in looks and decoded.mask.shape != looks[sample.path].size:
                findings.attempt(partial(image_io.read_mask, mask, looks[sample.path].size))
    if kinds:
        print("masks: " + ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common()))
    for warning, masks in warnings.items():
        print(f"masks: {warning}: {_some(masks)}")
    for line in vanishing_note(vanishing):
        print(line)


def _kept_reference(config: Config) -> dict[str, EmbeddedImage]:
    """The reference that a resumed training would use, see `inference.embedded_assets.embed`; empty for none."""
    last = config.run_folder / "last.pt"
    if not config.data.registration_training or config.train.resume == "never" or not last.is_file():
        return {}
    with suppress(UserError):  # training reports a damaged one
        kept = checkpoint.load_metadata(last).embedded_assets
        return {name: one for name, one in kept.items() if name == "reference"}
    return {}


def _print_registration(
    config: Config, files: TrainingFiles, test: Sequence[TestSample], kept: dict[str, EmbeddedImage]
) -> None:
    """Print how many images can be registered. kept: the reference of a training to resume.

    UserError where training would stop.
    """
    registering = Registration(config, kept.get("reference"), writes=False)
    registering.check()
    if note := registering.crop_note():
        print(f"registration: {note}")
    held_out = [TestSample(file, False, f"{file.parent.name}/{file.name}") for file in files.held_out]
    for what, samples in (("held-out images", held_out), ("test images", test)):
        registering.register(samples)
        summary = registering.registration_summary(samples, what)
        if samples:
            print(f"registration: {summary or f'all {len(samples)} {what} registered'}")
        if len(registering.unregistered(samples)) > len(samples) / 2:
            other = "part (one part on a plain background)" if config.data.registration_method == "scene" else "scene"
            print(
                "registration: most of them could not be registered; set "
                f"data.registration_method={other}, or data.image_registration=false"
            )
    if config.data.registration_training:
        summary = registering.register_to_train(files.nominal)
        print(f"registration: {summary or f'all {len(files.nominal)} nominal images registered'}")


def _print_sizes(config: Config, looks: Sequence[Look]) -> None:
    """Print the size that images are resized to, and how many change their aspect ratio more than twofold."""
    height, width = config.data.img_size
    changes = [(width / look.size[1]) / (height / look.size[0]) for look in looks]
    changed = sum(not 0.5 < change < 2 for change in changes)
    tiled = (
        f", seen in tiles of {config.data.tile_size[1]} x {config.data.tile_size[0]}" if config.data.tile_size else ""
    )
    print(f"resized to {width} x {height} (width x height; data.img_size is [height, width]){tiled}")
    if changed and not config.data.registration_crop:
        print(f"the aspect ratio of {changed} images changes more than twofold; data.img_size can be [height, width]")


def _without_effect(config: Config) -> list[str]:
    """Settings that have no effect because of another one."""
    data, found = config.data, []
    if data.registration_method == "part" and not data.image_registration:
        found.append("data.registration_method = part: main.py registers with data.image_registration=true only")
    for key in ("registration_mirror", "registration_crop"):
        if config[f"data.{key}"] and data.registration_method != "part":
            found.append(f"data.{key}: has an effect with data.registration_method=part only")
    if config.train.tiles_per_image != "auto" and not data.tile_size:
        found.append("train.tiles_per_image: has an effect with data.tile_size only")
    return found


def _print_false_positive_estimate(config: Config, count: int) -> None:
    """Print the false-positive rates to expect of thresholds from `count` held-out images."""
    if not count:
        print("no image is held out (data.val_split): the false-positive rates of thresholds will be unknown")
        return
    settings = config.metrics
    for kind in ("p_quantile", "conformal"):
        estimate = false_positive_estimate(kind, count, settings.p, settings.k, settings.max_false_alarms)
        if kind == "conformal" and count < images_needed(settings.max_false_alarms):
            needed = images_needed(settings.max_false_alarms)
            print(f"conformal: calls no image anomalous, as {needed} held-out images are needed")
            continue
        expected, low, high = (f"{100 * rate:.2g} %" for rate in estimate)
        interval = f"90 % interval {low} to {high}"
        print(f"{kind} from {count} held-out images: false-positive rate about {expected} ({interval})")
    if count < images_needed(0.01):
        print(f"a false-positive rate of 1 % needs at least {images_needed(0.01)} held-out images")


def _print_time(config: Config, files: TrainingFiles) -> None:
    """Print the number of training steps, and an estimate of their time from a few measured ones."""
    train, device = config.train, select_device(config.train.device)
    precision = select_precision(train.precision, device)
    count = len(files.training) * tiles.per_image(config.data, train.tiles_per_image)
    seconds = step_seconds(config, files, min(train.batch_size, count), Compute(device, precision))
    steps = -(-count // train.batch_size)
    total = seconds * steps * train.epochs
    print(
        f"training: {steps} steps an epoch, {steps * train.epochs:,} in {train.epochs} epochs, "
        f"about {_clock(total)} on this {device} ({precision}; {seconds:.2g} s a step)"
    )
    if total > MANY_HOURS * 3600 and device.type == "cpu":
        print("small networks on small images take minutes: add --config configs/fast.yaml")


def _print_inference_time(config: Config) -> None:
    """Print how long the networks take for an image in each form, with data.tile_size for all of its tiles."""
    data, device = config.data, select_device(config.train.device)
    count = len(tiles.cut(data.img_size, data.input_size, data.tile_overlap)) if data.tile_size else 1
    forms = milliseconds_by_form(config.model.base_width, config.model.base_channels, data.input_size, device)
    times = ", ".join(f"{count * one:.3g} ms ({name})" for name, one in forms.items())
    print(f"inference: {times} an image on this {device}, one image at a time")
    if device.type == "cpu" and "openvino-int8" not in forms:
        print("inference: openvino and openvino-int8 (--export) need: pip install -r requirements-export.txt")


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
