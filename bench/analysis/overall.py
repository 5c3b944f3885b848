"""Over the tasks: mean ranks and their tests, and the aggregates of normalised scores.

Distances of different tasks cannot be averaged; ranks and scores can. Tasks that start from noise
and tasks that start from data have tables of their own: not every method can do both.
"""

import math
from collections.abc import Mapping
from itertools import permutations
from typing import NamedTuple

import numpy as np
import pandas as pd
import scikit_posthocs
from numpy.typing import NDArray
from scipy import stats

from bench.analysis.aggregates import aggregates
from bench.analysis.leaderboard import GROUP, aggregate, in_turn, with_references
from bench.analysis.references import METHOD, data_words
from bench.analysis.significance import LEVEL, MAX_COMPETITORS, MAX_NAMES, SAME
from bench.analysis.words import few, name_of
from bench.metrics import METRICS
from datasets import TASKS

MIN_COMPETITORS, MIN_TASKS = 3, 2  # below these there is no Friedman test
FROM_NOISE, FROM_DATA, UNKNOWN = "noise to data", "data to data", "unregistered tasks"
MAX_TABLES = 50_000  # of ranks, that are enumerated
PERMUTED, DRAWS = 100, 10_000  # tasks x competitors up to which that many tables are drawn


class Overall(NamedTuple):
    """The comparison over the tasks; without a test its ranks and numbers are empty or NaN."""

    sentence: str  # what was tested, and what came out; or why nothing was
    tasks: int  # on which anyone has a rank
    ranks: "pd.Series[float]" = pd.Series(dtype=float)  # means of those in the test, by name
    p_values: pd.DataFrame = pd.DataFrame()
    """p of every two of them, by name; all are 1 where Friedman's test finds no difference."""
    friedman: float = np.nan  # chi-squared, corrected for ties
    iman_davenport: float = np.nan  # F
    friedman_p: float = np.nan
    friedman_null: str = ""  # how p was found
    critical_difference: float = np.nan  # Nemenyi's, of mean ranks
    table: pd.DataFrame = pd.DataFrame()  # ``overall.csv``: a row a competitor, the best first
    improvement: pd.DataFrame = pd.DataFrame()  # ``improvement.csv``: a row a pair
    profiles: pd.DataFrame = pd.DataFrame()  # ``profiles.csv``: a row a competitor and tau


def overall(results: pd.DataFrame) -> dict[str, Overall]:
    """Compares the trained competitors over the tasks, for each kind of task.

    A method that has one setting on each of its tasks of a kind competes under its name, whatever
    its defaults for a task are; another competes with its setting in words, so that only settings
    of the same words are one competitor. A task that was run with several data is as many tasks.

    Ranks are of the mean of the main metric over seeds, among the competitors that have a result on
    the task; ties share the mean of their ranks. ``mean_rank`` is over the tasks on which the
    competitor has a rank, ``tasks`` their number, ``missing`` the others with the reason: a rank
    among fewer is easier to get. Of more than ``MAX_COMPETITORS`` the best mean ranks of each
    method in turn are kept, and ranked again.

    The tests (:func:`compare_ranks`, ``tested_rank``) and the aggregates of scores
    (:mod:`bench.analysis.aggregates`) take the competitors that have a result on every task.
    """
    data = data_words(results)
    task = results["task"].where(data == "", results["task"] + " " + data)
    kinds = dict(zip(task, results["task"].map(kind_of), strict=True))
    board, runs = _competitors(with_references(results.assign(task=task)), kinds)
    # Who is skipped on all tasks of a kind does not compete on it.
    board = board[board.groupby(["kind", "name"])["tried"].transform("sum") > 0]
    groups = dict(iter(board.groupby("kind")))
    present = [kind for kind in (FROM_NOISE, FROM_DATA, UNKNOWN) if kind in groups]
    return {kind: _overall(groups[kind], runs) for kind in present}


def kind_of(task: str) -> str:
    """Whether a task starts from noise or from data; of one not registered that is not known."""
    if task not in TASKS:
        return UNKNOWN
    return FROM_NOISE if TASKS[task].noise_source else FROM_DATA


def _overall(board: pd.DataFrame, runs: pd.DataFrame) -> Overall:
    """The comparison of one kind of tasks, from its competitors and their runs."""
    tasks = board.loc[board["loss"].notna(), "task"].unique()
    losses = board.pivot(index="task", columns="name", values="loss")
    losses = losses.reindex(index=tasks, columns=board["name"].unique())
    first = board.drop_duplicates("name").set_index("name")
    losses, note = _best(losses, first["method"])
    names = list(losses.columns[losses.notna().all()])
    test = compare_ranks(losses[names])
    known = runs[runs["task"].isin(tasks) & runs["name"].isin(names) & runs["score"].notna()]
    scored = known.groupby("task")["name"].nunique() == len(names)  # of every competitor
    known = known[known["task"].isin(scored.index[scored])]
    scores = {
        str(name): [values.to_numpy() for _, values in own.groupby("task")["score"]]
        for name, own in known.groupby("name", sort=False)
    }
    if names and (count := int(scored.sum())) < len(tasks):
        note = f"{note} Scores of all are known on {count} of {len(tasks)} tasks.".strip()
    means, improvement, profiles = aggregates(scores)
    table = pd.DataFrame(
        {
            "method": first["method"][losses.columns],
            "setting": first["setting"][losses.columns],
            "mean_rank": losses.rank(axis=1).mean(),
            "tasks": losses.notna().sum(),
            "tested_rank": test.ranks.reindex(losses.columns),
            **means.reindex(losses.columns),
            "better_than": [_better_than(str(name), test) for name in losses],
            "missing": [_missing(board[board["name"] == name], losses[name]) for name in losses],
            "friedman": test.friedman,
            "iman_davenport": test.iman_davenport,
            "friedman_p": test.friedman_p,
            "friedman_null": test.friedman_null,
            "critical_difference": test.critical_difference,
        },
        index=losses.columns,
    )
    table = table.rename_axis("name").sort_values("mean_rank", kind="stable").reset_index()
    others = few((name for name in table["name"] if losses[name].isna().any()), MAX_NAMES, ", ")
    left_out = f"Not in the test, since a task has no result of theirs: {others}." if others else ""
    sentence = " ".join(filter(None, [test.sentence, left_out, note]))
    return test._replace(
        table=table,
        sentence=sentence,
        tasks=len(losses),
        improvement=improvement,
        profiles=profiles,
    )


def _competitors(rows: pd.DataFrame, kinds: Mapping[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row a task and trained competitor: ``name`` and ``loss``, and why it has none; its runs.

    Both with the ``kind`` of their task.
    """
    rows = rows[rows["role"] == METHOD]
    board = aggregate(rows, [*GROUP, "main_metric"])
    board["loss"] = np.nan
    for metric, own in board.groupby("main_metric"):
        # Those that diverged would be worse.
        means = own[f"{metric}_mean"].where(own["count"] == own["tried"])
        board.loc[own.index, "loss"] = METRICS[str(metric)].loss(means)
    numbers = board.groupby(["method", "task"])["setting"].nunique()
    named = {(kinds[task], method) for method, task in numbers.index[numbers > 1]}
    for frame in (board, rows := rows[rows["status"] == "done"].copy()):
        frame["kind"] = frame["task"].map(kinds)
        places = zip(frame["kind"], frame["method"], strict=True)
        says = np.array([place in named for place in places], bool)
        frame["setting"] = frame["setting"].where(says, "")
        frame["name"] = list(map(name_of, frame["method"], frame["setting"]))
    return board, rows


def _best(losses: pd.DataFrame, methods: "pd.Series[str]") -> tuple[pd.DataFrame, str]:
    """The losses of at most ``MAX_COMPETITORS``, and what was cut in words."""
    number = losses.shape[1]
    if number <= MAX_COMPETITORS:
        return losses, ""
    ranks = losses.rank(axis=1).mean()
    return losses[in_turn(ranks, methods[losses.columns], MAX_COMPETITORS)], (
        f"Best {MAX_COMPETITORS} of {number:,} by mean rank, of each method in turn: they were"
        " chosen by the same results, which makes differences look larger than they are."
    )


def _missing(own: pd.DataFrame, losses: "pd.Series[float]") -> str:
    """On which tasks a competitor has no rank, and why, from its rows of the board."""
    done = zip(own["count"], own["tried"], own["note"], strict=True)
    notes = {
        task: f"{count} of {tried} seeds done; {note}" if 0 < count < tried else note
        for task, (count, tried, note) in zip(own["task"], done, strict=True)
    }
    reasons: dict[str, list[str]] = {}
    for task in losses.index[losses.isna()]:
        reasons.setdefault(notes.get(task) or "not run", []).append(str(task))
    return "; ".join(f"not ranked on {', '.join(t)} ({reason})" for reason, t in reasons.items())


def _better_than(name: str, test: Overall) -> str:
    """Whom a competitor is significantly better than; empty if it was not tested."""
    if name not in test.ranks:
        return ""
    different = test.p_values.index[test.p_values[name] < LEVEL]
    return ", ".join(other for other in different if test.ranks[other] > test.ranks[name])


def compare_ranks(losses: pd.DataFrame) -> Overall:
    r"""Friedman's test of the ranks, and Nemenyi's of every two, at 5%.

    .. math:: F = \frac{(N - 1) \chi^2}{N (k - 1) - \chi^2}

    of N tasks and k competitors, with Friedman's chi-squared corrected for ties (Iman and
    Davenport). For its p see :func:`friedman_null`. Nemenyi's differences count only where this
    test finds one.

    Args:
        losses: smaller is better, a row a task, a column a competitor; none may be missing.

    References:
        Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7, 2006.
    """
    tasks, size = losses.shape
    if size < MIN_COMPETITORS or tasks < MIN_TASKS:
        sentence = (
            f"No Friedman test: it needs {MIN_COMPETITORS} competitors that have a result on every"
            f" task, and {MIN_TASKS} tasks; here {size} and {tasks}."
        )
        return Overall(sentence, tasks)
    ranks = losses.rank(axis=1)
    if (ranks.nunique(axis=1) == 1).all():  # nothing but ties: the statistic is 0 / 0
        friedman = 0.0
    else:
        friedman = float(stats.friedmanchisquare(*losses.to_numpy().T).statistic)
    rest = tasks * (size - 1) - friedman
    davenport = (tasks - 1) * friedman / rest if rest > 1e-9 else np.inf
    p, null = friedman_null(ranks.to_numpy(), davenport)
    p_values = pd.DataFrame(1.0, index=losses.columns, columns=losses.columns)
    difference = critical_difference(size, tasks)
    verdict = SAME
    if p < LEVEL:
        p_values = scikit_posthocs.posthoc_nemenyi_friedman(ranks)
        verdict = (
            f"some differ; Nemenyi: two differ significantly where their mean ranks are more than"
            f" the critical difference {difference:.2f} apart"
        )
        if not (p_values.to_numpy() < LEVEL).any():
            verdict += ", which no two are"
    sentence = (
        f"Friedman test over {tasks} tasks and {size} competitors: Iman-Davenport F ="
        f" {davenport:.2f}, p = {p:.2g} ({null}): {verdict}."
    )
    test = (friedman, davenport, p, null, difference)
    return Overall(sentence, tasks, ranks.mean(), p_values, *test)


def friedman_null(ranks: NDArray[np.float64], davenport: float) -> tuple[float, str]:
    """p of the Iman-Davenport statistic, and where it is from.

    Where methods do not differ, every order of the ranks within a task is equally likely. p is the
    share of the tables of such orders whose statistic is as large: of all, if there are at most
    ``MAX_TABLES`` (the first task may keep its order, since names do not matter); of ``DRAWS``
    drawn ones and the observed one, if tasks x competitors is at most ``PERMUTED``. Beyond that it
    is from the F distribution with k - 1 and (k - 1)(N - 1) degrees of freedom.

    Args:
        ranks: shape (tasks N, competitors k).
    """
    tasks, size = ranks.shape
    if math.factorial(size) ** (tasks - 1) <= MAX_TABLES:
        sums = ranks[:1]
        for own in ranks[1:]:
            orders = np.array(list(permutations(own)))
            sums = (sums[:, None] + orders).reshape(-1, size)
        null = f"exact, all {len(sums):,} orders of the ranks"
    elif tasks * size <= PERMUTED:
        rng = np.random.default_rng(0)
        drawn = rng.permuted(np.broadcast_to(ranks, (DRAWS, tasks, size)), axis=-1)
        sums = np.concatenate([ranks.sum(0)[None], drawn.sum(1)])
        null = f"{DRAWS:,} drawn orders of the ranks"
    else:
        return float(stats.f.sf(davenport, size - 1, (size - 1) * (tasks - 1))), "F distribution"
    # With the ties as they are, the statistic grows with the squares of the sums of ranks.
    squares, observed = np.square(sums).sum(1), np.square(ranks.sum(0)).sum()
    return float((squares >= observed - 1e-9).mean()), null


def critical_difference(competitors: int, tasks: int) -> float:
    r"""Nemenyi's critical difference of mean ranks at 5%.

    .. math:: CD = q \sqrt{k (k + 1) / (6 N)}

    for k competitors and N tasks, where q is the quantile of the studentised range of k, with
    infinite degrees of freedom, over sqrt(2): Demsar, JMLR 7, 2006, section 3.2.2.
    """
    q = stats.studentized_range.ppf(1 - LEVEL, competitors, np.inf) / 2**0.5
    return float(q * (competitors * (competitors + 1) / (6 * tasks)) ** 0.5)
