"""A study's tables, made once as cells for terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from flexora.compare.paired import Difference
from flexora.compare.statistics import ArmStatistics, BenchmarkStatistics, Mean, StudyStatistics
from flexora.report.cells import NONE, Cells, estimate
from flexora.report.terminal import figures_table, markdown_table
from flexora.scoring.results import Estimate

_ROWS_ALONE = "*"
_WIDE = 120  # characters of a terminal that take all columns
_NARROW = (0, 2, 3, 4, 5)  # arm, layers, parameters, score and difference


@dataclass(frozen=True)
class StudyTable:
    """A table: what it is of, what its figures mean, its header and rows. rich prints it, in 80 columns some of it."""

    title: str
    note: str
    cells: Cells

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        header, rows = self.cells
        kept = range(len(header)) if options.max_width >= _WIDE else _NARROW
        yield figures_table(self.title, self.note, [header[i] for i in kept], [[row[i] for i in kept] for row in rows])
        yield Text()

    def markdown(self) -> str:
        """The table for a README; ends with a newline."""
        return f"{self.title}:\n\n{markdown_table(*self.cells)}\n\n({self.note})\n"


def share(mean: Mean) -> str:
    """``0.612 ± 0.004``, or ``0.612`` of one seed."""
    return f"{mean.value:.3f}" if mean.stderr is None else estimate(Estimate(value=mean.value, stderr=mean.stderr))


def points(difference: Difference | None) -> str:
    """``+0.4 [-1.0, +1.8]`` in percentage points, with a star where the interval is over rows alone."""
    if difference is None:
        return NONE
    value, low, high = (
        f"{round(100 * value, 1) + 0.0:+.1f}" for value in (difference.value, difference.low, difference.high)
    )
    star = _ROWS_ALONE if difference.seeds == 1 else ""
    return f"{value} [{low}, {high}]{star}".replace("-", "\N{MINUS SIGN}")


def study_tables(study: StudyStatistics) -> list[StudyTable]:
    """The means over the benchmarks, where there are several, then a table for each of them."""
    tables = []
    if len(study.benchmarks) > 1 and study.means:
        names = ", ".join(benchmark.benchmark for benchmark in study.benchmarks)
        cells = _cells(study.means, "mean score", study.reference)
        tables.append(StudyTable(f"Means over {names}", _note(study, study.means.values()), cells))
    for benchmark in study.benchmarks:
        cells = _cells(benchmark.arms, benchmark.metric, study.reference)
        tables.append(StudyTable(benchmark_title(benchmark), _note(study, benchmark.arms.values()), cells))
    return tables


def benchmark_title(benchmark: BenchmarkStatistics) -> str:
    """Benchmark, split and number of rows."""
    return f"{benchmark.benchmark}, {benchmark.rows:,} {benchmark.split} rows"


def cost_table(study: StudyStatistics) -> StudyTable:
    """What the arms took that have been run on every benchmark."""
    header = ["arm", "minutes", "choice of layers", "tuning", "fine-tune", "peak memory in MB"]
    rows = []
    for name, arm in study.means.items():
        times = (arm.seconds, arm.select_seconds, arm.tune_seconds, arm.finetune_seconds)
        rows.append([name, *(f"{time.value / 60:.1f}" for time in times), f"{arm.peak_memory_mb:,.0f}"])
    note = "Minutes of wall time for a seed of a benchmark, without its evaluation; the largest memory of any trial."
    return StudyTable("Costs", note, (header, rows))


def study_markdown(study: StudyStatistics) -> str:
    """All tables as Markdown; ends with a newline."""
    return "\n".join(table.markdown() for table in study_tables(study))


def compact_markdown(study: StudyStatistics) -> str:
    """One table for a README, a line for each arm: on each benchmark and in the mean its score and its difference.

    Ends with a newline.
    """
    several = len(study.benchmarks) > 1
    header = ["arm", "layers", "trainable parameters", *map(benchmark_title, study.benchmarks), *["mean"] * several]
    rows = []
    columns = [benchmark.arms for benchmark in study.benchmarks]
    for name in dict.fromkeys(name for arms in columns for name in arms):
        own = [arms[name] for arms in columns if name in arms]
        arm = study.means.get(name, own[0])
        shown = [arms.get(name) for arms in (*columns, *[study.means] * several)]
        rows.append([name, _number(arm.layers), f"{arm.parameters:,.0f}", *map(_score, shown)])
    every = [arm for arms in columns for arm in arms.values()]
    metrics = ", ".join(dict.fromkeys(f"{part.benchmark} {part.metric}" for part in study.benchmarks))
    return f"{markdown_table(header, rows)}\n\n({metrics}. {_note(study, every, losses=False)})\n"


def _score(arm: ArmStatistics | None) -> str:
    """Score, and difference on a second line."""
    if arm is None:
        return NONE
    return f"{share(arm.score)}<br>{points(arm.difference)}" if arm.difference else share(arm.score)


def _cells(arms: Mapping[str, ArmStatistics], metric: str, reference: str) -> Cells:
    """Header and rows, a row for each arm."""
    header = ["arm", "seeds", "adapted layers", "trainable parameters", metric, f"points over {reference}"]
    header += ["loss", "train loss", "validation loss", "gap", "minutes"]
    return header, [_arm_cells(arm) for arm in arms.values()]


def _arm_cells(arm: ArmStatistics) -> list[str]:
    seeds = f"{arm.seeds or NONE}" + (f", {arm.draws} draws" if arm.draws > 1 else "")
    losses = (arm.loss, arm.train_loss, arm.last_validation_loss, arm.gap)
    return [
        arm.arm,
        seeds,
        _number(arm.layers),
        f"{arm.parameters:,.0f}",
        share(arm.score),
        points(arm.difference),
        *(NONE if loss is None else f"{loss.value:.3f}".replace("-", "\N{MINUS SIGN}") for loss in losses),
        f"{arm.seconds.value / 60:.1f}",
    ]


def _number(value: float) -> str:
    """A mean count: whole numbers without decimals."""
    return f"{value:.1f}".removesuffix(".0")


def _note(study: StudyStatistics, arms: Iterable[ArmStatistics], losses: bool = True) -> str:
    """What the figures mean."""
    arms, notes = list(arms), []
    seeds = sorted({arm.seeds for arm in arms if arm.score.stderr is not None})
    if seeds:
        notes.append(f"± one standard error over {'-'.join(map(str, {seeds[0]: 0, seeds[-1]: 0}))} seeds")
    differences = [arm.difference for arm in arms if arm.difference]
    if differences:
        notes.append(
            f"signed: percentage points over {study.reference}, paired row by row, with their 95 % bootstrap interval "
            "over seeds and rows"
        )
    if any(difference.seeds == 1 for difference in differences):
        notes.append(f"{_ROWS_ALONE} one seed: over rows alone")
    if losses:
        notes.append(
            "losses: nats per answer token, the validation's after the last epoch; gap: that less the train loss"
        )
    return "; ".join(notes)
