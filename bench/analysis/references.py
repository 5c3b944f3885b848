"""What results are held against: exact rows, known maps and baselines, and the score between them.

None of these competes: they have no rank, are in no test, and are never the best.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bench.analysis.results import reference_columns
from bench.analysis.words import SPLIT, settings_text
from bench.config.settings import public_fields
from bench.metrics import METRICS
from bench.store.records import REFERENCES
from datasets import TASKS
from methods import METHODS

METHOD, EXACT, BASELINE = "method", "exact", "baseline"
"""Roles of a row: what is trained, a closed form that is not, a reference set of samples."""
REFERENCE = "reference"
"""``EXACT`` and ``BASELINE`` in one word."""
TWICE, CHEAPEST = "target vs target", "optimal cost"
DRAWN = ("eval_n", "eval_draws", "eval_split")  # what the evaluation says about the data drawn
KEYS = ["task", "setting", "seed"]


def _sources() -> dict[str, dict[str, str]]:
    """For each baseline the columns of its values, and the metrics these are."""
    floors = {
        name: {f"{m.name}_floor": m.name for m in METRICS.values() if m.floor_kind == kind}
        for name, kind in ((TWICE, "measured"), (CHEAPEST, "cost"))
    }
    known = {name: {f"{metric}_{name}": metric for metric in METRICS} for name in REFERENCES}
    return {"perfect": known.pop("perfect"), **floors, **known}


def is_exact(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Whether the method of each row is a closed form; one not registered, if it has no weights."""
    untrained = [name for name, kind in METHODS.items() if not kind.trained]
    unknown = ~rows["method"].isin(list(METHODS)) & (rows["parameters"] == 0)
    return rows["method"].isin(untrained) | unknown


def data_words(results: pd.DataFrame) -> "pd.Series[str]":
    """For each row what its data have of their own, in words: ``std=0.1``.

    Cells of one task and seed share data if the task's version and parameters and ``DRAWN``
    agree. Empty where they agree in all cells of the task. Of tasks that are not
    registered the parameters are not known; they count as settings of the methods.
    """
    words = pd.Series("", index=results.index, dtype=object)
    for task, rows in results.groupby("task", sort=False):
        columns = rows[[name for name in ["task_version", *DRAWN] if name in rows]].copy()
        for name in public_fields(TASKS[str(task)]) if task in TASKS else []:
            own = rows.get(name, pd.Series(np.nan, index=rows.index))
            prefixed = rows.get(f"task_{name}")  # where the method has a hyperparameter so named
            columns[name] = own if prefixed is None else prefixed.where(prefixed.notna(), own)
        differing = columns.loc[:, columns.nunique() > 1]
        if differing.shape[1]:
            words.loc[rows.index] = np.array(settings_text(differing), dtype=object)
    return words


def baselines(results: pd.DataFrame) -> pd.DataFrame:
    """The reference samples as if they were methods: a row a task, its data, seed and set.

    ``perfect``, ``linear``, ``identity`` and ``noise`` as in
    :data:`bench.store.records.REFERENCES`; ``target vs target`` is a second target set, and
    ``optimal cost`` what optimal transport to the held-out target costs. ``setting`` is
    :func:`data_words`, and on which samples all were evaluated if these are not the test's. All
    cells of a task, its data and seed were held against the same sets, so one that has the value
    speaks for all; a set without any value has no row.
    """
    split = settings_text(results[[SPLIT]]) if SPLIT in results else [""] * len(results)
    words = zip(data_words(results), split, strict=True)
    setting = [own if part in own else f"{own}, {part}".removeprefix(", ") for own, part in words]
    column = pd.Series(setting, index=results.index, dtype=object, name="setting")
    rows = pd.concat([results, column], axis=1)
    sources = _sources()
    known = [*reference_columns(), *(f"{name}_floor" for name in METRICS)]
    rows = rows.loc[rows["status"] == "done", [*KEYS, *(name for name in known if name in rows)]]
    first = rows.groupby(KEYS, sort=False).first()
    found = []
    for name, columns in sources.items():
        own = first[[column for column in columns if column in first]].rename(columns=columns)
        both = pd.concat([own, first], axis=1)[own.notna().any(axis=1)]
        found.append(both.assign(method=name, status="done").reset_index())
    every = pd.concat(found, ignore_index=True)
    return every.reindex(columns=[*every, *({"reason", "steps", "batch"} - set(every))])


def score(rows: pd.DataFrame, main: Mapping[str, str | None]) -> "pd.Series[float]":
    r"""How far a row is from perfect on the way to noise, in its main metric d; no unit.

    .. math:: (d - d_{perfect}) / (d_{noise} - d_{perfect})

    A perfect map has 0, draws of N(0, I) have 1, below 0 is better than perfect, which is chance,
    or copying. Where no exact map is known, a second target set stands for ``perfect``. A metric
    that is best at an ideal (``nearest``) counts by its distance |d - ideal|, also in ``perfect``
    and ``noise``. NaN where one of the three is not known, or noise is not worse than perfect.

    Args:
        rows: of ``results.csv``, or of :func:`baselines`.
        main: the main metric of each task.
    """
    found = pd.Series(np.nan, index=rows.index)
    nothing = pd.Series(np.nan, index=rows.index)
    for task, own in rows.groupby("task").groups.items():
        if (name := main.get(str(task))) is None:
            continue
        metric = METRICS[name]
        columns = (name, f"{name}_perfect", f"{name}_floor", f"{name}_noise")
        value, perfect, floor, noise = (
            rows.get(column, nothing).loc[own].astype(float) for column in columns
        )
        if metric.floor_kind == "measured":
            perfect = perfect.fillna(floor)
        worse = metric.loss(noise) > metric.loss(perfect)
        if metric.better == "nearest":
            value, perfect, noise = map(metric.loss, (value, perfect, noise))
        found[own] = (value - perfect) / (noise - perfect).where(worse)
    return found
