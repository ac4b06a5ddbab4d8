"""A study's tables, made once as cells for terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from flexora.compare.paired import Difference, Mean
from flexora.compare.statistics import ArmStatistics, BenchmarkStatistics, StudyStatistics, lower_is_better
from flexora.report.cells import NONE, Cells, estimate
from flexora.report.terminal import escaped_markdown, figures_table, markdown_table
from flexora.scoring.results import Estimate
from flexora.search.stability import mean_jaccard, random_jaccard

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
        return f"{escaped_markdown(self.title)}:\n\n{markdown_table(*self.cells)}\n\n({self.note})\n"


def share(mean: Mean) -> str:
    """``0.612 ± 0.004``, or ``0.612`` of one seed."""
    return f"{mean.value:.3f}" if mean.stderr is None else estimate(Estimate(value=mean.value, stderr=mean.stderr))


def unit(metric: str | None) -> str:
    """What differences of a metric are counted in."""
    return "nats" if lower_is_better(metric) else "points"


def signed(difference: Difference | Mean | None, metric: str | None) -> str:
    """A difference in the metric's unit.

    Paired by row ``+0.4 [-1.0, +1.8]``, with a star where the interval is over rows alone; by seed ``+0.4 ± 0.3``, or
    ``+0.4`` of one seed.
    """
    if difference is None:
        return NONE
    scale, digits = (1, 3) if lower_is_better(metric) else (100, 1)

    def figure(value: float) -> str:
        # A bound just below zero keeps its sign; what is zero but for the arithmetic's rounding has none.
        return f"{0.0 if abs(value) < 1e-9 else scale * value:+.{digits}f}"

    text = figure(difference.value)
    if isinstance(difference, Difference):
        text += f" [{figure(difference.low)}, {figure(difference.high)}]{_ROWS_ALONE if difference.seeds == 1 else ''}"
    elif difference.stderr is not None:
        text += f" ± {scale * difference.stderr:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def study_tables(study: StudyStatistics) -> list[StudyTable]:
    """The means over the benchmarks, where there are several that can be averaged, then a table for each of them."""
    tables = []
    if len(study.benchmarks) > 1 and study.means:
        names = ", ".join(benchmark.benchmark for benchmark in study.benchmarks)
        tables.append(_table(f"Means over {names}", study, f"mean {study.metric}"))
    return tables + [_table(benchmark_title(part), study.of(part.benchmark), part.metric) for part in study.benchmarks]


def benchmark_title(benchmark: BenchmarkStatistics) -> str:
    """Benchmark, split and number of rows."""
    return f"{benchmark.benchmark}, {benchmark.rows:,} {benchmark.split} rows"


def cost_table(study: StudyStatistics) -> StudyTable:
    """What the arms took that have been run on every benchmark, in the mean over these."""
    header = ["arm", "choice of layers", "fine-tune", "tuning, once", "peak memory in MB"]
    rows = []
    for name in study.complete:
        arms = [part.arms[name] for part in study.benchmarks]
        parts = [(arm.select_seconds, arm.finetune_seconds, arm.tune_seconds) for arm in arms]
        minutes = [f"{fmean(times) / 60:.1f}" for times in zip(*parts, strict=True)]
        rows.append([name, *minutes, f"{max(arm.peak_memory_mb for arm in arms):,.0f}"])
    note = (
        "Minutes of wall time for a seed of a benchmark, the median of its trials; for tuning the learning rate, once "
        "for a benchmark; the largest memory of any trial. Arms that take over a rate, or another arm's number of "
        "layers, pay nothing for it."
    )
    return StudyTable("Costs", note, (header, rows))


def choice_table(study: StudyStatistics, num_layers: int) -> StudyTable:
    """How far the choices of an arm's trials agree on each benchmark, of the arms that chose more than once."""
    header = ["arm", *(part.benchmark for part in study.benchmarks)]
    names = dict.fromkeys(name for part in study.benchmarks for name in part.choices)
    parts = [part.choices for part in study.benchmarks]
    rows = [[name, *(_agreement(choices.get(name, []), num_layers) for choices in parts)] for name in names]
    note = (
        "Mean Jaccard overlap of the layers that an arm's trials chose, over all pairs of seeds and draws: 1 where all "
        "chose the same. In brackets that of choices of these sizes drawn at random."
    )
    return StudyTable("Agreement of choices", note, (header, [row for row in rows if set(row[1:]) != {NONE}]))


def _agreement(choices: Sequence[set[int]], num_layers: int) -> str:
    sizes = [len(choice) for choice in choices]
    if len(sizes) < 2 or min(sizes) in (0, num_layers):
        return NONE
    return f"{mean_jaccard(choices):.2f} ({random_jaccard(sizes, num_layers):.2f})"


def study_markdown(study: StudyStatistics) -> str:
    """All tables as Markdown; ends with a newline."""
    return "\n".join(table.markdown() for table in study_tables(study))


def compact_markdown(study: StudyStatistics) -> str:
    """One table for a README, a line for each arm: on each benchmark and in the mean its score and its difference.

    Without a mean where the benchmarks' metrics are unlike. Ends with a newline.
    """
    columns = [(part.arms, part.metric) for part in study.benchmarks]
    names = dict.fromkeys(name for arms, _ in columns for name in arms)
    titles = [escaped_markdown(benchmark_title(benchmark)) for benchmark in study.benchmarks]
    header = ["arm", "layers", "trainable parameters", *titles]
    if len(study.benchmarks) > 1 and study.metric is not None:
        header.append("mean")
        columns.append((study.means, study.metric))
    accurate = not any(lower_is_better(part.metric) for part in study.benchmarks)
    header += ["loss"] if accurate else []
    rows = []
    for name in names:
        own = [part.arms[name] for part in study.benchmarks if name in part.arms]
        layers, parameters = fmean(arm.layers for arm in own), fmean(arm.parameters for arm in own)
        scores = [_score(arms.get(name), metric) for arms, metric in columns]
        scores += [_loss(study.means.get(name), "<br>") for _ in header[-1:] if accurate]
        rows.append([name, _number(layers), f"{parameters:,.0f}", *scores])
    metrics = ", ".join(f"{part.benchmark} {part.metric}" for part in study.benchmarks)
    every = [(arm, part.metric) for part in study.benchmarks for arm in part.arms.values()]
    note = _note(every, study.reference, last_epoch=False)
    return f"{markdown_table(header, rows)}\n\n({metrics}. {note})\n"


def _score(arm: ArmStatistics | None, metric: str) -> str:
    """Score, and difference on a second line."""
    if arm is None:
        return NONE
    return f"{share(arm.score)}<br>{signed(arm.difference, metric)}" if arm.difference else share(arm.score)


def _loss(arm: ArmStatistics | None, between: str) -> str:
    """Loss on the rows scored, and its difference."""
    if arm is None:
        return NONE
    difference = [signed(arm.loss_difference, "loss")] if arm.loss_difference else []
    return between.join([f"{arm.loss.value:.3f}", *difference])


def _table(title: str, study: StudyStatistics, heading: str) -> StudyTable:
    """The study's means, a row for each arm; a primary metric that is the loss has no second column."""
    difference = f"{unit(study.metric)} over {study.reference}"
    header = ["arm", "seeds", "adapted layers", "trainable parameters", heading, difference]
    header += [] if lower_is_better(study.metric) else ["loss"]
    header += ["train loss", "validation loss", "gap"]
    arms = [(arm, study.metric) for arm in study.means.values()]
    return StudyTable(title, _note(arms, study.reference), (header, [_arm_cells(*arm) for arm in arms]))


def _arm_cells(arm: ArmStatistics, metric: str | None) -> list[str]:
    seeds = f"{arm.seeds or NONE}" + (f", {arm.draws} draws" if arm.draws > 1 else "")
    losses = [arm.train_loss, arm.last_validation_loss, arm.gap]
    return [
        arm.arm,
        seeds,
        _number(arm.layers),
        f"{arm.parameters:,.0f}",
        share(arm.score),
        signed(arm.difference, metric),
        *([] if lower_is_better(metric) else [_loss(arm, ", ")]),
        *(NONE if loss is None else f"{loss.value:.3f}".replace("-", "\N{MINUS SIGN}") for loss in losses),
    ]


def _number(value: float) -> str:
    """A mean count: whole numbers without decimals."""
    return f"{value:.1f}".removesuffix(".0")


def _note(arms: Sequence[tuple[ArmStatistics, str | None]], reference: str, last_epoch: bool = True) -> str:
    """What the figures of arms mean, each given with its metric."""
    notes = []
    seeds = [arm.seeds for arm, _ in arms if arm.score.stderr is not None]
    if seeds:
        fewest, most = min(seeds), max(seeds)
        notes.append(f"± one standard error over {fewest if fewest == most else f'{fewest}-{most}'} seeds")
    by_row = [arm.difference for arm, _ in arms if isinstance(arm.difference, Difference)]
    if by_row:
        notes.append(
            f"signed: percentage points over {reference}, paired row by row, with their 95 % bootstrap interval over "
            "seeds and rows"
        )
    if any(difference.seeds == 1 for difference in by_row):
        notes.append(f"{_ROWS_ALONE} one seed: over rows alone")
    by_seed = {lower_is_better(metric) for arm, metric in arms if isinstance(arm.difference, Mean)}
    if by_seed:
        units = " or ".join("nats" if nats else "percentage points" for nats in sorted(by_seed))
        notes.append(
            f"signed{' without brackets' if by_row else ''}: {units} over {reference}, paired by seed, as outcomes.csv "
            "tells no right and wrong rows, ± one standard error over seeds alone"
        )
    if any(lower_is_better(metric) for _, metric in arms):
        notes.append("the loss that is scored: nats per answer token, the lower the better")
    else:
        notes.append(
            f"loss: on the rows scored, in nats per answer token; signed: over {reference}, paired by seed, ± one "
            "standard error over seeds"
        )
    if last_epoch:
        notes.append("train and validation loss: after the last epoch, where the best one is scored; gap: between them")
    return "; ".join(notes)
