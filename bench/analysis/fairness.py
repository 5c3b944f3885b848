"""How alike the methods of a task were run: defaults, one budget, one network that evaluates.

Methods are compared with the hyperparameters of their papers, and trained alike. Whoever sets
others may, and is marked.
"""

from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.references import is_exact
from bench.analysis.words import few, settings_text, value_text
from bench.config.settings import SECTIONS, public_fields
from datasets import TASKS
from methods import METHODS
from methods.networks import NetworkSettings

MAX_VALUES, MAX_NAMES = 3, 8  # values of a setting, and methods, that a sentence names
BUDGET = ["steps", "batch", "accumulate", *public_fields(NetworkSettings)]
POINTS = "training points"
COUNTED = ["parameters", POINTS, "charges", "method_charges"]
# Not named where all have the default.
UNSAID = {**NetworkSettings(width=1, depth=1).model_dump(), "accumulate": 1}
ALIKE = 0.03  # numbers of weights that differ by less are equal, as those of matched widths
# Hashes of the networks that images are seen through, and what they evaluate.
NETWORKS = {"classifier_hash": "fd_classifier and all that the classifier says"}
NETWORKS |= {"fid_weights_hash": "FID and KID", "features_hash": "fd_custom"}
Values = dict[tuple[str, ...], list[str]]  # the values of a setting, the methods that have them


def fairness(rows: pd.DataFrame) -> str:
    """:func:`budget` and :func:`comparability` of the rows of ``results.csv`` of one task."""
    return " ".join(filter(None, (budget(rows), comparability(rows))))


def budget(rows: pd.DataFrame) -> str:
    """Whether the trained methods of a task have one budget, and what NFE all have, in words.

    The budget is training steps, batch and network, the number of its weights, the points it was
    trained on (steps x batch x accumulate), and the charges of a field, where a method has some;
    the learning rate and what else is tuned are no part of it, and stand in ``changed``. Only cells
    that are done count. A setting with several values is equal if every method was run with all of
    them.
    """
    done = rows[rows["status"] == "done"]
    trained = done[~is_exact(done)].copy()
    points = trained["steps"] * trained["batch"] * trained.get("accumulate", 1)
    trained = trained.assign(**{POINTS: points})
    weights = trained["parameters"].dropna()
    matched = len(weights) and 0 < weights.max() - weights.min() <= ALIKE * weights.min()
    names = [name for name in [*BUDGET, *COUNTED] if name in trained]
    names = [name for name in names if not (matched and name == "parameters")]
    names = [name for name in names if set(trained[name].dropna()) != {UNSAID.get(name)}]
    given = {name: values for name in names if (values := _values(trained, name))}
    equal = [f"{name}={_words(values)}" for name, values in given.items() if len(values) == 1]
    equal += [f"parameters={weights.min():,.0f} to {weights.max():,.0f}"] if matched else []
    other = [f"{name}={_words(values)}" for name, values in given.items() if len(values) > 1]
    parts = []
    if other:
        parts.append(f"The budget of the trained methods is not equal: {'; '.join(other)}.")
    if equal:
        start = "Equal are" if other else "The budget of the trained methods is equal:"
        parts.append(f"{start} {', '.join(equal)}.")
    if alike := shared(done):
        words = ", ".join(f"{name}={value_text(value)}" for name, value in alike.items())
        parts.append(f"Not the defaults, in all rows: {words}.")
    nfe = done.assign(nfe=done.groupby("method")["nfe"].transform("mean").round())
    if values := _values(nfe, "nfe"):
        parts.append(f"NFE: {_words(values)}.")
    return " ".join(parts)


def comparability(rows: pd.DataFrame) -> str:
    """What cannot be compared on a task as other networks evaluated it, or none did, in words."""
    done = rows[rows["status"] == "done"]
    parts = []
    for name, evaluated in NETWORKS.items():
        if name not in done or not (known := done[name].notna()).any():
            continue
        if (count := done[name].nunique()) > 1:
            parts.append(f"{evaluated} are not comparable: they are of {count} different networks.")
        if not known.all():
            reasons = few(sorted(set(done.loc[~known, "fid_reason"].dropna())), MAX_VALUES)
            because = f" ({reasons})" if reasons else ""
            parts.append(f"{(~known).sum()} of {len(done)} cells lack {evaluated}{because}.")
    if "fid_train" in done:
        with_it = done[done["fid_train"].notna()]
        if len(sizes := sorted(with_it["eval_fid_n"].unique())) > 1:
            numbers = few([f"{size:,.0f}" for size in sizes], MAX_VALUES, ", ")
            parts.append(f"fid_train is not comparable: it is of {numbers} samples.")
        if 0 < len(with_it) < len(done):
            parts.append(f"{len(done) - len(with_it)} of {len(done)} cells lack fid_train.")
    return " ".join(parts)


def _values(rows: pd.DataFrame, name: str) -> Values:
    """A method without a value does not have the setting, and is left out."""
    methods: Values = {}
    for method, values in rows.groupby("method")[name]:
        # Numbers by size, words behind them.
        known = sorted(values.dropna().unique(), key=lambda value: (isinstance(value, str), value))
        if known:
            counted = name in COUNTED
            texts = [
                f"{value:,.0f}" if counted and not isinstance(value, str) else value_text(value)
                for value in known
            ]
            methods.setdefault(tuple(texts), []).append(str(method))
    return methods


def _words(values: Values) -> str:
    """``0.001 (efm, fm), 0.005 (pfgm)``; without names if all methods have the same."""
    texts = [(few(given, MAX_VALUES, " / "), methods) for given, methods in values.items()]
    if len(texts) == 1:
        return texts[0][0]
    return ", ".join(f"{text} ({few(methods, MAX_NAMES, ', ')})" for text, methods in texts)


def common_defaults() -> dict[str, Any]:
    """The defaults of training, network, solver and evaluation, by the name of their column."""
    return {
        f"eval_{name}" if section == "eval" else name: value
        for section, settings in SECTIONS.items()
        for name, value in settings().model_dump(mode="json", by_alias=True).items()
    }


def own_defaults(method: str, task: str) -> dict[str, Any]:
    """The hyperparameters of a method on a task if none is set; none of what is not registered."""
    if method not in METHODS or task not in TASKS:
        return {}
    kind = TASKS[task]
    made = METHODS[method].create(kind.dim, kind.noise_source, kind.data_set_source)
    return made.hyperparameters()


def differs(value: Any, default: Any) -> bool:
    """Whether a value is given and is not the default; in a CSV file ``True`` is a word."""
    return bool(pd.notna(value) and value != default and str(value) != str(default))


def shared(rows: pd.DataFrame) -> dict[str, Any]:
    """The common settings that all rows of a task have, if they are not the defaults.

    A missing value (nothing was trained) does not count.
    """
    found = {}
    for name, default in common_defaults().items():
        values = list(rows[name].dropna().unique()) if name in rows else []
        if len(values) == 1 and differs(values[0], default):
            found[name] = values[0]
    return found


def changed(rows: pd.DataFrame) -> list[str]:
    """For each row its settings that are not the defaults, in words: ``L=6, lr=0.001``.

    What :func:`shared` finds in all rows of a task is no departure of one, and not named. A value
    that is missing is no setting: another one has switched it off, or nothing was trained.
    """
    words = np.full(len(rows), "", dtype=object)
    alike = {task: shared(own) for task, own in rows.groupby("task")}
    groups: dict[Any, Any] = rows.groupby(["method", "task"]).indices
    for (method, task), places in groups.items():
        own = rows.iloc[places]
        defaults = own_defaults(method, task) | common_defaults()
        names = [name for name in defaults if name in own and name not in alike[task]]
        other = own[names].astype(object)
        for name in names:
            departs = [differs(value, defaults[name]) for value in own[name]]
            other[name] = other[name].where(departs)
        if names:
            words[places] = settings_text(other)
    return list(words)
