"""Everything that is made of the records: tables, plots and the report.

``python -m bench.report DIR`` rebuilds them.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import jinja2
import pandas as pd

from bench.ablation import ablation, axes
from bench.leaderboard import format_share, format_value, leaderboard, table
from bench.metrics import METRICS
from bench.plots import draw_plots
from bench.records import read_records, results, write_atomically
from datasets import TASKS
from methods import METHODS

TEMPLATE = Path(__file__).parent / "report.html.j2"


def write_tables(out: Path) -> tuple[pd.DataFrame, list[Path]]:
    """``results.csv``, ``leaderboard.csv`` and ``ablation_<axis>.csv``; the results, the paths."""
    rows = results(read_records(out))
    tables = {"results": rows}
    if len(rows):
        tables["leaderboard"] = leaderboard(rows)
        tables |= {f"ablation_{axis}": ablation(rows, axis) for axis in axes(rows)}
    for old in out.glob("ablation_*.csv"):
        if old.stem not in tables:
            old.unlink()
    paths = []
    for name, frame in tables.items():
        paths.append(out / f"{name}.csv")
        write_atomically(paths[-1], frame.to_csv(index=False).encode())
    return rows, paths


def write_report(out: Path, tell: Callable[[str], None] = lambda line: None) -> list[Path]:
    """All tables, plots and ``report.html`` of an output folder; returns what was written.

    ``tell`` is called with a line now and then, since plots take seconds.
    """
    rows, paths = write_tables(out)
    if not len(rows):
        return paths
    plots = draw_plots(rows, out, tell)
    page = out / "report.html"
    write_atomically(page, _page(rows, out, plots).encode())
    return [*paths, *plots, page]


def _page(rows: pd.DataFrame, out: Path, plots: list[Path]) -> str:
    board = leaderboard(rows)
    tasks = []
    for name, group in board.groupby("task", sort=False):
        shown = [metric for metric in METRICS if group[f"{metric}_mean"].notna().any()]
        lines = [
            {
                "row": row,
                "landed": format_share(row["landed"]),
                "values": [
                    (
                        format_value(row[f"{metric}_mean"], row[f"{metric}_std"]),
                        # A cheap or straight map is not a better one.
                        METRICS[metric].kind == "distance"
                        and bool(pd.notna(row[f"{metric}_rank"]) and row[f"{metric}_rank"] == 1),
                    )
                    for metric in shown
                ],
            }
            for _, row in group.iterrows()
        ]
        floors = [format_value(group[f"{metric}_floor"].mean(), None) for metric in shown]
        title = TASKS[str(name)].title if name in TASKS else name
        samples = [plot.name for plot in plots if plot.name == f"samples_{name}.png"]
        tasks.append(
            {
                "title": title,
                "name": name,
                "labels": [METRICS[metric].label for metric in shown],
                "lines": lines,
                "floors": floors,
                "has_settings": bool((group["setting"] != "").any()),
                "plots": samples,
            }
        )
    pictures = [p.name for p in plots if p.suffix == ".png"]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        out=out.name,
        tasks=tasks,
        ablations=[name for name in pictures if name.startswith("ablation_")],
        bars=[name for name in pictures if name.startswith("bars_")],
        methods=[METHODS[name] for name in sorted(set(rows["method"])) if name in METHODS],
        metrics=METRICS.values(),
        cells=len(rows),
        statuses=rows["status"].value_counts().to_dict(),
        commits=sorted(set(rows["commit"].dropna())),
        devices=sorted(set(rows["device"].dropna())),
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of a run")
    out = parser.parse_args().folder
    if not (out / "cells").is_dir():
        print(f"bench.report: folder: {out} holds no cells", file=sys.stderr)
        return 2
    try:
        paths = write_report(out)
    except (OSError, ValueError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    rows = pd.read_csv(out / "results.csv")
    if len(rows):
        print(table(leaderboard(rows)))
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
