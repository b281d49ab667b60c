"""Common parts of the programs: flags, exit statuses, error messages."""

import argparse
import atexit
import gc
import glob
import io
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime import signals
from runtime.errors import FIX_STORAGE, RankLostError, UserError
from runtime.names import as_on_disk
from runtime.version import program_version

CONFIG = Path(__file__).resolve().parent.parent / "config.yaml"
DONE, FAULT, MISTAKE = 0, 1, 2  # exit statuses, besides those in signals.py
CLOSED = 141  # exit status where nobody reads the output any more, as of programs that SIGPIPE ends
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
        """Print the mistake and exit with status 2."""
        if re.match(r"unrecognized arguments: [\w.]+=", message):
            message += "; --set takes one value: repeat it, --set KEY=VALUE --set KEY=VALUE"
        message = message.replace("\n", "\\n")  # names can have line breaks
        self.exit(MISTAKE, f"error: {message}\nsee: python {self.prog} --help\n")


def boolean(text: str) -> bool:
    """Parse the value of a flag, True or False in any case; ArgumentTypeError for any other text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")


def expand_path(text: str) -> str:
    """A path with ~ and environment variables replaced, which a shell does only in some places, and a service nowhere.

    Raises:
        ValueError: a variable is not set.
    """
    path = os.path.expanduser(os.path.expandvars(text))
    if (unset := re.search(r"\$(\w+|\{\w+\})", path)) and not os.path.exists(path):
        raise ValueError(f"must be a path whose variables are set, but {unset[0]} is not")
    return path


def path(text: str) -> Path:
    """Parse the value of a flag that is a path; its Unicode is in the form that it has on the disk."""
    if not text:
        raise argparse.ArgumentTypeError("is an empty path (a variable of the shell that is not set?)")
    try:
        return Path(as_on_disk(expand_path(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' {error}") from error


def matching(paths: Sequence[Path]) -> list[Path]:
    """Paths, with files that match in place of a pattern such as *.png (shells of Windows leave that to programs)."""
    found: list[Path] = []
    for one in paths:
        matches = [] if one.exists() else sorted(glob.glob(str(one)))
        found += [Path(match) for match in matches] or [one]
    return found


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all programs have: --config and --set."""
    parser.add_argument(
        "-cfg",
        "--config",
        action="append",
        type=path,
        default=[],
        metavar="PATH",
        help="settings (default: config.yaml beside main.py); repeatable, the later file wins",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. --set train.epochs=100; repeatable"
    )


def is_launched() -> bool:
    """Whether torchrun or another launcher has started this process as one of several."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def add_ray_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of programs that can run their jobs on Ray."""
    add_flag = parser.add_argument
    add_flag("--ray", metavar="ADDRESS", help="run all jobs at once on Ray: local (this machine), auto, or an address")
    add_flag("--gpus_per_job", type=float, metavar="N", help="with --ray: GPUs of a job (default: 1 if there are any)")
    add_flag("--cpus_per_job", type=float, default=1, metavar="N", help="with --ray: CPU cores of a job (default: 1)")
    add_flag(
        "--max_retries", type=int, default=3, metavar="N", help="with --ray: retries after a node failure (default: 3)"
    )


def run(program: Callable[[], int], is_shared: bool = False) -> None:
    """Run a program and exit with its status.

    Errors are printed to standard error. Exit status: 0 done, 1 training failed, 2 user error, 130 interrupted, 143
    terminated, 129 hung up, 141 where nobody reads the output any more. Any other exception is a fault of the program
    and keeps its traceback (status 1).

    Args:
        program: returns the exit status. is_shared: whether the program can run as several processes (torchrun).
    """
    # Garbage collection while torch is imported takes half a second, and a second more at exit.
    gc.set_threshold(10_000, 20, 50)
    atexit.register(gc.freeze)
    _prepare_output()
    atexit.register(_end_output)
    try:
        signals.interrupts()
        os.environ["MPLBACKEND"] = "agg"  # no windows are drawn; matplotlib refuses to start with an unknown backend
        _check_working_folder()
        _check_environment()
        _prepare_progress_bars()
        if is_launched() and not is_shared:
            raise UserError("torchrun", "only main.py can run as several processes", "start this program with python")
        status = program()
        _flush()  # here, so that a full disk is an error with a message
        sys.exit(status)
    except UserError as error:
        sys.exit(_print_error(error, MISTAKE))
    except (FloatingPointError, RankLostError) as error:
        sys.exit(_print_error(error, FAULT))
    except KeyboardInterrupt as error:
        interrupt = error if isinstance(error, signals.Interrupted) else signals.Interrupted(signal.SIGINT)
        print(interrupt, file=sys.stderr)
        sys.exit(interrupt.status)
    except (MemoryError, RuntimeError) as error:
        if loop := re.fullmatch(r"Symlink loop from '(.*)'", str(error)):  # of Path.resolve before Python 3.13
            sys.exit(_print_error(UserError(loop[1], "a symbolic link that leads to itself", "remove it"), MISTAKE))
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
        if isinstance(error, BrokenPipeError) and any(map(_has_no_reader, (1, 2))):
            sys.exit(CLOSED)
        if "usable temporary directory" in str(error):
            problem = "no folder for temporary files can be written to"
            sys.exit(_print_error(UserError("TMPDIR", problem, "set this variable to a folder that can"), MISTAKE))
        sys.exit(
            _print_error(UserError(error.filename or "file system", error.strerror or error, FIX_STORAGE), MISTAKE)
        )
    except Exception as error:  # pydantic wraps Interrupted in its own errors, which keep only the text
        for number in signals.SIGNALS:
            if str(interrupted := signals.Interrupted(number)) in str(error):
                print(interrupted, file=sys.stderr)
                sys.exit(interrupted.status)
        raise


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def _check_working_folder() -> None:
    """UserError where the working folder has been deleted: torch's libraries would end the process."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("working folder", "it was deleted", "cd to a folder that is there") from None


def _prepare_progress_bars() -> None:
    """Show them in the first process only. UserError where a variable is wrong that tqdm reads when it is imported."""
    if is_launched() and os.environ["RANK"] != "0":
        os.environ["TQDM_DISABLE"] = "1"
    try:
        import tqdm  # noqa: F401
    except ValueError as error:
        names = ", ".join(sorted(name for name in os.environ if name.startswith("TQDM_")))
        raise UserError(names, str(error), "unset these variables, or give them numbers") from None


def _check_environment() -> None:
    """UserError where OpenCV would end the process when it is imported: a limit of image sizes that is not a number."""
    for name in (f"OPENCV_IO_MAX_IMAGE_{what}" for what in ("PIXELS", "WIDTH", "HEIGHT")):
        if not re.fullmatch(r"\d{1,18}", limit := os.environ.get(name, "1"), re.ASCII):
            raise UserError(f"{name} = {limit[:40]}", "must be a whole number", "set it to one")


def _prepare_output() -> None:
    """Let output never end a program: open what a service has closed, and escape characters that a console lacks."""
    for handle, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(handle)
        except OSError:  # closed: the next file that is opened would get this number, and what libraries write to it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if handle and getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _has_no_reader(handle: int) -> bool:
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(handle, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _end_output() -> None:
    """Write what is left, without the error that Python would print at its end where that is impossible."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _print_error(message: object, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
