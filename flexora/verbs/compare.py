"""``flexora compare``: the same budget for Flexora, LoRA, controls and rivals, over benchmarks and seeds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from flexora.compare.checks import study_problems
from flexora.compare.rows import Outcome, ResultRow, write_lines
from flexora.compare.schedule import Schedule
from flexora.compare.study import Study, instantiated, make_study, matching, study_parser
from flexora.compare.trial import is_done, outcomes, read_row
from flexora.errors import FlexoraError


def main(arguments: Sequence[str]) -> int:
    """Do the trials that are not done yet, and write ``compare/results.csv`` and what is made of it.

    Returns:
        0, or 1 if trials failed.

    Raises:
        FlexoraError: If the study does not allow it, or no trial matches.
    """
    given = instantiated(study_parser(), arguments)
    study = make_study(given)
    trials = list(matching(study.trials, given.only))
    if not trials:
        raise FlexoraError(f"compare: only: no trial matches; they are called such as {study.trials[0]}")
    if given.jobs < 1:
        raise FlexoraError(f"compare: jobs: {given.jobs} is too small; give at least 1")
    waiting = [trial for trial in trials if not is_done(study, trial)]
    for problem in study_problems(study, waiting):
        raise FlexoraError(f"compare: {problem}")  # before hours of training
    schedule = Schedule(study, list(arguments), given.jobs)
    failed = schedule.run(trials, partial(collect, study))
    collect(study)
    for trial, reason in failed.items():
        print(f"flexora compare: {trial}: {reason}", file=sys.stderr)
    Console().print(f"results: {study.results / 'results.csv'}", soft_wrap=True)
    return 1 if failed else 0


def collect(study: Study) -> None:
    """Write the rows of all finished trials, in the study's order."""
    found = [(trial, row) for trial in study.trials if (row := read_row(study, trial)) is not None]
    order = {name: place for place, name in enumerate(study.recipes)}
    found.sort(key=lambda pair: order[pair[0].benchmark])
    write_lines(study.results / "results.csv", [row for _, row in found], ResultRow)
    write_lines(
        study.results / "outcomes.csv", [out for trial, row in found for out in outcomes(study, trial, row)], Outcome
    )
