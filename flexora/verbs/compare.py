"""``flexora compare``: the same budget for Flexora, LoRA, controls and rivals, over benchmarks and seeds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from flexora.compare.checks import study_problems
from flexora.compare.handover import take_over
from flexora.compare.kept import is_done
from flexora.compare.report import rewrite
from flexora.compare.results import write_results, write_rows
from flexora.compare.schedule import Schedule
from flexora.compare.study import instantiated, make_study, matching, study_parser
from flexora.compare.table import study_tables
from flexora.errors import FlexoraError


def main(arguments: Sequence[str]) -> int:
    """Do the trials that are not done yet, and write ``compare/results.csv`` and what is made of it.

    Returns:
        0, or 1 if trials failed.

    Raises:
        FlexoraError: If the study does not allow it, or no trial matches.
    """
    given = instantiated(study_parser(), arguments)
    if given.results is not None:
        _show(Path(given.results))
        return 0
    study = make_study(given)
    for file in map(Path, given.finished):
        taken, others = take_over(study, file)
        print(f"{file}: {taken} trials taken over" + (f"; {others} are none of this study" if others else ""))
    trials = list(matching(study.trials, given.only))
    if not trials:
        raise FlexoraError(f"compare: only: no trial matches; they are called such as {study.trials[0]}")
    if given.jobs < 1:
        raise FlexoraError(f"compare: jobs: {given.jobs} is too small; give at least 1")
    done = [trial for trial in study.trials if is_done(study, trial)]
    waiting = [trial for trial in study.with_needs(trials) if trial not in done]
    for problem in study_problems(study, waiting, given.jobs):
        raise FlexoraError(f"compare: {problem}")  # before hours of training
    if study.untuned and waiting:
        print(f"compare: the learning rate of {', '.join(study.untuned)} is the recipe's, that of other arms is tuned")
    schedule = Schedule(study, list(arguments), given.jobs)
    failed = schedule.run(trials, partial(write_rows, study))
    write_results(study)
    _show(study.results)
    for trial, reason in failed.items():
        print(f"flexora compare: {trial}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _show(folder: Path) -> None:
    """Make a study's report again, and print its tables."""
    console = Console()
    for table in study_tables(rewrite(folder)):
        console.print(table)
    console.print(f"rows:   {folder / 'results.csv'}\nreport: {folder / 'report.html'}", soft_wrap=True)
