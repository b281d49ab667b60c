"""runtime/signals.py: signals become exit statuses; training/test_loop.py has those of a training."""

import os
import signal
import sys
import time

import pytest
from conftest import ROOT, start_process

from runtime import cli as command_line
from runtime import signals

pty = pytest.importorskip("pty")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are other ones there")


@pytest.fixture(autouse=True)
def not_under_nohup():
    """Where these tests run under nohup, their processes would ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


DEFERRED = """\
import sys, time
sys.path.insert(0, sys.argv[1])
from runtime import signals
signals.interrupts()
try:
    with signals.deferred() as stop:
        print("deferred", flush=True)
        while stop.asked is None or sys.argv[2] == "long":
            time.sleep(0.01)
        print("saved", flush=True)
except signals.Interrupted as stopped:
    sys.exit(stopped.status)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_deferred_signal_ends_a_program_after_its_block(tmp_path, number):
    process = start_process([sys.executable, "-c", DEFERRED, ROOT, "short"], tmp_path)
    assert process.stdout.readline() == "deferred\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=10)
    assert out == "saved\n" and process.returncode == {signal.SIGINT: 130, signal.SIGHUP: 129}.get(number, 143)


def test_a_second_signal_ends_a_program_at_once(tmp_path):
    """Also within a block that defers them."""
    process = start_process([sys.executable, "-c", DEFERRED, ROOT, "long"], tmp_path)
    assert process.stdout.readline() == "deferred\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM and process.stdout.read() == ""


def test_a_signal_that_a_library_turns_into_an_error_is_still_a_signal(capsys):
    """As pydantic does while it builds a model."""

    def program():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt as error:
            raise ValueError(f"building failed: {error}") from None

    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        with pytest.raises(SystemExit) as exit_:
            command_line.run(program)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    error = capsys.readouterr().err
    assert exit_.value.code == 143 and len(error.splitlines()) == 1 and "building failed" not in error


HUNG_UP = """\
import os, sys, time
sys.path.insert(0, sys.argv[1])
from runtime import cli, signals
def program():
    with signals.deferred() as stop:
        print("deferred", flush=True)
        while stop.asked is None:
            time.sleep(0.01)
        time.sleep(0.2)  # the shell's own SIGHUP comes in addition
        print("of the epoch", flush=True)
        print("of the bar", file=sys.stderr, flush=True)
        open("saved", "w").close()
    return 0
cli.run(program)
"""


def test_a_terminal_that_is_gone_ends_a_program_after_its_block(tmp_path):
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-c", HUNG_UP, str(ROOT)])
    while b"deferred" not in os.read(terminal, 1000):
        pass
    os.close(terminal)
    time.sleep(0.05)
    os.kill(process, signal.SIGHUP)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status == 129 and (tmp_path / "saved").exists()


def test_a_hangup_that_was_ignored_at_the_start_stays_ignored(tmp_path):
    """As under nohup."""
    command = ["nohup", sys.executable, "-c", DEFERRED, ROOT, "short"]
    process = start_process(command, tmp_path)
    assert process.stdout.readline() == "deferred\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143


LOADER = """\
import socket, sys
from multiprocessing.resource_sharer import DupFd
sys.path.insert(0, sys.argv[1])
from runtime import signals
signals.ignore_in_loader()
shared = DupFd(1)
with socket.socket(socket.AF_UNIX) as ended:
    ended.connect(shared._id[0])
    ended.recv(1000)  # the question for the key
print(shared.detach() > 1)
"""


def test_a_loader_process_says_nothing_about_a_training_that_ends_while_it_fetches_a_batch(tmp_path):
    process = start_process([sys.executable, "-c", LOADER, ROOT], tmp_path)
    assert process.communicate(timeout=30) == ("True\n", "")
