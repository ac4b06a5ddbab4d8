"""``trials.jsonl``: all that others need of finished trials, a line each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from flexora.compare.decisive import shareable, without_secrets_inside
from flexora.compare.rows import Outcome, ResultRow
from flexora.errors import FlexoraError, first_line, shown
from flexora.files import write_atomically
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

    @field_validator("made_with")
    @classmethod
    def _shareable(cls, made_with: dict[str, Any]) -> dict[str, Any]:
        return shareable(made_with)

    def line(self) -> str:
        """The trial as a line of ASCII: other encodings have more ends of line than JSON escapes."""
        whole = self.model_dump(mode="json")
        texts = {name: without_secrets_inside(whole[name]) for name in ("results", "selection")}
        return json.dumps(whole | texts) + "\n"


def write_trials(trials: Iterable[FinishedTrial], file: Path) -> Path:
    """Write finished trials, a line each."""
    return write_atomically(file, "".join(trial.line() for trial in trials))


def read_trials(file: Path) -> dict[str, FinishedTrial]:
    """Finished trials, by their names.

    Raises:
        FlexoraError: If the file cannot be read, or says two things of one trial.
    """
    found: dict[str, FinishedTrial] = {}
    for number, one in _lines(file):
        if found.setdefault(one.trial, one) != one:
            raise FlexoraError(
                f"compare: finished: {file} line {number}: {shown(one.trial)} stands there twice, and not the same; "
                "remove one of the lines"
            )
    return found


def _lines(file: Path) -> Iterator[tuple[int, FinishedTrial]]:
    number = 1
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield number, FinishedTrial.model_validate_json(line)
    except ValidationError as error:
        reason = error.errors()[0]
        wrong = ".".join(map(str, reason["loc"])) or "line"
        raise FlexoraError(
            f"compare: finished: {file} line {number}: {shown(wrong)}: {shown(reason['msg'])}; "
            "give the trials.jsonl of a study"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise FlexoraError(f"compare: finished: cannot read {file}: {first_line(error)}") from error
