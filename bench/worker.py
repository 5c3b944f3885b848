"""What is done around a cell where it runs: lock, log, progress, traceback, record."""

import contextlib
import faulthandler
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch

from bench.cell import Notify, Saving, run_cell
from bench.folder import (
    CHECKPOINT,
    ENDED,
    LOG,
    MAX_KILLS,
    MODEL,
    RECORD,
    SAMPLES,
    TRACEBACK,
    End,
    Record,
    StorageError,
    cell_folder,
    hold,
    kills,
    noted_end,
    outcome_of,
    set_kills,
    write_json,
    writing,
)
from bench.plugins import load_plugin
from bench.provenance import device_name, environment
from bench.records import FORMAT, is_settled, read_record
from bench.slots import Job, deal
from bench.spec import Cell
from datasets.base import DATA_ROOT

RUNNING = "running"
FILES = (RECORD, SAMPLES, MODEL, TRACEBACK, CHECKPOINT)
GO_ON = ("timeout", "killed", "failed")
"""With more time or memory, or when it is mended, the cell goes on from its checkpoint."""
NOTIFY_SECONDS = 0.5


class Attempt:
    """A cell in the hands of this process: where it lies and where it runs."""

    def __init__(self, job: Job, folder: Path, device: str, index: int) -> None:
        self.job, self.folder = job, folder
        self.plugins = {path: load_plugin(path) for path in job.plugins}
        if job.data_root is not None:
            os.environ[DATA_ROOT] = job.data_root
        self.cell = Cell.model_validate_json(job.cell)
        self.device = deal(device, index, torch.cuda.device_count())
        self.threads = job.threads or torch.get_num_threads()
        self.running = Path(job.out) / RUNNING / f"{job.id}.json"
        self.began = time.time()

    def record(self, outcome: dict[str, Any]) -> Record:
        """Writes how the cell ended."""
        record = {
            "format": FORMAT,
            "id": self.cell.id,
            "cell": self.cell.model_dump(mode="json"),
            **outcome,
            "steps": self.cell.train.steps,
            "batch": self.cell.train.batch,
            "device": device_name(self.device),
            "threads": self.threads,
            "started": self.began,
            "seconds": time.time() - self.began,
            "command": self.job.command,
            "plugins": self.plugins,
            **environment(),
        }
        write_json(self.folder / RECORD, record)
        with contextlib.suppress(OSError):
            self.running.unlink(missing_ok=True)
            (self.folder / ENDED).unlink(missing_ok=True)
            for name in () if outcome["status"] == "done" else (SAMPLES, MODEL):
                (self.folder / name).unlink(missing_ok=True)  # of an earlier attempt
            if outcome["status"] not in GO_ON:
                (self.folder / CHECKPOINT).unlink(missing_ok=True)
            if (self.folder / TRACEBACK).stat().st_size == 0:  # of a process that was killed
                (self.folder / TRACEBACK).unlink()
        return record

    def clean(self) -> None:
        """Removes what an attempt has left that was killed or failed."""
        rests = [path for name in FILES for path in self.folder.glob(f".{name}*")]
        with contextlib.suppress(OSError):
            for path in [*rests, self.folder / ENDED, self.folder / TRACEBACK]:
                path.unlink(missing_ok=True)


def work(job: Job, device: str, index: int = 0, in_process: bool = False) -> Record | None:
    """Runs a cell and writes its record.

    Args:
        job: the cell and its limits.
        device: as given by the user, see :func:`bench.slots.deal`.
        index: the number of the slot that this is done for.
        in_process: the runner dies with the cell, so the cell is counted as a killer beforehand.

    Returns:
        The record; that of another runner if it has finished the cell meanwhile; None if it is
        at work on it.

    Raises:
        StorageError: the output folder cannot be written.
    """
    with _claimed(job) as folder:
        if folder is None:
            return None
        attempt = Attempt(job, folder, device, index)
        found = settled_record(folder, job)
        if found is not None:
            return found
        end, count = noted_end(folder), kills(folder)
        if end is not None and _counts(end, job):
            attempt.began = end.at - end.took
            return attempt.record(end.outcome)
        if count >= MAX_KILLS:
            reason = f"its worker was killed {count} times; --force tries again"
            return attempt.record(outcome_of("killed", reason))
        attempt.clean()
        if job.force:
            _forget(folder / CHECKPOINT, job.begun)
        try:
            set_kills(folder, count + in_process)
            record = attempt.record(_logged_run(attempt, in_process))
            set_kills(folder, 0)
            return record
        except BaseException:
            with contextlib.suppress(StorageError):
                set_kills(folder, count)
            raise


def warm_up() -> None:
    """Has torch load what the first optimiser of a process loads: seconds of imports."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


def settled_record(folder: Path, job: Job) -> Record | None:
    """The record that another runner has written meanwhile, or one that needs no repetition."""
    if not (folder / RECORD).exists():
        return None
    record = read_record(folder / RECORD)
    if record["started"] + record["seconds"] >= job.begun:
        return record
    return None if job.force or not is_settled(record, job.timeout, job.memory) else record


def _forget(path: Path, begun: float) -> None:
    """Removes a file of a time before ``begun``."""
    with writing(path):
        if path.exists() and path.stat().st_mtime < begun:
            path.unlink(missing_ok=True)


def _counts(end: End, job: Job) -> bool:
    """Whether a cell would end that way again under this command's limits."""
    current = end.at >= job.begun or not job.force
    return current and is_settled(end.outcome, job.timeout, job.memory)


@contextlib.contextmanager
def _claimed(job: Job) -> Iterator[Path | None]:
    """The folder of the cell, locked; None if another process holds it."""
    folder = cell_folder(Path(job.out), job.id)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with hold(folder) as mine:
        yield folder if mine else None


def _logged_run(attempt: Attempt, in_process: bool) -> dict[str, Any]:
    """:func:`run_cell` with its log, its place in the live view and its TensorBoard curves."""
    cell, folder, device = attempt.cell, attempt.folder, attempt.device
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # else a careless call opens a context on the first GPU too
    with (
        writing(folder / LOG),
        (folder / LOG).open("a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        contextlib.nullcontext() if in_process else _crash_traceback(folder, attempt.job.timeout),
        _curves(attempt) as curves,
    ):
        say = partial(_say, log)
        say(f"{cell.label} ({cell.id}) on {device}, threads: {attempt.threads}")
        notify = _notify(attempt, say, curves)
        # A worker that is killed again and again is given up, unless it comes further each time.
        saving = Saving(attempt.job.checkpoint, lambda: set_kills(folder, int(in_process)))
        weights = attempt.job.fid_weights
        outcome = run_cell(cell, folder, device, attempt.threads, notify, saving, weights)
        say(" ".join(filter(None, (outcome["status"], outcome["reason"]))))
        for name, value in outcome["metrics"].items():
            say(f"  {name} {value:.6g}")
            curves(f"metrics/{name}", value, cell.train.steps)
        return outcome


def _say(log: TextIO, line: str) -> None:
    with contextlib.suppress(OSError):  # a cell must not fail for want of a line
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


Curve = Callable[[str, float, int], None]


def _notify(attempt: Attempt, say: Callable[[str], None], curves: Curve) -> Notify:
    """Writes where the cell stands to its log and to the file that the live view reads."""
    cell, path = attempt.cell, attempt.running
    last = 0.0
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)

    def notify(stage: str, step: int, steps: int, loss: float | None) -> None:
        nonlocal last
        if loss is not None:
            curves("train/loss", loss, step)
        if stage == "train" and step < steps and time.time() - last < NOTIFY_SECONDS:
            return
        last = time.time()
        say(stage if loss is None else f"{stage} step {step}/{steps} loss {loss:.6g}")
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
def _curves(attempt: Attempt) -> Iterator[Curve]:
    """Writes scalars for TensorBoard, if that is asked for."""
    if not attempt.job.tensorboard:
        yield lambda name, value, step: None
        return
    from torch.utils.tensorboard import SummaryWriter  # an extra

    cell = attempt.cell
    name = f"{cell.task}-{cell.method}-{cell.seed}-{cell.id}"
    with SummaryWriter(str(Path(attempt.job.out) / "tensorboard" / name)) as writer:
        yield lambda name, value, step: writer.add_scalar(name, value, step)
