"""A command that waits in the middle of its work until a test lets it go on: nothing here depends on timing."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from flexora import interruption

#: What the fixture ``commands`` gives.
Commands = dict[str, list[str]]

#: Where a verb computes the losses of a batch.
LOSS: Final = {
    "search": "flexora.search.module.answer_loss",
    "finetune": "flexora.finetune.module.answer_loss",
    "evaluate": "flexora.scoring.module.choice_log_likelihoods",
}

#: Seconds after which a test fails that waits for a process.
PATIENCE: Final = 240


@dataclass(frozen=True)
class Hold:
    """The ``at``-th call of a function waits. Give it to ``start_command`` as ``prepare``.

    Attributes:
        folder: Where both sides leave word: of no other hold.
        function: Module and name of the function.
        at: Which of its calls in the process, from 1.
    """

    folder: Path
    function: str
    at: int

    def __call__(self) -> None:
        """Have the function wait in this process."""
        path, _, name = self.function.rpartition(".")
        module, calls = importlib.import_module(path), iter(range(1, 1_000_000))
        real = getattr(module, name)

        def held(*arguments: Any, **named: Any) -> Any:
            if next(calls) == self.at:
                self._wait_inside()
            return real(*arguments, **named)

        setattr(module, name, held)

    def _wait_inside(self) -> None:
        self.folder.mkdir()
        while not (self.folder / "go on").exists():
            if interruption._asked:
                (self.folder / "noted").touch()
            time.sleep(0.01)

    def wait_until_reached(self, processes: Sequence[BaseProcess], printed: Path) -> None:
        """Wait until the process is there."""
        _wait_for(self.folder, processes, printed)

    def note(self, process: BaseProcess, number: signal.Signals, printed: Path) -> None:
        """Send the process a signal, and wait until it has a note of it, and has not stopped at it."""
        assert process.pid is not None
        os.kill(process.pid, number)
        _wait_for(self.folder / "noted", [process], printed)

    def let_go(self) -> None:
        """Let the process go on."""
        (self.folder / "go on").touch()


def _wait_for(path: Path, processes: Sequence[BaseProcess], printed: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, printed.read_text()
        assert all(process.is_alive() for process in processes), printed.read_text()
        time.sleep(0.01)


def status(process: BaseProcess) -> int | None:
    """The exit status of a process, once it has ended."""
    process.join(timeout=PATIENCE)
    return process.exitcode


def products(folder: Path) -> dict[str, bytes]:
    """What a phase has left but for its times, and what was drawn of them."""
    kept = ("history.csv", "selection.json", "adapter_model.safetensors", "results.json", "samples.jsonl", "done.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.name in kept}
