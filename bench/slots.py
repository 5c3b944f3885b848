"""A slot runs cells one after the other in a worker process of its own, and watches over it.

The worker is a loky process. One that is killed, by the system for want of memory or by hand, or
by the slot for exceeding a limit, takes one cell with it and nothing else: the slot starts the
next. The process that owns a slot imports no torch: the runner's, or a dask worker's.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotYet
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from joblib.externals.loky import ProcessPoolExecutor, process_executor

from bench.folder import End, Record, cell_folder, kills, note_end, outcome_of, set_kills

POLL_SECONDS = 0.1
GRACE_SECONDS = 0.5
"""Between the limit, when the worker writes down where it is, and its end."""
IDLE_SECONDS = 300.0
MAX_STARTS = 3


class Job(NamedTuple):
    """A cell and how to run it, in plain values that unpickle without torch."""

    id: str
    cell: str
    """The cell as JSON."""
    out: str
    threads: int | None = None
    """CPU threads; as many as torch takes by itself if None."""
    timeout: float | None = None
    """Seconds."""
    memory: float | None = None
    """Megabytes of resident memory of the worker."""
    begun: float = 0.0
    """When the command began: whatever was recorded after that is not repeated."""
    force: bool = False
    """Repeat what was recorded before that."""
    command: str | None = None
    tensorboard: bool = False
    plugins: tuple[str, ...] = ()
    """Files that register the methods and tasks of the cell."""
    data_root: str | None = None
    """Where the user's data sets lie."""
    fid_weights: str | None = None
    """The weights of pytorch-fid; those of its usual cache if None."""
    checkpoint: int | None = None
    """Steps between two checkpoints of the training; if None one is written now and then."""


class WorkerError(Exception):
    """Workers cannot be started at all. One line."""


class _StoppedError(Exception):
    """The slot is to end."""


class _ExceededError(Exception):
    """The worker exceeds a limit of its job."""

    def __init__(self, outcome: dict[str, Any], took: float) -> None:
        self.outcome, self.took = outcome, took


class Slot:
    """Runs jobs in a worker process.

    Args:
        device: a torch device, or ``cuda`` or ``auto`` for the one that :func:`deal` gives.
        index: the number of the slot among those of its owner.
        threads: the CPU threads of the worker's numerical libraries; theirs if None.
    """

    def __init__(self, device: str, index: int, threads: int | None = None) -> None:
        self.device, self.index, self.threads = device, index, threads
        self.stopped = threading.Event()
        self.wanted: Callable[[], bool] = lambda: True
        self.used = False
        self.pool: Any = None
        self.future: Any = None

    def run(self, job: Job) -> Record | None:
        """The record of the cell; None if another runner is at work on it, or after :meth:`stop`.

        Raises:
            StorageError: the record could not be written.
            WorkerError: the workers die before they begin.
        """
        folder = cell_folder(Path(job.out), job.id)
        while True:
            try:
                worker = self._start()
                self._call(_work, job, self.device, self.index)
                record = self._watch(worker, job)
                self.used = True
                return record
            except BrokenProcessPool:
                self.close()
                set_kills(folder, kills(folder) + 1)  # the worker gives up when it sees 3
            except _ExceededError as exceeded:
                # The memory of earlier cells is no fault of this one: then it gets a new worker.
                if exceeded.outcome["status"] == "timeout" or not self.used:
                    # The next worker records it.
                    note_end(folder, End(exceeded.outcome, time.time(), exceeded.took))
                self.close()
            except _StoppedError:
                self.close()
                return None

    def stop(self) -> None:
        """Has :meth:`run`, in another thread, kill the worker and return None."""
        self.stopped.set()

    def close(self) -> None:
        """Kills the worker, if there is one. Only for the thread that calls :meth:`run`."""
        self.used = False
        if self.pool is None:
            return
        # loky stumbles over a call that it has not passed on yet (KeyError in its own thread).
        end = time.monotonic() + 5
        while self.future is not None and time.monotonic() < end:
            if self.future.running() or self.future.done():
                break
            time.sleep(0.01)
        self.pool.shutdown(wait=True, kill_workers=True)
        self.pool = self.future = None

    def _start(self) -> psutil.Process:
        """The worker, ready to begin."""
        for _ in range(MAX_STARTS):
            self.pool = self.pool or ProcessPoolExecutor(
                1,
                timeout=IDLE_SECONDS,
                initializer=_begin_work,
                initargs=(os.getpid(),),
                env=thread_variables(self.threads),
            )
            try:
                self._call(_ready)
                return psutil.Process(self._result())
            except (BrokenProcessPool, psutil.NoSuchProcess, OSError) as error:
                self.close()
                cause = error
        raise WorkerError(f"worker processes die as they start: {' '.join(str(cause).split())}")

    def _watch(self, worker: psutil.Process, job: Job) -> Record | None:
        """The result of the worker.

        Raises:
            _ExceededError: it exceeds a limit.
        """
        begin = time.monotonic()
        while True:
            try:
                record: Record | None = self._result(POLL_SECONDS)
                return record
            except NotYet:
                elapsed = time.monotonic() - begin
                outcome = excess(job, elapsed, worker)
            if outcome is not None:
                raise _ExceededError(outcome, elapsed)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Has the worker begin a call; :meth:`_result` is its result."""
        self.future = self.pool.submit(function, *arguments)

    def _result(self, seconds: float = math.inf) -> Any:
        """The result of the worker's call.

        Raises:
            NotYet: it takes longer than that.
            _StoppedError: somebody called :meth:`stop`, or nobody wants the result any more.
        """
        end = time.monotonic() + seconds
        while self.wanted() and not self.stopped.is_set():
            try:
                return self.future.result(timeout=POLL_SECONDS)
            except NotYet:
                if time.monotonic() >= end:
                    raise
        raise _StoppedError


def excess(job: Job, elapsed: float, worker: Any) -> dict[str, Any] | None:
    """How a cell ends whose worker exceeds a limit; None if it does not.

    Args:
        job: has the limits.
        elapsed: seconds that the cell has taken.
        worker: the process, with ``memory_info()``.
    """
    if job.timeout is not None and elapsed > job.timeout + GRACE_SECONDS:
        reason = f"not done after --timeout {job.timeout:g} s"
        return outcome_of("timeout", reason, exceeded={"timeout": job.timeout})
    if job.memory is not None:
        try:
            used = worker.memory_info().rss / 2**20
        except psutil.NoSuchProcess:  # the future says so in a moment
            return None
        if used > job.memory:
            reason = f"used {used:.0f} MB, more than --memory {job.memory:g} MB"
            return outcome_of("killed", reason, exceeded={"memory": job.memory})
    return None


def deal(device: str, index: int, visible: int) -> str:
    """The device of slot ``index``: slots go round the visible CUDA devices.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` (any) or ``cuda:N`` (that one).
        index: the number of the slot.
        visible: how many CUDA devices this process sees.

    Raises:
        ValueError: a CUDA device that is not here.
    """
    if device == "auto":
        device = "cuda" if visible else "cpu"
    if device == "cpu":
        return device
    kind, _, number = device.partition(":")
    if kind != "cuda" or int(number or 0) >= visible:
        raise ValueError(f"{device!r} is not here, this machine has {visible} CUDA devices")
    return device if number else f"cuda:{index % visible}"


def thread_variables(threads: int | None) -> dict[str, str]:
    """The environment that gives numerical libraries ``threads`` threads."""
    if threads is None:
        return {}
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    # Threads that spin while they wait bring two busy workers on one core to a standstill.
    return {"OMP_WAIT_POLICY": "PASSIVE", **dict.fromkeys(names, str(threads))}


def _begin_work(owner: int) -> None:
    """In the worker: its owner alone ends it, and it does not outlive its owner."""
    # A terminal or a batch system signals the whole group; the death of the worker would count
    # against its cell.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # loky ends a worker that has grown by 300 MB, as every one does that opens a GPU. (To have it
    # not look at all would have it collect garbage instead, .15 s a cell.)
    process_executor._MAX_MEMORY_LEAK_SIZE = math.inf

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ready() -> int:
    """In the worker: loads what a cell needs, so that a cell's time is its own."""
    from bench.worker import warm_up

    warm_up()
    return os.getpid()


def _work(job: Job, device: str, index: int) -> Record | None:
    from bench.worker import work  # not above: the owner of a slot needs no torch

    return work(job, device, index)


_slots: dict[str, list[Slot]] = {}
_free: dict[str, list[Slot]] = {}
_ended: set[str] = set()
_slots_lock = threading.Lock()


def run_here(run: str, job: Job, device: str) -> Record | None:
    """Runs a job in a free slot of this process: what a dask worker calls, in each of its threads.

    Args:
        run: names the run, so that :func:`stop_here` ends its slots and no others.
        job: what to run.
        device: as for :class:`Slot`.
    """
    import multiprocessing

    multiprocessing.current_process().daemon = False  # dask's are, and may have no children
    # The nanny sets it so that memory is given back at once; cells took a third longer with it.
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)
    with _slots_lock:
        if run in _ended:
            return None
        slots, free = _slots.setdefault(run, []), _free.setdefault(run, [])
        slot = free.pop() if free else Slot(device, len(slots), job.threads)
        if slot not in slots:
            slots.append(slot)
    slot.wanted = _task_is_wanted()
    try:
        return slot.run(job)
    finally:
        with _slots_lock:
            if run in _ended:
                slot.close()
            else:
                free.append(slot)


def _task_is_wanted() -> Callable[[], bool]:
    """Whether the dask task of this thread still is, after its client was killed for instance."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state != "cancelled"

    return wanted


def stop_here(run: str) -> None:
    """Ends the slots of a run in this process: those at work end themselves in a moment."""
    with _slots_lock:
        _ended.add(run)
        for slot in _slots.pop(run, []):
            slot.stop()
        for slot in _free.pop(run, []):
            slot.close()
