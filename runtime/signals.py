"""What Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP do.

Schedulers send SIGTERM and SIGUSR1; SLURM can send SIGUSR1 minutes before the end.
SIGHUP means that the terminal is gone.
"""

import ctypes
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
ASK_SIGNAL = getattr(signal, "SIGUSR1", signal.SIGTERM)
HANGUP = getattr(signal, "SIGHUP", None)
INTERRUPTED, TERMINATED, HUNG_UP = 130, 143, 129  # exit statuses


class Interrupted(KeyboardInterrupt):
    """The program was interrupted by a signal.

    Attributes:
        number: of the signal. status: the exit status that belongs to it.
    """

    def __init__(self, number: int, message: str = ""):
        default = f"interrupted ({signal.Signals(number).name})"
        super().__init__(message or f"{default}; what is written stays")
        self.number, self.status = number, {signal.SIGINT: INTERRUPTED, HANGUP: HUNG_UP}.get(number, TERMINATED)


class Stop:
    """Whether a signal has arrived. asked: its number, None for no signal."""

    def __init__(self):
        self.asked: int | None = None

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.asked is not None:
            raise Interrupted(self.asked)


def _handle(what: Callable[[int], None]) -> dict[int, Any]:
    """Call `what` at the first signal; a second one ends the process at once. Returns the previous handlers.

    Three exceptions never end the process as a second signal: SIGUSR1, which `ask` sends in addition to the signal of a
    terminal or scheduler; SIGHUP, which both the system and the shell send; and any signal under a launcher (torchrun),
    which repeats signals that all have received. SIGHUP stays ignored where it is, as under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}  # only the main thread can have handlers

    def first(number: int, _: object) -> None:
        for one in handled:
            is_ignored = one in (ASK_SIGNAL, HANGUP) or "RANK" in os.environ
            signal.signal(one, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
        if number == HANGUP:
            _leave_terminal()
        what(number)

    handled = [one for one in SIGNALS if one != HANGUP or signal.getsignal(one) != signal.SIG_IGN]
    return {number: signal.signal(number, first) for number in handled}


def _leave_terminal() -> None:
    """Discard what is written to a terminal that is gone, where it would be an error."""
    for handle in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(handle).st_mode) and not os.isatty(handle):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, handle)
                os.close(null)


def interrupts() -> None:
    """From now on a signal raises Interrupted at once."""

    def stop(number: int) -> None:
        raise Interrupted(number)

    _handle(stop)


@contextmanager
def deferred() -> Iterator[Stop]:
    """Within the block a signal is only noted; `Stop.check` raises it where nothing is lost."""
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
    """Interrupt a program of this project that runs in another process."""
    process.send_signal(ASK_SIGNAL)


def ignore_in_loader() -> None:
    """In a loader process: ignore the signals that a terminal or scheduler sends to all processes.

    The training still needs samples to finish its step. A SIGTERM from the training itself ends the process. If the
    training has an error while a batch is handed over, this process says nothing about the lost connection.
    """
    plain = sys.excepthook
    lost = (ConnectionError, EOFError)
    sys.excepthook = lambda kind, *rest: None if issubclass(kind, lost) else plain(kind, *rest)
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
    """In a new process: end it when its parent has ended, for whatever reason. On Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
