"""Programs run in the process of the tests, or in forks of it: a new one takes four seconds to start."""

import importlib
import io
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from config_file import load_config
from engine import train
from runtime import cli


def run_here(name: str, *arguments: object) -> str:
    """What a program prints on standard output with these arguments; it must end with 0."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), pytest.raises(SystemExit) as exit_:
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        cli.run(importlib.import_module(name).main)
    assert exit_.value.code == 0
    return out.getvalue()


def train_here(settings: Path, resume: str | None, dies_with_parent: bool) -> None:
    """In place of train_all's process for each category, which test_train_all.py starts."""
    own = load_config(settings, [f"train.resume={resume}"] if resume else [])
    train.run(own, settings.read_text(encoding="utf-8"))


class Fork:
    """A script in a fork of this process, with the methods of subprocess.Popen that tests use.

    Args:
        script: path. arguments: of its command line. folder: in which it runs. variables: of its environment.

    Attributes:
        out, err: files with its standard output and standard error.
    """

    def __init__(self, script: Path, arguments: list[object], folder: Path, **variables: str):
        self.returncode: int | None = None
        self.out, self.err = (folder / f".{time.monotonic_ns()}.{name}" for name in ("out", "err"))
        self._outputs = [path.open("w", buffering=1, encoding="utf-8") for path in (self.out, self.err)]
        self.pid = os.fork()
        if not self.pid:
            self._run([script, *arguments], folder, variables)
        for output in self._outputs:
            output.close()

    def _run(self, words: list[object], folder: Path, variables: dict[str, str]) -> None:
        """Never returns: what pytest does at the end of a process is not for a fork of it."""
        status = 1
        try:
            os.setsid()
            os.chdir(folder)
            os.environ.update(variables)
            for number, output in enumerate(self._outputs, 1):
                os.dup2(output.fileno(), number)
            sys.stdout, sys.stderr = self._outputs
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv = [str(word) for word in words]
            runpy.run_path(sys.argv[0], run_name="__main__")
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            for output in self._outputs:
                output.flush()
            os._exit(status)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Exit status, or minus a signal; None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Until it ends; TimeoutExpired after so many seconds."""
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(sys.argv, timeout)
            time.sleep(0.005)
        return status

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Its standard output and standard error, once it has ended."""
        self.wait(timeout)
        return self.out.read_text(encoding="utf-8"), self.err.read_text(encoding="utf-8")
