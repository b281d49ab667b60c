"""Evaluation of categories x checkpoints x techniques x thresholds: what to do, what is complete, and the passes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from config import Config, with_category
from data import cache
from data.folders import DatasetNotes
from data.layouts.registry import chosen_categories, folders_of, open_category
from data.mvtec import TestSample, with_masks_read
from engine import ray_jobs
from engine.detection import TestSet, differences, evaluate_pass, refuse_trained, result_folder, weights_file
from engine.ray_jobs import Options
from engine.threshold import compute_thresholds, load_thresholds
from evaluation.thresholds import KINDS, MANUAL, NOMINAL_KINDS
from inference import checkpoint, threshold_file
from inference.checkpoint import Checkpoint, CheckpointMetadata
from inference.preprocessing import MASKINGS, TECHNIQUES, Preprocessor, Technique
from inference.threshold_file import NominalThresholds
from reporting import summary
from reporting.result import CURVES, read_record
from reporting.summary import Found
from runtime.device import select_device
from runtime.errors import UserError, format_error
from runtime.files import remove_leftovers, run_lock
from runtime.names import composed

Key = tuple[str, str, str]  # category, checkpoint, technique; empty where a failure concerns all


@dataclass(frozen=True)
class Selection:
    """What to evaluate: all combinations.

    Attributes:
        categories: names; None for all of the dataset. checkpoints: epochs or `last`; None for all kept ones.
        maskings: of MASKINGS; None for all, but only `no` where a category has no regions.
        registrations: without, with. kinds: of thresholds.
    """

    categories: Sequence[str] | None
    checkpoints: Sequence[str] | None
    maskings: Sequence[str] | None
    registrations: Sequence[bool]
    kinds: Sequence[str]


@dataclass
class Item:
    """Techniques of one checkpoint that share an input variant: one pass over the images."""

    path: Path
    epoch: int
    test_set: TestSet
    preprocessor: Preprocessor
    techniques: list[Technique]

    @property
    def config(self) -> Config:
        """The settings, of its category."""
        return self.preprocessor.config


def run(config: Config, selection: Selection, is_forced: bool, ray: Options | None = None) -> int:
    """Evaluate what is not complete, then write the summary of all results; the number of failures.

    Args:
        is_forced: evaluate complete results again.
        ray: where and how to run all at once, each category and checkpoint a job; None: here, one after the other.

    Raises:
        UserError: what was asked for does not exist; before anything runs.
    """
    if not ray:
        select_device(config.train.device)  # a wrong device is reported once, before anything changes
    if MANUAL in selection.kinds:
        threshold_file.manual(config)  # missing values are reported before anything changes, too
    results = Path(config.data.results_path) / config.data.run_name
    kinds = [kind for kind in KINDS if kind in selection.kinds]
    items, failed = _plan(config, selection)
    todo = items if is_forced else [item for item in items if not _is_complete(item, kinds)]
    _announce(items, todo, failed, len(kinds))
    failed |= _evaluate_on_ray(config, todo, kinds, ray) if ray else _evaluate_items(todo, kinds)
    remove_leftovers(results)
    there, stale = current_results(results, config, failed)
    planned = {(item.config.data.category, str(item.epoch), one.name) for item in items for one in item.techniques}
    planned |= {(category, "", "") for category, _, _ in planned}
    errors = summary.write_summary(results, there, failed, planned, has_nodes=ray is not None)
    summary.write_defects(results / "defects.csv", there)
    summary.write_times(results / "inference_times.txt", there)
    summary.write_index(results, there)
    undrawn = summary.draw_batch(results, there, config.metrics)
    for key, error in [*failed.items(), *undrawn.items()]:
        print(f"failed: {', '.join(part for part in key if part)}: {error}")
    summary.print_stale(stale)
    print(
        f"{sum(len(one.record.thresholds) for one in there)} combinations in the summary"
        + (f", {errors} failures" if errors else "")
    )
    print(f"results: {results / 'summary.csv'}")
    return len(failed) + len(undrawn)


def _evaluate_items(items: Sequence[Item], kinds: list[str]) -> dict[Key, str]:
    """Evaluate; what failed. The failure of one item does not stop the others."""
    failed: dict[Key, str] = {}
    loaded = None
    for item in (bar := tqdm(items, "evaluation", unit="pass")):
        bar.set_postfix_str(f"{item.config.data.category}, checkpoint {item.epoch}")
        try:
            if loaded is None or loaded.path != item.path:
                loaded = checkpoint.load(item.config, str(item.path))
            _evaluate(item, loaded, kinds)
        except Exception as error:
            for technique in item.techniques:
                failed[item.config.data.category, str(item.epoch), technique.name] = format_error(error)
    return failed


def _evaluate_on_ray(config: Config, todo: list[Item], kinds: list[str], options: Options) -> dict[Key, str]:
    """Evaluate on Ray; what failed."""
    data = config.data
    jobs: dict[tuple[str, str], list[Item]] = {}
    failed: dict[Key, str] = {}
    for item in todo:
        jobs.setdefault((item.config.data.category, str(item.epoch)), []).append(item)
    labels = {f"{category}, checkpoint {name}": (category, name) for category, name in jobs}
    results = Path(data.results_path)
    results.mkdir(parents=True, exist_ok=True)
    folders = [*folders_of(config), Path(data.checkpoint_path), results]
    with run_lock(results / f".batch_{data.run_name}"), ray_jobs.connected(options) as ray:
        arguments = {label: (jobs[key], kinds) for label, key in labels.items()}
        for label, outcome in ray.run(_evaluate_items, arguments, folders):
            if outcome.error is None:
                failed |= outcome.value
                continue
            category, name = labels[label]
            for technique in (one for item in jobs[category, name] for one in item.techniques):
                failed[category, name, technique.name] = outcome.error
    return failed


def _plan(config: Config, selection: Selection) -> tuple[list[Item], dict[Key, str]]:
    """All passes, and what cannot be evaluated; UserError where what was asked for does not exist."""
    items, failed, untrained = [], {}, {}
    names = chosen_categories(config, selection.categories)
    for name in names:
        own = with_category(config, name)
        epochs = checkpoint.saved_epochs(own.run_folder)
        if not epochs and not (own.run_folder / "last.pt").is_file():
            others = sorted(path.name for path in own.run_folder.parent.glob("*/") if checkpoint.saved_epochs(path))
            fix = f"set data.run_name to one of {', '.join(others)}" if others else "run train_all.py"
            untrained[name] = UserError(own.run_folder, "no checkpoint, never trained", fix)
            failed[name, "", ""] = str(untrained[name])
            continue
        chosen = selection.checkpoints or epochs or ["last"]
        paths = [checkpoint.find(own, "last" if epoch == "last" else int(epoch)) for epoch in chosen]
        techniques = _techniques(own, selection)
        kept_in = cache.cache_folder(own.data.checkpoint_path) if len(paths) > 1 else None
        try:
            notes, category = DatasetNotes(), open_category(own)
            samples, warnings = with_masks_read(category.test(notes), own.data.img_size)
            for line in (*notes.lines(), *warnings):
                print(f"{name}: {line}")
            # last.pt first: a kept checkpoint of the same epoch takes its place
            last = own.run_folder / "last.pt"
            if last in paths and checkpoint.load_metadata(last).is_within_epoch:
                failed[name, "last", ""] = f"{last}: interrupted within an epoch; resume the training"
                paths.remove(last)
            order = sorted(paths, key=lambda path: path.name != "last.pt")
            by_epoch = {checkpoint.epoch_of(path): path for path in order}
        except (UserError, OSError) as error:
            failed[name, "", ""] = format_error(error)
            continue
        prepared: dict[tuple, Prepared] = {}
        for epoch, path in sorted(by_epoch.items()):
            usable, count = techniques, len(prepared)
            try:
                ckpt = checkpoint.load_metadata(path)
                refuse_trained(category, samples, ckpt)
            except (UserError, OSError) as error:
                failed |= {(name, str(epoch), technique.name): format_error(error) for technique in techniques}
                continue
            try:
                ready = _prepare(prepared, own, ckpt, usable, samples, kept_in)
            except (UserError, OSError) as error:  # a reference or region that some techniques cannot be used with
                if len(names) == 1 or _concerns_all(error, own):
                    raise
                usable = []
                for technique in techniques:
                    try:
                        _prepare({}, own, ckpt, [technique], samples)
                        usable.append(technique)
                    except (UserError, OSError) as reason:
                        failed[name, str(epoch), technique.name] = format_error(reason)
                if not usable:
                    continue
                ready = _prepare(prepared, own, ckpt, usable, samples, kept_in)
            if len(prepared) > count:
                for line in (*ready.warnings, *ready.preprocessor.notes):
                    print(f"{name}: {line}")
            test_set = TestSet(samples, warnings + ready.warnings)
            for variant in dict.fromkeys(technique.variant for technique in usable):
                together = [technique for technique in usable if technique.variant == variant]
                items.append(Item(path, epoch, test_set, ready.preprocessor, together))
    if len(untrained) == len(names):
        raise next(iter(untrained.values()))
    return items, failed


class Prepared(NamedTuple):
    """A preprocessor, and what it warns of about the test images."""

    preprocessor: Preprocessor
    warnings: list[str]


def _prepare(
    prepared: dict[tuple, Prepared],
    config: Config,
    ckpt: CheckpointMetadata,
    techniques: list[Technique],
    samples: Sequence[TestSample] = (),
    kept_in: Path | None = None,
) -> Prepared:
    """The preprocessor for a checkpoint, kept in `prepared`: checkpoints with the same embedded images share one.

    samples: to check; none where the preprocessor only tells whether results are valid.
    """
    digests = sorted((what, asset.digest) for what, asset in ckpt.assets_for(config).items())
    key = (config.data.category, *techniques, ckpt.white_level, *digests)
    if key not in prepared:
        preprocessor = Preprocessor.for_checkpoint(config, ckpt, techniques, kept_in)
        prepared[key] = Prepared(preprocessor, preprocessor.check(samples, techniques) if samples else [])
    return prepared[key]


def _concerns_all(error: Exception, config: Config) -> bool:
    """Whether an error is of what was asked for, not of one category: a region missing, or the reference as set."""
    subject = error.subject if isinstance(error, UserError) else ""
    is_missing = subject.startswith("masking.regions") and config.data.category not in config.masking.regions
    return is_missing or subject.startswith("data.registration_reference")


def _techniques(config: Config, selection: Selection) -> list[Technique]:
    maskings = selection.maskings
    if maskings is None:
        maskings = MASKINGS
        if config.data.category not in config.masking.regions and not config.metrics.masking:
            maskings = ("no",)
            print(f"{config.data.category}: evaluated without masking, as masking.regions has no region for it")
    return [one for one in TECHNIQUES if one.masking in maskings and one.registered in selection.registrations]


def _is_complete(item: Item, kinds: list[str]) -> bool:
    """Whether there are results for all techniques and thresholds, computed from these weights, images and settings."""
    wanted = item.config.metrics.model_dump(mode="json")
    for technique in item.techniques:
        folder = result_folder(item.config, str(item.epoch), technique)
        record = read_record(folder)
        if not record or record.content["settings"].get("metrics") != wanted:
            return False
        if not set(kinds) <= set(summary.read_kinds(folder, record)) or not (folder / CURVES).is_file():
            return False
        try:
            if differences(record, item.path, item.preprocessor, technique, item.test_set.samples):
                return False
        except (UserError, OSError):
            return False  # evaluating it will fail with a message
    return True


def _announce(items: list[Item], todo: list[Item], failed: dict, count: int) -> None:
    """Print how many combinations there are, and about how much storage they take."""
    combinations = count * sum(len(item.techniques) for item in items)
    waiting = count * sum(len(item.techniques) for item in todo)
    size = 0.0
    for item in todo:
        wanted = item.config.metrics.visualisation
        count_all = len(item.test_set.samples)
        panels = wanted if isinstance(wanted, int) else {"all": count_all, "errors": count_all // 5, "none": 0}[wanted]
        height, width = (side * -(-192 // side) for side in item.config.data.img_size)  # of a tile in a panel
        size += len(item.techniques) * (0.3e6 + min(panels, count_all) * 3 * height * width)
    print(
        f"{combinations} combinations of category, checkpoint, technique and threshold; "
        f"{combinations - waiting} already complete, {waiting} to evaluate in {len(todo)} passes, "
        f"about {size / 1e6:.0f} MB of results" + (f"; {len(failed)} cannot be evaluated" if failed else "")
    )


def _evaluate(item: Item, ckpt: Checkpoint, kinds: list[str]) -> None:
    """One pass: results of its techniques at all thresholds."""
    nominal: dict[Technique, NominalThresholds | None] = dict.fromkeys(item.techniques)
    if set(kinds) & set(NOMINAL_KINDS):
        missing = []
        for technique in item.techniques:
            try:
                nominal[technique] = load_thresholds(item.config, ckpt, item.preprocessor, technique)
            except UserError:  # there are none, or they are of other weights or settings
                missing.append(technique)
        if missing:
            compute_thresholds(item.config, ckpt, item.preprocessor, missing)
        nominal |= {one: load_thresholds(item.config, ckpt, item.preprocessor, one) for one in missing}
    if MANUAL in kinds:
        manual = threshold_file.manual(item.config)
        for technique, own in nominal.items():
            nominal[technique] = replace(own, by_kind=own.by_kind | manual.by_kind) if own else manual
    evaluate_pass(ckpt, item.preprocessor, item.test_set, nominal, kinds)


def current_results(results: Path, config: Config, failed: dict[Key, str]) -> tuple[list[Found], dict[Key, str]]:
    """Up-to-date results on disk, sorted, and for each other one the reason. Keys in `failed` are in neither."""
    by_name = {technique.name: technique for technique in TECHNIQUES}
    found, stale = [], {}
    listed: dict[str, list[TestSample]] = {}
    prepared: dict[tuple, Prepared] = {}
    for folder in sorted(results.glob("*/checkpoint_*/*")):
        name, epoch = composed(folder.parent.parent.name), folder.parent.name.removeprefix("checkpoint_")
        key = (name, epoch, folder.name)
        if folder.name not in by_name or failed.keys() & {key, (name, "", ""), (name, epoch, "")}:
            continue
        record = read_record(folder)
        if record is None:
            if any(folder.glob("*/metrics.json")):
                stale[key] = "of an earlier version of this program"
            continue
        own, technique = with_category(config, name), by_name[folder.name]
        try:
            path = weights_file(record, epoch)
            if not path.is_file():
                stale[key] = f"its checkpoint {path} no longer exists"
                continue
            if name not in listed:
                listed[name] = open_category(own).test()
            preprocessor, _ = _prepare(prepared, own, checkpoint.load_metadata(path), [technique])
            if changed := differences(record, path, preprocessor, technique, listed[name]):
                stale[key] = "; ".join(changed)
                continue
        except (UserError, OSError) as error:
            stale[key] = format_error(error)
            continue
        if kinds := summary.read_kinds(folder, record):
            found.append(Found(key, folder, record, kinds))
    order = list(by_name)
    found.sort(key=lambda one: (one.key[0], not one.key[1].isdecimal(), one.key[1].zfill(9), order.index(one.key[2])))
    return found, stale
