"""SLURM asks for a requeue: the state is saved, the job is put back into the queue, and goes on to the same bits."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from flexora.checkpoint import CheckpointFolder
from flexora.cli import main
from tests.commands import start_command
from tests.reliability.holding import LOSS, Commands, Hold, products, status

#: What SLURM gives a step of one process on one machine.
STEP = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_ID": "70123"}
STEP |= {"SLURM_JOB_NAME": "flexora"}
ARRAY = {"SLURM_ARRAY_JOB_ID": "70120", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The variables of a job, and a ``scontrol`` that writes down what it is asked, and what is saved by then."""
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$*" $(ls {tmp_path}/cut/*/checkpoints) >> {tmp_path}/asked.txt\n')
    script.chmod(0o755)
    return {**STEP, "PATH": f"{script.parent}:{os.environ['PATH']}"}


def asked(tmp_path: Path) -> list[str]:
    """What ``scontrol`` was asked."""
    file = tmp_path / "asked.txt"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(
    ("verb", "at", "variables", "expected"),
    [
        ("search", 18, {}, "requeue 70123 step-0000001.ckpt step-0000001.json"),
        ("search", 1, ARRAY, "requeue 70120_3"),
        ("finetune", 6, ARRAY, "requeue 70120_3 step-0000002.ckpt step-0000002.json"),
        ("evaluate", 1, {}, "requeue 70123"),
        ("evaluate", 3, ARRAY, "requeue 70120_3"),
    ],
)
def test_what_slurm_starts_again_goes_on(
    verb: str,
    at: int,
    variables: dict[str, str],
    expected: str,
    slurm: dict[str, str],
    commands: Commands,
    tmp_path: Path,
) -> None:
    """The signal comes in the middle of a step; in an evaluation in the first arm and in the second one."""
    command, cut, printed = commands[verb], tmp_path / "cut", tmp_path / "printed.txt"
    if verb != "evaluate":
        command = [*command[:-1], "--trainer.accumulate_grad_batches=2", f"--{verb}.checkpoint_every=1000", command[-1]]
    straight = start_command([*command, str(tmp_path / "straight")], printed)
    assert status(straight) == 0, printed.read_text()
    hold = Hold(tmp_path / "held", LOSS[verb], at)
    process = start_command([*command, str(cut)], printed, slurm | variables, prepare=hold)
    hold.wait_until_reached([process], printed)
    hold.note(process, signal.SIGUSR1, printed)
    hold.let_go()
    assert status(process) == 128 + signal.SIGUSR1, printed.read_text()
    (line,) = [line for line in printed.read_text().splitlines() if line.startswith("flexora ")]
    assert line == f"flexora {verb}: interrupted; the same command goes on from what is done"
    assert "Traceback" not in printed.read_text()
    assert asked(tmp_path) == [expected]
    again = start_command([*command, str(cut)], printed, slurm | variables)
    assert status(again) == 0, printed.read_text()
    assert len(asked(tmp_path)) == 1
    assert not list(cut.rglob("hpc_ckpt*"))
    assert products(cut / verb) == products(tmp_path / "straight" / verb)


def start_tasks(command: list[str], slurm: dict[str, str], printed: list[Path], hold: Hold | None) -> list[BaseProcess]:
    """Start two processes as ``srun`` does; the second one may have a hold."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        joint = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    joint |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_NUM_TASKS": "2"}
    return [
        start_command(
            command,
            printed[rank],
            slurm | joint | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            hold if rank else None,
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize(("verb", "at"), [("search", 18), ("finetune", 5)])
def test_the_first_of_two_processes_speaks_to_slurm(
    verb: str, at: int, slurm: dict[str, str], commands: Commands, tmp_path: Path
) -> None:
    """The second one alone gets the signal, and SIGTERM after it."""
    cut, printed = tmp_path / "cut", [tmp_path / f"printed_{rank}.txt" for rank in range(2)]
    command = [*commands[verb][:-1], "--trainer.devices=2", f"--{verb}.checkpoint_every=1000", f"--output_dir={cut}"]
    hold = Hold(tmp_path / "held", LOSS[verb], at)
    processes = start_tasks(command, slurm, printed, hold)
    hold.wait_until_reached(processes, printed[1])
    for number in (signal.SIGUSR1, signal.SIGTERM):
        hold.note(processes[1], number, printed[1])
    hold.let_go()
    assert [status(process) for process in processes] == [138, 138], "".join(file.read_text() for file in printed)
    newest = CheckpointFolder(cut / verb / "checkpoints").newest(pytest.fail)
    assert newest is not None
    assert asked(tmp_path) == [f"requeue 70123 {newest.name} {newest.with_suffix('.json').name}"]


@pytest.mark.parametrize(
    ("script", "problem"), [("exit 3", "status 3"), (None, "No such file or directory")], ids=["refuses", "is missing"]
)
def test_a_scontrol_that_does_not_requeue(
    script: str | None, problem: str, slurm: dict[str, str], commands: Commands, tmp_path: Path
) -> None:
    file = tmp_path / "bin" / "scontrol"
    file.unlink()
    if script:
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    printed, hold = tmp_path / "printed.txt", Hold(tmp_path / "held", LOSS["search"], 3)
    process = start_command([*commands["search"], str(tmp_path / "cut")], printed, slurm, prepare=hold)
    hold.wait_until_reached([process], printed)
    hold.note(process, signal.SIGUSR1, printed)
    hold.let_go()
    assert status(process) == 138
    assert f"SLURM: scontrol requeue 70123 failed ({problem}); submit the job again" in printed.read_text()


def test_what_lightning_saved_is_not_loaded(
    recipe: Callable[..., Path],
    slurm: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "out" / "search" / "hpc_ckpt_1.ckpt"
    file.parent.mkdir(parents=True)
    file.touch()
    assert main(["search", "--config", str(recipe())]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert line.startswith(f"flexora search: error: {file}: Lightning saved it in the middle of a step")
