"""DRAEM from the command line: train, compute thresholds, detect."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from errors import UserError

CONFIG = Path(__file__).resolve().parent / "config.yaml"
EXAMPLE = "python main.py --train True --threshold True --detection True --set data.category=bottle"


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in two lines instead of the whole usage."""

    def error(self, message: str):
        self.exit(2, f"error: {message}\nsee: python {self.prog} --help\n")


def boolean(text: str) -> bool:
    """Value of a flag."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every program here has."""
    parser.add_argument(
        "--config", type=Path, default=CONFIG, metavar="PATH", help="settings (default: config.yaml beside main.py)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. --set train.epochs=100; repeatable"
    )


def run(program: Callable[[], int]) -> None:
    """Run a program and exit: 0 done, 1 a fault of training, 2 a user's mistake, 130 interrupted."""
    try:
        sys.exit(program())
    except UserError as error:
        sys.exit(_tell(error, 2))
    except FloatingPointError as error:
        sys.exit(_tell(error, 1))
    except KeyboardInterrupt:
        sys.exit(_tell("interrupted; what was written stays (a training goes on from there)", 130))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error) and "allocate" not in str(error):
            raise
        mend = "lower train.batch_size or data.test_batch_size, data.img_size, model.base_width or model.base_channels"
        mend += ", and on a GPU set train.compile=off"
        sys.exit(_tell(f"out of memory; {mend}", 2))
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_tell(f"{where}{error.strerror or error}; mend that (free space, permission, path) and run again", 2))


def _tell(message: object, status: int) -> int:
    print(f"error: {message}" if status != 130 else message, file=sys.stderr)
    return status


def main() -> int:
    """Parse the command line and run the modes that are asked for."""
    parser = Parser(
        prog="main.py",
        description="DRAEM: train on defect-free images, compute thresholds, detect and outline defects.\n"
        "Several modes at once run in the order train, threshold, detection.",
        epilog=f"example: {EXAMPLE}\nevery setting is explained in config.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for mode, what, example in (
        ("train", "train with synthetic anomalies; goes on where an interrupted run stood", "--train True"),
        ("threshold", "compute thresholds from held-out nominal images", "--threshold True --set data.load_epoch=700"),
        ("detection", "detect on test/: metrics, curves, panels", "--detection True --set metrics.threshold_type=max"),
    ):
        parser.add_argument(
            f"--{mode}",
            type=boolean,
            nargs="?",
            const=True,
            default=False,
            metavar="True|False",
            help=f"{what} (e.g. python main.py {example})",
        )
    add_config_flags(parser)
    arguments = parser.parse_args()
    if not (arguments.train or arguments.threshold or arguments.detection):
        parser.error(f"no mode asked for; for example: {EXAMPLE}")

    from config import load_config, settings_text  # the heavy packages come only now: --help stays quick

    config = load_config(arguments.config, arguments.set)
    if arguments.train:
        from engine.train import train

        print(f"checkpoint: {train(config, settings_text(arguments.config, config))}")
    if arguments.threshold:
        from engine.threshold import compute_thresholds

        print(f"thresholds: {compute_thresholds(config)}")
    if arguments.detection:
        from engine.detection import detection

        print(f"results: {detection(config)}")
    return 0


if __name__ == "__main__":
    run(main)
