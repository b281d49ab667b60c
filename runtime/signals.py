"""Told to stop: what Ctrl-C, SIGTERM and SIGUSR1 do. Schedulers send both, SLURM the latter minutes before the end."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
ASKING = getattr(signal, "SIGUSR1", signal.SIGTERM)
INTERRUPTED, TERMINATED = 130, 143  # exit statuses


class Interrupted(KeyboardInterrupt):
    """The program was told to stop. number: of the signal. The message says how to go on."""

    def __init__(self, number: int, message: str = ""):
        default = "interrupted" if number == signal.SIGINT else "told to stop"
        super().__init__(message or f"{default}; what was written stays")
        self.number, self.status = number, INTERRUPTED if number == signal.SIGINT else TERMINATED


class Stop:
    """Whether the program has been told to stop. asked: the signal's number, None while there was none."""

    def __init__(self):
        self.asked: int | None = None

    def check(self) -> None:
        """Raises Interrupted where the program has been told to stop."""
        if self.asked is not None:
            raise Interrupted(self.asked)


def _handle(what: Callable[[int], None]) -> dict[int, object]:
    """Have the first signal do this; a second one ends the process at once. The handlers that were there before.

    Not so SIGUSR1, which `ask` sends besides what a terminal or a scheduler has sent already, and none where a launcher
    (torchrun) has started the process and hands on what all of them have been sent.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}  # which alone can have handlers

    def first(number: int, _: object) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN if one == ASKING or "RANK" in os.environ else signal.SIG_DFL)
        what(number)

    return {number: signal.signal(number, first) for number in SIGNALS}


def interrupts() -> None:
    """From now on a signal raises Interrupted, wherever the program is."""

    def stop(number: int) -> None:
        raise Interrupted(number)

    _handle(stop)


@contextmanager
def deferred() -> Iterator[Stop]:
    """Within the block a signal is noted, for `Stop.check` at places where stopping loses nothing."""
    stop = Stop()

    def note(number: int) -> None:
        stop.asked = number

    before = _handle(note)
    try:
        yield stop
    finally:
        if stop.asked is None:
            for number, handler in before.items():
                signal.signal(number, handler)
    stop.check()


def ask(process: subprocess.Popen) -> None:
    """Tell a program of this project that runs in another process to stop."""
    process.send_signal(ASKING)


def goes_on_in_loader() -> None:
    """In a loader process: go on when a terminal or a scheduler signals all processes at once.

    The training still needs samples to finish its step. What it sends itself ends the process.
    """
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def dies_with_parent() -> None:
    """In a process just started: end it when the one that has started it is gone, however that ended. On Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
