"""Train every category of a dataset, one after the other, each in a process of its own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave this folder out

from runtime.cli import CONFIG, Parser, add_config_flags, add_ray_flags, boolean, run

# Predefined parameters. Each can be given as a flag of the same name, e.g. --categories bottle cable
CATEGORIES = None  # names of categories; None: all of the dataset (docs/data.md)
UPDATE_CONFIG = False  # True: data.category is set in the given settings file, too, so that it names the last one
FORCE = False  # True: train anew what is complete already
SEEDS = None  # numbers: each category is trained with each of them, in runs of their own (run_name_seed0 ...)


def main() -> int:
    """Parse the command line and train; 1 where a category failed."""
    parser = Parser(
        prog="train_all.py",
        description="Train every category of a dataset, each in a process of its own. Complete ones are skipped.",
        epilog="example: python train_all.py --categories bottle cable --set train.epochs=100",
    )
    add_flag = parser.add_argument
    add_flag("--categories", nargs="+", default=CATEGORIES, metavar="NAME", help="which (default: all that are there)")
    for name, default, text in (
        ("--update_config", UPDATE_CONFIG, "set data.category in the given settings file, too"),
        ("--force", FORCE, "train anew what is complete"),
    ):
        add_flag(name, type=boolean, nargs="?", const=True, default=default, metavar="True|False", help=text)
    add_flag("--seeds", nargs="+", type=int, default=SEEDS, metavar="N", help="train with each of these seeds")
    add_ray_flags(parser)
    add_config_flags(parser)
    arguments = parser.parse_args()

    from config_file import load_config
    from engine import ray_jobs, train_all
    from runtime.device import setup

    setup()
    config, settings = load_config(arguments.config, arguments.set), (arguments.config or [CONFIG])[0]
    selection = train_all.Selection(arguments.categories, arguments.seeds, arguments.force, arguments.update_config)
    failures = train_all.run(config, settings, selection, ray_jobs.options_of(arguments))
    return 1 if failures else 0


if __name__ == "__main__":
    run(main)
