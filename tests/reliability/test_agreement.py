"""Two processes: what the first one cannot write, and folders that are not the same, end both with the same line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from flexora.checkpoint import CheckpointFolder
from flexora.errors import FlexoraError
from tests.commands import start_on_each_device
from tests.reliability.holding import Commands, status


@dataclass(frozen=True)
class FullDisk:
    """No checkpoint can be written any more."""

    def __call__(self) -> None:
        """Have this process run into it."""

        def write(*arguments: object) -> None:
            raise FlexoraError("cannot write the checkpoint: No space left on device; make room")

        CheckpointFolder.write = write  # type: ignore[method-assign]


@dataclass(frozen=True)
class OwnFolder:
    """A machine whose folder has no checkpoints."""

    def __call__(self) -> None:
        """Have this process look there."""
        CheckpointFolder.newest = lambda *_: None  # type: ignore[method-assign]


def errors(command: list[str], prepare: dict[int, FullDisk | OwnFolder], tmp_path: Path) -> list[str]:
    """Start both processes, and return the line of each; none has a traceback."""
    printed = [tmp_path / f"printed_{rank}.txt" for rank in range(2)]
    processes = start_on_each_device(command, printed, dict(prepare))
    statuses, texts = [status(process) for process in processes], [file.read_text() for file in printed]
    assert statuses == [2, 2], "".join(texts)
    assert "Traceback" not in "".join(texts)
    return [line for text in texts for line in text.splitlines() if "error:" in line]


@pytest.mark.parametrize("verb", ["search", "finetune"])
def test_both_end_in_the_same_line(verb: str, commands: Commands, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*commands[verb][:-1], "--trainer.devices=2", f"--{verb}.checkpoint_every=1", f"--output_dir={out}"]
    lines = errors(command, {0: FullDisk()}, tmp_path)
    assert lines == [
        f"flexora {verb}: error: cannot write the checkpoint: No space left on device; make room" for _ in range(2)
    ]
    processes = start_on_each_device(command, [tmp_path / "0.txt", tmp_path / "1.txt"])
    assert [status(process) for process in processes] == [0, 0]
    (out / verb / "done.json").unlink()
    lines = errors(command, {1: OwnFolder()}, tmp_path)
    assert len(set(lines)) == 1
    assert f"in {out / verb / 'checkpoints'}; it must be one folder that all machines share" in lines[0]
