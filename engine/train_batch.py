"""Training of every category of a dataset, one after the other, each in a process of its own."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

import runtime
import stopping
from config import Config, edit_config, settings_text
from engine.batch import of_category
from engine.train import find_files, split
from errors import UserError, told
from folders import chosen_categories
from inference import checkpoint
from inference.checkpoint import epoch_path
from stopping import Stopped
from training.state import changed_pictures, changed_settings, provenance_of, training_provenance

MAIN = Path(__file__).resolve().parent.parent / "main.py"
STATUSES = {stopping.INTERRUPTED: signal.SIGINT, stopping.TOLD_TO_STOP: signal.SIGTERM}  # of one told to stop
TEMPLATE = "train_all.yaml"  # in a run's folder: what it was started from
TIMES_HEAD = f"{'category':24}{'seconds':>10}{'h:m:s':>12}{'epochs':>8}  device\n"


def run(
    config: Config, settings: Path, categories: Sequence[str] | None, updates_settings: bool, is_forced: bool
) -> int:
    """Train what is not complete and say how long it took; the number of failures.

    Args:
        settings: file that `config` comes from. categories: names; None: all of the dataset.
        updates_settings: set data.category in that file. is_forced: train anew what is complete.
    """
    names = chosen_categories(Path(config.data.data_path), categories)
    times, failed, skipped = Path(config.data.checkpoint_path) / "training_times.txt", {}, []
    device = runtime.select_device(config.train.device)
    for name in (bar := tqdm(names, "categories", unit="category")):
        bar.set_postfix_str(name)
        own = of_category(config, name)
        is_anew = is_forced or own.train.resume == "never"
        try:
            if not is_anew and _is_complete(own):
                skipped.append(name)
                continue
            runtime.write_text(own.run_folder / TEMPLATE, settings_text(settings, own))
            if updates_settings:
                runtime.write_text(settings, edit_config(settings, {"data.category": name}))
            start, before = time.perf_counter(), 0 if is_anew else _epochs_done(own)
            error = _train(own.run_folder / TEMPLATE, is_anew)
            seconds, epochs = round(time.perf_counter() - start), _epochs_done(own) - before
        except Exception as problem:  # one category's failure is recorded and costs no other
            error = told(problem)
        if error is not None:
            failed[name] = error
            continue
        if epochs <= 0:  # main.py found nothing to do
            skipped.append(name)
            continue
        kept = times.read_text(encoding="utf-8") if times.is_file() else TIMES_HEAD
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        runtime.write_text(times, kept + f"{name:24}{seconds:>10}{clock:>12}{epochs:>8}  {device}\n")
    done = [name for name in names if name not in failed and name not in skipped]
    print(f"trained: {', '.join(done) or '-'}" + (f"; complete already: {', '.join(skipped)}" if skipped else ""))
    for name, error in failed.items():
        print(f"failed: {name}: {error}")
    print(f"training times: {times}")
    return len(failed)


def _is_complete(config: Config) -> bool:
    """Whether all epochs are done; UserError where they were done with settings that give other weights."""
    run, last = config.run_folder, epoch_path(config.run_folder, config.train.epochs)
    if not last.is_file():
        return False
    content = checkpoint.read(last, only_facts=True)
    nominal, validation, textures = find_files(config)
    now = training_provenance(config, nominal + validation, textures)
    if changed := changed_settings(provenance_of(last, content), now):
        raise UserError(
            f"{run}: complete, but trained with {'; '.join(changed)}; set it back, or another data.run_name, or --force"
        )
    pictures = split(config, nominal, validation, textures, content).digests()
    if changed := changed_pictures(content.get("pictures"), pictures):
        print(f"{config.data.category}: complete, but pictures of train/good have changed since: {changed}")
    return True


def _epochs_done(config: Config) -> int:
    """Epochs in the run's log, 0 where there is none."""
    log = config.run_folder / "train_log.csv"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[1:] if log.is_file() else []
    epoch = lines[-1].split(",")[0] if lines else "0"
    return int(epoch) if epoch.isdecimal() else 0


def _train(settings: Path, is_anew: bool) -> str | None:
    """Train in a process of its own; what went wrong, or None. Its messages are passed on."""
    command = [sys.executable, str(MAIN), "--train", "True", "--config", str(settings)]
    if is_anew:
        command += ["--set", "train.resume=never"]
    tail = b""
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        stopped = None
        while True:
            try:
                chunk = process.stderr.read1(65536)
            except Stopped as error:  # it saves its state and ends
                stopped = error
                stopping.ask(process)
                continue
            if not chunk:
                break
            sys.stderr.buffer.write(chunk)
            sys.stderr.buffer.flush()
            tail = (tail + chunk)[-4000:]
    if stopped or process.returncode in STATUSES:
        number = stopped.number if stopped else STATUSES[process.returncode]
        raise Stopped(number, "stopped; what is trained stays, and the same command goes on from there")
    if process.returncode == 0:
        return None
    lines = [line.strip() for line in tail.decode("utf-8", "replace").splitlines() if line.strip() and "|" not in line]
    first = next((i for i, line in enumerate(lines) if line.startswith("error: ")), len(lines) - 1)
    if process.returncode < 0:
        return f"its process was ended by signal {-process.returncode}, often for want of memory"
    return " ".join(lines[first:]).removeprefix("error: ") or f"exit status {process.returncode}"
