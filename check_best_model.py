"""Name the best checkpoint and technique of what evaluate_checkpoints.py has measured."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and -I leave this folder out

from runtime.cli import Parser, add_config_flags, run

# Predefined parameters. Each can be given as a flag of the same name.
CATEGORIES = None  # names of categories to compare; None: all in summary.csv


def main() -> int:
    """Parse the command line, compare and report."""
    parser = Parser(
        prog="check_best_model.py",
        description="Name the best checkpoint and technique of what evaluate_checkpoints.py has measured. "
        "Reads summary.csv; no network is run.",
        epilog="example: python check_best_model.py --config configs/sample.yaml",
    )
    parser.add_argument("--categories", nargs="+", default=CATEGORIES, metavar="NAME", help="which (default: all)")
    add_config_flags(parser)
    arguments = parser.parse_args()

    from config_file import load_config
    from engine import best_model
    from runtime.device import setup

    setup()
    print(f"report: {best_model.run(load_config(arguments.config, arguments.set), arguments.categories)}")
    return 0


if __name__ == "__main__":
    run(main)
