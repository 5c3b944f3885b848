"""Whether the methods of a task had one budget, and were judged by one network."""

from typing import Any

import pandas as pd

from bench.defaults import as_text, section_defaults, shared
from bench.leaderboard import few

MAX_VALUES, MAX_NAMES = 3, 8
"""Values of a setting, and methods, that a sentence names."""

BUDGET = ["steps", "batch", "accumulate", *section_defaults("network")]
UNSAID = {"accumulate": 1, "architecture": "auto"}
"""Settings that are not named where all have this value."""

JUDGES = {
    "classifier_hash": "fd_classifier and all that the classifier says",
    "fid_weights_hash": "FID and KID",
}
"""Hashes of the networks that images are seen through, and what they judge."""

Values = dict[tuple[str, ...], list[str]]
"""The values of a setting, and the methods that have them."""


def budget(rows: pd.DataFrame) -> str:
    """Whether the trained methods of a task have one budget, and what NFE all have, in words.

    The budget is training steps, batch and network; the learning rate and what else is tuned are no
    part of it, and stand in ``changed``. Only cells that are done count. A
    setting with several values is equal if every method was run with all of them.

    Args:
        rows: of ``results.csv``, of one task.
    """
    done = rows[rows["status"] == "done"]
    names = [name for name in BUDGET if name in done]
    names = [name for name in names if set(done[name].dropna()) != {UNSAID.get(name)}]
    given = {name: values for name in names if (values := _values(done, name))}
    equal = [f"{name}={_words(values)}" for name, values in given.items() if len(values) == 1]
    other = [f"{name}={_words(values)}" for name, values in given.items() if len(values) > 1]
    parts = []
    if other:
        parts.append(f"The budget of the trained methods is not equal: {'; '.join(other)}.")
    if equal:
        start = "Equal are" if other else "The budget of the trained methods is equal:"
        parts.append(f"{start} {', '.join(equal)}.")
    if alike := shared(done):
        words = ", ".join(f"{name}={as_text(value)}" for name, value in alike.items())
        parts.append(f"Not the defaults, in all rows: {words}.")
    nfe = done.assign(nfe=done.groupby("method")["nfe"].transform("mean").round())
    if values := _values(nfe, "nfe"):
        parts.append(f"NFE: {_words(values)}.")
    return " ".join(parts)


def judges(rows: pd.DataFrame) -> str:
    """What cannot be compared because other networks judged it, or none did, in words.

    Args:
        rows: of ``results.csv``, of one task.
    """
    done = rows[rows["status"] == "done"]
    parts = []
    for name, judged in JUDGES.items():
        if name not in done or not (known := done[name].notna()).any():
            continue
        count = done[name].nunique()
        if count > 1:
            parts.append(f"{judged} are not comparable: they are of {count} different networks.")
        if not known.all():
            missing = done[~known]
            reasons = few(sorted(set(missing["fid_reason"].dropna())), MAX_VALUES, "; ")
            because = f" ({reasons})" if reasons else ""
            parts.append(f"{len(missing)} of {len(done)} cells lack {judged}{because}.")
    with_it = done[done["fid_train"].notna()] if "fid_train" in done else done[:0]
    sizes = sorted(with_it["eval_fid_n"].unique()) if len(with_it) else []
    if len(sizes) > 1:
        numbers = few([f"{size:,.0f}" for size in sizes], MAX_VALUES, ", ")
        parts.append(f"fid_train is not comparable: it is of {numbers} samples.")
    if 0 < len(with_it) < len(done):
        parts.append(f"{len(done) - len(with_it)} of {len(done)} cells lack fid_train.")
    return " ".join(parts)


def fairness(rows: pd.DataFrame) -> str:
    """:func:`budget` and :func:`judges` of the rows of a task."""
    return " ".join(filter(None, (budget(rows), judges(rows))))


def _values(rows: pd.DataFrame, name: str) -> Values:
    """A method without a value has nothing to train, and is left out."""
    methods: Values = {}
    for method, values in rows.groupby("method")[name]:
        known = sorted(values.dropna().unique(), key=_order)
        if known:
            methods.setdefault(tuple(map(as_text, known)), []).append(str(method))
    return methods


def _order(value: Any) -> tuple[bool, Any]:
    """Numbers by size, words behind them."""
    return (True, value) if isinstance(value, str) else (False, value)


def _words(values: Values) -> str:
    """``0.001 (efm, fm), 0.005 (pfgm)``; without names if all methods have the same."""
    texts = [(few(given, MAX_VALUES, " / "), methods) for given, methods in values.items()]
    if len(texts) == 1:
        return texts[0][0]
    return ", ".join(f"{text} ({few(methods, MAX_NAMES, ', ')})" for text, methods in texts)
