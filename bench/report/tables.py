"""The tables of a report, as text that every renderer shows: terminal, Markdown, TeX and HTML."""

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import pandas as pd

from bench.analysis.analysis import Analysis
from bench.analysis.leaderboard import COPIED, IDEAL_COPIED, best, cut, shown_metrics
from bench.analysis.overall import Overall
from bench.analysis.references import BASELINE, EXACT, METHOD
from bench.analysis.significance import (
    MAX_COMPETITORS,
    MIN_SEEDS,
    SAME,
    SIDES,
    UNTESTED,
    against_best,
)
from bench.analysis.words import format_value, name_of
from bench.metrics import METRICS
from datasets import TASKS

MAX_ROWS = 30  # of a table: a page
COSTS = {"landed": "landed", "nfe": "NFE"}
COSTS |= {"train_seconds": "training s", "sample_seconds": "sampling s"}
# Columns of words; others are numbers.
LEFT = {"method", "setting", "changed", "a", "b", "data", "verdict", "better than"}
INTERVAL = "95% interval"
EQUAL, UNCOMPARED, COPYING = "†", "‡", "§"
SEPARATOR = "references:"  # the row between what competes and what does not
CAPTION = (
    f"Mean over seeds ± standard deviation; bold: the best mean of a distance; {EQUAL}: does not"
    " differ significantly from the best main distance (paired t-test of the logarithms over the"
    f" seeds that share data, Holm, 5%); {UNCOMPARED}: not tested against it (fewer than"
    f" {MIN_SEEDS} shared seeds, or not among the best {MAX_COMPETITORS}); {COPYING}: copies"
    f" training data (significantly more than {IDEAL_COPIED:.0%} of the samples are nearer to it"
    " than 95% of held-out data are). The references below the methods do not compete: closed"
    " forms that are not trained (<name>-exact), a known exact map from the same starts (perfect),"
    " a second target set (target vs target), what optimal transport to the target costs, the"
    " optimal map between Gaussians of the same moments (linear), the source samples (identity) and"
    " draws of N(0, I) (noise). Score: (value − perfect) / (noise − perfect) of the main distance,"
    " with target vs target where no exact map is known. Data sets are evaluated on the same"
    " held-out rows in every seed: there deviations and tests are of the training alone."
)
PAIRS = (
    "The geometric mean of a / b over shared seeds, its 95% interval and p of the paired t-test of"
    " the logarithms; p (Holm) is corrected for all pairs of the task; the verdict is at 5% after"
    " that. Values that are not all positive are compared as they are, and have no ratio."
)


AGGREGATES = (
    "IQM: the mean of the middle half of the scores of all tasks and seeds, 0 is perfect and 1 is"
    " noise, with the 95% interval of a stratified bootstrap over seeds (Agarwal et al., NeurIPS"
    " 2021); P(better): the mean over tasks of the probability that a run has a smaller score than"
    " one of"
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
    return [*tasks, *overall_tables(analysis), *pairs]


def task_table(
    analysis: Analysis, task: str, most: int = MAX_ROWS, omit: Collection[str] = ()
) -> Table:
    """The leaderboard of one task: methods, the best first; below them what does not compete.

    Of more than ``most`` methods it has the best, and says so, and likewise of exact rows; columns
    in ``omit`` are left out. Below it stand tests, budget and what went wrong.
    """
    every = analysis.tasks[task]
    roles = {role: every[every["role"] == role] for role in (METHOD, EXACT, BASELINE)}
    shown = [best(roles[METHOD], most).sort_values("main_rank", kind="stable")]
    others = pd.concat([best(roles[EXACT], most), roles[BASELINE]])
    if len(others):
        line = {"method": SEPARATOR, "setting": "", "changed": "", "note": ""}
        shown += [pd.DataFrame([line], columns=list(every)), others]
    rows = pd.concat([part.astype(object) for part in shown], ignore_index=True)
    columns = _columns(every, rows, _marks(analysis, task))
    words = cut(roles[METHOD], most)
    notes = [f"{words}; all are in leaderboard.csv" if words else ""]
    notes += [*analysis.remarks.get(task, "").splitlines(), analysis.fairness[task]]
    noted = rows.loc[rows["note"] != "", ["method", "setting", "note"]].to_numpy()
    notes += [f"{name_of(method, setting)}: {note}" for method, setting, note in noted]
    kept = [column for column in columns if not column[0].startswith(tuple(omit))]
    return table_of(title_of(task), kept, notes)


def _columns(
    every: pd.DataFrame, rows: pd.DataFrame, marks: dict[tuple[str, str], str]
) -> Iterator[tuple[str, Iterable[str | Entry]]]:
    """The columns of a task: rank, main metric and score first, then the rest of the headline."""
    main = every["main_metric"].iloc[0]
    copying = rows["copies"].eq(True)
    names = zip(rows["method"], copying, strict=True)
    yield "rank", format_numbers(rows["main_rank"], ".0f")
    yield "method", [Entry(name, mark=COPYING if mark else "") for name, mark in names]
    for name in ("setting", "changed"):
        if (every[name] != "").any():
            yield name, rows[name]
    if pd.notna(main):
        yield METRICS[main].label, _values(rows, main, marks)
        yield "score", format_numbers(rows["score"], ".3f")
    copied = [COPIED] if _known(every, COPIED) else []
    for name in dict.fromkeys([*copied, *shown_metrics(every)]):
        if name != main:
            yield METRICS[name].label, _values(rows, name)
    if pd.notna(main):
        interval = map(format_interval, rows["main_low"], rows["main_high"])
        yield f"{INTERVAL} of {METRICS[main].label}", interval
    costs = {"landed": ".1%", "nfe": ".0f", "train_seconds": ".1f", "sample_seconds": ".2f"}
    for name, form in costs.items():
        yield COSTS[name], format_numbers(rows[name], form)
    yield "seeds", format_numbers(rows["count"], ".0f")


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


def _known(rows: pd.DataFrame, metric: str) -> bool:
    return f"{metric}_mean" in rows and bool(rows[f"{metric}_mean"].notna().any())


def _values(
    rows: pd.DataFrame, metric: str, marks: dict[tuple[str, str], str] | None = None
) -> list[Entry]:
    """Mean and deviation; bold is the best mean of a distance: a cheap map is not a better one."""
    names = ["role", "method", "setting", f"{metric}_mean", f"{metric}_std", f"{metric}_rank"]
    entries = []
    own = rows.reindex(columns=names)
    for role, method, setting, mean, std, rank in own.itertuples(index=False, name=None):
        first = bool(pd.notna(rank) and rank == 1)
        mark = "" if marks is None or first else marks.get((method, setting), UNCOMPARED)
        text = format_value(mean, std)
        bold = first and METRICS[metric].kind == "distance"
        entries.append(Entry(text, bold, mark if text and role == METHOD else ""))
    return entries


def overall_tables(analysis: Analysis) -> list[Table]:
    """For each kind of tasks the ranks and scores over them, below it who lacks a task, and why."""
    return [_overall_table(kind, found) for kind, found in analysis.overall.items()]


def _overall_table(kind: str, found: Overall) -> Table:
    frame = found.table
    columns: list[tuple[str, Iterable[str | Entry]]] = [
        ("method", frame["name"]),
        ("mean rank", format_numbers(frame["mean_rank"], ".2f")),
        ("tasks", [f"{ranked} of {found.tasks}" for ranked in frame["tasks"]]),
    ]
    if len(found.ranks):
        columns.append(("rank in the test", format_numbers(frame["tested_rank"], ".2f")))
    if (scored := frame["iqm"].notna()).any():
        first = frame.loc[scored, "name"].iloc[0]
        own = found.improvement[found.improvement["b"] == first].set_index("a")["improvement"]
        columns += [
            ("IQM of the score", format_numbers(frame["iqm"], ".3f")),
            (INTERVAL, map(format_interval, frame["iqm_low"], frame["iqm_high"])),
            ("P(better)", format_numbers(own.reindex(frame["name"]), ".2f")),
        ]
    if (frame["better_than"] != "").any():
        columns.append(("better than", frame["better_than"]))
    missing = frame.loc[frame["missing"] != "", ["name", "missing"]].to_numpy()
    notes = [found.sentence, f"{AGGREGATES} {first}." if scored.any() else ""]
    notes += [f"{name}: {words}" for name, words in missing]
    return table_of(f"Over the tasks, {kind}", columns, notes)


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
        ("a / b", format_numbers(shown["ratio"], ".3f")),
        (INTERVAL, map(format_interval, shown["ratio_low"], shown["ratio_high"])),
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
