"""The pictures of a run, drawn with matplotlib's object API: no pyplot, no window, no global state.

Importing this module imports matplotlib; ``flexora.report`` itself does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flexora.files import write_atomically
from flexora.report import summary
from flexora.report.cells import rows_scored
from flexora.report.run import Course, History, Run
from flexora.report.style import (
    BLUE,
    FAINT,
    GREY,
    INK,
    LABEL,
    MUTED,
    ORANGE,
    depth_colours,
    label_axes,
    label_ends,
    new_figure,
    png,
    short,
)
from flexora.scoring.results import Results
from flexora.search.selection import Selection
from flexora.search.units import flatten

_LABELLED = 5  # layers named at the end of their alpha line: more would crowd
_FEW_STEPS = 3  # up to here a line needs dots to be seen
_SMOOTH_FROM = 20  # outer steps from which the loss gets a running mean


def alpha_figure(history: History, selection: Selection | None) -> Figure:
    """Alpha of every layer over the outer steps; the chosen layers solid, the others thin; the highest ones named.

    Args:
        history: K steps of n layers, or of their projections.
        selection: The chosen layers; without it all lines are drawn alike.
    """
    steps, final = history.outer_steps, history.alpha[-1]
    figure, (axes,) = new_figure(5.0, summary.alpha_finding(history, selection))
    layers = [int(name.split(".")[0]) for name in history.units]
    colours, depth = depth_colours(), Normalize(0, max(1, *layers))
    picked = {str(unit) for unit in selection.units if selection.has_chosen(unit)} if selection else {*history.units}
    for place, (name, layer) in enumerate(zip(history.units, layers, strict=True)):
        bold = name in picked
        for span in history.spans:
            axes.plot(
                steps[span],
                [row[place] for row in history.alpha[span]],
                color=colours(depth(layer)),
                linewidth=1.8 if bold else 0.8,
                alpha=1.0 if bold else 0.45,
                marker="o" if len(steps[span]) <= _FEW_STEPS else None,
                clip_on=False,
                zorder=3 if bold else 2,
            )
    axes.axhline(0.0, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
    named = [place for place, name in enumerate(history.units) if name in picked]
    top = sorted(named, key=lambda place: -final[place])[:_LABELLED]
    label_ends(axes, {f"layer {history.units[place]}": (final[place], colours(depth(layers[place]))) for place in top})
    bar = figure.colorbar(ScalarMappable(depth, colours), ax=axes, pad=0.03, aspect=30)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    bar.set_label("layer (0 is nearest the input)", color=MUTED, fontsize=10)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, colors=MUTED)
    label_axes(axes, "outer step", "alpha" + (" (thick lines: chosen layers)" if selection else ""))
    return figure


def gates_figure(selection: Selection) -> Figure:
    """Final gates over the layers, the chosen ones dark, with the line at 1; below, how often each was chosen.

    With module-wise gates there is a panel of gates for each projection, and none of frequencies.

    Args:
        selection: The chosen layers, their gates and, where known, their frequencies.
    """
    n, units, gates = selection.num_layers, list(selection.units), flatten(selection.gates or [])
    colour = [BLUE if selection.has_chosen(unit) else GREY for unit in units]
    projections = selection.units.projections or (None,)
    stability = selection.stability if len(projections) == 1 else None
    heights = [3.2] * len(projections) + [1.0] * bool(stability)
    tall = 4.2 + 1.0 * bool(stability) + 1.6 * (len(projections) - 1)
    figure, panels = new_figure(tall, summary.gates_finding(selection), heights)
    for column, (projection, axes) in enumerate(zip(projections, panels, strict=False)):
        own = slice(column, None, len(projections))
        axes.bar(range(n), gates[own], color=colour[own], width=0.8, zorder=2)
        axes.set_ylim(0, 1.06 * max(1.0, *gates))
        axes.axhline(1.0, color=ORANGE, linewidth=1.4, zorder=3)
        axes.annotate(
            "1 = plain\nLoRA", (1.0, 1.0), (6, 0), axes.get_yaxis_transform(), "offset points",
            color=ORANGE, fontsize=9.5, va="center", annotation_clip=False,
        )  # fmt: skip
        axes.set_ylabel(f"gate of\n{projection}" if projection else "gate", color=INK, fontsize=LABEL)
    for label, kind in (("chosen", BLUE), ("not chosen", GREY)):
        panels[0].bar([0], [0], color=kind, label=label)
    panels[0].legend(frameon=False, fontsize=9.5, labelcolor=INK, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    if stability:
        panels[-1].bar(range(n), flatten(stability.frequency), color=colour, width=0.8, zorder=2)
        panels[-1].set_ylim(0, 1)
        panels[-1].set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
        last = stability.last_steps
        which = f"last {f'{last:,} steps' if last > 1 else 'step'}" + (" of repeats" if stability.repeats else "")
        panels[-1].set_ylabel(f"chosen in the\n{which}", color=INK, fontsize=10)
    for axes in panels:
        axes.set_xlim(-0.8, n - 0.2)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(n, 32)))
    panels[-1].set_xlabel("layer", color=INK, fontsize=LABEL)
    return figure


def loss_figure(history: History) -> Figure:
    """Training and validation loss over the outer steps; from 20 steps on faint, under running means."""
    figure, (axes,) = new_figure(4.0, summary.loss_finding(history))
    longest = max(len(history.outer_steps[span]) for span in history.spans)
    reach = longest // 20 if longest >= _SMOOTH_FROM else 0
    ends = {}
    for name, values, colour in (
        ("training", history.train_loss, ORANGE),
        ("validation", history.validation_loss, BLUE),
    ):
        for span in history.spans:
            steps, means = history.outer_steps[span], _running_mean(values[span], reach)
            if reach:
                axes.plot(steps, values[span], color=colour, linewidth=0.8, alpha=0.35)
            marker = "o" if len(steps) <= _FEW_STEPS else None
            axes.plot(steps, means, color=colour, linewidth=2.0, marker=marker, clip_on=False)
            if math.isfinite(means[-1]):
                ends[name] = (means[-1], colour)
    label_ends(axes, ends)
    mean = f"\nrunning mean of {2 * reach + 1:,} steps" if reach else ""
    label_axes(axes, "outer step", f"loss in nats per token{mean}")
    return figure


def _running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Means over each value and ``reach`` neighbours to either side: centred, as a trailing mean would lag behind."""
    windows = (values[max(0, place - reach) : place + reach + 1] for place in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def course_figure(courses: Mapping[str, Course]) -> Figure:
    """Training and validation loss over the epochs of each fine-tune; plain LoRA's dashed."""
    figure, (axes,) = new_figure(4.0, summary.course_finding(courses))
    ends = {}
    for arm, course in courses.items():
        for name, losses, colour in (
            ("training", course.train_loss, ORANGE),
            ("validation", course.validation_loss, BLUE),
        ):
            known = [place for place, loss in enumerate(losses) if math.isfinite(loss)]
            if not known:
                continue
            axes.plot(
                [course.epochs[place] for place in known],
                [losses[place] for place in known],
                color=colour,
                linewidth=2.0 if arm == "flexora" else 1.2,
                linestyle="-" if arm == "flexora" else (0, (4, 3)),
                marker="o" if len(known) <= _FEW_STEPS else None,
                clip_on=False,
            )
            ends[name if arm == "flexora" else f"{name}, {arm}"] = (losses[known[-1]], colour)
    label_ends(axes, ends)
    label_axes(axes, "epoch", "loss in nats per answer token,\nor per question")
    return figure


def accuracy_figure(results: Results) -> Figure:
    """The metrics of every arm as dots with one standard error to either side."""
    arms = results.arms
    metrics = list(arms[0].metrics) if arms else []
    figure, (axes,) = new_figure(1.5 + 0.85 * len(arms), summary.accuracy_finding(results))
    for metric, offset in zip(metrics, [0.0] if len(metrics) == 1 else [-0.16, 0.16], strict=True):
        colour = BLUE if metric == results.primary_metric else MUTED
        for place, arm in enumerate(arms):
            if metric not in arm.metrics:
                continue
            value, error = arm.metrics[metric].value, arm.metrics[metric].stderr
            axes.errorbar(
                value, place + offset, xerr=error, fmt="o", color=colour, markersize=7, capsize=4, elinewidth=1.8
            )
            axes.annotate(
                f"{metric}  {value:.3f}", (value + error, place + offset), (8, 0), textcoords="offset points",
                color=colour, fontsize=10, va="center",
            )  # fmt: skip
    costs = [f"{arm.trainable_parameters:,} parameters" if arm.trainable_parameters else "no adapter" for arm in arms]
    names = [f"{short(arm.name)}\n{cost}" for arm, cost in zip(arms, costs, strict=True)]
    axes.set_yticks(range(len(arms)), names, parse_math=False)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.margins(x=0.16)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=FAINT, linewidth=0.8)
    axes.tick_params(axis="y", labelsize=10.5, labelcolor=INK)
    units = {"loss": "nats per answer token", "average": "mean share of right answers"}
    unit = units.get(results.primary_metric, "share of right answers")
    label = f"{unit} on {rows_scored(results)} {results.split} rows, ± one standard error"
    axes.set_xlabel(label, color=INK, fontsize=LABEL, parse_math=False)
    return figure


def draw(run: Run, out_dir: Path) -> dict[str, Path]:
    """Write ``alpha.png``, ``gates.png``, ``loss.png``, ``finetune.png`` and ``accuracy.png``, as the run has data.

    Args:
        run: The run.
        out_dir: Where the pictures go; created where missing.

    Returns:
        The path of each picture by its name (``alpha``, ``gates``, ``loss``, ``finetune``, ``accuracy``).
    """
    figures: dict[str, Figure] = {}
    if run.history:
        figures["alpha"] = alpha_figure(run.history, run.selection)
        figures["loss"] = loss_figure(run.history)
    if run.selection and run.selection.gates:
        figures["gates"] = gates_figure(run.selection)
    if run.courses:
        figures["finetune"] = course_figure(run.courses)
    if run.results:
        figures["accuracy"] = accuracy_figure(run.results)
    return {name: write_atomically(out_dir / f"{name}.png", png(figure)) for name, figure in figures.items()}
