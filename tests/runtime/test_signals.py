"""runtime/signals.py: signals become exit statuses; training/test_loop.py has those of a training."""

import os
import signal
import sys
import time

import pytest
from conftest import ROOT, start_process

from runtime import cli as command_line
from runtime import signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are other ones there")
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_deferred_signal_ends_a_program_after_its_block(tmp_path, number):
    process = start_process([sys.executable, "-c", DEFERRED, ROOT, "short"], tmp_path)
    assert process.stdout.readline() == "deferred\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=10)
    assert out == "saved\n" and process.returncode == (130 if number == signal.SIGINT else 143)


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
