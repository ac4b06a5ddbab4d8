"""What a run folder holds so far: the search, its history, the evaluation and the recipe, each of them optional."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

from flexora.errors import FlexoraError
from flexora.runfolder import PHASE_OF_ARM
from flexora.scoring.results import Results
from flexora.search.selection import Selection

ALPHA = "alpha_"


@dataclass(frozen=True)
class History:
    """``history.csv``: one entry per outer step, at least one.

    Attributes:
        outer_steps: Number of each outer step, from 1; length K.
        repeats: The repeat that each belongs to, from 1; length K.
        train_loss: Training loss in nats, length K; may hold NaN.
        validation_loss: Validation loss in nats, length K; may hold NaN.
        units: Names of what alpha has an entry for, such as ``7`` or ``7.v_proj``; length n.
        alpha: Hyperparameters after each step, K rows of n values.
    """

    outer_steps: list[int]
    repeats: list[int]
    train_loss: list[float]
    validation_loss: list[float]
    units: list[str]
    alpha: list[list[float]]

    @property
    def spans(self) -> list[slice]:
        """Where each repeat's steps lie."""
        starts = [i for i, repeat in enumerate(self.repeats) if i == 0 or repeat != self.repeats[i - 1]]
        return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(self.repeats)], strict=True)]

    @classmethod
    def read(cls, path: Path) -> History | None:
        """Read the history; None where the file has no step yet.

        Raises:
            FlexoraError: If a column is missing, a cell is not a number, or alpha is not finite.
        """
        try:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            if not rows:
                return None
            columns = [str(name) for name in rows[0] if str(name).startswith(ALPHA)]
            if not columns:
                raise KeyError(f"{ALPHA}0")
            alpha = [[float(row[name]) for name in columns] for row in rows]
            if not all(math.isfinite(value) for values in alpha for value in values):
                raise ValueError("alpha is not finite")
            return cls(
                outer_steps=[int(row["outer_step"]) for row in rows],
                repeats=[int(row["repeat"]) for row in rows],
                train_loss=[float(row["train_loss"]) for row in rows],
                validation_loss=[float(row["validation_loss"]) for row in rows],
                units=[name.removeprefix(ALPHA) for name in columns],
                alpha=alpha,
            )
        except KeyError as error:
            raise FlexoraError(f"{path} has no column {error}; search again") from error
        except (OSError, TypeError, ValueError, csv.Error) as error:  # TypeError: a row cut short gives None
            raise FlexoraError(f"cannot read {path}: {error}; search again") from error


@dataclass(frozen=True)
class Course:
    """``history.csv`` of a fine-tune: one entry per epoch, at least one.

    Attributes:
        epochs: Number of each epoch, from 1.
        train_loss: Mean over the epoch's steps, in nats; NaN where it is not known.
        validation_loss: Loss at the epoch's end, in nats; NaN where none was measured.
    """

    epochs: list[int]
    train_loss: list[float]
    validation_loss: list[float]

    @classmethod
    def read(cls, path: Path) -> Course | None:
        """Read the course; None where the file is not there, or has no epoch yet.

        Raises:
            FlexoraError: If a column is missing, or a cell is not a number.
        """
        if not path.is_file():
            return None
        try:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            epochs = [int(row["epoch"]) for row in rows]
            train, validation = ([float(row[name] or "nan") for row in rows] for name in ("train_loss", "val_loss"))
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            raise FlexoraError(f"cannot read {path}: {error}; fine-tune again") from error
        return cls(epochs, train, validation) if any(map(math.isfinite, [*train, *validation])) else None


@dataclass(frozen=True)
class Run:
    """The parts of a run; None where the user has not made them yet.

    Attributes:
        selection: The layers that the search chose.
        history: The course of the search.
        results: The accuracies.
        configs: The resolved recipes as YAML text, by the phases that ran with them.
        tuned: The layers that were fine-tuned: the search's, or others that the user named.
        courses: The courses of the fine-tunes, by their arms.
    """

    selection: Selection | None
    history: History | None
    results: Results | None
    configs: dict[str, str]
    tuned: Selection | None = None
    courses: dict[str, Course] = field(default_factory=dict)

    @classmethod
    def read(cls, run_dir: Path) -> Run:
        """Read whatever parts the folder has.

        Raises:
            FlexoraError: If it has none, or a part is malformed, or history and selection disagree on the layers.
        """
        selection = run_dir / "search" / "selection.json"
        history = run_dir / "search" / "history.csv"
        results = run_dir / "evaluate" / "results.json"
        tuned = run_dir / "finetune" / "selection.json"
        courses = {arm: Course.read(run_dir / phase / "history.csv") for arm, phase in PHASE_OF_ARM.items()}
        configs = _read_configs(run_dir)
        if not configs and not any(path.is_file() for path in (selection, history, results)):
            raise FlexoraError(f"nothing to report in {run_dir}: no phase has run there; run a search first")
        run = cls(
            selection=Selection.read(selection) if selection.is_file() else None,
            history=History.read(history) if history.is_file() else None,
            results=Results.read(results) if results.is_file() else None,
            configs=configs,
            tuned=Selection.read(tuned) if tuned.is_file() else None,
            courses={arm: course for arm, course in courses.items() if course},
        )
        if run.selection and run.history and run.history.units != [str(unit) for unit in run.selection.units]:
            raise FlexoraError(
                f"{history} has alpha for {len(run.history.units)} layers or projections, but {selection} for others "
                f"({len(run.selection.units)}); they are from different searches: search again"
            )
        return run


def _read_configs(run_dir: Path) -> dict[str, str]:
    """The recipes of the phases; those that ran with the same one share an entry."""
    phases: dict[str, list[str]] = {}
    for phase in ("search", "finetune", "evaluate"):
        file = run_dir / phase / "config.yaml"
        if file.is_file():
            phases.setdefault(file.read_text(encoding="utf-8", errors="replace"), []).append(phase)
    return {", ".join(names): text for text, names in phases.items()}
