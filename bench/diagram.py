"""The critical-difference diagram: mean ranks over tasks on a line, what does not differ joined."""

import matplotlib.pyplot as plt
import scikit_posthocs
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from bench.overall import Overall

RANK_WIDTH, ROW_HEIGHT = 5.5, 0.25
"""Inches of the axis of ranks, and of each row of names or bars below it."""
ABOVE = 2.8
"""Rows above the axis: its numbers, and the critical difference."""
INK, BAR_COLOUR = "0.2", "#c0392b"


def critical_difference_figure(found: Overall) -> Figure | None:
    """Names at their mean ranks; a bar joins those that do not differ significantly.

    Returns:
        None where no test was possible, or no two ranks could have differed.

    References:
        Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7, 2006.
    """
    if not len(found.ranks) or found.critical_difference > len(found.ranks) - 1:
        return None
    # A formula to matplotlib is a part of a name to us.
    names = {name: str(name).replace("$", r"\$") for name in found.ranks.index}
    figure, ax = plt.subplots()
    drawn = scikit_posthocs.critical_difference_diagram(
        found.ranks.rename(index=names),
        found.p_values.rename(index=names, columns=names),
        ax=ax,
        label_fmt_left="{label}  {rank:.2f} ",
        label_fmt_right=" {rank:.2f}  {label}",
        label_props={"fontsize": 9},
        marker_props={"s": 14, "clip_on": False},
        elbow_props={"color": INK, "linewidth": 0.9, "clip_on": False},
        crossbar_props={"color": BAR_COLOUR, "linewidth": 3.5, "solid_capstyle": "round"},
    )
    last = min(label.get_position()[1] for label in drawn["labels"])
    _frame(figure, ax, len(names), last - 0.5)
    _draw_critical_difference(ax, found.critical_difference)
    title = "mean rank over tasks, 1 is best; joined: no significant difference at 5%"
    ax.set_title(title, fontsize=9, color=INK)
    return figure


def _frame(figure: Figure, ax: Axes, competitors: int, bottom: float) -> None:
    """The size of the figure, and the axis of ranks."""
    figure.set_size_inches(RANK_WIDTH, ROW_HEIGHT * (ABOVE - bottom))
    ax.set_position((0, 0, 1, 1))
    ax.set(xlim=(1, competitors), ylim=(bottom, ABOVE))
    ax.grid(False)
    ax.xaxis.set_major_locator(MultipleLocator(1))
    ax.spines["top"].set(color=INK, linewidth=1)
    ax.tick_params(axis="x", top=True, length=4, color=INK, labelsize=8)


def _draw_critical_difference(ax: Axes, difference: float) -> None:
    """A ruler of this length above the left end of the axis."""
    ends = [1, 1 + difference]
    ax.plot(ends, [1.9, 1.9], color=INK, marker="|", markersize=7, lw=1.2, clip_on=False)
    ax.text(sum(ends) / 2, 2.1, f"CD = {difference:.2f}", ha="center", va="bottom", fontsize=8)
