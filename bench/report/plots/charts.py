"""Figures of the tables: bars of a metric, ablations, quality against cost, ranks over tasks."""

from typing import Any

import numpy as np
import pandas as pd
import scikit_posthocs
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MultipleLocator, NullFormatter, StrMethodFormatter

from bench.analysis.curves import COSTS, front
from bench.analysis.leaderboard import best, cut, in_turn, main_distance
from bench.analysis.overall import Overall
from bench.metrics import METRICS
from bench.report.plots.style import colours_of, labels_of, legend, panels_of, plain
from bench.report.tables import title_of

MAX_BARS = 16  # settings of a task
ROW_OF_BARS = 30  # bars and gaps side by side in one row of panels
CLEAR_DOTS = 20  # seeds of one bar that can be told apart; more are drawn paler
MAX_LINES = 8
MAX_LABELS = 12  # values of the axis that are written out below it
BESIDE = ("frechet", "transport_cost")  # metrics that are shown below the main distance
LINE = ["method", "setting"]  # a line is a method with its other settings
MAX_CURVES = 12  # methods and settings in a plot
RANK_WIDTH, ROW_HEIGHT = 5.5, 0.25  # inches: axis of ranks, each row of names or bars below it
ABOVE = 2.8  # rows above the axis: its numbers, and the critical difference
INK, BAR_COLOUR = "0.2", "#c0392b"


def bar_figure(done: pd.DataFrame, summary: pd.DataFrame, metric: str) -> Figure | None:
    """Means with 95% intervals and the single seeds, a panel a task; None without values.

    ``done`` are the results that are done, ``summary`` has one row a task, method and setting.
    """
    summary = summary[summary[f"{metric}_mean"].notna()]
    if not len(summary):
        return None
    tasks = summary.groupby("task", sort=False)
    chosen = {t: best(rows, MAX_BARS).sort_values("method", kind="stable") for t, rows in tasks}
    longest = int(max(rows["setting"].str.len().max() for rows in chosen.values()))
    # Settings stand upright below the bars, and take height.
    width, height = (0.4, 4.0 + 0.06 * longest) if longest else (0.55, 3.6)
    ratios = [len(rows) + 1 for rows in chosen.values()]
    if sum(ratios) > ROW_OF_BARS:
        ratios = [max(ratios)] * max(1, min(len(chosen), ROW_OF_BARS // max(ratios)))
    inches = 2.2 + width * (sum(ratios) - len(ratios)) + 0.8 * len(ratios)
    size = inches, height * -(-len(chosen) // len(ratios))
    figure, panels = panels_of(len(chosen), len(ratios), size, width_ratios=ratios)
    colours = colours_of(summary["method"])
    label, floor = METRICS[metric].label, METRICS[metric].floor
    for ax, (task, rows) in zip(panels, chosen.items(), strict=True):
        seeds = done[(done["task"] == task) & done[metric].notna()]
        _bars(ax, rows, seeds, metric, colours)
        words = cut(tasks.get_group(task), MAX_BARS)
        ax.set_title("\n".join(filter(None, (plain(title_of(str(task))), words))), fontsize=9)
        if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel(label)
    words = "mean and 95% t interval, cut at the frame; dots: seeds; dashed"
    figure.suptitle(f"{label}: {words}: {floor}", fontsize=9)
    return figure


def _bars(
    ax: Axes, summary: pd.DataFrame, seeds: pd.DataFrame, metric: str, colours: dict[str, Any]
) -> None:
    place = np.arange(len(summary))
    mean = summary[f"{metric}_mean"].to_numpy(float)
    half = (summary[f"{metric}_ci_high"] - mean).to_numpy(float)
    dots = seeds.merge(summary[["method", "setting"]].assign(place=place))
    pale = max(0.1, min(1.0, CLEAR_DOTS / dots["place"].value_counts().max()))
    floor = float(seeds[f"{metric}_floor"].mean())
    ax.bar(place, mean, color=[colours[name] for name in summary["method"]], width=0.65, zorder=2)
    ax.plot(dots["place"], dots[metric], ".", color="black", markersize=5, alpha=pale, zorder=4)
    ax.errorbar(place, mean, half, fmt="none", ecolor="#333333", capsize=3, zorder=5)
    ax.axhline(floor, ls="--", lw=1.2, color="black", zorder=6)
    # Two seeds have an interval many times the bar; the frame is for the values.
    shown = np.nan_to_num([*dots[metric], floor, 0.0])
    ax.set_ylim(1.35 * shown.min(), 1.35 * shown.max() or None)
    upright = bool((summary["setting"] != "").any())
    ax.set_xticks(place, labels_of(summary), rotation=90 * upright, fontsize=7 if upright else 8)
    ax.grid(False, axis="x")


def ablation_figure(table: pd.DataFrame, axis: str) -> Figure | None:
    """The main metrics over a setting: a column a task, its metrics below each other.

    ``table`` has one row a task, method, value of the axis and value of the other settings. None
    where the axis does not vary among the results that are done.
    """
    table = table[table["count"] > 0]
    table = table[table.groupby("task")[axis].transform("nunique") > 1]
    metrics = {}
    for task, rows in table.groupby("task", sort=False):
        main = main_distance(rows)
        known = [name for name in BESIDE if rows[f"{name}_mean"].notna().any()]
        metrics[task] = [main, *known] if main else known
    height = max(map(len, metrics.values()), default=0)
    if not height:
        return None
    shown, words = _best_lines(table)
    shown = shown.assign(label=labels_of(shown, "\n"))
    size = 4.2 * len(metrics) + 2.2, 2.7 * height
    figure, panels = panels_of(height * len(metrics), len(metrics), size, sharex="col")
    colours = colours_of(shown["label"])
    for column, (task, names) in enumerate(metrics.items()):
        own = panels[column :: len(metrics)]
        for ax, metric in zip(own, names, strict=False):
            _panel(ax, shown[shown["task"] == task], axis, metric, colours)
            ax.set_ylabel(METRICS[metric].label)
        for ax in own[len(names) :]:
            ax.axis("off")
        own[0].set_title(plain(title_of(str(task))))
        own[max(len(names) - 1, 0)].set_xlabel(plain(axis))
    legend(figure, panels)
    figure.suptitle(f"mean over seeds; bars: 95% t interval, cut at the frame{words}", fontsize=9)
    return figure


def _best_lines(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of at most ``MAX_LINES`` lines, and what was cut in words.

    Lines are compared by their best points: the rank of that among all lines of a task, averaged
    over the tasks.
    """
    ranks = []
    for _, rows in table.groupby("task", sort=False):
        if distance := main_distance(rows):
            ranks.append(rows.groupby(LINE, sort=False)[f"{distance}_mean"].min().rank())
    lines = table[LINE].drop_duplicates()
    if len(lines) <= MAX_LINES or not ranks:
        return table, ""
    score = pd.concat(ranks).groupby(LINE, sort=False).mean().rename("score")
    lines = lines.merge(score, left_on=LINE, right_index=True, how="left")
    kept = lines.loc[in_turn(lines["score"], lines["method"], MAX_LINES), LINE]
    words = f"\nbest {MAX_LINES} of {len(lines):,} lines by their smallest distance, of each method"
    return table.merge(kept), f"{words} in turn; the tables have all"


def _panel(ax: Axes, table: pd.DataFrame, axis: str, metric: str, colours: dict[str, Any]) -> None:
    """A metric of one task; methods that lack the axis are dotted across."""
    table = table[table[f"{metric}_mean"].notna()]
    values = list(table[axis].dropna().unique())
    numeric = all(isinstance(value, int | float | np.number) for value in values)
    values.sort(key=None if numeric else str)
    place = {value: value if numeric else k for k, value in enumerate(values)}
    for name, rows in table.groupby("label", sort=False):
        colour = colours[str(name)]
        mean = rows[f"{metric}_mean"].to_numpy(float)
        if rows[axis].isna().all():
            ax.axhline(mean[0], ls=":", lw=1.6, color=colour, label=f"{name} (no {plain(axis)})")
            continue
        half = np.nan_to_num(rows[f"{metric}_ci_high"].to_numpy(float) - mean)
        at = [place[value] for value in rows[axis]]
        ax.errorbar(at, mean, half, marker="o", ms=4, capsize=2, color=colour, label=name)
    if len(table):
        floor = table[f"{metric}_floor"].mean()
        ax.axhline(floor, ls="--", lw=1, color="black", label="floor")
        ax.set_ylim(0, 1.35 * max(table[f"{metric}_mean"].max(), floor))
    if not numeric:
        step = -(-len(values) // MAX_LABELS) or 1
        ax.set_xticks(range(0, len(values), step), [plain(str(value)) for value in values[::step]])
        return
    if min(values, default=0) > 0 and max(values) / min(values) >= 4:
        ax.set_xscale("log")
    if len(values) <= MAX_LABELS:
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()


def curve_figure(table: pd.DataFrame, task: str, floor: float) -> Figure | None:
    """Main distance against evaluations, training steps and seconds; None without a curve.

    ``table`` has the rows of ``pareto.csv``, ``floor`` is that of the main distance.
    """
    table = table[(table["task"] == task) & table["distance"].notna()]
    table = table.assign(label=labels_of(table))
    labels = table.groupby("label", sort=False)
    if not (labels.size() > 1).any():
        return None
    if labels.ngroups > MAX_CURVES:
        least = labels.agg(distance=("distance", "min"), method=("method", "first"))
        kept = in_turn(least["distance"], least["method"], MAX_CURVES)
        table = table[table["label"].isin(kept)]
    full = table.groupby("label")[["train_steps", "solver_steps"]].transform("max")
    at_the_end = table[table["train_steps"] == full["train_steps"]]
    all_steps = table[table["solver_steps"] == full["solver_steps"]]
    trained = all_steps[all_steps["train_steps"] > 0]
    colours = colours_of(table["label"])
    figure, panels = panels_of(3, 3, (14, 4.4), sharey=True)
    shown = {"nfe": at_the_end, "train_steps": trained, "seconds": all_steps}
    for ax, (cost, points) in zip(panels, shown.items(), strict=True):
        for label, rows in points.sort_values(cost, kind="stable").groupby("label"):
            colour = colours[str(label)]
            ax.plot(rows[cost], rows["distance"], "o-", ms=4, color=colour, label=label)
        if cost in COSTS:
            best = points[front(points, cost)].sort_values(cost)
            x, y = best[cost], best["distance"]
            ax.step(x, y, where="post", color="black", lw=2.5, alpha=0.35, label="Pareto front")
        ax.axhline(floor, ls="--", lw=1, color="black", label="floor")
        ax.set(xscale="log", yscale="log", xlabel=COSTS.get(cost, "training steps"))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel(METRICS[table["metric"].iloc[0]].label)
    legend(figure, panels)
    words = "means over seeds; left: fewer solver steps, the others: checkpoints"
    figure.suptitle(f"{plain(title_of(task))}: {words}")
    return figure


def critical_difference_figure(found: Overall) -> Figure | None:
    """Names at their mean ranks; a bar joins those that do not differ significantly.

    None where no test was possible, or no two ranks could have differed.

    References:
        Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7, 2006.
    """
    competitors, difference = len(found.ranks), found.critical_difference
    if not competitors or difference > competitors - 1:
        return None
    names = {name: plain(str(name)) for name in found.ranks.index}
    figure = Figure()
    ax = figure.subplots()
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
    bottom = min(label.get_position()[1] for label in drawn["labels"]) - 0.5
    figure.set_size_inches(RANK_WIDTH, ROW_HEIGHT * (ABOVE - bottom))
    ax.set_position((0, 0, 1, 1))
    ax.set(xlim=(1, competitors), ylim=(bottom, ABOVE))
    ax.grid(False)
    ax.xaxis.set_major_locator(MultipleLocator(1))
    ax.spines["top"].set(color=INK, linewidth=1)
    ax.tick_params(axis="x", top=True, length=4, color=INK, labelsize=8)
    ends = [1, 1 + difference]
    ax.plot(ends, [1.9, 1.9], color=INK, marker="|", markersize=7, lw=1.2, clip_on=False)
    ax.text(sum(ends) / 2, 2.1, f"CD = {difference:.2f}", ha="center", va="bottom", fontsize=8)
    title = "mean rank over tasks, 1 is best; joined: no significant difference at 5%"
    ax.set_title(title, fontsize=9, color=INK)
    return figure
