"""Over the tasks: mean ranks, and Friedman's and Nemenyi's tests of them.

Distances of different tasks cannot be averaged; ranks can.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scikit_posthocs
from scipy import stats

from bench.analysis.leaderboard import GROUP, aggregate, in_turn, with_distance, with_setting
from bench.analysis.significance import LEVEL, MAX_COMPETITORS, MAX_NAMES, SAME, data_words
from bench.analysis.words import few, name_of

MIN_COMPETITORS, MIN_TASKS = 3, 2  # below these there is no Friedman test


class Overall(NamedTuple):
    """The comparison over the tasks; without a test its ranks and numbers are empty or NaN."""

    sentence: str  # what was tested, and what came out; or why nothing was
    tasks: int  # on which anyone has a rank
    ranks: "pd.Series[float]" = pd.Series(dtype=float)  # means of those in the test, by name
    p_values: pd.DataFrame = pd.DataFrame()
    """p of every two of them, by name; all are 1 where Friedman's test finds no difference."""
    friedman: float = np.nan
    friedman_p: float = np.nan
    critical_difference: float = np.nan  # Nemenyi's, of mean ranks
    table: pd.DataFrame = pd.DataFrame()  # ``overall.csv``: a row a competitor, the best first


def overall(results: pd.DataFrame) -> Overall:
    """Ranks the competitors on every task by the mean of the main distance over seeds.

    A method that has one setting on each of its tasks competes under its name, whatever its
    defaults for a task are; another competes with its setting in words, so that only settings of
    the same words are one competitor. A task that was run with several data is as many tasks.

    Ranks are among the competitors that have a result on the task; ties share the mean of their
    ranks. ``mean_rank`` is over the tasks on which the competitor has a rank, ``tasks`` their
    number, ``missing`` the others with the reason: a rank among fewer is easier to get. Of more
    than ``MAX_COMPETITORS`` the best mean ranks of each method in turn are kept, and ranked again.

    The tests take the competitors that have a rank on every task, and rank them once more
    (``tested_rank``): :func:`compare_ranks`.
    """
    board = _competitors(results)
    tasks = board.loc[board["score"].notna(), "task"].unique()
    scores = board.pivot(index="task", columns="name", values="score")
    scores = scores.reindex(index=tasks, columns=board["name"].unique())
    first = board.drop_duplicates("name").set_index("name")
    scores, note = _best(scores, first["method"])
    test = compare_ranks(scores.loc[:, scores.notna().all()])
    table = pd.DataFrame(
        {
            "method": first["method"][scores.columns],
            "setting": first["setting"][scores.columns],
            "mean_rank": scores.rank(axis=1).mean(),
            "tasks": scores.notna().sum(),
            "tested_rank": test.ranks.reindex(scores.columns),
            "better_than": [_better_than(str(name), test) for name in scores],
            "missing": [_missing(board[board["name"] == name], scores[name]) for name in scores],
            "friedman": test.friedman,
            "friedman_p": test.friedman_p,
            "critical_difference": test.critical_difference,
        },
        index=scores.columns,
    )
    table = table.rename_axis("name").sort_values("mean_rank", kind="stable").reset_index()
    others = few((name for name in table["name"] if scores[name].isna().any()), MAX_NAMES, ", ")
    left_out = f"Not in the test, since a task has no result of theirs: {others}." if others else ""
    sentence = " ".join(filter(None, [test.sentence, left_out, note]))
    return test._replace(table=table, sentence=sentence, tasks=len(scores))


def _competitors(results: pd.DataFrame) -> pd.DataFrame:
    """A row a task, with its data, and competitor: ``name`` and ``score``, and why it has none."""
    data = data_words(results)
    task = results["task"].where(data == "", results["task"] + " " + data)
    board = with_distance(aggregate(with_setting(results.assign(task=task)), GROUP))
    settings = board.groupby(["method", "task"])["setting"].nunique().groupby("method").max()
    board["setting"] = board["setting"].where(board["method"].map(settings > 1), "")
    board["name"] = list(map(name_of, board["method"], board["setting"]))
    complete = board["count"] == board["tried"]  # those that diverged would be worse
    return board.assign(score=board["distance"].where(complete))


def _best(scores: pd.DataFrame, methods: "pd.Series[str]") -> tuple[pd.DataFrame, str]:
    """The scores of at most ``MAX_COMPETITORS``, and what was cut in words."""
    number = scores.shape[1]
    if number <= MAX_COMPETITORS:
        return scores, ""
    ranks = scores.rank(axis=1).mean()
    return scores[in_turn(ranks, methods[scores.columns], MAX_COMPETITORS)], (
        f"Best {MAX_COMPETITORS} of {number:,} by mean rank, of each method in turn: they were"
        " chosen by the same results, which makes differences look larger than they are."
    )


def _missing(own: pd.DataFrame, scores: "pd.Series[float]") -> str:
    """On which tasks a competitor has no rank, and why, from its rows of the board."""
    done = zip(own["count"], own["tried"], own["note"], strict=True)
    notes = {
        task: f"{count} of {tried} seeds done; {note}" if 0 < count < tried else note
        for task, (count, tried, note) in zip(own["task"], done, strict=True)
    }
    reasons: dict[str, list[str]] = {}
    for task in scores.index[scores.isna()]:
        reasons.setdefault(notes.get(task) or "not run", []).append(str(task))
    return "; ".join(f"not ranked on {', '.join(t)} ({reason})" for reason, t in reasons.items())


def _better_than(name: str, test: Overall) -> str:
    """Whom a competitor is significantly better than; empty if it was not tested."""
    if name not in test.ranks:
        return ""
    different = test.p_values.index[test.p_values[name] < LEVEL]
    return ", ".join(other for other in different if test.ranks[other] > test.ranks[name])


def compare_ranks(scores: pd.DataFrame) -> Overall:
    """Friedman's test of the ranks, corrected for ties, and Nemenyi's of every two, at 5%.

    Nemenyi's differences count only where Friedman's test finds one. The chi-squared distribution
    of Friedman's statistic is good from some ten tasks on; below, the test finds too little.

    Args:
        scores: smaller is better, a row a task, a column a competitor; none may be missing.

    References:
        Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7, 2006.
    """
    tasks, size = scores.shape
    if size < MIN_COMPETITORS or tasks < MIN_TASKS:
        sentence = (
            f"No Friedman test: it needs {MIN_COMPETITORS} competitors that have a result on every"
            f" task, and {MIN_TASKS} tasks; here {size} and {tasks}."
        )
        return Overall(sentence, tasks)
    ranks = scores.rank(axis=1)
    if (ranks.nunique(axis=1) == 1).all():  # nothing but ties: the statistic is 0 / 0
        friedman, p = 0.0, 1.0
    else:
        friedman, p = map(float, stats.friedmanchisquare(*scores.to_numpy().T))
    p_values = pd.DataFrame(1.0, index=scores.columns, columns=scores.columns)
    difference = critical_difference(size, tasks)
    verdict = SAME
    if difference > size - 1:
        verdict += (
            f"; of so few tasks no two can differ: the critical difference is {difference:.2f}, and"
            f" ranks differ by {size - 1} at most"
        )
    if p < LEVEL:
        p_values = scikit_posthocs.posthoc_nemenyi_friedman(ranks)
        verdict = (
            f"some differ; Nemenyi: two differ significantly where their mean ranks are more than"
            f" the critical difference {difference:.2f} apart"
        )
        if not (p_values.to_numpy() < LEVEL).any():
            verdict += ", which no two are"
    sentence = (
        f"Friedman test over {tasks} tasks and {size} competitors: chi-squared {friedman:.2f},"
        f" p = {p:.2g}: {verdict}."
    )
    return Overall(sentence, tasks, ranks.mean(), p_values, friedman, p, difference)


def critical_difference(competitors: int, tasks: int) -> float:
    r"""Nemenyi's critical difference of mean ranks at 5%.

    .. math:: CD = q \sqrt{k (k + 1) / (6 N)}

    for k competitors and N tasks, where q is the quantile of the studentised range of k, with
    infinite degrees of freedom, over sqrt(2): Demsar, JMLR 7, 2006, section 3.2.2.
    """
    q = stats.studentized_range.ppf(1 - LEVEL, competitors, np.inf) / 2**0.5
    return float(q * (competitors * (competitors + 1) / (6 * tasks)) ** 0.5)
