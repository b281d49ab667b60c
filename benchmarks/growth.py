"""How time and memory grow with sizes, and with categories and GPUs."""

import heapq
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import common
from engine import ray_jobs
from runtime.device import core_count

COLORS = {"training": "#0072B2", "detection": "#D55E00", "detection, registered": "#009E73"}


COLUMNS = ("varied", "image size", "batch size", "images", "mode", "seconds", "ms per image", "peak memory, MB")


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds that a process takes, and the most memory, in MB, that it and its children hold at once.

    Anonymous and shared memory: pages of mapped files are the system's to drop. Linux only.
    """
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            peak = max(peak, _held(process.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(errors.read())
    return seconds, peak / 1000


def _held(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon", "Pss_Shmem")))
    return own + sum(_held(int(child)) for child in children)


def grow(varied: str, size: int, batch: int, images: int, flags) -> list[dict]:
    """Rows for an epoch of training on `images` images, and for detection of as many, as they are and registered."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        settings = common.make_dataset(
            Path(folder), size, images, images // 2, images - images // 2, textures=12, spread=12
        )
        settings += [f"model.base_width={flags.width}", f"model.base_channels={flags.channels}"]
        settings += [f"data.img_size={size}", f"train.batch_size={batch}", f"data.test_batch_size={batch}"]
        settings += ["data.val_split=0", "metrics.visualisation=none", "metrics.threshold=false"]
        overrides = [word for setting in settings for word in ("--set", setting)]
        registered = ["--detection", "--set", "data.image_registration=true"]
        for mode, more in (
            ("training", ["--train", "--set", "train.epochs=1"]),
            ("detection", ["--detection"]),
            ("detection, registered", registered),
        ):
            seconds, peak = measured(common.python(common.ROOT / "main.py", *more, *overrides))
            values = (varied, size, batch, images, mode, seconds, 1e3 * seconds / images, peak)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            print("| " + " | ".join(f"{v:.1f}" if isinstance(v, float) else str(v) for v in values) + " |", flush=True)
    return rows


def draw(path: Path, rows: list[dict]) -> None:
    """Write the figure: time above, memory below, over each varied quantity."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.6), dpi=110, layout="constrained")
    axes = figure.subplots(2, 3)
    for column, varied in enumerate(("image size", "batch size", "images")):
        for line, (value, label) in enumerate((("seconds", "seconds"), ("peak memory, MB", "peak memory, MB"))):
            for mode, color in (
                ("training", "#0072B2"),
                ("detection", "#D55E00"),
                ("detection, registered", "#009E73"),
            ):
                own = [row for row in rows if row["varied"] == varied and row["mode"] == mode]
                axes[line, column].plot(
                    [r[varied] for r in own], [r[value] for r in own], "o-", color=color, label=mode
                )
            axes[line, column].set(xlabel=varied, ylabel=label, xscale="log")
            axes[line, column].set_xticks([r[varied] for r in own], [str(r[varied]) for r in own])
            axes[line, column].minorticks_off()
            if value == "seconds" and varied != "batch size":
                axes[line, column].set_yscale("log")
            else:
                axes[line, column].set_ylim(0, None)
            axes[line, column].grid(alpha=0.3)
    axes[0, 0].legend()
    figure.suptitle("Whole processes: an epoch of training; detection without panels, also of registered images")
    figure.savefig(path)


def bench_sizes() -> None:
    """How time and memory grow with image size, batch size and number of images.

    Measure every case, print the table, draw the figure.
    """
    flags = common.arguments(width=8, channels=4, most=10_000)
    common.header(f"growth, base_width {flags.width}, base_channels {flags.channels}")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    rows = []
    for size in (128, 256, 512):
        rows += grow("image size", size, 8, 200, flags)
    for batch in (2, 8, 32):
        rows += grow("batch size", 128, batch, 200, flags)
    for images in (100, 1000, 10_000):
        if images <= flags.most:
            rows += grow("images", 64, 8, images, flags)
    if flags.most >= 10_000:
        draw(Path(__file__).parent / "growth.png", rows)


IMAGES = (209, 224, 219, 280, 264, 391, 245, 220, 267, 320, 230, 60, 213, 247, 240)


EPOCHS = 700


def nap(seconds: float) -> None:
    """A job that only takes its time."""
    time.sleep(seconds)


def overhead(tasks: int, workers: int, seconds: float) -> float:
    """Seconds that a task costs besides its work, measured: sleeping tasks, in turn on each of some local workers."""
    options = ray_jobs.Options("local", gpus=0, cpus=core_count() / workers)
    with tempfile.TemporaryDirectory() as folder, ray_jobs.connected(options) as ray:
        list(ray.run(nap, {f"warm {i}": (0.0,) for i in range(workers)}, [Path(folder)]))
        start = time.perf_counter()
        list(ray.run(nap, {f"{i}": (seconds,) for i in range(tasks)}, [Path(folder)]))
        return (time.perf_counter() - start) * workers / tasks - seconds


def hours(categories: int, gpus: int, speed: float, start: float, decoding: float) -> tuple[float, float, float, float]:
    """Of a batch, each job on the GPU that is free first, the largest first: hours until the last one ends; shares of
    the GPUs' time that start and decoding take, and that they wait for the last job."""
    jobs = sorted((IMAGES[i % len(IMAGES)] for i in range(categories)), reverse=True)
    free = [0.0] * gpus
    for images in jobs:
        heapq.heappush(free, heapq.heappop(free) + start + images * decoding + images * EPOCHS / speed)
    total = max(free) * gpus
    return max(free) / 3600, categories * start / total, sum(jobs) * decoding / total, 1 - sum(free) / total


def bench_schedule() -> None:
    """Many trainings on Ray: what a task costs besides its work, and the hours that batches of categories take.

    Measure the scheduler, then print the table of docs/cluster.md.
    """
    parser = common.parser()
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a task's work (default: %(default)s)")
    parser.add_argument("--speed", type=float, default=300, help="assumed images a second of a GPU")
    parser.add_argument("--start", type=float, default=15, help="assumed seconds until a job trains")
    parser.add_argument("--decoding", type=float, default=0.02, help="seconds to decode an image")
    flags = parser.parse_args()
    common.header(f"{flags.tasks} tasks of {flags.seconds} s over {flags.workers} local workers")
    cost = overhead(flags.tasks, flags.workers, flags.seconds)
    print(f"a task costs {cost:.3f} s besides its work")
    print("\n| categories | GPUs | hours | start | decoding | waiting for the last |\n|---|---|---|---|---|---|")
    for categories in (15, 100):
        for gpus in (1, 8, 64):
            taken, *shares = hours(categories, gpus, flags.speed, flags.start + cost, flags.decoding)
            print(
                f"| {categories} | {gpus} | {taken:.2f} | " + " | ".join(f"{100 * one:.1f} %" for one in shares) + " |"
            )


if __name__ == "__main__":
    common.run({"sizes": bench_sizes, "schedule": bench_schedule})
