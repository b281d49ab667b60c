"""Training of every category of a dataset, one after the other, each in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO, NamedTuple

from filelock import FileLock
from tqdm import tqdm

from config import Config, with_category
from config_file import edit_config, settings_text
from data.layouts.registry import chosen_categories, folders_of
from engine import ray_jobs
from engine.ray_jobs import Options
from inference import checkpoint
from inference.checkpoint import epoch_path
from runtime import signals
from runtime.device import select_device
from runtime.errors import UserError, format_error
from runtime.files import atomic_write, run_lock, write_text
from runtime.signals import Interrupted
from training.data import changed_images, find_files, split, training_provenance
from training.state import changed_settings

MAIN = Path(__file__).resolve().parent.parent / "main.py"
PROGRESS_BAR = re.compile(r"\d+%\|.*\[\d+:\d\d<|\d+[a-z]* \[\d+:\d\d, ")  # as tqdm draws it
STATUSES = {  # exit status -> signal
    signals.Interrupted(number).status: number for number in (*signals.SIGNALS, signal.SIGTERM)
}
POLL_SECONDS = 0.5  # between two checks of a process
TEMPLATE = "train_all.yaml"  # in a run's folder: the settings that it was started with
TIMES_HEAD = f"{'category':24}{'seconds':>10}{'h:m:s':>12}{'epochs':>8}  device\n"


class Trained(NamedTuple):
    """The result of a training. error: in one line, None for none. epochs: number of epochs trained."""

    error: str | None
    seconds: int
    epochs: int
    device: str


@dataclass(frozen=True)
class Selection:
    """What to train.

    Attributes:
        categories: names; None for all of the dataset.
        seeds: train each category with each of them, in runs of their own; None for the seed of the settings.
        is_forced: train complete ones anew. updates_settings: set data.category in the settings file.
    """

    categories: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    is_forced: bool = False
    updates_settings: bool = False


@dataclass
class Batch:
    """Trainings, and what became of them.

    Attributes:
        settings: file that they come from. jobs: label -> settings of a training.
        failed: label -> error, in one line. skipped: labels of those that are already complete.
    """

    settings: Path
    selection: Selection
    jobs: dict[str, Config]
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def is_anew(self, own: Config) -> bool:
        """Whether a training starts from the first epoch, whatever its folder holds."""
        return self.selection.is_forced or own.train.resume == "never"


def run(config: Config, settings: Path, selection: Selection, ray: Options | None = None) -> int:
    """Train what is not complete and write how long it took; the number of failures.

    Args:
        settings: file that `config` comes from.
        ray: where and how to run all at once; None: here, one after the other.
    """
    names, seeds = chosen_categories(config, selection.categories), selection.seeds
    for seed in seeds or ():
        if not 0 <= seed < 2**32:
            raise UserError(f"--seeds {seed}", "out of range", f"set numbers from 0 to {2**32 - 1}")
    if not ray:
        select_device(config.train.device)  # a wrong device is reported once, not by each training
    jobs = {}
    for name in names:
        if not seeds:
            jobs[name] = with_category(config, name)
        for seed in seeds or ():
            jobs[f"{name}, seed {seed}"] = with_category(with_seed(config, seed), name)
    batch = Batch(settings, selection, jobs)
    times = Path(config.data.checkpoint_path) / "training_times.txt"
    if times.is_dir():
        raise UserError(times, "is a folder", "rename it")
    for label, (trained, node) in _run_on_ray(batch, config, ray) if ray else _run_here(batch):
        if trained.error is not None:
            batch.failed[label] = trained.error
        elif trained.epochs <= 0:  # main.py found it complete
            batch.skipped.append(label)
        else:
            clock = f"{trained.seconds // 3600}:{trained.seconds // 60 % 60:02}:{trained.seconds % 60:02}"
            line = f"{label:24}{trained.seconds:>10}{clock:>12}{trained.epochs:>8}  {trained.device:8}  {node}"
            _append(times, line.rstrip() + "\n")
    done = [label for label in jobs if label not in batch.failed and label not in batch.skipped]
    complete = f"; already complete: {', '.join(batch.skipped)}" if batch.skipped else ""
    print(f"trained: {', '.join(done) or '-'}{complete}")
    for label, error in batch.failed.items():
        print(f"failed: {label}: {error}")
    print(f"training times: {times}")
    return len(batch.failed)


def _append(path: Path, line: str) -> None:
    """Add a line to the table of times, under a lock: in an array job each category is a batch of its own."""
    with FileLock(path.with_name(f".{path.name}.lock")):
        kept = path.read_bytes() if path.is_file() else TIMES_HEAD.encode()  # people may have written anything into it
        with atomic_write(path) as beside:
            beside.write_bytes(kept + line.encode())


def with_seed(config: Config, seed: int) -> Config:
    """The same settings for a run of another seed."""
    return config.with_values({"data.run_name": f"{config.data.run_name}_seed{seed}", "train.seed": seed})


def _prepare(batch: Batch, label: str) -> bool:
    """Whether a training has to run; if so its settings are written to its folder."""
    own = batch.jobs[label]
    try:
        if not batch.is_anew(own) and _is_complete(own):
            batch.skipped.append(label)
            return False
        write_text(own.run_folder / TEMPLATE, settings_text(batch.settings, own))
    except Exception as problem:  # the failure of one category does not stop the others
        batch.failed[label] = format_error(problem)
    return label not in batch.failed


def _run_here(batch: Batch) -> Iterator[tuple[str, tuple[Trained, str]]]:
    for label in (bar := tqdm(batch.jobs, "categories", unit="category")):
        bar.set_postfix_str(label)
        if not _prepare(batch, label):
            continue
        own, settings = batch.jobs[label], batch.settings
        try:
            if batch.selection.updates_settings:
                write_text(settings, edit_config(settings, {"data.category": own.data.category}))
            yield label, (train_job(own, batch.is_anew(own)), "")
        except Exception as problem:
            batch.failed[label] = format_error(problem)


def _run_on_ray(batch: Batch, config: Config, options: Options) -> Iterator[tuple[str, tuple[Trained, str]]]:
    data = config.data
    with (
        run_lock(Path(data.checkpoint_path) / f".batch_{data.run_name}"),
        ray_jobs.connected(options) as ray,
    ):
        left = {
            label: (own, batch.is_anew(own), _epochs_done(own))
            for label, own in batch.jobs.items()
            if _prepare(batch, label)
        }
        folders = [*folders_of(config), Path(data.checkpoint_path), Path(data.anomaly_source_path)]
        for label, outcome in ray.run(_train_on_ray, left, folders):
            if outcome.error is not None:
                batch.failed[label] = outcome.error
            else:
                yield label, (outcome.value, outcome.node)


def _train_on_ray(own: Config, is_anew: bool, before: int) -> Trained:
    """before: epochs done when the batch began; by now a job that runs again has done more."""
    trained = train_job(own, is_anew, dies_with_parent=True)
    if trained.error is not None:
        raise UserError.from_text(trained.error)
    return trained._replace(epochs=_epochs_done(own) - (0 if is_anew else before))


def train_job(own: Config, is_anew: bool, dies_with_parent: bool = False) -> Trained:
    """Train in a process of its own, with the settings that `_prepare` has written.

    dies_with_parent: for Ray, whose processes must end with their node.
    """
    template, last = own.run_folder / TEMPLATE, own.run_folder / "last.pt"
    # A job that runs again because its node has died resumes.
    resumes = last.is_file() and last.stat().st_mtime_ns > template.stat().st_mtime_ns
    resume = None if not is_anew else "auto" if resumes else "never"
    start, before = time.perf_counter(), 0 if resume == "never" else _epochs_done(own)
    error = _train(template, resume, dies_with_parent)
    seconds, epochs = round(time.perf_counter() - start), _epochs_done(own) - before
    return Trained(error, seconds, epochs, str(select_device(own.train.device)))


def _is_complete(config: Config) -> bool:
    """Whether all epochs are done; UserError where the weights are of other settings."""
    run, last = config.run_folder, epoch_path(config.run_folder, config.train.epochs)
    if not last.is_file():
        return False
    known = checkpoint.load_metadata(last)
    found = find_files(config)
    now = training_provenance(config, found.nominal + found.validation, found.textures)
    if not known.made_from or not known.images:
        fix = "set another data.run_name, or give --force"
        raise UserError(last, "does not say what it was trained with, or of another version of this program", fix)
    if changed := changed_settings(known.made_from, now):
        raise UserError(
            run,
            f"complete, but trained with {', '.join(changed)}",
            "set it back, set another data.run_name, or give --force",
        )
    if differences := changed_images(known.images, split(config, found, known.images).digests()):
        print(f"{config.data.category}: complete, but images of train/good have changed since: {differences}")
    return True


def _epochs_done(config: Config) -> int:
    """Epochs in the run's log, 0 where there is none."""
    log = config.run_folder / "train_log.csv"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[1:] if log.is_file() else []
    epoch = lines[-1].split(",")[0] if lines else "0"
    return int(epoch) if re.fullmatch(r"\d{1,9}", epoch) else 0


def _train(settings: Path, resume: str | None, dies_with_parent: bool) -> str | None:
    """Train in a process of its own; its error message, or None. Its standard error is passed on.

    resume: replaces train.resume of the settings; None to keep it.
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
                process.wait(POLL_SECONDS)  # a short wait: Ray cancels a task between calls only
            except subprocess.TimeoutExpired:
                pass
            except KeyboardInterrupt as error:  # on Ray a plain one
                stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
                signals.ask(process)  # it saves its state and ends
        passing.join()
    if stopped or process.returncode in STATUSES:
        number = stopped.number if stopped else STATUSES[process.returncode]
        how = "the same command without --force and train.resume=never" if resume else "the same command"
        raise Interrupted(number, f"interrupted; the finished epochs are saved, and {how} resumes")
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return f"its process was killed by signal {-process.returncode}, often for lack of memory"
    return _message_in(tail.decode("utf-8", "replace")) or f"exit status {process.returncode}"


def _message_in(output: str) -> str:
    """The error message in the standard error of a program, without progress bars; else its last line."""
    lines = [line.strip() for line in re.split(r"[\r\n]", output)]
    lines = [line for line in lines if line and not PROGRESS_BAR.search(line)]
    first = next((i for i, line in enumerate(lines) if line.startswith("error: ")), len(lines) - 1)
    return " ".join(lines[first:]).removeprefix("error: ") if lines else ""


def _pass_on(stream: IO[bytes], tail: bytearray) -> None:
    """Pass on the standard error of a process; the end of it is kept in `tail`."""
    while chunk := os.read(stream.fileno(), 65536):
        sys.stderr.buffer.write(chunk)
        sys.stderr.buffer.flush()
        tail += chunk
        del tail[:-4000]
