"""A study's tables, pictures and page, made of ``results.csv``, ``outcomes.csv`` and ``study.json`` alone."""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from flexora.compare import summary
from flexora.compare.plots import draw
from flexora.compare.rows import Outcome, ResultRow, read_lines
from flexora.compare.statistics import StudyStatistics, layers_of, study_statistics
from flexora.compare.table import choice_table, compact_markdown, cost_table, study_markdown, study_tables
from flexora.errors import FlexoraError
from flexora.files import write_atomically, write_json
from flexora.report.cells import setting_rows
from flexora.report.html import render


class Presentation(BaseModel):
    """``study.json``: what a study's report needs beside the rows.

    Attributes:
        reference: The arm that the others are compared with.
        title: Heading of the page.
        arms: Names in the order to show.
        own: The arm that the study is about; by default the first whose name starts with Flexora.
        control: The arm that it must beat at equal size; by default the first whose name starts with random.
        num_layers: Number of decoder layers; by default as many as the rows speak of.
        split_rows: Number of rows of each benchmark's whole split, to tell where only a cut was scored.
        settings: Model, budget, versions, command and whatever else was run with, nested as you like.
    """

    model_config = ConfigDict(extra="forbid")
    reference: str
    title: str | None = None
    arms: list[str] = []
    own: str | None = None
    control: str | None = None
    num_layers: int | None = None
    split_rows: dict[str, int] = {}
    settings: dict[str, Any] = {}

    @classmethod
    def read(cls, path: Path) -> Presentation:
        """Read ``study.json``.

        Raises:
            FlexoraError: If it is missing or malformed.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
            raise FlexoraError(f"cannot read {path}: {reason}; run flexora compare again") from error


def write_study_report(
    folder: Path,
    reference: str,
    title: str | None = None,
    settings: Mapping[str, Any] | None = None,
    arms: Sequence[str] = (),
    **more: Any,
) -> StudyStatistics:
    """Write ``study.json``, and all that :func:`rewrite` makes of it and the rows.

    Args:
        folder: Folder with ``results.csv`` and ``outcomes.csv``.
        reference: The arm that the others are compared with.
        title: Heading of the page.
        settings: What was run with what, for the page's last table.
        arms: Names in the order to show.
        more: Other fields of :class:`Presentation`.

    Returns:
        The study's figures.

    Raises:
        FlexoraError: If the rows are missing, malformed or contradict each other.
    """
    shown = Presentation(reference=reference, title=title, settings=dict(settings or {}), arms=list(arms), **more)
    write_json(folder / "study.json", shown.model_dump(mode="json", exclude_none=True))
    return rewrite(folder)


def read_study(folder: Path) -> tuple[Presentation, StudyStatistics, list[ResultRow], list[Outcome]]:
    """Read a study's folder and compute its figures.

    Raises:
        FlexoraError: If a file is missing or malformed, or they contradict each other.
    """
    shown = Presentation.read(folder / "study.json")
    results = read_lines(folder / "results.csv", ResultRow)
    outcomes = read_lines(folder / "outcomes.csv", Outcome)
    return shown, study_statistics(results, outcomes, shown.reference, shown.arms), results, outcomes


def rewrite(folder: Path) -> StudyStatistics:
    """Write ``table.md``, ``accuracy.png``, ``gap.png``, ``layers.png`` and ``report.html``.

    Returns:
        The study's figures.

    Raises:
        FlexoraError: As :func:`read_study`.
    """
    shown, study, results, outcomes = read_study(folder)
    names = list(dict.fromkeys([*shown.arms, *(row.arm for row in results)]))
    own = shown.own or _first(names, "flexora")
    control = shown.control or _first(names, "random")
    against = None
    if own and control:
        pair = [row for row in results if row.arm in (own, control)]
        against = study_statistics(pair, outcomes, control, names)
    num_layers = shown.num_layers or 1 + max((max(layers_of(row.layers or "0")) for row in results), default=0)
    write_atomically(folder / "table.md", study_markdown(study))
    pictures = draw(study, own, num_layers, folder) if results else {}
    page = render(
        "study.html.j2",
        title=shown.title or ", ".join(benchmark.benchmark for benchmark in study.benchmarks),
        summary=summary.summary(study, own, against),
        caveats=summary.caveats(study, shown.split_rows),
        tables=study_tables(study),
        costs=cost_table(study),
        choices=choice_table(study, num_layers),
        own=own,
        pictures={name: base64.b64encode(path.read_bytes()).decode() for name, path in pictures.items()},
        findings={
            "accuracy": summary.accuracy_finding(study, own),
            "gap": summary.gap_finding(study, own),
            "layers": summary.layers_finding(study, own, num_layers),
        },
        settings=setting_rows(shown.settings),
    )
    write_atomically(folder / "report.html", page)
    return study


def _first(names: Sequence[str], start: str) -> str | None:
    """The first name that starts so."""
    return next((name for name in names if name.lower().startswith(start)), None)


def with_table(text: str, name: str, study: StudyStatistics) -> str:
    """A README with the study's compact table between its two markers.

    Args:
        text: The README, with the lines ``<!-- study NAME -->`` and ``<!-- end of study NAME -->``.
        name: NAME, that of the study's folder.
        study: The figures.

    Raises:
        FlexoraError: If a marker is missing.
    """
    start, end = f"<!-- study {name} -->\n", f"<!-- end of study {name} -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise FlexoraError(f"the README has no lines {start.strip()} and {end}; put them where the table is to be")
    return f"{before}{start}\n{compact_markdown(study)}\n{end}{after}"


def main(arguments: Sequence[str]) -> None:
    """Make a study's report again, and its table in READMEs: ``python -m flexora.compare.report FOLDER README``."""
    folder = Path(arguments[0]).resolve()
    study = rewrite(folder)
    print(folder / "report.html")
    for readme in map(Path, arguments[1:]):
        print(write_atomically(readme, with_table(readme.read_text(), folder.name, study)))


if __name__ == "__main__":
    main(sys.argv[1:])
