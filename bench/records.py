"""The store: one record a cell, written atomically, the source of every table.

``cells/<id>/record.json`` is complete or absent. Everything else in an output folder can be
rebuilt from the records.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from bench.metrics import METRICS

FORMAT = 1
FINISHED = ("done", "skipped", "diverged")
"""Statuses that a second run does not repeat: the same cell would end the same way."""

RECORD = "record.json"

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
LAST = ["evaluated", "landed", "id"]
METRIC_COLUMNS = [column for name in METRICS for column in (name, f"{name}_floor")]


def cell_folder(out: Path, cell_id: str) -> Path:
    """Where the record, samples and checkpoint of a cell are."""
    return out / "cells" / cell_id


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is, at any time, either the old one or the new one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def write_json(path: Path, content: Any) -> None:
    """JSON, written atomically."""
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_record(path: Path) -> dict[str, Any]:
    """One record.

    Raises:
        ValueError: a file that is not a record of this version.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a record: {error}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path}: not a record of format {FORMAT}")
    if record.get("id") != path.parent.name:
        raise ValueError(f"{path}: belongs to cell {record.get('id')}")
    missing = {"cell", "status", "metrics"} - set(record)
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(sorted(missing))}")
    return record


def read_records(out: Path) -> Iterator[dict[str, Any]]:
    """Every record of an output folder, by id."""
    for path in sorted((out / "cells").glob(f"*/{RECORD}")):
        yield read_record(path)


def finished(records: Iterable[dict[str, Any]]) -> set[str]:
    """The ids of the cells that need not run again."""
    return {record["id"] for record in records if record["status"] in FINISHED}


def row(record: dict[str, Any]) -> dict[str, Any]:
    """A record as one flat row of ``results.csv``."""
    cell = record["cell"]
    settings = {**cell["network"], **cell["sample"], **cell["train"]}
    evaluation = {f"eval_{key}": value for key, value in cell["eval"].items()}
    return {
        "task": cell["task"],
        "method": cell["method"],
        "seed": cell["seed"],
        "task_version": cell["task_version"],
        **cell["hyperparameters"],
        **cell["task_parameters"],
        **settings,
        **evaluation,
        **record["metrics"],
        **{key: record.get(key) for key in [*TRAILING, *LAST] if key not in settings},
    }


def results(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """All records as a table: ``LEADING``, other settings, metrics, ``TRAILING``, ``LAST``."""
    rows = [row(record) for record in records]
    used = list(dict.fromkeys(key for row in rows for key in row))
    fixed = [*LEADING, *METRIC_COLUMNS, *TRAILING, *LAST]
    settings = [key for key in used if key not in fixed]
    columns = [*LEADING, *settings, *METRIC_COLUMNS, *TRAILING, *LAST]
    frame = pd.DataFrame(rows, columns=columns)
    order = [key for key in ("task", "method", "L", "sigma", "seed") if key in frame]
    return frame.sort_values(order, kind="stable", na_position="first", ignore_index=True)
