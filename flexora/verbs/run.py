"""``flexora run``: search, select, fine-tune, evaluate and report in one resumable go."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from rich.console import Console

from flexora.report.html import write_report
from flexora.report.terminal import gate_bars, results_table
from flexora.scoring.results import Results
from flexora.search.selection import Selection
from flexora.verbs.phase import Recipe


@dataclass(frozen=True)
class Phase:
    """One step of a run: the folder it fills and the verb that fills it."""

    name: str
    verb: str
    flags: list[str] = field(default_factory=list)


def phases(arms: Sequence[str]) -> list[Phase]:
    """The steps of a run; plain LoRA is trained if it is among the arms to evaluate."""
    lora = Phase("lora", "finetune", ["--finetune.selection=all", "--finetune.folder=lora"])
    return [
        Phase("search", "search"),
        Phase("finetune", "finetune"),
        *([lora] if "lora" in arms else []),
        Phase("evaluate", "evaluate"),
    ]


def main(arguments: Sequence[str]) -> int:
    """Run the phases that are not done yet, each as a process of its own.

    Under DDP Lightning starts the whole command again for every device, so a phase must be a command.

    Raises:
        FlexoraError: If the recipe does not allow it, or the folder holds a run with other settings.
    """
    recipe = Recipe("run", arguments)
    console = Console()
    folder = recipe.folder
    steps = phases(recipe.sections["evaluate"]["arms"])
    for step in steps:
        _require_same(recipe, step)
    waiting = [step for step in steps if not folder.is_done(step.name)]
    if not waiting:
        console.print(f"all done: {folder.root} holds the finished run", soft_wrap=True)
    for step in steps:
        if step not in waiting:
            _require_same(recipe, step)  # once more: a search that was done again may have chosen other layers
            console.print(f"[bold]{step.name}[/bold]: done already")
            continue
        console.rule(f"[bold]{step.name}")
        status = _call([sys.executable, "-m", "flexora", step.verb, *arguments, *step.flags])
        if status:
            console.print(f"run: stopped in {step.name} with status {status}; the same command continues there")
            return status
    report = write_report(folder.root, recipe.sections["report"]["title"])
    console.rule("[bold]result")
    if not waiting:  # otherwise the phases have just shown both
        console.print(gate_bars(Selection.read(folder.selection)))
        console.print(results_table(Results.read(folder.results)))
    console.print(f"adapter: {folder.adapter('finetune')}\nreport:  {report}", soft_wrap=True)
    return 0


def _require_same(recipe: Recipe, step: Phase) -> None:
    if not recipe.folder.is_done(step.name):
        return
    settings = recipe.settings(step.verb)
    if step.name == "finetune" and recipe.folder.selection.is_file() and settings["finetune"]["selection"] is None:
        settings["targets"] = Selection.read(recipe.folder.selection).model_dump(mode="json")["targets"]
    if step.name == "lora":
        settings["finetune"] |= {"selection": "all", "folder": "lora"}
    if step.verb == "evaluate":
        settings["arms"] = recipe.sections["evaluate"]["arms"]
    recipe.folder.require_same(step.name, settings)


def _call(command: Sequence[str]) -> int:
    """Run a phase, pass signals on to it, and return its exit status (128 + n after signal n)."""
    # A process group of its own: Ctrl-C in the terminal reaches this process alone, which hands it on once.
    process = subprocess.Popen(command, process_group=0)
    with _forwarded(process):
        status = process.wait()
    return 128 - status if status < 0 else status


@contextmanager
def _forwarded(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand SIGTERM and SIGINT on to the phase, which saves and ends; this process waits for it."""

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    old = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
