"""Which differences on a task are more than chance: paired tests over the seeds that share data.

What competes is a method with its setting; it is evaluated by the main distance of the task
(:func:`bench.analysis.leaderboard.main_distance`; smaller is better). All methods of one task and
seed are trained and evaluated on the same data, so the difference of two methods is taken seed by
seed: what the draw of the data does to both cancels.
"""

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bench.analysis.leaderboard import (
    CONFIDENCE,
    GROUP,
    aggregate,
    best,
    cut,
    main_distance,
    with_setting,
)
from bench.analysis.words import few, name_of, settings_text
from bench.config.settings import public_fields
from datasets import TASKS

LEVEL = 1 - CONFIDENCE  # chance of calling a difference significant where there is none
MAX_COMPETITORS = 12  # of more the best are compared: the number of pairs grows with the square
MAX_NAMES = 6  # in a line of words
ROUNDING = 1e-9  # differences below this part of the values: an equal result, or an equal shift
DRAWN = ("eval_n", "eval_draws", "eval_split")  # what the evaluation says about the data drawn
SAME = "no significant difference"
UNTESTED = "not tested: fewer than 2 shared seeds"
SIDES = ["method_a", "setting_a", "method_b", "setting_b"]
COLUMNS = [
    *("task", "data", "metric", *SIDES, "shared_seeds", "mean_a", "mean_b"),
    *("difference", "ci_low", "ci_high", "p", "p_holm", "verdict", "note"),
]

Values = NDArray[np.float64]


class Paired(NamedTuple):
    """A paired comparison; the difference is a - b, with its 95% interval."""

    shared_seeds: int
    mean_a: float
    mean_b: float
    difference: float
    ci_low: float
    ci_high: float
    p: float


def paired(a: Values, b: Values) -> Paired:
    """The paired t-test of two competitors over the seeds that both have.

    Differences that are the same on every seed have no spread, and t says nothing: if they are
    zero, p is 1; if not, p is 2^(1-n), that of the test over all signs of the differences, which
    needs no spread. Both have no interval. What is not defined is NaN.

    Args:
        a, b: values by seed, shape (seeds,); NaN where a competitor lacks the seed.
    """
    shared = np.isfinite(a) & np.isfinite(b)
    a, b, n = a[shared], b[shared], int(shared.sum())
    if n == 0:
        return Paired(0, *[np.nan] * 6)
    rounding = ROUNDING * max(np.abs(a).max(), np.abs(b).max())
    difference = a - b
    difference[np.abs(difference) <= rounding] = 0.0
    mean = float(difference.mean())
    low = high = p = np.nan
    if n > 1 and difference.std(ddof=1) <= rounding:
        p = 2.0 ** (1 - n) if mean else 1.0
    elif n > 1:
        test = stats.ttest_rel(a, b)
        p, (low, high) = float(test.pvalue), map(float, test.confidence_interval(CONFIDENCE))
    return Paired(n, float(a.mean()), float(b.mean()), mean, low, high, p)


def holm(p: Values) -> Values:
    """p values corrected for their number, in the order given; NaN stays and does not count.

    The k-th smallest of m is multiplied by m - k + 1; none is below the one before it, or above 1.

    References:
        Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
        Statistics 6, 1979.
    """
    # Not statsmodels' multipletests: it collects garbage at every call, 0.2 s with torch loaded.
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]  # NaN is sorted to the end
    corrected = np.full(len(p), np.nan)
    scaled = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected


def data_words(results: pd.DataFrame) -> "pd.Series[str]":
    """For each row what its data have of their own, in words: ``std=0.1``.

    Cells of one task and seed share data if the task's version and parameters and ``DRAWN``
    agree. Empty where they agree in all cells of the task. Of tasks that are not
    registered the parameters are not known; they count as settings of the methods.
    """
    words = pd.Series("", index=results.index, dtype=object)
    for task, rows in results.groupby("task", sort=False):
        columns = rows[[name for name in ["task_version", *DRAWN] if name in rows]].copy()
        for name in public_fields(TASKS[str(task)]) if task in TASKS else []:
            own = rows.get(name, pd.Series(np.nan, index=rows.index))
            prefixed = rows.get(f"task_{name}")  # where the method has a hyperparameter so named
            columns[name] = own if prefixed is None else prefixed.where(prefixed.notna(), own)
        differing = columns.loc[:, columns.nunique() > 1]
        if differing.shape[1]:
            words.loc[rows.index] = np.array(settings_text(differing), dtype=object)
    return words


def pairs(results: pd.DataFrame) -> pd.DataFrame:
    """Every two competitors of a task, compared over the seeds whose data they share.

    One row a pair, the better mean as ``a``, the best of the task first; who lacks a seed comes
    last, since those that diverged might have been worse. ``shared_seeds``, both
    means over these, ``difference`` (a - b) with its 95% interval, ``p`` of :func:`paired`,
    ``p_holm`` corrected over the pairs of the task (:func:`holm`), and the ``verdict`` at 5% after
    that correction, in words. The interval is not corrected, so it may leave zero out where the
    verdict finds no difference. Of more than ``MAX_COMPETITORS`` competitors the best of each
    method in turn are compared, and ``note`` says so. Where a task was run with several data
    (``data``: its parameters, the settings of the evaluation), each is a comparison of its own.
    """
    # In place of a column of that name: a task may have such a parameter.
    rows = with_setting(results).assign(data=data_words(results))
    values = dict(iter(rows[rows["status"] == "done"].groupby(["task", "data"], sort=False)))
    found: list[dict[str, Any]] = []
    for key, board in aggregate(rows, [*GROUP, "data"]).groupby(["task", "data"], sort=False):
        if key in values:
            found += _compare(board, values[key])
    return pd.DataFrame(found, columns=COLUMNS)


def _compare(board: pd.DataFrame, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The pairs of one task and its data, from its competitors and its results."""
    metric = main_distance(board)
    if metric is None:
        return []
    every = board[board[f"{metric}_mean"].notna()]
    chosen = best(every, MAX_COMPETITORS)
    chosen = chosen.assign(lacking=chosen["count"] < chosen["tried"])
    chosen = chosen.sort_values(["lacking", f"{metric}_mean"], kind="stable", ignore_index=True)
    places = chosen[["method", "setting"]].assign(place=chosen.index)
    placed = rows[["method", "setting", "seed", metric]].merge(places)
    by_seed = placed.pivot_table(index="seed", columns="place", values=metric).to_numpy(float)
    words = cut(every, MAX_COMPETITORS)
    task = {"task": board["task"].iloc[0], "data": board["data"].iloc[0], "metric": metric}
    task["note"] = f"{words}; chosen by the same results" if words else ""
    names = list(chosen[["method", "setting"]].itertuples(index=False, name=None))
    found = [
        task
        | dict(zip(SIDES, names[a] + names[b], strict=True))
        | paired(by_seed[:, a], by_seed[:, b])._asdict()
        for a, b in combinations(range(len(names)), 2)
    ]
    for pair, p in zip(found, holm(np.array([pair["p"] for pair in found])), strict=True):
        side = "a" if pair["difference"] < 0 else "b"
        better = f"{name_of(pair[f'method_{side}'], pair[f'setting_{side}'])} is better"
        pair["p_holm"] = p
        pair["verdict"] = UNTESTED if np.isnan(p) else SAME if p >= LEVEL else better
    return found


def against_best(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The pairs of :func:`pairs` with the best of their task: those with the best as ``a``."""
    first = comparisons.groupby(["task", "data"], sort=False)[SIDES[:2]].transform("first")
    return comparisons[(comparisons[SIDES[:2]] == first).all(axis=1)]


def remarks(comparisons: pd.DataFrame) -> dict[str, str]:
    """For each task, of :func:`pairs`, a line on its best and who does not differ; one a data."""
    lines: dict[str, list[str]] = {}
    for (task, data), rows in comparisons.groupby(["task", "data"], sort=False):
        lines.setdefault(str(task), []).append(": ".join(filter(None, (str(data), _remark(rows)))))
    return {task: "\n".join(text) for task, text in lines.items()}


def _remark(every: pd.DataFrame) -> str:
    """The line of one task, from its pairs."""
    found: dict[str, list[str]] = {}
    alike = []
    first = name_of(*every[SIDES[:2]].iloc[0])
    for *sides, verdict in every[[*SIDES, "verdict"]].itertuples(index=False, name=None):
        a, b = name_of(*sides[:2]), name_of(*sides[2:])
        if a == first:
            found.setdefault(verdict, []).append(b)
        elif verdict == SAME:
            alike.append(f"{a} and {b}")
    parts = [f"best: {first}"]
    spoken = {UNTESTED: "not tested, fewer than 2 shared seeds"}
    spoken |= {f"{first} is better": "significantly better than", SAME: f"{SAME} from it"}
    for verdict, words in spoken.items():
        if verdict in found:
            parts.append(f"{words}: {few(found.pop(verdict), MAX_NAMES, ', ')}")
    # A mean over other seeds can order two competitors otherwise than the seeds they share.
    parts += [f"over the seeds they share {verdict}" for verdict in found]
    if seeds := sorted({int(n) for n in against_best(every)["shared_seeds"] if n > 1}):
        counts = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        parts[-1] += f" (paired t over {counts} shared seeds, Holm)"
    if alike:
        parts.append(f"{SAME} either between {few(alike, MAX_NAMES, ', ')}")
    if note := every["note"].iloc[0]:
        parts.append(f"compared: {note}")
    return "; ".join(parts)
