"""What a worker gets of a cell, in plain values that unpickle without torch."""

from typing import TYPE_CHECKING, NamedTuple

from bench.config.errors import BenchError
from bench.config.options import RunOptions
from bench.store.records import Record

if TYPE_CHECKING:
    from bench.config.cell import Cell


class ExecutionError(BenchError):
    """The run cannot continue, though nothing is wrong with its cells. One line."""


class Job(NamedTuple):
    """A cell and how to run it."""

    id: str
    cell: str  # as JSON
    options: RunOptions

    @classmethod
    def of(cls, cell: "Cell", options: RunOptions) -> "Job":
        """The job of a cell."""
        return cls(cell.id, cell.model_dump_json(), options)


Finished = tuple[Job, Record | None]  # a job and its record; None for one at work elsewhere
