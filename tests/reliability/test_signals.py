"""Signals anywhere within a step: the state before it is kept, and what follows is the same to the bit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexora import interruption
from flexora.checkpoint import CheckpointFolder
from flexora.cli import main
from tests.commands import start_on_each_device

#: Gradients of one outer step with T = 2 that is checked: 2 + 1 + 2 of the exact one, 2 + 1 + 4 of the other.
GRADIENTS = 12


class Sender:
    """Sends this process a signal where it looks for one the n-th time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
        self.looks = 0
        self.at = 0
        self.number = signal.SIGTERM
        heed = interruption.heed

        def look(*arguments: Any) -> None:
            self.looks += 1
            if self.looks == self.at:
                os.kill(os.getpid(), self.number)
            heed(*arguments)

        for module in modules:
            monkeypatch.setattr(f"flexora.{module}.heed", look)

    def run(self, arguments: list[str], at: int = 0, number: signal.Signals = signal.SIGTERM) -> int:
        """Run a command; it gets the signal where it looks the ``at``-th time."""
        self.looks, self.at, self.number = 0, at, number
        return main(arguments)


def result(folder: Path) -> dict[str, bytes]:
    """What a phase leaves behind: its adapter, and its course."""
    files = [folder / "history.csv", folder / "adapter" / "adapter_model.safetensors"]
    return {file.name: file.read_bytes() for file in files}


def test_sigterm_anywhere_in_an_outer_step(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is saved but for the signal: each start makes one whole step and is stopped in the next one."""
    monkeypatch.setattr("flexora.report.html.draw", lambda *_: {})
    arguments = ["search", "--config", str(recipe()), "--search.accumulate=1", "--search.check_every=1"]
    arguments += [f"--search.outer_steps={GRADIENTS + 1}", "--search.checkpoint_every=1000", "--output_dir"]
    sender = Sender(monkeypatch, "search.problem")
    assert sender.run([*arguments, str(tmp_path / "straight")]) == 0
    assert sender.looks == GRADIENTS * (GRADIENTS + 1)
    cut = tmp_path / "cut"
    for place in range(GRADIENTS):
        number, status = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[place % 2]
        assert sender.run([*arguments, str(cut)], GRADIENTS + place + 1, number) == status
        assert "interrupted; the same command goes on" in capfd.readouterr().err
        assert (cut / "search" / "checkpoints" / f"step-{place + 1:07d}.ckpt").is_file()
        assert not (cut / "search" / "done.json").exists()
    assert sender.run([*arguments, str(cut)]) == 0
    assert sender.looks == GRADIENTS
    assert result(cut / "search") == result(tmp_path / "straight" / "search")


ADALORA = "{class_path: AdaLoraConfig, init_args: {init_r: 4, target_r: 2, tinit: 2, tfinal: 2, deltaT: 2}}"


@pytest.mark.parametrize(
    ("flags", "places"),
    [
        # From a step's start: in its second batch or its successor's first, in a validation, after it or the last one.
        ([], (3, 2, 4, 5, 6, 7)),
        (["--trainer.precision=bf16-mixed"], (6, 7)),
        (["--finetune.adapter", ADALORA], (6, 7)),
        (["--finetune.trainer.val_check_interval=0.5"], (4, 5, 7)),
    ],
    ids=["float32", "bf16", "AdaLoRA", "two validations an epoch"],
)
def test_sigterm_anywhere_in_the_finetune(
    flags: list[str],
    places: tuple[int, ...],
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flexora.report.html.draw", lambda *_: {})
    rare = ["--trainer.accumulate_grad_batches=2", "--finetune.checkpoint_every=1000"]
    arguments = ["finetune", "--config", str(recipe()), "--selection=1,3", *rare, *flags, "--output_dir"]
    sender = Sender(monkeypatch, "interruption")
    assert sender.run([*arguments, str(tmp_path / "straight")]) == 0
    looks, cut = sender.looks, tmp_path / "cut"
    stops = 0
    while sender.run([*arguments, str(cut)], places[stops % len(places)]) == 143:
        stops += 1
        assert stops < looks, "it does not get on"
    assert stops >= 4
    assert result(cut / "finetune") == result(tmp_path / "straight" / "finetune")


@pytest.mark.parametrize("verb", ["search", "finetune"])
def test_a_signal_to_one_of_two_processes_stops_both(verb: str, recipe: Callable[..., Path], tmp_path: Path) -> None:
    """The second one alone gets it: the first one must hear of it, and save."""
    arguments = [verb, "--config", str(recipe()), "--trainer.devices=2", f"--{verb}.checkpoint_every=1000"]
    arguments += (
        ["--search.outer_steps=3000"] if verb == "search" else ["--selection=1", "--finetune.trainer.max_epochs=3000"]
    )
    outputs = [tmp_path / f"printed_{rank}.txt" for rank in range(2)]
    processes = start_on_each_device(arguments, outputs)
    history, deadline = tmp_path / "out" / verb / "history.csv", time.monotonic() + 240
    while not (history.is_file() and len(history.read_text().splitlines()) > 2):
        assert time.monotonic() < deadline, "it did not start"
        assert all(process.is_alive() for process in processes), [output.read_text() for output in outputs]
        time.sleep(0.05)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(timeout=120)
    printed = [output.read_text() for output in outputs]
    assert [process.exitcode for process in processes] == [143, 143], printed
    assert all("interrupted; the same command goes on" in text for text in printed)
    assert "Traceback" not in "".join(printed)
    assert CheckpointFolder(tmp_path / "out" / verb / "checkpoints").newest(print) is not None
