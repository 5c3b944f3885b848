"""What a row sets other than the defaults.

Methods are compared with the hyperparameters of their papers, and trained alike. Whoever sets
others may, and is marked.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.spec import SECTIONS
from datasets import TASKS
from methods import METHODS

PREFIX = {"eval": "eval_"}
"""What the names of a section's columns begin with, other than nothing."""


def section_defaults(section: str) -> dict[str, Any]:
    """The defaults of a section, by the name of their column."""
    fields = SECTIONS[section]().model_dump(mode="json", by_alias=True)
    return {PREFIX.get(section, "") + name: value for name, value in fields.items()}


def defaults(method: str, task: str) -> dict[str, Any]:
    """What the columns of a method's rows on a task hold if nothing is set.

    The hyperparameters of a method that is not registered are not known, nor those of any method
    on a task that is not: they are left out.
    """
    known: dict[str, Any] = {}
    if method in METHODS and task in TASKS:
        kind = TASKS[task]
        known |= METHODS[method].create(kind.dim, kind.noise_source).hyperparameters()
    for section in SECTIONS:
        known |= section_defaults(section)
    return known


def shared(rows: pd.DataFrame) -> dict[str, Any]:
    """The settings of training, network, solver and evaluation that all rows have, if other ones
    than the defaults.

    Args:
        rows: of ``results.csv``, of one task. A missing value (nothing was trained) does not count.
    """
    found = {}
    for section in SECTIONS:
        for name, default in section_defaults(section).items():
            values = list(rows[name].dropna().unique()) if name in rows else []
            if len(values) == 1 and str(values[0]) != str(default) and values[0] != default:
                found[name] = values[0]
    return found


def changed(rows: pd.DataFrame) -> list[str]:
    """For each row its settings that are not the defaults, in words: ``L=6, lr=0.001``.

    What :func:`shared` finds in all rows of a task is no departure of one, and not named.

    Args:
        rows: of ``results.csv``. A value that is missing is no setting: another one has switched
            it off, or nothing was trained.
    """
    words = np.full(len(rows), "", dtype=object)
    columns = {str(name): values.to_numpy(object) for name, values in rows.items()}
    groups: dict[Any, Any] = rows.groupby(["method", "task"]).indices
    alike = {task: shared(own) for task, own in rows.groupby("task")}
    for (method, task), places in groups.items():
        known = defaults(str(method), str(task))
        known = {name: value for name, value in known.items() if name not in alike[task]}
        found = [
            _differing(name, columns[name][places], default)
            for name, default in known.items()
            if name in columns
        ]
        differing = [column for column in found if any(column)]
        if differing:
            words[places] = [", ".join(filter(None, row)) for row in zip(*differing, strict=True)]
    return list(words)


def _differing(name: str, values: NDArray[np.object_], default: Any) -> list[str]:
    """``name=value`` where the value is not the default, else nothing; empty if there is none."""
    other = pd.notna(values) & (values != default)
    if not other.any():
        return []
    return [
        f"{name}={as_text(value)}" if differs and str(value) != str(default) else ""
        for value, differs in zip(values, other, strict=True)
    ]


def as_text(value: Any) -> str:
    """A value of a setting in words: 0.001 and not 1e-3, 6 and not 6.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)
