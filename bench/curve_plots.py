"""The plot of quality against cost of a task."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bench.curve import COSTS, PLACE, front
from bench.leaderboard import in_turn
from bench.metrics import METRICS
from datasets import TASKS

MAX_CURVES = 12
"""Methods and settings in a plot."""


def curve_figure(table: pd.DataFrame, task: str, floor: float) -> Figure | None:
    """Main distance against evaluations, training steps and seconds; None without a curve.

    Args:
        table: the rows of ``pareto.csv``.
        task: its name.
        floor: of the main distance.
    """
    table = table[(table["task"] == task) & table["distance"].notna()]
    table = table.assign(label=[_label(*place) for place in table[PLACE[1:]].to_numpy()])
    several = table.groupby("label")["distance"].transform("size") > 1
    if not several.any():
        return None
    least = table.groupby("label", sort=False).agg(
        distance=("distance", "min"), method=("method", "first")
    )
    if len(least) > MAX_CURVES:
        kept = in_turn(least["distance"], least["method"], MAX_CURVES)
        table = table[table["label"].isin(kept)]
    labels = sorted(set(table["label"]))
    colours = dict(zip(labels, sns.color_palette("husl", len(labels)), strict=True))
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4), sharey=True, layout="constrained")
    full = table.groupby("label")[["train_steps", "solver_steps"]].transform("max")
    trained = table["train_steps"] > 0
    at_the_end = table["train_steps"] == full["train_steps"]
    all_steps = table["solver_steps"] == full["solver_steps"]
    _panel(axes[0], table[at_the_end], "nfe", colours)
    _panel(axes[1], table[all_steps & trained], "train_steps", colours)
    _panel(axes[2], table[all_steps], "seconds", colours)
    shown = {"nfe": table[at_the_end], "seconds": table[all_steps]}
    for ax, cost in ((axes[0], "nfe"), (axes[2], "seconds")):
        best = shown[cost][front(shown[cost], cost)].sort_values(cost)
        ax.plot(
            *(best[cost], best["distance"]),
            drawstyle="steps-post", color="black", lw=2.5, alpha=0.35, label="Pareto front",
        )  # fmt: skip
    for ax, label in zip(axes, (COSTS["nfe"], "training steps", COSTS["seconds"]), strict=True):
        ax.axhline(floor, ls="--", lw=1, color="black", label="floor")
        ax.set(xscale="log", yscale="log", xlabel=label)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel(METRICS[table["metric"].iloc[0]].label)
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    title = TASKS[task].title if task in TASKS else task.replace("$", r"\$")
    figure.suptitle(f"{title}: means over seeds; left: fewer solver steps, the others: checkpoints")
    return figure


def _label(method: object, setting: object) -> str:
    return " ".join(filter(None, (str(method), str(setting)))).replace("$", r"\$")


def _panel(ax: Axes, table: pd.DataFrame, cost: str, colours: dict[str, Any]) -> None:
    for label, rows in table.groupby("label"):
        rows = rows.sort_values(cost)
        ax.plot(rows[cost], rows["distance"], "o-", ms=4, color=colours[str(label)], label=label)
