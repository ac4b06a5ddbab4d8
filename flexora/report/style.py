"""What all pictures share: size, colours, titles, grids, and labels at the ends of lines."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import ColorType

INK, MUTED, FAINT = "#1f2933", "#5f6b7a", "#e4e7eb"
BLUE, ORANGE, GREY = "#1f66b0", "#c2571a", "#c3cad3"
LABEL = 10.5  # points; at 150 dpi and 9 inches that reads well at half size
_WIDTH, _DPI = 9.0, 150
_LINE_HEIGHT = 0.055  # of the axes' height: the least distance of two end labels


def new_figure(height: float, title: str, panels: Sequence[float] = (1.0,)) -> tuple[Figure, list[Axes]]:
    """An empty figure with panels under each other that share the x axis.

    Args:
        height: Inches.
        title: The finding, shown above at the left; wrapped where long.
        panels: Relative heights.
    """
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]  # set by name above
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": list(panels)})
    wrapped = textwrap.fill(title, 80)
    figure.suptitle(wrapped, x=0.013, ha="left", fontsize=12.5, fontweight="bold", color=INK, parse_math=False)
    every: list[Axes] = list(grid[:, 0])
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(labelsize=9.5, colors=MUTED, length=3)
        axes.grid(visible=True, axis="y", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, every


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes; the x axis counts in whole numbers."""
    axes.set_xlabel(x, color=INK, fontsize=LABEL)
    axes.set_ylabel(y, color=INK, fontsize=LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # or one epoch would be shown in parts


def depth_colours() -> ListedColormap:
    """Viridis without its bright yellow end, which vanishes on white."""
    return ListedColormap(matplotlib.colormaps["viridis"]([0.88 * step / 255 for step in range(256)]))


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, ColorType]]) -> None:
    """Name lines at the right edge, spread so that no two labels touch.

    Args:
        axes: Axes whose lines are drawn; their limits become fixed.
        ends: For each label the last y value of its line, and its colour.
    """
    axes.margins(x=0.0)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    names = sorted(ends, key=lambda name: ends[name][0])
    wanted = [(ends[name][0] - low) / (high - low) for name in names]
    for name, place in zip(names, spread(wanted, _LINE_HEIGHT), strict=True):
        value, colour = ends[name]
        axes.annotate(
            name,
            xy=(1.0, (value - low) / (high - low)),
            xytext=(1.03, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=LABEL,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 1},
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Rising places moved apart to at least ``gap``, as little as possible (least squares).

    With ``i * gap`` taken off, "at least a gap apart" reads "not falling": labels that crowd are pooled to their mean.
    """
    pools: list[tuple[float, int]] = []
    for index, place in enumerate(places):
        mean, size = place - index * gap, 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean, size = (mean * size + before * count) / (size + count), size + count
        pools.append((mean, size))
    level = [mean for mean, size in pools for _ in range(size)]
    return [mean + index * gap for index, mean in enumerate(level)]


def png(figure: Figure) -> bytes:
    """The figure as a PNG, drawn by Agg."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def short(name: str, limit: int = 28) -> str:
    """The end of a long name, such as an adapter's path."""
    return name if len(name) <= limit else f"…{name[1 - limit :]}"
