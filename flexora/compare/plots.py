"""The pictures of a study: score against parameters, training and validation loss, and the chosen layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from flexora.compare import summary
from flexora.compare.statistics import ArmStatistics, StudyStatistics, lower_is_better
from flexora.compare.table import benchmark_title
from flexora.files import write_atomically
from flexora.report.style import BLUE, FAINT, GREY, INK, LABEL, MUTED, ORANGE, new_figure, png, short, spread

_LOG_FROM = 6.0  # ratio of the largest to the smallest number of parameters
_PANEL = 2.8  # inches of a panel with few arms
_LABEL_HEIGHT = 0.19  # inches
_CHARACTER = 0.0088  # of a panel's width, as all that follow
_LEAD = 0.035  # from a group of dots to its column of labels
_SIDE_BY_SIDE = 0.012  # distance of arms with as many parameters
_ROW = 0.23  # inches of an arm's row


def accuracy_figure(study: StudyStatistics, own: str | None) -> Figure | None:
    """The primary metric against trainable parameters, with one standard error over seeds; the base as a dashed line.

    None where no arm has an adapter. A panel for the means, where there are several benchmarks, and one for each.
    """
    panels = {benchmark_title(part): (part.arms, _label(part.metric)) for part in study.benchmarks}
    if len(panels) > 1 and study.means:
        panels = {f"mean over {len(panels)} benchmarks": (study.means, f"mean {_label(study.metric)}"), **panels}
    sizes = [arm.parameters for arms, _ in panels.values() for arm in arms.values() if arm.parameters]
    if not sizes:
        return None
    low, high = min(sizes), max(sizes)
    tall = max([_PANEL, *(_LABEL_HEIGHT * len(arms) for arms, _ in panels.values())])
    figure, grid = new_figure(1 + (tall + 0.4) * len(panels), summary.accuracy_finding(study, own), [1.0] * len(panels))
    log = high > _LOG_FROM * low
    width = 2 * _LEAD + _CHARACTER * max(len(short(name)) for arms, _ in panels.values() for name in arms)
    for axes, (title, (arms, label)) in zip(grid, panels.items(), strict=True):
        axes.set_title(title, loc="left", fontsize=LABEL, color=INK, parse_math=False)
        axes.set_ylabel(label, color=INK, fontsize=LABEL)
        if log:
            axes.set_xscale("log")
        _limit(axes, low, high, log, width)
        adapted = [arm for arm in arms.values() if arm.parameters]
        _score_limits(axes, adapted, [arm for arm in arms.values() if not arm.parameters])
        _points(axes, adapted, {study.reference: ORANGE} | ({own: BLUE} if own else {}), width, _LABEL_HEIGHT / tall)
    if log:
        grid[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        grid[-1].xaxis.set_minor_locator(NullLocator())
    grid[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    errors = any(arm.score.stderr for arms, _ in panels.values() for arm in arms.values())
    label = "trainable parameters, those of one size side by side"
    label += "; bars: ± one standard error over seeds" if errors else ""
    grid[-1].set_xlabel(label, color=INK, fontsize=LABEL)
    return figure


def _label(metric: str | None) -> str:
    """The metric's name, for a loss with its better end."""
    return f"{metric}, lower is better" if lower_is_better(metric) else str(metric)


def _count(value: float) -> str:
    """``225k``, ``1.2M``."""
    return f"{value / 1e6:.3g}M" if value >= 1e6 else f"{value / 1e3:.3g}k" if value >= 1e3 else f"{value:.3g}"


def _limit(axes: Axes, low: float, high: float, log: bool, room: float) -> None:
    """Limits of x with room, a share of the panel's width, for a column of labels at the right."""
    ends = np.log([low, high]) if log else np.array([low, high])
    span = float(ends[1] - ends[0]) or abs(float(ends[0])) or 1.0
    ends = ends + np.array([-0.06, 0.06 + room / (1 - room)]) * span
    axes.set_xlim(*(np.exp(ends) if log else ends))


def _score_limits(axes: Axes, adapted: Sequence[ArmStatistics], bases: Sequence[ArmStatistics]) -> None:
    """Limits of y by the adapted arms; a base far below them is told in words, as its line would flatten the rest."""
    ends = [arm.score.value + sign * (arm.score.stderr or 0.0) for arm in adapted for sign in (-1, 1)]
    ends = ends or [arm.score.value for arm in bases]
    low, high = min(ends), max(ends)
    room = max(high - low, 0.01)
    shown = [arm for arm in bases if low - room <= arm.score.value <= high + room]
    low, high = min([low, *(arm.score.value for arm in shown)]), max([high, *(arm.score.value for arm in shown)])
    axes.set_ylim(low - 0.12 * max(high - low, 0.01), high + 0.12 * max(high - low, 0.01))
    hidden = [
        f"{arm.arm}: {arm.score.value:.3f}, {'below' if arm.score.value < low else 'above'}"
        for arm in bases
        if arm not in shown
    ]
    for arm in shown:
        axes.axhline(arm.score.value, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"{short(arm.arm)} {arm.score.value:.3f}", (0.0, arm.score.value), (4, 3), axes.get_yaxis_transform(),
            "offset points", color=MUTED, fontsize=9.5, parse_math=False,
        )  # fmt: skip
    if hidden:
        axes.annotate(
            f"{', '.join(hidden)} this panel", (0.0, 0.0), (4, 4), "axes fraction", "offset points",
            color=MUTED, fontsize=9.5, parse_math=False,
        )  # fmt: skip


def _points(axes: Axes, arms: Sequence[ArmStatistics], colours: Mapping[str, str], width: float, height: float) -> None:
    """A dot for each arm, and a column of names to the right of each group.

    Those of one size stand side by side in the arms' order: in that of their scores they would look like a trend.

    Args:
        axes: The panel, its limits set.
        arms: Arms with adapters.
        colours: Of the arms that stand out.
        width: Share of the panel's width that a column of names takes.
        height: Share of its height that a name takes.
    """
    unit = axes.transScale + axes.transLimits  # from data to shares of the panel
    places = {arm.arm: unit.transform((arm.parameters, arm.score.value)) for arm in arms}
    groups: list[list[ArmStatistics]] = []
    for arm in sorted(arms, key=lambda arm: arm.parameters):
        if groups and places[arm.arm][0] - places[groups[-1][-1].arm][0] < width:
            groups[-1].append(arm)
        else:
            groups.append([arm])
    order = [arm.arm for arm in arms]
    for group in groups:
        group.sort(key=lambda arm: arm.score.value)
        moved = {}
        for arm in group:
            x, y = places[arm.arm]
            alike = [other.arm for other in group if abs(places[other.arm][0] - x) < _SIDE_BY_SIDE]
            alike.sort(key=order.index)
            moved[arm.arm] = x + _SIDE_BY_SIDE * (alike.index(arm.arm) - (len(alike) - 1) / 2), y
        heights = np.array(spread([moved[arm.arm][1] for arm in group], height))
        heights -= max(0.0, heights[-1] - 1.0)
        heights -= min(0.0, heights[0])
        column = max(x for x, _ in moved.values()) + _LEAD
        for arm, place in zip(group, heights, strict=True):
            known, colour = arm.arm in colours, colours.get(arm.arm, MUTED)
            x, y = unit.inverted().transform(moved[arm.arm])
            axes.errorbar(
                x, y, yerr=arm.score.stderr, fmt="o", color=colour, elinewidth=1.4,
                markersize=7 if known else 5, zorder=4 if known else 3,
            )  # fmt: skip
            axes.annotate(
                short(arm.arm), (x, y), (column, place), "data", "axes fraction", va="center",
                color=colour if known else INK, fontsize=9.5, fontweight="bold" if known else "normal",
                parse_math=False, arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkB": 4},
            )  # fmt: skip


def gap_figure(study: StudyStatistics, own: str | None) -> Figure | None:
    """Training and validation loss of every arm after the last epoch, joined by a line; none where none is known.

    A panel for each benchmark.
    """
    panels = {
        part.benchmark: [arm for arm in part.arms.values() if arm.train_loss and arm.last_validation_loss]
        for part in study.benchmarks
    }
    panels = {title: arms for title, arms in panels.items() if arms}
    if not panels:
        return None
    figure, grid = new_figure(
        1.2 + sum(0.45 + _ROW * len(arms) for arms in panels.values()),
        summary.gap_finding(study, own),
        [1.5 + len(arms) for arms in panels.values()],
    )
    for axes, (title, arms) in zip(grid, panels.items(), strict=True):
        _rows(axes, title, [arm.arm for arm in arms], {study.reference: ORANGE} | ({own: BLUE} if own else {}))
        axes.grid(visible=True, axis="x", color=FAINT, linewidth=0.8)
        places = range(len(arms))
        train = [arm.train_loss.value for arm in arms if arm.train_loss]
        validation = [arm.last_validation_loss.value for arm in arms if arm.last_validation_loss]
        axes.hlines(places, train, validation, color=GREY, linewidth=2.5, zorder=1)
        axes.scatter(train, places, s=34, color="white", edgecolor=INK, linewidth=1.5, zorder=2, label="training")
        axes.scatter(validation, places, s=34, color=INK, zorder=2, label="validation, held-out rows")
        for place, (first, last) in enumerate(zip(train, validation, strict=True)):
            axes.annotate(
                signed_gap(last - first), (max(first, last), place), (8, 0), textcoords="offset points",
                va="center", color=MUTED, fontsize=9.5,
            )  # fmt: skip
        axes.margins(x=0.09)
    _key(grid[0])
    grid[-1].set_xlabel(
        "loss in nats per answer token after the last epoch; at the right: gap", color=INK, fontsize=LABEL
    )
    return figure


def signed_gap(gap: float) -> str:
    """``+0.82``."""
    return f"{gap:+.2f}".replace("-", "\N{MINUS SIGN}")


def layers_figure(study: StudyStatistics, own: str | None, num_layers: int) -> Figure | None:
    """How often each arm chose each layer, a strip for each arm; none where no arm chooses.

    Arms that adapt every layer, or none, in every trial have no strip.
    """
    panels = {
        part.benchmark: {name: shares for name, shares in part.chosen.items() if _chooses(shares, num_layers)}
        for part in study.benchmarks
    }
    panels = {title: strips for title, strips in panels.items() if strips}
    if not panels:
        return None
    figure, grid = new_figure(
        1.6 + sum(0.45 + _ROW * len(strips) for strips in panels.values()),
        summary.layers_finding(study, own, num_layers),
        [1.5 + len(strips) for strips in panels.values()],
    )
    colours = LinearSegmentedColormap.from_list("chosen", ["#eef1f5", BLUE])
    for axes, (title, strips) in zip(grid, panels.items(), strict=True):
        _rows(axes, title, list(strips), {own: BLUE} if own else {})
        shares = [[of_layer.get(layer, 0.0) for layer in range(num_layers)] for of_layer in strips.values()]
        edges = np.arange(num_layers + 1) - 0.5
        axes.pcolormesh(
            edges,
            np.arange(len(strips) + 1) - 0.5,
            shares,
            cmap=colours,
            vmin=0,
            vmax=1,
            edgecolor="white",
            linewidth=1.2,
        )
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
    grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(num_layers, 32)))
    grid[-1].set_xlabel("layer (0 is nearest the input)", color=INK, fontsize=LABEL)
    shown = {"in no trial": 0.0, "in half of the trials": 0.5, "in every trial": 1.0}
    keys = [Patch(color=colours(value), label=name) for name, value in shown.items()]
    _key(grid[0], handles=keys)
    return figure


def _chooses(shares: Mapping[int, float], num_layers: int) -> bool:
    """Whether some layer is left out in some trial, and some layer is not."""
    return bool(shares) and (len(shares) < num_layers or min(shares.values()) < 1.0)


def _rows(axes: Axes, title: str, names: Sequence[str], colours: Mapping[str, str]) -> None:
    """A panel with a row for each name, the first one on top."""
    axes.set_title(title, loc="left", fontsize=LABEL, color=INK, parse_math=False)
    axes.set_yticks(range(len(names)), [short(name) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(colours.get(name, INK))
        label.set_fontweight("bold" if name in colours else "normal")


def _key(axes: Axes, **settings: Any) -> None:
    """The legend, above the panel at the right, in the line of its title."""
    axes.legend(
        frameon=False, fontsize=9.5, labelcolor=INK, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0,
        handlelength=1.2, **settings,
    )  # fmt: skip


def draw(study: StudyStatistics, own: str | None, num_layers: int, folder: Path) -> dict[str, Path]:
    """Write ``accuracy.png``, ``gap.png`` and ``layers.png``, those that there is something to show in.

    Args:
        study: The figures, of one benchmark or more.
        own: The arm to stand out, beside the reference.
        num_layers: Number of decoder layers.
        folder: Where the pictures go; created where missing.

    Returns:
        The path of each picture by its name.
    """
    figures = {
        "accuracy": accuracy_figure(study, own),
        "gap": gap_figure(study, own),
        "layers": layers_figure(study, own, num_layers),
    }
    drawn = {name: png(figure) for name, figure in figures.items() if figure}
    return {name: write_atomically(folder / f"{name}.png", picture) for name, picture in drawn.items()}
