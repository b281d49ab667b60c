"""Training of every category of a dataset, one after the other, each in a process of its own."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import BinaryIO, NamedTuple

from filelock import FileLock
from tqdm import tqdm

from config import Config, edit_config, settings_text, with_category
from data.folders import chosen_categories
from engine import ray_jobs
from engine.ray_jobs import Options
from inference import checkpoint
from inference.checkpoint import TrainingImages, epoch_path
from runtime import signals
from runtime.device import select_device
from runtime.errors import UserError, format_error
from runtime.files import run_lock, write_text
from runtime.signals import Interrupted
from training.data import find_files, split
from training.state import changed_images, changed_settings, provenance_of, training_provenance

MAIN = Path(__file__).resolve().parent.parent / "main.py"
STATUSES = {signals.INTERRUPTED: signal.SIGINT, signals.TERMINATED: signal.SIGTERM}  # of one told to stop
POLL_SECONDS = 0.5  # seconds between two looks at a process
TEMPLATE = "train_all.yaml"  # in a run's folder: what it was started from
TIMES_HEAD = f"{'category':24}{'seconds':>10}{'h:m:s':>12}{'epochs':>8}  device\n"


class Trained(NamedTuple):
    """What came of a training. error: in a line, None where there was none."""

    error: str | None
    seconds: int
    epochs: int
    device: str


def run(
    config: Config,
    settings: Path,
    categories: Sequence[str] | None,
    updates_settings: bool,
    is_forced: bool,
    seeds: Sequence[int] | None = None,
    ray: Options | None = None,
) -> int:
    """Train what is not complete and say how long it took; the number of failures.

    Args:
        settings: file that `config` comes from. categories: names; None: all of the dataset.
        updates_settings: set data.category in that file. is_forced: train anew what is complete.
        seeds: train each category with each of them, in runs of their own; None: as the settings say.
        ray: where and how to run all at once; None: here, one after the other.
    """
    names = chosen_categories(Path(config.data.data_path), categories)
    for seed in seeds or ():
        if not 0 <= seed < 2**32:
            raise UserError(f"--seeds {seed}", "out of range", f"set numbers from 0 to {2**32 - 1}")
    if not ray:
        select_device(config.train.device)  # a mistake there is told once
    jobs = {}
    for name in names:
        for seed in seeds or [None]:
            label = name if seed is None else f"{name}, seed {seed}"
            jobs[label] = with_category(config if seed is None else with_seed(config, seed), name)
    failed: dict[str, str] = {}
    skipped: list[str] = []
    times = Path(config.data.checkpoint_path) / "training_times.txt"
    run_jobs = _run_here(jobs, settings, updates_settings, is_forced, failed, skipped)
    if ray:
        run_jobs = _run_on_ray(config, jobs, settings, is_forced, failed, skipped, ray)
    for label, (trained, node) in run_jobs:
        if trained.error is not None:
            failed[label] = trained.error
        elif trained.epochs <= 0:  # main.py found nothing to do
            skipped.append(label)
        else:
            clock = f"{trained.seconds // 3600}:{trained.seconds // 60 % 60:02}:{trained.seconds % 60:02}"
            line = f"{label:24}{trained.seconds:>10}{clock:>12}{trained.epochs:>8}  {trained.device:8}  {node}"
            _append(times, line.rstrip() + "\n")
    done = [label for label in jobs if label not in failed and label not in skipped]
    print(f"trained: {', '.join(done) or '-'}" + (f"; complete already: {', '.join(skipped)}" if skipped else ""))
    for label, error in failed.items():
        print(f"failed: {label}: {error}")
    print(f"training times: {times}")
    return len(failed)


def _append(path: Path, line: str) -> None:
    """To the table of times, which other batches may add to as well: an array job has one for each category."""
    with FileLock(path.with_name(f".{path.name}.lock")):
        kept = path.read_text(encoding="utf-8") if path.is_file() else TIMES_HEAD
        write_text(path, kept + line)


def with_seed(config: Config, seed: int) -> Config:
    """The same settings for a run of another seed."""
    return config.with_values({"data.run_name": f"{config.data.run_name}_seed{seed}", "train.seed": seed})


def _prepare(
    label: str, own: Config, settings: Path, is_forced: bool, failed: dict[str, str], skipped: list[str]
) -> bool:
    """Whether a training is to be done; then what it is started from is in its folder."""
    try:
        if not _is_anew(own, is_forced) and _is_complete(own):
            skipped.append(label)
            return False
        write_text(own.run_folder / TEMPLATE, settings_text(settings, own))
    except Exception as problem:  # one category's failure is recorded and costs no other
        failed[label] = format_error(problem)
    return label not in failed


def _is_anew(own: Config, is_forced: bool) -> bool:
    return is_forced or own.train.resume == "never"


def _run_here(
    jobs: dict[str, Config],
    settings: Path,
    updates_settings: bool,
    is_forced: bool,
    failed: dict[str, str],
    skipped: list[str],
) -> Iterator[tuple[str, tuple[Trained, str]]]:
    for label in (bar := tqdm(jobs, "categories", unit="category")):
        bar.set_postfix_str(label)
        own = jobs[label]
        if not _prepare(label, own, settings, is_forced, failed, skipped):
            continue
        try:
            if updates_settings:
                write_text(settings, edit_config(settings, {"data.category": own.data.category}))
            yield label, (train_job(own, _is_anew(own, is_forced)), "")
        except Exception as problem:
            failed[label] = format_error(problem)


def _run_on_ray(
    config: Config,
    jobs: dict[str, Config],
    settings: Path,
    is_forced: bool,
    failed: dict[str, str],
    skipped: list[str],
    options: Options,
) -> Iterator[tuple[str, tuple[Trained, str]]]:
    data = config.data
    with (
        run_lock(Path(data.checkpoint_path) / f".batch_{data.run_name}"),
        ray_jobs.connected(options) as ray,
    ):
        left = {
            label: (own, _is_anew(own, is_forced), _epochs_done(own))
            for label, own in jobs.items()
            if _prepare(label, own, settings, is_forced, failed, skipped)
        }
        folders = [Path(folder) for folder in (data.data_path, data.checkpoint_path, data.anomaly_source_path)]
        for label, outcome in ray.run(_train_on_ray, left, folders):
            if outcome.error is not None:
                failed[label] = outcome.error
            else:
                yield label, (outcome.value, outcome.node)


def _train_on_ray(own: Config, is_anew: bool, before: int) -> Trained:
    """before: epochs that were done when the batch began; of a job that runs again more are done by now."""
    trained = train_job(own, is_anew, dies_with_parent=True)
    if trained.error is not None:
        raise UserError.from_text(trained.error)
    return trained._replace(epochs=_epochs_done(own) - (0 if is_anew else before))


def train_job(own: Config, is_anew: bool, dies_with_parent: bool = False) -> Trained:
    """Train in a process of its own, from what `_prepare` has written. dies_with_parent: on Ray, whose processes end
    with their node."""
    template, last = own.run_folder / TEMPLATE, own.run_folder / "last.pt"
    # A job that runs again, as its node has died, goes on from what it has saved.
    goes_on = last.is_file() and last.stat().st_mtime_ns > template.stat().st_mtime_ns
    resume = None if not is_anew else "auto" if goes_on else "never"
    start, before = time.perf_counter(), 0 if resume == "never" else _epochs_done(own)
    error = _train(template, resume, dies_with_parent)
    seconds, epochs = round(time.perf_counter() - start), _epochs_done(own) - before
    return Trained(error, seconds, epochs, str(select_device(own.train.device)))


def _is_complete(config: Config) -> bool:
    """Whether all epochs are done; UserError where they were done with settings that give other weights."""
    run, last = config.run_folder, epoch_path(config.run_folder, config.train.epochs)
    if not last.is_file():
        return False
    content = checkpoint.read(last, only_facts=True)
    found = find_files(config)
    now = training_provenance(config, found.nominal + found.validation, found.textures)
    if changed := changed_settings(provenance_of(last, content), now):
        raise UserError(
            run,
            f"complete, but trained with {', '.join(changed)}",
            "set it back, set another data.run_name, or give --force",
        )
    images = TrainingImages(**content["images"])
    if changed := changed_images(images, split(config, found, images).digests()):
        print(f"{config.data.category}: complete, but pictures of train/good have changed since: {changed}")
    return True


def _epochs_done(config: Config) -> int:
    """Epochs in the run's log, 0 where there is none."""
    log = config.run_folder / "train_log.csv"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[1:] if log.is_file() else []
    epoch = lines[-1].split(",")[0] if lines else "0"
    return int(epoch) if epoch.isdecimal() else 0


def _train(settings: Path, resume: str | None, dies_with_parent: bool) -> str | None:
    """Train in a process of its own; what went wrong, or None. Its messages are passed on.

    resume: in place of the settings' train.resume, None for that.
    """
    command = [sys.executable, str(MAIN), "--train", "True", "--config", str(settings)]
    if resume:
        command += ["--set", f"train.resume={resume}"]
    preparing, tail = signals.dies_with_parent if dies_with_parent else None, bytearray()
    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=preparing) as process:
        passing = Thread(target=_pass_on, args=(process.stderr, tail), daemon=True)
        passing.start()
        stopped = None
        while process.poll() is None:
            try:
                process.wait(POLL_SECONDS)  # not for long: Ray's way to cancel a task interrupts no call
            except subprocess.TimeoutExpired:
                pass
            except KeyboardInterrupt as error:  # it saves its state and ends
                stopped = (
                    error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
                )  # that of a task on Ray
                signals.ask(process)
        passing.join()
    if stopped or process.returncode in STATUSES:
        number = stopped.number if stopped else STATUSES[process.returncode]
        how = "the same command without --force and train.resume=never" if resume else "the same command"
        raise Interrupted(number, f"stopped; what is trained stays, and {how} goes on from there")
    if process.returncode == 0:
        return None
    said = tail.decode("utf-8", "replace").splitlines()
    lines = [line.strip() for line in said if line.strip() and "|" not in line]
    first = next((i for i, line in enumerate(lines) if line.startswith("error: ")), len(lines) - 1)
    if process.returncode < 0:
        return f"its process was ended by signal {-process.returncode}, often for want of memory"
    return " ".join(lines[first:]).removeprefix("error: ") or f"exit status {process.returncode}"


def _pass_on(stream: BinaryIO, tail: bytearray) -> None:
    """What a process says, to this one's own standard error; the end of it is kept."""
    while chunk := stream.read1(65536):
        sys.stderr.buffer.write(chunk)
        sys.stderr.buffer.flush()
        tail += chunk
        del tail[:-4000]
