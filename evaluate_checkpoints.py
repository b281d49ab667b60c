"""Evaluate categories x checkpoints x techniques x thresholds, and summarize them in one table."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave this folder out

from evaluation.thresholds import COMPARED_KINDS, KINDS
from runtime.cli import Parser, add_config_flags, add_ray_flags, boolean, run

# Predefined parameters. Each can be given as a flag of the same name, e.g. --checkpoints 600 700
CATEGORIES = None  # names of categories; None: all of the dataset (docs/data.md)
CHECKPOINTS = None  # epochs, or last; None: every kept epoch of each category
MASKINGS = None  # of no, pre, post; None: all, but pre and post only for categories that masking.regions names
REGISTRATIONS = (False, True)  # without, with image registration
THRESHOLDS = COMPARED_KINDS  # max, p_quantile, k_sigma, optimal; besides: conformal, manual
FORCE = False  # True: evaluate again what is complete


def main() -> int:
    """Parse the command line and evaluate; 1 where something failed."""
    parser = Parser(
        prog="evaluate_checkpoints.py",
        description="Evaluate categories x checkpoints x techniques x thresholds. Complete results are skipped.",
        epilog="example: python evaluate_checkpoints.py --checkpoints 600 700 --maskings no post --registrations False",
    )
    add_flag = parser.add_argument
    add_flag("--categories", nargs="+", default=CATEGORIES, metavar="NAME", help="which (default: all that are there)")
    add_flag(
        "--checkpoints", nargs="+", default=CHECKPOINTS, metavar="EPOCH", help="epochs, or last (default: all kept)"
    )
    add_flag("--maskings", nargs="+", choices=("no", "pre", "post"), default=MASKINGS, help="(default: all that apply)")
    add_flag(
        "--registrations", nargs="+", type=boolean, default=REGISTRATIONS, metavar="True|False", help="(default: both)"
    )
    add_flag(
        "--thresholds",
        nargs="+",
        choices=KINDS,
        default=THRESHOLDS,
        help=f"threshold kinds (default: {' '.join(COMPARED_KINDS)})",
    )
    add_flag("--force", type=boolean, nargs="?", const=True, default=FORCE, metavar="True|False", help="repeat all")
    add_ray_flags(parser)
    add_config_flags(parser)
    arguments = parser.parse_args()
    for epoch in map(str, arguments.checkpoints or ()):
        if not re.fullmatch(r"last|0{0,9}[1-9]\d{0,8}", epoch):
            parser.error(f"--checkpoints {epoch[:40]}: must be last or an epoch from 1")

    from config_file import load_config
    from engine import evaluate_all, ray_jobs
    from runtime.device import setup

    setup()
    config = load_config(arguments.config, arguments.set)
    selection = evaluate_all.Selection(
        arguments.categories,
        arguments.checkpoints,
        arguments.maskings,
        arguments.registrations,
        arguments.thresholds,
    )
    failures = evaluate_all.run(config, selection, arguments.force, ray_jobs.options_of(arguments))
    return 1 if failures else 0


if __name__ == "__main__":
    run(main)
