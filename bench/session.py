"""A run of cells into an output folder: what is left to do, who does it, what is noted of it."""

import contextlib
import importlib.util
import os
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import torch

from bench.execute import (
    Executor,
    Plan,
    address_of,
    check_device,
    execute,
    open_executor,
    resolve_device,
)
from bench.folder import Record, cell_folder, set_kills
from bench.manifest import add_run, end_run
from bench.provenance import environment
from bench.records import is_settled, read_records
from bench.schedule import Expectation, longest_first
from bench.spec import Cell, Spec, SpecError
from datasets.base import DATA_ROOT, DataError

MAX_COUNT = 100_000
MAX_LIMIT = 1e9


def make_plan(
    out: Path,
    device: str = "auto",
    jobs: int | None = None,
    threads: int | None = None,
    timeout: float | None = None,
    memory: float | None = None,
    scheduler: str | None = None,
    tensorboard: bool = False,
    command: str | None = None,
    plugins: Sequence[str] = (),
    data_root: str | Path | None = None,
    fid_weights: str | Path | None = None,
    checkpoint: int | None = None,
) -> Plan:
    """How cells are to be run, checked.

    Raises:
        SpecError: a value out of range, or a device or package that is not here.
    """
    for name, count in (("jobs", jobs), ("threads", threads)):
        if count is not None and not (isinstance(count, int) and 1 <= count <= MAX_COUNT):
            raise SpecError(f"{name}: must be a number from 1 to {MAX_COUNT}, got {count!r}")
    for name, limit in (("timeout", timeout), ("memory", memory)):
        if limit is not None and not (isinstance(limit, int | float) and 0 < limit <= MAX_LIMIT):
            raise SpecError(f"{name}: must be positive and at most 1e9, got {limit!r}")
    if checkpoint is not None and not (isinstance(checkpoint, int) and checkpoint >= 1):
        raise SpecError(f"checkpoint: must be a number of steps from 1 on, got {checkpoint!r}")
    use_data_root(data_root)
    if fid_weights is not None and not Path(fid_weights).is_file():
        raise SpecError(f"fid-weights: no file {str(fid_weights)!r}")
    if scheduler is not None and jobs is not None:
        raise SpecError("jobs: a cluster has as many as it has workers; leave it out")
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise SpecError(
            "tensorboard: not installed, pip install 'field-matching-bench[tensorboard]'"
        )
    if scheduler is None:
        device = resolve_device(device)
    else:
        address_of(scheduler)
        check_device(device)  # the workers have it or not
    if jobs is None:
        jobs = torch.cuda.device_count() if device == "cuda" else 1
    return Plan(
        out=out,
        device=device,
        jobs=jobs,
        threads=threads,
        timeout=timeout,
        memory=memory,
        scheduler=scheduler,
        command=command,
        tensorboard=tensorboard,
        plugins=tuple(str(Path(path).absolute()) for path in plugins),
        data_root=None if data_root is None else str(Path(data_root).absolute()),
        fid_weights=None if fid_weights is None else str(Path(fid_weights).absolute()),
        checkpoint=checkpoint,
    )


def use_data_root(folder: str | Path | None) -> None:
    """Has tasks look for files of the user's there; None leaves it to the environment.

    Raises:
        SpecError: no such folder.
    """
    if folder is not None:
        if not Path(folder).is_dir():
            raise SpecError(f"data-root: no folder {str(folder)!r}")
        os.environ[DATA_ROOT] = str(Path(folder).absolute())


def check_data(cells: Iterable[Cell], plan: Plan) -> None:
    """Looks whether the files of the user's are there that cells need; on a cluster they are not.

    Raises:
        SpecError: they are not; says what must lie where.
    """
    if plan.scheduler is not None:
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
        plan: how to run them.
        force: run finished cells again.

    Raises:
        SpecError: a folder that cannot be written, or no such scheduler.
        RecordError: the folder holds a file that is no record of this version.
        StorageError: a full disk.
    """

    def __init__(self, spec: Spec, cells: list[Cell], plan: Plan, force: bool) -> None:
        check_writable(plan.out)
        known = {record["id"]: record for record in read_records(plan.out)}
        self.cells = cells
        self.plan = plan._replace(begun=time.time(), force=force)
        self.before = [] if force else settled(cells, known, plan)
        self.expectation = Expectation()
        for cell in cells:
            if cell.id in known:
                self.expectation.learn(cell, known[cell.id])
        self.todo = longest_first(pending(cells, self.before), self.expectation)
        check_data(self.todo, plan)
        for cell in self.todo if force else []:
            set_kills(cell_folder(plan.out, cell.id), 0)
        self.statuses = Counter(str(record["status"]) for record in self.before)
        self.executor: Executor | None = None
        if self.todo:
            self.executor = open_executor(self.plan, len(self.todo))
        entry = {"command": plan.command, "spec": spec.model_dump(mode="json"), "cells": len(cells)}
        try:
            self.number = add_run(plan.out, **entry, **environment())
        except BaseException:
            if self.executor is not None:
                self.executor.close()
            raise

    def records(self) -> Generator[Record]:
        """Runs what is left to do and yields the records as they finish.

        Raises:
            StorageError, RecordError, ExecutionError, WorkerError: the run cannot go on.
        """
        if self.executor is not None:
            with contextlib.closing(self.executor):
                for record in execute(self.todo, self.plan, self.executor):
                    self.statuses[record["status"]] += 1
                    yield record
        end_run(self.plan.out, self.number, self.statuses)


def settled(cells: list[Cell], known: dict[str, Record], plan: Plan) -> list[Record]:
    """The records of the cells that need not run again."""
    records = [known[cell.id] for cell in cells if cell.id in known]
    return [record for record in records if is_settled(record, plan.timeout, plan.memory)]


def pending(cells: list[Cell], before: list[Record]) -> list[Cell]:
    """The cells that are not among the records."""
    done = {record["id"] for record in before}
    return [cell for cell in cells if cell.id not in done]


def check_writable(out: Path) -> None:
    """Raises :class:`SpecError` for a folder that cannot be made or written."""
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out / "cells"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"out: cannot write to {str(out)!r}: {reason}") from None
