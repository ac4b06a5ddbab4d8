"""Phases that are killed outright, again and again, at random moments: what comes out is the same to the bit.

``FLEXORA_KILLS`` says how often; ``make test-reliability`` does it 25 times in each phase.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from flexora.checkpoint import CheckpointFolder, read_checkpoint
from flexora.cli import main
from tests.commands import start_command
from tests.reliability.test_signals import result

KILLS = int(os.environ.get("FLEXORA_KILLS", "3"))

#: Steps between two checkpoints.
EVERY = 3


def newest_step(folder: Path) -> int:
    """The step that the next start goes on from."""
    newest = CheckpointFolder(folder / "checkpoints").newest(print)
    return 0 if newest is None else int(newest.stem.removeprefix("step-"))


def kill_again_and_again(arguments: list[str], folder: Path) -> int:
    """Start a phase and kill it, ``KILLS`` times; how many of them were after a first checkpoint."""
    rng, after_first = random.Random(KILLS), 0
    printed = folder.parent.parent / "printed.txt"
    for _ in range(KILLS):
        before = newest_step(folder)
        process = start_command([*arguments, str(folder.parent)], printed)
        deadline = time.monotonic() + 300
        while newest_step(folder) == before:  # every start gets somewhere, so the end comes
            assert process.is_alive(), printed.read_text()
            assert time.monotonic() < deadline, printed.read_text()
            time.sleep(0.01)
        after_first += bool(before)
        time.sleep(rng.uniform(0, 0.5))
        assert process.is_alive(), f"done before it could be killed: {printed.read_text()}"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        files = sorted((folder / "checkpoints").glob("step-*.json"))
        steps = [int(file.stem.removeprefix("step-")) for file in files]
        assert all(later - earlier <= EVERY for earlier, later in pairwise(steps))
    return after_first


def test_a_search_that_is_killed(recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flexora.report.html.draw", lambda *_: {})
    steps = 20 * (KILLS + 1)
    arguments = ["search", "--config", str(recipe()), f"--search.outer_steps={steps}"]
    arguments += [f"--search.checkpoint_every={EVERY}", "--output_dir"]
    folder = tmp_path / "cut" / "search"
    assert kill_again_and_again(arguments, folder) >= KILLS - 1
    lost = len((folder / "history.csv").read_text().splitlines()) - 1 - newest_step(folder)
    assert 0 <= lost <= EVERY
    for name in ("cut", "straight"):
        assert main([*arguments, str(tmp_path / name)]) == 0
    assert result(folder) == result(tmp_path / "straight" / "search")


def test_a_finetune_that_is_killed(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexora.report.html.draw", lambda *_: {})
    arguments = ["finetune", "--config", str(recipe()), "--selection=1,3", "--trainer.accumulate_grad_batches=2"]
    arguments += [f"--finetune.trainer.max_epochs={8 * (KILLS + 1)}", f"--finetune.checkpoint_every={EVERY}"]
    arguments += ["--output_dir"]
    folder = tmp_path / "cut" / "finetune"
    assert kill_again_and_again(arguments, folder) >= KILLS - 1
    checkpoint = read_checkpoint(folder / "checkpoints" / f"step-{newest_step(folder):07d}.ckpt")
    assert not any("mlp" in name or "embed" in name for name in checkpoint["state_dict"])  # no frozen base
    for name in ("cut", "straight"):
        assert main([*arguments, str(tmp_path / name)]) == 0
    assert result(folder) == result(tmp_path / "straight" / "finetune")
