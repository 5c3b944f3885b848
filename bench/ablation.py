"""Ablations: for every setting with more than one value, a table over that axis."""

import pandas as pd

from bench.leaderboard import aggregate, varying, with_setting


def axes(results: pd.DataFrame) -> list[str]:
    """The settings that have more than one value for some method on some task."""
    return list(dict.fromkeys(name for names in varying(results).values() for name in names))


def ablation(results: pd.DataFrame, axis: str) -> pd.DataFrame:
    """One row a task, method, value of the axis and value of the other settings.

    Methods that lack the axis stand there once, with an empty value: they are the reference.
    Methods that have it with one value only, on every task, stand there with that value.
    """
    table = aggregate(with_setting(results, without=axis), ["task", "method", "setting", axis])
    return table.sort_values(
        ["task", "method", "setting", axis], kind="stable", na_position="first", ignore_index=True
    )
