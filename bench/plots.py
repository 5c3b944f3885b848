"""Plots of a run, as PNG and PDF: samples, a bar plot a metric, a line plot an ablation axis."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.ablation import ablation, axes
from bench.leaderboard import aggregate, with_setting
from bench.metrics import METRICS
from bench.records import cell_folder
from datasets import TASKS

MAX_PANELS = 12
MAX_POINTS = 2000
DIGITS_SHOWN = 12
ABLATION_METRICS = ["w2", "sliced_w2", "frechet", "transport_cost"]
SOURCE, TARGET, SAMPLES = "#7f7f7f", "#3b6fb6", "#c2452d"
Images = NDArray[np.float32]


def draw_plots(
    results: pd.DataFrame, out: Path, tell: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """All plots of a run into ``out/plots``; returns the PNG files and tells each."""
    folder = out / "plots"
    folder.mkdir(exist_ok=True)
    for kind in ("samples", "bars", "ablation"):  # ours alone, of an earlier run
        for old in [*folder.glob(f"{kind}_*.png"), *folder.glob(f"{kind}_*.pdf")]:
            old.unlink()
    done = with_setting(results[results["status"] == "done"])
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.85)
    paths = []
    for name, figure in _figures(done, out):
        if figure is not None:
            paths.append(_save(figure, folder / name))
            tell(f"drew {paths[-1].name}")
    return paths


def _figures(done: pd.DataFrame, out: Path) -> Iterator[tuple[str, Figure | None]]:
    for task, rows in done.groupby("task", sort=False):
        yield f"samples_{task}", sample_figure(str(task), rows, out)
    for name in METRICS:
        yield f"bars_{name}", bar_figure(done, name)
    for axis in axes(done.drop(columns="setting")):
        yield f"ablation_{axis}", ablation_figure(done, axis)


def _save(figure: Figure, stem: Path) -> Path:
    for suffix in (".pdf", ".png"):
        figure.savefig(stem.with_name(stem.name + suffix), bbox_inches="tight", dpi=120)
    plt.close(figure)
    return stem.with_name(stem.name + ".png")


def sample_figure(task: str, rows: pd.DataFrame, out: Path) -> Figure | None:
    """Samples of the lowest seed of every method and setting, beside the target."""
    first = rows.sort_values("seed", kind="stable").drop_duplicates(["method", "setting"])
    first = first.sort_values(["method", "setting"], kind="stable").head(MAX_PANELS)
    panels: dict[str, dict[str, Images]] = {}
    for _, row in first.iterrows():
        path = cell_folder(out, row["id"]) / "samples.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as arrays:
                panels[_title(row)] = {name: arrays[name] for name in arrays.files}
    if not panels or task not in TASKS:
        return None
    kind = TASKS[task]
    shape = kind().target().shape
    if len(shape) == 3:
        return _image_figure(panels, shape, paired=not kind.noise_source, title=kind.title)
    return _scatter_figure(panels, kind.title) if kind.dim == 2 else None


def _title(row: "pd.Series[Any]") -> str:
    words = "\n".join(filter(None, (str(row["method"]), str(row["setting"]))))
    return words.replace("$", r"\$")  # no formulas in names


def _scatter_figure(panels: dict[str, dict[str, Images]], title: str) -> Figure:
    first = next(iter(panels.values()))
    clouds = [("source", first["source"], SOURCE), ("target, held out", first["target"], TARGET)]
    clouds += [(name, panel["samples"], SAMPLES) for name, panel in panels.items()]
    columns = min(5, len(clouds))
    grid = -(-len(clouds) // columns)
    figure, all_axes = plt.subplots(
        grid, columns, figsize=(2.7 * columns, 2.9 * grid), squeeze=False, layout="constrained"
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
    figure.suptitle(title)
    return figure


def _image_figure(
    panels: dict[str, dict[str, Images]], shape: tuple[int, ...], paired: bool, title: str
) -> Figure:
    """A row of images a method; for a translation under the inputs that they are made of."""
    first = next(iter(panels.values()))
    rows = [("input", first["source"])] if paired else []
    rows += [(name, panel["samples"]) for name, panel in panels.items()]
    rows += [("real, held out", first["target"])]
    figure, all_axes = plt.subplots(
        len(rows), 1, figsize=(8.5, 0.85 * len(rows) + 0.4), squeeze=False, layout="constrained"
    )
    low, high = float(first["target"].min()), float(first["target"].max())
    for ax, (name, vectors) in zip(all_axes[:, 0], rows, strict=True):
        images = vectors[:DIGITS_SHOWN].reshape(-1, *shape).clip(low, high)
        strip = np.concatenate(list(np.pad(images, ((0, 0), (0, 0), (0, 0), (0, 1)))), axis=2)
        ax.imshow(strip.transpose(1, 2, 0), cmap="gray", vmin=low, vmax=high)
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    figure.suptitle(title)
    return figure


def bar_figure(done: pd.DataFrame, metric: str) -> Figure | None:
    """Means with 95% intervals and the single seeds, a panel a task; None without values."""
    rows = done[done[metric].notna()]
    if not len(rows):
        return None
    tasks = list(dict.fromkeys(rows["task"]))
    settings = rows.groupby("task").apply(lambda g: len(g[["method", "setting"]].drop_duplicates()))
    figure, all_axes = plt.subplots(
        1,
        len(tasks),
        figsize=(min(100, 2.2 + 0.55 * settings.sum() + 0.8 * len(tasks)), 3.6),
        width_ratios=[settings[task] + 1 for task in tasks],
        squeeze=False,
        layout="constrained",
    )
    for ax, task in zip(all_axes[0], tasks, strict=True):
        _bars(ax, rows[rows["task"] == task], metric)
        ax.set_title(TASKS[task].title if task in TASKS else task, fontsize=9)
    all_axes[0, 0].set_ylabel(METRICS[metric].label)
    floor = METRICS[metric].floor
    figure.suptitle(
        f"{METRICS[metric].label}: mean and 95% t interval, cut at the frame; dots: seeds;"
        f" dashed: {floor}",
        fontsize=9,
    )
    return figure


def _bars(ax: Axes, rows: pd.DataFrame, metric: str) -> None:
    summary = aggregate(rows, ["method", "setting"])
    label = [_title(row) for _, row in summary.iterrows()]
    mean = summary[f"{metric}_mean"].to_numpy(float)
    half = (summary[f"{metric}_ci_high"] - mean).to_numpy(float)
    colours = dict(zip(sorted(set(rows["method"])), sns.color_palette("muted"), strict=False))
    bars = [colours.get(method, SOURCE) for method in summary["method"]]
    ax.bar(label, mean, color=bars, width=0.65, zorder=2)
    known = np.isfinite(half)
    ax.errorbar(
        np.arange(len(mean))[known],
        mean[known],
        half[known],
        fmt="none",
        ecolor="#333333",
        capsize=3,
        zorder=3,
    )
    titles = [_title(row) for _, row in rows.iterrows()]
    position = [label.index(title) for title in titles]
    values = rows[metric].to_numpy(float)
    ax.plot(position, values, ".", color="black", markersize=5, zorder=4)
    floor = float(rows[f"{metric}_floor"].mean())
    ax.axhline(floor, ls="--", lw=1.2, color="black", zorder=5)
    # Two seeds have an interval many times the bar; the frame is for the values.
    ax.set_ylim(0, 1.35 * max(values.max(), floor))
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(False, axis="x")


def ablation_figure(done: pd.DataFrame, axis: str) -> Figure | None:
    """The main metrics over an axis: a column a task, a row a metric."""
    table = ablation(done.drop(columns="setting"), axis)
    swept = table.groupby("task")[axis].nunique() > 1
    tasks = [task for task in dict.fromkeys(table["task"]) if swept[task]]
    table = table[table["task"].isin(tasks)]
    metrics = [name for name in ABLATION_METRICS if table[f"{name}_mean"].notna().any()]
    if not tasks or not metrics:
        return None
    figure, all_axes = plt.subplots(
        len(metrics),
        len(tasks),
        figsize=(4.2 * len(tasks) + 2.2, 2.7 * len(metrics)),
        squeeze=False,
        sharex="col",
        layout="constrained",
    )
    lines = list(dict.fromkeys(_title(row) for _, row in table.iterrows()))
    colours = dict(zip(lines, sns.color_palette("husl", len(lines)), strict=True))
    for column, task in zip(all_axes.T, tasks, strict=True):
        for ax, metric in zip(column, metrics, strict=True):
            _ablation_panel(ax, table[table["task"] == task], axis, metric, colours)
        column[0].set_title(TASKS[task].title if task in TASKS else task)
        column[-1].set_xlabel(axis)
    for ax, metric in zip(all_axes[:, 0], metrics, strict=True):
        ax.set_ylabel(METRICS[metric].label)
    handles: dict[str, Any] = {}
    for ax in all_axes.flat:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    figure.suptitle("mean over seeds; bars: 95% t interval", fontsize=9)
    return figure


def _ablation_panel(
    ax: Axes, table: pd.DataFrame, axis: str, metric: str, colours: dict[str, Any]
) -> None:
    table = table[table[f"{metric}_mean"].notna()]
    values = sorted(table[axis].dropna().unique())
    numeric = all(isinstance(value, int | float | np.number) for value in values)
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
    if numeric:
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
    else:
        ax.set_xticks(range(len(values)), [str(value) for value in values])
