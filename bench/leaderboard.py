"""The leaderboard: one row a task, method and setting, from the rows of ``results.csv``."""

import pandas as pd
from scipy import stats

from bench.metrics import METRICS
from bench.records import LAST, METRIC_COLUMNS, TRAILING

CONFIDENCE = 0.95
COSTS = ["landed", "nfe", "train_seconds", "sample_seconds", "peak_memory_mb", "parameters"]
BUDGET = ["steps", "batch"]
GROUP = ["task", "method", "setting"]


def setting_columns(results: pd.DataFrame) -> list[str]:
    """The columns of ``results`` that are settings: what may differ between cells of a method."""
    fixed = {"task", "method", "seed", *METRIC_COLUMNS, *TRAILING, *LAST} - set(BUDGET)
    return [str(column) for column in results if column not in fixed]


def varying(results: pd.DataFrame) -> dict[tuple[str, str], list[str]]:
    """The settings with more than one value, for each task and method; none is no value."""
    columns = setting_columns(results)
    return {
        (str(task), str(method)): [column for column in columns if group[column].nunique() > 1]
        for (task, method), group in results.groupby(["task", "method"])
    }


def with_setting(results: pd.DataFrame, without: str | None = None) -> pd.DataFrame:
    """``results`` with a column ``setting``: the settings that vary, as words.

    Args:
        results: the rows of ``results.csv``.
        without: a setting to leave out, because it has a column of its own.
    """
    names = varying(results)

    def words(row: pd.Series) -> str:
        keys = [key for key in names[row["task"], row["method"]] if key != without]
        return ", ".join(f"{key}={_short(row[key])}" for key in keys if pd.notna(row[key]))

    setting = [words(row) for _, row in results.iterrows()]
    return results.assign(setting=pd.Series(setting, index=results.index, dtype=object))


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))
    return str(value)


def aggregate(results: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Over the seeds of each group: count, and of each metric mean, standard deviation, interval.

    The interval is Student's t at ``CONFIDENCE``, empty for a single seed; with two seeds it is
    wide because two numbers say little. Rows that are not done count as zero, and their reason
    stands in ``note``.
    """
    rows = []
    for key, group in results.groupby(keys, dropna=False, sort=False):
        done = group[group["status"] == "done"]
        row = dict(zip(keys, key, strict=True)) | {"count": len(done)}
        for name in METRICS:
            row |= _summary(name, done)
        row |= {cost: done[cost].mean() for cost in COSTS}
        row |= {column: group[column].iloc[0] for column in BUDGET}
        others = group[group["status"] != "done"]
        notes = others["status"] + ": " + others["reason"].fillna("")
        row["note"] = "; ".join(dict.fromkeys(notes))
        rows.append(row)
    return pd.DataFrame(rows)


def _summary(name: str, done: pd.DataFrame) -> dict[str, float]:
    values = done[name].dropna().astype(float)
    mean, deviation = values.mean(), values.std()
    half = float("nan")
    if len(values) > 1:
        half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * deviation / len(values) ** 0.5
    return {
        f"{name}_mean": mean,
        f"{name}_std": deviation,
        f"{name}_ci_low": mean - half,
        f"{name}_ci_high": mean + half,
        f"{name}_floor": done[f"{name}_floor"].astype(float).mean(),
    }


def leaderboard(results: pd.DataFrame) -> pd.DataFrame:
    """One row a task and method (and setting, where a method has several), with ranks.

    ``<metric>_rank`` orders the means of a task, 1 the smallest.
    """
    board = aggregate(with_setting(results), GROUP)
    columns = list(board.columns)
    for name in METRICS:
        rank = board.groupby("task")[f"{name}_mean"].rank(method="min")
        board[f"{name}_rank"] = rank.astype("Int64")
        columns.insert(columns.index(f"{name}_floor") + 1, f"{name}_rank")
    return board[columns]


def table(board: pd.DataFrame) -> str:
    """The leaderboard for a terminal: mean, standard deviation over seeds and floor."""
    blocks = []
    for task, rows in board.groupby("task", sort=False):
        shown = [name for name in METRICS if rows[f"{name}_mean"].notna().any()]
        lines = pd.DataFrame({"method": rows["method"]})
        if (rows["setting"] != "").any():
            lines["setting"] = rows["setting"]
        lines["seeds"] = rows["count"].astype(str)
        for name in shown:
            lines[METRICS[name].label] = [
                format_value(mean, std)
                for mean, std in zip(rows[f"{name}_mean"], rows[f"{name}_std"], strict=True)
            ]
        lines["landed"] = [format_share(share) for share in rows["landed"]]
        lines["nfe"] = [f"{nfe:.0f}" if pd.notna(nfe) else "" for nfe in rows["nfe"]]
        lines["train s"] = [f"{s:.1f}" if pd.notna(s) else "" for s in rows["train_seconds"]]
        floor = {name: rows[f"{name}_floor"].mean() for name in shown}
        last = {METRICS[name].label: format_value(value, None) for name, value in floor.items()}
        lines = pd.concat([lines, pd.DataFrame([{"method": "(floor)", **last}])])
        blocks.append(f"{task}\n{lines.fillna('').to_string(index=False)}")
        notes = rows.loc[rows["note"] != "", ["method", "setting", "note"]]
        blocks[-1] += "".join(
            f"\n  {' '.join(filter(None, (method, setting)))}: {note}"
            for method, setting, note in notes.itertuples(index=False)
        )
    return "\n\n".join(blocks)


def format_value(mean: float, std: float | None) -> str:
    """``0.214 ±0.012``; empty for a value that does not apply."""
    if pd.isna(mean):
        return ""
    return f"{mean:.3f}" if std is None or pd.isna(std) else f"{mean:.3f} ±{std:.3f}"


def format_share(share: float) -> str:
    """``99.7%``; empty for a value that does not apply."""
    return f"{share:.1%}" if pd.notna(share) else ""
