"""Two processes that share a phase: what was stopped in either of them goes on to the bits of one that was not."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from flexora.checkpoint import CheckpointFolder
from tests.commands import start_on_each_device
from tests.reliability.holding import LOSS, Commands, Hold, products, status


def start(command: list[str], tmp_path: Path, hold: dict[int, Hold], expected: int) -> None:
    """Start both processes, and stop the one with a hold by SIGTERM when it is there."""
    printed = [tmp_path / f"printed_{rank}.txt" for rank in range(2)]
    processes = start_on_each_device(command, printed, dict(hold))
    for rank, place in hold.items():
        place.wait_until_reached(processes, printed[rank])
        place.note(processes[rank], signal.SIGTERM, printed[rank])
        place.let_go()
    statuses = [status(process) for process in processes]
    assert statuses == [expected, expected], "".join(file.read_text() for file in printed)


@pytest.mark.parametrize(("verb", "places"), [("search", (18, 18)), ("finetune", (5, 7))])
def test_two_processes_go_on_to_the_same_bits(
    verb: str, places: tuple[int, int], commands: Commands, tmp_path: Path
) -> None:
    """Each process is stopped once, in the middle of a step; nothing is saved but for the signal."""
    command = [*commands[verb][:-1], "--trainer.devices=2", f"--{verb}.checkpoint_every=1000"]
    command += ["--search.outer_steps=4"] if verb == "search" else ["--trainer.accumulate_grad_batches=2"]
    start([*command, f"--output_dir={tmp_path / 'straight'}"], tmp_path, {}, 0)
    cut, steps = tmp_path / "cut", []
    for rank, at in enumerate(places):
        hold = Hold(tmp_path / f"held_{rank}", LOSS[verb], at)
        start([*command, f"--output_dir={cut}"], tmp_path, {rank: hold}, 143)
        newest = CheckpointFolder(cut / verb / "checkpoints").newest(pytest.fail)
        assert newest is not None
        steps.append(int(newest.stem.removeprefix("step-")))
    assert 0 < steps[0] < steps[1]
    start([*command, f"--output_dir={cut}"], tmp_path, {}, 0)
    assert len(found := products(cut / verb)) == 4
    assert found == products(tmp_path / "straight" / verb)
