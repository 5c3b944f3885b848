"""A run of cells into an output folder: what is left to do, who does it, what is noted of it."""

import contextlib
import functools
import importlib.util
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path

import torch

from bench.config.cell import Cell
from bench.config.errors import SpecError
from bench.config.grid import Spec
from bench.config.options import RunOptions
from bench.execute.cluster import address_of
from bench.execute.cost import Expectation
from bench.execute.devices import check_device, resolve_device
from bench.execute.executors import execute, open_executor
from bench.store.folder import cell_folder, set_kills
from bench.store.manifest import add_run, end_run
from bench.store.provenance import environment
from bench.store.records import Record, is_settled, read_records
from datasets import TASKS
from datasets.base import DataError


def prepared(options: RunOptions) -> RunOptions:
    """The options with a device and a number of jobs that this machine has.

    Raises:
        SpecError: a device, a file or a package that is not here.
    """
    for name, file in (("fid-weights", options.fid_weights), ("features", options.features)):
        if file is not None and not Path(file).is_file():
            raise SpecError(f"{name}: no file {file!r}")
    if options.scheduler is not None and options.jobs is not None:
        raise SpecError("jobs: a cluster has as many as it has workers; leave it out")
    if options.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise SpecError(
            "tensorboard: not installed, pip install 'field-matching-bench[tensorboard]'"
        )
    if options.scheduler is not None:
        address_of(options.scheduler)
        check_device(options.device)  # the workers have it or not
        return options.model_copy(update={"jobs": 1})
    device = resolve_device(options.device)
    jobs = options.jobs or (torch.cuda.device_count() if device == "cuda" else 1)
    return options.model_copy(update={"device": device, "jobs": jobs})


def check_data(cells: Iterable[Cell], options: RunOptions) -> None:
    """Looks whether the files of the user's are there that cells need; on a cluster they are not.

    Raises:
        SpecError: they are not; says what must lie where.
    """
    if options.scheduler is not None:
        return
    tasks = {(cell.task, repr(cell.task_parameters)): cell for cell in cells}
    for cell in tasks.values():
        try:
            cell.build_task().check()
        except DataError as error:
            raise SpecError(str(error)) from None


class Session:
    """The cells of one command, those of them that are left to do, and their execution.

    Args:
        spec: what the user asked for.
        cells: its grid.
        options: how to run them.

    Raises:
        SpecError: a folder that cannot be written, or no such scheduler.
        RecordError: the folder holds a file that is no record of this version.
        StorageError: a full disk.
    """

    def __init__(self, spec: Spec, cells: list[Cell], options: RunOptions) -> None:
        check_writable(options.out)
        self.cells = cells
        self.options = options.model_copy(update={"begun": time.time()})
        self.before, todo, changed = plan(cells, self.options)
        self.expectation = Expectation()
        if todo:
            by_id = {cell.id: cell for cell in cells}
            for record in self.before:
                self.expectation.learn(by_id[record.id], record)
        # Longest first: a long cell at the end delays all.
        self.todo = sorted(todo, key=self.expectation.seconds, reverse=True)
        check_data(self.todo, options)
        for cell in self.todo if options.force else []:
            set_kills(cell_folder(options.out, cell.id), 0)
        self.statuses = Counter(str(record.status) for record in self.before)
        self.executor = open_executor(self.options, len(self.todo))
        entry = {"command": options.command, "spec": spec.model_dump(mode="json")}
        self.number = add_run(options.out, **entry, cells=len(cells), **environment())
        for task, count in changed.items():
            line = f"the data of {task} have changed since {count} cells were recorded"
            print(f"{line}: they run again", file=sys.stderr, flush=True)

    def records(self) -> Generator[Record]:
        """Runs what is left to do and yields the records as they finish.

        Raises:
            StorageError, RecordError, ExecutionError: the run cannot continue.
        """
        with contextlib.closing(self.executor):
            for record in execute(self.todo, self.options, self.executor):
                self.statuses[record.status] += 1
                yield record
        end_run(self.options.out, self.number, self.statuses)


def plan(cells: list[Cell], options: RunOptions) -> tuple[list[Record], list[Cell], Counter[str]]:
    """Which of the cells have to run.

    Returns:
        The records of those that need not run again; those that must; how many of these, by task,
        because the data of the task have changed since they were recorded.

    Raises:
        RecordError: the folder holds a file that is no record of this version.
    """
    known = {record.id: record for record in read_records(options.out)}
    before, todo, changed = list[Record](), list[Cell](), Counter[str]()
    digest = functools.cache(_digest)  # data are looked at once a command
    for cell in cells:
        record = None if options.force else known.get(cell.id)
        if record is None or not is_settled(record, options.timeout, options.memory):
            todo.append(cell)
            continue
        comparable = record.task_digest is not None and options.scheduler is None
        now = digest(cell.task, tuple(cell.task_parameters.items())) if comparable else None
        if now in (None, record.task_digest):
            before.append(record)
        else:
            todo.append(cell)
            changed[cell.task] += 1
    return before, todo, changed


def _digest(task: str, parameters: tuple[tuple[str, object], ...]) -> str | None:
    """The digest of the data of a task now; None if their files are missing."""
    try:
        return TASKS[task](**dict(parameters)).digest()
    except (DataError, OSError):
        return None


def check_writable(out: Path) -> None:
    """Raises :class:`SpecError` for a folder that cannot be made or written."""
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out / "cells"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"out: cannot write to {str(out)!r}: {reason}") from None
