"""Figures of what the cells of a task have sampled, beside the target."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.analysis.leaderboard import best, cut
from bench.analysis.words import few
from bench.cell.stored import Array, read_images, read_samples
from bench.report.plots import style
from bench.report.plots.images import image_figures
from bench.store.folder import SAMPLES, cell_folder, file_name
from datasets import TASKS

MAX_PANELS = 10  # methods and settings of a task
MAX_POINTS = 2000  # dots in a panel


def sample_figures(
    task: str, rows: pd.DataFrame, summary: pd.DataFrame, out: Path, log: style.Log
) -> Iterator[tuple[str, Figure]]:
    """File name and figure of the samples of every method and setting, those of its lowest seed.

    ``rows`` are the results of the task that are done, ``summary`` has one row a method and
    setting. ``log`` is called with a line about samples that cannot be shown.
    """
    kind = TASKS.get(task)
    if kind is None:
        return
    title = [line for line in (kind.title, cut(summary, MAX_PANELS)) if line]
    first = rows.sort_values("seed", kind="stable").drop_duplicates(["method", "setting"])
    first = first.merge(best(summary, MAX_PANELS)[["method", "setting"]])
    first = first.sort_values(["method", "setting"], kind="stable", key=_by_number)
    flat = kind.dim == 2
    read: Callable[[Path], Any] = partial(read_samples, dim=2) if flat else read_images
    panels: dict[str, Any] = {}
    missing = []
    labels, names = style.labels_of(first, "\n"), style.names_of(first)
    for label, name, cell in zip(labels, names, first["id"], strict=True):
        try:
            panels[label] = read(cell_folder(out, cell) / SAMPLES)
        except ValueError as error:
            missing.append(f"{name}: {error}")
    if missing:
        log(f"{file_name('samples', task)}: left out {few(missing)}")
        title.append(style.plain(f"without {few(missing)}"))
    panels = {label: panel for label, panel in panels.items() if panel is not None}
    if panels and flat:
        yield file_name("samples", task), scatter_figure(panels, "\n".join(title))
    elif panels:
        yield from image_figures(task, panels, not kind.noise_source, "\n".join(title))


def _by_number(texts: "pd.Series[str]") -> "pd.Series[str]":
    """Texts whose numbers sort by their size: ``L=30`` before ``L=100``."""
    number = r"\d+(\.\d+)?(e[+-]?\d+)?"
    return texts.str.replace(number, lambda found: f"{float(found[0]):030.12f}", regex=True)


def scatter_figure(panels: Mapping[str, Mapping[str, Array]], title: str) -> Figure:
    """The source, the held-out target and the samples of every panel, in one frame.

    ``panels`` has ``source``, ``target`` and ``samples``, (n, 2) each, by the title of the panel.
    """
    first = next(iter(panels.values()))
    clouds = [("source", first["source"], style.SOURCE_COLOUR)]
    clouds += [("target, held out", first["target"], style.TARGET_COLOUR)]
    clouds += [(name, panel["samples"], style.SAMPLES_COLOUR) for name, panel in panels.items()]
    columns = min(5, len(clouds))
    size = 2.7 * columns, 2.9 * -(-len(clouds) // columns)
    figure, axes = style.panels_of(len(clouds), columns, size, sharex=True, sharey=True)
    shown = np.concatenate([first["source"], first["target"]])
    centre = (shown.max(0) + shown.min(0)) / 2
    half = 0.6 * (shown.max(0) - shown.min(0)).max()
    for ax, (name, points, colour) in zip(axes, clouds, strict=True):
        x, y = points[:MAX_POINTS].T
        ax.scatter(x, y, s=3, alpha=0.5, color=colour, linewidths=0)
        ax.set(xlim=centre[0] + [-half, half], ylim=centre[1] + [-half, half], aspect="equal")
        outside = float((np.abs(points - centre) > half).any(1).mean())
        words = f"\n({outside:.2%} outside the frame)" if outside > 0 else ""
        ax.set_title(name + words, fontsize=9)
    for ax in axes[-columns:]:
        ax.tick_params(labelbottom=True)  # nothing stands below it
    figure.suptitle(title)
    return figure
