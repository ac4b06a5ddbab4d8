"""What a run found, for the terminal (rich) and for a README (Markdown)."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from flexora.report.cells import results_cells, results_title
from flexora.scoring.results import Results
from flexora.search.selection import Selection
from flexora.search.units import flatten

_WIDEST_BAR = 60
_NARROWEST_BAR = 10
#: Columns of results that a narrow terminal goes without, the first one first.
SPARE = ("calibration error", "loss", "trainable parameters")
#: Wider than any table.
UNBOUNDED = 10_000


@dataclass(frozen=True)
class _Marks:
    """Characters of the bars. Chosen and other layers differ in shape too, for terminals without colour."""

    chosen_bar: str
    other_bar: str
    one: str
    tick: str


_UNICODE = _Marks("█", "░", "│", "✓")
_ASCII = _Marks("#", "-", "|", "*")


def gate_bars(selection: Selection) -> RenderableType:
    """One line per layer, or per projection of one: name, a bar as long as the gate, the gate, a tick if chosen.

    The largest gate fills the line, as wide as the terminal. A selection that was typed by hand has no gates: it gets
    ticks only.
    """
    return _GateBars(selection)


@dataclass(frozen=True)
class _GateBars:
    selection: Selection

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marks = _ASCII if options.ascii_only else _UNICODE
        gates = self.selection.gates
        scale = f"gate ({marks.one} at 1: plain LoRA), " if gates else ""
        yield Text(f"layer  {scale}{marks.tick} chosen", style="dim", no_wrap=True, overflow="ellipsis")
        # Name and two blanks, gate and tick take 9; the last two stay free, as some terminals wrap there.
        units, gates = list(self.selection.units), flatten(gates or [])
        name_width = max(5, *(len(str(unit)) for unit in units))
        width = min(_WIDEST_BAR, max(_NARROWEST_BAR, options.max_width - name_width - 13))
        for place, unit in enumerate(units):
            chosen = self.selection.has_chosen(unit)
            line = Text(f"{unit!s:>{name_width}}  ", no_wrap=True, overflow="crop")
            if gates:
                bar = _bar(gates[place], max(gates) or 1.0, width, marks, chosen)
                line.append(bar, style="cyan" if chosen else "dim")
                line.append(f" {gates[place]:>6.3f}")
            line.append(f" {marks.tick}" if chosen else "", style="bold green")
            yield line


def _bar(gate: float, largest: float, width: int, marks: _Marks, chosen: bool) -> str:
    """A bar of ``width`` characters, blanks included, with the mark at gate 1 where the bar does not reach it."""
    length = round(width * gate / largest)
    bar = (marks.chosen_bar if chosen else marks.other_bar) * length
    one = round(width / largest) - 1
    if length <= one < width:
        return f"{bar}{' ' * (one - length)}{marks.one}".ljust(width)
    return bar.ljust(width)


@dataclass(frozen=True)
class ResultsTable:
    """The accuracy table, one row per arm; ``±`` is one standard error, of paired differences in the last column.

    Where the terminal is too narrow for all columns, those that matter least are left out; the report has them.
    """

    results: Results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        header, rows = results_cells(self.results)
        caption = "± one standard error, paired in the last column; loss: nats per answer token"
        spare = [name for name in SPARE if name in header and name != self.results.primary_metric]
        while True:
            table = figures_table(results_title(self.results), caption, header, rows)
            whole = console.measure(table, options=options.update(max_width=UNBOUNDED)).maximum
            if whole <= options.max_width or not spare:
                break
            kept = [place for place, name in enumerate(header) if name != spare[0]]
            header, rows = [header[place] for place in kept], [[row[place] for place in kept] for row in rows]
            del spare[0]
        yield table


def results_table(results: Results) -> ResultsTable:
    """The accuracy table for the terminal."""
    return ResultsTable(results)


def figures_table(title: str, caption: str, header: list[str], rows: list[list[str]]) -> Table:
    """A table for the terminal, its first column on the left and the others, figures, on the right."""
    table = Table(
        title=Text(title, style="bold"),
        caption=Text(caption, style="dim"),
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column(header[0], overflow="fold")
    for name in header[1:]:
        table.add_column(name.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: a name such as [red] is no markup
    return table


def referee_lines(results: Results) -> list[str]:
    """What a referee found, one line for each benchmark and arm that it scored."""
    lines = []
    for part in results.parts or [results]:
        for arm in part.arms:
            if (found := arm.referee) is not None:
                lines.append(
                    f"{found.referee} on {part.benchmark}, {arm.name}: "
                    f"log-likelihoods within {found.largest:.1e} nats, {found.other_predictions} of {found.rows:,} "
                    f"predictions differ ({found.near_ties} near ties); "
                    f"acc {found.referee_accuracy:.4f}, ours {found.accuracy:.4f}"
                )
    return lines


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table as Markdown, its first column, names as they are written, on the left and the others on the right."""
    rows = [[escaped_markdown(name), *figures] for name, *figures in rows]
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in [header, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    lines.insert(1, f"| --- |{' ---: |' * (len(header) - 1)}")
    return "\n".join(lines)


def escaped_markdown(text: str) -> str:
    """A text as one line of Markdown that shows it: no tag, link, picture, code or heading of its own."""
    return re.sub(r"([\\`\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def results_markdown(results: Results) -> str:
    """The accuracy table as Markdown, with its title above; ends with a newline."""
    own = f"{escaped_markdown(results_title(results))}:\n\n{markdown_table(*results_cells(results))}\n"
    return "\n".join([own, *map(results_markdown, results.parts)])
