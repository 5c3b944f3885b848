"""The leaderboard: one row a task, method and setting, from the rows of ``results.csv``."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bench.defaults import changed
from bench.metrics import METRICS
from bench.records import LAST, MEMORY, METRIC_COLUMNS, TRAILING, is_diagnostic

CONFIDENCE = 0.95
COSTS = [
    *("landed", *MEMORY, "nfe"),
    *("train_seconds", "sample_seconds", "peak_memory_mb", "parameters"),
]
BUDGET = ["steps", "batch"]
GROUP = ["task", "method", "setting"]
IMAGES = ("fid", "fd_classifier")
"""Main distances of images."""
MAIN = (*IMAGES, "w2", "sliced_w2")
"""The distance that a task is judged by: of features where there are any, else W2 where it means
something, else its sliced form."""
HEADLINE = [
    *("w2", "sliced_w2", "frechet", "c2st", "coverage", "mode_error"),
    *("transport_cost", "radial_transport_cost", "coupling_ratio", "straightness"),
    *("excess_cost", "excess_flow_cost"),
]
"""Metrics of the tables for reading; ``leaderboard.csv`` has all."""
IMAGE_HEADLINE = [
    *("fid", "fid_train", "fd_classifier", "label_success", "confident", "classifier_coverage"),
    *("sliced_w2", "transport_cost", "radial_transport_cost", "colour_shift_ratio", "straightness"),
]
"""Those of tasks that are judged by a distance of images."""
NAMED = ["endpoints"]
"""Settings that say what a row is: every table names them, whether they vary or not."""
EQUAL = ["lr", *BUDGET]
"""Settings that methods have in common: where these differ between rows, every table names them."""
SPLIT = "eval_split"
"""On which samples a row was judged; ``test`` goes without saying."""

MAX_ROWS = 40
"""Rows a task that the terminal shows."""

MAX_WORDS, MAX_LENGTH = 3, 300
"""Different reasons that stand in a note, and their length; ``results.csv`` has them whole."""


def setting_columns(results: pd.DataFrame) -> list[str]:
    """The columns of ``results`` that are settings: what may differ between cells of a method."""
    fixed = {"task", "method", "seed", *METRIC_COLUMNS, *TRAILING, *LAST} - set(BUDGET)
    return [str(name) for name in results if name not in fixed and not is_diagnostic(str(name))]


def varying(results: pd.DataFrame) -> dict[tuple[str, str], list[str]]:
    """The settings with more than one value, for each task and method; none is no value."""
    columns = setting_columns(results)
    several = results.groupby(["task", "method"])[columns].nunique() > 1
    return {
        (str(task), str(method)): [column for column in columns if row[column]]
        for (task, method), row in zip(several.index, several.to_dict("records"), strict=True)
    }


def with_setting(results: pd.DataFrame, without: str | None = None) -> pd.DataFrame:
    """``results`` with a column ``setting``: the settings that vary, and those named, as words.

    Named are ``NAMED``, those of ``EQUAL`` that are not equal on the task, and ``SPLIT``.

    Args:
        results: the rows of ``results.csv``.
        without: a setting to leave out, because it has a column of its own.
    """
    setting = np.full(len(results), "", dtype=object)
    places: dict[Any, Any] = dict(results.groupby(["task", "method"]).indices)
    budget = [name for name in EQUAL if name in results]
    several = results.groupby("task")[budget].nunique() > 1
    unequal = {task: [name for name in budget if row[name]] for task, row in several.iterrows()}
    for key, names in varying(results).items():
        named = [name for name in (*NAMED, *unequal[key[0]], SPLIT) if name in results]
        shown = [name for name in dict.fromkeys([*names, *named]) if name != without]
        if shown:
            setting[places[key]] = words_of(results.iloc[places[key]][shown])
    column = pd.Series(setting, index=results.index, dtype=object, name="setting")
    return pd.concat([results, column], axis=1)


def words_of(settings: pd.DataFrame) -> list[str]:
    """``L=6, sigma=0.1`` of each row; a value that is missing is left out."""
    columns = [
        [f"{name}={_short(value)}" if _said(name, value) else "" for value in column]
        for name, column in settings.items()
    ]
    return [", ".join(filter(None, words)) for words in zip(*columns, strict=True)]


def _said(name: Hashable, value: Any) -> bool:
    return bool(pd.notna(value)) and (name, value) != (SPLIT, "test")


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))
    return str(value)


def aggregate(results: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Over the seeds of each group: count, and of each metric mean, standard deviation, interval.

    The interval is Student's t at ``CONFIDENCE``, empty for a single seed; with two seeds it is
    wide because two numbers say little. ``tried`` counts the cells that were not skipped. Rows that
    are not done count as zero, and their reasons stand in ``note``. Groups are in the order of
    their first rows.
    """
    group = results.groupby(keys, dropna=False, sort=False).ngroup().to_numpy()
    first = ~pd.Series(group).duplicated().to_numpy()
    size = int(first.sum())
    done = (results["status"] == "done").to_numpy()
    means = [*(str(name) for name in results if is_diagnostic(str(name))), *COSTS]
    measured = [column for name in METRICS for column in (name, f"{name}_floor")]
    values = results.loc[done, [*measured, *means]].astype(float).groupby(group[done])
    mean, deviation, count = (
        frame.reindex(range(size)) for frame in (values.mean(), values.std(), values.count())
    )
    skipped = (results["status"] == "skipped").to_numpy()
    columns: dict[str, Any] = {
        "count": np.bincount(group[done], minlength=size),
        "tried": np.bincount(group[~skipped], minlength=size),
    }
    for name in METRICS:
        columns |= _summary(name, mean, deviation[name], count[name])
    columns |= {name: mean[name] for name in means}
    budget = [column for column in BUDGET if column not in keys]
    columns |= {column: results.loc[first, column].to_numpy() for column in budget}
    columns["note"] = _notes(results[~done], group[~done], size)
    names = results.loc[first, keys].reset_index(drop=True)
    return pd.concat([names, pd.DataFrame(columns)], axis=1)


def _summary(
    name: str, mean: pd.DataFrame, deviation: "pd.Series[float]", count: "pd.Series[float]"
) -> dict[str, "pd.Series[float]"]:
    count = count.where(count > 1)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * deviation / count**0.5
    return {
        f"{name}_mean": mean[name],
        f"{name}_std": deviation,
        f"{name}_ci_low": mean[name] - half,
        f"{name}_ci_high": mean[name] + half,
        f"{name}_floor": mean[f"{name}_floor"],
    }


def _notes(others: pd.DataFrame, group: NDArray[np.integer[Any]], size: int) -> list[str]:
    """The reasons of the rows that are not done, of each group."""
    reasons: list[list[str]] = [[] for _ in range(size)]
    for number, status, reason in zip(group, others["status"], others["reason"], strict=True):
        reasons[number].append(f"{status}: {'' if pd.isna(reason) else reason}")
    return [few(words) for words in reasons]


def few(words: Iterable[str], most: int = MAX_WORDS, between: str = "; ") -> str:
    """The first of these, each once and on one line, and how many more there are."""
    distinct = list(dict.fromkeys(words))
    shown = [_one_line(text) for text in distinct[:most]]
    more = [f"and {len(distinct) - most:,} more"] if len(distinct) > most else []
    return between.join(shown + more)


def _one_line(text: str) -> str:
    """Text for a terminal or a table: no control characters, of bounded length."""
    text = "".join(c if c.isprintable() else " " for c in text[: 2 * MAX_LENGTH])
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 1]}…"


def leaderboard(results: pd.DataFrame) -> pd.DataFrame:
    """One row a task and method (and setting, where a method has several), with ranks.

    ``<metric>_rank`` orders the means of a task, 1 the best: the smallest, the largest, or the
    nearest to the ideal, as the metric says. Who lacks a seed has none: those that diverged would
    have made the mean worse. ``changed`` has the settings that are not the
    defaults.
    """
    rows = with_setting(results)
    board = aggregate(rows, GROUP)
    complete = board["count"] == board["tried"]
    ranks = {
        f"{name}_rank": metric.loss(board[f"{name}_mean"].where(complete))
        .groupby(board["task"])
        .rank(method="min")
        for name, metric in METRICS.items()
    }
    columns = list(board.columns)
    for name in METRICS:
        columns.insert(columns.index(f"{name}_floor") + 1, f"{name}_rank")
    board = pd.concat([board, pd.DataFrame(ranks).astype("Int64")], axis=1)[columns]
    return board.assign(changed=changed(rows.drop_duplicates(GROUP)))


def main_distance(rows: pd.DataFrame) -> str | None:
    """The first of ``MAIN`` that all rows of a task have which have any: what they are judged by.

    Not all have the FID if some were evaluated without its weights.
    """
    means = rows[[f"{name}_mean" for name in MAIN if f"{name}_mean" in rows]]
    judged = means[means.notna().any(axis=1)]
    known = [str(name) for name in means if len(judged) and judged[name].notna().all()]
    return known[0].removesuffix("_mean") if known else None


def best(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most ``most`` rows of a task: all as they are, or the best by :func:`main_distance`.

    The best of each method, then the second of each, and so on: a method with a thousand settings
    must not hide another with one. The chosen rows are sorted by the distance.
    """
    if len(rows) <= most:
        return rows
    distance = main_distance(rows)
    score = rows[f"{distance}_mean"] if distance else pd.Series(np.nan, index=rows.index)
    return rows.loc[in_turn(score, rows["method"], most)]


def in_turn(score: "pd.Series[float]", method: "pd.Series[str]", most: int) -> "pd.Index[Any]":
    """Where the smallest scores are, of each method in turn, sorted by score; none comes last."""
    turn = score.groupby(method.to_numpy()).rank(method="first", na_option="bottom")
    order = pd.DataFrame({"turn": turn, "score": score}).sort_values(
        ["turn", "score"], kind="stable"
    )
    return order.head(most).sort_values("score", kind="stable").index


def cut(rows: pd.DataFrame, most: int) -> str:
    """What :func:`best` leaves out, in words; empty if that is nothing."""
    if len(rows) <= most:
        return ""
    distance = main_distance(rows)
    by = f" by {METRICS[distance].label}" if distance else ""
    words = f"best {most} of {len(rows):,} settings{by}, of each method in turn"
    without = int((rows["count"] == 0).sum() - (best(rows, most)["count"] == 0).sum())
    return f"{words}; {without:,} of the others have no result" if without else words


def table(
    board: pd.DataFrame, most: int = MAX_ROWS, remarks: Mapping[str, str] | None = None
) -> str:
    """The leaderboard for a terminal: mean, standard deviation over seeds and floor.

    At most ``most`` rows a task, the best; what is cut is said. ``remarks`` are lines that stand
    below the table of a task.
    """
    return "\n\n".join(
        "\n  ".join(
            [f"{task}\n{_block(rows, most)}", *(remarks or {}).get(str(task), "").splitlines()]
        )
        for task, rows in board.groupby("task", sort=False)
    )


def _block(every: pd.DataFrame, most: int) -> str:
    """The table of one task."""
    rows = best(every, most)
    lines = pd.DataFrame({"method": rows["method"]})
    if (rows["setting"] != "").any():
        lines["setting"] = rows["setting"]
    lines["seeds"] = rows["count"].astype(str)
    last = {"method": "(floor)"}
    for name in shown_metrics(every):
        label = METRICS[name].label
        pairs = zip(rows[f"{name}_mean"], rows[f"{name}_std"], strict=True)
        lines[label] = [format_value(mean, std) for mean, std in pairs]
        last[label] = format_value(every[f"{name}_floor"].mean(), None)
    lines["landed"] = [format_share(share) for share in rows["landed"]]
    lines["nfe"] = [format_number(nfe, 0) for nfe in rows["nfe"]]
    lines["train s"] = [format_number(seconds, 1) for seconds in rows["train_seconds"]]
    text = pd.concat([lines, pd.DataFrame([last])]).fillna("").to_string(index=False)
    if words := cut(every, most):
        text += f"\n  ({words}; all are in leaderboard.csv)"
    notes = rows.loc[rows["note"] != "", ["method", "setting", "note"]]
    return text + "".join(
        f"\n  {' '.join(filter(None, (method, setting)))}: {note}"
        for method, setting, note in notes.itertuples(index=False)
    )


def shown_metrics(rows: pd.DataFrame) -> list[str]:
    """The metrics of the task's headline that have a value in these rows."""
    headline = IMAGE_HEADLINE if main_distance(rows) in IMAGES else HEADLINE
    return [name for name in headline if rows[f"{name}_mean"].notna().any()]


def format_value(mean: float, std: float | None) -> str:
    """``0.214 ±0.012``; empty for a value that does not apply."""
    if pd.isna(mean):
        return ""
    return f"{mean:.3f}" if std is None or pd.isna(std) else f"{mean:.3f} ±{std:.3f}"


def format_share(share: float) -> str:
    """``99.7%``; empty for a value that does not apply."""
    return f"{share:.1%}" if pd.notna(share) else ""


def format_number(value: float, digits: int) -> str:
    """``12.3``; empty for a value that does not apply."""
    return f"{value:.{digits}f}" if pd.notna(value) else ""
