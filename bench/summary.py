"""The leaderboard with its tests in words, as tables of text that any page can show.

Of each task the ranks, the best and what does not differ from it, the budget; then the ranks over
tasks, then the pairs.
"""

from typing import Any, NamedTuple

import pandas as pd

from bench.fairness import fairness
from bench.leaderboard import (
    best,
    cut,
    format_number,
    format_share,
    format_value,
    leaderboard,
    main_distance,
    shown_metrics,
    table,
)
from bench.metrics import METRICS
from bench.overall import Overall, overall
from bench.significance import (
    MAX_COMPETITORS,
    SAME,
    UNTESTED,
    against_best,
    name_of,
    pairs,
    remarks,
)
from datasets import TASKS

MAX_ROWS = 30
"""Rows of a table: a page."""
LEFT = {"method", "setting", "changed", "a", "b", "data", "verdict", "better than"}
"""Columns of words; others are numbers."""

EQUAL, UNCOMPARED = "†", "‡"
CAPTION = (
    f"Mean over seeds ± standard deviation; bold: the best mean of a distance; {EQUAL}: does not"
    " differ significantly from the best main distance (paired t-test over the seeds that share"
    f" data, Holm, 5%); {UNCOMPARED}: not tested against it (fewer than 2 shared seeds, or not"
    f" among the best {MAX_COMPETITORS}). The floor is what fresh samples of the target give; of"
    " costs it is the optimal cost. Data sets are judged on the same held-out rows in every seed:"
    " there deviations and tests are of the training alone."
)

PAIRS = (
    "Differences of means over shared seeds, their 95% interval and p of the paired t-test;"
    " p (Holm) is corrected for all pairs of the task; the verdict is at 5% after that."
)


class Entry(NamedTuple):
    """A cell of a table."""

    text: str
    bold: bool = False


class Grid(NamedTuple):
    """A table and what is said below it."""

    title: str
    head: list[str]
    rows: list[list[Entry]]
    notes: list[str]


def terminal(results: pd.DataFrame) -> str:
    """The leaderboard for a terminal, below each task its tests and budget, then the overall."""
    below = remarks(pairs(results))
    for task, rows in results.groupby("task", sort=False):
        lines = filter(None, (below.get(str(task), ""), fairness(rows)))
        below[str(task)] = "\n".join(lines)
    return f"{table(leaderboard(results), remarks=below)}\n\n{_plain_overall(overall(results))}"


def _plain_overall(found: Overall) -> str:
    grid = overall_grid(found)
    lines = pd.DataFrame([[entry.text for entry in row] for row in grid.rows], columns=grid.head)
    return "\n".join([grid.title, lines.to_string(index=False), *(f"  {n}" for n in grid.notes)])


def grids(results: pd.DataFrame) -> list[Grid]:
    """The tables of the leaderboard: one a task, one over tasks, one of pairs a task."""
    comparisons = pairs(results)
    said = remarks(comparisons)
    standings = _standings(comparisons)
    rows = dict(iter(results.groupby("task", sort=False)))
    tasks = []
    for task, every in leaderboard(results).groupby("task", sort=False):
        notes = [*said.get(str(task), "").splitlines(), fairness(rows[task])]
        tasks.append(_task_grid(str(task), every, standings, notes))
    compared = [pairs_grid(str(task), p) for task, p in comparisons.groupby("task", sort=False)]
    return [*tasks, overall_grid(overall(results)), *compared]


def _standings(comparisons: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """The mark of each competitor that was compared with the best of its task; the best has ""."""
    marks: dict[tuple[str, str, str], str] = {}
    for pair in against_best(comparisons).to_dict("records"):
        marks[pair["task"], pair["method_a"], pair["setting_a"]] = ""
        mark = {SAME: EQUAL, UNTESTED: UNCOMPARED}.get(pair["verdict"], "")
        marks[pair["task"], pair["method_b"], pair["setting_b"]] = mark
    return marks


def _task_grid(
    task: str, every: pd.DataFrame, standings: dict[tuple[str, str, str], str], notes: list[str]
) -> Grid:
    """The leaderboard of one task; the best first."""
    main, shown = main_distance(every), shown_metrics(every)
    rows = best(every, MAX_ROWS)
    rows = in_order(rows, main)
    extra = [name for name in ("setting", "changed") if (every[name] != "").any()]
    lines = []
    for row in rows.to_dict("records"):
        rank = rank_of(row, main)
        mark = standings.get((task, row["method"], row["setting"]), UNCOMPARED)
        mark = "" if rank == "1" else mark
        values = [_value(row, name, mark if name == main else "") for name in shown]
        names = [rank, row["method"], *(row[name] for name in extra)]
        costs = [interval_of(row, main), format_share(row["landed"])]
        costs += [format_number(row["nfe"], 0), format_number(row["train_seconds"], 1)]
        lines.append([*map(Entry, names), *values, *map(Entry, [*costs, str(row["count"])])])
    floors = [format_value(every[f"{name}_floor"].mean(), None) for name in shown]
    lines.append([Entry(text) for text in ["", "floor", *[""] * len(extra), *floors, *[""] * 5]])
    words = cut(every, MAX_ROWS)
    below = [f"{words}; all are in leaderboard.csv" if words else "", *notes]
    below += [
        f"{name_of(row['method'], row['setting'])}: {row['note']}"
        for row in rows[rows["note"] != ""].to_dict("records")
    ]
    labels = [METRICS[name].label for name in shown]
    interval = f"95% interval of {METRICS[main].label}" if main else "95% interval"
    head = ["rank", "method", *extra, *labels, interval, "landed", "NFE", "training s", "seeds"]
    return Grid(_title(task), head, lines, list(filter(None, below)))


def in_order(rows: pd.DataFrame, main: str | None) -> pd.DataFrame:
    """The rows of a task, the best first."""
    return rows.sort_values(f"{main}_rank", kind="stable") if main else rows


def _title(task: str) -> str:
    return TASKS[task].title if task in TASKS else task


def rank_of(row: dict[Any, Any], main: str | None) -> str:
    """The rank by the main distance in words; empty without one."""
    rank = row[f"{main}_rank"] if main else pd.NA
    return "" if pd.isna(rank) else str(rank)


def interval_of(row: dict[Any, Any], main: str | None) -> str:
    """The 95% interval of the main distance in words, Student's t; empty for one seed."""
    if main is None or pd.isna(row[f"{main}_ci_low"]):
        return ""
    return f"{row[f'{main}_ci_low']:.3f} to {row[f'{main}_ci_high']:.3f}".replace("-", "−")


def _value(row: dict[Any, Any], metric: str, mark: str) -> Entry:
    """Mean and deviation; bold is the best mean of a distance: a cheap map is not a better one."""
    text = format_value(row[f"{metric}_mean"], row[f"{metric}_std"])
    rank = row[f"{metric}_rank"]
    first = METRICS[metric].kind == "distance" and bool(pd.notna(rank) and rank == 1)
    return Entry(" ".join(filter(None, (text, mark))) if text else "", first)


def overall_grid(found: Overall) -> Grid:
    """The ranks over tasks; who lacks a task is named below, with the reason."""
    frame = found.table
    columns = {
        "method": frame["name"],
        "mean rank": [format_number(rank, 2) for rank in frame["mean_rank"]],
        "tasks": [f"{ranked} of {found.tasks}" for ranked in frame["tasks"]],
    }
    if len(found.ranks):
        columns["rank in the test"] = [format_number(rank, 2) for rank in frame["tested_rank"]]
    if (frame["better_than"] != "").any():
        columns["better than"] = frame["better_than"]
    rows = [[Entry(text) for text in row] for row in zip(*columns.values(), strict=True)]
    missing = frame.loc[frame["missing"] != "", ["name", "missing"]].to_numpy()
    notes = [found.sentence, *(f"{name}: {words}" for name, words in missing)]
    return Grid("Over the tasks: mean ranks by the main distance", list(columns), rows, notes)


def pairs_grid(task: str, comparisons: pd.DataFrame, most: int = MAX_ROWS) -> Grid:
    """The pairs of one task; of more than ``most`` only those with the best.

    Args:
        task: its name.
        comparisons: its rows of :func:`bench.significance.pairs`.
        most: rows at most.
    """
    shown = comparisons if len(comparisons) <= most else against_best(comparisons)
    notes = [PAIRS]
    notes += [f"compared: {note}" for note in sorted(set(filter(None, comparisons["note"])))]
    if len(shown) < len(comparisons):
        notes.append(f"with the best; all {len(comparisons)} pairs are in pairs.csv")
    columns = {
        "data": shown["data"],
        "a": [name_of(*pair) for pair in shown[["method_a", "setting_a"]].to_numpy()],
        "b": [name_of(*pair) for pair in shown[["method_b", "setting_b"]].to_numpy()],
        "a − b": [format_signed(value) for value in shown["difference"]],
        "95% interval": [
            f"{format_signed(low)} to {format_signed(high)}" if pd.notna(low) else ""
            for low, high in zip(shown["ci_low"], shown["ci_high"], strict=True)
        ],
        "p": [format_p(p) for p in shown["p"]],
        "p (Holm)": [format_p(p) for p in shown["p_holm"]],
        "seeds": shown["shared_seeds"].astype(str),
        "verdict": shown["verdict"],
    }
    if not (shown["data"] != "").any():
        del columns["data"]
    rows = [[Entry(text) for text in row] for row in zip(*columns.values(), strict=True)]
    metric = METRICS[comparisons["metric"].iloc[0]].label
    return Grid(f"{_title(task)}: pairs by {metric}", list(columns), rows, notes)


def format_signed(value: float) -> str:
    """``+0.012``, with a minus of its own; empty for a value that does not apply."""
    return f"{value:+.3f}".replace("-", "−") if pd.notna(value) else ""


def format_p(p: float) -> str:
    """``0.012``, ``< 0.001``; empty for a value that does not apply."""
    if pd.isna(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
