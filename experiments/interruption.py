"""Act on Ctrl-C (SIGINT) and SIGTERM at any moment, also while JAX compiles a program.

Python calls the handler of a signal between two instructions of the main thread. To compile a
program is one instruction, which can take a minute. Here the system writes the number of a signal
into a pipe at once, and a thread that waits at the pipe acts on it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

INTERRUPTED = 75
"""Exit code of an interrupted command, EX_TEMPFAIL of sysexits.h: the same command resumes it."""

NUMBERS = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a process to end."""

SHOW_CURSOR = b"\x1b[?25h"
"""The control sequence by which a terminal shows its cursor, which a progress bar hides."""


def write_line(text: str) -> None:
    """Write a line to standard error at once, without the locks of Python's and Rich's streams."""
    below_the_bar = SHOW_CURSOR + b"\n" if os.isatty(2) else b""
    os.write(2, below_the_bar + f"{text}\n".encode(errors="backslashreplace"))


@dataclass
class Interruption:
    """A record of what a training run does and of the signal that it has received.

    The first signal stops the run after the current step, and a second one ends the process. During
    an `activity` the first signal ends the process: an activity can take long, and a run has saved
    its steps before it begins one.
    """

    received: str = ""
    """name of the first signal, empty before it"""
    activity: str = ""
    """name of the activity, such as compiling, during which there is nothing to save; else empty"""
    saved: str = "nothing is saved yet"
    """sentence about the last checkpoint"""
    patient: bool = False
    """whether the process has work left after a training, such as a report: then the first signal
    never ends it"""
    say: Callable[[str], None] = write_line
    """function that tells the user that the signal has come; it must wait for no lock"""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """lock on `received`, which signals set in a thread of their own"""

    def exchange(self, expected: str, new: str) -> None:
        """Set `received` to another name if it is the expected one, so that no signal is lost."""
        with self.lock:
            if self.received == expected:
                self.received = new

    def act(self, name: str) -> None:
        """Act on a signal, in a thread of its own.

        Args:
          name: the name of the signal.
        """
        if self.patient:
            if self.received in signal.Signals.__members__:  # it can also be an end of the time
                leave(f"{name}: stopped")
            with self.lock:
                self.received = name
            self.say(f"{name}: no further training; a second signal ends the process at once")
            return
        if self.activity:
            doing = f"{name}: stopped while {self.activity}"
            leave(f"{doing}; {self.saved}; the same command goes on from there")
        if self.received:
            leave(f"{name}: stopped; the same command goes on from the last checkpoint")
        with self.lock:
            self.received = name
        self.say(f"{name}: saving the current step; a second one ends at once")

    def begin(self, activity: str) -> None:
        """Begin an activity, unless a signal has come before: then end the process."""
        self.activity = activity
        if self.received and not self.patient:
            self.act(self.received)

    def end(self) -> None:
        """End an activity: training goes on."""
        self.activity = ""


def watch(act: Callable[[str], None]) -> Callable[[], None]:
    """Let every signal that asks the process to end call `act(name)` in a thread, at once.

    Of several watches only the last one acts. The main thread begins and ends them.

    Args:
      act: takes the name of the signal.

    Returns:
      A function that ends the watch, after which the one before it acts again.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_pass_on, args=(reader, act), daemon=True)
    thread.start()
    # The handlers do nothing, but without them a signal would end the process or raise an error.
    handlers = {number: signal.signal(number, lambda *_: None) for number in NUMBERS}
    outer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def end() -> None:
        signal.set_wakeup_fd(outer)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writer)  # the thread reads the end of the pipe
        thread.join()
        os.close(reader)

    return end


def _pass_on(reader: int, act: Callable[[str], None]) -> None:
    """Call `act` for each signal that the system writes into a pipe, until the pipe is closed."""
    while byte := os.read(reader, 1):
        if byte[0] in NUMBERS:
            act(signal.Signals(byte[0]).name)


def stop(name: str) -> None:
    """End the process at once: a command that does not train has nothing to save."""
    leave(f"{name}: stopped")


def leave(message: str, code: int = INTERRUPTED) -> NoReturn:
    """Print a message and end the process at once, without the clean-up of JAX and Orbax.

    Args:
      message: the line for standard error.
      code: the exit code.
    """
    write_line(message)
    os._exit(code)
