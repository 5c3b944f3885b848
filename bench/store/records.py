"""Records: one a cell, written atomically, the source of every table.

``cells/<id>/record.json`` is complete or absent. Everything else in an output folder can be
rebuilt from the records. Processes that only watch over cells handle records without torch.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from bench.config.errors import BenchError
from bench.store.folder import (
    CHECKPOINT,
    DRAFT,
    MODEL,
    RECORD,
    RUNNING,
    SAMPLES,
    TRACEBACK,
    cell_folder,
    write_json,
)

FORMAT = 5
"""Raised when older records can no longer stand beside new ones: their folders are refused."""
SETTLED = ("done", "skipped", "diverged")  # not repeated: the same cell would end the same way
RESUMABLE = ("timeout", "killed", "failed")  # from a checkpoint: with a higher limit, or mended
MEMORY = ["nearest_train", "nearest_train_floor"]
"""Mean distance of the samples, and of held-out data, to the next training sample of a data set."""

REFERENCES = ("perfect", "linear", "identity", "noise")
"""Sample sets that are held against the same target as a cell's: an exact map from the same starts,
the optimal map between Gaussians of the same moments, the source samples, draws of N(0, I)."""

Status = Literal["done", "skipped", "diverged", "failed", "timeout", "killed"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")]
"""What tasks, methods and settings may be called: file names are made of these."""
Settings = dict[Name, str | int | float | None]


class RecordedCell(BaseModel):
    """A cell in plain values, as :class:`bench.config.cell.Cell` writes itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Name
    hyperparameters: Settings
    task: Name
    task_version: int
    task_parameters: Settings
    seed: int
    train: Settings
    network: Settings
    sample: Settings
    eval: Settings
    plugins: dict[str, str] = {}


class Outcome(BaseModel):
    """How a cell ended, and what was measured; None for what does not apply."""

    model_config = ConfigDict(extra="forbid")

    status: Status
    reason: str | None = None
    metrics: dict[str, FiniteFloat] = {}
    references: dict[str, dict[str, FiniteFloat]] = {}
    diagnostics: dict[Name, float] = {}
    curve: list[dict[str, int | float]] = []
    exceeded: dict[Literal["timeout", "memory"], float] = {}
    nfe: int | None = None
    train_seconds: float | None = None
    sample_seconds: float | None = None
    peak_memory_mb: float | None = None
    parameters: int | None = None
    architecture: str | None = None
    unused_network: list[str] = []
    resumed_at: int | None = None
    data_hash: str | None = None
    task_digest: str | None = None
    normalisation: dict[str, float | list[float]] = {}
    evaluated: int | None = None
    landed: float | None = None
    nearest_train: float | None = None
    nearest_train_floor: float | None = None
    classifier_hash: str | None = None
    classifier_accuracy: float | None = None
    fid_weights_hash: str | None = None
    fid_reason: str | None = None
    features_file: str | None = None
    features_hash: str | None = None


class Record(Outcome):
    """The outcome of a cell, with what the cell is and where it was run."""

    format: int = FORMAT
    id: str
    cell: RecordedCell
    steps: int
    batch: int
    device: str
    threads: int
    started: float
    seconds: float
    command: str | None = None
    plugins: dict[str, str] = {}
    commit: str | None = None
    dirty: bool = False
    python: str = ""
    packages: dict[str, str] = {}
    hardware: dict[str, Any] = {}

    @property
    def ended(self) -> float:
        """When it was written."""
        return self.started + self.seconds


class RecordError(BenchError, ValueError):
    """A file that should be a record and is none, or not one of this version. One line."""


def read_record(path: Path) -> Record:
    """One record.

    Raises:
        RecordError: a file that is not a record of this version; it is left as it is.
    """
    remedy = "move it away, or give another --out"
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise RecordError(
                f"{path}: written by another version (format {content['format']!r}, here {FORMAT});"
                " give another --out"
            )
        record = Record.model_validate(content)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecordError(f"{path}: {place!r}: {first['msg'].lower()}; {remedy}") from None
    except (json.JSONDecodeError, UnicodeError, KeyError, TypeError, RecursionError):
        raise RecordError(f"{path}: truncated, or not a record; {remedy}") from None
    if record.id != path.parent.name:
        raise RecordError(f"{path}: belongs to the cell {record.id!r}; {remedy}")
    return record


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


def is_settled(outcome: Outcome, timeout: float | None, memory: float | None) -> bool:
    """Whether a cell need not run again under these limits.

    A cell that exceeded a limit runs again when the limit has grown or is gone; one that killed
    its worker again and again does not.
    """
    if outcome.status in SETTLED:
        return True
    limits = {"timeout": timeout, "memory": memory}
    for name, value in outcome.exceeded.items():
        now = limits[name]
        return now is not None and now <= value
    return outcome.status == "killed"


def write_record(out: Path, record: Record) -> None:
    """Writes a record into the folder of its cell, and removes what is of no use after that.

    Raises:
        StorageError: it could not be written.
    """
    write_json(cell_folder(out, record.id) / RECORD, record.model_dump(mode="json"))
    tidy(out, record)


def tidy(out: Path, record: Record) -> None:
    """Removes what is of no use beside the record of a cell."""
    folder = cell_folder(out, record.id)
    useless = [DRAFT] if record.status == "done" else [DRAFT, SAMPLES, MODEL]  # of earlier attempts
    useless += [] if record.status in RESUMABLE else [CHECKPOINT]
    with contextlib.suppress(OSError):
        for path in [out / RUNNING / f"{record.id}.json", *(folder / name for name in useless)]:
            path.unlink(missing_ok=True)
        if (folder / TRACEBACK).stat().st_size == 0:  # of a process that was killed
            (folder / TRACEBACK).unlink()
