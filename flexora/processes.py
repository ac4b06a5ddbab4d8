"""Processes that a command starts: signals are handed on to them, and it waits until they have saved."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def forwarded(send: Callable[[int], None]) -> Iterator[None]:
    """Hand signals on: SIGTERM and SIGINT as they are, SIGHUP as SIGTERM, on which a phase saves.

    SLURM's SIGUSR1 comes to every process of a job's step; this one must not end of it before the others have saved.

    Args:
        send: Sends a signal to every process.
    """

    def forward(number: int, frame: FrameType | None) -> None:
        send(signal.SIGTERM if number == signal.SIGHUP else number)

    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup asks to outlive the terminal
        numbers.append(signal.SIGHUP)
    old = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
