"""Finished trials that another machine goes on from, or that several share: they fit this study, or none is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from filelock import Timeout

from flexora.compare.finished import FinishedTrial, read_trials, write_trials
from flexora.compare.kept import (
    change_since,
    change_taken,
    is_done,
    keep_row,
    made_with,
    outcomes,
    read_row,
    selection_file,
    trial_lock,
)
from flexora.compare.study import Study, Trial
from flexora.errors import FlexoraError, shown
from flexora.files import write_json
from flexora.runfolder import first_difference
from flexora.scoring.results import Results
from flexora.search.selection import Selection

Trials = Mapping[Trial, FinishedTrial]


def write_finished(study: Study, trials: Sequence[Trial], file: Path) -> Path:
    """Write finished trials, a line each."""
    return write_trials((_finished(study, trial) for trial in trials), file)


def _finished(study: Study, trial: Trial) -> FinishedTrial:
    folder, row = study.run_folder(trial), read_row(study, trial)
    assert row is not None
    return FinishedTrial(
        trial=str(trial),
        made_with=made_with(folder),
        row=row,
        outcomes=outcomes(study, trial),
        results=Results.read(folder.results),
        selection=None if study.is_base(trial.arm) else Selection.read(selection_file(study, trial)),
    )


def take_over(study: Study, file: Path) -> tuple[int, int]:
    """Put a file's trials where this study would have left them; those that are done here stay as they are.

    Returns:
        How many were taken over, and how many are none of this study.

    Raises:
        FlexoraError: If the file cannot be read, another process works at a trial, or one does not fit the study, the
            others of the file or those that are here; then none is taken over.
    """
    found = read_trials(file)
    for trial in study.trials:
        is_done(study, trial)  # those here fit the study, or this says which does not
    known = {str(trial): trial for trial in study.trials}
    own = {known[name]: one for name, one in found.items() if name in known}
    for trial, one in own.items():
        if wrong := _misfit(study, trial, one):
            raise FlexoraError(f"compare: finished: {trial} of {file} {wrong}")
    _require_same_rows(study, file, own)
    with _locked(study, _to_take(study, file, own)):
        # Looked at once more: until all were locked another process may have finished some.
        taken = _to_take(study, file, own)
        for trial in TopologicalSorter(study.with_needs(list(taken))).static_order():
            if trial in taken:  # after those that it needs: whatever stops this here, the study can go on
                _put(study, trial, taken[trial])
    return len(taken), len(found) - len(own)


def _misfit(study: Study, trial: Trial, one: FinishedTrial) -> str | None:
    """What of a line is not the trial's, or does not belong together."""
    if change := change_since(study, trial, one.made_with, compare_taken=False):
        return f"was made with other settings ({shown(change)}); remove its line, or set the study's settings back"
    base, row, results = study.is_base(trial.arm), one.row, one.results
    place: dict[str, Any] = {"benchmark": trial.benchmark, "arm": trial.arm, "draw": trial.draw}
    place["seed"] = None if base else trial.seed
    scored = {"metric": row.metric, "split": row.split, "rows": row.rows}
    said: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [("row", place, row.model_dump())]
    said += [(f"outcomes.{n}", place | {"rows": row.rows}, out.model_dump()) for n, out in enumerate(one.outcomes)]
    said += [("results", scored, results.model_dump() | {"metric": results.primary_metric})]
    for part, right, found in said:
        for name, value in right.items():
            if found[name] != value:
                return f"has {part}.{name} {shown(str(found[name]))} in the place of {value}; mend or remove its line"
    if (one.selection is None) != base:
        return f"has {'layers, and is the base model' if base else 'no layers'}; mend or remove its line"
    return None


def _scored(one: FinishedTrial) -> dict[str, Any]:
    """What the trials of a benchmark have in common."""
    row, results = one.row, one.results
    return {
        "model": results.model,
        "metric": row.metric,
        "split": row.split,
        "rows": row.rows,
        "split_rows": results.split_rows,
    }


def _require_same_rows(study: Study, file: Path, own: Trials) -> None:
    """Trials of one benchmark were made with the same model and scored on the same rows, here and in the file."""
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    for trial in study.trials:
        if trial.benchmark not in first and read_row(study, trial):
            first[trial.benchmark] = (f"{trial} here", _scored(_finished(study, trial)))
    for trial, one in own.items():
        other, common = first.setdefault(trial.benchmark, (str(trial), _scored(one)))
        if change := first_difference(common, _scored(one)):
            raise FlexoraError(
                f"compare: finished: {other} and {trial} of {file} were not scored alike ({shown(change)}); remove the "
                "line of one, or choose another output_dir"
            )


def _to_take(study: Study, file: Path, own: Trials) -> dict[Trial, FinishedTrial]:
    """The trials that have no row here, all of which may be put here."""
    new = {trial: one for trial, one in own.items() if read_row(study, trial) is None}
    for trial in study.trials:
        one, folder = new.get(trial), study.run_folder(trial)
        kept = one.made_with if one else made_with(folder)
        if kept and (change := change_taken(study, trial, kept, new)):
            which = f"{trial} of {file}" if one else str(folder.root)
            raise FlexoraError(
                f"compare: finished: {which} took something else from the trials that it needs ({shown(change)}); "
                f"remove the lines of one machine or the other from {file}, or choose another output_dir"
            )
        chosen = selection_file(study, trial)
        if one and chosen.is_file() and Selection.read(chosen) != one.selection:  # its LoRA would stay beside it
            raise FlexoraError(
                f"compare: finished: {trial} of {file} has another selection than {chosen}, where it was begun; delete "
                f"{folder.root}, or remove the trial's line"
            )
    return new


@contextmanager
def _locked(study: Study, trials: Trials) -> Iterator[None]:
    """Keep other processes from trials.

    Raises:
        FlexoraError: If one works at one of them.
    """
    with ExitStack() as locks:
        for trial in trials:
            try:
                locks.enter_context(trial_lock(study.run_folder(trial)))
            except Timeout as error:
                raise FlexoraError(
                    f"compare: finished: another process works at {trial}; give the command again when that one is "
                    "done, or remove the trial's line"
                ) from error
        yield


def _put(study: Study, trial: Trial, one: FinishedTrial) -> None:
    folder = study.run_folder(trial)
    write_json(folder.root / "trial.json", one.made_with)
    one.results.write(folder.results)
    if one.selection is not None:
        one.selection.write(selection_file(study, trial))
    keep_row(folder, one.row, one.outcomes)
