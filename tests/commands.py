"""Commands as processes of their own, for what only a process can show: signals, and several of them at once.

Starting Python, torch and transformers takes ten seconds a time; here a server imports them once, and forks.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import pytest

from flexora.cli import main

#: How processes start; torch.multiprocessing takes it as ``start_method``.
FORKSERVER: Final = "forkserver"

_context = multiprocessing.get_context(FORKSERVER)
_context.set_forkserver_preload(["flexora.verbs.run", "flexora.verbs.search", "tests.tiny", "tests.search.bilevel"])


def start_command(
    arguments: list[str],
    output: Path,
    environment: dict[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> BaseProcess:
    """Start ``flexora`` with these arguments and variables; what it prints goes to a file.

    ``prepare`` is called in the process before: an object of a class that the process can import.
    """
    arguments_of_work = (arguments, output, environment or {}, prepare)
    process = _context.Process(target=_work, args=arguments_of_work, daemon=True)  # does not outlive the tests
    process.start()
    atexit.register(process.kill)  # or the tests would wait for one that a failed test has left
    return process


def start_on_each_device(
    arguments: list[str], outputs: list[Path], prepare: dict[int, Callable[[], None]] | None = None
) -> list[BaseProcess]:
    """Start ``flexora`` once for each of so many devices, as torchrun does; some of them are prepared."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joint = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(outputs))}
    joint |= {"TORCHELASTIC_RUN_ID": "tests", "GROUP_RANK": "0"}
    return [
        start_command(
            arguments, output, joint | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, (prepare or {}).get(rank)
        )
        for rank, output in enumerate(outputs)
    ]


def printed_on(devices: int, arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run ``flexora`` to its end, and return what it printed.

    On several devices as a process of its own: Lightning starts the process's own command again for each of the others.
    """
    if devices == 1:
        assert main(arguments) == 0
        return capfd.readouterr().out
    command, environment = [sys.executable, "-m", "flexora", *arguments], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _work(arguments: list[str], output: Path, environment: dict[str, str], prepare: Callable[[], None] | None) -> None:
    os.environ.update(environment)
    # A runner may ignore SIGINT or SIGHUP for its children; a terminal does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with output.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if prepare is not None:
        prepare()
    sys.exit(main(arguments))
