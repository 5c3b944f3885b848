"""All records of a folder as one table, ``results.csv``: one row a cell."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from bench.metrics import METRICS
from bench.store.records import MEMORY, REFERENCES, Record
from methods.base import DIAGNOSTIC
from methods.networks import IDLE

LEADING = ["task", "method", "seed", "L", "sigma"]
TRAILING = [
    *("status", "reason", "nfe", "train_seconds", "sample_seconds", "peak_memory_mb"),
    *("parameters", "steps", "batch", "device", "commit"),
]
# What images were seen through: the networks, and why there is no FID.
SEEN = ["classifier_hash", "classifier_accuracy", "fid_weights_hash", "fid_reason"]
SEEN += ["features_file", "features_hash"]
LAST = ["evaluated", "landed", *MEMORY, *SEEN, "id"]
NAMES = ["task", "method", "seed", "task_version", "setting", "count", "note"]
NAMES += ["role", "main_metric", "score"]


def metric_columns() -> list[str]:
    """The columns of every metric that is known by now: a plug-in may add one."""
    parts = ("", "_floor", "_low", "_high")
    return [f"{name}{part}" for name in METRICS for part in parts]


def reference_columns() -> list[str]:
    """The columns of every metric of the reference samples: ``<metric>_perfect``, and so on."""
    return [f"{name}_{reference}" for name in METRICS for reference in REFERENCES]


def fixed_columns() -> frozenset[str]:
    """Columns that are no settings: a setting of such a name has the column ``method_<name>``."""
    return frozenset([*NAMES, *TRAILING, *LAST, *metric_columns(), *reference_columns()])


def is_diagnostic(column: str) -> bool:
    """Whether a column holds what a method says about itself: no setting, and no metric."""
    return column.startswith(DIAGNOSTIC)


def row(record: Record) -> dict[str, Any]:
    """A record as one flat row of ``results.csv``.

    A metric of the record that is not registered has no column: without the plug-in that it is
    from, nothing says whether it is a metric, or how to read it.
    """
    cell = record.cell
    settings = {**cell.network, **cell.sample, **cell.train}
    if record.parameters == 0:  # nothing was trained
        settings |= dict.fromkeys([*cell.network, *cell.train])
    lacking = IDLE.get(str(record.architecture), ())
    settings |= dict.fromkeys([*lacking, *record.unused_network])
    settings |= {f"eval_{key}": value for key, value in cell.eval.items()}
    fixed = fixed_columns()
    found: dict[str, Any] = {
        name: getattr(cell, name) for name in ("task", "method", "seed", "task_version")
    }
    for owner, own in (("method", cell.hyperparameters), ("task", cell.task_parameters)):
        for name, value in own.items():
            taken = name in found or name in settings or name in fixed or is_diagnostic(name)
            found[f"{owner}_{name}" if taken else name] = value
    known = {f"{name}_{k}": v for k, own in record.references.items() for name, v in own.items()}
    metrics = {name: v for name, v in (record.metrics | known).items() if name in fixed}
    diagnostics = {name: value for name, value in record.diagnostics.items() if is_diagnostic(name)}
    rest = {key: getattr(record, key) for key in [*TRAILING, *LAST] if key not in settings}
    return {**found, **settings, **metrics, **diagnostics, **rest}


def results(records: Iterable[Record]) -> pd.DataFrame:
    """All records as a table: ``LEADING``, other settings, metrics, diagnostics, the rest.

    Reference samples have columns only where a record has values of them.
    """
    rows = [row(record) for record in records]
    used = list(dict.fromkeys(key for row in rows for key in row))
    known = [name for name in reference_columns() if name in used]
    rest = [*metric_columns(), *known, *filter(is_diagnostic, used), *TRAILING, *LAST]
    fixed = {*LEADING, *rest}
    settings = [key for key in used if key not in fixed]
    frame = pd.DataFrame(rows, columns=[*LEADING, *settings, *rest])
    order = ["task", "method", "L", "sigma", "seed"]
    return frame.sort_values(order, kind="stable", na_position="first", ignore_index=True)
