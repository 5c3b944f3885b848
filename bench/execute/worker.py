"""What is done around a cell where it runs: lock, log, progress, traceback, record."""

import contextlib
import faulthandler
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import torch

from bench.cell.run import Notify, Saving, run_cell
from bench.config.cell import Cell
from bench.config.plugins import loaded, why_not_here
from bench.execute.devices import assign_device
from bench.execute.job import Job
from bench.store.folder import (
    CHECKPOINT,
    DRAFT,
    LOG,
    MAX_KILLS,
    PART,
    RECORD,
    RUNNING,
    TRACEBACK,
    StorageError,
    cell_folder,
    hold,
    kills,
    set_kills,
    write_json,
    writing,
)
from bench.store.provenance import device_name, environment
from bench.store.records import Outcome, Record, RecordedCell, read_record, write_record
from datasets.base import DATA_ROOT

NOTIFY_SECONDS = 0.5

Curve = Callable[[str, float, int], None]  # ``curve(name, value, step)``: for TensorBoard


def work(job: Job, device: str, index: int = 0, in_process: bool = False) -> Record | None:
    """Runs a cell and writes its record.

    Args:
        job: the cell and its limits.
        device: as given by the user, see :func:`~bench.execute.devices.assign_device`.
        index: the number of the worker that this is done by.
        in_process: the runner dies with the cell, so the cell is counted as a killer beforehand.

    Returns:
        The record; that of another runner if it has finished the cell meanwhile; None if it is
        at work on it.

    Raises:
        StorageError: the output folder cannot be written.
    """
    folder = cell_folder(job.options.out, job.id)
    with hold(folder) as mine:
        if not mine:
            return None
        attempt = Attempt(job, folder, device, index)
        return attempt.earlier_record() or attempt.new_record(in_process)


class Attempt:
    """A cell that this process runs, and whose lock it holds."""

    def __init__(self, job: Job, folder: Path, device: str, index: int) -> None:
        self.job, self.options, self.folder = job, job.options, folder
        if job.options.data_root is not None:
            os.environ[DATA_ROOT] = job.options.data_root
        self.cell = Cell.model_validate_json(job.cell)
        self.refused = why_not_here(self.cell.plugins, job.options.plugins)
        self.plugins = {path: loaded()[path] for path in job.options.plugins if path in loaded()}
        self.device = assign_device(device, index)
        self.threads = job.options.threads or torch.get_num_threads()
        self.began = time.time()

    def earlier_record(self) -> Record | None:
        """What another runner has recorded since the command began."""
        if not (self.folder / RECORD).exists():
            return None
        record = read_record(self.folder / RECORD)
        return record if record.ended >= self.options.begun else None

    def new_record(self, in_process: bool) -> Record:
        """Runs the cell unless it has killed too many workers, and writes how it ended."""
        count = kills(self.folder)
        if count >= MAX_KILLS:
            reason = f"its worker was killed {count} times; --force tries again"
            return self.write(Outcome(status="killed", reason=reason))
        self._clean()
        if self.refused is not None:
            return self.write(Outcome(status="failed", reason=self.refused))
        if not in_process:  # a supervisor completes it
            draft = self.record(Outcome(status="killed"))
            write_json(self.folder / DRAFT, draft.model_dump(mode="json"))
        try:
            set_kills(self.folder, count + in_process)
            record = self.write(_logged_run(self, in_process))
            set_kills(self.folder, 0)
            return record
        except BaseException:
            with contextlib.suppress(StorageError):
                set_kills(self.folder, count)
            raise

    def write(self, outcome: Outcome) -> Record:
        """Records how the cell ended."""
        record = self.record(outcome)
        write_record(self.options.out, record)
        return record

    def record(self, outcome: Outcome) -> Record:
        """The outcome, with what the cell is and where it was run."""
        return Record(
            **outcome.model_dump(),
            id=self.cell.id,
            cell=RecordedCell(**self.cell.model_dump(mode="json")),
            steps=self.cell.train.steps,
            batch=self.cell.train.batch,
            device=device_name(self.device),
            threads=self.threads,
            started=self.began,
            seconds=time.time() - self.began,
            command=self.options.command,
            plugins=self.plugins,
            **environment(),
        )

    def _clean(self) -> None:
        """Removes what an attempt has left that was killed or failed."""
        checkpoint = self.folder / CHECKPOINT
        with writing(self.folder):
            for path in [*self.folder.glob(f"*{PART}"), self.folder / TRACEBACK]:
                path.unlink(missing_ok=True)
            forced = self.options.force and checkpoint.exists()
            if forced and checkpoint.stat().st_mtime < self.options.begun:
                checkpoint.unlink()


def _logged_run(attempt: Attempt, in_process: bool) -> Outcome:
    """:func:`run_cell` with its log, its place in the live view and its TensorBoard curves."""
    cell, folder, options = attempt.cell, attempt.folder, attempt.options
    if attempt.device.startswith("cuda"):
        torch.cuda.set_device(attempt.device)  # else a careless call uses the first GPU too
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing(folder / LOG))
        log = stack.enter_context((folder / LOG).open("a", encoding="utf-8", buffering=1))
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        if not in_process:
            stack.enter_context(_crash_traceback(folder, options.timeout))
        curve = stack.enter_context(_tensorboard(attempt))
        _say(log, f"{cell.label} ({cell.id}) on {attempt.device}, threads: {attempt.threads}")
        # A worker that is killed again and again is given up, unless it comes further each time.
        saving = Saving(options.checkpoint, lambda: set_kills(folder, int(in_process)))
        device, threads, notify = attempt.device, attempt.threads, _notify(attempt, log, curve)
        networks = options.fid_weights, options.features
        outcome = run_cell(cell, folder, device, threads, notify, saving, *networks)
        _say(log, " ".join(filter(None, (outcome.status, outcome.reason))))
        for name, value in outcome.metrics.items():
            _say(log, f"  {name} {value:.6g}")
            curve(f"metrics/{name}", value, cell.train.steps)
        return outcome


def _say(log: TextIO, line: str) -> None:
    log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def _notify(attempt: Attempt, log: TextIO, curve: Curve) -> Notify:
    """Writes where the cell stands to its log and to the file that the live view reads."""
    cell, path = attempt.cell, attempt.options.out / RUNNING / f"{attempt.job.id}.json"
    last = 0.0
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)

    def notify(stage: str, step: int, steps: int, loss: float | None) -> None:
        nonlocal last
        if loss is not None:
            curve("train/loss", loss, step)
        if stage == "train" and step < steps and time.time() - last < NOTIFY_SECONDS:
            return
        last = time.time()
        _say(log, stage if loss is None else f"{stage} step {step}/{steps} loss {loss:.6g}")
        state = {"label": cell.label, "stage": stage, "step": step, "steps": steps, "loss": loss}
        with contextlib.suppress(OSError):
            path.write_text(json.dumps(state | {"began": attempt.began, "at": last}))

    notify("start", 0, cell.train.steps, None)
    return notify


@contextlib.contextmanager
def _crash_traceback(folder: Path, timeout: float | None) -> Iterator[None]:
    """Has a traceback written if the process crashes or is still at work after ``timeout``."""
    with (folder / TRACEBACK).open("w", encoding="utf-8") as file:
        faulthandler.enable(file)
        if timeout is not None:
            faulthandler.dump_traceback_later(timeout, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()


@contextlib.contextmanager
def _tensorboard(attempt: Attempt) -> Iterator[Curve]:
    """Writes scalars for TensorBoard, if that is asked for."""
    if not attempt.options.tensorboard:
        yield lambda name, value, step: None
        return
    from torch.utils.tensorboard import SummaryWriter  # an extra

    cell = attempt.cell
    name = f"{cell.task}-{cell.method}-{cell.seed}-{cell.id}"
    with SummaryWriter(str(attempt.options.out / "tensorboard" / name)) as writer:
        yield lambda name, value, step: writer.add_scalar(name, value, step)
