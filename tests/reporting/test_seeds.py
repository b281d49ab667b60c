"""reporting/seeds.py, several seeds: runs of their own, means and standard deviations over them."""

import re

import numpy as np
from conftest import rows_of
from in_process import train_here
from messages import assert_line, lines_with

from engine import train_all
from inference import checkpoint
from inference.fingerprint import fingerprint


def test_seeds_are_separate_runs_whose_means_are_reported(two, call, monkeypatch):
    monkeypatch.setattr(train_all, "_train", train_here)
    seeds = ("--seeds", "0", "1", "--categories", "tile", "--set", "train.visualize=false")
    seeds += ("--set", "train.save_from=2")  # val_ap of the last epoch alone: 200 samples in processes of their own
    status, out, error = call("train_all", *seeds)
    assert status == 0, error
    assert_line(out, re.compile(r"tile, seed 0\b.*tile, seed 1\b"))
    weights = [
        fingerprint(checkpoint.read(two / f"checkpoints/tile/{run}/epoch_0002.pt")["model"])
        for run in ("tiny", "tiny_seed0", "tiny_seed1")
    ]
    assert weights[0] == weights[1] != weights[2]  # the settings' own seed is 0
    few = ("--categories", "tile", "--checkpoints", "2", "--registrations", "False")
    rows = []
    for seed in range(2):
        assert call("evaluate_checkpoints", *few, "--set", f"data.run_name=tiny_seed{seed}")[0] == 0
        rows += rows_of(two / f"results/tiny_seed{seed}/summary.csv")
    status, out, error = call("check_best_model")
    assert status == 0, error
    assert out.splitlines()[-1] == f"report: {two / 'results/tiny/seeds.md'}"
    values = [float(row["pixel_ap"]) for row in rows if row["threshold"] == "max"]
    assert len(values) == 2 and f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" in out
    report = (two / "results/tiny/seeds.md").read_text()
    assert_line(report, "tiny", 0, 1)
    assert len(lines_with(report, "tile", "no_masking", "max", 2)) == 1  # seeds
