"""The store: one record a cell, written atomically, the source of every table.

``cells/<id>/record.json`` is complete or absent. Everything else in an output folder can be
rebuilt from the records.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from bench.folder import RECORD, Record
from bench.metrics import METRICS
from methods.base import DIAGNOSTIC
from methods.networks import IDLE

FORMAT = 3
SETTLED = ("done", "skipped", "diverged")
"""Statuses that a second run does not repeat: the same cell would end the same way."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
"""What tasks, methods and settings may be called: file names are made of these."""

LEADING = ["task", "method", "seed", "L", "sigma"]
TRAILING = [
    "status",
    "reason",
    "nfe",
    "train_seconds",
    "sample_seconds",
    "peak_memory_mb",
    "parameters",
    "steps",
    "batch",
    "device",
    "commit",
]
MEMORY = ["nearest_train", "nearest_train_floor"]
"""Mean distance of the samples, and of held-out data, to the next training sample of a data set."""
SEEN = ["classifier_hash", "classifier_accuracy", "fid_weights_hash", "fid_reason"]
"""What images were seen through: the networks, and why there is no FID."""
LAST = ["evaluated", "landed", *MEMORY, *SEEN, "id"]
METRIC_COLUMNS = [
    column
    for name in METRICS
    for column in (name, *(f"{name}_{k}" for k in ("floor", "low", "high")))
]
TAKEN = {
    *("task", "method", "seed", "task_version", "setting", "count", "note"),
    *TRAILING,
    *LAST,
    *METRIC_COLUMNS,
}
"""Columns of the tables that no hyperparameter and no parameter of a task may be called."""


def is_diagnostic(column: str) -> bool:
    """Whether a column holds what a method says about itself: no setting, and no metric."""
    return column.startswith(DIAGNOSTIC)


class RecordError(ValueError):
    """A file that should be a record and is none, or not one of this version. One line."""


def read_record(path: Path) -> Record:
    """One record.

    Raises:
        RecordError: a file that is not a record of this version; it is left as it is.
    """
    remedy = "move it away, or give another --out"
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise RecordError(f"{path}: truncated, or not a record; {remedy}") from None
    found = record.get("format") if isinstance(record, dict) else None
    if type(found) is not int:
        raise RecordError(f"{path}: not a record; {remedy}")
    if found != FORMAT:
        age = "an older" if found < FORMAT else "a newer"
        raise RecordError(
            f"{path}: written by {age} version (format {found}, here {FORMAT}); give another --out"
        )
    if record.get("id") != path.parent.name:
        raise RecordError(f"{path}: belongs to the cell {record.get('id')!r}; {remedy}")
    problem = _problem(record)
    if problem is not None:
        raise RecordError(f"{path}: {problem}; {remedy}")
    return dict(record)


def _problem(record: Record) -> str | None:
    """What makes the contents unfit for the tables."""
    for key, kind in RECORD_KEYS.items():
        if not isinstance(record.get(key), kind):
            return f"{key!r} is missing or is not a {kind.__name__}"
    cell = record["cell"]
    missing = CELL_KEYS - set(cell)
    if missing:
        return f"its cell lacks {', '.join(sorted(missing))}"
    sections = [cell[section] for section in CELL_SECTIONS]
    if not all(isinstance(section, dict) for section in sections):
        return "its cell has a section that is not a table"
    settings = [item for section in sections for item in section.items()]
    for name in [cell["task"], cell["method"], *(name for name, _ in settings)]:
        if not isinstance(name, str) or not _is_plain(name):
            return f"{name!r} is not a plain name"
    for name, value in record.get("diagnostics", {}).items():
        if not is_diagnostic(name) or not isinstance(value, int | float):
            return f"its diagnostic {name!r} is none"
    for name in {*cell["hyperparameters"], *cell["task_parameters"]} & TAKEN:
        return f"its setting {name!r} has the name of a column"
    for name, value in settings:
        if is_diagnostic(name):
            return f"its setting {name!r} has the name of a diagnostic"
        if not isinstance(value, str | int | float | None):
            return f"its setting {name!r} is neither a number nor a word"
    for name, value in record["metrics"].items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"its metric {name!r} is not a number"
    for point in record.get("curve", []):
        if not isinstance(point, dict) or not all(
            isinstance(value, int | float) for value in point.values()
        ):
            return "a point of its curve is not made of numbers"
    if record["status"] == "done" and not {"w2", "sliced_w2"} & set(record["metrics"]):
        return "it is done and has no distance"
    if not isinstance(record.get("reason"), str | None):
        return "its reason is not text"
    if not set(record.get("exceeded", {})) <= {"timeout", "memory"}:
        return "it exceeded a limit that does not exist"
    return None


@cache
def _is_plain(name: str) -> bool:
    return NAME.fullmatch(name) is not None


RECORD_KEYS = {
    "cell": dict,
    "status": str,
    "metrics": dict,
    "started": float,
    "seconds": float,
    "threads": int,
    "device": str,
}
CELL_SECTIONS = ["hyperparameters", "task_parameters", "train", "network", "sample", "eval"]
CELL_KEYS = {"task", "method", "seed", "task_version", *CELL_SECTIONS}


def read_records(out: Path) -> Iterator[Record]:
    """Every record of an output folder, by id.

    Raises:
        RecordError: at the first file that is not a record of this version.
    """
    cells = out / "cells"
    names = sorted(entry.name for entry in os.scandir(cells)) if cells.is_dir() else []
    for name in names:
        path = cells / name / RECORD
        if path.exists():
            yield read_record(path)


def is_settled(record: Record, timeout: float | None, memory: float | None) -> bool:
    """Whether a cell need not run again under these limits.

    A cell that exceeded a limit runs again when the limit has grown or is gone; one that killed
    its worker again and again does not.
    """
    if record["status"] in SETTLED:
        return True
    limits = {"timeout": timeout, "memory": memory}
    exceeded: dict[str, float] = record.get("exceeded", {})
    for name, value in exceeded.items():
        now = limits[name]
        return now is not None and now <= value
    return bool(record["status"] == "killed")


def row(record: Record) -> dict[str, Any]:
    """A record as one flat row of ``results.csv``."""
    cell = record["cell"]
    settings = {**cell["network"], **cell["sample"], **cell["train"]}
    if record.get("parameters") == 0:  # nothing was trained
        settings |= dict.fromkeys([*cell["network"], *cell["train"]])
    settings |= dict.fromkeys(IDLE.get(str(record.get("architecture")), ()))
    evaluation = {f"eval_{key}": value for key, value in cell["eval"].items()}
    method = cell["hyperparameters"]
    task = {f"task_{k}" if k in method else k: v for k, v in cell["task_parameters"].items()}
    return {
        "task": cell["task"],
        "method": cell["method"],
        "seed": cell["seed"],
        "task_version": cell["task_version"],
        **method,
        **task,
        **settings,
        **evaluation,
        **record["metrics"],
        **record.get("diagnostics", {}),
        **{key: record.get(key) for key in [*TRAILING, *LAST] if key not in settings},
    }


def results(records: Iterable[Record]) -> pd.DataFrame:
    """All records as a table.

    ``LEADING``, other settings, metrics, diagnostics, ``TRAILING``, ``LAST``.
    """
    rows = [row(record) for record in records]
    used = list(dict.fromkeys(key for row in rows for key in row))
    fixed = [*LEADING, *METRIC_COLUMNS, *TRAILING, *LAST]
    diagnostics = [key for key in used if is_diagnostic(key)]
    settings = [key for key in used if key not in fixed and not is_diagnostic(key)]
    columns = [*LEADING, *settings, *METRIC_COLUMNS, *diagnostics, *TRAILING, *LAST]
    frame = pd.DataFrame(rows, columns=columns)
    order = [key for key in ("task", "method", "L", "sigma", "seed") if key in frame]
    return frame.sort_values(order, kind="stable", na_position="first", ignore_index=True)
