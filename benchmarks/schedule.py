"""Many trainings on Ray: what a task costs besides its work, and the hours that batches of categories take."""

import argparse
import heapq
import tempfile
import time
from pathlib import Path

from benchmarks import common
from engine import ray_jobs
from runtime.device import core_count

# Numbers of training images of MVTec AD's categories (P. Bergmann et al., 'MVTec AD', CVPR 2019).
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


def main() -> None:
    """Measure the scheduler, then print the table of docs/cluster.md."""
    parser = argparse.ArgumentParser(description=__doc__)
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
    main()
