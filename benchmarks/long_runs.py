"""Whether memory, open files, threads and time per unit stay flat in long runs: training, prediction, the watch."""

import itertools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from benchmarks import common

TINY = ["model.base_width=4", "model.base_channels=4", "data.img_size=32", "data.num_workers=0", "train.device=cpu"]
TINY += ["metrics.visualisation=none", "train.visualize=false", "train.precision=fp32"]
SIZE = 40  # pixels a side of the images
PAUSE = 0.5  # seconds between two samples
AHEAD = 100  # images that wait in the watched folder


class Sample(NamedTuple):
    """State of the process. units: epochs or images that are done. memory: MB that it does not share with files."""

    units: int
    seconds: float
    memory: float
    descriptors: int
    threads: int


class Rows:
    """Counts the rows of a CSV file that grows."""

    def __init__(self, path: Path):
        self._path, self._position, self.count = path, 0, -1  # the head

    def update(self) -> int:
        """Count what was appended since the last call; the number of all rows."""
        if self._path.is_file():
            with self._path.open("rb") as stream:
                stream.seek(self._position)
                new = stream.read()
            self._position += len(new)
            self.count += new.count(b"\n")
        return max(self.count, 0)


def sample_of(process: int, units: int) -> Sample:
    """The state of a process, from /proc."""
    folder = Path(f"/proc/{process}")
    lines = (folder / "smaps_rollup").read_text().splitlines()
    held = sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon", "Pss_Shmem")))
    threads, files = (len(os.listdir(folder / name)) for name in ("task", "fd"))
    return Sample(units, time.perf_counter(), held / 1000, files, threads)


def observe(
    command: list[str], rows: Rows, log: Path, until: int | None = None, step: Callable[[], None] = lambda: None
) -> list[Sample]:
    """Samples of a process while it runs.

    Args:
        until: number of rows at which it is sent SIGTERM; None where it ends by itself. step: called for each sample.
    """
    samples = []
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        while process.poll() is None:
            step()
            units = rows.update()
            try:
                samples.append(sample_of(process.pid, units))
            except (FileNotFoundError, ProcessLookupError):
                break
            if until is not None and units >= until:
                process.send_signal(signal.SIGTERM)
                until = None
            time.sleep(PAUSE)
    if process.wait():
        raise RuntimeError(log.read_text()[-2000:])
    return samples


def report(unit: str, runs: list[list[Sample]]) -> None:
    """Print a line for each quantity, fitted over the units of all runs without the first tenth of each."""
    kept = [[one for one in run if one.units >= 0.9 * run[0].units + 0.1 * run[-1].units] for run in runs]
    units = np.array([one.units for run in kept for one in run], float)
    quantities = {
        name: [getattr(one, field) for run in kept for one in run]
        for name, field in (("memory, MB", "memory"), ("descriptors", "descriptors"), ("threads", "threads"))
    }
    middles, times = [], []
    for run in kept:
        edges = np.unique(np.linspace(0, len(run) - 1, 21).astype(int))
        for before, after in itertools.pairwise(edges):
            if done := run[after].units - run[before].units:
                middles.append((run[after].units + run[before].units) / 2)
                times.append(1e3 * (run[after].seconds - run[before].seconds) / done)
    print(f"{units[-1]:,.0f} {unit}s in {len(runs)} processes, {sum(map(len, kept))} samples")
    for name, positions, values in (
        *((name, units, values) for name, values in quantities.items()),
        (f"ms a {unit}", np.array(middles), times),
    ):
        slope, start = np.polyfit(positions, values, 1)
        rise = slope * (positions[-1] - positions[0])
        print(
            f"  {name:14} {start + slope * positions[0]:8.2f} at the start of the line, {rise:+8.2f} at its end",
            flush=True,
        )


def _workplace(folder: Path) -> list[str]:
    sets = [*common.make_dataset(folder, SIZE, 8, 4, 4, textures=4), *TINY, "train.batch_size=4", "data.val_split=0.25"]
    return [word for one in sets for word in ("--set", one)]


def _trained(folder: Path) -> list[str]:
    sets = _workplace(folder)
    subprocess.run(
        common.python(common.ROOT / "main.py", "--train", "--threshold", *sets, "--set", "train.epochs=2"),
        check=True,
        capture_output=True,
    )
    return [*sets, "--set", "train.epochs=2"]


def _image(rng: np.random.Generator) -> bytes:
    return cv2.imencode(".png", rng.integers(0, 256, (SIZE, SIZE), np.uint8))[1].tobytes()


def bench_training() -> None:
    """Epochs of a tiny training."""
    epochs = common.arguments(epochs=2000).epochs
    common.header("long training")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = [*_workplace(folder), "--set", f"train.epochs={epochs}", "--set", "train.save_every=100"]
        sets += ["--set", "train.save_from=1"]  # val_ap from the start: its first time takes memory that is kept
        rows = Rows(folder / "checkpoints/made_up/bench/train_log.csv")
        report("epoch", [observe(common.python(common.ROOT / "main.py", "--train", *sets), rows, folder / "log")])


def bench_predict() -> None:
    """Small images through --predict."""
    count = common.arguments(images=100_000).images
    common.header("many images through --predict")
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        sets = _trained(folder)
        (folder / "new").mkdir()
        for number in range(count):
            (folder / f"new/{number:06}.png").write_bytes(_image(rng))
        command = common.python(common.ROOT / "main.py", "--predict", folder / "new", "--output", folder / "out", *sets)
        report("image", [observe(command, Rows(folder / "out/predictions.csv"), folder / "log")])


def bench_watch() -> None:
    """Small images through --watch, which is restarted from time to time."""
    asked = common.arguments(images=50_000, restart=5_000)
    common.header("a long watch")
    with tempfile.TemporaryDirectory() as name:
        folder, rng, written = Path(name), np.random.default_rng(0), 0
        sets, new = _trained(folder), folder / "new"
        new.mkdir()
        rows, runs = Rows(folder / "out/predictions.csv"), []

        def write() -> None:
            """As many images as take the watch about two samples."""
            nonlocal written
            while written < min(max(rows.count, 0) + AHEAD, asked.images):
                (new / f".{written}").write_bytes(_image(rng))
                (new / f".{written}").rename(new / f"{written:06}.png")
                written += 1

        command = common.python(common.ROOT / "main.py", "--watch", new, "--output", folder / "out", *sets)
        for end in range(asked.restart, asked.images + 1, asked.restart):
            runs.append(observe(command, rows, folder / "log", end, write))
        report("image", runs)


if __name__ == "__main__":
    common.run({"training": bench_training, "predict": bench_predict, "watch": bench_watch})
