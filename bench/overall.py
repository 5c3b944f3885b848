"""Over the tasks: mean ranks, and Friedman's and Nemenyi's tests of them.

Distances of different tasks cannot be averaged; ranks can.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import scikit_posthocs
from scipy import stats

from bench.leaderboard import GROUP, aggregate, few, in_turn, main_distance, with_setting
from bench.significance import LEVEL, MAX_COMPETITORS, MAX_NAMES, SAME, data_words, name_of

MIN_COMPETITORS, MIN_TASKS = 3, 2
"""Below these there is no Friedman test."""


class Overall(NamedTuple):
    """The comparison over the tasks."""

    table: pd.DataFrame
    """A row a competitor, the best mean rank first; the columns are those of ``overall.csv``."""
    sentence: str
    """What was tested, and what came out; or why nothing was."""
    tasks: int
    """The tasks on which anyone has a rank."""
    ranks: "pd.Series[float]"
    """Mean ranks of the competitors in the test, by name; empty without a test."""
    p_values: pd.DataFrame
    """p of every two of them, by name; all are 1 where Friedman's test finds no difference."""
    critical_difference: float
    """Nemenyi's, of mean ranks; NaN without a test."""


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

    Args:
        results: the rows of ``results.csv``.
    """
    board = _board(results)
    scores, note = _best(board, _scores(board))
    test = compare_ranks(scores.loc[:, scores.notna().all()])
    table = _table(board, scores, test)
    left_out = [name for name in table["name"] if scores[name].isna().any()]
    sentence = " ".join(filter(None, [test.sentence, _left_out(left_out), note]))
    return Overall(
        table, sentence, len(scores), test.ranks, test.p_values, test.critical_difference
    )


def _scores(board: pd.DataFrame) -> pd.DataFrame:
    """Means of the main distance, a row a task on which anyone has one, a column a competitor."""
    tasks = board.loc[board["score"].notna(), "task"].unique()
    scores = board.set_index(["task", "name"])["score"].unstack()
    return scores.reindex(index=tasks, columns=board["name"].unique())


def _best(board: pd.DataFrame, scores: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The columns of at most ``MAX_COMPETITORS``, and what was cut in words."""
    number = scores.shape[1]
    if number <= MAX_COMPETITORS:
        return scores, ""
    methods = board.drop_duplicates("name").set_index("name")["method"][scores.columns]
    kept = in_turn(scores.rank(axis=1).mean(), methods, MAX_COMPETITORS)
    note = (
        f"Best {MAX_COMPETITORS} of {number:,} by mean rank, of each method in turn: they were"
        " chosen by the same results, which makes differences look larger than they are."
    )
    return scores[kept], note


def _table(board: pd.DataFrame, scores: pd.DataFrame, test: "RankTest") -> pd.DataFrame:
    first = board.drop_duplicates("name").set_index("name")
    columns = {
        "method": first["method"][scores.columns],
        "setting": first["setting"][scores.columns],
        "mean_rank": scores.rank(axis=1).mean(),
        "tasks": scores.notna().sum(),
        "tested_rank": test.ranks.reindex(scores.columns),
        "better_than": [_better_than(str(name), test) for name in scores],
        "missing": [_missing(board[board["name"] == name], scores[name]) for name in scores],
    }
    table = pd.DataFrame(columns | test.numbers, index=scores.columns)
    return table.rename_axis("name").sort_values("mean_rank", kind="stable").reset_index()


def _board(results: pd.DataFrame) -> pd.DataFrame:
    """A row a task, with its data, and competitor: ``name`` and ``score``, and why it has none."""
    data = data_words(results)
    task = results["task"].where(data == "", results["task"] + " " + data)
    rows = with_setting(results.assign(task=task))
    board = aggregate(rows, GROUP)
    settings = board.groupby(["method", "task"])["setting"].nunique().groupby("method").max()
    single = board["method"].map(settings == 1)
    board["setting"] = board["setting"].where(~single, "")
    names = zip(board["method"], board["setting"], strict=True)
    board["name"] = [name_of(method, setting) for method, setting in names]
    board["score"] = np.nan
    for _, rows in board.groupby("task", sort=False):
        metric = main_distance(rows)
        if metric is not None:
            complete = rows["count"] == rows["tried"]  # those that diverged would be worse
            board.loc[rows.index, "score"] = rows[f"{metric}_mean"].where(complete)
    return board


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


def _better_than(name: str, test: "RankTest") -> str:
    """Whom a competitor is significantly better than; empty if it was not tested."""
    if name not in test.ranks:
        return ""
    different = test.p_values.index[test.p_values[name] < LEVEL]
    return ", ".join(other for other in different if test.ranks[other] > test.ranks[name])


def _left_out(names: list[str]) -> str:
    words = few(names, MAX_NAMES, ", ")
    return f"Not in the test, since a task has no result of theirs: {words}." if names else ""


class RankTest(NamedTuple):
    """What :func:`compare_ranks` finds; without a test all but the sentence is empty or NaN."""

    sentence: str
    ranks: "pd.Series[float]"
    p_values: pd.DataFrame
    friedman: float
    friedman_p: float
    critical_difference: float

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers of the tests, as columns of ``overall.csv``."""
        names = ("friedman", "friedman_p", "critical_difference")
        return {name: getattr(self, name) for name in names}


def compare_ranks(scores: pd.DataFrame) -> RankTest:
    """Friedman's test of the ranks, corrected for ties, and Nemenyi's of every two, at 5%.

    Nemenyi's differences count only where Friedman's test finds one. The chi-squared law of
    Friedman's statistic is good from some ten tasks on; below, the test finds too little.

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
        empty = pd.Series(dtype=float)
        return RankTest(sentence, empty, pd.DataFrame(), np.nan, np.nan, np.nan)
    ranks = scores.rank(axis=1)
    if (ranks.nunique(axis=1) == 1).all():  # nothing but ties: the statistic is 0 / 0
        friedman, p = 0.0, 1.0
    else:
        friedman, p = map(float, stats.friedmanchisquare(*scores.to_numpy().T))
    p_values = pd.DataFrame(1.0, index=scores.columns, columns=scores.columns)
    if p < LEVEL:
        p_values = scikit_posthocs.posthoc_nemenyi_friedman(ranks)
    difference = critical_difference(size, tasks)
    verdict = SAME
    if difference > size - 1:
        verdict += (
            f"; of so few tasks no two can differ: the critical difference is {difference:.2f}, and"
            f" ranks differ by {size - 1} at most"
        )
    if p < LEVEL:
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
    return RankTest(sentence, ranks.mean(), p_values, friedman, p, difference)


def critical_difference(competitors: int, tasks: int) -> float:
    r"""Nemenyi's critical difference of mean ranks at 5%.

    .. math:: CD = q \sqrt{k (k + 1) / (6 N)}

    for k competitors and N tasks, where q is the quantile of the studentised range of k, with
    infinite degrees of freedom, over sqrt(2).

    References:
        Demsar, JMLR 7, 2006, section 3.2.2.
    """
    q = stats.studentized_range.ppf(1 - LEVEL, competitors, np.inf) / 2**0.5
    return float(q * (competitors * (competitors + 1) / (6 * tasks)) ** 0.5)
