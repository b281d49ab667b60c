"""Evaluation of categories x checkpoints x techniques x thresholds: what to do, what is complete, and the passes."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from config import Config, with_category
from data import cache
from data.folders import DatasetNotes, category_folder, chosen_categories
from data.mvtec import TestSample, check_bit_depth, list_test, with_masks_read
from engine import ray_jobs
from engine.detection import evaluate_pass, manual_thresholds, provenance_of, result_folder
from engine.ray_jobs import Options
from engine.threshold import compute_thresholds, load_thresholds, nominal_images
from evaluation.thresholds import KINDS, MANUAL, NOMINAL_KINDS
from inference import checkpoint
from inference.checkpoint import Checkpoint
from inference.preprocessing import MASKINGS, TECHNIQUES, Preprocessor, Technique
from registration.register import NoReferencePartError
from reporting import summary
from reporting.result import CURVES, Record, read_record
from reporting.summary import Found
from runtime import provenance
from runtime.errors import UserError, format_error
from runtime.files import remove_leftovers, run_lock

Key = tuple[str, str, str]  # category, checkpoint, technique; empty where a failure concerns all


@dataclass
class Item:
    """Techniques of one checkpoint that share an input variant: one pass over the images."""

    config: Config
    path: Path
    epoch: int
    pictures: list[TestSample]
    warnings: list[str]
    preprocessor: Preprocessor
    techniques: list[Technique]


def run(
    config: Config,
    categories: Sequence[str] | None,
    checkpoints: Sequence[str] | None,
    maskings: Sequence[str] | None,
    registrations: Sequence[bool],
    kinds: Sequence[str],
    is_forced: bool,
    ray: Options | None = None,
) -> int:
    """Evaluate what is not complete, then write the summary of all that is there; the number of failures.

    Args:
        categories: names; None: all of the dataset. checkpoints: epochs or `last`; None: all kept ones.
        maskings: of MASKINGS; None: all, but without regions only `no`. registrations: without and with.
        kinds: types of thresholds. is_forced: evaluate again what is complete.
        ray: where and how to run all at once, a category and checkpoint a job; None: here, one after the other.

    Raises:
        UserError: what was asked for and is not there, before anything runs.
    """
    results = Path(config.data.results_path) / config.data.run_name
    kinds = [kind for kind in KINDS if kind in kinds]
    items, failed = _plan(config, categories, checkpoints, maskings, registrations)
    todo = items if is_forced else [item for item in items if not _is_complete(item, kinds)]
    _announce(items, todo, failed, len(kinds))

    if ray:
        failed |= _evaluate_on_ray(config, todo, kinds, ray)
    else:
        failed |= _evaluate_items(todo, kinds)
    remove_leftovers(results)
    there, stale = current_results(results, config, failed)
    planned = {(item.config.data.category, str(item.epoch), one.name) for item in items for one in item.techniques}
    planned |= {(category, "", "") for category, _, _ in planned}
    errors = summary.write_summary(results, there, failed, planned, has_nodes=ray is not None)
    summary.write_times(results / "inference_times.txt", there)
    summary.write_index(results, there)
    undrawn = summary.draw_batch(results, there)
    for key, error in [*failed.items(), *undrawn.items()]:
        print(f"failed: {', '.join(part for part in key if part)}: {error}")
    if stale:
        print(f"{len(stale)} results are out of date and left out of the summary")
        print_stale(stale)
    print(
        f"{sum(len(one.record.thresholds) for one in there)} combinations in the summary"
        + (f", {errors} failures" if errors else "")
    )
    print(f"results: {results / 'summary.csv'}")
    return len(failed) + len(undrawn)


def _evaluate_items(items: Sequence[Item], kinds: list[str]) -> dict[Key, str]:
    """Evaluate; what failed. One item's failure costs no other."""
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
    """The same on Ray; what failed."""
    data, jobs, failed = config.data, {}, {}
    for item in todo:
        jobs.setdefault((item.config.data.category, str(item.epoch)), []).append(item)
    labels = {f"{category}, checkpoint {name}": (category, name) for category, name in jobs}
    results = Path(data.results_path)
    results.mkdir(parents=True, exist_ok=True)
    folders = [Path(data.data_path), Path(data.checkpoint_path), results]
    with run_lock(results / f".batch_{data.run_name}"), ray_jobs.connected(options) as ray:
        arguments = {label: (jobs[key], kinds) for label, key in labels.items()}
        for label, outcome in ray.run(_evaluate_items, arguments, folders):
            if outcome.error is None:
                failed |= outcome.value
                continue
            for technique in (one for item in jobs[labels[label]] for one in item.techniques):
                failed[(*labels[label], technique.name)] = outcome.error
    return failed


def _plan(
    config: Config,
    categories: Sequence[str] | None,
    checkpoints: Sequence[str] | None,
    maskings: Sequence[str] | None,
    registrations: Sequence[bool],
) -> tuple[list[Item], dict[Key, str]]:
    """All passes, and what cannot be evaluated; UserError for what the user asked for and is not there."""
    items, failed = [], {}
    for name in chosen_categories(Path(config.data.data_path), categories):
        own = with_category(config, name)
        epochs = checkpoint.saved_epochs(own.run_folder)
        if not epochs and not (own.run_folder / "last.pt").is_file():
            others = sorted(path.name for path in own.run_folder.parent.glob("*/") if checkpoint.saved_epochs(path))
            mend = f"trained are {', '.join(others)} (data.run_name)" if others else "run train_all.py"
            failed[name, "", ""] = f"never trained: no checkpoint in {own.run_folder}; {mend}"
            continue
        chosen = checkpoints or epochs or ["last"]
        paths = [checkpoint.find(own, "last" if epoch == "last" else int(epoch)) for epoch in chosen]
        techniques = _techniques(own, maskings, registrations)
        kept_in = cache.cache_folder(own.data.checkpoint_path) if len(paths) > 1 else None
        try:
            (own, embedded), notes = _resolve_white_level(own, paths), DatasetNotes()
            pictures, warnings = with_masks_read(list_test(Path(own.data.data_path) / name, notes))
            warnings += check_bit_depth(pictures, own.data.white_level)
            for line in (*notes.lines(), *warnings):
                print(f"{name}: {line}")
            # last.pt first: a kept checkpoint of the same epoch takes its place
            by_epoch = {
                checkpoint.epoch_of(path): path for path in sorted(paths, key=lambda path: path.name != "last.pt")
            }
        except (UserError, OSError) as error:
            failed[name, "", ""] = format_error(error)
            continue
        preprocessor, techniques = _prepared(own, techniques, kept_in, embedded, by_epoch, failed)
        preprocessor.check(pictures, techniques)
        for epoch, path in sorted(by_epoch.items()):
            for variant in dict.fromkeys(technique.variant for technique in techniques):
                group = [technique for technique in techniques if technique.variant == variant]
                items.append(Item(own, path, epoch, pictures, warnings, preprocessor, group))
    return items, failed


def _prepared(
    config: Config,
    techniques: list[Technique],
    kept_in: Path | None,
    embedded: dict[str, dict[str, Any]],
    epochs: Iterable[int],
    failed: dict[Key, str],
) -> tuple[Preprocessor, list[Technique]]:
    """A category's preprocessor, and the techniques that are left: without a reference part none is registered."""
    try:
        return Preprocessor(config, techniques, kept_in, embedded), techniques
    except NoReferencePartError as error:
        text = format_error(error)
        for one in techniques:
            if one.registered:
                failed |= {(config.data.category, str(epoch), one.name): text for epoch in epochs}
    left = [one for one in techniques if not one.registered]
    return Preprocessor(config, left, kept_in, embedded), left


def _resolve_white_level(config: Config, paths: Sequence[Path]) -> tuple[Config, dict[str, dict[str, Any]]]:
    """The settings with the white level that the run's first sound checkpoint was trained with, and the images that it
    brings along for masking and registration."""
    for path in paths:
        facts = None
        with suppress(UserError):  # a damaged one will fail by itself
            facts = checkpoint.load_facts(path)
        if facts:
            return checkpoint.resolve_white_level(config, facts), facts.assets_for(config)
    return config, {}


def _techniques(config: Config, maskings: Sequence[str] | None, registrations: Sequence[bool]) -> list[Technique]:
    if maskings is None:
        maskings = MASKINGS
        if config.data.category not in config.masking.regions and not config.metrics.masking:
            maskings = ("no",)
            print(f"{config.data.category}: masking left out, masking.regions names no region for it")
    return [one for one in TECHNIQUES if one.masking in maskings and one.registered in registrations]


def _is_complete(item: Item, kinds: list[str]) -> bool:
    """Whether results are there for all techniques and thresholds, made from these weights, pictures and settings."""
    for technique in item.techniques:
        folder = result_folder(item.config, str(item.epoch), technique)
        record = read_record(folder)
        if not record:
            return False
        if record.content.get("settings", {}).get("metrics") != item.config.metrics.model_dump(mode="json"):
            return False
        if not set(kinds) <= set(summary.read_kinds(folder, record)) or not (folder / CURVES).is_file():
            return False
        try:
            if differences(item.config, record, item.path, item.preprocessor, technique, item.pictures):
                return False
        except (UserError, OSError):
            return False  # its pass will fail and say why
    return True


def differences(
    config: Config,
    record: Record,
    path: Path,
    preprocessor: Preprocessor,
    technique: Technique,
    pictures: Sequence[TestSample],
) -> list[str]:
    """Why results are out of date, in words; empty where they are valid. Reads only checkpoints that have changed."""
    is_same = record.content.get("checkpoint_file") == path.as_posix()
    is_same = is_same and record.content.get("checkpoint_state") == list(provenance.file_state(path))
    weights = record.made_from.weights if is_same else checkpoint.load(config, path.as_posix()).fingerprint
    nominal = None
    if record.made_from.nominal:
        nominal = provenance.content([one.path for one in nominal_images(config, checkpoint.load_facts(path))[0]])
    now = provenance_of(config, weights, preprocessor, technique, pictures, nominal, record.thresholds)
    return record.made_from.differences(now)


def _announce(items: list[Item], todo: list[Item], failed: dict, count: int) -> None:
    """How much there is to do, and about how much storage it takes."""
    combinations = count * sum(len(item.techniques) for item in items)
    waiting = count * sum(len(item.techniques) for item in todo)
    size = 0.0
    for item in todo:
        wanted = item.config.metrics.visualisation
        pictures = {"all": len(item.pictures), "errors": len(item.pictures) // 5, "none": 0}.get(wanted, wanted)
        height, width = (side * -(-192 // side) for side in item.config.data.img_size)  # of a tile in a panel
        size += len(item.techniques) * (0.3e6 + min(pictures, len(item.pictures)) * 3 * height * width)
    print(
        f"{combinations} combinations of category, checkpoint, technique and threshold; "
        f"{combinations - waiting} complete already, {waiting} to do in {len(todo)} passes, "
        f"about {size / 1e6:.0f} MB of results" + (f"; {len(failed)} cannot be evaluated" if failed else "")
    )


def _evaluate(item: Item, ckpt: Checkpoint, kinds: list[str]) -> None:
    """One pass: results of its techniques at all thresholds."""
    nominal = dict.fromkeys(item.techniques)
    if set(kinds) & set(NOMINAL_KINDS):
        missing = []
        for technique in item.techniques:
            try:
                nominal[technique] = load_thresholds(item.config, ckpt, item.preprocessor, technique)
            except UserError:  # none yet, or of other weights or settings
                missing.append(technique)
        if missing:
            compute_thresholds(item.config, ckpt, item.preprocessor, missing)
        for technique in missing:
            nominal[technique] = load_thresholds(item.config, ckpt, item.preprocessor, technique)
    if MANUAL in kinds:
        manual = manual_thresholds(item.config)
        for technique, own in nominal.items():
            both = {scope: (own[scope] if own else {}) | manual[scope] for scope in ("image", "pixel")}
            nominal[technique] = (own or manual) | both
    evaluate_pass(item.config, ckpt, item.preprocessor, item.pictures, nominal, kinds, item.warnings)


def current_results(results: Path, config: Config, failed: dict[Key, str]) -> tuple[list[Found], dict[Key, str]]:
    """Results on disk that are valid now, in a natural order, and why the others are not; none of failed items."""
    by_name = {technique.name: technique for technique in TECHNIQUES}
    found, stale = [], {}
    listed: dict[str, list[TestSample]] = {}
    prepared: dict[tuple, Preprocessor] = {}
    for folder in sorted(results.glob("*/checkpoint_*/*")):
        name, epoch = folder.parent.parent.name, folder.parent.name.removeprefix("checkpoint_")
        key = (name, epoch, folder.name)
        if folder.name not in by_name or failed.keys() & {key, (name, "", ""), (name, epoch, "")}:
            continue
        record = read_record(folder)
        if record is None:
            if any(folder.glob("*/metrics.json")):
                stale[key] = "of an earlier version of this program"
            continue
        own, technique = with_category(config, name), by_name[folder.name]
        path = Path(record.content.get("checkpoint_file", ""))
        try:
            if not path.is_file():
                stale[key] = f"its checkpoint {path} is gone"
                continue
            if name not in listed:
                listed[name] = list_test(category_folder(Path(own.data.data_path), name))
            facts = checkpoint.load_facts(path)
            own = checkpoint.resolve_white_level(own, facts)
            embedded = facts.assets_for(own)
            digests = tuple(sorted((what, asset["digest"]) for what, asset in embedded.items()))
            key_of = (name, technique, own.data.white_level, digests)
            if key_of not in prepared:
                prepared[key_of] = Preprocessor(own, [technique], embedded=embedded)
            if changed := differences(own, record, path, prepared[key_of], technique, listed[name]):
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


def print_stale(stale: dict[Key, str]) -> None:
    """Why results are out of date, and how to renew them."""
    reasons: dict[str, list[Key]] = {}
    for key, reason in stale.items():
        reasons.setdefault(reason, []).append(key)
    for reason, keys in reasons.items():
        print(f"  {', '.join(keys[0])}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "") + f": {reason}")
    names = " ".join(dict.fromkeys(key[0] for key in stale))
    print(f"to renew them: python evaluate_checkpoints.py --categories {names} (with the same --config and --set)")
