"""Row 1: a training sample, on one core."""

import os
import tempfile
from itertools import count
from pathlib import Path

import numpy as np
import torch

import data_loader
from benchmarks import common, plain
from data import folders
from data.mvtec import list_nominal
from synthesis import AnomalySynthesizer


def main() -> None:
    """Time 2,000 samples of 256 x 256 against the plain way."""
    flags = common.arguments(__doc__, runs=5, samples=400, size=256)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    common.header(f"synthesis, {flags.size} x {flags.size}, cutout off, {flags.runs} x {flags.samples} samples")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        common.make_dataset(root, flags.size, train=60, good=1, bad=1, textures=120)
        files, textures = list_nominal(root / "mvtec/made_up"), folders.list_textures(root / "textures")
        size = (flags.size, flags.size)
        dataset = data_loader.DRAEMTrainDataset(files, AnomalySynthesizer(textures, size))
        helper, rng, keys = AnomalySynthesizer(textures[:1], size), np.random.default_rng(0), count()

        def ours() -> None:
            for _ in range(flags.samples):
                dataset[next(keys)]

        def baseline() -> None:
            for _ in range(flags.samples // 4):
                plain.sample(files, textures, helper, rng)

        times = {"plain": [], "project": []}
        for run in range(flags.runs + 1):
            for name, work, n in (("plain", baseline, flags.samples // 4), ("project", ours, flags.samples)):
                taken = common.seconds(work) / n
                if run:
                    times[name].append(taken)
        common.report("sample", times)


if __name__ == "__main__":
    main()
