"""The leaderboard, one row a task, method and setting; the ablations; which metric ranks a task."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bench.analysis.fairness import changed
from bench.analysis.references import (
    BASELINE,
    EXACT,
    METHOD,
    REFERENCE,
    baselines,
    is_exact,
    score,
)
from bench.analysis.results import (
    LAST,
    TRAILING,
    is_diagnostic,
    metric_columns,
    reference_columns,
)
from bench.analysis.words import SPLIT, few, settings_text
from bench.metrics import METRICS
from bench.metrics.base import main_metrics
from bench.store.records import MEMORY
from methods import METHODS

CONFIDENCE = 0.95
COSTS = ["landed", *MEMORY, "nfe"]
COSTS += ["train_seconds", "sample_seconds", "peak_memory_mb", "parameters"]
BUDGET = ["steps", "batch"]
MAIN = {"main_mean": "mean", "main_low": "ci_low", "main_high": "ci_high", "main_rank": "rank"}
GROUP = ["task", "method", "setting"]
COPIED, IDEAL_COPIED, MANY_COPIED = "copied", 0.05, 0.1
"""The share of samples nearer to the training set than 95% of held-out ones; more is copying."""
COMMON_SETTINGS = ["lr", *BUDGET]  # where these differ between rows, every table names them


def varying(results: pd.DataFrame) -> dict[tuple[str, str], list[str]]:
    """The settings with more than one value, for each task and method; none is no value."""
    fixed = {"task", "method", "seed", *metric_columns(), *reference_columns(), *TRAILING, *LAST}
    fixed -= set(BUDGET)
    columns = [name for name in map(str, results) if name not in fixed and not is_diagnostic(name)]
    several = results.groupby(["task", "method"])[columns].nunique() > 1
    return {
        (str(task), str(method)): [column for column in columns if row[column]]
        for (task, method), row in zip(several.index, several.to_dict("records"), strict=True)
    }


def with_setting(results: pd.DataFrame, without: str | None = None) -> pd.DataFrame:
    """``results`` with a column ``setting``: the settings that vary, and those named, as words.

    Named are the ``named_settings`` of the method, those of ``COMMON_SETTINGS`` that are not equal
    on the task, and on which samples it was evaluated if these are not the test's; not ``without``,
    which has a column of its own.
    """
    setting = np.full(len(results), "", dtype=object)
    places: dict[Any, Any] = dict(results.groupby(["task", "method"]).indices)
    common = [name for name in COMMON_SETTINGS if name in results]
    several = results.groupby("task")[common].nunique() > 1
    unequal = {task: [name for name in common if row[name]] for task, row in several.iterrows()}
    for (task, method), names in varying(results).items():
        own = METHODS[method].named_settings if method in METHODS else ()
        named = dict.fromkeys([*names, *own, *unequal[task], SPLIT])
        shown = [name for name in named if name in results and name != without]
        if shown:
            rows = places[task, method]
            setting[rows] = settings_text(results.iloc[rows][shown])
    column = pd.Series(setting, index=results.index, dtype=object, name="setting")
    return pd.concat([results, column], axis=1).copy()  # in one piece, to which columns are added


def aggregate(results: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Over the seeds of each group: count, and of each metric mean, standard deviation, interval.

    The interval is Student's t at ``CONFIDENCE``, empty for a single seed; with two seeds it is
    wide because two numbers say little. ``tried`` counts the cells that were not skipped. Rows that
    are not done count as zero, and their reasons stand in ``note``. Groups are in the order of
    their first rows. A metric that the rows lack, since its plug-in came later, is empty.
    """
    group = results.groupby(keys, dropna=False, sort=False).ngroup().to_numpy()
    first = ~pd.Series(group).duplicated().to_numpy()
    size = int(first.sum())
    done = (results["status"] == "done").to_numpy()
    skipped = (results["status"] == "skipped").to_numpy()
    perfect = [f"{name}_perfect" for name in METRICS if f"{name}_perfect" in results]
    known = [name for name in ("score", f"{COPIED}_low") if name in results]
    means = [*(str(name) for name in results if is_diagnostic(str(name))), *COSTS, *known]
    measured = [*(column for name in METRICS for column in (name, f"{name}_floor")), *perfect]
    values = results[done].reindex(columns=[*measured, *means]).astype(float).groupby(group[done])
    mean, deviation, count = (
        frame.reindex(range(size)) for frame in (values.mean(), values.std(), values.count())
    )
    several = count.where(count > 1)
    quantile = np.asarray(stats.t.ppf((1 + CONFIDENCE) / 2, several - 1))
    half = deviation * quantile / several**0.5
    columns: dict[str, Any] = {
        "count": np.bincount(group[done], minlength=size),
        "tried": np.bincount(group[~skipped], minlength=size),
    }
    for name in METRICS:
        columns |= {
            f"{name}_mean": mean[name],
            f"{name}_std": deviation[name],
            f"{name}_ci_low": mean[name] - half[name],
            f"{name}_ci_high": mean[name] + half[name],
            f"{name}_floor": mean[f"{name}_floor"],
        }
        if f"{name}_perfect" in perfect:
            columns[f"{name}_perfect"] = mean[f"{name}_perfect"]
    columns |= {name: mean[name] for name in means}
    budget = [column for column in BUDGET if column not in keys]
    columns |= {column: results.loc[first, column].to_numpy() for column in budget}
    reasons: list[list[str]] = [[] for _ in range(size)]
    others = results[~done]
    for place, status, reason in zip(group[~done], others["status"], others["reason"], strict=True):
        reasons[place].append(f"{status}: {'' if pd.isna(reason) else reason}")
    columns["note"] = list(map(few, reasons))
    names = results.loc[first, keys].reset_index(drop=True)
    return pd.concat([names, pd.DataFrame(columns)], axis=1)


def with_references(results: pd.DataFrame) -> pd.DataFrame:
    """``results`` with ``setting``, ``role``, ``main_metric`` and ``score``; below them baselines.

    The main metric of a task is that of :func:`main_distance` of the means of its methods and exact
    rows. The other columns are of :mod:`bench.analysis.references`.
    """
    rows = with_setting(results)
    done = rows[rows["status"] == "done"].reindex(columns=[*GROUP, *main_metrics()])
    means = done.groupby(GROUP, sort=False).mean().reset_index()
    main = {str(task): main_distance(own, "") for task, own in means.groupby("task")}
    sets = baselines(results)
    role = [*np.where(is_exact(rows), EXACT, METHOD), *([BASELINE] * len(sets))]
    rows = pd.concat([rows, sets], ignore_index=True).copy() if len(sets) else rows.copy()
    return rows.assign(role=role, main_metric=rows["task"].map(main), score=score(rows, main))


def leaderboard(results: pd.DataFrame) -> pd.DataFrame:
    """One row a task and method (and setting, where a method has several), and its references.

    It begins with the main metric, its mean and interval over seeds, its rank, and the mean of
    :func:`bench.analysis.references.score`. ``<metric>_rank`` orders the means of a task, 1 the
    best: the smallest, the largest, or (of each seed) the nearest to the ideal, as the metric says;
    costs have none. Who lacks a seed has no rank: those that diverged would have made the mean
    worse; nor has what does not compete (``role`` is not ``method``). ``copies`` says that the
    samples repeat training data (:func:`_copies`), ``changed`` has the settings that are not the
    defaults.
    """
    rows, keys = with_references(results), [*GROUP, "role"]
    board = aggregate(rows, keys).assign(changed=changed(rows.drop_duplicates(keys)))
    tasks, roles = list(board["task"].unique()), [METHOD, EXACT, BASELINE]
    place = len(roles) * board["task"].map(tasks.index) + board["role"].map(roles.index)
    board = board.iloc[np.argsort(place, kind="stable")].reset_index(drop=True)
    competes = (board["role"] == METHOD) & (board["count"] == board["tried"])
    for name in (name for name, metric in METRICS.items() if metric.ranked):
        losses = board[f"{name}_mean"]
        if METRICS[name].better == "nearest":  # else errors of both signs would cancel
            values = rows.reindex(columns=[*keys, name]).astype({name: float})
            nearness = rows[keys].assign(loss=METRICS[name].loss(values[name]))
            means = nearness.groupby(keys)["loss"].mean().rename("nearness").reset_index()
            losses = METRICS[name].ideal + board[keys].merge(means, "left")["nearness"]
        loss = METRICS[name].loss(losses.where(competes))
        rank = loss.groupby(board["task"]).rank(method="min").astype("Int64")
        board.insert(list(board).index(f"{name}_floor") + 1, f"{name}_rank", rank)
    main = board["task"].map(dict(zip(rows["task"], rows["main_metric"], strict=True)))
    first = pd.DataFrame({"main_metric": main})
    for part, column in MAIN.items():
        first[part] = pd.Series(np.nan, index=board.index)
        for name, own in board.groupby(main):
            first.loc[own.index, part] = own[f"{name}_{column}"].astype(float)
    first = first.assign(main_rank=first["main_rank"].astype("Int64"))
    rest = board.drop(columns=[*GROUP, "score", "role"]).assign(copies=_copies(board))
    return pd.concat([board[GROUP], first, board[["score", "role"]], rest], axis=1)


def _copies(board: pd.DataFrame) -> "pd.Series[bool]":
    """Whether more samples than chance explains are as near to the training set as few others.

    ``copied`` is the share of samples that are nearer to the training set than 95% of held-out ones
    are, so .05 is what new samples have. More is copying where the lower end of the interval, its
    mean over seeds, says so; without an interval from .1 on.
    """
    low = board.get(f"{COPIED}_low", pd.Series(np.nan, index=board.index))
    value = board.get(f"{COPIED}_mean", low)
    return (low > IDEAL_COPIED).where(low.notna(), value > MANY_COPIED)


def metrics_long(results: pd.DataFrame) -> pd.DataFrame:
    """One row a task, method, setting, seed and metric with a value: ``metrics_long.csv``.

    ``low`` and ``high`` are the ends of the interval within the seed, ``floor`` is the metric of a
    second target set (of costs the optimal cost, else the ideal), ``perfect`` that of a known exact
    map. ``role`` is ``method`` for what is trained, ``reference`` for exact rows and reference
    samples, which stand in the column ``method`` too.
    """
    rows = with_references(results)
    rows = rows[rows["status"] == "done"]
    rows = rows.assign(role=rows["role"].where(rows["role"] == METHOD, REFERENCE))
    found = []
    for name in (name for name in METRICS if name in rows):
        own = rows[rows[name].notna()]
        parts = {part: own.get(f"{name}_{part}") for part in ("low", "high", "floor", "perfect")}
        found.append(own[[*GROUP, "role", "seed"]].assign(metric=name, value=own[name], **parts))
    order = pd.concat(found)
    return order.sort_index(kind="stable").reset_index(drop=True)


def axes(results: pd.DataFrame) -> list[str]:
    """The settings that have more than one value for some method on some task."""
    return list(dict.fromkeys(name for names in varying(results).values() for name in names))


def ablation(results: pd.DataFrame, axis: str) -> pd.DataFrame:
    """One row a task, method, value of the axis and value of the other settings.

    Methods that lack the axis stand there once, with an empty value: they are the reference.
    Methods that have it with one value only, on every task, stand there with that value.
    """
    keys = ["task", "method", "setting", axis]
    table = aggregate(with_setting(results, without=axis), keys)
    return table.sort_values(keys, kind="stable", na_position="first", ignore_index=True)


def _own(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a leaderboard without its reference samples."""
    return rows[rows["role"] != BASELINE] if "role" in rows else rows


def main_distance(rows: pd.DataFrame, suffix: str = "_mean") -> str | None:
    """The metric by which rows of a task are ranked: the first of ``Metric.main`` that all have.

    All, that is, which have any; of a leaderboard the reference samples do not count. Not all have
    the FID if some were evaluated without its weights. The metrics stand in columns that end in
    ``suffix``.
    """
    rows = _own(rows)
    names = [name for name in main_metrics() if f"{name}{suffix}" in rows]
    known = rows[[f"{name}{suffix}" for name in names]].notna()
    known = known[known.any(axis=1)]
    return next((name for name in names if len(known) and known[f"{name}{suffix}"].all()), None)


def with_distance(rows: pd.DataFrame, suffix: str = "_mean") -> pd.DataFrame:
    """``rows`` with the main distance of each task: its name, ``metric``, and its value."""
    metric = pd.Series(None, index=rows.index, dtype=object)
    distance = pd.Series(np.nan, index=rows.index)
    for _, own in rows.groupby("task", sort=False):
        name = main_distance(own, suffix)
        if name is not None:
            metric[own.index] = name
            distance[own.index] = own[f"{name}{suffix}"]
    return rows.assign(metric=metric, distance=distance)


def shown_metrics(rows: pd.DataFrame) -> list[str]:
    """The task's headline metrics that a method or exact row has; distances of features first."""
    rows = _own(rows)
    main = main_distance(rows)
    images = main is not None and METRICS[main].features is not None
    headline = [name for name in METRICS if METRICS[name].shown(images) and f"{name}_mean" in rows]
    if images:  # what ranks stays first: it is such a distance too
        headline.sort(key=_not_a_distance_of_features)
    return [name for name in headline if rows[f"{name}_mean"].notna().any()]


def _not_a_distance_of_features(name: str) -> bool:
    return METRICS[name].features is None or METRICS[name].kind != "distance"


def best(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most ``most`` rows of a task: all as they are, or the best by :func:`main_distance`.

    The best of each method, then the second of each, and so on: a method with a thousand settings
    must not hide another with one. The chosen rows are sorted by the distance.
    """
    if len(rows) <= most:
        return rows
    distance = main_distance(rows)
    nothing = pd.Series(np.nan, index=rows.index)
    loss = METRICS[distance].loss(rows[f"{distance}_mean"]) if distance else nothing
    return rows.loc[in_turn(loss, rows["method"], most)]


def in_turn(score: "pd.Series[float]", method: "pd.Series[str]", most: int) -> "pd.Index[Any]":
    """Where the smallest scores are, of each method in turn, sorted by score; none comes last."""
    turn = score.groupby(method.to_numpy()).rank(method="first", na_option="bottom")
    order = pd.DataFrame({"turn": turn, "score": score})
    chosen = order.sort_values(["turn", "score"], kind="stable").head(most)
    return chosen.sort_values("score", kind="stable").index


def cut(rows: pd.DataFrame, most: int) -> str:
    """What :func:`best` leaves out, in words; empty if that is nothing."""
    if len(rows) <= most:
        return ""
    distance = main_distance(rows)
    by = f" by {METRICS[distance].label}" if distance else ""
    words = f"best {most} of {len(rows):,} settings{by}, of each method in turn"
    without = int((rows["count"] == 0).sum() - (best(rows, most)["count"] == 0).sum())
    return f"{words}; {without:,} of the others have no result" if without else words
