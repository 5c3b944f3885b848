"""Where cells run: in this process, or in worker processes through joblib."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import joblib
import torch
from joblib.externals.loky import ProcessPoolExecutor

from bench.cell import outcome_of, run_cell, write_record
from bench.records import cell_folder
from bench.spec import Cell, SpecError

PROGRESS = "progress.json"
NOTIFY_SECONDS = 0.5


def execute(
    cells: list[Cell], out: Path, jobs: int = 1, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Runs the cells and yields their records as they finish.

    Every worker gets its share of the cores as threads, so that they are not oversubscribed; not
    more than torch was told to use.

    Args:
        cells: what to run.
        out: the output folder.
        jobs: worker processes; 1 runs in this process.
        device: a torch device.
    """
    jobs = min(jobs, len(cells))
    threads = max(1, min(cpu_count() // max(1, jobs), torch.get_num_threads()))
    if jobs <= 1:
        for cell in cells:
            yield run_reporting(cell, out, device, threads)
        return
    pending = {cell.id: cell for cell in cells}
    while pending:
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        tasks = (
            joblib.delayed(run_reporting)(cell, out, device, threads)
            for cell in list(pending.values())
        )
        begin = time.time()
        try:
            for record in parallel(tasks):
                del pending[record["id"]]
                yield record
        except BrokenProcessPool:
            # joblib gives up when a worker is killed. The cells that were at work are suspects:
            # each gets a process of its own, and the others start again. If none was at work the
            # workers die as they start, and every cell is one.
            left = list(pending.values())
            suspects = [cell for cell, _ in running(left, out, since=begin)]
            for cell in suspects or left:
                del pending[cell.id]
                yield run_alone(cell, out, device, threads)


def run_alone(cell: Cell, out: Path, device: str, threads: int) -> dict[str, Any]:
    """:func:`run_reporting` in a process of its own; if that is killed, a record that says so."""
    begin = time.time()
    with ProcessPoolExecutor(1) as pool:
        try:
            record: dict[str, Any] = pool.submit(run_reporting, cell, out, device, threads).result()
            return record
        except BrokenProcessPool:
            (cell_folder(out, cell.id) / PROGRESS).unlink(missing_ok=True)
            outcome = outcome_of("killed", "the worker process was killed, twice")
            return write_record(cell, out, outcome, device, threads, begin)


def run_reporting(cell: Cell, out: Path, device: str, threads: int) -> dict[str, Any]:
    """:func:`run_cell`, leaving word of its progress in a file beside its record."""
    folder = cell_folder(out, cell.id)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PROGRESS
    begin = time.time()
    last = 0.0

    def notify(stage: str, step: int, steps: int, loss: float | None) -> None:
        nonlocal last
        if stage == "train" and step < steps and time.time() - last < NOTIFY_SECONDS:
            return
        last = time.time()
        state = {"stage": stage, "step": step, "steps": steps, "loss": loss, "began": begin}
        with contextlib.suppress(OSError):  # a cell must not fail for want of a progress line
            path.write_text(json.dumps(state))

    notify("start", 0, cell.train.steps, None)
    try:
        return run_cell(cell, out, device, threads, notify)
    finally:
        path.unlink(missing_ok=True)


def running(cells: list[Cell], out: Path, since: float) -> list[tuple[Cell, dict[str, Any]]]:
    """The cells at work and what they last said; those that began before ``since`` are dead."""
    states = []
    for cell in cells:
        try:
            state = json.loads((cell_folder(out, cell.id) / PROGRESS).read_text())
        except (OSError, ValueError):  # none yet, or half a file
            continue
        if state["began"] >= since:
            states.append((cell, state))
    return states


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_device(name: str) -> str:
    """``auto`` is the GPU if there is one.

    Raises:
        SpecError: an unknown device, or one that this machine lacks.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SpecError(f"device: unknown device {name!r}, choose from auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise SpecError(f"device: {name!r} is not here, this machine has {found} CUDA devices")
    return name
