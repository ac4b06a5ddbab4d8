"""What a trial leaves on disk: what it was made with, its choice, its row, and which rows it answered rightly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from flexora.compare.decisive import filled_in, shareable, without_trainer
from flexora.compare.finished import FinishedTrial
from flexora.compare.rows import Outcome, ResultRow
from flexora.compare.selectors import Search
from flexora.compare.study import Study, Trial
from flexora.errors import FlexoraError
from flexora.files import write_json
from flexora.recipes import load_sections
from flexora.runfolder import RunFolder, first_difference
from flexora.search.selection import Selection

#: Folder of a choice that no search has made.
CHOICE = "choice"


def trial_lock(folder: RunFolder) -> FileLock:
    """Keeps other studies' processes from a trial; not to be waited for.

    Raises:
        FlexoraError: If its folder cannot be made.
    """
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlexoraError(f"cannot write {folder.root}: {error.strerror}; choose another output_dir") from error
    return FileLock(folder.root / ".trial.lock", timeout=0)


def row_file(folder: RunFolder) -> Path:
    """The file that says a trial is done, and what came of it."""
    return folder.root / "row.json"


def is_done(study: Study, trial: Trial) -> bool:
    """Whether a trial is finished, and those that it needs still are.

    Raises:
        FlexoraError: If it was started with other settings, or took something else from those that it needs.
    """
    folder = study.run_folder(trial)
    needs_done = all(is_done(study, need) for need in study.needs(trial))
    _require_same(study, trial, folder, compare_taken=needs_done)
    return needs_done and row_file(folder).is_file()


def made_with(folder: RunFolder) -> dict[str, Any]:
    """What a trial was begun with; nothing where it was not. Older files may hold more than is fit to be shared."""
    file = folder.root / "trial.json"
    return shareable(json.loads(file.read_text())) if file.is_file() else {}


def change_since(study: Study, trial: Trial, kept: dict[str, Any], *, compare_taken: bool) -> str | None:
    """What of a trial differs from what it was made with; what it takes from others only if they are done."""
    now = decisive(study, trial) | ({"taken": taken_from_others(study, trial)} if compare_taken else {})
    now = json.loads(json.dumps(now))
    before = {name: value for name, value in kept.items() if name in now}
    return first_difference(filled_in(before, now), now)


def change_taken(study: Study, trial: Trial, kept: dict[str, Any], given: Mapping[Trial, FinishedTrial]) -> str | None:
    """What a trial took from others that they would not give it now, given finished trials besides those here."""
    there = [need for need in study.needs(trial) if need in given or row_file(study.run_folder(need)).is_file()]
    unknown = tuple(f"{need} " for need in study.needs(trial) if need not in there)
    now = json.loads(json.dumps(_taken(study, trial, there, given)))
    before = kept.get("taken")
    if isinstance(before, dict):
        before = {name: value for name, value in before.items() if not name.startswith(unknown)}
    return first_difference({"taken": before}, {"taken": now})


def _require_same(study: Study, trial: Trial, folder: RunFolder, *, compare_taken: bool) -> None:
    kept = made_with(folder)
    if kept and (change := change_since(study, trial, kept, compare_taken=compare_taken)):
        raise FlexoraError(
            f"compare: {folder.root} was made with other settings ({change}); choose another output_dir, or delete it"
        )


@cache
def _sections(recipe: Path) -> dict[str, Any]:
    """A recipe's sections, read once: it is asked for by every trial."""
    return load_sections(recipe)


def decisive(study: Study, trial: Trial) -> dict[str, Any]:
    """What may not change between two calls: recipe, settings, and what chooses the layers."""
    parts = [without_trainer(part) for part in (_sections(study.base_recipe(trial)), study.settings_of(trial))]
    for part in parts:
        part.pop("output_dir", None)
    arm = study.arms[trial.arm]
    return {
        "recipe": parts[0],
        "settings": parts[1],
        "layers": arm.layers.describe(),
        "learning_rates": arm.learning_rates,
        "learning_rate_of": arm.learning_rate_of,
    }


def taken_from_others(study: Study, trial: Trial) -> dict[str, Any]:
    """What a trial takes from those that it needs: their choice, or their learning rate."""
    return _taken(study, trial, study.needs(trial), {})


def _taken(study: Study, trial: Trial, needs: Sequence[Trial], given: Mapping[Trial, FinishedTrial]) -> dict[str, Any]:
    taken: dict[str, Any] = {}
    for need in needs:
        if need.arm in study.arms[trial.arm].layers.needs:
            choice = given[need].selection if need in given else chosen_by(study, need)
            assert choice is not None
            taken[f"{need} layers"] = {"targets": choice.model_dump(mode="json")["targets"], "alpha": choice.alpha}
        else:
            row = given[need].row if need in given else kept_row(study.run_folder(need))
            taken[f"{need} learning rate"] = row.learning_rate
    return taken


def keep_row(folder: RunFolder, row: ResultRow, right: Sequence[Outcome]) -> None:
    """Write what came of a trial; the row comes last, for it says that the trial is done."""
    write_json(folder.root / "outcomes.json", [outcome.model_dump() for outcome in right])
    write_json(row_file(folder), row.model_dump())


def read_row(study: Study, trial: Trial) -> ResultRow | None:
    """The row of a finished trial; none of another."""
    folder = study.run_folder(trial)
    return kept_row(folder) if row_file(folder).is_file() else None


def kept_row(folder: RunFolder) -> ResultRow:
    """The row of a folder's trial, which is finished."""
    return ResultRow.model_validate_json(row_file(folder).read_text())


def outcomes(study: Study, trial: Trial) -> list[Outcome]:
    """Which rows a finished trial's adapter answered rightly, by each metric that says so."""
    lines = json.loads((study.run_folder(trial).root / "outcomes.json").read_text())
    return [Outcome.model_validate(line) for line in lines]


def chosen_by(study: Study, trial: Trial) -> Selection:
    """What a finished trial's arm chose, with alpha where it has searched."""
    return Selection.read(selection_file(study, trial))


def selection_file(study: Study, trial: Trial) -> Path:
    """Where a trial's choice lies: the search writes its own."""
    searched = isinstance(study.arms[trial.arm].layers, Search)
    return study.run_folder(trial).selection_of("search" if searched else CHOICE)
