"""Plots of a run, as PNG and PDF: ranks, samples, fields, bars a metric, lines an axis."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from bench.ablation import ablation, axes, file_name
from bench.curve_plots import curve_figure
from bench.diagram import critical_difference_figure
from bench.excerpts import is_image
from bench.folder import SAMPLES, cell_folder, write_atomically, writing
from bench.images import DPI, image_figures
from bench.leaderboard import GROUP, aggregate, best, cut, few, in_turn, main_distance, with_setting
from bench.metrics import METRICS
from bench.overall import overall
from bench.pictures import (
    MAX_FIELDS,
    SAMPLES_COLOUR,
    SOURCE_COLOUR,
    TARGET_COLOUR,
    Tell,
    field_figures,
)
from bench.stored import Array, read_images, read_samples, stored_shape
from datasets import TASKS, Task

MAX_PANELS = 10
"""Panels of samples a task."""
MAX_BARS = 16
"""Settings a task in a bar plot."""
MAX_LINES = 8
"""Lines in an ablation plot."""
MAX_LABELS = 12
"""Values of an axis that are written out below it."""
ROW_OF_BARS = 30
"""Bars and gaps side by side in one row of panels."""
CLEAR_DOTS = 20
"""Seeds of one bar that can be told apart; more are drawn paler."""
MAX_POINTS = 2000
PLOTTED = ["fid", "fd_classifier", "w2", "sliced_w2", "frechet", "transport_cost"]
"""Metrics that have bars; the tables have all."""
OTHER_COLOUR = "#7f7f7f"
Panels = Mapping[str, Mapping[str, Array]]
P = TypeVar("P")
KINDS = (
    *("samples", "pairs", "paths", "neighbours", "curves"),
    *("field", "bars", "ablation", "critical"),
)
"""How the names of plots begin."""


def draw_plots(
    results: pd.DataFrame,
    out: Path,
    tell: Tell = lambda line: None,
    fields: int = MAX_FIELDS,
    points: pd.DataFrame | None = None,
) -> list[Path]:
    """All plots of a run into ``out/plots``; returns the PNG files and tells each.

    Args:
        results: the rows of ``results.csv``.
        out: the output folder.
        tell: told of each plot, and of what is not drawn.
        fields: figures of fields at most.
        points: the rows of ``pareto.csv``.

    Raises:
        StorageError: a file could not be written; no plot of an earlier run is lost.
    """
    folder = out / "plots"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    done = with_setting(results[results["status"] == "done"])
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.85)
    paths = []
    across = "critical_difference", critical_difference_figure(overall(results))
    for name, figure in chain([across], _figures(done, out, tell, fields, points)):
        if figure is not None:
            paths.append(save(figure, folder / name))
            tell(f"drew {paths[-1].name}")
    _remove_others(folder, paths)
    return paths


def _figures(
    done: pd.DataFrame, out: Path, tell: Tell, fields: int, points: pd.DataFrame | None
) -> Iterator[tuple[str, Figure | None]]:
    summary = aggregate(done, GROUP)
    for task, rows in summary.groupby("task", sort=False):
        yield from sample_figures(str(task), done[done["task"] == task], rows, out, tell)
        main = main_distance(rows)
        if points is not None and main is not None:
            figure = curve_figure(points, str(task), float(rows[f"{main}_floor"].mean()))
            yield file_name("curves", str(task)), figure
    yield from field_figures(done, out, tell, fields)
    for name in PLOTTED:
        yield file_name("bars", name), bar_figure(done, summary, name)
    for axis in axes(done.drop(columns="setting")):
        yield file_name("ablation", axis), ablation_figure(done, axis)


def save(figure: Figure, stem: Path) -> Path:
    """Writes PDF and PNG; both are made in memory, so that a full disk leaves the old ones."""
    try:
        frame = _lay_out(figure)
        for suffix in ("pdf", "png"):
            content = io.BytesIO()
            figure.savefig(content, format=suffix, bbox_inches=frame, dpi=DPI)
            path = stem.with_name(f"{stem.name}.{suffix}")
            write_atomically(path, content.getvalue())
    finally:
        plt.close(figure)
    return path


def _lay_out(figure: Figure) -> Bbox:
    """Lays the figure out once for both files; returns its frame in inches."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    return figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])


def _remove_others(folder: Path, paths: list[Path]) -> None:
    """Removes the plots of an earlier run that this one does not have; files not ours stay."""
    kept = {path.with_suffix(suffix) for path in paths for suffix in (".png", ".pdf")}
    for kind in KINDS:
        for old in {*folder.glob(f"{kind}_*.png"), *folder.glob(f"{kind}_*.pdf")} - kept:
            with writing(old):
                old.unlink(missing_ok=True)


def sample_figures(
    task: str, rows: pd.DataFrame, summary: pd.DataFrame, out: Path, tell: Tell
) -> Iterator[tuple[str, Figure]]:
    """Samples of the lowest seed of every method and setting, beside the target.

    Two-dimensional data are scattered; images also have pairs, paths and neighbours.

    Args:
        task: its name.
        rows: its results that are done, with their settings.
        summary: one row a method and setting.
        out: the output folder.
        tell: told of samples that cannot be shown.
    """
    kind = TASKS.get(task)
    if kind is None:
        return
    first = rows.sort_values("seed", kind="stable").drop_duplicates(["method", "setting"])
    first = first.merge(best(summary, MAX_PANELS)[["method", "setting"]])
    first = first.sort_values(["method", "setting"], kind="stable", key=_by_number)
    title = [kind.title, cut(summary, MAX_PANELS)]

    def panels(read: Callable[[Path], P]) -> dict[str, P]:
        found, missing = _panels(first, out, read)
        if missing:
            tell(f"{file_name('samples', task)}: left out {few(missing)}")
            title.append(_plain(f"without {few(missing)}"))
        return found

    if kind.dim == 2:
        if clouds := panels(lambda path: read_samples(path, 2)):
            yield file_name("samples", task), scatter_figure(clouds, _lines(title))
        return
    shapes = _image_shapes(kind, [_samples_of(row, out) for row in first.to_dict("records")])
    if shapes and (images := panels(lambda path: read_images(path, shapes[path]))):
        yield from image_figures(task, images, not kind.noise_source, _lines(title))


def _by_number(texts: pd.Series) -> pd.Series:
    """Texts whose numbers sort by their size: ``L=30`` before ``L=100``."""

    def padded(number: re.Match[str]) -> str:
        return f"{float(number[0]):030.12f}"

    return texts.map(lambda text: re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", padded, text))


def _panels(
    rows: pd.DataFrame, out: Path, read: Callable[[Path], P]
) -> tuple[dict[str, P], list[str]]:
    """What is read of each row by its title; of those that cannot be shown, the reason."""
    panels: dict[str, P] = {}
    missing = []
    for row in rows.to_dict("records"):
        try:
            panels[_title(row)] = read(_samples_of(row, out))
        except ValueError as error:
            missing.append(f"{' '.join(filter(None, (row['method'], row['setting'])))}: {error}")
    return panels, missing


def _samples_of(row: Mapping[Any, Any], out: Path) -> Path:
    return cell_folder(out, row["id"]) / SAMPLES


def _image_shapes(kind: type[Task], paths: list[Path]) -> dict[Path, tuple[int, ...]]:
    """The shape of the images in each file; none for a task that is not on images.

    Files of an earlier version do not say it: theirs is that of the task as it is by default, if
    its data can be had.
    """
    shapes = {path: stored_shape(path) for path in paths}
    default: tuple[int, ...] = ()
    if None in shapes.values():
        with contextlib.suppress(Exception):  # the data of a task may be anywhere, or gone
            default = kind().target().shape
    known = {path: shape or default for path, shape in shapes.items()}
    return known if any(map(is_image, known.values())) else {}


def _lines(title: list[str]) -> str:
    return "\n".join(filter(None, title))


def _title(row: "Mapping[Any, Any] | pd.Series[Any]", between: str = "\n") -> str:
    return _plain(between.join(filter(None, (str(row["method"]), str(row["setting"])))))


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _task_title(task: str) -> str:
    return TASKS[task].title if task in TASKS else _plain(task)


def scatter_figure(panels: Panels, title: str) -> Figure:
    """The source, the held-out target and the samples of every panel, in one frame."""
    first = next(iter(panels.values()))
    clouds = [("source", first["source"], SOURCE_COLOUR)]
    clouds += [("target, held out", first["target"], TARGET_COLOUR)]
    clouds += [(name, panel["samples"], SAMPLES_COLOUR) for name, panel in panels.items()]
    columns = min(5, len(clouds))
    grid = -(-len(clouds) // columns)
    figure, all_axes = plt.subplots(
        grid,
        columns,
        figsize=(2.7 * columns, 2.9 * grid),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    shown = np.concatenate([first["source"], first["target"]])
    centre = (shown.max(0) + shown.min(0)) / 2
    half = 0.6 * (shown.max(0) - shown.min(0)).max()
    for ax, (name, points, colour) in zip(all_axes.flat, clouds, strict=False):
        ax.scatter(*points[:MAX_POINTS].T, s=3, alpha=0.5, color=colour, linewidths=0)
        ax.set(xlim=centre[0] + [-half, half], ylim=centre[1] + [-half, half], aspect="equal")
        outside = float((np.abs(points - centre) > half).any(1).mean())
        if outside > 0:
            name += f"\n({outside:.2%} outside the frame)"
        ax.set_title(name, fontsize=9)
    for ax in all_axes.flat[len(clouds) :]:
        ax.axis("off")
    for ax in all_axes.flat[max(len(clouds) - columns, 0) : len(clouds)]:
        ax.tick_params(labelbottom=True)  # nothing stands below it
    figure.suptitle(title)
    return figure


def bar_figure(done: pd.DataFrame, summary: pd.DataFrame, metric: str) -> Figure | None:
    """Means with 95% intervals and the single seeds, a panel a task; None without values.

    Args:
        done: the results that are done, with their settings.
        summary: one row a task, method and setting.
        metric: its name.
    """
    summary = summary[summary[f"{metric}_mean"].notna()]
    if not len(summary):
        return None
    groups = dict(iter(summary.groupby("task", sort=False)))
    chosen = {
        str(task): best(rows, MAX_BARS).sort_values("method", kind="stable")
        for task, rows in groups.items()
    }
    longest = max(rows["setting"].str.len().max() for rows in chosen.values())
    figure, panels = _bar_panels([len(rows) for rows in chosen.values()], int(longest))
    colours = _colours(summary["method"])
    for ax, (task, rows) in zip(panels, chosen.items(), strict=True):
        seeds = done[(done["task"] == task) & done[metric].notna()]
        _bars(ax, rows, seeds, metric, colours)
        words = cut(groups[task], MAX_BARS)
        ax.set_title("\n".join(filter(None, (_task_title(task), words))), fontsize=9)
    label, floor = METRICS[metric].label, METRICS[metric].floor
    for ax in panels:
        if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel(label)
    figure.suptitle(
        f"{label}: mean and 95% t interval, cut at the frame; dots: seeds; dashed: {floor}",
        fontsize=9,
    )
    return figure


def _bar_panels(bars: list[int], longest: int) -> tuple[Figure, list[Axes]]:
    """A panel for each number of bars: in one row, or below each other if that gets too wide.

    Settings of up to ``longest`` letters stand upright below the bars, and take height.
    """
    width, height = (0.4, 4.0 + 0.06 * longest) if longest else (0.55, 3.6)
    rows, ratios = 1, [number + 1 for number in bars]
    if sum(ratios) > ROW_OF_BARS:
        columns = max(1, min(len(bars), ROW_OF_BARS // max(ratios)))
        rows, ratios = -(-len(bars) // columns), [max(ratios)] * columns
    inches = 2.2 + width * (sum(ratios) - len(ratios)) + 0.8 * len(ratios)
    figure, grid = plt.subplots(
        rows,
        len(ratios),
        figsize=(inches, height * rows),
        width_ratios=ratios,
        squeeze=False,
        layout="constrained",
    )
    for ax in grid.flat[len(bars) :]:
        ax.axis("off")
    return figure, list(grid.flat[: len(bars)])


def _colours(methods: "pd.Series[str]") -> dict[str, Any]:
    """A colour a method, the same in every panel."""
    names = sorted(set(methods))
    palette = sns.color_palette("muted" if len(names) <= 10 else "husl", len(names))
    return dict(zip(names, palette, strict=True))


def _bars(
    ax: Axes, summary: pd.DataFrame, seeds: pd.DataFrame, metric: str, colours: dict[str, Any]
) -> None:
    place = np.arange(len(summary))
    mean = summary[f"{metric}_mean"].to_numpy(float)
    half = (summary[f"{metric}_ci_high"] - mean).to_numpy(float)
    ax.bar(place, mean, color=[colours[name] for name in summary["method"]], width=0.65, zorder=2)
    known = np.isfinite(half)
    ax.errorbar(
        place[known],
        mean[known],
        half[known],
        fmt="none",
        ecolor="#333333",
        capsize=3,
        zorder=5,
    )
    dots = seeds.merge(summary[["method", "setting"]].assign(place=place))
    values = dots[metric].to_numpy(float)
    pale = min(1.0, CLEAR_DOTS / max(dots["place"].value_counts()))
    ax.plot(dots["place"], values, ".", color="black", markersize=5, alpha=max(pale, 0.1), zorder=4)
    floor = float(seeds[f"{metric}_floor"].mean())
    ax.axhline(floor, ls="--", lw=1.2, color="black", zorder=6)
    # Two seeds have an interval many times the bar; the frame is for the values.
    ax.set_ylim(0, 1.35 * max(values.max(), floor))
    if (summary["setting"] != "").any():
        titles = [_title(row, " ") for row in summary.to_dict("records")]
        ax.set_xticks(place, titles, rotation=90, fontsize=7)
    else:
        ax.set_xticks(place, [_title(row) for row in summary.to_dict("records")], fontsize=8)
    ax.grid(False, axis="x")


def ablation_figure(done: pd.DataFrame, axis: str) -> Figure | None:
    """The main metrics over an axis: a column a task, its metrics below each other."""
    table = ablation(done.drop(columns="setting"), axis)
    swept = table.groupby("task")[axis].nunique() > 1
    tasks = [task for task in dict.fromkeys(table["task"]) if swept[task]]
    if not tasks:
        return None
    table = table[table["task"].isin(tasks)]
    panels = {task: _ablation_metrics(table[table["task"] == task]) for task in tasks}
    height = max(map(len, panels.values()))
    if not height:
        return None
    shown, words = _best_lines(table)
    figure, all_axes = plt.subplots(
        height,
        len(tasks),
        figsize=(4.2 * len(tasks) + 2.2, 2.7 * height),
        squeeze=False,
        sharex="col",
        layout="constrained",
    )
    lines = list(
        dict.fromkeys(_title(row) for row in shown[["method", "setting"]].to_dict("records"))
    )
    colours = dict(zip(lines, sns.color_palette("husl", len(lines)), strict=True))
    for column, (task, metrics) in zip(all_axes.T, panels.items(), strict=True):
        for ax, metric in zip(column, metrics, strict=False):
            _ablation_panel(ax, shown[shown["task"] == task], axis, metric, colours)
            ax.set_ylabel(METRICS[metric].label)
        for ax in column[len(metrics) :]:
            ax.axis("off")
        column[0].set_title(_task_title(task))
        column[max(len(metrics) - 1, 0)].set_xlabel(_plain(axis))
    handles: dict[str, Any] = {}
    for ax in all_axes.flat:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    figure.suptitle(f"mean over seeds; bars: 95% t interval, cut at the frame{words}", fontsize=9)
    return figure


def _ablation_metrics(table: pd.DataFrame) -> list[str]:
    """The metrics whose panels stand below each other for a task: the main distance first."""
    main = main_distance(table)
    known = [name for name in ("frechet", "transport_cost") if table[f"{name}_mean"].notna().any()]
    return [main, *known] if main else known


def _best_lines(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of at most ``MAX_LINES`` lines, and what was cut in words.

    A line is a method and its other settings. It is judged by its best point: the rank of that
    among all lines, averaged over the tasks.
    """
    ranks = []
    for _, rows in table.groupby("task", sort=False):
        distance = main_distance(rows)
        if distance:
            line = rows.groupby(["method", "setting"], sort=False)[f"{distance}_mean"]
            ranks.append(line.min().rank())
    lines = table[["method", "setting"]].drop_duplicates()
    if len(lines) <= MAX_LINES or not ranks:
        return table, ""
    score = pd.concat(ranks).groupby(["method", "setting"], sort=False).mean().rename("score")
    lines = lines.merge(score, left_on=["method", "setting"], right_index=True, how="left")
    kept = lines.loc[in_turn(lines["score"], lines["method"], MAX_LINES), ["method", "setting"]]
    words = f"best {MAX_LINES} of {len(lines):,} lines by their smallest distance"
    return table.merge(kept), f"\n{words}, of each method in turn; the tables have all"


def _ablation_panel(
    ax: Axes, table: pd.DataFrame, axis: str, metric: str, colours: dict[str, Any]
) -> None:
    table = table[table[f"{metric}_mean"].notna()]
    values = list(table[axis].dropna().unique())
    numeric = all(isinstance(value, int | float | np.number) for value in values)
    values.sort(key=None if numeric else str)
    place = {value: value if numeric else k for k, value in enumerate(values)}
    for _, rows in table.groupby(["method", "setting"], sort=False):
        line = _title(rows.iloc[0])
        mean = rows[f"{metric}_mean"].to_numpy(float)
        if rows[axis].isna().all():
            ax.axhline(mean[0], ls=":", lw=1.6, color=colours[line], label=f"{line} (no {axis})")
            continue
        half = np.nan_to_num((rows[f"{metric}_ci_high"] - rows[f"{metric}_mean"]).to_numpy(float))
        at = [place[value] for value in rows[axis]]
        ax.errorbar(at, mean, half, marker="o", ms=4, capsize=2, color=colours[line], label=line)
    if len(table):
        floor = table[f"{metric}_floor"].mean()
        ax.axhline(floor, ls="--", lw=1, color="black", label="floor")
        top = max(table[f"{metric}_mean"].max(), floor)
        ax.set_ylim(0, 1.35 * top)
    if numeric and min(values, default=0) > 0 and max(values) / min(values) >= 4:
        ax.set_xscale("log")
    if not numeric:
        step = -(-len(values) // MAX_LABELS) or 1
        ax.set_xticks(range(0, len(values), step), [_plain(str(value)) for value in values[::step]])
    elif len(values) <= MAX_LABELS:
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
