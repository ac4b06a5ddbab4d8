"""Finished trials as one file, ``trials.jsonl``: another machine goes on with a study, or several share it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from flexora.compare.kept import change_since, is_done, keep_row, made_with, outcomes, read_row, selection_file
from flexora.compare.rows import Outcome, ResultRow
from flexora.compare.study import Study, Trial
from flexora.errors import FlexoraError, first_line
from flexora.files import write_atomically, write_json
from flexora.scoring.results import Results
from flexora.search.selection import Selection


class FinishedTrial(BaseModel):
    """All that others need of a finished trial; its adapter is not part of it.

    Attributes:
        trial: The trial, ``BENCHMARK/ARM/SEED``.
        made_with: What decided its result, and what it took from other trials.
        row: Its row.
        outcomes: Which rows it answered rightly.
        results: The results of its evaluation.
        selection: Its layers; none for the base model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    trial: str
    made_with: dict[str, Any]
    row: ResultRow
    outcomes: list[Outcome]
    results: Results
    selection: Selection | None


def write_finished(study: Study, trials: Sequence[Trial], file: Path) -> Path:
    """Write finished trials, a line each."""
    lines = []
    for trial in trials:
        folder, row = study.run_folder(trial), read_row(study, trial)
        assert row is not None
        finished = FinishedTrial(
            trial=str(trial),
            made_with=made_with(folder),
            row=row,
            outcomes=outcomes(study, trial),
            results=Results.read(folder.results),
            selection=None if study.is_base(trial.arm) else Selection.read(selection_file(study, trial)),
        )
        lines.append(json.dumps(finished.model_dump(mode="json"), ensure_ascii=False))
    return write_atomically(file, "".join(f"{line}\n" for line in lines))


def take_over(study: Study, file: Path) -> tuple[int, int]:
    """Put a file's trials where this study would have left them; those that are done here stay as they are.

    Returns:
        How many were taken over, and how many are none of this study.

    Raises:
        FlexoraError: If the file cannot be read, or a trial was made with other settings.
    """
    found = {one.trial: one for one in _read(file)}
    known = {str(trial): trial for trial in study.trials}
    own = {known[name]: one for name, one in found.items() if name in known}
    for trial, one in own.items():
        if change := change_since(study, trial, one.made_with, compare_taken=False):
            raise FlexoraError(
                f"compare: finished: {trial} of {file} was made with other settings ({change}); remove its line, or "
                "set the study's settings back"
            )
    taken = [trial for trial in own if not is_done(study, trial)]
    for trial in taken:
        _put(study, trial, own[trial])
    return len(taken), len(found) - len(own)


def _read(file: Path) -> Iterator[FinishedTrial]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FlexoraError(f"compare: finished: cannot read {file}: {first_line(error)}") from error
    for number, line in enumerate(lines, 1):
        try:
            yield FinishedTrial.model_validate_json(line)
        except ValidationError as error:
            reason = error.errors()[0]
            wrong = ".".join(map(str, reason["loc"])) or "line"
            raise FlexoraError(
                f"compare: finished: {file} line {number}: {wrong}: {reason['msg']}; give the trials.jsonl of a study"
            ) from error


def _put(study: Study, trial: Trial, one: FinishedTrial) -> None:
    folder = study.run_folder(trial)
    write_json(folder.root / "trial.json", one.made_with)
    one.results.write(folder.results)
    if one.selection is not None:
        one.selection.write(selection_file(study, trial))
    keep_row(folder, one.row, one.outcomes)
