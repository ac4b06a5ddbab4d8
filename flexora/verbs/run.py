"""``flexora run``: search, select, fine-tune, evaluate and report in one resumable go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from torch.distributed import is_torchelastic_launched

from flexora.backbone.limits import Phase
from flexora.errors import FlexoraError, Interrupted
from flexora.places import own_path
from flexora.processes import forwarded
from flexora.report.html import write_report
from flexora.report.terminal import gate_bars, results_table
from flexora.scoring.results import Results
from flexora.search.named import retargeted
from flexora.search.selection import Selection
from flexora.verbs.checks import checks
from flexora.verbs.effect import TOLD
from flexora.verbs.scored import is_scored, require_same_rows
from flexora.verbs.settings import Recipe, run_arguments


@dataclass(frozen=True)
class Step:
    """One step of a run: the folder it fills and the verb that fills it."""

    name: str
    verb: Phase
    flags: list[str] = field(default_factory=list)


def steps_of(arms: Sequence[str], *, searches: bool) -> list[Step]:
    """The steps of a run: plain LoRA is trained if it is among the arms, and nothing is searched that is given."""
    plain = ["--finetune.selection=all", "--finetune.folder=lora", "--finetune.warm_start=false"]
    return [
        *([Step("search", "search")] if searches else []),
        Step("finetune", "finetune"),
        *([Step("lora", "finetune", plain)] if "lora" in arms else []),
        Step("evaluate", "evaluate"),
    ]


def main(arguments: Sequence[str]) -> int:
    """Run the phases that are not done yet, each as a process of its own.

    Under DDP Lightning starts the whole command again for every device, so a phase must be a command.

    Raises:
        FlexoraError: If the recipe does not allow it, the folder holds a run with other settings, or a launcher started
            this command once for each device.
    """
    if is_torchelastic_launched() or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise FlexoraError(
            "run: starts the processes of each phase by itself; have torchrun or srun start flexora search, finetune "
            "and evaluate one after another"
        )
    arguments = run_arguments(arguments)
    recipe = Recipe("run", arguments)
    _require_own_folder(recipe)
    console, folder = Console(), recipe.folder
    arms = recipe.sections["evaluate"]["arms"]
    steps = steps_of(arms, searches=recipe.sections["finetune"]["selection"] is None)
    for step in steps:
        _require_same(recipe, step)
    waiting = [step for step in steps if not _is_done(recipe, step)]
    if not waiting:
        console.print(f"all done: {folder.root} holds the finished run", soft_wrap=True)
    phases: list[Phase] = list(dict.fromkeys(step.verb for step in waiting))
    for check in checks(recipe, phases, trains=phases != ["evaluate"]) if waiting else ():
        check()  # before hours of training
    for step in steps:
        if _is_done(recipe, step):
            _require_same(recipe, step)  # once more: a search that was done again may have chosen other layers
            console.print(f"[bold]{step.name}[/bold]: done already")
            continue
        console.rule(f"[bold]{step.name}")
        if folder.is_done(step.name):
            console.print("adapters have changed, or more is asked for: scoring them again")
        status = _call([sys.executable, "-m", "flexora", step.verb, *arguments, *step.flags])
        if status:
            console.print(f"run: stopped in {step.name} with status {status}; the same command continues there")
            if status == 128 + signal.SIGKILL:
                console.print("run: killed, as the system does where memory runs out; see flexora estimate")
            return status
    report = write_report(folder.root, recipe.sections["report"]["title"])
    console.rule("[bold]result")
    if not waiting:  # otherwise the phases have just shown both
        console.print(gate_bars(Selection.read(folder.selection_of("finetune"))))
        results = Results.read(folder.results)
        for part in [*results.parts, results]:
            console.print(results_table(part))
    console.print(f"adapter: {folder.adapter('finetune')}\nreport:  {report}", soft_wrap=True)
    return 0


def _require_own_folder(recipe: Recipe) -> None:
    """Refuse another folder of the fine-tune: the adapter in it would be neither evaluated nor found again."""
    if (named := recipe.sections["finetune"]["folder"]) != "finetune":
        raise FlexoraError(
            f"finetune.folder: {named}: run fills the folder finetune, which it evaluates and reports; leave it out, "
            "or call flexora search, finetune and evaluate"
        )


def _is_done(recipe: Recipe, step: Step) -> bool:
    """Whether a step is finished; an evaluation only while it has what is asked for."""
    return is_scored(recipe) if step.name == "evaluate" else recipe.folder.is_done(step.name)


def _require_same(recipe: Recipe, step: Step) -> None:
    if not recipe.folder.is_done(step.name):
        return
    if step.name == "evaluate":
        require_same_rows(recipe)
        return
    settings = recipe.settings(step.verb)
    if step.name == "finetune":
        # The setting says it all of layers by number; a file may have changed, and a search may have chosen others.
        named = settings["finetune"]["selection"]
        file = recipe.folder.selection if named is None else own_path(named, "finetune.selection")
        if file.is_file():
            found = retargeted(Selection.read(file), recipe.target_modules("finetune"), str(file))
            settings["targets"] = found.model_dump(mode="json")["targets"]
    if step.name == "lora":
        settings["finetune"] |= {"selection": "all", "folder": "lora", "warm_start": False}
        settings.pop("initial_adapter", None)
    recipe.folder.require_same(step.name, settings)


def _call(command: Sequence[str]) -> int:
    """Run a phase, pass signals on to it, and return its exit status (128 + n after signal n).

    Raises:
        Interrupted: If a signal was passed on, and came too late to stop the phase: no other one may start.
    """
    passed: list[int] = []
    # A process group of its own: Ctrl-C in the terminal reaches this process alone, which hands it on once.
    process = subprocess.Popen(command, process_group=0, env=os.environ | {TOLD: "1"})

    def send(number: int) -> None:
        passed.append(number)
        process.send_signal(number)

    with forwarded(send):
        status = process.wait()
    if passed and not status:
        raise Interrupted(128 + passed[0])
    return 128 - status if status < 0 else status
