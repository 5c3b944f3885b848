"""Ablations: for every setting with more than one value, a table over that axis."""

import hashlib
import re

import pandas as pd

from bench.leaderboard import aggregate, varying, with_setting

MAX_NAME = 80


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
        ["task", "method", "setting", axis],
        kind="stable",
        na_position="first",
        ignore_index=True,
    )


def file_name(kind: str, name: str) -> str:
    """``<kind>_<name>``, a file name without suffix that stays in its folder.

    What is not plain becomes ``_``, and a hash of the name keeps two such names apart.
    """
    plain = re.sub(r"[^A-Za-z0-9_.+-]", "_", name)[:MAX_NAME]
    if plain != name:
        plain += "-" + hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{kind}_{plain}"
