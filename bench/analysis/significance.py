"""Which differences on a task are more than chance: paired tests over the seeds that share data.

What competes is a trained method with its setting; it is evaluated by the main metric of the task
(:func:`bench.analysis.leaderboard.main_distance`). All methods of one task and seed are trained and
evaluated on the same data, so two methods are compared seed by seed: what the draw of the data does
to both cancels. Distances are compared by their logarithms, since their spread grows with their
size: a difference is the logarithm of a ratio.
"""

import math
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
from bench.analysis.references import data_words, is_exact
from bench.analysis.words import few, name_of
from bench.metrics import METRICS

LEVEL = 1 - CONFIDENCE  # chance of calling a difference significant where there is none
MIN_SEEDS = 3  # with two a difference must be 135 standard deviations to be significant
MAX_COMPETITORS = 12  # of more the best are compared: the number of pairs grows with the square
MAX_NAMES = 6  # in a line of words
ROUNDING = 1e-9  # differences below this part of the values: an equal result, or an equal shift
SAME = "no significant difference"
UNTESTED = f"not tested: fewer than {MIN_SEEDS} shared seeds"
SIDES = ["method_a", "setting_a", "method_b", "setting_b"]
COLUMNS = [
    *("task", "data", "metric", *SIDES, "shared_seeds", "mean_a", "mean_b"),
    *("ratio", "ratio_low", "ratio_high", "scale", "difference", "ci_low", "ci_high"),
    *("p", "p_holm", "verdict", "note"),
]

Values = NDArray[np.float64]


class Paired(NamedTuple):
    """A paired comparison of a with b, with 95% intervals."""

    shared_seeds: int
    mean_a: float = np.nan
    mean_b: float = np.nan
    ratio: float = np.nan  # the geometric mean of a / b
    ratio_low: float = np.nan
    ratio_high: float = np.nan
    scale: str = ""  # of the difference: ``log``, or ``plain`` where a value has no logarithm
    difference: float = np.nan  # the mean of log a - log b
    ci_low: float = np.nan
    ci_high: float = np.nan
    p: float = np.nan


def paired(a: Values, b: Values) -> Paired:
    """The paired t-test of the logarithms of two competitors over the seeds that both have.

    Values that are not all positive (a distance that is clipped at its ideal, say) have no
    logarithms, and are compared as they are, without a ratio. Fewer than ``MIN_SEEDS`` shared seeds
    are not tested. Differences that are the same on every seed have no spread, and t says nothing:
    if they are zero, p is 1; if not, p is 2^(1-n), that of the test over all signs of the
    differences, which needs no spread. Both have no interval. What is not defined is NaN.

    Args:
        a, b: values by seed, smaller is better, shape (seeds,); NaN where a competitor lacks the
            seed.
    """
    shared = np.isfinite(a) & np.isfinite(b)
    a, b, n = a[shared], b[shared], int(shared.sum())
    if n == 0:
        return Paired(0)
    logs = bool(min(a.min(), b.min()) > 0)
    x, y = (np.log(a), np.log(b)) if logs else (a, b)
    rounding = ROUNDING * (1 if logs else max(np.abs(a).max(), np.abs(b).max()))
    difference = x - y
    difference[np.abs(difference) <= rounding] = 0.0
    mean = float(difference.mean())
    low = high = p = np.nan
    if n >= MIN_SEEDS and difference.std(ddof=1) <= rounding:
        p = 2.0 ** (1 - n) if mean else 1.0
    elif n >= MIN_SEEDS:
        test = stats.ttest_rel(x, y)
        p, (low, high) = float(test.pvalue), map(float, test.confidence_interval(CONFIDENCE))
    compared = Paired(n, float(a.mean()), float(b.mean()))
    compared = compared._replace(difference=mean, ci_low=low, ci_high=high, p=p, scale="plain")
    if not logs:
        return compared
    ratio, least, most = map(math.exp, (mean, low, high))
    return compared._replace(ratio=ratio, ratio_low=least, ratio_high=most, scale="log")


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


def pairs(results: pd.DataFrame) -> pd.DataFrame:
    """Every two trained competitors of a task, compared over the seeds whose data they share.

    One row a pair, the better mean as ``a``, the best of the task first; who lacks a seed comes
    last, since those that diverged might have been worse. ``shared_seeds``, both means over these
    (of :meth:`bench.metrics.Metric.loss`), the numbers of :func:`paired`, ``p_holm`` corrected over
    the pairs of the task (:func:`holm`), and the ``verdict`` at 5% after that correction, in words.
    The intervals are not corrected, so one may leave no difference out where the verdict finds
    none. Of more than ``MAX_COMPETITORS`` competitors the best of each method in turn are compared,
    and ``note`` says so. Where a task was run with several data (``data``: its parameters, the
    settings of the evaluation), each is a comparison of its own.
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
    every = board[board[f"{metric}_mean"].notna() & ~is_exact(board)]
    chosen = best(every, MAX_COMPETITORS)
    loss = METRICS[metric].loss(chosen[f"{metric}_mean"])
    chosen = chosen.assign(lacking=chosen["count"] < chosen["tried"], loss=loss)
    chosen = chosen.sort_values(["lacking", "loss"], kind="stable", ignore_index=True)
    places = chosen[["method", "setting"]].assign(place=chosen.index)
    placed = rows[["method", "setting", "seed", metric]].merge(places)
    by_seed = placed.pivot_table(index="seed", columns="place", values=metric).to_numpy(float)
    by_seed = METRICS[metric].loss(by_seed)
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
    """For each task, of :func:`pairs`, a line on its best and who differs; one a data."""
    lines: dict[str, list[str]] = {}
    for (task, data), rows in comparisons.groupby(["task", "data"], sort=False):
        lines.setdefault(str(task), []).append(": ".join(filter(None, (str(data), _remark(rows)))))
    return {task: "\n".join(text) for task, text in lines.items()}


def _remark(every: pd.DataFrame) -> str:
    """The line of one task, from its pairs."""
    pairs = against_best(every)
    first = name_of(*pairs[SIDES[:2]].iloc[0])
    found: dict[str, list[str]] = {}
    for method, setting, verdict in pairs[[*SIDES[2:], "verdict"]].itertuples(False, None):
        found.setdefault(verdict, []).append(name_of(method, setting))
    parts = [f"best: {first}"]
    spoken = {f"{first} is better": "significantly better than", SAME: f"{SAME} from"}
    for verdict, words in (spoken | {UNTESTED: "not tested"}).items():
        if verdict in found:
            parts.append(f"{words} {few(found.pop(verdict), MAX_NAMES, ', ')}")
    # A mean over other seeds can order two competitors otherwise than the seeds they share.
    parts += [f"over the seeds they share {verdict}" for verdict in found]
    tested = sorted(set(pairs.loc[pairs["p"].notna(), "shared_seeds"]))
    counts = " to ".join(map(str, dict.fromkeys([*tested[:1], *tested[-1:]])))
    how = f"paired t of logarithms over {counts} seeds, Holm" if tested else UNTESTED.split(": ")[1]
    return f"{'; '.join(parts)} ({how})"
