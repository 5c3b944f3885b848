"""Which differences on a task are more than chance: paired tests over the seeds that share data.

What competes is a method with its setting; it is judged by the main distance of the task
(:func:`bench.leaderboard.main_distance`; smaller is better). All methods of one task and seed are
trained and judged on the same data, so the difference of two methods is taken seed by seed: what
the draw of the data does to both cancels.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bench.leaderboard import (
    CONFIDENCE,
    GROUP,
    aggregate,
    best,
    cut,
    few,
    main_distance,
    with_setting,
    words_of,
)
from bench.spec import public_fields
from datasets import TASKS

LEVEL = 1 - CONFIDENCE
"""Chance of calling a difference significant, on a task where there is none."""
MAX_COMPETITORS = 12
"""Of more competitors the best are compared: the number of pairs grows with the square."""
MAX_NAMES = 6
"""Names in a line of words."""
ROUNDING = 1e-9
"""Differences below this part of the values are rounding: an equal result, or an equal shift."""
DRAWN = ("eval_n", "eval_draws", "eval_split")
"""The settings of the evaluation that say which data are drawn."""
SAME = "no significant difference"
UNTESTED = "not tested: fewer than 2 shared seeds"

Values = NDArray[np.float64]


class Paired(NamedTuple):
    """A paired comparison; the difference is a - b."""

    seeds: int
    mean_a: float
    mean_b: float
    difference: float
    ci_low: float
    ci_high: float
    p: float


def paired(a: Values, b: Values) -> Paired:
    r"""The paired t-test of two competitors over the seeds that both have.

    .. math:: t = \bar d \sqrt n / s, \quad d_k = a_k - b_k

    with n - 1 degrees of freedom. Differences that are the same on every seed have no spread, and
    t says nothing: if they are zero, p is 1; if not, p is 2^(1-n), that of the test over all signs
    of the differences, which needs no spread. Both have no interval.

    Args:
        a, b: values by seed, shape (seeds,); NaN where a competitor lacks the seed.

    Returns:
        Count, means, mean difference, its 95% interval and p; NaN where it is not defined.
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
    if n > 1:
        spread = float(difference.std(ddof=1))
        if spread <= rounding:
            p = 2.0 ** (1 - n) if mean else 1.0
        else:
            error = spread / n**0.5
            p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
            half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
            low, high = mean - half, mean + half
    return Paired(n, float(a.mean()), float(b.mean()), mean, low, high, p)


def holm(p: Values) -> Values:
    """p values corrected for their number, in the order given; NaN stays and does not count.

    The k-th smallest of m is multiplied by m - k + 1; none is below the one before it, or above 1.

    References:
        Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
        Statistics 6, 1979.
    """
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]  # NaN is sorted to the end
    corrected = np.full(len(p), np.nan)
    scaled = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected


def name_of(method: str, setting: str) -> str:
    """A competitor in words: ``efm (L=6, sigma=0.1)``."""
    return f"{method} ({setting})" if setting else method


def data_words(results: pd.DataFrame) -> "pd.Series[str]":
    """For each row what its data have of their own, in words: ``std=0.1``.

    Cells of one task and seed share data if the task's version and parameters and ``DRAWN``
    agree. Empty where they agree in all cells of the task. Of tasks that are not
    registered the parameters are not known; they count as settings of the methods.
    """
    words = pd.Series("", index=results.index, dtype=object)
    for task, rows in results.groupby("task", sort=False):
        columns = _data_columns(str(task), rows)
        differing = columns.loc[:, columns.nunique() > 1]
        if differing.shape[1]:
            words.loc[rows.index] = np.array(words_of(differing), dtype=object)
    return words


def _data_columns(task: str, rows: pd.DataFrame) -> pd.DataFrame:
    columns = {name: rows[name] for name in ["task_version", *DRAWN] if name in rows}
    for name in public_fields(TASKS[task]) if task in TASKS else []:
        own = rows.get(name, pd.Series(np.nan, index=rows.index))
        prefixed = rows.get(f"task_{name}")  # where the method has a hyperparameter of that name
        columns[name] = own if prefixed is None else prefixed.where(prefixed.notna(), own)
    return pd.DataFrame(columns)


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

    Args:
        results: the rows of ``results.csv``.
    """
    rows = with_setting(results).assign(data=data_words(results))
    board = aggregate(rows, [*GROUP, "data"])
    values = dict(iter(rows[rows["status"] == "done"].groupby(["task", "data"], sort=False)))
    compared = [
        _compare(competitors, values[key])
        for key, competitors in board.groupby(["task", "data"], sort=False)
        if key in values
    ]
    found = [pair for task in compared for pair in task]
    return pd.DataFrame(found, columns=COLUMNS)


COLUMNS = [
    *("task", "data", "metric", "method_a", "setting_a", "method_b", "setting_b"),
    *("shared_seeds", "mean_a", "mean_b", "difference", "ci_low", "ci_high"),
    *("p", "p_holm", "verdict", "note"),
]


def _compare(board: pd.DataFrame, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The pairs of one task and its data, from its competitors and its results."""
    metric = main_distance(board)
    if metric is None:
        return []
    score = f"{metric}_mean"
    every = board[board[score].notna()]
    chosen = best(every, MAX_COMPETITORS)
    chosen = chosen.assign(lacking=chosen["count"] < chosen["tried"])
    chosen = chosen.sort_values(["lacking", score], kind="stable")
    chosen = chosen.assign(place=range(len(chosen)))
    placed = rows[["method", "setting", "seed", metric]].merge(
        chosen[["method", "setting", "place"]]
    )
    by_seed = placed.pivot_table(index="seed", columns="place", values=metric).to_numpy(float)
    found = [
        _named(chosen, a, b) | paired(by_seed[:, a], by_seed[:, b])._asdict()
        for a in range(len(chosen))
        for b in range(a + 1, len(chosen))
    ]
    p_holm = holm(np.array([pair["p"] for pair in found]))
    task = {"task": board["task"].iloc[0], "data": board["data"].iloc[0], "metric": metric}
    words = cut(every, MAX_COMPETITORS)
    task["note"] = f"{words}; chosen by the same results" if words else ""
    for pair, corrected in zip(found, p_holm, strict=True):
        pair |= task | {"shared_seeds": pair["seeds"], "p_holm": corrected}
        pair["verdict"] = _verdict(pair)
    return found


def _named(chosen: pd.DataFrame, a: int, b: int) -> dict[str, Any]:
    return {
        f"{what}_{side}": chosen[what].iloc[place]
        for side, place in (("a", a), ("b", b))
        for what in ("method", "setting")
    }


def _verdict(pair: dict[str, Any]) -> str:
    if np.isnan(pair["p_holm"]):
        return UNTESTED
    if pair["p_holm"] >= LEVEL:
        return SAME
    side = "a" if pair["difference"] < 0 else "b"
    return f"{name_of(pair[f'method_{side}'], pair[f'setting_{side}'])} is better"


def against_best(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The pairs of :func:`pairs` with the best of their task: those with the best as ``a``."""
    side = ["method_a", "setting_a"]
    first = comparisons.groupby(["task", "data"], sort=False)[side].transform("first")
    return comparisons[(comparisons[side] == first).all(axis=1)]


def remarks(comparisons: pd.DataFrame) -> dict[str, str]:
    """For each task a line on its best and on who does not differ; one for each data.

    Args:
        comparisons: what :func:`pairs` gives.
    """
    lines: dict[str, list[str]] = {}
    for (task, data), rows in comparisons.groupby(["task", "data"], sort=False):
        lines.setdefault(str(task), []).append(
            f"{data}: {_remark(rows)}" if data else _remark(rows)
        )
    return {task: "\n".join(text) for task, text in lines.items()}


def _remark(rows: pd.DataFrame) -> str:
    """The line of one task, from its pairs."""
    every, rows = rows, against_best(rows)
    others = [name_of(*pair) for pair in rows[["method_b", "setting_b"]].to_numpy()]
    first = name_of(*rows[["method_a", "setting_a"]].iloc[0])
    found: dict[str, list[str]] = {}
    for other, verdict in zip(others, rows["verdict"], strict=True):
        found.setdefault(verdict, []).append(other)
    parts = [f"best: {first}"]
    for verdict, words in {
        UNTESTED: "not tested, fewer than 2 shared seeds",
        f"{first} is better": "significantly better than",
        SAME: f"{SAME} from it",
    }.items():
        if verdict in found:
            parts.append(f"{words}: {few(found.pop(verdict), MAX_NAMES, ', ')}")
    # A mean over other seeds can order two competitors otherwise than the seeds they share.
    parts += [f"over the seeds they share {verdict}" for verdict in found]
    seeds = sorted({int(n) for n in rows["shared_seeds"] if n > 1})
    if seeds:
        counts = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        parts[-1] += f" (paired t over {counts} shared seeds, Holm)"
    alike = every[(every["verdict"] == SAME) & ~every.index.isin(rows.index)]
    if len(alike):
        sides = alike[["method_a", "setting_a", "method_b", "setting_b"]].to_numpy()
        words = few((f"{name_of(*s[:2])} and {name_of(*s[2:])}" for s in sides), MAX_NAMES, ", ")
        parts.append(f"{SAME} either between {words}")
    if rows["note"].iloc[0]:
        parts.append(f"compared: {rows['note'].iloc[0]}")
    return "; ".join(parts)
