"""What the programs share: flags, exit statuses, error messages."""

import argparse
import atexit
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime import signals
from runtime.errors import FIX_STORAGE, RankLostError, UserError
from runtime.version import program_version

CONFIG = Path(__file__).resolve().parent.parent / "config.yaml"
DONE, FAULT, MISTAKE = 0, 1, 2  # exit statuses, besides those in signals.py
LESS_MEMORY = (
    "lower train.batch_size or data.test_batch_size, data.img_size, model.base_width or model.base_channels, "
    "and on a GPU set train.compile=off"
)


class Parser(argparse.ArgumentParser):
    """A parser with --version, which prints errors in two lines instead of the whole usage."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.add_argument("--version", action="version", version=f"DRAEM {program_version()}")

    def error(self, message: str):
        self.exit(MISTAKE, f"error: {message}\nsee: python {self.prog} --help\n")


def boolean(text: str) -> bool:
    """Value of a flag."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every program here has."""
    parser.add_argument(
        "-cfg",
        "--config",
        type=Path,
        default=CONFIG,
        metavar="PATH",
        help="settings (default: config.yaml beside main.py)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. --set train.epochs=100; repeatable"
    )


def is_launched() -> bool:
    """Whether this is one of several processes that torchrun or another launcher has started."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def add_ray_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of programs that can run their jobs on Ray."""
    add_flag = parser.add_argument
    add_flag("--ray", metavar="ADDRESS", help="run all jobs at once on Ray: local (this machine), auto, or an address")
    add_flag("--gpus_per_job", type=float, metavar="N", help="with --ray: of each (default: 1 where there are GPUs)")
    add_flag("--cpus_per_job", type=float, default=1, metavar="N", help="with --ray: of each (default: 1)")
    add_flag("--max_retries", type=int, default=3, metavar="N", help="with --ray: after a node has died (default: 3)")


def run(program: Callable[[], int], is_shared: bool = False) -> None:
    """Run a program and exit: 0 done, 1 a fault of training, 2 a user's mistake, 130 interrupted, 143 terminated."""
    # Python looks through all of torch's objects several times as they are imported, for half a second, and once more
    # as it ends, for most of one.
    gc.set_threshold(10_000, 20, 50)
    atexit.register(gc.freeze)
    try:
        signals.interrupts()
        if is_launched() and not is_shared:
            raise UserError("torchrun", "only main.py can run as several processes", "start this program without it")
        sys.exit(program())
    except UserError as error:
        sys.exit(_print_error(error, MISTAKE))
    except (FloatingPointError, RankLostError) as error:
        sys.exit(_print_error(error, FAULT))
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, signals.Interrupted) else signals.Interrupted(signal.SIGINT)
        print(stopped, file=sys.stderr)
        sys.exit(stopped.status)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error) and "allocate" not in str(error):
            raise
        sys.exit(
            _print_error(
                UserError("out of memory", str(error).partition("\n")[0] or "allocation failed", LESS_MEMORY), MISTAKE
            )
        )
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        sys.exit(
            _print_error(UserError(error.filename or "file system", error.strerror or error, FIX_STORAGE), MISTAKE)
        )
    except Exception as error:  # pydantic wraps Interrupted in errors of its own
        for number in (signal.SIGINT, signal.SIGTERM):
            if str(interrupted := signals.Interrupted(number)) in str(error):
                print(interrupted, file=sys.stderr)
                sys.exit(interrupted.status)
        raise


def _print_error(message: object, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
