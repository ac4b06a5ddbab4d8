"""``report.html``: one file with everything a run found, readable offline and years later."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flexora.files import write_atomically
from flexora.report import cells, summary
from flexora.report.plots import draw
from flexora.report.run import Run
from flexora.report.terminal import referee_lines, results_markdown
from flexora.scoring.results import Results
from flexora.search.selection import Selection


def write_report(run_dir: Path, title: str | None = None) -> Path:
    """Write ``report/report.html`` into the run's folder, with its pictures beside it and embedded in it.

    The accuracy table is there as ``results.md`` too. Parts that the run does not have yet are left out.

    Args:
        run_dir: The run's folder.
        title: Heading of the page; model and benchmark by default.

    Returns:
        The path of the report.

    Raises:
        FlexoraError: If the run has nothing to show or a part of it is malformed.
    """
    run = Run.read(run_dir)
    out_dir = run_dir / "report"
    pictures = draw(run, out_dir)
    if run.results:
        write_atomically(out_dir / "results.md", results_markdown(run.results))
    model, benchmark = summary.model_and_benchmark(run)
    page = render(
        "report.html.j2",
        title=title or " · ".join(filter(None, (model, benchmark))),
        summary=summary.summary(run),
        caveats=summary.caveats(run),
        heading=cells.heading(run.results) if run.results else None,
        results_title=cells.results_title(run.results) if run.results else None,
        results=cells.results_cells(run.results) if run.results else None,
        parts=[(cells.results_title(part), cells.results_cells(part)) for part in run.results.parts]
        if run.results
        else [],
        referee=referee_lines(run.results) if run.results else [],
        layers=cells.layer_cells(run.selection) if run.selection else None,
        chosen=summary.chosen(run.selection) if run.selection else None,
        stability=summary.stability_lines(run.selection) if run.selection else [],
        pictures={name: base64.b64encode(path.read_bytes()).decode() for name, path in pictures.items()},
        findings=_findings(run),
        settings=cells.setting_rows(_settings(run.selection, run.results)),
        configs=run.configs,
    )
    return write_atomically(out_dir / "report.html", page)


def render(template: str, **values: Any) -> str:
    """A page as HTML, everything in it escaped.

    Args:
        template: Name of a run's or a study's template; both extend ``page.html.j2``, which holds the style.
        values: What it shows.
    """
    here = Path(__file__).parent
    # autoescape is set for all names: Jinja2's own choice goes by the ending and would skip ``.j2``.
    environment = Environment(
        loader=FileSystemLoader([here, here.parent / "compare"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _findings(run: Run) -> dict[str, str]:
    """What each picture shows, for readers who cannot see it."""
    findings = {}
    if run.history:
        findings["alpha"] = summary.alpha_finding(run.history, run.selection)
        findings["loss"] = summary.loss_finding(run.history)
    if run.selection and run.selection.gates:
        findings["gates"] = summary.gates_finding(run.selection)
    if run.courses:
        findings["finetune"] = summary.course_finding(run.courses)
    if run.results:
        findings["accuracy"] = summary.accuracy_finding(run.results)
    return findings


def _settings(selection: Selection | None, results: Results | None) -> dict[str, Any]:
    """What was run with what, in the order shown."""
    settings: dict[str, Any] = {}
    if selection:
        kept = selection.model_dump(include={"base", "rule", "search", "data", "seed", "versions"}, exclude_none=True)
        settings |= {
            name: kept[name] for name in ("base", "rule", "search", "data", "seed", "versions") if name in kept
        }
    if results:
        settings["evaluation"] = results.model_dump(exclude={"format_version", "arms", "parts"})
    return settings
