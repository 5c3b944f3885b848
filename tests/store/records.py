"""A true record of a small cell: shared by the tests of the room."""

from pathlib import Path
from typing import Any

from bench.cell.run import run_cell
from bench.config.cell import Cell
from bench.config.grid import Spec
from bench.config.options import RunOptions
from bench.execute.worker import Attempt, Job
from bench.store.folder import RECORD, cell_folder
from bench.store.records import Record

ROOT = Path(__file__).parents[2]


def one_cell(**settings: list[Any]) -> Cell:
    """A small cell."""
    (cell,) = Spec(
        methods=["fm"],
        tasks=["gaussian_to_swiss_roll"],
        seeds=[0],
        settings={"train.steps": [2], "eval.n": [8], **settings},
    ).cells()
    return cell


def written_record(out: Path) -> Path:
    """A true record."""
    cell = one_cell()
    folder = cell_folder(out, cell.id)
    folder.mkdir(parents=True)
    job = Job.of(cell, RunOptions(out=out))
    Attempt(job, folder, "cpu", 0).write(run_cell(cell, folder))
    return folder / RECORD


def record_of(cell: Cell, status: str = "done", **values: Any) -> Record:
    """A record of a cell that was never run."""
    return Record.model_validate(
        {
            "status": status,
            "reason": None if status == "done" else "no field today",
            "metrics": {"w2": 0.5, "w2_floor": 0.1} if status == "done" else {},
            "id": cell.id,
            "cell": cell.model_dump(mode="json"),
            "steps": cell.train.steps,
            "batch": cell.train.batch,
            "device": "cpu",
            "threads": 1,
            "started": 0.0,
            "seconds": 1.0,
            **values,
        }
    )
