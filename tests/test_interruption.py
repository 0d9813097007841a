"""Signals act at any moment, also while the main thread is in a call of another language."""

import ctypes
import os
import signal
import threading

import pytest

from experiments import interruption
from experiments.interruption import Interruption, watch


class Left(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def signals(monkeypatch):
    def leave(message, code=interruption.INTERRUPTED):
        raise Left(message)

    monkeypatch.setattr(interruption, "leave", leave)
    said = []
    return Interruption(say=said.append), said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_acts_while_the_main_thread_does_not_return_to_python(number):
    """The main thread reads an empty pipe in C, until the action on the signal writes to it."""
    before = signal.getsignal(number)
    reader, writer = os.pipe()

    def act(name):
        os.write(writer, b"s")

    end = watch(act)
    signal.siginterrupt(number, False)  # the call in C goes on after the signal
    rescue = threading.Timer(20, os.write, (writer, b"r"))
    rescue.start()
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
    buffer = ctypes.create_string_buffer(1)
    ctypes.CDLL(None).read(reader, buffer, 1)
    rescue.cancel()
    end()
    assert buffer.raw == b"s"
    assert signal.getsignal(number) == before


def test_the_first_signal_stops_after_the_step_and_the_second_ends_at_once(signals):
    run, said = signals
    run.act("SIGINT")
    assert run.received == "SIGINT"
    assert said == ["SIGINT: saving the current step; a second one ends at once"]
    with pytest.raises(Left, match="SIGTERM: stopped; the same command goes on"):
        run.act("SIGTERM")


def test_a_signal_during_an_activity_ends_at_once_and_says_what_is_saved(signals):
    run, _ = signals
    run.begin("compiling")
    with pytest.raises(Left, match="SIGINT: stopped while compiling; nothing is saved yet"):
        run.act("SIGINT")
    run.saved = "step 20 is saved"
    with pytest.raises(Left, match="compiling; step 20 is saved; the same command goes on"):
        run.act("SIGINT")
    run.end()
    run.act("SIGINT")
    with pytest.raises(Left, match="SIGINT: stopped while drawing"):
        run.begin("drawing pictures")  # a signal has come before
