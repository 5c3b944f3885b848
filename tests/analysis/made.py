"""Records made up by hand: of given results, and ten thousand of real cells."""

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.analysis import Analysis
from bench.config.cell import Cell
from bench.config.grid import Spec
from bench.config.settings import EvalSettings, TrainSettings
from bench.metrics import METRICS
from bench.store.folder import RECORD, cell_folder, write_json
from bench.store.records import FORMAT, RecordedCell
from bench.store.records import Record as StoredRecord
from datasets import TASKS
from methods.networks import NetworkSettings
from methods.solvers import Solver

EIGHT, ROLL = "gaussian_to_8gaussians", "gaussian_to_swiss_roll"
Record = dict[str, Any]

CELLS = 10_000
FIVE = [
    "gaussian_to_swiss_roll",
    "gaussian_to_8gaussians",
    "moons_to_8gaussians",
    "gaussian_to_digits",
    "digits_3_to_2",
]
SEVERAL_AXES: dict[str, list[Any]] = {
    "L": [3.0, 6.0, 10.0, 20.0, 30.0],
    "sigma": [0.01, 0.02, 0.1, 0.5, 1.0],
    "efm.points": ["uniform", "mix"],
    "train.lr": [k / 1e3 for k in range(1, 13)],
}
SHAPES = {
    "seeds": Spec(methods=["efm", "fm", "pfgm"], tasks=FIVE, seeds=list(range(667))),
    "settings": Spec(
        methods=["efm", "fm", "pfgm"], tasks=FIVE, seeds=[0, 1, 2], settings=SEVERAL_AXES
    ),
    "grid": Spec(
        methods=["efm"],
        tasks=FIVE,
        seeds=[0],
        settings=SEVERAL_AXES | {"train.lr": [k / 1e4 for k in range(1, 41)]},
    ),
    "search": Spec(
        methods=["fm"],
        tasks=FIVE,
        seeds=[0],
        settings={"train.lr": [k / 1e6 for k in range(1, 2001)]},
    ),
}


def record(
    method: str = "fm",
    seed: int = 0,
    task: str = EIGHT,
    status: str = "done",
    reason: str | None = None,
    metrics: dict[str, float] | None = None,
    steps: int = 100,
    **hyperparameters: Any,
) -> Record:
    """A record by hand, of a real cell's layout."""
    cell = {
        "method": method,
        "hyperparameters": hyperparameters,
        "task": task,
        "task_version": 1,
        "task_parameters": {},
        "seed": seed,
        "train": TrainSettings(steps=steps).model_dump(mode="json"),
        "network": NetworkSettings().model_dump(mode="json"),
        "sample": Solver().model_dump(mode="json"),
        "eval": EvalSettings().model_dump(mode="json"),
    }
    name = hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:16]
    counts = {"nfe": 50, "train_seconds": 2.0 + seed, "sample_seconds": 0.5}
    return {
        "format": FORMAT,
        "id": name,
        "cell": cell,
        "status": status,
        "reason": reason,
        "metrics": (metrics or {}) if status == "done" else {},
        **(counts if status == "done" else {}),
        "steps": steps,
        "batch": 512,
        "device": "cpu",
        "threads": 1,
        "started": 1.7e9,
        "seconds": 3.0,
        "commit": "abc",
    }


def w2(value: float, floor: float = 0.1) -> dict[str, float]:
    return {"w2": value, "w2_floor": floor}


def as_record(made: Record) -> StoredRecord:
    """Without the checks of a file: tables must cope with any name."""
    cell = RecordedCell.model_construct(**made["cell"])
    return StoredRecord.model_construct(**(made | {"cell": cell}))


def analysis(made: Iterable[Record]) -> Analysis:
    return Analysis.of_records(map(as_record, made))


def results(made: Iterable[Record]) -> pd.DataFrame:
    return analysis(made).rows


def the(board: pd.DataFrame, **where: Any) -> "pd.Series[Any]":
    """The one row in which these columns have these values."""
    for name, value in where.items():
        board = board[board[name] == value]
    assert len(board) == 1
    return board.iloc[0]


def stored(out: Path, made: Record) -> Path:
    folder = cell_folder(out, made["id"])
    folder.mkdir(parents=True)
    write_json(folder / RECORD, made)
    return folder / RECORD


def outcome(cell: Cell, rng: np.random.Generator) -> dict[str, Any]:
    """How a made-up cell ended: a few in a hundred did not get to the end."""
    task = TASKS[cell.task]
    if cell.method == "pfgm" and not task.noise_source:
        reason = "pfgm generates from its own prior; it cannot start from data"
        return {"status": "skipped", "reason": reason, "metrics": {}}
    lot = rng.integers(100)
    if lot < 4:
        status = ("failed", "diverged", "timeout", "killed")[lot]
        return {"status": status, "reason": f"gave up at step {rng.integers(2000)}", "metrics": {}}
    scale = 0.2 * (1 + abs(np.log(cell.train.lr / 2e-3)))
    scale *= 1 + abs(np.log(cell.hyperparameters.get("L", 10.0) / 10))
    values = {}
    native = cell.method != "pfgm"
    for name, metric in METRICS.items():
        has_it = metric.floor_kind == "measured" or (metric.kind == "radial") is not native
        has_it &= metric.kind != "known" and metric.features is None
        if metric.meaningful(task.dim) and has_it:
            values[name] = float(scale * rng.lognormal(0, 0.2))
            values[f"{name}_floor"] = 0.1 if metric.floor_kind == "measured" else 1.0
            values |= {f"{name}_low": 0.9 * values[name], f"{name}_high": 1.1 * values[name]}
    counts = {"nfe": 50, "train_seconds": 10.0, "sample_seconds": 0.5, "peak_memory_mb": 500.0}
    counts |= {"parameters": 50_000, "evaluated": 2000, "landed": 1.0}
    return {"status": "done", "reason": None, "metrics": values, **counts}


def record_of(cell: Cell, rng: np.random.Generator) -> dict[str, Any]:
    """A made-up record of a real cell."""
    return {
        "format": FORMAT,
        "id": cell.id,
        "cell": cell.model_dump(mode="json"),
        **outcome(cell, rng),
        "steps": cell.train.steps,
        "batch": cell.train.batch,
        "device": "cpu",
        "threads": 1,
        "started": 1.7e9,
        "seconds": 12.0,
        "commit": "0123456789ab",
    }


def first_cells(shape: str) -> list[Cell]:
    return list(islice(SHAPES[shape].cells(), CELLS))
