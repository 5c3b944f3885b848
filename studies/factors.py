"""One factor at a time: a table and a plot for every variation of a suite.

    python -m studies.factors SUITE FOLDER

An ablation table (:mod:`bench.analysis.leaderboard`) compares all cells of a folder over one
setting. A suite whose variations each change one thing around a common point says more: which
cells belong together. ``FOLDER`` is the output folder of its run; the tables and plots are put
into it.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.analysis.leaderboard import aggregate, main_distance
from bench.analysis.results import results
from bench.config.catalogue import suites
from bench.config.errors import SpecError
from bench.config.files import read_config, suite_path
from bench.config.grid import Spec, Variation
from bench.metrics import METRICS
from bench.report.plots.draw import save
from bench.store.folder import RECORD, StorageError, write_atomically
from bench.store.records import read_records
from datasets import TASKS


def factors_of(variation: Variation) -> list[str]:
    """The settings of a variation that have several values, without their sections."""
    return [
        name.rpartition(".")[2] for name, values in variation.settings.items() if len(values) > 1
    ]


def suites_with_factors() -> list[str]:
    """The names of the suites that have variations to tabulate."""
    specs = {name: Spec(**read_config(path)) for name, path in suites().items()}
    return [name for name, spec in specs.items() if any(map(factors_of, spec.vary))]


def factor_tables(spec: Spec, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table for every variation with a factor: one row a task, method and value of the factors.

    Args:
        spec: the suite.
        rows: the rows of ``results.csv``.

    Returns:
        Tables of means, intervals and medians by name, ``<factors>`` or with the fixed settings
        of the variation behind it; these stand in ``attrs["fixed"]`` too.
    """
    tables: dict[str, pd.DataFrame] = {}
    for variation, grid in zip(spec.vary, spec.specs()[1:], strict=True):
        factors = factors_of(variation)
        cells = {cell.id for cell in grid.cells()}
        own = rows[rows["id"].isin(cells)]
        if not factors or not len(own):
            continue
        keys = ["task", "method", *factors]
        table = aggregate(own, keys).sort_values(keys, kind="stable", ignore_index=True)
        done = own[own["status"] == "done"]
        medians = done.groupby(keys)[[name for name in METRICS if name in own]].median()
        table = table.merge(medians.add_suffix("_median").reset_index(), on=keys, how="left")
        table.attrs["fixed"] = _fixed(variation)
        tables[_name(variation, factors, tables)] = table
    return tables


def _fixed(variation: Variation) -> str:
    """What a variation has set, beside its factors: ``efm-exact, L = 6``."""
    words = list(variation.methods or [])
    for setting, values in variation.settings.items():
        if len(values) == 1:
            value = f"{values[0]:g}" if isinstance(values[0], float) else values[0]
            words.append(f"{setting.rpartition('.')[2]} = {value}")
    return ", ".join(words)


def _name(variation: Variation, factors: list[str], taken: dict[str, Any]) -> str:
    fixed = [str(values[0]) for values in variation.settings.values() if len(values) == 1]
    methods = variation.methods or []
    name = "_by_".join(factors)
    return name if name not in taken else "_".join([name, *methods, *fixed])


def factor_figure(table: pd.DataFrame, factors: list[str]) -> Figure:
    """The main distance over the first factor, a panel a task; a second one is a colour map."""
    tasks = list(dict.fromkeys(table["task"]))
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(3.6 * len(tasks) + 0.6, 3.3), squeeze=False, layout="constrained"
    )
    for ax, task in zip(panels.flat, tasks, strict=True):
        rows = table[table["task"] == task]
        metric = main_distance(rows)
        title = TASKS[task].title if task in TASKS else task
        if len(factors) > 1 and metric is not None:
            title += f": {METRICS[metric].label}"
        ax.set_title(title, fontsize=9)
        if metric is None:
            ax.axis("off")
        elif len(factors) == 1:
            _line(ax, rows, factors[0], metric)
        else:
            _map(ax, rows, factors, metric)
    words = "median of seeds"
    if len(factors) == 1:
        words = "dots: median of seeds; bars: mean and standard deviation; dashed: floor"
    fixed = table.attrs.get("fixed")
    figure.suptitle(f"{fixed}; {words}" if fixed else words, fontsize=9)
    return figure


def _line(ax: Axes, rows: pd.DataFrame, factor: str, metric: str) -> None:
    numeric = pd.api.types.is_numeric_dtype(rows[factor])
    for method, own in rows.groupby("method"):
        at = own[factor] if numeric else own[factor].astype(str)
        # Only numbers have something between them.
        style = "o-" if numeric else "o"
        ax.plot(at, own[f"{metric}_median"], style, ms=5, label=str(method))
        deviation = own[f"{metric}_std"].fillna(0)
        ax.errorbar(at, own[f"{metric}_mean"], deviation, fmt="none", ecolor="0.45", capsize=2)
    floor = rows[f"{metric}_floor"].mean()
    ax.axhline(floor, ls="--", lw=1, color="black")
    if numeric and rows[factor].max() > 4 * rows[factor].min() > 0:
        ax.set_xscale("log")
    if numeric:
        values = sorted(rows[factor].unique())
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
    else:
        ax.tick_params(axis="x", rotation=45, labelsize=8)
    if rows[f"{metric}_median"].max() > 10 * max(floor, 1e-9):
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_ylim(0)
    ax.set_xlabel(factor)
    ax.set_ylabel(METRICS[metric].label)
    if rows["method"].nunique() > 1:
        ax.legend(fontsize=8)


def _map(ax: Axes, rows: pd.DataFrame, factors: list[str], metric: str) -> None:
    grid = rows.pivot_table(
        index=factors[1], columns=factors[0], values=f"{metric}_median", sort=True
    )
    for axis in ("index", "columns"):
        if pd.api.types.is_numeric_dtype(getattr(grid, axis)):
            grid = grid.rename("{:g}".format, axis=axis)
    sns.heatmap(grid, annot=True, fmt=".2f", ax=ax, cmap="viridis_r", robust=True, cbar=False)


def write_factors(suite: str, out: Path) -> list[Path]:
    """Tables and plots of a suite's variations, from the records of its run.

    Raises:
        SpecError: an unknown suite, or one without variations.
        RecordError: a file that is not a record.
        StorageError: a file could not be written.
    """
    spec = Spec(**read_config(suite_path(suite)))
    if not any(map(factors_of, spec.vary)):
        raise SpecError(
            f"suite: {suite!r} has no variations [[vary]], nothing to tabulate;"
            f" choose from {', '.join(suites_with_factors())}"
        )
    rows = results(read_records(out))
    sns.set_theme(style="whitegrid", context="notebook", font_scale=0.85)
    paths = []
    (out / "plots").mkdir(exist_ok=True)
    for name, table in factor_tables(spec, rows).items():
        path = out / f"factor_{name}.csv"
        write_atomically(path, table.to_csv(index=False).encode())
        factors = [str(column) for column in table.columns[2 : list(table).index("count")]]
        paths += [path, save(factor_figure(table, factors), out / "plots" / f"factor_{name}")]
    return paths


def main(arguments: list[str] | None = None) -> int:
    """The command line; 2 for a mistake, which is one line."""
    parser = argparse.ArgumentParser(prog="python -m studies.factors", description=__doc__)
    parser.add_argument("suite", help="name of a suite with variations")
    parser.add_argument("folder", type=Path, help="output folder of its run")
    given = parser.parse_args(arguments)
    try:
        if not any((given.folder / "cells").glob(f"*/{RECORD}")):
            raise ValueError(f"folder: {given.folder} holds no recorded cells")
        paths = write_factors(given.suite, given.folder)
    except (OSError, ValueError, StorageError) as error:
        print(f"studies.factors: {error}", file=sys.stderr)
        return 2
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
