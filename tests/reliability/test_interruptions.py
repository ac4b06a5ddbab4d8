"""Signals from outside: the second Ctrl-C does not wait, and an evaluation that is stopped leaves nothing behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from flexora.checkpoint import CheckpointFolder, read_checkpoint
from flexora.errors import Interrupted
from flexora.impatience import second_ctrl_c_ends
from flexora.verbs.run import _call as run_phase
from tests.commands import start_command, start_on_each_device
from tests.reliability.holding import LOSS, PATIENCE, Commands, Hold, products, status

#: The call for the last batch of the fine-tune's last validation.
LAST = 26


def done(command: list[str], tmp_path: Path) -> None:
    """Run a command to its end."""
    printed = tmp_path / "printed_to_the_end.txt"
    assert status(start_command(command, printed)) == 0, printed.read_text()


@pytest.mark.parametrize(("verb", "at"), [("search", 25), ("finetune", 18)])
def test_the_second_ctrl_c_does_not_wait_for_the_step(
    verb: str,
    at: int,
    commands: Commands,
    tmp_path: Path,
) -> None:
    """The step never ends by itself; a first Ctrl-C leaves a note that nobody reads."""
    out, printed, hold = tmp_path / "out", tmp_path / "printed.txt", Hold(tmp_path / "held", LOSS[verb], at)
    command = [*commands[verb], str(out), f"--{verb}.checkpoint_every=1"]
    process = start_command(command, printed, prepare=hold)
    hold.wait_until_reached([process], printed)
    checkpoints = CheckpointFolder(out / verb / "checkpoints")
    before = checkpoints.newest(pytest.fail)
    assert before is not None
    hold.note(process, signal.SIGINT, printed)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert status(process) == 130, printed.read_text()
    (line,) = [line for line in printed.read_text().splitlines() if line.startswith("flexora ")]
    assert line == f"flexora {verb}: interrupted; the same command goes on from what is done"
    assert "Traceback" not in printed.read_text()
    assert checkpoints.newest(pytest.fail) == before
    assert read_checkpoint(before)
    done(command, tmp_path)
    done([*command, f"--output_dir={tmp_path / 'straight'}"], tmp_path)
    assert products(out / verb) == products(tmp_path / "straight" / verb)


def test_the_second_ctrl_c_does_not_wait_for_another_process(commands: Commands, tmp_path: Path) -> None:
    """The first process waits in a collective for the second one, which never comes."""
    printed = [tmp_path / f"printed_{rank}.txt" for rank in range(2)]
    hold = Hold(tmp_path / "held", LOSS["search"], 18)
    command = [*commands["search"], str(tmp_path / "out"), "--trainer.devices=2"]
    first, second = start_on_each_device(command, printed, {1: hold})
    hold.wait_until_reached([first, second], printed[1])
    assert first.pid is not None
    for _ in range(PATIENCE):
        if not first.is_alive():
            break
        os.kill(first.pid, signal.SIGINT)
        first.join(timeout=1)
    assert first.exitcode == 130, printed[0].read_text()
    (line,) = [line for line in printed[0].read_text().splitlines() if line.startswith("flexora ")]
    assert line == "flexora search: interrupted; the same command goes on from what is done"
    second.kill()


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_evaluation_that_is_stopped_leaves_nothing(at: int, commands: Commands, tmp_path: Path) -> None:
    """At the first and the last batch of each arm."""
    out, printed, hold = tmp_path / "out", tmp_path / "printed.txt", Hold(tmp_path / "held", LOSS["evaluate"], at)
    command = [*commands["evaluate"], str(out)]
    process = start_command(command, printed, prepare=hold)
    hold.wait_until_reached([process], printed)
    hold.note(process, signal.SIGTERM, printed)
    hold.let_go()
    assert status(process) == 143, printed.read_text()
    (line,) = [line for line in printed.read_text().splitlines() if line.startswith("flexora ")]
    assert line == "flexora evaluate: interrupted; the same command goes on from what is done"
    assert "Traceback" not in printed.read_text()
    assert {path.name for path in (out / "evaluate").rglob("*")} == {"settings.json", "usage.json"}
    done(command, tmp_path)
    done([*commands["evaluate"], str(tmp_path / "straight")], tmp_path)
    assert products(out / "evaluate") == products(tmp_path / "straight" / "evaluate")


def test_a_signal_in_the_last_validation_is_not_lost(commands: Commands, tmp_path: Path) -> None:
    out, printed, command = tmp_path / "out", tmp_path / "printed.txt", commands["finetune"]
    never = Hold(tmp_path / "never", LOSS["finetune"], LAST + 1)
    assert status(start_command([*command, str(tmp_path / "straight")], printed, prepare=never)) == 0
    hold = Hold(tmp_path / "held", LOSS["finetune"], LAST)
    process = start_command([*command, str(out)], printed, prepare=hold)
    hold.wait_until_reached([process], printed)
    hold.note(process, signal.SIGTERM, printed)
    hold.let_go()
    assert status(process) == 143, printed.read_text()
    assert not (out / "finetune" / "done.json").exists()
    done([*command, str(out)], tmp_path)
    assert products(out / "finetune") == products(tmp_path / "straight" / "finetune")


def test_no_phase_follows_one_that_a_signal_did_not_stop(tmp_path: Path) -> None:
    """It came when the phase had done its work already."""
    ready = tmp_path / "ready"
    deaf = "import pathlib, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]);"
    deaf += " pathlib.Path(sys.argv[1]).touch(); signal.sigwait([signal.SIGTERM])"

    def stop() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(Interrupted) as stopped:
        run_phase([sys.executable, "-c", deaf, str(ready)])
    assert stopped.value.status == 143


def test_a_process_that_was_forked_meanwhile_keeps_nobody(tmp_path: Path) -> None:
    """It holds the pipe of the signals open, as a loader's worker may after an error."""
    before = threading.active_count()
    with second_ctrl_c_ends("search", lambda: None):
        child = os.fork()
        if not child:
            time.sleep(600)
            os._exit(0)
    assert threading.active_count() == before
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
