"""Everything that is made of the records: tables, plots and the report.

``python -m bench.report DIR`` rebuilds them.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from bench.ablation import ablation, axes, file_name
from bench.curve import curves, pareto
from bench.export import latex, markdown
from bench.fairness import fairness
from bench.folder import RECORD, StorageError, write_atomically, writing
from bench.leaderboard import (
    best,
    cut,
    few,
    format_number,
    format_share,
    format_value,
    leaderboard,
    main_distance,
    shown_metrics,
)
from bench.metrics import METRICS
from bench.overall import overall
from bench.pictures import MAX_FIELDS
from bench.plots import draw_plots
from bench.records import read_records, results
from bench.significance import pairs, remarks
from bench.summary import (
    LEFT,
    grids,
    in_order,
    interval_of,
    overall_grid,
    pairs_grid,
    rank_of,
    terminal,
)
from datasets import TASKS
from methods import METHODS

TEMPLATE = Path(__file__).parent / "report.html.j2"
MAX_ROWS = 100
"""Rows a task in the report."""
MAX_NAMES = 10
"""Devices and commits in the report."""
OPEN_PAIRS = 10
"""More pairs than these are folded away in the report."""
PICTURES = {
    "samples": "",
    "pairs": "The same held-out inputs for every method, each above its output.",
    "paths": "A few samples on their way from the source (left) to the target (right).",
    "neighbours": "The samples nearest to held-out images, and those farthest from them, above the"
    " training image that is nearest to each: a sample that equals it was learned by heart.",
    "curves": "",
}
"""The pictures of a task, and what is said above each."""


def write_tables(out: Path) -> tuple[pd.DataFrame, list[Path]]:
    """The tables of an output folder; the results, and the paths.

    ``results.csv``, ``leaderboard.csv``, ``ablation_<axis>.csv``, ``pairs.csv``, ``overall.csv``,
    ``curves.csv``, ``pareto.csv``, and the leaderboard as ``leaderboard.md`` and
    ``leaderboard.tex``.

    Raises:
        RecordError: at the first file that is not a record.
        StorageError: a table could not be written; it is there as it was.
    """
    records = list(read_records(out))
    rows = results(records)
    tables = {"results": rows}
    if len(rows):
        points = curves(rows, {record["id"]: record.get("curve", []) for record in records})
        tables["leaderboard"] = leaderboard(rows)
        tables |= {"pairs": pairs(rows), "overall": overall(rows).table}
        tables |= {"curves": points, "pareto": pareto(points)}
        tables |= {file_name("ablation", axis): ablation(rows, axis) for axis in axes(rows)}
    texts = {f"{name}.csv": frame.to_csv(index=False) for name, frame in tables.items()}
    if len(rows):
        shown = grids(rows)
        texts |= {"leaderboard.md": markdown(shown), "leaderboard.tex": latex(shown)}
    paths = []
    for name, text in texts.items():
        paths.append(out / name)
        write_atomically(paths[-1], text.encode())
    for old in set(out.glob("ablation_*.csv")) - set(paths):
        with writing(old):
            old.unlink(missing_ok=True)  # another runner may be as far
    return rows, paths


def write_report(out: Path, tell: Callable[[str], None] = lambda line: None) -> list[Path]:
    """All tables, plots and ``report.html`` of an output folder; returns what was written.

    ``tell`` is called with a line now and then, since plots take seconds.

    Raises:
        RecordError: at the first file that is not a record.
        StorageError: a file could not be written; it is there as it was.
    """
    return _rebuild(out, tell)[1]


def _rebuild(
    out: Path, tell: Callable[[str], None], fields: int = MAX_FIELDS
) -> tuple[pd.DataFrame, list[Path]]:
    rows, paths = write_tables(out)
    if not len(rows):
        return rows, paths
    points = pd.read_csv(out / "pareto.csv", dtype={"setting": str}).fillna({"setting": ""})
    plots = draw_plots(rows, out, tell, fields, points)
    page = out / "report.html"
    write_atomically(page, _page(rows, out, plots).encode())
    return rows, [*paths, *plots, page]


def _page(rows: pd.DataFrame, out: Path, plots: list[Path]) -> str:
    pictures = [path.name for path in plots]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    results_of = dict(iter(rows.groupby("task", sort=False)))
    compared = pairs(rows)
    said = remarks(compared)
    return template.render(
        out=out.resolve().name,
        tasks=[
            _task(str(name), every, pictures)
            | {"remarks": [*said.get(str(name), "").splitlines(), fairness(results_of[name])]}
            | _pairs(str(name), compared[compared["task"] == name])
            for name, every in leaderboard(rows).groupby("task", sort=False)
        ],
        overall=overall_grid(overall(rows)),
        left=LEFT,
        diagram=next((name for name in pictures if name.startswith("critical_")), None),
        fields=[name for name in pictures if name.startswith("field_")],
        ablations=[name for name in pictures if name.startswith("ablation_")],
        bars=[name for name in pictures if name.startswith("bars_")],
        methods=[METHODS[name] for name in sorted(set(rows["method"])) if name in METHODS],
        metrics=METRICS.values(),
        cells=len(rows),
        statuses=rows["status"].value_counts().to_dict(),
        commits=few(sorted(set(rows["commit"].dropna())), MAX_NAMES, ", "),
        devices=few(sorted(set(rows["device"].dropna())), MAX_NAMES, ", "),
    )


def _task(name: str, every: pd.DataFrame, pictures: list[str]) -> dict[str, Any]:
    """The section of a task."""
    main, shown = main_distance(every), shown_metrics(every)
    rows = in_order(best(every, MAX_ROWS), main)
    own = [(f"{file_name(kind, name)}.png", words) for kind, words in PICTURES.items()]
    return {
        "title": TASKS[name].title if name in TASKS else name,
        "name": name,
        "labels": [METRICS[metric].label for metric in shown],
        "lines": [_line(row, main, shown) for row in rows.to_dict("records")],
        "main": METRICS[main].label if main else "",
        "floors": [format_value(every[f"{metric}_floor"].mean(), None) for metric in shown],
        "has_settings": bool((every["setting"] != "").any()),
        "has_changes": bool((every["changed"] != "").any()),
        "cut": cut(every, MAX_ROWS),
        "plots": [(picture, words) for picture, words in own if picture in pictures],
    }


def _pairs(name: str, compared: pd.DataFrame) -> dict[str, Any]:
    """The pairs of a task, if there are any."""
    grid = pairs_grid(name, compared, most=len(compared)) if len(compared) else None
    return {"pairs": grid, "fold_pairs": len(compared) > OPEN_PAIRS}


def _line(row: dict[Any, Any], main: str | None, shown: list[str]) -> dict[str, Any]:
    """A row of a task's table."""
    values = [
        {
            "text": format_value(row[f"{metric}_mean"], row[f"{metric}_std"]),
            # A cheap or straight map is not a better one.
            "best": METRICS[metric].kind == "distance"
            and bool(pd.notna(row[f"{metric}_rank"]) and row[f"{metric}_rank"] == 1),
        }
        for metric in shown
    ]
    others = [
        format_share(row["landed"]),
        format_number(row["nfe"], 0),
        format_number(row["train_seconds"], 1),
        format_number(row["sample_seconds"], 2),
    ]
    return {
        "method": row["method"],
        "setting": row["setting"],
        "changed": row["changed"],
        "seeds": row["count"],
        "rank": rank_of(row, main),
        "interval": interval_of(row, main),
        "entries": [*values, *({"text": text, "best": False} for text in others)],
        "note": row["note"],
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of a run")
    parser.add_argument(
        "--fields",
        type=int,
        default=MAX_FIELDS,
        metavar="N",
        help=f"draw the fields of at most N settings (default {MAX_FIELDS})",
    )
    arguments = parser.parse_args()
    out = arguments.folder
    try:
        if arguments.fields < 0:
            raise ValueError(f"fields: must not be negative, got {arguments.fields}")
        if not out.is_dir():
            raise ValueError(f"folder: no such folder: {out}")
        if not any((out / "cells").glob(f"*/{RECORD}")):
            raise ValueError(f"folder: {out} holds no recorded cells")
        tell = functools.partial(print, file=sys.stderr, flush=True)
        rows, paths = _rebuild(out, tell, arguments.fields)
    except (OSError, ValueError, StorageError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    print(terminal(rows))
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
