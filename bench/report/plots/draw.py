"""Which plots a run has, and how they are written: each as PNG and PDF."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from bench.analysis.analysis import Analysis
from bench.analysis.leaderboard import main_distance
from bench.metrics import METRICS
from bench.report.plots.charts import (
    ablation_figure,
    bar_figure,
    critical_difference_figure,
    curve_figure,
)
from bench.report.plots.fields import MAX_FIELDS, field_figures
from bench.report.plots.samples import sample_figures
from bench.report.plots.style import DPI, Log
from bench.store.folder import file_name, write_atomically, writing

PLOTS = r"(samples|pairs|paths|neighbours|curves|field|bars|ablation|critical)_.*\.(png|pdf)"


def draw_plots(
    analysis: Analysis, out: Path, log: Log = lambda line: None, fields: int = MAX_FIELDS
) -> list[Path]:
    """Draws all plots of a run into ``out/plots`` and returns the PNG files.

    Samples and models are read from the cells of ``out``; ``fields`` is the most figures of fields.

    Raises:
        StorageError: a file could not be written; no plot of an earlier run is lost.
    """
    folder = out / "plots"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    paths = []
    with matplotlib.rc_context():
        sns.set_theme(style="whitegrid", context="notebook", font_scale=0.85)
        for name, figure in _figures(analysis, out, log, fields):
            if figure is not None:
                paths.append(save(figure, folder / name))
                log(f"drew {paths[-1].name}")
    for old in folder.iterdir():  # of an earlier run; files that are no plots stay
        if re.fullmatch(PLOTS, old.name) and old.with_suffix(".png") not in paths:
            with writing(old):
                old.unlink(missing_ok=True)
    return paths


def _figures(
    analysis: Analysis, out: Path, log: Log, fields: int
) -> Iterator[tuple[str, Figure | None]]:
    """File name and figure of every plot; None for one that would show nothing."""
    for kind, found in analysis.overall.items():
        yield f"critical_difference_{kind.replace(' ', '_')}", critical_difference_figure(found)
    done, summary = analysis.done, analysis.summary
    for name, rows in summary.groupby("task", sort=False):
        task = str(name)
        yield from sample_figures(task, done[done["task"] == task], rows, out, log)
        if (main := main_distance(rows)) is not None:
            floor = float(rows[f"{main}_floor"].mean())
            yield file_name("curves", task), curve_figure(analysis.pareto, task, floor)
    yield from field_figures(done, out, log, fields)
    for metric in METRICS.values():
        if metric.plotted:
            yield file_name("bars", metric.name), bar_figure(done, summary, metric.name)
    for axis, table in analysis.ablations.items():
        yield file_name("ablation", axis), ablation_figure(table, axis)


def save(figure: Figure, stem: Path) -> Path:
    """Writes PDF and PNG; both are made in memory, so that a full disk leaves the old ones."""
    engine = figure.get_layout_engine()
    if engine is not None:  # laid out once for both
        engine.execute(figure)
        figure.set_layout_engine("none")
    frame = figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])
    for suffix in ("pdf", "png"):
        content = io.BytesIO()
        figure.savefig(content, format=suffix, bbox_inches=frame, dpi=DPI)
        path = stem.with_name(f"{stem.name}.{suffix}")
        write_atomically(path, content.getvalue())
    plt.close(figure)
    return path
