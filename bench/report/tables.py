"""The tables of a report, as text that every renderer shows: terminal, Markdown, TeX and HTML."""

from collections.abc import Collection, Iterable
from itertools import repeat
from typing import NamedTuple

import pandas as pd

from bench.analysis.analysis import Analysis
from bench.analysis.leaderboard import best, cut, main_distance, shown_metrics
from bench.analysis.significance import MAX_COMPETITORS, SAME, SIDES, UNTESTED, against_best
from bench.analysis.words import format_value, name_of
from bench.metrics import METRICS
from datasets import TASKS

MAX_ROWS = 30  # of a table: a page
# Columns of words; others are numbers.
LEFT = {"method", "setting", "changed", "a", "b", "data", "verdict", "better than"}
INTERVAL = "95% interval"
EQUAL, UNCOMPARED = "†", "‡"
CAPTION = (
    f"Mean over seeds ± standard deviation; bold: the best mean of a distance; {EQUAL}: does not"
    " differ significantly from the best main distance (paired t-test over the seeds that share"
    f" data, Holm, 5%); {UNCOMPARED}: not tested against it (fewer than 2 shared seeds, or not"
    f" among the best {MAX_COMPETITORS}). The floor is what fresh samples of the target give; of"
    " costs it is the optimal cost. Data sets are evaluated on the same held-out rows in every"
    " seed: there deviations and tests are of the training alone."
)
PAIRS = (
    "Differences of means over shared seeds, their 95% interval and p of the paired t-test;"
    " p (Holm) is corrected for all pairs of the task; the verdict is at 5% after that."
)


class Entry(NamedTuple):
    """A cell of a table."""

    text: str
    bold: bool = False
    mark: str = ""  # stands behind the text; the caption says what it means


class Table(NamedTuple):
    """A table and what is said below it."""

    title: str
    head: list[str]
    rows: list[list[Entry]]
    notes: list[str]


def table_of(
    title: str, columns: Iterable[tuple[str, Iterable[str | Entry]]], notes: Iterable[str]
) -> Table:
    """From the columns, with their names; empty notes are left out."""
    head, entries = zip(*columns, strict=True)
    rows = [
        [entry if isinstance(entry, Entry) else Entry(entry) for entry in row]
        for row in zip(*entries, strict=True)
    ]
    return Table(title, list(head), rows, list(filter(None, notes)))


def pages(analysis: Analysis) -> list[Table]:
    """All tables for reading: one a task, one over the tasks, one of pairs a task."""
    tasks = [task_table(analysis, task, omit={"sampling s"}) for task in analysis.tasks]
    pairs = [pairs_table(analysis, task) for task in analysis.pairs["task"].unique()]
    return [*tasks, overall_table(analysis), *pairs]


def task_table(
    analysis: Analysis, task: str, most: int = MAX_ROWS, omit: Collection[str] = ()
) -> Table:
    """The leaderboard of one task, the best first; below it tests, budget and what went wrong.

    Of more than ``most`` rows it has the best, and says so; columns in ``omit`` are left out.
    """
    every = analysis.tasks[task]
    main = main_distance(every)
    rows = best(every, most)
    rows = rows.sort_values(f"{main}_rank", kind="stable") if main else rows
    extra = [name for name in ("setting", "changed") if (every[name] != "").any()]
    marks = _marks(analysis, task)
    nothing = pd.Series(pd.NA, index=rows.index)  # without a main distance
    rank, low, high = (
        rows.get(f"{main}_{part}", nothing) for part in ("rank", "ci_low", "ci_high")
    )
    columns: list[tuple[str, Iterable[str | Entry], str]] = [
        ("rank", format_numbers(rank, "d"), ""),
        ("method", rows["method"], "floor"),
        *((name, rows[name], "") for name in extra),
    ]
    for name in shown_metrics(every):
        floor = format_value(every[f"{name}_floor"].mean())
        entries = _values(rows, name, marks if name == main else None)
        columns.append((METRICS[name].label, entries, floor))
    columns += [
        (INTERVAL, map(format_interval, low, high), ""),
        ("landed", format_numbers(rows["landed"], ".1%"), ""),
        ("NFE", format_numbers(rows["nfe"], ".0f"), ""),
        ("training s", format_numbers(rows["train_seconds"], ".1f"), ""),
        ("sampling s", format_numbers(rows["sample_seconds"], ".2f"), ""),
        ("seeds", rows["count"].astype(str), ""),
    ]
    heads = {INTERVAL: f"{INTERVAL} of {METRICS[main].label}"} if main else {}
    kept = [column for column in columns if column[0] not in omit]
    shown = [(heads.get(head, head), [*entries, floor]) for head, entries, floor in kept]
    words = cut(every, most)
    notes = [f"{words}; all are in leaderboard.csv" if words else ""]
    notes += [*analysis.remarks.get(task, "").splitlines(), analysis.fairness[task]]
    noted = rows.loc[rows["note"] != "", ["method", "setting", "note"]].to_numpy()
    notes += [f"{name_of(method, setting)}: {note}" for method, setting, note in noted]
    return table_of(title_of(task), shown, notes)


def title_of(task: str) -> str:
    """The title of a task; its name if it is not registered."""
    return TASKS[task].title if task in TASKS else task


def _marks(analysis: Analysis, task: str) -> dict[tuple[str, str], str]:
    """The mark of each competitor that was compared with the best of the task, which has none."""
    marks = {}
    pairs = against_best(analysis.pairs[analysis.pairs["task"] == task])
    for *names, verdict in pairs[[*SIDES, "verdict"]].itertuples(index=False, name=None):
        marks[names[0], names[1]] = ""
        marks[names[2], names[3]] = {SAME: EQUAL, UNTESTED: UNCOMPARED}.get(verdict, "")
    return marks


def _values(
    rows: pd.DataFrame, metric: str, marks: dict[tuple[str, str], str] | None
) -> list[Entry]:
    """Mean and deviation; bold is the best mean of a distance: a cheap map is not a better one."""
    names = ("method", "setting", f"{metric}_mean", f"{metric}_std", f"{metric}_rank")
    entries = []
    for method, setting, mean, std, rank in rows[[*names]].itertuples(index=False, name=None):
        first = bool(pd.notna(rank) and rank == 1)
        mark = "" if marks is None or first else marks.get((method, setting), UNCOMPARED)
        text = format_value(mean, std)
        bold = first and METRICS[metric].kind == "distance"
        entries.append(Entry(text, bold, mark if text else ""))
    return entries


def overall_table(analysis: Analysis) -> Table:
    """The ranks over tasks; who lacks a task is named below, with the reason."""
    found = analysis.overall
    frame = found.table
    columns: list[tuple[str, Iterable[str | Entry]]] = [
        ("method", frame["name"]),
        ("mean rank", format_numbers(frame["mean_rank"], ".2f")),
        ("tasks", [f"{ranked} of {found.tasks}" for ranked in frame["tasks"]]),
    ]
    if len(found.ranks):
        columns.append(("rank in the test", format_numbers(frame["tested_rank"], ".2f")))
    if (frame["better_than"] != "").any():
        columns.append(("better than", frame["better_than"]))
    missing = frame.loc[frame["missing"] != "", ["name", "missing"]].to_numpy()
    notes = [found.sentence, *(f"{name}: {words}" for name, words in missing)]
    return table_of("Over the tasks: mean ranks by the main distance", columns, notes)


def pairs_table(analysis: Analysis, task: str, most: int = MAX_ROWS) -> Table:
    """The pairs of one task; of more than ``most`` only those with the best."""
    every = analysis.pairs[analysis.pairs["task"] == task]
    shown = every if len(every) <= most else against_best(every)
    notes = [PAIRS, *(f"compared: {note}" for note in sorted(set(filter(None, every["note"]))))]
    if len(shown) < len(every):
        notes.append(f"with the best; all {len(every)} pairs are in pairs.csv")
    columns: list[tuple[str, Iterable[str | Entry]]] = [
        ("a", map(name_of, shown["method_a"], shown["setting_a"])),
        ("b", map(name_of, shown["method_b"], shown["setting_b"])),
        ("a − b", format_numbers(shown["difference"], "+.3f")),
        (INTERVAL, map(format_interval, shown["ci_low"], shown["ci_high"], repeat("+.3f"))),
        ("p", map(format_p, shown["p"])),
        ("p (Holm)", map(format_p, shown["p_holm"])),
        ("seeds", shown["shared_seeds"].astype(str)),
        ("verdict", shown["verdict"]),
    ]
    if (shown["data"] != "").any():
        columns.insert(0, ("data", shown["data"]))
    title = f"{title_of(task)}: pairs by {METRICS[every['metric'].iloc[0]].label}"
    return table_of(title, columns, notes)


def format_number(value: float, form: str) -> str:
    """A number, with a minus as long as a plus; empty for a value that does not apply."""
    return f"{value:{form}}".replace("-", "−") if pd.notna(value) else ""


def format_numbers(values: Iterable[float], form: str) -> list[str]:
    """:func:`format_number` of each."""
    return [format_number(value, form) for value in values]


def format_interval(low: float, high: float, form: str = ".3f") -> str:
    """``0.012 to 0.034``; empty where there is none."""
    return f"{format_number(low, form)} to {format_number(high, form)}" if pd.notna(low) else ""


def format_p(p: float) -> str:
    """``0.012``, ``< 0.001``."""
    return "< 0.001" if p < 0.001 else format_number(p, ".3f")
