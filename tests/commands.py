"""Commands as processes of their own, for what only a process can show: signals, and several of them at once.

Starting Python, torch and transformers takes ten seconds a time; here a server imports them once, and forks.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from flexora.cli import main

#: How processes start; torch.multiprocessing takes it as ``start_method``.
FORKSERVER: Final = "forkserver"

_context = multiprocessing.get_context(FORKSERVER)
_context.set_forkserver_preload(["flexora.verbs.run", "flexora.verbs.search", "tests.tiny", "tests.search.bilevel"])


def start_command(arguments: list[str], output: Path) -> BaseProcess:
    """Start ``flexora`` with these arguments; what it prints goes to a file."""
    process = _context.Process(target=_work, args=(arguments, output), daemon=True)  # does not outlive the tests
    process.start()
    return process


def _work(arguments: list[str], output: Path) -> None:
    # A runner may ignore SIGINT or SIGHUP for its children; a terminal does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with output.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(main(arguments))
