"""The second Ctrl-C ends the process at once, wherever it is.

Python's handlers run between two bytecodes alone: not while a collective waits for a process that will never come, nor
in a long kernel. The interpreter's own handler writes each signal's number into a pipe at once, and a thread reads it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flexora.errors import interruption_line

#: What ends the thread; no signal has this number.
END = b"\0"


@contextmanager
def second_ctrl_c_ends(verb: str, before: Callable[[], None]) -> Iterator[None]:
    """End the process with 130 on a Ctrl-C that follows another one or SIGTERM.

    Args:
        verb: What is interrupted.
        before: Is called first.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(target=_watch, args=(reading, verb, before), daemon=True)
    thread.start()
    old = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(old)
        os.write(writing, END)  # not its closing: a process that was forked meanwhile may hold it open
        thread.join()
        os.close(writing)
        os.close(reading)


def _watch(reading: int, verb: str, before: Callable[[], None]) -> None:
    asked = False
    while (number := os.read(reading, 1)) != END:
        if number[0] == signal.SIGINT and asked:
            before()
            os.write(2, f"{interruption_line(verb)}\n".encode())
            os._exit(128 + signal.SIGINT)
        asked = asked or number[0] in (signal.SIGINT, signal.SIGTERM)


def _forget() -> None:
    """Keep the signals of a loader's forked worker out of the pipe: a terminal sends them Ctrl-C as well."""
    signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget)
